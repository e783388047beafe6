import pytest
from chat_models import WRITERS
from transformers import AutoTokenizer

from skytrain.data.chat import ChatTokenizer


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """form -> a small model folder of that family."""
    root = tmp_path_factory.mktemp("models")
    return {form: write(root / form) for form, write in WRITERS.items()}


@pytest.fixture(scope="session")
def models(folders):
    """form -> (our tokenizer, transformers' on the same folder)."""
    return {form: (ChatTokenizer.load(f), AutoTokenizer.from_pretrained(f)) for form, f in folders.items()}

import pytest
from chat_models import write_qwen2_5


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return write_qwen2_5(tmp_path_factory.mktemp("model"))

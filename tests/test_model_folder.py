"""A folder that is no model's, as a newcomer gives it: to prepare data and to train alike, one line says what it is."""

import json
import shutil

import pytest
from tiny_models import write_tiny_model

from skytrain import hf
from skytrain.data.chat import ChatTokenizer
from skytrain.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "whole")


def told(look, folder) -> str:
    with pytest.raises(UserError) as error:
        look(folder)
    return str(error.value)


BOTH = pytest.mark.parametrize("look", [hf.read_config, ChatTokenizer.load])


@BOTH
def test_the_name_of_a_model_of_the_hub(look, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = told(look, "Qwen/Qwen2.5-7B-Instruct")
    assert "hf download Qwen/Qwen2.5-7B-Instruct --local-dir models/Qwen2.5-7B-Instruct" in line
    (tmp_path / "models").mkdir()
    line = told(look, "models/mine")  # a slip of the hand, and nobody's name
    assert f"models/mine: no such folder in {tmp_path}" in line
    assert "download" not in line


@BOTH
def test_the_folder_that_models_lie_in(look, whole, tmp_path):
    for name in ("b", "a"):
        shutil.copytree(whole, tmp_path / "models" / name)
    models = tmp_path / "models"
    assert told(look, models) == f"{models}: holds models, and is none itself; give one of them: {models}/a, {models}/b"


@BOTH
@pytest.mark.parametrize(
    ("files", "words"),
    [(["adapter_config.json", "adapter_model.safetensors"], "LoRA"), (["model-Q4_K_M.gguf"], "GGUF")],
)
def test_what_is_no_whole_model(look, files, words, tmp_path):
    for name in files:
        (tmp_path / name).write_text("{}")
    assert words in told(look, tmp_path)
    (tmp_path / "config.json").write_text("{}")  # beside which it is no longer all that there is
    assert words not in told(look, tmp_path)


@BOTH
def test_a_file(look, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"")
    assert "model.gguf: is a file" in told(look, tmp_path / "model.gguf")


def test_pickled_weights_alone(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    line = told(hf.stored_tensors, folder)
    assert "pickled weights are not read" in line
    assert "save_pretrained" in line
    (folder / "pytorch_model.bin").unlink()
    assert "are not read" not in told(hf.stored_tensors, folder)


def test_a_tokenizer_of_the_older_form(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    assert "older form" not in told(ChatTokenizer.load, folder)
    (folder / "vocab.json").write_text("{}")
    assert "older form" in told(ChatTokenizer.load, folder)


def test_a_base_model_is_told_what_it_lacks(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "model")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["chat_template"]
    path.write_text(json.dumps(settings))
    assert "copy the chat_template.jinja of a chat model" in told(ChatTokenizer.load, folder)

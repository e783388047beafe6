"""`skytrain export RUN [--step N] OUT`: the weights of a checkpoint, on one process without a process group."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import write_tiny_model

from skytrain import checkpoint, export_command
from skytrain.errors import UserError
from skytrain.hf import read_config


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "qwen2")


def make_run(folder: Path, model: Path, dtype: str = "float32") -> dict[int, dict[str, torch.Tensor]]:
    """A run folder with checkpoints of steps 3 and 5; returns the weights of each."""
    folder.mkdir()
    (folder / "config.toml").write_text(
        f'[run]\ndir = "elsewhere"\n[model]\npath = "{model}"\n[data]\npath = "absent"\n'
        f'[batch]\ndocuments = 1\n[export]\ndtype = "{dtype}"\n'
    )
    source = load_file(model / "model.safetensors")
    weights = {step: {name: tensor * step for name, tensor in source.items()} for step in (3, 5)}
    scalars = {"model.path": read_config(model).as_json()}
    for step in weights:
        tensors = {f"model.{name}": tensor for name, tensor in weights[step].items()}
        tensors |= {f"optim.exp_avg.{name}": torch.zeros_like(tensor) for name, tensor in weights[step].items()}
        checkpoint.save(folder / "checkpoints", step, tensors | {"optim.steps": torch.tensor(5.0)}, scalars, keep=9)
    return weights


def export(*words: object) -> None:
    parser = argparse.ArgumentParser()
    export_command.register(parser.add_subparsers())
    arguments = parser.parse_args(["export", *map(str, words)])
    arguments.run(arguments)


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_export_writes_the_weights_of_a_step(model, tmp_path):
    weights = make_run(tmp_path / "run", model)
    export(tmp_path / "run", tmp_path / "newest")
    export(tmp_path / "run", "--step", 3, tmp_path / "third")
    for out, step in (("newest", 5), ("third", 3)):
        got = load_file(tmp_path / out / "model.safetensors")
        assert got.keys() == weights[step].keys()
        assert all(torch.equal(got[name], weights[step][name]) for name in got)
        assert (tmp_path / out / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


def test_export_is_in_the_dtype_of_the_run(model, tmp_path):
    weights = make_run(tmp_path / "run", model, "bfloat16")
    export(tmp_path / "run", tmp_path / "out")
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(got[name], weights[5][name].bfloat16()) for name in weights[5])


def test_export_passes_over_an_unfinished_checkpoint_and_says_so(model, tmp_path, capsys):
    weights = make_run(tmp_path / "run", model)
    (tmp_path / "run" / "checkpoints" / "step-00000005" / "complete.json").unlink()
    export(tmp_path / "run", tmp_path / "out")
    assert "passed over step-00000005: no complete.json" in capsys.readouterr().out
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(got[name], weights[3][name]) for name in got)


def test_export_verifies_the_weights_and_reads_nothing_else(model, tmp_path):
    weights = make_run(tmp_path / "run", model)
    # Files are numbered in the order of the names' first parts: model before optim.
    weight_file, moment_file = sorted((tmp_path / "run" / "checkpoints" / "step-00000005").glob("*.safetensors"))
    flip_last_byte(moment_file)
    export(tmp_path / "run", tmp_path / "out")
    assert len(load_file(tmp_path / "out" / "model.safetensors")) == len(weights[5])
    flip_last_byte(weight_file)
    with pytest.raises(UserError, match=f"{weight_file.name} is corrupt"):
        export(tmp_path / "run", tmp_path / "broken")
    assert sorted(os.listdir(tmp_path)) == ["out", "run"]


def test_export_refuses_a_model_folder_whose_config_has_changed(model, tmp_path):
    changed = Path(shutil.copytree(model, tmp_path / "model"))
    make_run(tmp_path / "run", changed)
    settings = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-3}))
    with pytest.raises(UserError, match=r"config\.json was another"):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_refuses_what_is_no_run(model, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("absent", "empty"):
        with pytest.raises(UserError, match=r"no config.toml in it"):
            export(tmp_path / folder, tmp_path / "out")
    make_run(tmp_path / "run", model)
    for step in (4, -1):
        with pytest.raises(UserError, match=rf"checkpoints: holds no step {step}; it holds steps 3, 5$"):
            export(tmp_path / "run", tmp_path / "out", "--step", step)
    (tmp_path / "run" / "checkpoints" / "step-00000005" / "complete.json").unlink()
    with pytest.raises(UserError, match=r"step-00000005: no complete.json"):
        export(tmp_path / "run", tmp_path / "out", "--step", 5)
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="holds no step 3; it holds no step at all"):
        export(tmp_path / "run", tmp_path / "out", "--step", 3)
    with pytest.raises(UserError, match="no complete checkpoint"):
        export(tmp_path / "run", tmp_path / "out")
    (tmp_path / "run" / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match="checkpoints: Not a directory"):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()

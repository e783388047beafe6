"""`skytrain verify`: right on a right trainer, and each check fails where its fault is planted."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from tiny_models import write_tiny_model

from skytrain import checkpoint, cli, config, feed, verify
from skytrain.errors import UserError
from skytrain.export import ExportTensor


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model, a data set and a recipe."""
    folder = tmp_path_factory.mktemp("verify")
    model = write_tiny_model(folder / "model", "qwen3", tied=True)
    documents = runs.random_documents(16, vocab=256, seed=3)
    data = runs.write_data(folder / "data", documents, model)
    recipe = config.dumps(runs.settings(model, data, folder / "run"))
    (folder / "recipe.toml").write_text(recipe)
    return folder


def command(*words: object) -> int:
    arguments = cli.parse(["verify", *map(str, words)])
    return arguments.run(arguments)


def test_every_check_passes_and_nothing_is_left_behind(place, capsys):
    before = sorted(os.listdir(place))
    assert command(place / "recipe.toml", "--examples", "1", "--steps", "2") == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if " ok " in line] == list(verify.CHECKS)
    assert "FAILED" not in said
    assert "tensors, the same to the bit" in said
    assert sorted(os.listdir(place)) == before
    # What is trained stands in brackets, and is what the data set says.
    _, trained = verify.TokenDataset.open(place / "data").document(0)
    shown = said.split("context\n", 1)[1].split("\n\n")[0]
    assert shown.count("[[") == int((np.diff(np.concatenate([[0], trained])) == 1).sum())


def settings(place: Path):
    return config.load(place / "recipe.toml")


def test_documents_that_see_each_other_fail_packing(place, tmp_path, monkeypatch):
    def mixed(*args):
        row = pack(*args)
        return replace(row, cu_seqlens=np.array([0, len(row.input_ids)], np.int32), max_seqlen=len(row.input_ids))

    pack = feed.pack_row
    monkeypatch.setattr(feed, "pack_row", mixed)
    verdict = verify.check_packing(settings(place), tmp_path, 2, 2)
    assert not verdict.good
    assert "differs by" in verdict.figure


@pytest.mark.parametrize("what", ["a bit", "a norm"])
def test_an_export_that_is_not_the_model_fails(what, place, tmp_path, monkeypatch):
    """A tensor that was changed on its way, and a model that computes otherwise than transformers."""
    tensors = verify.model_tensors

    def changed(model, dtype, master=None):
        first, *others = tensors(model, dtype, master)
        yield ExportTensor(first.name, first.shape, lambda: first.fetch() + 2**-7)
        yield from others

    if what == "a bit":
        monkeypatch.setattr(verify, "model_tensors", changed)
        expected = "1 tensors differ from the source, model.embed_tokens.weight first"
    else:
        monkeypatch.setattr("skytrain.model.RMSNorm.forward", lambda self, x, residual=None: off(self, x, residual))
        expected = "every tensor as the source"
    verdict = verify.check_export(settings(place), tmp_path, 2, 2)
    assert not verdict.good
    assert expected in verdict.figure


def off(norm, x, residual):
    stream = x if residual is None else x + residual
    normalised = stream * torch.rsqrt(stream.square().mean(-1, keepdim=True) + 1e-2) * norm.weight
    return normalised if residual is None else (normalised, stream)


@pytest.mark.parametrize("wrong", [[1.0001, 1.0], [1.0, 1.01], [float("nan"), 1.0], [1.0, float("nan")]])
def test_ranks_that_come_to_something_else_fail(wrong, place, tmp_path, monkeypatch):
    def process(mode, settings, folder, count, out):
        out.write_text(json.dumps([value * (w if count > 1 else 1.0) for value, w in zip((5.0, 2.0), wrong)]))

    monkeypatch.setattr(verify, "_processes", process)
    assert not verify.check_ranks(settings(place), tmp_path, 2, 2).good
    wrong[:] = [1.0, 1.0]
    assert verify.check_ranks(settings(place), tmp_path, 2, 2).good


def test_a_resume_that_loses_a_bit_fails(tmp_path):
    tensors = {"model.a": torch.randn(4, 3), "optim.exp_avg.a": torch.zeros(4, 3)}
    one = checkpoint.save(tmp_path / "one", 4, tensors, {}, keep=1)
    other = checkpoint.save(tmp_path / "other", 4, tensors, {}, keep=1)
    assert verify._same_checkpoints(one, other, 2).good
    tensors["optim.exp_avg.a"][3, 2] = -0.0  # equal, and other bits
    other = checkpoint.save(tmp_path / "other", 4, tensors, {}, keep=1)
    verdict = verify._same_checkpoints(one, other, 2)
    assert not verdict.good
    assert "1 differ, optim.exp_avg.a first" in verdict.figure


def test_a_ledger_that_does_not_add_up_fails(place, tmp_path):
    file = place / "data" / "dataset.json"
    content = file.read_text()
    info = json.loads(content)
    info["ledger"]["rows"]["read"] += 1
    file.write_text(json.dumps(info))
    try:
        verdict = verify.check_data(settings(place), tmp_path, 2, 2)
    finally:
        file.write_text(content)
    assert not verdict.good
    assert "rows read" in verdict.figure
    assert verify.check_data(settings(place), tmp_path, 2, 2).good


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "export,nothing"], "'nothing' is none of"),
        (["--ranks", "1"], "--ranks 1"),
        (["--steps", "1"], "--steps 1"),
    ],
)
def test_what_cannot_be_checked_is_refused(words, message, place):
    with pytest.raises(UserError, match=message):
        command(place / "recipe.toml", *words)

"""A resumed run: recipes compared key by key, states in other formats, saving beside training, losses that jump."""

import argparse
import hashlib
import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import runs
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from tiny_models import VOCAB_SIZE, write_tiny_model
from transformers import AutoModelForCausalLM

from skytrain import checkpoint, saver, trainer
from skytrain.checkpoint import read_tensors
from skytrain.errors import UserError
from skytrain.export_command import run as run_export
from skytrain.kernels.quantize import join
from skytrain.spikes import FEWEST, SpikeRule
from skytrain.trainer import train


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "qwen2")


@pytest.fixture(scope="module")
def data(model, tmp_path_factory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("data") / "data", runs.random_documents(80, vocab=VOCAB_SIZE), model)


@pytest.fixture
def settings(model, data, tmp_path):
    def make(name: str = "run", **more):
        return runs.settings(model, data, tmp_path / name, **({"checkpoint__keep": 9, "export__at_end": False} | more))

    return make


def final(run: Path, step: int) -> dict[str, torch.Tensor]:
    return {name: fetch() for name, _, fetch in read_tensors(run / "checkpoints" / f"step-{step:08d}")}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def lines(run: Path, key: str) -> dict[int, float]:
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in read if key in line}


# What a changed recipe means.


@pytest.fixture(scope="module")
def stopped(model, data, tmp_path_factory) -> Path:
    """The folder of a run of 3 steps."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    options = {"train__max_steps": 3, "schedule__name": "cosine", "export__at_end": False}
    train(runs.settings(model, data, run, **options))
    return run


HARMLESS = {
    "log__every": 2,
    "train__threads": 2,
    "batch__max_tokens": 300,
    "checkpoint__asynchronous": False,
    "activations__checkpoint": "full",
    "export__dtype": "bfloat16",
}
SPOILING = {
    "optim__lr": 2e-3,
    "optim__betas": [0.9, 0.95],
    "optim__clip": 0.5,
    "schedule__warmup_steps": 2,
    "train__epochs": 2,
    "train__dtype": "bfloat16",
}


def resumed(model, data, stopped: Path, tmp_path: Path, changes=(), **more):
    """A run that goes on from a copy of the stopped one, as far as its first line."""
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    options = {"train__max_steps": 3, "schedule__name": "cosine", "export__at_end": False} | more
    return train(runs.settings(model, data, run, **options), resume=True, changes=changes)


def test_harmless_changes_are_listed(model, data, stopped, tmp_path, capsys):
    resumed(model, data, stopped, tmp_path, **HARMLESS)
    told = capsys.readouterr().out
    for key in HARMLESS:
        assert f"resume: {key.replace('__', '.')} was " in told
    assert "resume: run.dir was" in told
    assert "optim.lr" not in told


@pytest.mark.parametrize("key", SPOILING)
def test_a_change_that_spoils_the_run_must_be_named(key, model, data, stopped, tmp_path, capsys):
    dotted = key.replace("__", ".")
    more = {key: SPOILING[key]} | ({"train__max_steps": None} if key == "train__epochs" else {})
    with pytest.raises(UserError) as refused:
        resumed(model, data, stopped, tmp_path / "refused", **more)
    assert f"{dotted} was " in str(refused.value)
    assert f"--change {dotted}" in str(refused.value)
    named = re.findall(r"--change (\S+)", str(refused.value))
    resumed(model, data, stopped, tmp_path / "named", named, **more, train__threads=1)
    assert f"{dotted} was" in capsys.readouterr().out


def test_a_longer_run_is_harmless_where_no_learning_rate_changes(settings, capsys):
    options = {"schedule__name": "constant", "schedule__warmup_steps": 2}
    train(settings(train__max_steps=3, **options))
    train(settings(train__max_steps=5, **options), resume=True)
    assert "resume: train.max_steps was 3, is 5" in capsys.readouterr().out
    train(settings("whole", train__max_steps=5, **options))
    assert same(final(Path(settings().run.dir), 5), final(Path(settings("whole").run.dir), 5))
    with pytest.raises(UserError, match=r"--change train\.max_steps"):
        train(settings(train__max_steps=8, schedule__name="constant", schedule__warmup_ratio=0.5), resume=True)


# Formats that hold the same numbers.


@pytest.mark.parametrize(
    ("before", "after"), [("fp32_8bit", "split_8bit"), ("split_8bit", "fp32_8bit"), ("split_8bit", "host_8bit")]
)
def test_states_move_to_a_format_that_holds_the_same_numbers(before, after, settings, tmp_path):
    """Weights whole or split: every bit of them arrives, and goes out again."""
    options = {"train__dtype": "bfloat16", "train__max_steps": 3, "schedule__name": "constant"}
    train(settings(optim__format=before, **options))
    run = tmp_path / "run"
    run_export(argparse.Namespace(folder=run, out=tmp_path / "first", step=3))
    # A step of rate 0, so that the weights are saved anew as they came.
    options |= {"train__max_steps": 4, "optim__lr": 0.0}
    train(settings(optim__format=after, **options), resume=True, changes=["optim.lr"])
    ours, theirs = final(run, 4), final(run, 3)
    whole = {name: exact(ours, name) for name in ours if name.startswith("model.")}
    assert whole and all(torch.equal(value, exact(theirs, name)) for name, value in whole.items())
    assert any((value.bfloat16() != value).any() for value in whole.values())


def exact(state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    remainder = state.get("optim.remainder." + name.removeprefix("model."))
    return state[name] if remainder is None else join(state[name], remainder)


def test_moments_of_other_bits_are_refused(settings):
    train(settings(train__max_steps=2))
    with pytest.raises(UserError, match=r"optim\.format was 'fp32', and its moments cannot become 'fp32_8bit'"):
        train(settings(train__max_steps=2, optim__format="fp32_8bit"), resume=True, changes=["optim.format"])


# Saving beside training.


def test_a_checkpoint_is_of_its_own_step_whatever_is_trained_meanwhile(settings, monkeypatch):
    """Written only after two more steps were done, it holds what the undisturbed run had."""
    gate, write = threading.Event(), checkpoint.save

    def late(root, step, *args, **kwargs):
        if step == 2:
            assert gate.wait(60)
        return write(root, step, *args, **kwargs)

    def stepped(run, *args):
        if run.done == 3:
            assert not (run.folder / "checkpoints" / "step-00000002").exists()
            gate.set()
        return step(run, *args)

    step = trainer.train_step
    train(settings("plain", train__max_steps=4, checkpoint__every=2, checkpoint__asynchronous=False))
    monkeypatch.setattr(saver.checkpoint, "save", late)
    monkeypatch.setattr(trainer, "train_step", stepped)
    train(settings(train__max_steps=4, checkpoint__every=2))
    run, plain = Path(settings().run.dir), Path(settings("plain").run.dir)
    for done in (2, 4):
        assert same(final(run, done), final(plain, done))
    assert lines(run, "checkpoint_pause_s").keys() == {2, 4}
    assert all(0 <= lines(run, "checkpoint_pause_s")[done] <= lines(run, "checkpoint_s")[done] for done in (2, 4))


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_save_that_fails_is_told_and_the_last_one_must_not(asynchronous, settings, monkeypatch, capsys):
    write = checkpoint.save

    def full(root, step, *args, **kwargs):
        if step in fails:
            raise UserError(f"checkpoint of step {step}: No space left on device")
        return write(root, step, *args, **kwargs)

    monkeypatch.setattr(saver.checkpoint, "save", full)
    options = {"train__max_steps": 4, "checkpoint__every": 1, "checkpoint__asynchronous": asynchronous}
    fails = {2}
    train(settings("goes on", **options))
    assert "warning: checkpoint of step 2: No space left" in capsys.readouterr().out
    assert checkpoint.find(Path(settings("goes on").run.dir) / "checkpoints")[0].name == "step-00000004"
    fails = {4}
    with pytest.raises(UserError, match="step 4: No space left"):
        train(settings("ends", **options))
    assert checkpoint.find(Path(settings("ends").run.dir) / "checkpoints")[0].name == "step-00000003"


# Losses that jump.


def test_the_rule_holds_a_loss_against_the_median_before_it():
    rule = SpikeRule(2.0)
    losses = [1.0] * FEWEST + [1.9, float("nan"), 2.1, 1.0]
    for step, loss in enumerate(losses, 1):
        rule.add(step, torch.tensor(loss))
    assert rule.find() == FEWEST + 3
    assert rule.find() is None
    few = SpikeRule(2.0)
    for step, loss in enumerate([1.0] * (FEWEST - 1) + [50.0], 1):
        few.add(step, torch.tensor(loss))
    assert few.find() is None
    again = SpikeRule(2.0)
    again.load(json.loads(json.dumps(rule.state())))
    again.add(99, torch.tensor(2.1))
    assert again.find() == 99


def jumping(monkeypatch, at: int) -> None:
    """The loss of the step with these documents is ten times as large."""
    step = trainer.train_step

    def stepped(run, batch, rate):
        loss, norm = step(run, batch, rate)
        return (loss * 10 if run.done + 1 == at else loss), norm

    monkeypatch.setattr(trainer, "train_step", stepped)


def test_a_jump_is_undone_and_its_documents_are_stepped_over(settings, monkeypatch, capsys):
    options = {"checkpoint__every": 4, "train__spike_factor": 3.0, "log__every": 1}
    jumping(monkeypatch, at=15)
    train(settings(**options))
    told = capsys.readouterr().out
    assert "step 15  its loss jumped: back to" in told
    assert "step 15  stepped over" in told
    run = Path(settings().run.dir)
    assert lines(run, "loss").keys() == set(range(1, 21)) - {15}
    assert lines(run, "stepped_over") == {12: 15}
    # The same as a run that knew of it from the start.
    monkeypatch.undo()
    known = SpikeRule(3.0)
    known.stepped_over = {15}
    monkeypatch.setattr("skytrain.run.SpikeRule", lambda factor: known)
    train(settings("known", **options))
    assert same(final(run, 20), final(Path(settings("known").run.dir), 20))


def test_what_was_stepped_over_stays_so_in_a_resumed_run(settings, monkeypatch):
    options = {"checkpoint__every": 4, "train__spike_factor": 3.0}
    jumping(monkeypatch, at=15)
    train(settings(**options))
    monkeypatch.undo()
    run = Path(settings().run.dir)
    whole = final(run, 20)
    for name in ("step-00000020", "step-00000016"):
        (run / "checkpoints" / name / "complete.json").unlink()
    # From step 12, before the jump: without the loss that jumped there is nothing to step over.
    jumping(monkeypatch, at=15)
    train(settings(**options), resume=True)
    assert same(final(run, 20), whole)
    (run / "checkpoints" / "step-00000020" / "complete.json").unlink()
    monkeypatch.undo()
    train(settings(**options), resume=True)
    assert same(final(run, 20), whole)


def test_a_loss_that_jumps_wherever_it_goes_back_to_ends_the_run(settings, monkeypatch):
    step = trainer.train_step
    monkeypatch.setattr(
        trainer, "train_step", lambda run, *a: [x * (10 if run.done >= 13 else 1) for x in step(run, *a)]
    )
    with pytest.raises(UserError, match=r"the loss jumped again, for the 4th time since .*step-00000012"):
        train(settings(checkpoint__every=4, train__spike_factor=3.0, train__max_bad_steps=3))


def test_an_export_that_a_kill_took_is_made_by_the_resumed_run(settings):
    options = {"export__every": 2, "checkpoint__every": 2, "train__max_steps": 4, "schedule__name": "constant"}
    train(settings(**options))
    run = Path(settings().run.dir)
    whole = load_file(run / "export" / "step-00000004" / "model.safetensors")
    shutil.rmtree(run / "export" / "step-00000004")
    train(settings(**options), resume=True)
    again = load_file(run / "export" / "step-00000004" / "model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert sorted(os.listdir(run / "export")) == ["step-00000002", "step-00000004"]


def test_a_checkpoint_that_retention_had_no_time_to_delete_goes_on_resume(settings):
    """Found by make faults: a kill between the last checkpoint's marker and the end of the oldest one."""
    train(settings(train__max_steps=4, checkpoint__every=1))
    train(settings(train__max_steps=4, checkpoint__every=1, checkpoint__keep=2), resume=True)
    folders = sorted(os.listdir(Path(settings().run.dir) / "checkpoints"))
    assert folders == ["step-00000003", "step-00000004"]


# The same run, whole or in parts.


def rank_train(c, resume: bool) -> list[tuple[int, str]]:
    """Trains; returns each step's number and a hash of the token ids that its ranks took."""
    seen = []
    step = trainer.train_step

    def hashed(run, batch, rate):
        ids = sorted(bytes(run.feed.dataset.document(int(d))[0]) for ranks in batch.plan.rows for r in ranks for d in r)
        seen.append((run.done, hashlib.sha256(b"".join(ids)).hexdigest()))
        return step(run, batch, rate)

    trainer.train_step = hashed
    try:
        train(c, resume=resume)
    finally:
        trainer.train_step = step
    return seen


@pytest.mark.parametrize("stop", [4, 7])
def test_b42_other_ranks_and_other_rows_go_on_with_the_same_documents(stop, settings, tmp_path):
    """7 steps an epoch: two ranks stop within it, or at its last step, and one goes on, in other rows."""
    options = {"batch__documents": 12, "train__epochs": 2, "schedule__name": "cosine", "checkpoint__every": stop}
    whole = run_ranks(2, rank_train, settings("whole", **options), False, process_group=False)[0]
    assert [number for number, _ in whole] == list(range(14))
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", run)
    for folder in (run / "checkpoints").iterdir():
        if folder.name != f"step-{stop:08d}":
            shutil.rmtree(folder)
    assert rank_train(settings(**options, batch__max_tokens=64), True) == whole[stop:]
    ours, theirs = (lines(tmp_path / name, "loss") for name in ("run", "whole"))
    assert ours.keys() == theirs.keys() == set(range(1, 15))
    assert all(ours[step] == pytest.approx(theirs[step], rel=1e-5) for step in theirs)
    assert lines(run, "lr") == lines(tmp_path / "whole", "lr")


@pytest.mark.parametrize("tied", [True, False])
def test_b48_to_b56_hold_again_after_a_resume(tied, tmp_path):
    """Every file of the export of a run that was resumed is, to the byte, that of the run that was not."""
    model = write_tiny_model(tmp_path / "model", "qwen3" if tied else "qwen2", tied=tied, dtype=torch.bfloat16)
    data = runs.write_data(tmp_path / "data", runs.random_documents(16, vocab=VOCAB_SIZE), model)
    options = {"train__dtype": "bfloat16", "export__dtype": "bfloat16", "checkpoint__every": 2, "checkpoint__keep": 9}

    def settings(name: str):
        return runs.settings(model, data, tmp_path / name, optim__format="split_8bit", **options)

    train(settings("whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "export")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    run = train(settings("run"), resume=True)
    assert hasattr(run.model.lm_head, "weight") and (run.model.lm_head.weight is None) == tied
    ours, theirs = (tmp_path / name / "export" / "step-00000004" for name in ("run", "whole"))
    names = sorted(path.name for path in theirs.iterdir())
    assert sorted(path.name for path in ours.iterdir()) == names and "model.safetensors" in names
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in names)
    weights = load_file(ours / "model.safetensors")
    assert ("lm_head.weight" in weights) != tied
    # Small updates are not swallowed: the fp32 weights went on from all their bits.
    state = final(tmp_path / "run", 4)
    assert any(exact(state, name).ne(state[name]).any() for name in state if name.startswith("model."))
    reloaded = AutoModelForCausalLM.from_pretrained(ours, dtype=torch.float32)
    there = AutoModelForCausalLM.from_pretrained(theirs, dtype=torch.float32)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(reloaded(ids).logits, there(ids).logits)


def test_a_damaged_checkpoint_of_another_format_leaves_nothing_behind(settings, tmp_path):
    """It was made room for, and then passed over: the weights are those of the older one, or of the start."""
    options = {"train__dtype": "bfloat16", "schedule__name": "constant", "optim__lr": 0.0}
    train(settings(optim__format="split_8bit", train__max_steps=1, **options))
    train(settings(optim__format="fp32_8bit", train__max_steps=2, **options), resume=True)
    checkpoints = tmp_path / "run" / "checkpoints"
    start = final(tmp_path / "run", 2)
    for damaged, more in (("step-00000002", 2), ("step-00000001", 2)):
        for file in (checkpoints / damaged).glob("tensors-*"):
            file.write_bytes(bytes(file.stat().st_size))
        shutil.rmtree(checkpoints / "step-00000002") if damaged.endswith("1") else None
        form = "split_8bit" if damaged.endswith("2") else "fp32_8bit"
        train(settings(optim__format=form, train__max_steps=more, **options), resume=True)
        after = final(tmp_path / "run", 2)
        names = [name for name in start if name.startswith("model.")]
        assert all(torch.equal(exact(after, name), exact(start, name)) for name in names)

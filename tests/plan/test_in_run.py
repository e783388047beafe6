"""A run says what it will take, and at its end how it came out; a measured machine's row is found by the next run."""

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import runs
from ranks import run_ranks
from tiny_models import VOCAB_SIZE, write_tiny_model

from skytrain import config
from skytrain.activations import Policy
from skytrain.config import Config
from skytrain.data.dataset import TokenDataset
from skytrain.errors import UserError
from skytrain.hf import read_config
from skytrain.plan import hardware
from skytrain.plan.calibrate import calibrate
from skytrain.plan.forecast import forecast
from skytrain.plan.memory import plan_memory
from skytrain.trainer import train


@pytest.fixture
def model(tmp_path):
    return write_tiny_model(tmp_path / "model")


@pytest.fixture
def settings(tmp_path, model):
    data = runs.write_data(tmp_path / "data", runs.random_documents(16, vocab=VOCAB_SIZE), model)
    return lambda **more: runs.settings(model, data, tmp_path / "run", **more)


@pytest.fixture(autouse=True)
def own_rows(tmp_path, monkeypatch):
    """Where the user's rows are, for this test alone."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "skytrain" / "hardware.toml"


def test_on_an_unknown_device_memory_is_planned_and_time_is_not(settings, tmp_path, capsys):
    train(settings())
    told = capsys.readouterr().out
    assert "plan: layers hold everything" in told
    assert "GiB of tensors a rank at the peak" in told
    assert "plan: time not planned" in told
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    # Of a CPU's process, Python and all: the plan's number is of tensors alone.
    assert last["measured_peak_memory_gib"] > 0 and "planned_peak_memory_gib" not in last
    assert " GiB in a process; measured " in told
    assert last["measured_step_s"] > 0
    assert "planned_step_s" not in last


def test_a_calibrated_machine_s_time_is_planned_and_compared(settings, tmp_path, own_rows, capsys):
    row, path = calibrate(None, seconds=0.05)
    assert path == own_rows
    assert hardware.find(row.id) == row
    train(settings(log__price_per_gpu_hour=1.0))
    told = capsys.readouterr().out
    assert "tokens/s (" in told and "money" in told and "planned" in told
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["planned_step_s"] > 0
    assert last["planned_tokens_per_s"] > 0


def test_calibrating_again_replaces_the_row_and_leaves_others(tmp_path):
    path = tmp_path / "rows.toml"
    calibrate(path, seconds=0.01)
    other = path.read_text().replace('id = "my-', 'id = "your-')
    path.write_text(other)
    calibrate(path, seconds=0.01)
    calibrate(path, seconds=0.01)
    assert sorted(row.id.split("-")[0] for row in hardware.read(path)) == ["my", "your"]


def budget(c: Config, model: Path, share: float) -> float:
    """GiB from what a step takes with inputs alone (0) to what it takes with everything kept (1)."""
    shapes, lengths = read_config(model), TokenDataset.open(Path(c.data.path)).lengths
    kept = forecast(c, shapes, lengths, 1, None, None)
    least = plan_memory(replace(kept.setting, policies=(Policy(),) * len(kept.setting.policies))).total
    return (least + share * (kept.memory.total - least)) / hardware.GIB


def measured(path: str) -> tuple[str, float]:
    row, _ = calibrate(Path(path), seconds=0.05)
    return row.name, row.link_gbs


def test_two_ranks_measure_the_link_between_them(tmp_path):
    path = tmp_path / "rows.toml"
    results = run_ranks(2, measured, str(path), process_group=False)
    (row,) = hardware.read(path)
    assert results == [(row.name, row.link_gbs)] * 2
    assert row.name.endswith("2 ranks")
    assert "not measured" not in row.efficiency.source


def test_a_file_that_cannot_be_written_or_read_is_named(tmp_path, own_rows):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"rows\.toml: .*--out"):
        calibrate(tmp_path / "file" / "rows.toml", seconds=0.01)
    own_rows.parent.mkdir(parents=True)
    own_rows.write_text("[[device]]\nid = 3\n")
    with pytest.raises(UserError, match=r"hardware\.toml: .*--calibrate"):
        hardware.devices()


def test_what_the_host_cannot_hold_is_refused_before_the_run(settings, monkeypatch):
    monkeypatch.setattr("skytrain.plan.in_run.host_memory", lambda: 10_000)
    offloaded = {"activations__checkpoint": "selective", "activations__offload": ("attention",)}
    with pytest.raises(UserError, match=r"1 rank\(s\) would hold .* GiB in this host's memory"):
        train(settings(**offloaded))
    monkeypatch.undo()
    train(settings(**offloaded))


def test_a_run_holds_what_its_budget_allows(settings, model, capsys):
    """From inputs alone to everything: each time more, told and counted, and no bit of a loss changes."""
    seen = []
    for share in (0.0, 0.5, 1.0):
        c = settings(activations__checkpoint="selective", activations__budget_gib=budget(settings(), model, share))
        run = train(msgspec.structs.replace(c, run=msgspec.structs.replace(c.run, dir=f"{c.run.dir}-{share}")))
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        seen.append(([line["loss"] for line in lines if "loss" in line], lines[0]["recomputed"]))
        told = capsys.readouterr().out
        assert {0.0: "hold inputs alone", 0.5: "keep", 1.0: "hold everything"}[share] in told
    assert seen[0][0] == seen[1][0] == seen[2][0]
    assert seen[0][1] > seen[1][1] > seen[2][1] == 0.0


def test_a_budget_that_cannot_be_kept_is_refused_with_what_is_needed(settings):
    with pytest.raises(UserError, match=r"activations\.budget_gib = 0\.1: a step takes .* GiB"):
        train(settings(activations__checkpoint="selective", activations__budget_gib=0.1))


def test_a_format_left_open_is_the_plan_s_and_a_resumed_run_keeps_its_own(settings, own_rows, tmp_path, monkeypatch):
    """The most exact that leaves 4 GB of the device; where nothing is known of the device, fp32."""
    run = train(settings(train__max_steps=1, optim__format="auto"))
    assert run.config.optim.format == "fp32"
    assert config.load(run.folder / "config.toml").optim.format == "fp32"
    row, _ = calibrate(None, seconds=0.01)
    small = msgspec.structs.replace(row, memory_gib=(run.plan.memory.total + 3.9e9) / hardware.GIB)
    monkeypatch.setattr(hardware, "of_name", lambda name: small)
    resumed = train(settings(train__max_steps=2, optim__format="auto"), resume=True)
    assert (resumed.config.optim.format, resumed.done) == ("fp32", 2)
    other = train(settings(train__max_steps=1, optim__format="auto", run__dir=str(tmp_path / "other")))
    assert other.config.optim.format == "fp32_8bit"

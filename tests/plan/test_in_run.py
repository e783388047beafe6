"""A run says what it will take, and at its end how it came out; a measured machine's row is found by the next run."""

import json

import pytest
import runs
from ranks import run_ranks
from tiny_models import VOCAB_SIZE, write_tiny_model

from skytrain.errors import UserError
from skytrain.plan import hardware
from skytrain.plan.calibrate import calibrate
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
    assert "GiB a rank at the peak" in told
    assert "plan: time not planned" in told
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["planned_peak_memory_gib"] < last["measured_peak_memory_gib"]
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


def measured(path: str) -> tuple[str, float]:
    from pathlib import Path

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


def test_a_run_does_not_take_a_budget_in_silence(settings):
    with pytest.raises(UserError, match=r"activations\.budget_gib: .*activations\.keep"):
        train(settings(activations__checkpoint="selective", activations__budget_gib=1.0))

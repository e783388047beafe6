"""The throughput check: a slower trainer fails it, an unchanged one does not, and wrong sides are not timed."""

import time
from pathlib import Path

import pytest
import throughput
import torch
from timing import summary

from skytrain import trainer

NAME, WORKLOAD = next(iter(throughput.CPU.items()))
KIND = "CPU of a test"
PARTS = ("stored", "unchanged", "slowed")
EACH = 20


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, list[float]]]:
    """Rounds in turn, in one run, so that what disturbs the machine disturbs all: to be stored, as it is, and with a
    sleep of a fifth of each step. Of each PARTS the ratios."""
    original, calls = trainer.train_step, 0

    def step(*arguments):
        nonlocal calls
        begin = time.perf_counter()
        result = original(*arguments)
        if PARTS[(calls - throughput.WARM_UP) % 3] == "slowed":
            time.sleep(0.2 * (time.perf_counter() - begin))
        calls += 1
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_step", step)
        rounds = len(PARTS) * EACH
        values = throughput.measure(WORKLOAD, tmp_path_factory.mktemp("work"), torch.device("cpu"), rounds)
    assert calls == rounds + throughput.WARM_UP
    return {part: {name: list(each[i::3]) for name, each in values.items()} for i, part in enumerate(PARTS)}


@pytest.fixture
def baselines(found, tmp_path) -> Path:
    path = tmp_path / "throughput.toml"
    ratios = {ratio: summary(found["stored"][ratio]).median for ratio in throughput.RATIOS}
    throughput.store(path, KIND, NAME, ratios)
    return path


def test_a_step_that_sleeps_for_a_fifth_of_its_time_fails(found, baselines, capsys):
    assert not throughput.judge(KIND, NAME, found["slowed"], baselines)
    told = capsys.readouterr().out
    assert "SLOWER" in told and "stored" in told


def test_an_unchanged_step_passes(found):
    """Beside the plain loop. The ratio to the machine's own rate spreads by 10% where other tests share its cores, so
    that here it only has to tell the two apart: .ci/run has the command itself, after the tests."""
    medians = {part: {ratio: summary(found[part][ratio]).median for ratio in throughput.RATIOS} for part in PARTS}
    assert medians["unchanged"]["over plain"] >= throughput.LIMIT * medians["stored"]["over plain"]
    for ratio in throughput.RATIOS:
        assert medians["unchanged"][ratio] > 1.05 * medians["slowed"][ratio]


def test_each_ratio_can_fail_by_itself(found, baselines):
    for ratio in throughput.RATIOS:
        slow = {**found["stored"], ratio: [0.89 * value for value in found["stored"][ratio]]}
        assert not throughput.judge(KIND, NAME, slow, baselines)
        slow[ratio] = [0.91 * value for value in found["stored"][ratio]]
        assert throughput.judge(KIND, NAME, slow, baselines)


def test_the_command_stores_compares_and_exits_with_1(tmp_path, capsys):
    path, words = tmp_path / "throughput.toml", ["--small", "--rounds", "3"]
    assert throughput.main([*words, "--baselines", str(path)]) == 0
    assert "not compared: nothing is stored" in capsys.readouterr().out
    assert throughput.main([*words, "--store", "--baselines", str(path)]) == 0
    (row,) = throughput.stored(path)
    assert (row["kind"], row["workload"]) == (throughput.kind_of(torch.device("cpu")), NAME)
    throughput.store(path, row["kind"], NAME, {ratio: 100.0 for ratio in throughput.RATIOS})
    throughput.store(path, "another kind", NAME, {ratio: 0.1 for ratio in throughput.RATIOS})
    assert len(throughput.stored(path)) == 2
    assert throughput.main([*words, "--baselines", str(path)]) == 1


def test_sides_that_compute_different_things_are_not_compared():
    throughput.compare([2.0, 1.5], [2.0, 1.5005], 1e-3)
    for wrong in (1.502, float("nan")):
        with pytest.raises(SystemExit, match="the losses differ"):
            throughput.compare([2.0, 1.5], [2.0, wrong], 1e-3)


@pytest.mark.parametrize("words", [["--rounds", "2"], ["--workload", "unknown"]])
def test_a_mistake_is_told(words):
    with pytest.raises(SystemExit) as error:
        throughput.main(["--small", *words])
    assert error.value.code == 2

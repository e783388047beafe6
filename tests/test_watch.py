"""Signals, stalls and deaths: all ranks stop after one step with a checkpoint, or end and say which rank failed."""

import os
import signal
import time
from pathlib import Path

import pytest
import runs
import torch
from ranks import run_ranks, start_ranks
from safetensors.torch import load_file
from tiny_models import VOCAB_SIZE, write_tiny_model

from skytrain import checkpoint, signals, storage, trainer, watch
from skytrain.checkpoint import read_tensors

STEPS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> tuple[Path, Path]:
    """(model, data) of runs of six steps."""
    folder = tmp_path_factory.mktemp("inputs")
    model = write_tiny_model(folder / "model", "qwen2")
    return model, runs.write_data(folder / "data", runs.random_documents(4 * STEPS, vocab=VOCAB_SIZE), model)


def settings(place, run: Path, **more):
    model, data = place
    options = {
        "checkpoint__every": 2, "checkpoint__keep": 9, "data__validation": str(data), "train__validate_every": 3,
        "export__every": 3, "train__stall_seconds": 60,
    }  # fmt: skip
    return runs.settings(model, data, run, **(options | more))


def hooked(c, where: str, rank: int, act, resume: bool = False):
    """A run in which rank `rank` does `act()` once, at a moment of its run. Returns what `train` does."""
    if int(os.environ["RANK"]) == rank:
        calls = [0]

        def wrap(owner, name: str, at: int) -> None:
            inner = getattr(owner, name)

            def outer(*args, **kwargs):
                calls[0] += 1
                if calls[0] == at:
                    act()
                return inner(*args, **kwargs)

            setattr(owner, name, outer)

        owner, name, at = {
            "loading": (trainer, "prepare", 1),
            "training": (trainer.optim, "sum_over_ranks", 3),
            "validating": (trainer, "validate", 1),
            "saving": (storage, "write_tensors", 2),
            "at the end": (trainer, "write_export", 3),
        }[where]
        wrap(owner, name, at)
    return trainer.train(c, resume=resume)


def signalled(c, where: str, number: int) -> tuple[int, str | None]:
    signals.listen()
    run = hooked(c, where, 1, lambda: os.kill(os.getpid(), number))
    return run.done, signals.asked()


def whole(c) -> int:
    return trainer.train(c, resume=True).done


def final(run: Path) -> dict[str, torch.Tensor]:
    return {name: fetch() for name, _, fetch in read_tensors(run / "checkpoints" / f"step-{STEPS:08d}")}


@pytest.fixture(scope="module")
def undisturbed(place, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run_ranks(2, whole, settings(place, run), process_group=False) == [STEPS] * 2
    return run


# The signal, and the first step after which the run may stop: the threads look four times a second.
MOMENTS = {
    "loading": (signal.SIGTERM, 0),
    "training": (signal.SIGUSR1, 3),
    "validating": (signal.SIGTERM, 3),
    "saving": (signal.SIGINT, 2),
    "at the end": (signal.SIGTERM, STEPS),
}


@pytest.mark.parametrize("where", MOMENTS)
def test_b47_a_signal_to_one_rank_stops_all_after_the_same_step(where, place, undisturbed, tmp_path):
    number, earliest = MOMENTS[where]
    c = settings(place, tmp_path / "run")
    (first, none), (second, name) = run_ranks(2, signalled, c, where, number, process_group=False)
    assert (none, name) == (None, signal.Signals(number).name)
    assert first == second
    assert earliest <= first <= (0 if where == "loading" else STEPS)
    assert checkpoint.find(tmp_path / "run" / "checkpoints")[0].name == f"step-{first:08d}"
    assert run_ranks(2, whole, c, process_group=False) == [STEPS] * 2
    expected, got = final(undisturbed), final(tmp_path / "run")
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    for step in (3, STEPS):
        export = Path("export") / f"step-{step:08d}" / "model.safetensors"
        ours, theirs = load_file(tmp_path / "run" / export), load_file(undisturbed / export)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def twice(c) -> None:
    """A second signal, when the first one has been heard and a checkpoint is being written."""

    def act() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(signals.SAME_REQUEST_SECONDS + 0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    signals.listen()
    hooked(c, "saving", 0, act)


def test_a_second_signal_ends_at_once_without_harm(place, undisturbed, tmp_path):
    c = settings(place, tmp_path / "run")
    codes, _ = ended(1, twice, c, folder=tmp_path)
    assert codes == [128 + signal.SIGTERM]
    assert run_ranks(2, whole, c, process_group=False) == [STEPS] * 2
    expected, got = final(undisturbed), final(tmp_path / "run")
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def ended(world: int, function, *args, folder: Path, seconds: float = 60.0) -> tuple[list[int], str]:
    """Exit statuses of ranks that end by themselves, and all that they said on stderr."""
    results = folder / "results"
    results.mkdir()
    processes = start_ranks(world, heard, function.__name__, args, results, folder=results)
    try:
        for process in processes:
            process.join(seconds)
            assert process.exitcode is not None, "a rank hangs"
    finally:
        for process in processes:
            process.kill()
    return [process.exitcode for process in processes], "".join(p.read_text() for p in sorted(results.glob("stderr-*")))


def heard(name: str, args: tuple, folder: Path) -> None:
    said = os.open(folder / f"stderr-{os.environ['RANK']}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 2)
    globals()[name](*args)


def asleep() -> None:
    time.sleep(600)


def stalling(c) -> None:
    hooked(c, "training", 1, asleep)


def test_a_rank_that_stalls_is_named_with_its_step_and_stack(place, tmp_path):
    began = time.monotonic()
    codes, said = ended(2, stalling, settings(place, tmp_path / "run", train__stall_seconds=6), folder=tmp_path)
    assert codes == [1, 1]
    assert time.monotonic() - began < 45
    assert "rank 1 stands at step 3 (training)" in said
    assert "in asleep" in said
    assert "waiting for it: rank(s) 0" in said
    assert said.count("no progress for") == 1


def dying(c, how: int, rank: int) -> None:
    def act() -> None:
        time.sleep(2 * watch.TICK)  # A beat is at most so old, and a step here is shorter.
        os.kill(os.getpid(), how)

    hooked(c, "training", rank, act)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_is_named(rank, place, tmp_path):
    codes, said = ended(2, dying, settings(place, tmp_path / "run"), signal.SIGKILL, rank, folder=tmp_path)
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 1
    assert f"rank {rank}" in said
    assert "has died" in said
    assert "step 3" in said


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_suspended_is_named(rank, place, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    c = settings(place, tmp_path / "run", train__stall_seconds=6)
    processes = start_ranks(2, heard, "dying", (c, signal.SIGSTOP, rank), results, folder=results)
    try:
        processes[1 - rank].join(45)
        assert processes[1 - rank].exitcode == 1
    finally:
        for process in processes:
            process.kill()
    said = (results / f"stderr-{1 - rank}").read_text()
    assert f"rank {rank}" in said or "Timeout" in said


def failing(c) -> None:
    def act() -> None:
        raise RuntimeError("out of luck")

    hooked(c, "training", 1, act)


def test_a_rank_that_fails_ends_the_others(place, tmp_path):
    codes, said = ended(2, failing, settings(place, tmp_path / "run"), folder=tmp_path)
    assert codes == [1, 1]
    assert "rank 1, at step 3 (training)" in said
    assert "RuntimeError: out of luck" in said

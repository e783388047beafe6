"""Ends training runs with kill -9 at random moments and goes on each time: python tests/faults.py [--kills 20]

A run of two ranks on the CPU saves every 2 steps, keeps 2 checkpoints, exports every 6 and validates every 10. A kill
takes both ranks or one, whose fellow must then end by itself. When a run has come to its end, its last checkpoint, its
exports and its logged losses must be those of a run that nobody disturbed, bit for bit, and its folder must hold the
same files; the next kills are then taken from a new run. Exit status 1 where anything differs or a rank hangs.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests" / "support"), str(ROOT / "bench")]

import record  # noqa: E402
import runs  # noqa: E402
import torch  # noqa: E402
from fault_rank import rank_main  # noqa: E402
from ranks import start_ranks  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tiny_models import VOCAB_SIZE, write_tiny_model  # noqa: E402

from skytrain import checkpoint  # noqa: E402

RANKS, STEPS = 2, 24
STALL_SECONDS = 20
HANG_SECONDS = 90


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="append what was seen to bench/results/faults.csv")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        seen, rounds = kill_runs(Path(folder), arguments.kills, random.Random(arguments.seed))
    seconds = time.perf_counter() - began
    where = ", ".join(f"{count} {name}" for name, count in sorted(seen.items()))
    print(f"{arguments.kills} kills ({where}) in {rounds} runs, {seconds:.0f} s: each run ended as the undisturbed one")
    if arguments.record:
        values = {"runs": rounds, "seconds": round(seconds), **{f"kills, {name}": n for name, n in seen.items()}}
        record.append("faults", [{"kills": arguments.kills, "metric": k, "value": v} for k, v in values.items()])
    return 0


def kill_runs(folder: Path, kills: int, chance: random.Random) -> tuple[collections.Counter[str], int]:
    """(kills by what they met, number of runs)"""
    model = write_tiny_model(folder / "model", "qwen2")
    data = runs.write_data(folder / "data", runs.random_documents(4 * STEPS, vocab=VOCAB_SIZE), model)

    def settings(name: str):
        return runs.settings(
            model, data, folder / name, checkpoint__every=2, checkpoint__keep=2, export__every=6,
            data__validation=str(data), train__validate_every=10, train__stall_seconds=STALL_SECONDS,
            train__timeout_seconds=HANG_SECONDS,
        )  # fmt: skip

    attempt(settings("undisturbed"), folder / "0", None, one=None)
    began = time.monotonic()  # The first one has waited for imports that the others share.
    attempt(settings("again"), folder / "1", None, one=None)
    compare(folder / "again", folder / "undisturbed")
    whole = time.monotonic() - began
    print(f"undisturbed: {whole:.1f} s", flush=True)
    seen: collections.Counter[str] = collections.Counter()
    attempts = rounds = 0
    while sum(seen.values()) < kills:
        c = settings(f"run-{rounds}")
        finished = False
        while not finished:
            attempts += 1
            after = chance.uniform(0.0, 1.1 * whole) if sum(seen.values()) < kills else None
            one = chance.randrange(RANKS) if chance.random() < 1 / 3 else None
            met = attempt(c, folder / f"attempt-{attempts}", after, one=one)
            finished = met is None
            if met is not None:
                seen[met] += 1
                print(f"kill {sum(seen.values())}: {met}, {'both' if one is None else f'rank {one}'}", flush=True)
        compare(Path(c.run.dir), folder / "undisturbed")
        shutil.rmtree(c.run.dir)
        rounds += 1
    return seen, rounds


def attempt(c, folder: Path, after: float | None, *, one: int | None) -> str | None:
    """Starts, or goes on with, a run; kills one rank or all `after` so many seconds. What they did then; None where
    the run had ended before."""
    folder.mkdir()
    processes = start_ranks(RANKS, rank_main, c, folder, folder=folder, timeout=10 * HANG_SECONDS)
    until = time.monotonic() + (HANG_SECONDS if after is None else after)
    while time.monotonic() < until and any(process.exitcode is None for process in processes):
        time.sleep(0.001)
    met = None
    if after is not None and all(process.exitcode is None for process in processes):
        met = doing(folder, 0 if one is None else one)
        for process in processes if one is None else [processes[one]]:
            os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + HANG_SECONDS
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
        if process.exitcode is None:
            fail(f"a rank hangs, {doing(folder, processes.index(process))}: {said(folder)}", processes)
    if met is None and any(process.exitcode for process in processes):
        statuses = [process.exitcode for process in processes]
        fail(f"ranks ended by themselves with {statuses}: {said(folder)}", processes)
    shutil.rmtree(folder)
    return met


def fail(text: str, processes=()) -> None:
    for process in processes:
        process.kill()
    print(f"error: {text}", file=sys.stderr)
    sys.exit(1)


def said(folder: Path) -> str:
    return "\n".join(path.read_text()[-4000:] for path in sorted(folder.glob("*-[0-9]")) if path.stat().st_size)


def doing(folder: Path, rank: int) -> str:
    try:
        return (folder / f"doing.{rank}").read_text().rstrip() or "starting"
    except OSError:
        return "starting"


def compare(run: Path, expected: Path) -> None:
    """Ends the program where the run is not as the undisturbed one."""
    if (ours := files(run)) != (theirs := files(expected)):
        fail(f"files differ: {sorted(ours - theirs)} too many, {sorted(theirs - ours)} missing")
    for folder in sorted((expected / "checkpoints").iterdir()):
        here = {name: fetch() for name, _, fetch in checkpoint.read_tensors(run / "checkpoints" / folder.name)}
        there = {name: fetch() for name, _, fetch in checkpoint.read_tensors(folder)}
        same_tensors(here, there, folder)
    for folder in sorted((expected / "export").iterdir()):
        for path in sorted(folder.iterdir()):
            here = run / "export" / folder.name / path.name
            if path.suffix == ".safetensors":
                same_tensors(load_file(here), load_file(path), here)
            elif here.read_bytes() != path.read_bytes():
                fail(f"{here} differs")
    if (ours := losses(run)) != (theirs := losses(expected)):
        fail(f"logged steps or losses differ:\n{ours}\n{theirs}")


def same_tensors(here: dict[str, torch.Tensor], there: dict[str, torch.Tensor], where: Path) -> None:
    wrong = [name for name in sorted(here.keys() | there.keys()) if not _same(here.get(name), there.get(name))]
    if wrong:
        fail(f"{where}: {len(wrong)} of {len(there)} tensors differ, {wrong[0]} first")


def _same(here: torch.Tensor | None, there: torch.Tensor | None) -> bool:
    return here is not None and there is not None and here.dtype == there.dtype and torch.equal(here, there)


def files(run: Path) -> collections.Counter[str]:
    """Relative paths, without the random part of a checkpoint's file names."""
    paths = (str(path.relative_to(run)) for path in run.rglob("*") if not path.is_dir())
    return collections.Counter(re.sub(r"-[0-9a-f]{8}\.", ".", path) for path in paths)


def losses(run: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kinds = ("loss", "grad_norm", "lr", "validation_loss")
    return sorted((line["step"], kind, line[kind]) for line in lines for kind in kinds if kind in line)


if __name__ == "__main__":
    sys.exit(main())

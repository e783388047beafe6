"""The short loop, ended by kill -9 once in each of its stages, and gone on with: python tests/loop_faults.py [--record]

Each time the loop alone is killed, at a random moment of a stage; what it had started has to end by itself. In the end
the loop must be as one that nobody killed: exit status 0, every stage done, every request answered once and every
verdict given once, and nothing left running.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

ROOT = Path(os.path.relpath(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(ROOT / "bench"))

import record  # noqa: E402

OUT = Path("runs/loop_faults")
LOG = Path("runs/loop_faults.log")
STAGES = {
    "problems and untrained models": 0.7,
    "the teacher's training": 60.0,
    "the student's first training": 25.0,
    "traces, graded and not": 15.0,
    "evaluation before": 5.0,
    "training of student-verified": 25.0,
    "evaluation after": 3.0,
    "report": 1.0,
}
"""The most seconds into each that it is killed: less than it takes on two quiet cores."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, required=True, help="environment with vLLM, as make vllm makes it")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--record", action="store_true", help="append what was seen to bench/results/faults.csv")
    arguments = parser.parse_args()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    choose, started = random.Random(arguments.seed), time.monotonic()
    killed: list[str] = []
    while stage := start(arguments.vllm, killed, choose):
        killed.append(stage)
    check(len(killed))
    seconds = time.monotonic() - started
    print(f"killed in {len(killed)} stages ({'; '.join(killed)}), and finished, in {seconds:.0f} s")
    if arguments.record:
        values = {"loop, stages": len(killed), "loop, seconds": round(seconds)}
        record.append("faults", [{"kills": len(killed), "metric": k, "value": v} for k, v in values.items()])


def start(vllm: Path, killed: list[str], choose: random.Random) -> str | None:
    """Starts the loop, kills it in the first stage that it was not killed in, and returns that one; None where it came
    to its end."""
    words = [sys.executable, "-u", ROOT / "launch" / "loop.py", "--short", "--out", OUT, "--vllm", vllm]
    # A file, which outlives the loop: a pipe would break under what is told to end, and writes a line of it.
    with LOG.open("a") as log:
        loop = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log)
    with LOG.open() as told:
        told.seek(0, os.SEEK_END)
        while loop.poll() is None:
            title = (told.readline() or time.sleep(0.1) or "").removeprefix("== ").strip()
            if title not in STAGES or title in killed:
                continue
            time.sleep(choose.uniform(0.0, STAGES[title]))
            if done(title):
                print(f"-- {title} was over before", flush=True)
            else:
                loop.kill()
                loop.wait()
                print(f"-- killed in {title}", flush=True)
                return title
    if loop.returncode != 0:
        sys.exit(f"the loop ended with status {loop.returncode}, and nobody had killed it; see {LOG}")
    return None


def done(title: str) -> bool:
    return title in json.loads((OUT / "loop.json").read_text(encoding="utf-8"))["seconds"]


def check(kills: int) -> None:
    found = json.loads((OUT / "loop.json").read_text(encoding="utf-8"))
    problems = [] if "scores" in found else ["no scores"]
    logs = [OUT / "data" / "generate.answers.jsonl", OUT / "data" / "grade.verdicts.jsonl"]
    logs += [path for path in OUT.glob("eval-*/*.jsonl") if path.stem in ("answers", "verdicts")]
    for path in logs:
        keys = Counter(json.loads(line)["key"] for line in path.read_text(encoding="utf-8").splitlines())
        twice = [key for key, count in keys.items() if count > 1]
        problems += [f"{path}: {len(twice)} of {len(keys)} keys twice"] if twice or not keys else []
    # What ends takes a moment.
    time.sleep(5.0)
    left = [process.pid for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(OUT.absolute())]
    problems += [f"left running: {left}"] if left else []
    if problems:
        sys.exit(f"after {kills} kills: {'; '.join(problems)}")


if __name__ == "__main__":
    main()

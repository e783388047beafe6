"""The whole road in minutes: python launch/demo.py [--out runs/demo] [--seed 0] [--overwrite] [section.key=value ...]

Writes a task (sums of three to six digits, worked out), an untrained model of 0.8M parameters and its data set,
trains it on two CPU processes by launch/recipes/cpu_demo.toml, exports it, and lets transformers answer problems that
the training never saw, before and after. Exit status 1 where fewer than 90% of the answers are right.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import demo_task
import small_model
from demo_task import Problem
from steps import LAUNCH, command, stage

from skytrain.errors import UserError, exit_on_user_error

RECIPE = LAUNCH / "recipes" / "cpu_demo.toml"
RANKS = 2
GOAL = 0.9
NEEDED = ("torch", "transformers", "matplotlib")
MARKER = "demo.json"
"""Written first: only a folder that holds it is ever removed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of all that the demo makes")
    parser.add_argument("--seed", type=int, default=0, help="of the problems, the first weights and the order")
    parser.add_argument("--overwrite", action="store_true", help="remove an earlier demo in --out")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the recipe's")
    arguments = parser.parse_intermixed_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the demo needs {', '.join(missing)}: pip install -e '.[train,prep,dev]', or run make demo")
    out = start_folder(arguments.out, arguments.seed, overwrite=arguments.overwrite)
    return run(out, arguments.seed, arguments.overrides)


def run(out: Path, seed: int, overrides: list[str]) -> int:
    # Imported late: it loads torch and transformers, which takes seconds that a mistake should not wait for.
    from demo_report import draw_loss, examine

    started = time.perf_counter()
    with stage("the task and an untrained model"):
        held_out = write_task(out, seed)
    with stage("skytrain prep tokenize"):
        for name in ("train", "held_out"):
            command("skytrain", "prep", "tokenize", out / "task" / f"{name}.jsonl", "--model", out / "model",
                    "--out", out / "data" / name)  # fmt: skip
    with stage("answers before training"):
        before = examine(out / "model", held_out)
    with stage(f"training and export, {RANKS} processes"):
        places = {
            "run.dir": "run",
            "model.path": "model",
            "data.path": "data/train",
            "data.validation": "data/held_out",
        }
        settings = [f"{key}={out / place}" for key, place in places.items()]
        command("torchrun", "--standalone", "--nproc-per-node", RANKS, LAUNCH / "train.py", RECIPE,
                f"run.seed={seed}", *settings, *overrides)  # fmt: skip
    with stage("answers after training"):
        (exported,) = (out / "run" / "export").iterdir()
        after = examine(exported, held_out)
    curve = out / "loss.png"
    draw_loss(out / "run" / "metrics.jsonl", curve)
    seconds = time.perf_counter() - started
    note(out, {"seed": seed, "seconds": seconds, "before": asdict(before), "after": asdict(after)})
    if min(after.accuracy, after.stopped) < GOAL:
        print(f"failed: {after}, of which each should be {GOAL:.0%}; see {out / 'run' / 'metrics.jsonl'}")
        return 1
    print(
        f"made in {seconds / 60:.1f} minutes: {exported}, a model that transformers loads, held-out accuracy "
        f"{before.accuracy:.1%} before and {after.accuracy:.1%} after; loss curve {curve}"
    )
    return 0


def start_folder(out: Path, seed: int, *, overwrite: bool) -> Path:
    """The empty folder `out`. UserError where it is in use, or where it is to be removed and no demo made it."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        if out.is_symlink() or not (out / MARKER).is_file():
            raise UserError(f"{out} exists and is not a demo's folder; name another with --out")
        if not overwrite:
            raise UserError(f"{out} holds an earlier demo; remove it with --overwrite, or name another with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    note(out, {"seed": seed})
    return out


def note(out: Path, values: dict) -> None:
    (out / MARKER).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_task(out: Path, seed: int) -> list[Problem]:
    train, held_out = demo_task.make_problems(seed)
    (out / "task").mkdir()
    demo_task.write_chats(train, out / "task" / "train.jsonl")
    demo_task.write_chats(held_out, out / "task" / "held_out.jsonl")
    size = small_model.write_model_folder(out / "model", demo_task.texts(train), seed)
    print(f"{len(train):,} training and {len(held_out):,} held-out problems; a Qwen2 model of {size:,} parameters")
    print(f"one of them: {held_out[0].question}\n{held_out[0].worked_answer}")
    return held_out


if __name__ == "__main__":
    exit_on_user_error(main)

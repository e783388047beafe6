"""What one process of `skytrain verify` does, alone or under torchrun: verify_worker.py steps|train CONFIG [OUT]"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from skytrain import config, optim, parallel
from skytrain.config import Config
from skytrain.errors import exit_on_user_error
from skytrain.run import Run, prepare
from skytrain.trainer import train, train_step

FIRST_STEPS = 2
"""The second one follows an update. After more of them the codes of 8-bit moments, whose rounding depends on the
sharding, would tell one number of ranks from another."""


def started(settings: Config) -> Run:
    """A run before its first step, with nothing written. Collective; `UserError` as `prepare`, on all ranks."""
    world = parallel.start(settings)
    return parallel.together(lambda: prepare(settings, world, resume=False))


def first_steps(run: Run) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each of the run's first steps. Collective."""
    seen = []
    for done in range(min(FIRST_STEPS, run.total)):
        rate = optim.learning_rate(done, run.total, run.config.schedule, run.config.optim.lr)
        loss, norm = train_step(run, run.feed[done], rate)
        seen.append((loss.item(), norm.item()))
    return seen


def work(mode: str, settings: Config, *out: Path) -> None:
    """`train`: a run, or the rest of one that has a checkpoint. `steps`: the first ones' numbers, as JSON to `out`."""
    if mode == "train":
        train(settings, resume=True)
        return
    run = started(settings)
    seen = first_steps(run)
    if run.world.is_first:
        out[0].write_text(json.dumps(seen), encoding="utf-8")
    run.feed.close()
    parallel.stop()


if __name__ == "__main__":
    mode, recipe, *out = sys.argv[1:]
    exit_on_user_error(lambda: work(mode, config.load(recipe), *map(Path, out)))

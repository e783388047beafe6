"""What one process of `skytrain verify` does, alone or under torchrun: verify_worker.py step|train CONFIG [OUT]"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from skytrain import config, optim, parallel
from skytrain.config import Config
from skytrain.errors import exit_on_user_error
from skytrain.feed import Row
from skytrain.run import Run, prepare


def started(settings: Config) -> Run:
    """A run before its first step, with nothing written."""
    world = parallel.start(settings)
    return parallel.together(lambda: prepare(settings, world, resume=False))


def loss_and_norm(run: Run, rows: list[Row]) -> tuple[float, float]:
    """Of the first step, over all ranks, from this rank's rows. The weights stay as they are."""
    targets = run.feed.planner.step(0).targets
    loss = torch.zeros((), device=run.world.device)
    for row in rows:
        share = run.model(**vars(row), scale=1.0 / max(targets, 1))
        share.backward()
        loss += share.detach()
    loss, norm = optim.sum_over_ranks(loss, run.optimizer.gradients(), run.world.replicas)
    run.optimizer.zero_grad()
    return loss.item(), norm.item()


def main() -> None:
    mode, recipe, *out = sys.argv[1:]
    settings = config.load(recipe)
    if mode == "train":
        from skytrain.trainer import train

        train(settings, resume=True)
        return
    run = started(settings)
    loss, norm = loss_and_norm(run, run.feed[0].rows)
    if run.world.is_first:
        Path(out[0]).write_text(json.dumps([loss, norm]), encoding="utf-8")
    run.feed.close()
    parallel.stop()


if __name__ == "__main__":
    exit_on_user_error(main)

"""The loop: chat data set and Hugging Face folder in, checkpoints and Hugging Face folder out.

One optimizer step is `train_step`; all that happens between two steps is in `loop`. Every rank runs the same
code on its own rows. Why a step never waits for the device: the number of target tokens is known from the plan
before the first forward pass, so the loss is scaled once and summed; a non-finite step is found, skipped and
counted in device memory; numbers are read only when a line is logged.
"""

from __future__ import annotations

import gc
import os

import torch
import torch.distributed as dist
from torch import Tensor

from skytrain import flops, optim, parallel
from skytrain.config import Config
from skytrain.errors import UserError
from skytrain.feed import Feed, Step
from skytrain.metrics import Metrics
from skytrain.model import CausalLM
from skytrain.plan import in_run
from skytrain.run import Run, begin, document_lengths, prepare, save, write_export


def train(settings: Config, *, resume: bool = False) -> Run:
    """Trains as `settings` say, from the newest complete checkpoint of the run folder where `resume` is set.

    Raises `UserError` for what the user can mend: before anything is written, or with a checkpoint saved.
    """
    world, run = parallel.start(settings), None
    try:
        run = parallel.together(lambda: prepare(settings, world, resume=resume))
        lines = begin(run, resume=resume)
        # A collection at a random moment on one rank makes all the others wait in their next collective.
        gc.collect()
        gc.disable()
        loop(run, lines)
        return run
    finally:
        gc.enable()
        if run is not None and run.lock is not None:
            os.close(run.lock)
        parallel.stop()


def loop(run: Run, lines: list[str]) -> None:
    """Every step that is not done yet, and what happens between steps. `lines` are told first."""
    c, total = run.config, run.total
    metrics = parallel.together(lambda: Metrics(run.folder, c.log, run.world, done=run.done, total=total))
    for line in lines:
        metrics.say(line)
    while run.done < total:
        step = run.feed[run.done]
        rate = optim.learning_rate(run.done, total, c.schedule, c.optim.lr)
        loss, norm = train_step(run, step, rate)
        run.done += 1
        done, last = run.done, run.done == total
        lengths = document_lengths(run, step.plan.rows)
        metrics.count(step.plan.tokens, step.plan.targets, flops.model_flops(run.model.config, lengths))
        if last or due(done, c.log.every):
            log(run, metrics, loss, norm, lr=rate, epoch=step.plan.epoch)
        if run.validation is not None and (last or due(done, c.train.validate_every)):
            value = validate(run.model, run.validation)
            metrics.write({"step": done, "validation_loss": value})
            metrics.say(f"step {done}  validation loss {value:.4f}")
        if last or due(done, c.checkpoint.every):
            save(run)
        if due(done, c.export.every):
            metrics.say(f"step {done}  exported to {write_export(run)}")
        if done % 100 == 0:
            gc.collect(1)
    # Outside the loop, so that a run that was ended between its last checkpoint and its export still makes it.
    if c.export.at_end:
        metrics.say(f"exported to {write_export(run)}")
    if (measured := metrics.typical()) is not None:
        numbers, text = in_run.compared(run.plan, measured)
        metrics.write({"step": total, **numbers})
        metrics.say(text)
    metrics.say(f"done: {total} steps, checkpoint in {run.folder / 'checkpoints'}")
    metrics.close()
    run.feed.close()


def train_step(run: Run, step: Step, rate: float) -> tuple[Tensor, Tensor]:
    """One optimizer step. Returns the loss of the global step and its gradient's norm, fp32 scalars on the device."""
    scale = 1.0 / max(step.plan.targets, 1)
    loss = torch.zeros((), device=run.world.device)
    for row in step.rows:
        share = run.model(**vars(row), scale=scale)
        share.backward()
        loss += share.detach()
    loss, norm = optim.sum_over_ranks(loss, run.optimizer.gradients(), run.world.replicas)
    skip = run.guard.judge(loss, norm, empty=step.plan.targets == 0)
    clip = run.config.optim.clip
    divisor = torch.ones_like(norm) if clip is None else (norm / clip).clamp(min=1.0)
    run.optimizer.step(rate, divisor, skip)
    run.optimizer.zero_grad()
    return loss, norm


def log(run: Run, metrics: Metrics, loss: Tensor, norm: Tensor, *, lr: float, epoch: int) -> None:
    """One line, and the end of a run whose steps are all skipped. The one place that waits for the device."""
    loss_value, norm_value, skipped, _, longest = torch.stack([loss, norm, *run.guard.counts]).tolist()
    moved = {} if run.host is None else {"offloaded_gib": run.host.take_count() / 2**30}
    metrics.line(run.done, loss=loss_value, grad_norm=norm_value, lr=lr, epoch=epoch, skipped=int(skipped), **moved)
    run.guard.logged()
    nothing_learnt = run.done == run.total == skipped
    if longest >= run.config.train.max_bad_steps or nothing_learnt:
        where = save(run)
        metrics.close()
        raise UserError(
            f"step {run.done}: {int(longest)} steps in a row were skipped, their loss or gradient not finite or no "
            f"target (train.max_bad_steps); saved {where}: look at optim.lr and at the documents of these steps"
        )


@torch.no_grad()
def validate(model: CausalLM, feed: Feed) -> float:
    """Mean loss over the target tokens of a held-out data set."""
    loss, targets = torch.zeros((), dtype=torch.float64, device=feed.device), 0
    for index in range(feed.planner.total_steps):
        step = feed[index]
        targets += step.plan.targets
        for row in step.rows:
            loss += model(**vars(row), scale=1.0)
    parallel.reshard(model)
    dist.all_reduce(loss)
    return loss.item() / max(targets, 1)


def due(done: int, every: int | None) -> bool:
    return every is not None and done % every == 0

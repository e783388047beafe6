"""The loop: chat data set and Hugging Face folder in, checkpoints and Hugging Face folder out.

One optimizer step is `train_step`; all that happens between two steps is in `loop`. Every rank runs the same
code on its own rows. Why a step never waits for the device: the number of target tokens is known from the plan
before the first forward pass, so the loss is scaled once and summed; a non-finite step is found, skipped and
counted in device memory; numbers are read only when a line is logged.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import shlex
import sys
from collections.abc import Collection
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from skytrain import flops, optim, parallel, progress
from skytrain.config import Config
from skytrain.errors import UserError
from skytrain.feed import Feed, Step
from skytrain.host import vllm_program
from skytrain.metrics import Metrics
from skytrain.model import CausalLM
from skytrain.plan import in_run
from skytrain.run import Run, begin, document_lengths, prepare, restore, save, saved, write_export
from skytrain.watch import Watch


def train(settings: Config, *, resume: bool = False, changes: Collection[str] = ()) -> Run:
    """Trains as `settings` say, from the newest complete checkpoint of the run folder where `resume` is set.

    changes: keys of the recipe that may differ from those of the run that is resumed, where that changes its course.
    Where `signals.listen` was called, SIGTERM, SIGUSR1 or Ctrl-C to any rank ends the run after a step, with a
    checkpoint; `Run.done` is then less than its total.
    Raises `UserError` for what the user can mend: before anything is written, or with a checkpoint saved.
    """
    # Until the ranks have found each other, nobody can tell who is missing.
    faulthandler.dump_traceback_later(settings.train.stall_seconds, exit=True, file=sys.__stderr__)
    watch, run = None, None
    try:
        world = parallel.start(settings)
        watch = Watch(world, settings.train.stall_seconds)
        run = parallel.together(lambda: prepare(settings, world, resume=resume))
        lines = begin(run, resume=resume, changes=changes)
        # A collection at a random moment on one rank makes all the others wait in their next collective.
        gc.collect()
        gc.disable()
        loop(run, watch, lines)
        watch.close()
        return run
    except (UserError, KeyboardInterrupt):
        # On all ranks alike.
        if run is not None and run.saver is not None:
            run.saver.wait()
        if watch is not None:
            watch.close()
        raise
    except BaseException as error:
        if watch is not None:
            watch.failed(error)
        raise
    finally:
        gc.enable()
        if run is not None and run.lock is not None:
            os.close(run.lock)
        parallel.stop()
        faulthandler.cancel_dump_traceback_later()


def loop(run: Run, watch: Watch, lines: list[str]) -> None:
    """Every step that is not done yet, and what happens between steps. `lines` are told first."""
    c, total = run.config, run.total
    metrics = parallel.together(lambda: Metrics(run.folder, c.log, run.world, done=run.done, total=total))
    for line in lines:
        metrics.say(line)
    if c.train.spike_factor is not None and run.saver.current is None:
        save(run)  # What the first spike goes back to.
    if due(run.done, c.export.every) and run.done > 0:
        write_export(run)  # Its checkpoint may have been complete when the run was ended in its export.
    watch.settle(run.done)
    while run.done < total and watch.may_begin(run.done):
        if run.done + 1 in run.spikes.stepped_over:
            run.done += 1
            metrics.say(f"step {run.done}  stepped over: its documents made the loss jump")
            continue
        step = run.feed[run.done]
        rate = optim.learning_rate(run.done, total, c.schedule, c.optim.lr)
        loss, norm = train_step(run, step, rate)
        run.done += 1
        run.spikes.add(run.done, loss)
        lengths = document_lengths(run, step.plan.rows)
        again = flops.recomputed(run.model.config, run.plan.setting.policies, lengths)
        metrics.count(step.plan.tokens, step.plan.targets, flops.model_flops(run.model.config, lengths), again)
        told = run.done == total or due(run.done, c.log.every)
        if told:
            log(run, metrics, loss, norm, lr=rate, epoch=step.plan.epoch)
        if (told or due(run.done, c.checkpoint.every)) and (spike := run.spikes.find()) is not None:
            undo(run, metrics, spike)
            continue
        between(run, metrics)
    finish(run, watch, metrics)


def between(run: Run, metrics: Metrics) -> None:
    """What is due after a step."""
    c, done, last = run.config, run.done, run.done == run.total
    if run.validation is not None and (last or due(done, c.train.validate_every)):
        value = validate(run.model, run.validation)
        metrics.write({"step": done, "validation_loss": value})
        metrics.say(f"step {done}  validation loss {value:.4f}")
    if last or due(done, c.checkpoint.every):
        save(run)
    if due(done, c.export.every):
        metrics.say(f"step {done}  exported to {write_export(run)}")
    tell_saves(run, metrics)
    if done % 100 == 0:
        gc.collect(1)


def finish(run: Run, watch: Watch, metrics: Metrics) -> None:
    """The end of the run, or of this process's part of it."""
    if run.done < run.total and (spike := run.spikes.find()) is not None:
        undo(run, metrics, spike)
    if run.saver.current is None or run.saver.current.step != run.done:
        save(run)
    where = saved(run)
    tell_saves(run, metrics)
    if run.done < run.total:
        metrics.say(f"stopped after step {run.done}: {watch.why}; {where} is complete, --resume auto goes on from it")
    else:
        # Here, so that a run that was ended between its last checkpoint and its export still makes it.
        exported = write_export(run) if run.config.export.at_end else None
        if (measured := metrics.typical()) is not None:
            numbers, text = in_run.compared(run.plan, measured, run.world.device)
            metrics.write({"step": run.total, **numbers})
            metrics.say(text)
        metrics.say(f"done: {run.total} steps, checkpoint in {where.parent}")
        if exported is not None:
            metrics.say(f"exported to {exported}; serve it: {serve_command(exported, run.world.device)}")
    metrics.close()
    run.feed.close()


def serve_command(exported: Path, device: torch.device) -> str:
    """With the vLLM of this host, where there is one. On a CPU vLLM would take 92% of the memory for its cache, and
    end where less is free."""
    options = " --gpu-memory-utilization 0.5" if device.type == "cpu" else ""
    return f"{shlex.quote(vllm_program() or 'vllm')} serve {shlex.quote(str(exported))}{options}"


def tell_saves(run: Run, metrics: Metrics) -> None:
    """Checkpoints that were completed, or failed, since the last time."""
    for end in run.saver.news():
        if end.problem is not None:
            # The next one may find room; the last one must.
            metrics.say(f"warning: {end.problem}")
            continue
        metrics.write(end.numbers())
        metrics.say(f"step {end.step}  saved {end.folder} ({end.pause:.2f} s waited, {end.seconds:.2f} s in all)")


def undo(run: Run, metrics: Metrics, spike: int) -> None:
    """Back to the last checkpoint, from which the step `spike` is stepped over."""
    run.saver.wait()
    run.spikes.stepped_over.add(spike)
    found, _ = restore(run)
    run.rollbacks = run.rollbacks + 1 if found == run.back_to else 1
    run.back_to = found
    if run.rollbacks > run.config.train.max_bad_steps:
        metrics.close()
        raise UserError(
            f"step {spike}: the loss jumped again, for the {run.rollbacks}th time since {found} (train.max_bad_steps); "
            "look at optim.lr, or raise train.spike_factor"
        )
    metrics.rewind(run.done)
    metrics.write({"step": run.done, "stepped_over": spike})
    metrics.say(f"step {spike}  its loss jumped: back to {found}, from which that step's documents are stepped over")


def train_step(run: Run, step: Step, rate: float) -> tuple[Tensor, Tensor]:
    """One optimizer step. Returns the loss of the global step and its gradient's norm, fp32 scalars on the device."""
    scale = 1.0 / max(step.plan.targets, 1)
    loss = torch.zeros((), device=run.world.device)
    for row in step.rows:
        progress.mark("training")
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
        save(run)
        where = saved(run)
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
            progress.mark("validating")
            loss += model(**vars(row), scale=1.0)
    parallel.reshard(model)
    dist.all_reduce(loss)
    return loss.item() / max(targets, 1)


def due(done: int, every: int | None) -> bool:
    return every is not None and done % every == 0

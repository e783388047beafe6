"""What a run tells: the console line, metrics.jsonl and TensorBoard, all from one dictionary a line.

Units are in the names: `tokens_per_s`, `peak_memory_gib`, `step_s`. `mfu` counts the model's own FLOPs (causal
attention per document, nothing recomputed) over the peak that the hardware table gives for the device.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from skytrain.config import Log
from skytrain.errors import UserError
from skytrain.parallel import World
from skytrain.plan.hardware import peak_flops


class Metrics:
    """Collects steps between two lines; only the first rank writes."""

    def __init__(self, folder: Path, settings: Log, world: World, *, done: int, total: int):
        """done: steps completed before this process began; lines of later steps in metrics.jsonl are dropped."""
        self.settings, self.world, self.total = settings, world, total
        self.console = Console(highlight=False, soft_wrap=True, quiet=not world.is_first)
        name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
        self.peak = peak_flops(name)
        self.started, self.first = time.perf_counter(), done
        self._begin(self.started, done)
        self.measured: list[dict[str, float]] = []
        self.money_before, self.file, self.board = 0.0, None, None
        if world.is_first:
            path = folder / "metrics.jsonl"
            try:
                self.money_before = _drop_lines_after(path, done)
                self.file = path.open("a", encoding="utf-8")
                if settings.tensorboard:
                    self.board = _tensorboard(folder / "tensorboard", done)
            except OSError as error:
                raise UserError(
                    f"{error.filename or path}: {error.strerror or error}; free it for the metrics"
                ) from None

    def _begin(self, now: float, step: int) -> None:
        """What is counted from here on is the next line's. step: completed steps."""
        self.since, self.previous = now, step
        self.tokens, self.targets, self.flops, self.again = 0, 0, 0.0, 0.0

    def count(self, tokens: int, targets: int, flops: float, again: float = 0.0) -> None:
        """Adds one step, over all ranks: tokens, target tokens, the model's FLOPs, and those done again."""
        self.tokens, self.targets = self.tokens + tokens, self.targets + targets
        self.flops, self.again = self.flops + flops, self.again + again

    def line(self, step: int, **values: Any) -> None:
        """Writes the line of `step` completed steps; rates are over all steps since the line before."""
        now = time.perf_counter()
        seconds, steps = now - self.since, step - self.previous
        line = {
            "step": step,
            **values,
            "tokens": self.tokens,
            "trained_tokens": self.targets,
            "tokens_per_s": self.tokens / seconds,
            "trained_tokens_per_s": self.targets / seconds,
            "step_s": seconds / steps,
            "peak_memory_gib": _peak_memory(self.world.device) / 2**30,
            "recomputed": self.again / self.flops if self.flops else 0.0,
            "eta_s": (now - self.started) / (step - self.first) * (self.total - step),
        }
        if self.peak is not None:
            line["mfu"] = self.flops / seconds / (self.peak * self.world.size)
        if self.settings.price_per_gpu_hour is not None:
            hours = (now - self.started) / 3600
            line["money"] = self.money_before + hours * self.world.size * self.settings.price_per_gpu_hour
        self._begin(now, step)
        self.measured.append({key: line[key] for key in ("peak_memory_gib", "step_s", "tokens_per_s")})
        self.write(line)
        self.console.print(self._text(line))

    def rewind(self, done: int) -> None:
        """The run has gone back to step `done`: what was written of later steps goes."""
        self._begin(time.perf_counter(), done)
        self.first = min(self.first, done)
        if self.file is not None:
            path = Path(self.file.name)
            self.file.close()
            _drop_lines_after(path, done)
            self.file = path.open("a", encoding="utf-8")

    def typical(self) -> dict[str, float] | None:
        """Peak memory, and the median line's seconds a step and tokens/s (so that neither compiling nor a checkpoint
        counts); none before the first line."""
        if not self.measured:
            return None
        medians = {key: statistics.median(line[key] for line in self.measured) for key in ("step_s", "tokens_per_s")}
        return {"peak_memory_gib": self.measured[-1]["peak_memory_gib"], **medians}

    def write(self, line: dict[str, Any]) -> None:
        """Appends one line to metrics.jsonl and its numbers to TensorBoard. NaN and infinity are written as null."""
        if self.file is None:
            return
        plain = {k: None if isinstance(v, float) and not abs(v) < float("inf") else v for k, v in line.items()}
        self.file.write(json.dumps(plain) + "\n")
        self.file.flush()
        if self.board is not None:
            for key, value in line.items():
                if key != "step":
                    self.board.add_scalar(key, value, line["step"])

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        if self.board is not None:
            self.board.close()

    def _text(self, line: dict[str, Any]) -> str:
        width = len(str(self.total))
        parts = [
            f"step {line['step']:>{width}}/{self.total}",
            f"loss [bold]{line['loss']:.4f}[/bold]",
            f"norm {line['grad_norm']:.3f}",
            f"lr {line['lr']:.2e}",
            f"{line['tokens_per_s']:,.0f} tok/s",
            f"{line['trained_tokens_per_s']:,.0f} trained/s",
            f"MFU {line['mfu']:.1%}" if "mfu" in line else "",
            f"{line['peak_memory_gib']:.2f} GiB",
            f"{line['recomputed']:.0%} done again" if line["recomputed"] else "",
            f"{line['offloaded_gib']:.2f} GiB offloaded" if "offloaded_gib" in line else "",
            f"money {line['money']:,.2f}" if "money" in line else "",
            f"ETA {_clock(line['eta_s'])}",
            f"[red]{line['skipped']} skipped[/red]" if line.get("skipped") else "",
        ]
        return "  ".join(part for part in parts if part)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _peak_memory(device: torch.device) -> int:
    """Bytes: the allocator's peak on a GPU, the process's largest resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _drop_lines_after(path: Path, done: int) -> float:
    """Leaves the lines up to step `done`; returns the money of the last of them, 0 without one.

    A resumed run does again the steps between its checkpoint and its end, and a curve must not hold them twice.
    """
    if not path.exists():
        return 0.0
    kept, money = [], 0.0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue  # a line that a killed process left half-written
        if isinstance(line, dict) and isinstance(line.get("step"), int) and line["step"] <= done:
            kept.append(text)
            if isinstance(line.get("money"), int | float):
                money = float(line["money"])
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(text + "\n" for text in kept), encoding="utf-8")
    os.replace(temporary, path)
    return money


def _tensorboard(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "log.tensorboard = true: tensorboard is not installed; install it, or set it to false"
        ) from None
    # purge_step hides what an earlier process wrote past the checkpoint that this one resumes from.
    return SummaryWriter(str(folder), purge_step=done + 1)

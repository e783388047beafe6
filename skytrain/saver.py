"""Checkpoints written beside training: a step waits for a copy of the state in host memory, and not for the disk."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from skytrain import checkpoint
from skytrain.errors import UserError
from skytrain.optim import like, local
from skytrain.parallel import World


@dataclasses.dataclass
class Saved:
    """How a save ended. `pause` is what training waited, `seconds` what it took in all."""

    step: int
    folder: Path
    pause: float
    seconds: float = 0.0
    problem: str | None = None

    def numbers(self) -> dict[str, Any]:
        """For metrics.jsonl."""
        return {"step": self.step, "checkpoint_pause_s": self.pause, "checkpoint_s": self.seconds}


class Saver:
    """Writes one checkpoint at a time. Making it, `save` and `wait` are collective; `news` is not.

    asynchronous: `save` returns when the state is copied, into buffers that are kept for the next time (a rank's own
    part of the state again, pinned where the state is on a GPU).
    """

    def __init__(self, root: Path, world: World, *, keep: int, asynchronous: bool):
        self.root, self.world, self.keep, self.asynchronous = root, world, keep, asynchronous
        # Of their own, so that the thread's messages cannot meet those of a step.
        self.group = dist.new_group(backend="gloo") if asynchronous else None
        self.buffers: dict[str, Tensor] = {}
        self.thread: threading.Thread | None = None
        self.current: Saved | None = None
        """The save that was begun last, or the checkpoint that the run went on from."""
        self.error: Exception | None = None
        self.untold: list[Saved] = []

    def save(self, step: int, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Begins a checkpoint of the state as it is now, after the one before it is done."""
        self.wait()
        started = time.perf_counter()
        copies = self._copy(tensors) if self.asynchronous else tensors
        self.current = Saved(step, self.root, pause=time.perf_counter() - started)
        if self.asynchronous:
            arguments = (self.current, copies, scalars, started)
            self.thread = threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True)
            self.thread.start()
        else:
            self._write(self.current, copies, scalars, started)
            self.current.pause = self.current.seconds

    def wait(self) -> Saved | None:
        """Until the last save has ended; returns how. Not a collective by itself, but no rank comes back much before
        another."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            raise self.error
        return self.current

    def news(self) -> list[Saved]:
        """Saves that have ended since the last call."""
        # The thread may add to it meanwhile.
        return [self.untold.pop(0) for _ in range(len(self.untold))]

    def _copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        copies = {}
        for name, tensor in tensors.items():
            part = local(tensor.detach())
            if name not in self.buffers:
                self.buffers[name] = torch.empty(part.shape, dtype=part.dtype, pin_memory=part.is_cuda)
            self.buffers[name].copy_(part, non_blocking=True)
            copies[name] = like(tensor, self.buffers[name], tuple(tensor.shape), self.world.host_mesh)
        if self.world.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return copies

    def _write(self, saved: Saved, tensors: dict[str, Tensor], scalars: dict[str, Any], started: float) -> None:
        try:
            saved.folder = checkpoint.save(self.root, saved.step, tensors, scalars, keep=self.keep, group=self.group)
        except UserError as error:
            saved.problem = str(error)
        except Exception as error:
            # Ours or torch's, and in a thread it would end nothing.
            self.error = error
        saved.seconds = time.perf_counter() - started
        self.untold.append(saved)

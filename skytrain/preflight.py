"""What a run will need at its end, looked at before its first step."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import torch
from torch import Tensor

from skytrain.config import Config
from skytrain.errors import UserError
from skytrain.export import small_files


def check_exports(settings: Config, default_system: str | None) -> None:
    """`UserError` where the model folder lacks what an export needs: configs, tokenizer, chat template, stop tokens."""
    if settings.export.at_end or settings.export.every:
        small_files(Path(settings.model.path), getattr(torch, settings.export.dtype), default_system)


def check_disk(settings: Config, state: dict[str, Tensor], *, done: int, total: int) -> None:
    """`UserError` where the disk of the run folder cannot hold the checkpoints and exports that are to come.

    state: all tensors of a checkpoint. done, total: steps. A checkpoint is written before the oldest one is deleted.
    """
    folder = Path(settings.run.dir)
    checkpoint = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in state.values())
    count = settings.checkpoint.keep + 1 if settings.checkpoint.every else 1
    there = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
    weights = sum(math.prod(tensor.shape) for name, tensor in state.items() if name.startswith("model."))
    export = weights * getattr(torch, settings.export.dtype).itemsize
    every = settings.export.every or total + 1
    exports = total // every - done // every + (settings.export.at_end and total % every != 0)
    needed = max(count * checkpoint - there, 0) + exports * export
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"run.dir = {settings.run.dir!r}: {free / 1e9:,.4g} GB are free, and the run needs {needed / 1e9:,.4g} "
            f"more: {count} checkpoint(s) of {checkpoint / 1e9:,.4g} GB (one being written) and {exports} export(s) of "
            f"{export / 1e9:,.4g}; free space, name a folder on another disk, or lower checkpoint.keep or export.every"
        )

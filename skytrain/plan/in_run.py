"""The plan of a run that is about to start, and how it came out."""

from __future__ import annotations

import msgspec
import numpy as np
import torch

from skytrain.config import Config
from skytrain.errors import UserError
from skytrain.host import host_memory
from skytrain.model import ModelConfig
from skytrain.parallel import World
from skytrain.plan import hardware
from skytrain.plan.forecast import Forecast, forecast, told
from skytrain.plan.memory import checkpoint_bytes
from skytrain.plan.report import counts_line, memory_line, time_line


def planned(config: Config, model: ModelConfig, lengths: np.ndarray, world: World) -> Forecast:
    """The same on every rank. lengths: int64, tokens of each document of an epoch.

    UserError as `forecast`, and where the ranks of this host need more of its memory than it has.
    """
    device = hardware.of_name(hardware.device_name(world.device, world.size))
    if device is not None and world.device.type == "cuda":
        total = torch.cuda.get_device_properties(world.device).total_memory
        device = msgspec.structs.replace(device, memory_gib=total / hardware.GIB)
    plan = forecast(config, model, lengths, world.size, device, config.log.price_per_gpu_hour)
    copy = checkpoint_bytes(plan.setting) if config.checkpoint.asynchronous else 0
    needed, there = world.local_size * (plan.memory.host + copy), host_memory()
    if needed > there:
        # Pinned memory cannot be swapped: the system would end the run in its first steps.
        raise UserError(
            f"{world.local_size} rank(s) would hold {needed / hardware.GIB:,.1f} GiB in this host's memory, which is "
            f"{there / hardware.GIB:,.1f}"
            + (f" ({copy / hardware.GIB:,.1f} each for checkpoints: checkpoint.asynchronous = false)" if copy else "")
            + f"; set less in activations.offload, or another optim.format than {plan.setting.format!r}"
        )
    return plan


def lines(plan: Forecast) -> list[str]:
    texts = (f"layers hold {told(plan.setting.policies)}", memory_line(plan), counts_line(plan), time_line(plan))
    return [f"plan: {text}" for text in texts]


def compared(plan: Forecast, measured: dict[str, float], device: torch.device) -> tuple[dict[str, float], str]:
    """(numbers for metrics.jsonl, a line) of planned against measured. measured: `peak_memory_gib`, `step_s`,
    `tokens_per_s`, as in the lines of metrics.jsonl.

    Memory is that of tensors alone, as a GPU's allocator counts it. What a CPU's process holds is mostly Python and
    libraries, and is told without the plan's number beside it.
    """
    expected = {"peak_memory_gib": plan.memory.live / hardware.GIB} if device.type == "cuda" else {}
    if plan.timing is not None:
        expected |= {"step_s": plan.timing.step, "tokens_per_s": plan.timing.tokens_per_s}
    numbers = {f"planned_{key}": value for key, value in expected.items()}
    numbers |= {f"measured_{key}": value for key, value in measured.items()}
    held = "GiB of tensors at the peak" if device.type == "cuda" else "GiB in a process"
    units = {"peak_memory_gib": held, "step_s": "s a step", "tokens_per_s": "tokens/s"}
    parts = [
        f"planned {_short(expected[key])} {unit}, measured {_short(measured[key])}" if key in expected
        else f"measured {_short(measured[key])} {unit}"
        for key, unit in units.items()
    ]  # fmt: skip
    return numbers, "; ".join(parts)


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"

"""AdamW over one billion parameters in 300 tensors: ours in each format, torch's fused and foreach, FlashOptim."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from cases import ADAM_EPS, BETAS, DECAY, RATE
from contenders import Absent, Optimizer, optimizers
from timing import peak_bytes, time_rounds
from torch import Tensor

Shapes = list[tuple[int, ...]]
LARGE: Shapes = [(1664, 2048)] * 293 + [(5120,)] * 7
SMALL: Shapes = [(128, 256)] * 6 + [(256,)] * 2
STEPS = 5


def run_adamw(bench) -> None:
    """One after another, since the states of all do not fit at once."""
    # A CPU is no place for a billion parameters.
    shapes = LARGE if bench.device.type == "cuda" and not bench.small else SMALL
    count = sum(torch.Size(shape).numel() for shape in shapes)
    label = f"adamw, {count / 1e6:.4g}M parameters in {len(shapes)} tensors"
    print(f"\n{label}")
    heading = f"{'':28}{'step':>11}{'p20':>10}{'p80':>10}{'GB/s':>10}{'%':>7}"
    print(f"{heading}{'held B/param':>14}{'peak MB':>11}{'drift':>9}")
    for optimizer in optimizers(bench.device):
        if isinstance(optimizer, Absent):
            print(f"{optimizer.name:28} left out: {optimizer.reason}")
            continue
        try:
            drift = drift_from_exact(optimizer, bench.device)
        except Exception as problem:
            bench.refuse(label, optimizer.name, f"{type(problem).__name__}: {problem}", optimizer.ours)
            continue
        if not drift <= optimizer.drift:
            bench.refuse(label, optimizer.name, f"drifts by {drift:.3g} of the distance moved", optimizer.ours)
            continue
        run_one(bench, label, optimizer, shapes, count, drift)
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def run_one(bench, label: str, optimizer: Optimizer, shapes: Shapes, count: int, drift: float) -> None:
    weights = [torch.full(shape, 0.02, device=bench.device) for shape in shapes]
    gradients = [torch.full(shape, 1e-3, dtype=optimizer.dtype, device=bench.device) for shape in shapes]
    step, _ = optimizer.start(weights)
    if optimizer.dtype != torch.float32:
        weights.clear()
    step(gradients)
    held = " " * 14
    if bench.device.type == "cuda":
        held_bytes = torch.cuda.memory_allocated(bench.device) / count
        bench.add(label, optimizer.name, "held", held_bytes, "bytes/parameter")
        held = f"{held_bytes:14.2f}"
    peak = peak_bytes(lambda: step(gradients), bench.device)
    times = time_rounds({"step": lambda: step(gradients)}, bench.device, bench.seconds / 2)["step"]
    speed = count * optimizer.bytes_moved / times.median
    percent = 100 * speed / bench.rates.copy
    name = optimizer.name
    bench.add_times(label, name, "step", times)
    bench.add(label, name, "speed", speed / 1e9, "GB/s")
    bench.add(label, name, "percent_of_machine", percent, "%")
    bench.add(label, name, "peak_memory", peak, "bytes")
    bench.add(label, name, "drift", drift, "of the distance moved")
    print(
        f"{name:28}{1e3 * times.median:8.3f} ms{1e3 * times.p20:10.3f}{1e3 * times.p80:10.3f}{speed / 1e9:10.2f}"
        f"{percent:7.1f}{held}{peak / 1e6:11.2f}{drift:9.1e}"
    )


def drift_from_exact(optimizer: Optimizer, device: torch.device) -> float:
    """Distance of the weights from an AdamW in fp64, over the distance moved, after a few steps; on few tensors."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(shape: tuple[int, ...], scale: float) -> Tensor:
        return torch.empty(shape, device=device).normal_(generator=generator).mul_(scale)

    shapes = [SMALL[0], SMALL[-1], (64, 384)]
    # Numbers that bf16 holds, so that all start alike.
    weights = [normal(shape, 0.02).to(torch.bfloat16).float() for shape in shapes]
    start = [weight.double() for weight in weights]
    steps = [[normal(shape, 1e-3).to(optimizer.dtype) for shape in shapes] for _ in range(STEPS)]
    step, current = optimizer.start(weights)
    for gradients in steps:
        step([gradient.clone() for gradient in gradients])
    right = list(exact_adamw(start, steps))
    off = sum((ours.double() - w).square().sum() for ours, w in zip(current(), right))
    moved = sum((w - before).square().sum() for w, before in zip(right, start))
    return (off / moved).sqrt().item()


def exact_adamw(weights: list[Tensor], steps: list[list[Tensor]]) -> Iterator[Tensor]:
    """The weights after the steps, in fp64."""
    beta1, beta2 = BETAS
    for i, w in enumerate(weights):
        m, v = torch.zeros_like(w), torch.zeros_like(w)
        for t, gradients in enumerate(steps, 1):
            g = gradients[i].double()
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            update = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + ADAM_EPS)
            w = w - RATE * ((DECAY if w.ndim > 1 else 0.0) * w + update)
        yield w

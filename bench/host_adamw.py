"""AdamW on host memory beside torch's fused AdamW and DeepSpeed's CPU Adam, and its formats beside one another.

    python bench/host_adamw.py [--millions 64] [--rounds 21] [--threads N]

Each first makes a few steps on small tensors, and is refused if it is off an AdamW in fp64. Then all step in turns,
over tensors much larger than the caches: a round is one step of each, and a ratio is that of two times in the same
round, so that what disturbs the machine disturbs both. Targets: at most 1.15 times each peer's time at equal bytes
(fp32 gradients and moments, 28 bytes a parameter read and written), and 8-bit moments at least 70% as much faster as
their bytes are fewer. GB/s counts every byte that must be read or written once, and % is of what the machine copies in
the same rounds. `cpu` is the processor's time over all threads: where others use the machine too, it holds no waiting
for a core.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable

import record
import torch
from cases import ADAM_EPS, BETAS, DECAY, RATE
from contenders import Absent, Optimizer, optimizers
from optimizers import drift_from_exact
from timing import summary
from torch import Tensor

from skytrain.host_adamw import HostAdamW

LIMIT, PART_OF_BYTES = 1.15, 0.7
FP32, BF16 = torch.float32, torch.bfloat16
COPY = "machine's copy"
COPY_BYTES = 8
"""A parameter."""
BASE, SMALL_BASE, CODED = "skytrain fp32", "skytrain fp32, bf16 in and out", "skytrain 8bit, bf16 in and out"
DEEPSPEED = "deepspeed"


def contenders() -> list[Optimizer | Absent]:
    fused = [o for o in optimizers(torch.device("cpu")) if o.name == "torch fused"]
    ours = [
        Optimizer(BASE, lambda w: _ours(w, "fp32", False), FP32, 28, 1e-3, ours=True),
        Optimizer(SMALL_BASE, lambda w: _ours(w, "fp32", True), BF16, 28, 1e-3, ours=True),
        Optimizer(CODED, lambda w: _ours(w, "8bit", True), BF16, 16, 0.1, ours=True),
    ]
    if importlib.util.find_spec("deepspeed") is None:
        return [*ours, *fused, Absent(DEEPSPEED, "deepspeed is not installed; `make bench-host` installs it")]
    return [*ours, *fused, Optimizer(DEEPSPEED, _deepspeed, FP32, 28, 1e-3)]


def _ours(weights: list[Tensor], format: str, out: bool):
    decays = [DECAY if w.ndim > 1 else 0.0 for w in weights]
    optimizer = HostAdamW(weights, decays, format=format, betas=BETAS, eps=ADAM_EPS)
    rounded = [torch.zeros_like(w, dtype=BF16) for w in weights] if out else None
    one, zero = torch.ones(()), torch.zeros(())
    return lambda gradients: optimizer.step(gradients, RATE, one, zero, rounded), lambda: optimizer.masters


def _deepspeed(weights: list[Tensor]):
    """Its operation is compiled on first use, for this processor alone (-march=native)."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    # One decay an object: its C++ side keeps only the last group's settings apart from rate and decay of a call.
    groups = [{"params": [w], "weight_decay": DECAY if w.ndim > 1 else 0.0} for w in weights]
    optimizer = DeepSpeedCPUAdam(groups, lr=RATE, betas=BETAS, eps=ADAM_EPS, adamw_mode=True)

    def step(gradients: list[Tensor]) -> None:
        for weight, gradient in zip(weights, gradients):
            weight.grad = gradient
        optimizer.step()

    return step, lambda: weights


def check(all_of_them: list[Optimizer | Absent]) -> tuple[list[Optimizer], bool]:
    """(those that may be timed, whether all of ours are among them)."""
    good, ours_are = [], True
    for optimizer in all_of_them:
        if isinstance(optimizer, Absent):
            print(f"{optimizer.name:32} left out: {optimizer.reason}")
            continue
        try:
            drift = drift_from_exact(optimizer, torch.device("cpu"))
            reason = "" if drift <= optimizer.drift else f"drifts by {drift:.3g} of the distance moved"
        except Exception as problem:
            reason = f"{type(problem).__name__}: {problem}"
        if reason:
            print(f"{optimizer.name:32} refused: {reason}")
            ours_are &= not optimizer.ours
        else:
            good.append(optimizer)
    return good, ours_are


def runs_of(contenders: list[Optimizer], shapes: list[tuple[int, ...]]) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    wide = [torch.empty(shape).normal_(generator=generator).mul_(1e-3) for shape in shapes]
    gradients = {FP32: wide, BF16: [g.to(BF16) for g in wide]}

    def run(optimizer: Optimizer) -> Callable[[], object]:
        step, _ = optimizer.start([torch.full(shape, 0.02) for shape in shapes])
        return lambda: step(gradients[optimizer.dtype])

    target = [torch.zeros_like(g) for g in wide]
    runs: dict[str, Callable[[], object]] = {COPY: lambda: torch._foreach_copy_(target, wide)}
    return runs | {optimizer.name: run(optimizer) for optimizer in contenders}


def times_of(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(seconds, the processor's seconds) of each round; two rounds before them are not counted."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    gc.disable()
    for number in range(-2, rounds):
        # The other way round in every other round, so that none always follows the same one.
        for name in list(runs)[:: 1 if number % 2 else -1]:
            wall, cpu = time.perf_counter(), time.process_time()
            runs[name]()
            if number >= 0:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    gc.enable()
    return times


def ratios(times: dict[str, list[tuple[float, float]]], name: str, other: str) -> dict[str, list[float]]:
    """Of each round, "wall" and "cpu"."""
    pairs = list(zip(times[name], times[other]))
    return {clock: [a[i] / b[i] for a, b in pairs] for i, clock in enumerate(("wall", "cpu"))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=64, help="parameters, in 2^20 (64)")
    parser.add_argument("--rounds", type=int, default=21, help="steps of each contender that count (21)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the processor (all cores)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # Of a few million each, as a rank's shards of a 32B model's matrices, and norms between them.
    rows = max(1, round(options.millions / 16 * 2**20 / 4096))
    shapes = [(rows, 4096), (5120,)] * 16
    count = sum(torch.Size(shape).numel() for shape in shapes)
    able, ours_are = check(contenders())
    times = times_of(runs_of(able, shapes), options.rounds)

    case = f"{count / 1e6:.4g}M parameters in {len(shapes)} tensors"
    results: list[dict[str, object]] = []

    def add(contender: str, metric: str, value: float, unit: str) -> None:
        common = {"device": "CPU", "threads": options.threads, "rounds": options.rounds, "case": case}
        results.append(common | {"contender": contender, "metric": metric, "value": f"{value:.6g}", "unit": unit})

    moved = {COPY: COPY_BYTES} | {optimizer.name: optimizer.bytes_moved for optimizer in able}
    speeds = {name: count * moved[name] / statistics.median(t[0] for t in times[name]) / 1e9 for name in times}
    print(f"\n{case}, {options.threads} threads, {options.rounds} rounds")
    print(f"{'':32}{'wall ms':>9}{'p20':>8}{'p80':>8}{'cpu ms':>9}{'GB/s':>8}{'%':>6}")
    for name, pairs in times.items():
        for i, clock in enumerate(("wall", "cpu")):
            values = summary([1e3 * pair[i] for pair in pairs])
            for which in ("median", "p20", "p80"):
                add(name, f"{clock}_{which}", getattr(values, which), "ms")
        add(name, "speed", speeds[name], "GB/s")
        wall, cpu = (summary([1e3 * pair[i] for pair in pairs]) for i in (0, 1))
        print(
            f"{name:32}{wall.median:9.1f}{wall.p20:8.1f}{wall.p80:8.1f}{cpu.median:9.1f}{speeds[name]:8.2f}"
            f"{100 * speeds[name] / speeds[COPY]:6.0f}"
        )
    part = moved[CODED] / moved[SMALL_BASE] / PART_OF_BYTES if {CODED, SMALL_BASE} <= moved.keys() else 0.0
    targets = [(BASE, "torch fused", LIMIT), (BASE, DEEPSPEED, LIMIT), (CODED, SMALL_BASE, part)]
    for name, other, limit in targets:
        if not {name, other} <= times.keys():
            continue
        by_clock = {clock: summary(values) for clock, values in ratios(times, name, other).items()}
        for clock, values in by_clock.items():
            for which in ("median", "p20", "p80"):
                add(name, f"{clock} over {other}, {which}", getattr(values, which), "")
        wall, cpu = by_clock["wall"], by_clock["cpu"]
        verdict = "reached" if wall.median <= limit else "MISSED"
        print(
            f"{name} / {other}: {wall.median:.3f} (p20 {wall.p20:.3f}, p80 {wall.p80:.3f}; cpu {cpu.median:.3f}), "
            f"target {limit:.2f}: {verdict}"
        )
    print(record.append("host_adamw", results))
    return 0 if ours_are else 1


if __name__ == "__main__":
    sys.exit(main())

"""Times, peak memory and the machine's own rates: of a GPU with events and a cold cache, of a CPU with its clock."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

Run = Callable[[], object]
MIN_ROUNDS, MAX_ROUNDS = 5, 100
# What the host may take to start an operation, so that it is not timed with it: about 1 ms of a GPU's clock.
LEAD_CYCLES = 2_000_000


@dataclass(frozen=True)
class Times:
    """Seconds."""

    median: float
    p20: float
    p80: float


def time_rounds(runs: dict[str, Run], device: torch.device, seconds: float) -> dict[str, Times]:
    """Times several functions in turns, so that what disturbs the machine disturbs all of them; 5 to 100 rounds.

    On a GPU each time begins with none of its data in the L2 cache, and with the host ahead of the device.
    """
    once = _Gpu(device) if device.type == "cuda" else _cpu
    warm = 0.0
    for run in runs.values():
        once(run)()
        warm += once(run)()
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(seconds / max(warm, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        # Read after the round, since reading waits for the device.
        pending = {name: once(run) for name, run in runs.items()}
        for name, read in pending.items():
            times[name].append(read())
    return {name: summary(values) for name, values in times.items()}


def summary(values: list[float]) -> Times:
    if len(values) == 1:
        return Times(*values * 3)
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return Times(statistics.median(values), fifths[0], fifths[3])


def _cpu(run: Run) -> Callable[[], float]:
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return lambda: seconds


class _Gpu:
    def __init__(self, device: torch.device):
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self.flush = torch.empty(max(4 * cache, 256 << 20), dtype=torch.int8, device=device)

    def __call__(self, run: Run) -> Callable[[], float]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.flush.zero_()
        torch.cuda._sleep(LEAD_CYCLES)
        start.record()
        run()
        end.record()

        def read() -> float:
            end.synchronize()
            return start.elapsed_time(end) / 1e3

        return read


def peak_bytes(run: Run, device: torch.device) -> int:
    """The most memory that torch's allocator holds during a run, above what it held before."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # The profiler records every allocation of torch's CPU allocator, also those inside an operation.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        held += change
        peak = max(peak, held)
    return peak


@dataclass(frozen=True)
class Rates:
    """What this machine reaches: copying in bytes (read and written) a second, multiplying matrices in FLOP/s."""

    copy: float
    matmul: float


def machine_rates(device: torch.device, small: bool = False) -> Rates:
    """On a GPU for bf16, on a CPU for fp32."""
    gpu = device.type == "cuda"
    dtype, size = (torch.bfloat16, 8192) if gpu else (torch.float32, 256 if small else 1024)
    source = torch.ones((1 << 30) if gpu else (4 << 20 if small else 64 << 20), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    x = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(x)
    runs = {"copy": lambda: target.copy_(source), "matmul": lambda: torch.mm(x, x, out=out)}
    times = time_rounds(runs, device, 0.2 if small else 1.0)
    return Rates(2 * source.numel() / times["copy"].median, 2 * size**3 / times["matmul"].median)

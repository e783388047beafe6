"""`skytrain plan --calibrate`: measures the machine it stands on, and writes a row for the hardware table.

What is measured, on all ranks at once, of which the slowest counts:

products     a square product, for some seconds, so that a GPU has come down to the pace that its power allows
attention    forward and backward of documents of a reasoning trace's length, by the back end that a run would take
memory       a copy within the device: each byte is read and written
host         a copy between device and pinned host memory, the slower way; a copy within the host's memory
links        an all-gather, where there is more than one rank (start it with torchrun)

Where the table knows the device its peaks stay, and the row has the parts of them that were reached. Else what was
measured is called the peak. A CPU is measured in float32, each rank with its share of the cores.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from skytrain import config, parallel
from skytrain.attention import packed_attention, resolve_backend
from skytrain.errors import UserError, unwritten
from skytrain.parallel import World
from skytrain.plan import hardware
from skytrain.plan.hardware import GIB, Device, Efficiency, device_name, user_file


def calibrate(out: Path | None, seconds: float = 2.0) -> tuple[Device, Path]:
    """Measures each rate for about `seconds`, and writes the row on the first rank. Returns it, and the file.

    UserError where the file cannot be read or written.
    """
    nowhere = {"run": {"dir": "."}, "model": {"path": "."}, "data": {"path": "."}, "batch": {"documents": 1}}
    world = parallel.start(msgspec.convert(nowhere, config.Config))
    try:
        row = _row(world, seconds)
        path = out or user_file()
        parallel.together(lambda: write(row, path) if world.is_first else None)
        return row, path
    finally:
        parallel.stop()


def _row(world: World, seconds: float) -> Device:
    gpu = world.device.type == "cuda"
    name = device_name(world.device, world.size)
    known = next((row for row in hardware.shipped() if re.search(r"(?<!\w)" + re.escape(row.name), name)), None)
    rates = {what: _slowest(measure(world, seconds), world) for what, measure in RATES.items()}
    links = _slowest(_all_gather(world), world) if world.size > 1 else None
    rates["link"] = rates["network"] = links or rates["host_link"]
    peaks = {f"{what}_gbs": _short(rates[what] / 1e9) for what in ("memory", "host_link", "host_memory", "link")}
    peaks |= {"bf16_tflops": _short(rates["matmul"] / 1e12), "network_gbs": peaks["link_gbs"]}
    if known is not None:
        peaks |= {key: getattr(known, key) for key in peaks}

    reached = {
        what: _short(rates[what] / 1e9 / peaks[f"{what}_gbs"]) for what in ("memory", "host_link", "host_memory")
    }
    reached |= {what: _short(rates[what] / 1e12 / peaks["bf16_tflops"]) for what in ("matmul", "attention")}
    assumed = known.efficiency if known is not None else None
    note = (
        ""
        if links
        else "; links between ranks are not measured (one rank), but taken from "
        + ("the table" if known is not None else "the link to the host")
    )
    text = f"skytrain plan --calibrate on {time.strftime('%Y-%m-%d')}, {world.size} rank(s), torch {torch.__version__}"
    efficiency = Efficiency(
        **reached,
        link=_short(links / 1e9 / peaks["link_gbs"]) if links else (assumed.link if assumed else 1.0),
        network=assumed.network if assumed else 1.0,
        float8_tensorwise=assumed.float8_tensorwise if assumed else 0.0,
        float8_rowwise=assumed.float8_rowwise if assumed else 0.0,
        serving=assumed.serving if assumed else 0.0,
        source="measured: rates over the row's peaks" + note,
    )
    if gpu:
        memory = torch.cuda.get_device_properties(world.device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // world.size
    return Device(
        id="my-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"), name=name, **peaks,
        fp8_tflops=known.fp8_tflops if known else 0.0, memory_gib=_short(memory / GIB), source=text,
        dtype="bfloat16" if gpu else "float32", efficiency=efficiency,
    )  # fmt: skip


def _short(value: float) -> float:
    """To four digits."""
    return float(f"{value:.4g}")


def _slowest(rate: float, world: World) -> float:
    value = torch.tensor(rate, dtype=torch.float64, device=world.device)
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return value.item()


def _rate(work: Callable[[], object], amount: float, world: World, seconds: float) -> float:
    """`amount` over the seconds that `work` takes, on the mean of runs that fill `seconds`, after a first one."""

    def wait() -> None:
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)

    work()
    wait()
    dist.barrier()
    begin, runs = time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - begin < seconds:
        work()
        wait()
        runs += 1
    return amount * runs / (time.perf_counter() - begin)


def _matmul(world: World, seconds: float) -> float:
    gpu = world.device.type == "cuda"
    size, dtype, batch = (8192, torch.bfloat16, 8) if gpu else (1024, torch.float32, 1)
    x = torch.randn(size, size, device=world.device).to(dtype)
    out = torch.empty_like(x)

    def products() -> None:
        for _ in range(batch):  # else a GPU would idle while the host waits
            torch.mm(x, x, out=out)

    return _rate(products, 2.0 * batch * size**3, world, seconds)


def _attention(world: World, seconds: float) -> float:
    """FLOPs as in timing.py: forward 2, backward 5 for each value of a query and squared length."""
    gpu = world.device.type == "cuda"
    documents, length, heads, kv_heads, head_dim = (4, 4096, 40, 8, 128) if gpu else (2, 512, 8, 2, 64)
    options = {"device": world.device, "dtype": torch.bfloat16 if gpu else torch.float32}
    shape = (documents * length, heads, head_dim), (documents * length, kv_heads, head_dim)
    q, k, v = (torch.randn(s, **options).requires_grad_() for s in (shape[0], shape[1], shape[1]))
    bounds = torch.arange(0, (documents + 1) * length, length, dtype=torch.int32, device=world.device)
    backend = resolve_backend("auto", world.device)
    gradient = torch.randn_like(q)

    def both() -> None:
        out = packed_attention(q, k, v, bounds, length, backend=backend)
        torch.autograd.grad(out, (q, k, v), gradient)

    return _rate(both, 7.0 * heads * head_dim * documents * length**2, world, seconds)


def _copy(source: torch.Tensor, target: torch.Tensor, amount: float, world: World, seconds: float) -> float:
    return _rate(lambda: target.copy_(source, non_blocking=True), amount, world, seconds)


def _memory(world: World, seconds: float) -> float:
    size = 2**30 if world.device.type == "cuda" else 2**26
    source = torch.ones(size, dtype=torch.int8, device=world.device)
    return _copy(source, torch.empty_like(source), 2.0 * size, world, seconds)


def _host_memory(world: World, seconds: float) -> float:
    source = torch.ones(2**26, dtype=torch.int8)
    return _copy(source, torch.empty_like(source), 2.0 * 2**26, world, seconds)


def _host_link(world: World, seconds: float) -> float:
    """Of a CPU: a copy in its memory, in bytes copied."""
    size, pinned = (2**28, True) if world.device.type == "cuda" else (2**26, False)
    host = torch.ones(size, dtype=torch.int8, pin_memory=pinned)
    there = torch.empty_like(host, device=world.device, pin_memory=False)
    return min(_copy(host, there, size, world, seconds / 2), _copy(there, host, size, world, seconds / 2))


def _all_gather(world: World) -> float:
    """Bytes that each rank receives a second."""
    share = (2**28 if world.device.type == "cuda" else 2**22) // world.size
    part = torch.ones(share, dtype=torch.int8, device=world.device)
    whole = torch.empty(share * world.size, dtype=torch.int8, device=world.device)
    # A fixed number of rounds, and not of seconds: all ranks must do as many.
    count = 20

    def rounds() -> None:
        for _ in range(count):
            dist.all_gather_into_tensor(whole, part)

    return _rate(rounds, count * share * (world.size - 1.0), world, 0.0)


RATES = {
    "matmul": _matmul,
    "attention": _attention,
    "memory": _memory,
    "host_link": _host_link,
    "host_memory": _host_memory,
}


def write(row: Device, path: Path) -> None:
    """Puts the row into a file of rows, in the place of one with the same id. UserError where that cannot be done."""
    rows = [other for other in hardware.read(path) if other.id != row.id] if path.exists() else []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp")
        partial.write_text("\n".join(_toml(one) for one in [row, *rows]), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path}: {unwritten(error)}, with --out") from None


def _toml(row: Device) -> str:
    table = msgspec.to_builtins(row)
    efficiency = table.pop("efficiency")
    lines = ["[[device]]", *(f"{key} = {config.toml(value)}" for key, value in table.items())]
    lines += ["[device.efficiency]", *(f"{key} = {config.toml(value)}" for key, value in efficiency.items())]
    return "\n".join(lines) + "\n"

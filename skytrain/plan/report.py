"""The forecast as tables on a console, and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from skytrain.plan.choice import RESERVE
from skytrain.plan.forecast import Alternative, Forecast, shortest_of_each, told
from skytrain.plan.hardware import GIB
from skytrain.plan.memory import parameters


def sources(one: Forecast, model: str, data: str) -> list[str]:
    """Lines that say what the forecast is of."""
    s, packed = one.setting, one.packed
    lines = [
        f"model {model}: {parameters(s.model):,} parameters",
        f"data {data}",
        f"{packed.steps:,} steps, {packed.run_tokens / 1e6:,.1f} M tokens, up to {packed.micro_batches} micro-batches "
        f"a step, rows of up to {packed.fullest:,} tokens",
        f"{s.format} on {one.gpus} x {one.device.id if one.device else 'a device that the hardware table lacks'}, "
        f"each layer holds: {told(s.policies)}",
    ]
    if one.device is not None and one.timing is not None:
        d = one.device
        narrow = f" (in layers, float8 {s.float8}: {d.product_rate(s.float8) / 1e12:,.3g})" if s.float8 else ""
        rates = f"products {d.matmul_rate / 1e12:,.3g}{narrow} and attention {d.attention_rate / 1e12:,.3g} TFLOP/s"
        lines.append(
            f"assumed: {rates}, memory {d.memory_rate / 1e9:,.0f}, links {d.link_rate(s.ranks) / 1e9:,.0f}, host "
            f"{d.host_link_rate / 1e9:,.0f} GB/s (sources: skytrain/plan/hardware.toml)"
        )
    return lines


def memory_line(one: Forecast) -> str:
    """Whether it fits, in words."""
    total = one.memory.total
    if one.device is None:
        return f"{one.memory.live / GIB:,.3g} GiB of tensors a rank at the peak"
    spare, of = one.spare, f"{total / GIB:.1f} of {one.device.memory / GIB:.1f} GiB"
    if spare < 0:
        return f"does not fit: {of}, {-spare / 1e9:.1f} GB too much"
    if spare < RESERVE:
        return f"fits, barely: {of}, {spare / 1e9:.1f} GB spare, and the plan may be wrong by {RESERVE / 1e9:.0f}"
    return f"fits: {of}, {spare / 1e9:.1f} GB spare"


def time_line(one: Forecast) -> str:
    t = one.timing
    if t is None:
        return "time not planned: no rates of this device in train.dtype are known (skytrain plan --calibrate)"
    money = "" if one.money is None else f", money {one.money:,.2f}"
    return (
        f"{t.step:.3g} s a step, {t.hours:.3g} h, {t.tokens_per_s:,.0f} tokens/s "
        f"({t.tokens_per_s / one.gpus:,.0f} a rank), MFU {t.mfu:.1%}{money}"
    )


def counts_line(one: Forecast) -> str:
    c = one.counts
    moved = f", {c.offloaded / 1e9:,.1f} GB to the host and back" if c.offloaded else ""
    return (
        f"a step, each rank: {c.flops / 1e12:,.4g} TFLOP, {c.recomputed / c.flops:.1%} of it done again; "
        f"{c.gathered / 1e9:,.1f} GB gathered, {c.reduced / 1e9:,.1f} GB reduced{moved}"
    )


def show(console: Console, one: Forecast, lines: list[str], found: list[Alternative]) -> None:
    for line in lines:
        console.print(line, markup=False)
    table = Table(title=f"Memory of a GPU at the peak ({one.memory.moment})", title_justify="left")
    table.add_column("kind")
    table.add_column("GiB", justify="right")
    for kind, size in one.memory.kinds.items():
        table.add_row(kind.replace("_", " "), f"{size / GIB:.2f}")
    table.add_row("all", f"{one.memory.total / GIB:.2f}", style="bold")
    console.print(table)
    console.print(memory_line(one), markup=False)
    if one.memory.host:
        console.print(f"host memory: {one.memory.host / GIB:,.1f} GiB for each GPU", markup=False)
    console.print(counts_line(one), markup=False)
    if one.timing is not None:
        table = Table(title="Seconds of a step", title_justify="left")
        for kind in one.timing.kinds:
            table.add_column(kind, justify="right")
        table.add_row(*(f"{seconds:.3g}" for seconds in one.timing.kinds.values()))
        console.print(table)
    console.print(time_line(one), markup=False)
    if found:
        console.print(_alternatives(shortest_of_each(found)))


def _alternatives(found: list[Alternative]) -> Table:
    title = (
        f"Alternatives, the shortest of each with {RESERVE / 1e9:.0f} GB to spare (all: --json); best: within 2% of "
        "the shortest, and rounds least"
    )
    table = Table(title=title, title_justify="left")
    for name in ("", "GPUs", "format", "rows", "activations", "GB spare", "s a step", "hours", "money"):
        table.add_column(name, justify="left" if name in ("", "format", "activations") else "right")
    for one in found:
        f, t = one.forecast, one.forecast.timing
        fits = f.spare >= 0
        table.add_row(
            "best" if one.best else "", str(f.gpus), f.setting.format, f"{f.packed.fullest:,}", one.label,
            f"{f.spare / 1e9:.1f}", f"{t.step:.3g}" if fits else "", f"{t.hours:.2f}" if fits else "does not fit",
            f"{f.money:,.0f}" if fits and f.money is not None else "", style="bold" if one.best else None,
        )  # fmt: skip
    return table


def as_json(one: Forecast) -> dict[str, Any]:
    """Bytes, seconds, FLOPs; of one GPU where nothing else is said."""
    t, c = one.timing, one.counts
    found: dict[str, Any] = {
        "format": one.setting.format,
        "gpus": one.gpus,
        "gpu": one.device.id if one.device else None,
        "rows": one.packed.fullest,
        "activations": told(one.setting.policies),
        "steps": one.packed.steps,
        "tokens": round(one.packed.run_tokens),
        "memory": {
            "moment": one.memory.moment,
            "bytes": one.memory.kinds,
            "total": one.memory.total,
            "host": one.memory.host,
            "spare": one.spare,
            "fits": None if one.spare is None else one.spare >= 0,
        },
        "step": {
            "flops": c.flops,
            "recomputed_flops": c.recomputed,
            "gathered_bytes": c.gathered,
            "reduced_bytes": c.reduced,
            "offloaded_bytes": c.offloaded,
        },
    }
    if t is not None:
        found["time"] = {
            "seconds_a_step": t.step,
            "seconds": t.kinds,
            "hours": t.hours,
            "tokens_per_s": t.tokens_per_s,
            "mfu": t.mfu,
            "money": one.money,
        }
    return found

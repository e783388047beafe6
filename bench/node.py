"""The node's step, put together from the parts that bench/slice.py measured on one GPU.

    python bench/node.py

A layer's pass over a row takes its measured time in proportion to the row's FLOPs, head and embedding in proportion to
its tokens, the optimizer once a step. What one GPU does not show is the plan's arithmetic (skytrain/plan/timing.py) at
the rates of the hardware table: how documents are packed, gathering and reducing, FSDP2's copies around them, and 8
GPUs that share the memory of their host. All that is assumed is printed. As a command it takes the newest rows of
bench/results/slice.csv.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import record

from skytrain import config
from skytrain.activations import Policy
from skytrain.flops import attention_flops, product_flops
from skytrain.model import ModelConfig
from skytrain.plan import hardware, workload
from skytrain.plan.forecast import Forecast, forecast, told
from skytrain.plan.hardware import Device
from skytrain.plan.memory import Setting, offloaded_bytes
from skytrain.plan.timing import Pace, Timing, plan_timing
from skytrain.plan.workload import Packed

RECIPE = Path(__file__).parent.parent / "launch" / "recipes" / "sky_t1_32b.toml"
FORMATS = ("fp32_8bit", "split_8bit")
Row = dict[str, object]


@dataclass(frozen=True)
class Parts:
    """Seconds on one GPU, but for the optimizer's over a row of `tokens` whose documents' squares sum to `squares`."""

    tokens: float
    squares: float
    forward: float
    """Of a layer."""
    backward: float
    head: float
    embedding: float
    optimizer: float
    """Of a step, on one rank's share."""


def compose(parts: Parts, s: Setting, device: Device, packed: Packed) -> Timing:
    """The step of the node. A layer's pass takes the longest of computing, communicating and moving offloaded values,
    and a micro-batch as long as its slowest rank. s: all layers have one policy."""
    pace, layers = Pace(s, device), s.model.num_hidden_layers
    products, squared = sum(product_flops(s.model).values()), attention_flops(s.model)
    work = (products * packed.tokens + squared * packed.squares) / (products * parts.tokens + squared * parts.squares)
    rows = packed.tokens / parts.tokens
    moved = offloaded_bytes(s, s.policies[0]) / s.tokens * packed.tokens / device.offload_rate
    copies = layers * (pace.forward_copy + pace.backward_copy) + pace.ends_copy
    kinds = {
        "layers": layers * (parts.forward + parts.backward) * work,
        "head": parts.head * rows,
        "embedding": parts.embedding * rows,
        "copies": np.full_like(rows, copies),
        "communication": pace.embedding_link + np.maximum(pace.head_link - parts.head * rows, 0.0),
        "offload": np.zeros_like(rows),
    }
    for seconds, copy, link in (
        (parts.forward, pace.forward_copy, pace.forward_link),
        (parts.backward, pace.backward_copy, pace.backward_link),
    ):
        busy = seconds * work + copy
        exposed = np.maximum(link - busy, 0.0)
        kinds["communication"] = kinds["communication"] + layers * exposed
        kinds["offload"] = kinds["offload"] + layers * np.maximum(moved - busy - exposed, 0.0)
    each_step = packed.share / packed.steps
    found = {kind: float(seconds.mean(1).sum()) * each_step for kind, seconds in kinds.items()}
    found["waiting"] = float(sum(kinds.values()).max(1).sum()) * each_step - sum(found.values())
    return replace(plan_timing(s, device, packed), kinds=found | {"optimizer": parts.optimizer})


def parts_of(rows: Iterable[Row], layer: str, format: str) -> Parts:
    """KeyError, with (case, metric), for what was not measured. layer: its case."""
    values = {(row["case"], row["metric"]): float(str(row["value"])) for row in rows}
    forward = values["layer, everything kept", "forward"] / 1e3
    return Parts(
        values["row", "tokens"], values["row", "squares"], forward, values[layer, "forward_backward"] / 1e3 - forward,
        values["head", "forward_backward_median"] / 1e3, values["embedding", "forward_backward_median"] / 1e3,
        values[f"adamw {format}", "step_of_a_rank"] / 1e3,
    )  # fmt: skip


def planned(model: ModelConfig, overrides: list[str], name: str) -> Forecast:
    """The recipe's forecast on GPUs like the measured one; on those that the recipe names, if the table has no such."""
    settings = config.load(RECIPE, overrides)
    device = hardware.of_name(name) or hardware.find(settings.plan.gpu)
    lengths, _ = workload.document_lengths(settings, None)
    return forecast(settings, model, lengths, settings.plan.gpus, device, settings.log.price_per_gpu_hour)


def report(rows: list[Row], model: ModelConfig, overrides: list[str]) -> list[Row]:
    """Prints the node's step in each format beside the plan's, and what is assumed. Returns its rows."""
    name = str(rows[0]["device"])
    one = planned(model, overrides, name)
    s, layer = one.setting, f"layer, {told(one.setting.policies)}"
    if (layer, "forward_backward") not in {(row["case"], row["metric"]) for row in rows}:
        s, layer = replace(s, policies=(Policy(),) * len(s.policies)), "layer, full recomputation"
    found: list[Row] = []
    for format in FORMATS:
        setting = replace(s, format=format)
        case = f"node, {format}, {layer}"
        try:
            parts = parts_of(rows, layer, format)
        except KeyError as missing:
            print(f"\n{case}: not put together, {missing} was not measured")
            continue
        timing = compose(parts, setting, one.device, one.packed)
        found += shown(case, name, timing, plan_timing(setting, one.device, one.packed))
        if format == FORMATS[0]:
            pace, first = Pace(setting, one.device), parts
    if found:
        print()
        for line in (*hidden(first, pace), *assumed(first, one)):
            print(f"- {line}")
    return found


def shown(case: str, device: str, timing: Timing, plan: Timing) -> list[Row]:
    print(f"\n{case}")
    print("  " + ", ".join(f"{kind} {seconds:.3f}" for kind, seconds in timing.kinds.items()) + " s a step")
    rows = [(kind, seconds, "s") for kind, seconds in timing.kinds.items()]
    for of, t in (("measured parts", timing), ("plan", plan)):
        print(f"  {of:16}{t.step:8.3f} s a step, {t.hours:.3f} h, {t.tokens_per_s:,.0f} tokens/s, MFU {t.mfu:.1%}")
        before = "" if t is timing else "planned_"
        rows += [(f"{before}step", t.step, "s"), (f"{before}run", t.hours, "h"), (f"{before}MFU", 100 * t.mfu, "%")]
    return [
        {"device": device, "case": case, "metric": metric, "value": f"{value:.6g}", "unit": unit}
        for metric, value, unit in rows
    ]


def hidden(parts: Parts, pace: Pace) -> list[str]:
    """In words, whether each transfer hides under what is computed beside it, for a row like the measured one."""
    rate = pace.device.link_rate(pace.s.ranks)
    moved = offloaded_bytes(pace.s, pace.s.policies[0]) / pace.s.tokens * parts.tokens
    lines = []
    for what, size, seconds, compute in (
        ("weights of a layer, gathered in forward", pace.forward_link * rate, pace.forward_link, parts.forward),
        ("weights gathered and gradients reduced in backward", pace.backward_link * rate, pace.backward_link,
         parts.backward),
        ("outputs of a layer to the host", moved, moved / pace.device.offload_rate, parts.forward),
        ("the head's weights and fp32 gradients", pace.head_link * rate, pace.head_link, parts.head),
        ("the embedding's weights and gradients", pace.embedding_link * rate, pace.embedding_link, 0.0),
    ):  # fmt: skip
        verdict = "hidden under" if seconds <= compute else "not hidden under"
        lines.append(f"{what}: {size / 1e9:.3f} GB, {1e3 * seconds:.2f} ms, {verdict} {1e3 * compute:.2f} ms")
    return lines


def assumed(parts: Parts, one: Forecast) -> list[str]:
    d, packed = one.device, one.packed
    micro_batches = len(packed.tokens) * packed.share / packed.steps
    return [
        f"balance: {packed.steps} steps of {micro_batches:.2f} micro-batches as the plan packs them, rows of "
        f"{packed.tokens.mean():,.0f} tokens on average ({parts.tokens:,.0f} measured) and "
        f"{packed.squares.sum() / packed.tokens.sum():,.0f} squares a token ({parts.squares / parts.tokens:,.0f} "
        "measured); the others wait for the slowest rank; every token is a target",
        f"bandwidth: not measured; {d.link_rate(one.gpus) / 1e9:.0f} GB/s between GPUs, {d.offload_rate / 1e9:.0f} to "
        f"the host for each of {one.gpus} GPUs at once, {d.memory_rate / 1e9:.0f} for FSDP2's copies in device memory: "
        f"row {d.id} of the hardware table",
        "overlap: gathers and reductions run beside the layer's computing and do not slow it (NCCL takes some SMs and "
        "bandwidth); the embedding's have nothing to hide behind",
        "pace: a GPU measured for seconds, alone, keeps its clock in a node for hours; kernels start without gaps",
        "left out: loading, validation, checkpoints, export, the all-reduce of loss and gradient norm",
    ]


def newest() -> list[Row]:
    """The parts that were written last."""
    with (record.RESULTS / "slice.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if not row["case"].startswith("node, ")]
    keys = ("device", "case", "metric", "value", "unit")
    return [{key: row[key] for key in keys} for row in rows if row["date"] == rows[-1]["date"]]


def main() -> None:
    rows = newest()
    if found := report(rows, workload.known_models()["qwen2.5-32b"], []):
        print(record.append("slice", found))


if __name__ == "__main__":
    main()

"""The whole forecast of a recipe on so many devices, and of what else could be set."""

from __future__ import annotations

import typing
from collections import Counter
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from skytrain.activations import Policy
from skytrain.config import Config, Optim
from skytrain.errors import UserError
from skytrain.model import ModelConfig
from skytrain.optim import BF16_WEIGHTS
from skytrain.plan.choice import RESERVE, choose
from skytrain.plan.hardware import GIB, GPUS_A_NODE, Device
from skytrain.plan.memory import Memory, Policies, Setting, plan_memory, recipe_policies
from skytrain.plan.timing import Counts, Timing, plan_counts, plan_timing
from skytrain.plan.workload import Packed, pack


@dataclass(frozen=True)
class Forecast:
    setting: Setting
    packed: Packed
    memory: Memory
    counts: Counts
    gpus: int
    device: Device | None
    """None where the hardware table does not know it: then there is neither time nor money."""
    timing: Timing | None
    price: float | None
    """Of a GPU for an hour."""

    @property
    def spare(self) -> int | None:
        """Bytes of the device left at the peak; negative where the step does not fit."""
        return None if self.device is None else self.device.memory - self.memory.total

    @property
    def money(self) -> float | None:
        return None if self.timing is None or self.price is None else self.timing.hours * self.gpus * self.price


def forecast(
    config: Config, model: ModelConfig, lengths: np.ndarray, gpus: int, device: Device | None, price: float | None,
    packed: Packed | None = None,
) -> Forecast:  # fmt: skip
    """What the recipe will take. packed: of these lengths on so many GPUs, where it is known already.

    Where optim.format is "auto" the forecast's setting has the format that it comes to. UserError: ranks that the
    nodes do not divide, documents that cannot be packed, a budget that cannot be kept.
    """
    if gpus % config.parallel.nodes:
        raise UserError(
            f"parallel.nodes = {config.parallel.nodes}: does not divide the number of GPUs, {gpus}; "
            "set 1, or the number of machines"
        )
    if device is not None and device.dtype == "bfloat16" and not device.product_rate(config.train.float8):
        raise UserError(
            f"train.float8 = {config.train.float8!r}: the hardware table knows no such products of {device.id}; take "
            "it out, or name another device"
        )
    packed = packed or pack(config, model, lengths, gpus, config.batch.max_tokens)
    if config.optim.format != "auto":
        return _of_format(config, model, packed, gpus, device, price)
    closest, problem = None, None
    for format in _able(config) if device is not None else ["fp32"]:
        try:
            one = _of_format(with_format(config, format), model, packed, gpus, device, price)
        except UserError as error:  # the budget cannot be kept
            problem = error
            continue
        if device is None or one.spare >= RESERVE:
            return one
        if closest is None or one.spare > closest.spare:
            closest = one
    if closest is None:
        raise problem
    return closest


def with_format(config: Config, format: str) -> Config:
    return _changed(config, optim={"format": format})


def _able(config: Config) -> list[str]:
    """Formats that the recipe can have."""
    if config.optim.name != "adamw":
        return ["fp32"]
    return [format for format in FORMATS if format not in BF16_WEIGHTS or config.train.dtype == "bfloat16"]


def _of_format(
    config: Config, model: ModelConfig, packed: Packed, gpus: int, device: Device | None, price: float | None
) -> Forecast:
    policies = recipe_policies(config, model)
    multiple = config.train.row_multiple
    fullest = -(-packed.fullest // multiple) * multiple
    setting = replace(Setting.of(config, model, gpus, packed.micro_batches, policies), tokens=fullest)
    if config.activations.budget_gib is not None:
        setting = replace(setting, policies=_budgeted(config, setting, packed, device))
    replicas = config.parallel.nodes
    times = _times(config, device)
    return Forecast(
        setting, packed, plan_memory(setting), plan_counts(setting, packed), gpus, device,
        plan_timing(setting, device, packed, replicas) if times else None, price,
    )  # fmt: skip


def _times(config: Config, device: Device | None) -> bool:
    """Whether the device's rates are those of such a run."""
    return device is not None and device.dtype == config.train.dtype and device.product_rate(config.train.float8) > 0


def _budgeted(config: Config, s: Setting, packed: Packed, device: Device | None) -> Policies:
    asked = config.activations.budget_gib
    if asked == "auto" and device is None:
        raise UserError(
            'activations.budget_gib = "auto": the memory of this device is not known; give a number of GiB, or measure '
            "the machine with skytrain plan --calibrate"
        )
    budget = device.memory - RESERVE if asked == "auto" else int(asked * GIB)
    rates = device if _times(config, device) else None
    found = choose(s, budget, packed, rates, compiled=config.train.compile, replicas=config.parallel.nodes)
    if found is None:
        least = plan_memory(replace(s, policies=(Policy(),) * len(s.policies))).total
        raise UserError(
            f"activations.budget_gib = {asked!r}: a step takes {least / GIB:.1f} GiB with layer inputs alone kept, "
            f"and the budget is {budget / GIB:.1f}; use a smaller optim.format, shorter rows or more GPUs"
        )
    return found


@dataclass(frozen=True)
class Alternative:
    label: str
    """Of what layers hold."""
    forecast: Forecast
    best: bool = False
    """On the recipe's number of GPUs, of those that fit with the reserve to spare: the shortest run; of those within 2%
    of it the one with the most exact states, and of these the shortest."""


FORMATS = [name for name in typing.get_args(typing.get_type_hints(Optim)["format"]) if name != "auto"]
"""That a recipe can name, the most exact first."""
ACTIVATIONS: tuple[tuple[str, dict[str, object]], ...] = (
    ("none", {"checkpoint": "none"}),
    ("full", {"checkpoint": "full"}),
    ("keep attention", {"checkpoint": "selective", "keep": ("attention",)}),
    ("budget_gib = auto", {"checkpoint": "selective", "budget_gib": "auto"}),
)


def alternatives(
    config: Config, model: ModelConfig, lengths: np.ndarray, gpus: int, device: Device, price: float | None
) -> list[Alternative]:
    """State formats x what layers hold x rows x GPUs. What cannot be is left out; what does not fit is not."""
    found = []
    for count in sorted({max(1, gpus // 2), gpus, 2 * gpus}):
        nodes = max(config.parallel.nodes, -(-count // GPUS_A_NODE))
        if count % nodes:
            continue
        for rows in sorted({config.batch.max_tokens // 2, config.batch.max_tokens, 2 * config.batch.max_tokens}):
            if rows < lengths.max() or len(lengths) < count:
                continue
            packed = pack(config, model, lengths, count, rows)
            for format in _able(config):
                for label, activations in ACTIVATIONS:
                    plain = {"keep": (), "offload": (), "budget_gib": None}
                    other = _changed(
                        config, parallel={"nodes": nodes}, optim={"format": format}, batch={"max_tokens": rows},
                        activations=plain | activations,
                    )  # fmt: skip
                    try:
                        one = forecast(other, model, lengths, count, device, price, packed)
                    except UserError:  # the budget cannot be kept
                        continue
                    found.append(Alternative(label, one))
    fitting = [one for one in found if one.forecast.gpus == gpus and one.forecast.spare >= RESERVE]
    shortest = min((one.forecast.timing.hours for one in fitting), default=0.0)
    near = [one for one in fitting if one.forecast.timing.hours <= 1.02 * shortest]
    best = min(
        near, key=lambda one: (FORMATS.index(one.forecast.setting.format), one.forecast.timing.hours), default=None
    )
    return [replace(one, best=one is best) for one in found]


def _changed(config: Config, **sections: dict[str, object]) -> Config:
    parts = {name: msgspec.structs.replace(getattr(config, name), **table) for name, table in sections.items()}
    return msgspec.structs.replace(config, **parts)


def shortest_of_each(found: list[Alternative]) -> list[Alternative]:
    """For each number of GPUs and format the one that a user would take: the shortest run that fits with the reserve to
    spare, or what comes nearest to fitting."""

    def order(one: Alternative) -> tuple[bool, float]:
        enough = one.forecast.spare >= RESERVE
        timing = one.forecast.timing
        return not enough, timing.hours if enough else -one.forecast.spare

    groups: dict[tuple[int, str], list[Alternative]] = {}
    for one in found:
        groups.setdefault((one.forecast.gpus, one.forecast.setting.format), []).append(one)
    return [min(group, key=order) for group in groups.values()]


def told(policies: Policies) -> str:
    """In words, what layers hold."""
    layers, parts = len(policies), []
    if (whole := sum(policy is None for policy in policies)) == layers:
        return "everything"
    if whole:
        parts.append(f"everything in {whole}")
    for verb, held in (("keep", "keep"), ("offload", "offload")):
        counts = Counter(name for policy in policies if policy is not None for name in sorted(getattr(policy, held)))
        names = [name if count == layers else f"{name} in {count}" for name, count in counts.most_common()]
        if names:
            parts.append(f"{verb} " + ", ".join(names))
    return "; ".join(parts) or "inputs alone"

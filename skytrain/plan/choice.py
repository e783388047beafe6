"""What each layer holds from forward to backward, chosen: the least time within a budget of device memory.

Candidates are few, and each is filled by one rule: operations in the order of the seconds that holding them saves a
byte, each in as many of the last layers as the budget allows. A kept operation costs memory; an offloaded one costs
what is on its way, and may take no longer to move than the layer computes. The one with the shortest step is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from skytrain.activations import Policy
from skytrain.config_rules import OPERATIONS
from skytrain.flops import attention_flops, product_flops, recomputed_flops
from skytrain.plan.hardware import Device
from skytrain.plan.memory import Policies, Setting, operation_bytes, plan_memory
from skytrain.plan.timing import Pace, plan_timing
from skytrain.plan.workload import Packed

RESERVE = int(4e9)
"""Bytes of a device's memory that the budget `auto` leaves free: 5% of 80 GB, what the plan may be wrong by."""


def choose(
    s: Setting, budget: int, packed: Packed, device: Device | None, *, compiled: bool, replicas: int = 1
) -> Policies | None:
    """A policy of each layer, such that the step's peak, all counted, is within `budget` bytes; None where none is.

    device: whose rates decide; without one the fewest recomputed FLOPs do, and nothing is offloaded. compiled: under
    train.compile a layer keeps operations or offloads them, not both.
    """

    def cost(policies: Policies) -> float:
        setting = replace(s, policies=policies)
        if device is not None:
            return plan_timing(setting, device, packed, replicas).step
        again = [recomputed_flops(s.model, policy) for policy in policies]
        return sum(products * packed.run_tokens + squared * packed.run_squares for products, squared in again)

    fitting = [policies for policies in _candidates(s, budget, packed, device, compiled) if fits(s, policies, budget)]
    return min(fitting, key=cost, default=None)


def fits(s: Setting, policies: Policies, budget: int) -> bool:
    return plan_memory(replace(s, policies=policies)).total <= budget


def _candidates(s: Setting, budget: int, packed: Packed, device: Device | None, compiled: bool) -> Iterator[Policies]:
    layers, ranked = s.model.num_hidden_layers, rank(s, packed, device)
    yield (None,) * layers
    yield _keep(s, (Policy(),) * layers, ranked, budget)
    if device is None:
        return
    hidden = _hidden_bytes(s, packed, device)
    each = {name: size * s.tokens for name, size in operation_bytes(s.model, s.itemsize).items()}
    if each["input"] <= hidden:
        yield _keep(s, (Policy(offload=frozenset({"input"})),) * layers, ranked, budget)
    # Moved: what saves most a byte, and (as kept operations are taken from that end) what saves least.
    for order in (("input", *ranked), ("input", *reversed(ranked))):
        moved = Policy(offload=frozenset(_within(each, order, hidden)))
        if moved.offload:
            yield _fill(s, (moved,) * layers, Policy(frozenset(OPERATIONS)), budget)
            if not compiled:
                rest = [name for name in ranked if name not in moved.offload]
                yield _keep(s, (moved,) * layers, rest, budget)


def rank(s: Setting, packed: Packed, device: Device | None) -> list[str]:
    """OPERATIONS, the most seconds saved a byte first (of FLOPs, where no device says what they take)."""
    length = packed.run_squares / packed.run_tokens
    matmul, attention = (device.product_rate(s.float8), device.attention_rate) if device else (1.0, 1.0)
    seconds = {name: product_flops(s.model)[name] / matmul for name in ("qkv", "o_proj", "gate", "up")}
    seconds["attention"] = attention_flops(s.model) * length / attention
    each = operation_bytes(s.model, s.itemsize)
    return sorted(OPERATIONS, key=lambda name: seconds[name] / each[name], reverse=True)


def _hidden_bytes(s: Setting, packed: Packed, device: Device) -> float:
    """What can go to the host while a layer of a full row computes its forward: the shorter of the two passes."""
    row = packed.tokens.argmax()
    full = packed.tokens.flat[row : row + 1], packed.squares.flat[row : row + 1]
    parts = Pace(replace(s, policies=(None,) * len(s.policies)), device).micro_batch(*full)
    seconds = (parts["matmul"] / 3 + parts["attention"] / 3.5).item() / len(s.policies)
    return seconds * device.offload_rate


def _within(sizes: dict[str, int], order: tuple[str, ...], most: float) -> list[str]:
    """Names in this order, without those that would be too much."""
    taken: list[str] = []
    for name in order:
        if sizes[name] + sum(sizes[other] for other in taken) <= most:
            taken.append(name)
    return taken


def _keep(s: Setting, policies: Policies, ranked: list[str], budget: int) -> Policies:
    """Each operation kept as well, in as many of the last layers as the budget allows."""
    for name in ranked:

        def added(count: int, policies: Policies = policies, name: str = name) -> Policies:
            first = len(policies) - count
            more = (replace(policy, keep=policy.keep | {name}) for policy in policies[first:])
            return (*policies[:first], *more)

        policies = added(_most(len(policies), lambda count, added=added: fits(s, added(count), budget)))
    return policies


def _fill(s: Setting, policies: Policies, other: Policy, budget: int) -> Policies:
    """`other` in as many of the last layers as the budget allows."""

    def added(count: int) -> Policies:
        return (*policies[: len(policies) - count], *(other,) * count)

    return added(_most(len(policies), lambda count: fits(s, added(count), budget)))


def _most(limit: int, good: Callable[[int], bool]) -> int:
    """The largest count up to `limit` that is good, where all below a good one are; 0 without any."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if good(middle) else (low, middle - 1)
    return low

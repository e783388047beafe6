"""The loop's problems: families of reasoning-gym, each with a way of working its problems out in writing.

The worked solutions are what the teacher is made from, and it alone; it is asked problems that it has never seen.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import reasoning_gym
from reasoning_gym.arithmetic.leg_counting import ANIMALS

Item = dict[str, Any]
"""question, answer and metadata, as reasoning-gym makes them."""


@dataclass(frozen=True)
class Family:
    """settings: reasoning-gym's own. key: what makes two problems one, whatever their wording and the order of their
    parts: those of one key have the same worked solution, or the same sums in another order. work: the lines of a
    worked solution, of which the last ends in the answer."""

    name: str
    settings: dict[str, Any]
    key: Callable[[Item], Hashable]
    work: Callable[[Item], list[str]]

    def items(self, count: int, seed: int) -> list[Item]:
        """`count` problems, all of them different."""
        found: dict[Hashable, Item] = {}
        size = count
        while len(found) < count:
            # Each item is seeded by its place, so that a larger set begins with the smaller one.
            for item in reasoning_gym.create_dataset(self.name, size=size, seed=seed, **self.settings):
                found.setdefault(self.key(item), item)
            size *= 2
        return list(found.values())[:count]


def _terms(item: Item) -> list[int]:
    return [int(term) for term in re.findall(r"[+-]?\d+", item["metadata"]["expression"].replace(" ", ""))]


def _running_totals(item: Item) -> list[str]:
    total, *rest = _terms(item)
    lines = []
    for term in rest:
        lines.append(f"{total}{term:+}={total + term}")
        total += term
    return lines


def _legs(item: Item) -> list[str]:
    lines, total = [], None
    for animal, count in item["metadata"]["animals"].items():
        legs = count * ANIMALS[animal]
        lines.append(f"{count}*{ANIMALS[animal]}={legs}")
        if total is not None:
            lines.append(f"{total}+{legs}={total + legs}")
        total = (total or 0) + legs
    return lines


def _isolated(item: Item) -> list[str]:
    """Of `a*x + b = c` first the constant goes to the right, then the factor."""
    variable = item["metadata"]["variable"]
    left, right = item["metadata"]["equation"].replace(" ", "").split("=")
    terms = re.findall(r"[+-]?[^+-]+", left)
    (constant,) = (int(term) for term in terms if variable not in term)
    (factor,) = (term.removesuffix(variable).removesuffix("*") for term in terms if variable in term)
    factor = int(factor if factor.strip("+-") else factor + "1")
    rest = int(right) - constant
    lines = [f"{right}{-constant:+}={rest}"]
    return lines if factor == 1 else [*lines, f"{rest}/{factor}={rest // factor}"]


def _equation(item: Item) -> str:
    return item["metadata"]["equation"].replace(item["metadata"]["variable"], "x")


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "chain_sum",
            {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 1},
            lambda item: tuple(sorted(_terms(item))),
            _running_totals,
        ),
        Family(
            "simple_equations",
            # Sums alone: of products nothing is left to solve.
            {"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 10, "operators_weights": [0.5, 0.5, 0.0]},
            _equation,
            _isolated,
        ),
        Family(
            "leg_counting",
            {"min_animals": 2, "max_animals": 3, "min_instances": 1, "max_instances": 5},
            lambda item: tuple(sorted((count, ANIMALS[name]) for name, count in item["metadata"]["animals"].items())),
            _legs,
        ),
    )
}


def family_of(item: Item) -> Family:
    return FAMILIES[item["metadata"]["source_dataset"]]


def worked(item: Item) -> str:
    """As the teacher writes: thoughts, a heading, the answer in a box."""
    return "\n".join(family_of(item).work(item)) + f"\n\n**Final Answer**\n\n{boxed(item)}"


def boxed(item: Item) -> str:
    return f"\\boxed{{{item['answer']}}}"


def make_parts(families: Iterable[str], counts: dict[str, int], seed: int) -> dict[str, list[Item]]:
    """Part to its problems in a random order; no problem is in two parts. counts: of each part, for each family."""
    parts: dict[str, list[Item]] = {part: [] for part in counts}
    choose = random.Random(seed)
    for name in families:
        items = FAMILIES[name].items(sum(counts.values()), seed)
        choose.shuffle(items)
        for part, count in counts.items():
            parts[part] += items[:count]
            del items[:count]
    for part in parts.values():
        choose.shuffle(part)
    return parts


def chat(system: str, question: str, answer: str) -> dict[str, Any]:
    turns = {"system": system, "user": question, "assistant": answer}
    return {"messages": [{"role": role, "content": text} for role, text in turns.items()]}

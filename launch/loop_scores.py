"""What the loop comes to: each model's score, and what separates two of them, with their intervals."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from skytrain.eval.results import Evaluation, Score
from skytrain.eval.scores import compare, score
from skytrain.prep.stage import Account, read_finished

Means = dict[str, dict[str, list[float]]]
"""Family to problem to its samples' values; ALL has the problems of every family."""
ALL = "all"
STAGES = ("generate", "rewrite", "grade", "kept", "ungraded")


def measured(folder: Path) -> Means:
    """folder: of a finished evaluation."""
    found: Means = defaultdict(lambda: defaultdict(list))
    evaluation = Evaluation(folder)
    for task in evaluation.results.tasks:
        for sample in evaluation.samples(task.name):
            right = float(sample.verdict == "correct")
            found[task.name][sample.id].append(right)
            found[ALL][f"{task.name}/{sample.id}"].append(right)
    found[ALL] = found.pop(ALL)  # the last one, as sums are
    return found


def summary(values: dict[str, Means], pairs: list[tuple[str, str]], data: Path) -> dict[str, Any]:
    """values: of each model. pairs: (before, after) each. data: the folder of the stages' accounts."""
    return {
        "scores": {
            model: {family: _plain(score(of)) for family, of in means.items()} for model, means in values.items()
        },
        "gains": {
            f"{before} -> {after}": {
                family: _plain(compare(values[before][family], values[after][family])) for family in values[after]
            }
            for before, after in pairs
        },
        "accounts": [msgspec.to_builtins(read_finished(data / f"{stage}.jsonl").account) for stage in STAGES],
    }


def _plain(score: Score) -> dict[str, Any]:
    return msgspec.to_builtins(score)


def told(found: dict[str, Any]) -> str:
    """The scores and gains as lines, in percent and in points."""
    families = list(next(iter(found["scores"].values())))
    width = max(map(len, [*found["scores"], *found["gains"]]))
    lines = [
        *(f"{name}: {_line(one)}" for name, one in zip(STAGES, found["accounts"], strict=True)),
        "",
        "  ".join([" " * width, *(f"{family:>22}" for family in families)]),
    ]
    for name, of in [*found["scores"].items(), *found["gains"].items()]:
        sign = "+" if name in found["gains"] else ""
        cells = (
            f"{100 * v['mean']:{sign}.1f} ({100 * v['low']:{sign}.1f} to {100 * v['high']:{sign}.1f})"
            for v in of.values()
        )
        lines.append("  ".join([f"{name:<{width}}", *(f"{cell:>22}" for cell in cells)]))
    return "\n".join(lines)


def _line(account: dict[str, Any]) -> str:
    """Without the stage's name, which two filters share."""
    return msgspec.convert(account, Account).line().partition(": ")[2]


def larger_than_its_interval(gain: dict[str, Any]) -> bool:
    """Whether a gain is more than the whole width of its 95% interval."""
    return gain["mean"] > gain["high"] - gain["low"]

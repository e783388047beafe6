"""Records what a finished loop came to, and draws it: python bench/loop_results.py [runs/loop]

Appends to bench/results/loop.csv the seconds of every stage, the accounts of the data, and each score and gain with its
interval. bench/results/loop.svg shows the newest full loop.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import record

sys.path.insert(0, str(Path(__file__).parents[1] / "launch"))

import loop_scores

matplotlib.use("svg")
import matplotlib.pyplot as plt

COLOURS = ["#a3aab8", "#d08770", "#2f6fb3", "#4c566a"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/loop"), help="default: runs/loop")
    folder = parser.parse_args().folder
    path = folder / "loop.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "scores" not in found:
        sys.exit(f"{folder}: holds no finished loop; make loop")
    print(record.append("loop", list(rows(found))))
    if found["settings"]["form"] == "full":
        print(draw(folder, found, record.RESULTS / "loop.svg"))


def rows(found: dict[str, Any]):
    def row(what: str, part: str, metric: str, value: float) -> dict[str, object]:
        settings = {key: found["settings"][key] for key in ("form", "seed")}
        return {**settings, "what": what, "part": part, "metric": metric, "value": value}

    for stage, seconds in found["seconds"].items():
        yield row("stage", stage, "seconds", round(seconds, 1))
    yield row("stage", "all", "seconds", round(sum(found["seconds"].values()), 1))
    for name, account in zip(loop_scores.STAGES, found["accounts"], strict=True):
        for metric in ("read", "kept"):
            yield row("rows", name, metric, account[metric] * (account["samples"] if metric == "read" else 1))
        for reason, count in account["dropped"].items():
            yield row("rows", name, f"dropped, {reason}", count)
    for what, of in [*found["scores"].items(), *found["gains"].items()]:
        for family, score in of.items():
            for metric in ("mean", "low", "high"):
                yield row(what, family, metric, round(score[metric], 4))


def draw(folder: Path, found: dict[str, Any], out: Path) -> Path:
    """Stages' minutes, losses of the trainings, and scores with their intervals."""
    # So that the same numbers are the same file.
    plt.rcParams.update({"svg.hashsalt": "loop", "font.size": 9})
    figure, (clock, losses, scores) = plt.subplots(1, 3, figsize=(13, 4.2), width_ratios=[1, 1, 1.7])
    stages = list(found["seconds"].items())
    starts = [sum(seconds for _, seconds in stages[:i]) / 60 for i in range(len(stages))]
    clock.barh(range(len(stages)), [s / 60 for _, s in stages], left=starts, color=COLOURS[2])
    clock.set_yticks(range(len(stages)), [textwrap.fill(title, 36) for title, _ in stages])
    clock.invert_yaxis()
    clock.set(xlabel="minutes", title="stages")
    models = list(found["scores"])
    for model, colour in zip(models, COLOURS):
        lines = map(json.loads, (folder / model / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        points = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
        losses.plot(*zip(*points), label=model, color=colour, linewidth=1.3)
    losses.set(yscale="log", xlabel="step", title="loss of a trained token (nats)")
    losses.legend(frameon=False, fontsize=8)
    families = list(found["scores"][models[0]])
    width = 0.8 / len(models)
    for i, (model, colour) in enumerate(zip(models, COLOURS)):
        of = [found["scores"][model][family] for family in families]
        means = [100 * score["mean"] for score in of]
        error = [[m - 100 * s["low"] for m, s in zip(means, of)], [100 * s["high"] - m for m, s in zip(means, of)]]
        places = [j + (i - (len(models) - 1) / 2) * width for j in range(len(families))]
        scores.bar(places, means, width, yerr=error, label=model, color=colour, capsize=2, error_kw={"linewidth": 0.9})
    scores.set_xticks(range(len(families)), [family.replace("_", "\n") for family in families])
    scores.set(ylim=(0, 100), title="held-out problems right, % (95% intervals)")
    scores.legend(frameon=False, fontsize=8, ncols=2)
    for axes in (clock, losses, scores):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None}, facecolor="white")
    return out


if __name__ == "__main__":
    main()

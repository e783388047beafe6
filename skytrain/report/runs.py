"""What is reported on: folders of training runs, of evaluations and of preparations, as they were left."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from skytrain import config
from skytrain.config import Config
from skytrain.errors import UserError
from skytrain.eval.results import Evaluation, Results, TaskResult
from skytrain.files import open_regular
from skytrain.report import prepared
from skytrain.report.prepared import Prepared

Line = dict[str, Any]
T = TypeVar("T")
WANTED = "the folder of a training run, an evaluation or a preparation"


@dataclass(frozen=True)
class Training:
    """lines: of metrics.jsonl, in its order. unread: lines that could not be read, as a killed process leaves one."""

    name: str
    config: Config
    lines: list[Line]
    unread: int

    def curve(self, key: str) -> list[tuple[int, float | None]]:
        """(step, value) of every line that has the key; None stands for NaN and infinity."""
        return [(line["step"], _number(line[key])) for line in self.lines if key in line]

    def values(self, key: str) -> list[float]:
        return [value for _, value in self.curve(key) if value is not None]

    def last(self, key: str) -> float | None:
        """None too where the last is not finite."""
        curve = self.curve(key)
        return curve[-1][1] if curve else None

    def typical(self, key: str) -> float | None:
        values = self.values(key)
        return statistics.median(values) if values else None

    @property
    def finished(self) -> bool:
        """The last line with a forecast of the time left says 0."""
        return self.last("eta_s") == 0

    @property
    def steps(self) -> int:
        return max((line["step"] for line in self.lines), default=0)

    @property
    def hours(self) -> float | None:
        """Seconds a step times the steps since the line before, over all lines."""
        curve = self.curve("step_s")
        seconds = [(step, value) for step, value in curve if value is not None]
        before = [0, *(step for step, _ in seconds)]
        return sum((step - last) * value for last, (step, value) in zip(before, seconds)) / 3600 if seconds else None


@dataclass(frozen=True)
class Evaluated:
    """name: the model's, and the folder's where two have one model."""

    name: str
    evaluation: Evaluation

    @property
    def results(self) -> Results:
        return self.evaluation.results

    @cached_property
    def tasks(self) -> dict[str, TaskResult]:
        return {task.name: task for task in self.results.tasks}


def read(folders: list[Path]) -> tuple[list[Training], list[Evaluated], list[Prepared]]:
    """Each in the order given. Raises `UserError` for a folder that is none of them, for an unfinished evaluation, and
    for a folder that stands twice."""
    if not folders:
        raise UserError(f"give {WANTED}")
    places = [os.path.realpath(folder) for folder in folders]
    if twice := [str(folder) for folder, place in zip(folders, places) if places.count(place) > 1]:
        raise UserError(f"{', '.join(twice)}: one folder, given more than once")
    found: dict[str, list[tuple[str, Path]]] = {kind: [] for kind in ("training", "evaluation", "preparation")}
    for folder, place in zip(folders, places):
        found[_kind(folder)].append((place, folder))
    evaluated = [(place, Evaluation(folder)) for place, folder in found["evaluation"]]
    return _named(found["training"], _training), _evaluated(evaluated), _named(found["preparation"], prepared.read)


def _named(found: list[tuple[str, Path]], reader: Callable[[str, Path], T]) -> list[T]:
    names = _apart([place for place, _ in found])
    return [reader(names[place], folder) for place, folder in found]


def _kind(folder: Path) -> str:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give {WANTED}")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give {WANTED}")
    for kind, names in (("evaluation", ("eval.json", "results.json")), ("training", ("metrics.jsonl", "config.toml"))):
        if any((folder / name).exists() for name in names):
            return kind
    if prepared.is_preparation(folder):
        return "preparation"
    raise UserError(
        f"{folder}: holds neither metrics.jsonl, as a training run's folder does, nor results.json, as an "
        "evaluation's does, nor a NAME.ledger.json or NAME/dataset.json, as a preparation's does"
    )


def _training(name: str, folder: Path) -> Training:
    settings = config.load(folder / "config.toml")
    path = folder / "metrics.jsonl"
    lines, unread = [], 0
    try:
        with open_regular(path) as file:
            for text in file:
                line = _line(text)
                if line is None:
                    unread += 1
                else:
                    lines.append(line)
    except FileNotFoundError:
        raise UserError(f"{path}: is not there; the run has logged nothing yet") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    return Training(name, settings, lines, unread)


def _line(text: bytes) -> Line | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    known = isinstance(line, dict) and type(line.get("step")) is int and 0 <= line["step"] < 2**53
    return line if known else None


def _number(value: Any) -> float | None:
    """None for what is no finite number: the trainer writes null, another program may write NaN."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _evaluated(found: list[tuple[str, Evaluation]]) -> list[Evaluated]:
    models = Counter(evaluation.results.model for _, evaluation in found)
    names = _apart([place for place, _ in found])
    evaluated = []
    for place, evaluation in found:
        model = evaluation.results.model
        evaluated.append(Evaluated(model if models[model] == 1 else f"{model} ({names[place]})", evaluation))
    return evaluated


def _apart(places: list[str]) -> dict[str, str]:
    """Each folder's name, with as many of the folders above it as tell all of them apart."""
    depth = 1
    while True:
        names = {place: "/".join(Path(place).parts[-depth:]) for place in places}
        if len(set(names.values())) == len(places):
            return names
        depth += 1

"""What a benchmark is: how its published rows become problems, and how their answers are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from skytrain.eval.judge import Judgement, judge
from skytrain.prep.importing import Unfit
from skytrain.prep.stage import Row


class Skip(Unfit):
    """A row of the right form that cannot be asked or judged, or of another set; it is left out, counted and told."""


@dataclass(frozen=True)
class Version:
    """A release of a benchmark that grows. files: their published names; problems: how many there are."""

    files: tuple[str, ...]
    problems: int


@dataclass(frozen=True)
class Task:
    """name: as on the command line, `aime24`; title: as in a table, `AIME 2024`.

    read: a published row to a problem of `skytrain.prep.problems`, with `part` (one of `parts`, or None) beside.
    Raises `Malformed` for a row that is not of this benchmark, and `Skip`. hub: NAME:CONFIG:SPLIT, as `hub.fetch` has
    it, with {version} where that is the configuration. problems: how many the published set has. versions: by name, for
    a benchmark that grows. dated: whether rows have a `contest_date` in their provenance, so that a window can be asked
    for.
    """

    name: str
    title: str
    read: Callable[[Row], Row]
    hub: str | None = None
    problems: int | None = None
    parts: tuple[str, ...] = ()
    versions: Mapping[str, Version] = field(default_factory=dict)
    dated: bool = False
    judge: Callable[[Row, str, str], Judgement] = judge

"""The report's numbers: scores beside the published ones, models compared, what became of the rows of data, and what a
training run took."""

from __future__ import annotations

import itertools
import math
import statistics
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from skytrain.eval.results import Part, Score, TaskResult
from skytrain.eval.scores import compare
from skytrain.report.prepared import Made, Prepared
from skytrain.report.runs import Evaluated, Training
from skytrain.report.samples import Counted

NONE = "–"
Counts = dict[tuple[str, str], Counted]
"""By a model's name and a task's."""


class PublishedRow(msgspec.Struct, forbid_unknown_fields=True):
    """part: "" for the whole. problems: of the published set. scores: percent, in the order of the models."""

    task: str
    title: str
    problems: int
    scores: list[float]
    part: str = ""
    note: str = ""


class Published(msgspec.Struct, forbid_unknown_fields=True):
    models: list[str]
    source: str
    rows: list[PublishedRow]


@cache
def published() -> Published:
    text = Path(__file__).with_name("published.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), Published)


@dataclass(frozen=True)
class Cell:
    """A model's score. truncated, missing: shares of the samples; None, as tokens, for a part. expected: in percent;
    met: as `TaskResult.met`."""

    score: Score
    problems: int
    samples: int
    truncated: float | None = None
    missing: float | None = None
    tokens: float | None = None
    expected: tuple[float, float] | None = None
    met: bool | None = None


@dataclass(frozen=True)
class ScoreRow:
    """ours: a cell a model, None where it was not asked. published: None where nothing is."""

    title: str
    part: str
    ours: list[Cell | None]
    published: list[float | None]


def score_rows(evaluated: list[Evaluated]) -> list[ScoreRow]:
    """The published benchmarks, if one of them was evaluated, and every other task that was."""
    known = {(row.task, row.part): row for row in published().rows}
    ours = {name for one in evaluated for name in one.tasks}
    rows = []
    for name, title in _titles(evaluated).items():
        parts = [part for task, part in known if task == name and part]
        parts += [part for one in evaluated if name in one.tasks for part in one.tasks[name].parts]
        whole = [""] if name in ours or (name, "") in known else []
        for part in dict.fromkeys([*whole, *parts]):
            cells = [_cell(one.tasks.get(name), part) for one in evaluated]
            row = known.get((name, part))
            rows.append(ScoreRow(title, part, cells, row.scores if row else [None] * len(published().models)))
    return rows


def _titles(evaluated: list[Evaluated]) -> dict[str, str]:
    """By the task's name, in the order of the table."""
    titles = {row.task: row.title for row in published().rows}
    ours = {name: task.title for one in evaluated for name, task in one.tasks.items()}
    return titles | ours if titles.keys() & ours.keys() else ours


def _cell(task: TaskResult | None, part: str) -> Cell | None:
    if task is None or (part and part not in task.parts):
        return None
    expected, met = task.expected.get(part), task.met(part)
    if not part:
        missing = task.verdicts.get("missing", 0) / (task.problems * task.samples)
        return Cell(task.score, task.problems, task.samples, task.truncated, missing, task.tokens, expected, met)
    found: Part = task.parts[part]
    return Cell(found.score, found.problems, task.samples, expected=expected, met=met)


def score_notes(evaluated: list[Evaluated]) -> list[str]:
    """What a reader of the score table has to know of the published columns and of how ours compare to them."""
    rows = published().rows
    asked = {name for one in evaluated for name in one.tasks}
    shown = [row for row in rows if asked & {known.task for known in rows}]
    notes = [f"Published scores: {published().source}."] if shown else []
    notes += [f"{row.note}." for row in shown if row.note]
    sizes: Counter[str] = Counter()
    for row in shown:
        sizes[row.task] += row.problems
    for one in evaluated:
        for name, task in one.tasks.items():
            if name in sizes and task.problems != sizes[name]:
                notes.append(
                    f"{task.title}: {one.name} was asked {task.problems:,} problems; the published set has "
                    f"{sizes[name]:,}."
                )
    return notes


def warnings(evaluated: list[Evaluated], counts: Counts) -> list[tuple[str, list[str]]]:
    """(model and task, what has to be known of it), where there is something."""
    found = []
    for one in evaluated:
        for name, task in one.tasks.items():
            told = list(task.warnings)
            if lost := counts[one.name, name].lost:
                told.append(f"the texts of {lost:,} samples are not shown: they are not in the folder's answers.jsonl")
            if told:
                found.append((f"{one.name}, {task.title}", told))
    return found


def pass_rows(evaluated: list[Evaluated]) -> tuple[list[int], list[tuple[str, str, list[Score | None]]]]:
    """(every k, (title, model, score by k)), in the score table's order; None where k is above the samples."""
    tasks = [(one.tasks[name], one.name) for name in _titles(evaluated) for one in evaluated if name in one.tasks]
    every = sorted({k for task, _ in tasks for k in task.pass_at})
    return every, [(task.title, name, [task.pass_at.get(k) for k in every]) for task, name in tasks]


@dataclass(frozen=True)
class Comparison:
    """Of two models on the problems of a task that both were asked. score: b less a, in shares of 1; None where no
    problem is common. left_out: problems of one model alone; changed: of one id, but with another question, gold or
    tests. differs: how the two were asked differently."""

    task: str
    a: str
    b: str
    score: Score | None
    problems: int
    better: int
    worse: int
    left_out: int
    changed: int
    differs: list[str]

    @property
    def verdict(self) -> str:
        if self.score is None:
            return "no common problem"
        if self.score.low > 0:
            return "better"
        return "worse" if self.score.high < 0 else "no difference shown"


def comparisons(evaluated: list[Evaluated], counts: Counts) -> list[Comparison]:
    """Of every two models with a task in common, the earlier one first."""
    found = []
    for a, b in itertools.combinations(evaluated, 2):
        for name in a.tasks:
            if name in b.tasks:
                found.append(_compared(a, b, name, counts[a.name, name], counts[b.name, name]))
    return found


def _compared(a: Evaluated, b: Evaluated, name: str, of_a: Counted, of_b: Counted) -> Comparison:
    both = [problem for problem in of_a.right if problem in of_b.right]
    same = [problem for problem in both if of_a.questions.get(problem) == of_b.questions.get(problem)]
    score = None
    if same:
        score = compare({p: of_a.right[p] for p in same}, {p: of_b.right[p] for p in same})
    gains = [statistics.fmean(of_b.right[p]) - statistics.fmean(of_a.right[p]) for p in same]
    return Comparison(
        task=a.tasks[name].title, a=a.name, b=b.name, score=score, problems=len(same),
        better=sum(gain > 0 for gain in gains), worse=sum(gain < 0 for gain in gains),
        left_out=len(of_a.right.keys() ^ of_b.right.keys()), changed=len(both) - len(same),
        differs=_differs(a, b, name),
    )  # fmt: skip


def _differs(a: Evaluated, b: Evaluated, name: str) -> list[str]:
    """What two scores depend on and do not share; of the servers what both evaluations were told."""
    keys = ("prompt", "system", "sampling", "samples", "seed", "version", "since", "until")
    found = [key for key in keys if getattr(a.tasks[name], key) != getattr(b.tasks[name], key)]
    digests = [sorted(sha256 for _, _, sha256 in one.tasks[name].data) for one in (a, b)]
    found += ["data"] if digests[0] != digests[1] else []
    found += ["sandbox"] if a.results.sandbox != b.results.sandbox else []
    for key in ("engine", "version", "dtype"):
        told = [{str(row[key]) for row in one.results.servers if row.get(key) is not None} for one in (a, b)]
        if all(told) and told[0] != told[1]:
            found.append(f"{key} of the servers")
    return found


@dataclass(frozen=True)
class StageRow:
    """Texts. do: what the stage does, where its name tells another thing. sources: what it has read: stages, or files
    from elsewhere. reasons: of what was dropped, most first."""

    name: str
    do: str
    sources: list[str]
    read: str
    kept: str
    dropped: str
    reasons: list[str]
    notes: list[str]


def stage_rows(one: Prepared) -> list[StageRow]:
    """In the order in which the stages read each other."""
    return [_stage_row(made, one) for made in one.stages]


def _stage_row(made: Made, one: Prepared) -> StageRow:
    stages = {other.file: other for other in one.stages if other is not made}
    sources = [stages[file].name if file in stages else file for file, _, _ in made.inputs] or [NONE]
    account = made.account
    if account is None:
        return StageRow(made.name, "", sources, NONE, NONE, NONE, [], ["unfinished"])
    notes = [] if made.verdicts is None or made.verdicts[1] <= 0 else [_correct(*made.verdicts)]
    notes += [_note(name, count) for name, count in account.notes.items()]
    for file, _, sha256 in made.inputs:
        if file in stages and stages[file].account is not None and stages[file].sha256 != sha256:
            notes.append(f"read another {file} than the one that is here now")
    reasons = sorted(account.dropped.items(), key=lambda item: (-item[1], item[0]))
    return StageRow(
        made.name, account.stage if account.stage != made.name else "", sources,
        f"{account.read:,}" + (f" × {account.samples:,}" if account.samples != 1 else ""), f"{account.kept:,}",
        f"{sum(account.dropped.values()):,}", [f"{reason} {count:,}" for reason, count in reasons], notes,
    )  # fmt: skip


def _correct(correct: int, judged: int) -> str:
    return f"{correct / judged:.1%} correct: {correct:,} of {judged:,} with a verdict"


def _note(name: str, count: float) -> str:
    if name == "USD":
        return f"{number(count)} USD"
    return f"{name} {count:,.0f}" if count % 1 == 0 and abs(count) < 2**53 else f"{name} {number(count)}"


DATA_SET = ("documents", "trained tokens", "context tokens", "longest document", "limit")


def data_set_rows(one: Prepared) -> list[tuple[str, list[str]]]:
    """(name, values in the order of DATA_SET) of each tokenised data set."""
    sets = [(made.name, made.tokens) for made in one.stages if made.tokens is not None]
    return [
        (name, [f"{value:,}" for value in (t.documents, t.trained, t.context, t.longest, t.limit)]) for name, t in sets
    ]


def training_facts(runs: list[Training]) -> list[tuple[str, list[str]]]:
    """(what, its value of each run)."""
    return [(name, [told(run) for run in runs]) for name, told in _FACTS]


def planned_rows(run: Training) -> list[tuple[str, str, str, str]]:
    """(what with its unit, planned, measured, measured / planned); what an unfinished run has measured so far."""
    rows = []
    for key, name in _MEASURED.items():
        planned = run.last(f"planned_{key}")
        measured = run.last(f"measured_{key}")
        if measured is None:
            measured = run.last(key) if key == "peak_memory_gib" else run.typical(key)
        ratio = f"{measured / planned:.2f}" if planned and measured is not None else NONE
        rows.append((name, number(planned), number(measured), ratio))
    return rows


_MEASURED = {"peak_memory_gib": "GiB at the peak", "step_s": "s a step", "tokens_per_s": "tokens/s"}


def number(value: float | None, form: str = ",.4g") -> str:
    """With four digits, and no exponent below a million."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if form == ",.4g" and 1000 <= abs(value) < 1e6 else f"{value:{form}}"


def state(run: Training) -> str:
    if run.finished:
        return f"finished, {run.steps:,} steps"
    left = run.last("eta_s")
    return f"unfinished: step {run.steps:,}" + (
        "" if left is None else f", with {clock(left)} left by its own forecast"
    )


def clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return NONE
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _time(run: Training) -> str:
    return NONE if run.hours is None else f"{run.hours:.2f} h" if run.hours >= 1 else clock(run.hours * 3600)


def _batch(run: Training) -> str:
    b = run.config.batch
    return f"{b.documents:,} documents" if b.documents is not None else f"{b.tokens:,} tokens"


def _mfu(run: Training) -> str:
    value = run.typical("mfu")
    return NONE if value is None else f"{value:.1%}"


def _final(key: str) -> Callable[[Training], str]:
    def told(run: Training) -> str:
        if not run.curve(key):
            return NONE
        value = run.last(key)
        return "not finite" if value is None else f"{value:.4g}"

    return told


def _at_most(steps: int | None) -> str:
    return "" if steps is None else f", and at most {steps:,} steps"


_FACTS: list[tuple[str, Callable[[Training], str]]] = [
    ("state", state),
    ("model", lambda run: run.config.model.path),
    ("data", lambda run: run.config.data.path),
    ("epochs", lambda run: f"{run.config.train.epochs}" + _at_most(run.config.train.max_steps)),
    ("batch", _batch),
    ("learning rate", lambda run: f"{run.config.optim.lr:g}, {run.config.schedule.name}"),
    ("optimizer", lambda run: f"{run.config.optim.name}, {run.config.optim.format}"),
    ("precision", lambda run: run.config.train.dtype + (f", {f}" if (f := run.config.train.float8) else "")),
    ("tokens", lambda run: f"{sum(run.values('tokens')):,.0f}"),
    ("trained tokens", lambda run: f"{sum(run.values('trained_tokens')):,.0f}"),
    ("last loss", _final("loss")),
    ("last validation loss", _final("validation_loss")),
    ("skipped steps", lambda run: number(run.last("skipped"), ",.0f")),
    ("time", _time),
    ("money", lambda run: number(run.last("money"), ",.2f")),
    ("MFU (median)", _mfu),
    ("lines not read", lambda run: f"{run.unread}"),
]

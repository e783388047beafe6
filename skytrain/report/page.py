"""The page: one file of HTML that asks nothing of a network, written piece by piece.

Samples' texts are packed in chunks that the page's own script unpacks when one is opened. Whatever a model or a
problem says gets into the page in three ways alone: escaped by the template, as base64, or as JSON without "<".
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from skytrain import __version__
from skytrain.prep.stage import partial
from skytrain.report import markdown, tables
from skytrain.report.curves import Series, plot
from skytrain.report.prepared import Prepared
from skytrain.report.runs import Evaluated, Training
from skytrain.report.samples import bins, texts, whole

MARK = "skytrain report"
"""Stands in the first line of both files."""
CHUNK = 1_000_000
"""Characters of texts before packing."""
HERE = Path(__file__).parent


def write(
    out: Path,
    training: list[Training],
    evaluated: list[Evaluated],
    prepared: list[Prepared],
    counts: tables.Counts,
    compared: list[tables.Comparison],
) -> None:
    """The file is as it was until all is written."""
    pieces = _pieces(training, evaluated, prepared, counts, compared)
    try:
        with open(partial(out), "w", encoding="utf-8", newline="\n") as file:
            for piece in pieces:
                # What the file cannot hold, or a parser of HTML takes for something else, is replaced.
                file.write(whole(piece).replace("\0", "\ufffd"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial(out), out)
    except BaseException:
        partial(out).unlink(missing_ok=True)
        raise


def _pieces(
    training: list[Training],
    evaluated: list[Evaluated],
    prepared: list[Prepared],
    counts: tables.Counts,
    compared: list[tables.Comparison],
) -> Iterator[str]:
    # Jinja gives out a template as it goes, so that one chunk at a time is in memory; the index is known after them.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    css, script = (HERE / "page.css").read_text(encoding="utf-8"), (HERE / "page.js").read_text(encoding="utf-8")
    packed = Packed(evaluated)
    every, passes = tables.pass_rows(evaluated)
    rows = tables.score_rows(evaluated)
    given = [one.name for one in evaluated] + [f"data {one.name}" for one in prepared]
    given += [f"training run {run.name}" for run in training]
    return environment.get_template("page.html").generate(
        mark=MARK, version=__version__, css=Markup(css), script=Markup(script), css_digest=digest(css),
        script_digest=digest(script), training=training, evaluated=evaluated, prepared=prepared, rows=rows,
        others=tables.published().models if any(v is not None for row in rows for v in row.published) else [],
        warnings=tables.warnings(evaluated, counts), notes=tables.score_notes(evaluated), every=every, passes=passes,
        compared=compared, facts=tables.training_facts(training), curves=training_curves(training),
        lengths=lengths(evaluated, counts),
        samples=sum(len(right) for one in counts.values() for right in one.right.values()),
        asked=[(one, task, settings(one, task)) for one in evaluated for task in one.results.tasks],
        packed=packed, tables=tables, markdown=markdown, given=given,
    )  # fmt: skip


def digest(text: str) -> str:
    """As a policy of contents names the one script, and the one style sheet, that may be used."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def training_curves(runs: list[Training]) -> list[Markup]:
    """Loss with validation loss, learning rate, gradient's norm and throughput; those that have a value."""
    loss = []
    for i, run in enumerate(runs):
        loss.append(Series(run.name, run.curve("loss"), i))
        if run.values("validation_loss"):
            loss.append(Series(f"{run.name}, validation", run.curve("validation_loss"), i, dots=True))
    figures = [plot("Loss", loss, "step", "nats a trained token")]
    for key, title, unit in (
        ("lr", "Learning rate", "of the optimizer"),
        ("grad_norm", "Gradient norm", "before clipping"),
        ("tokens_per_s", "Throughput", "tokens/s"),
    ):
        lines = [Series(run.name, run.curve(key), i) for i, run in enumerate(runs)]
        figures.append(plot(title, lines, "step", unit, zero=key != "grad_norm"))
    return [figure for figure in figures if figure]


def lengths(evaluated: list[Evaluated], counts: tables.Counts) -> list[dict[str, Any]]:
    """Of each task: its title, a figure, and a row a bin: (model, fewest and most tokens, samples, share right)."""
    titles = {name: task.title for one in evaluated for name, task in one.tasks.items()}
    found = []
    for name, title in titles.items():
        lines, rows = [], []
        for i, one in enumerate(evaluated):
            if name not in one.tasks:
                continue
            groups = bins(counts[one.name, name].lengths)
            lines.append(Series(one.name, [((low + high) / 2, share * 100) for low, high, _, share in groups], i, True))
            rows += [(one.name, *group) for group in groups]
        missing = sum(counts[one.name, name].missing for one in evaluated if name in one.tasks)
        figure = plot(title, lines, "tokens of the answer, middle of the bin", "percent right", zero=True, top=100.0)
        found.append({"title": title, "figure": figure, "rows": rows, "missing": missing})
    return found


def settings(one: Evaluated, task: Any) -> list[tuple[str, str]]:
    """What was asked, how, and of what."""
    r = one.results
    window = " to ".join(day or "…" for day in (task.since, task.until)) if task.since or task.until else tables.NONE
    found = [
        ("problems", f"{task.problems:,} with {task.samples} samples each"),
        ("skipped rows", _pairs(task.skipped)),
        ("verdicts", _pairs(task.verdicts)),
        ("prompt", ", ".join(task.prompt)),
        ("system prompt", task.system),
        ("sampling", _pairs(task.sampling)),
        ("seed", str(task.seed)),
        ("version", task.version or tables.NONE),
        ("dates of the problems", window),
        *((f"data: {name}", f"{size:,} bytes, sha256 {sha256}") for name, size, sha256 in task.data),
        *((f"server {i}", _pairs(_told(server))) for i, server in enumerate(r.servers, 1)),
        ("sandbox", r.sandbox),
        ("tokens of the evaluation", f"{r.prompt_tokens:,} asked, {r.completion_tokens:,} answered"),
        ("money of the evaluation", tables.NONE if r.money is None else f"{r.money:,.2f} USD"),
        ("made", r.made),
        ("folder", str(one.evaluation.folder)),
    ]
    return found


def _told(server: dict[str, Any]) -> dict[str, Any]:
    return {key: "not told" if value is None else value for key, value in server.items()}


def _pairs(values: dict[str, Any]) -> str:
    told = [
        f"{key} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
    ]
    return ", ".join(told) or tables.NONE


class Packed:
    """The texts of all samples. `chunks` goes through them once; then `index` is whole."""

    def __init__(self, evaluated: list[Evaluated]):
        self._evaluated = evaluated
        self._tasks = {name: task.title for one in evaluated for name, task in one.tasks.items()}
        self._verdicts: dict[str, int] = {}
        self._problems: dict[str, int] = {}
        self._columns: dict[str, list[int]] = {
            key: [] for key in ("model", "task", "problem", "sample", "verdict", "tokens")
        }
        self._starts: list[int] = []

    def chunks(self) -> Iterator[Markup]:
        """Each a JSON list of samples' texts, gzip, base64."""
        numbers = {name: i for i, name in enumerate(self._tasks)}
        held: list[str] = []
        size = start = 0
        for model, task, sample, text in texts(self._evaluated):
            row = {
                "model": model,
                "task": numbers[task],
                "problem": self._problems.setdefault(whole(sample.id), len(self._problems)),
                "sample": sample.sample,
                "verdict": self._verdicts.setdefault(sample.verdict, len(self._verdicts)),
                "tokens": sample.tokens,
            }
            for key, value in row.items():
                self._columns[key].append(value)
            held.append(whole(json.dumps({**text, "part": sample.part, "status": sample.status}, ensure_ascii=False)))
            size += len(held[-1])
            if size >= CHUNK:
                yield self._pack(held, start)
                start += len(held)
                held, size = [], 0
        if held:
            yield self._pack(held, start)

    def _pack(self, held: list[str], start: int) -> Markup:
        self._starts.append(start)
        return Markup(base64.b64encode(gzip.compress(f"[{','.join(held)}]".encode(), 6, mtime=0)).decode())

    def index(self) -> Markup:
        """JSON in which no text can end the script element, or begin a comment."""
        found = {
            "models": [whole(one.name) for one in self._evaluated],
            "tasks": [whole(title) for title in self._tasks.values()],
            "verdicts": list(self._verdicts),
            "problems": list(self._problems),
            "starts": self._starts,
            **self._columns,
        }
        return Markup(json.dumps(found, separators=(",", ":")).replace("<", "\\u003c"))

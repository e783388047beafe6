"""The report's tables as Markdown."""

from __future__ import annotations

from skytrain.errors import one_line
from skytrain.eval.results import Score
from skytrain.report.prepared import Prepared
from skytrain.report.runs import Evaluated, Training
from skytrain.report.samples import whole
from skytrain.report.tables import (
    DATA_SET,
    NONE,
    Cell,
    Comparison,
    Counts,
    data_set_rows,
    pass_rows,
    planned_rows,
    published,
    score_notes,
    score_rows,
    stage_rows,
    training_facts,
    warnings,
)


def scores(evaluated: list[Evaluated], counts: Counts) -> str:
    """The score table with its notes and warnings; "" where nothing was evaluated."""
    if not evaluated:
        return ""
    rows = score_rows(evaluated)
    others = published().models if any(value is not None for row in rows for value in row.published) else []
    head = ["benchmark", *(one.name for one in evaluated), *(f"{model} (published)" for model in others)]
    body = [
        [
            f"{row.title} {row.part}".strip(),
            *(cell_text(cell) for cell in row.ours),
            *(NONE if value is None else f"{value:.1f}" for value in row.published[: len(others)]),
        ]
        for row in rows
    ]
    told = [f"Warning: {of}: {warning}" for of, found in warnings(evaluated, counts) for warning in found]
    lines = "".join(f"\n- {_plain(note)}" for note in [*told, *score_notes(evaluated)])
    about = "Percent right (95% interval); problems x samples; cut off at the limit of tokens; missing; mean tokens."
    return f"{table(head, body)}\n{about}\n{lines}\n"


def cell_text(cell: Cell | None) -> str:
    if cell is None:
        return NONE
    parts = [_interval(cell.score), f"{cell.problems:,} x {cell.samples}"]
    if cell.truncated is not None:
        parts.append(f"{cell.truncated:.1%} cut")
    if cell.missing:
        parts.append(f"{cell.missing:.1%} missing")
    if cell.tokens is not None:
        parts.append(f"{cell.tokens:,.0f} tokens")
    if cell.expected is not None:
        low, high = cell.expected
        met = {True: ": met", False: ": NOT met", None: " (of the whole set)"}[cell.met]
        parts.append(f"expected {low:g} to {high:g}{met}")
    return "; ".join(parts)


def _interval(score: Score) -> str:
    return f"{score.mean * 100:.1f} ({score.low * 100:.1f} to {score.high * 100:.1f})"


def report(
    training: list[Training],
    evaluated: list[Evaluated],
    prepared: list[Prepared],
    counts: Counts,
    compared: list[Comparison],
) -> str:
    """All tables, each under its heading."""
    parts = ["# skytrain report\n"]
    if evaluated:
        parts.append("## Scores\n\n" + scores(evaluated, counts))
    every, rows = pass_rows(evaluated)
    if every:
        body = [[title, name, *(NONE if s is None else _interval(s) for s in by_k)] for title, name, by_k in rows]
        parts.append(
            "### pass@k, percent (95% interval)\n\n" + table(["benchmark", "model", *(f"k = {k}" for k in every)], body)
        )
    if compared:
        parts.append("## Did the training help?\n\n" + comparison(compared))
    if prepared:
        parts.append("## Data\n")
        parts += [data(one) for one in prepared]
    if training:
        facts = [[name, *values] for name, values in training_facts(training)]
        parts.append("## Training runs\n\n" + table(["", *(run.name for run in training)], facts))
        planned = [[run.name, *row] for run in training for row in planned_rows(run)]
        head = ["run", "what", "planned", "measured", "measured / planned"]
        parts.append("### Planned and measured\n\n" + table(head, planned))
    return "\n".join(parts)


def data(one: Prepared) -> str:
    """What became of the rows, and the tokenised data sets."""
    body = [
        [told(row.name, row.do), ", ".join(row.sources), row.read, row.kept, told(row.dropped, "; ".join(row.reasons)),
         "; ".join(row.notes)]
        for row in stage_rows(one)
    ]  # fmt: skip
    text = f"### {_plain(one.name)}\n\n" + table(["stage", "from", "read", "kept", "dropped", "notes"], body)
    sets = data_set_rows(one)
    return text + ("\n" + table(["tokenised", *DATA_SET], [[name, *values] for name, values in sets]) if sets else "")


def told(what: str, more: str) -> str:
    return f"{what} ({more})" if more else what


def comparison(compared: list[Comparison]) -> str:
    head = ["benchmark", "from", "to", "points (95% interval)", "verdict", "problems", "better", "worse", "notes"]
    return table(head, [[c.task, c.a, c.b, difference(c), c.verdict, f"{c.problems:,}", f"{c.better:,}", f"{c.worse:,}",
                         "; ".join(comparison_notes(c))] for c in compared])  # fmt: skip


def difference(c: Comparison) -> str:
    if c.score is None:
        return NONE
    return f"{c.score.mean * 100:+.1f} ({c.score.low * 100:+.1f} to {c.score.high * 100:+.1f})"


def comparison_notes(c: Comparison) -> list[str]:
    notes = []
    if c.left_out:
        notes.append(f"{c.left_out:,} problems of one of them alone left out")
    if c.changed:
        notes.append(f"{c.changed:,} problems of one id, but with another question, gold or tests, left out")
    if c.differs:
        notes.append(f"asked differently: {', '.join(c.differs)}")
    return notes


def table(head: list[str], rows: list[list[str]]) -> str:
    """The first column is left-aligned, the others right."""
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(_plain(text) for text in line)} |\n" for line in lines)


def _plain(text: str) -> str:
    """On one line, and nothing of it a cell's end, a tag or a link."""
    text = one_line(whole(text))
    for sign in "\\|<`[":
        text = text.replace(sign, "\\" + sign)
    return text

"""`skytrain prep label`: a difficulty from 1 to 10 for problems that have none, by a model's judgement."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from skytrain.help import HelpFormatter
from skytrain.prep.asking import Model, add_model_arguments, ask_all, log_of, model_of, spent
from skytrain.prep.client import Request
from skytrain.prep.problems import check_problem
from skytrain.prep.prompts import messages
from skytrain.prep.stage import Row, Stage, add_stage_arguments, guarded, run_stage

_LABEL = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
LONGEST_REFERENCE = 4000
"""Characters of a reference solution that are shown."""


def label(
    inputs: list[str | Path],
    out: str | Path,
    model: Model,
    *,
    relabel: bool = False,
    on_error: str = "error",
    overwrite: bool = False,
) -> None:
    """Writes every problem; those that the model gave no label keep null, and are counted.

    relabel: ask for problems that have a difficulty too. Raises `UserError`, and KeyboardInterrupt.
    """
    settings = {**model.settings("label"), "relabel": relabel}
    stage = Stage("label", inputs, out, settings, check=check_problem, on_error=on_error)
    run_stage(stage, lambda stage: _work(stage, model, relabel), overwrite=overwrite)


def _work(stage: Stage, model: Model, relabel: bool) -> None:
    version = model.prompts.version("label")

    def wanted(row: Row) -> bool:
        return relabel or row.get("difficulty") is None

    def request(row: Row) -> Request:
        reference = row.get("gold") or (row.get("solution") or "none is known")[:LONGEST_REFERENCE]
        text = model.prompts.render("label", prompt=row["prompt"], reference=reference)
        return model.request(messages(None, text), version)

    notes = stage.notes
    with log_of(stage.out) as log:
        ask_all("label", model, log, (request(row) for row in stage.peek() if wanted(row)))
        notes.update({"labelled": 0, "unlabelled": 0})
        for _, row in stage.rows():
            if not wanted(row):
                notes["had one"] = notes.get("had one", 0) + 1
                stage.keep(row)
                continue
            asked = request(row)
            record = log.get(asked.key)
            found = difficulty_of(record["answer"]) if record and record["status"] == "finished" else None
            notes["unlabelled" if found is None else "labelled"] += 1
            made = {}
            if record is not None:
                spent(stage, model, [record])
                made = {"label": model.provenance(version, asked, record)}
            stage.keep({**row, "difficulty": found, "provenance": {**row.get("provenance", {}), **made}})


def difficulty_of(answer: str) -> float | int | None:
    """The last `[[n]]` with n from 1 to 10; None where there is none."""
    found = [float(number) for number in _LABEL.findall(answer)]
    found = [number for number in found[-1:] if 1 <= number <= 10]
    return None if not found else int(found[0]) if found[0].is_integer() else found[0]


def register(subparsers: Any) -> None:
    """Adds `label` to the parsers of `skytrain prep`."""
    parser = subparsers.add_parser(
        "label",
        help="ask a model how hard problems are",
        description="Asks a model for the difficulty, from 1 to 10, of the problems that have none, and writes it into "
        "their rows. Asks only what OUT.answers.jsonl does not hold, so that a run that was ended goes on.",
        epilog="Example:\n  skytrain prep label problems.jsonl --out labelled.jsonl --server http://127.0.0.1:8000/v1 "
        "--model MODEL",
        formatter_class=HelpFormatter,
    )
    add_stage_arguments(parser)
    parser.add_argument("--relabel", action="store_true", help="ask also for problems that have a difficulty")
    add_model_arguments(parser, temperature=0.0, max_tokens=2048)
    parser.set_defaults(run=run, check=model_of)


def run(args: argparse.Namespace) -> int:
    settings = {"relabel": args.relabel, "on_error": args.on_error, "overwrite": args.overwrite}
    return guarded(lambda: label(args.inputs, args.out, model_of(args), **settings), args.out)

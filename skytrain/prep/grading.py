"""`skytrain prep grade`: keeps the replies whose answer is right.

Verdicts go to OUT.verdicts.jsonl as they are made, so that a run that was ended goes on. A row is kept for one verdict
alone, `correct`; every other one is a reason of its own. A HumanEval check is recorded and decides nothing, since it
is the weaker test: such rows are kept whatever it says.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from skytrain.errors import UserError
from skytrain.help import HelpFormatter
from skytrain.prep.answers import AnswerLog, key_of
from skytrain.prep.grade import grade_code, grade_math, grade_text
from skytrain.prep.grade.code import BadTests
from skytrain.prep.grade.extract import answer_of, boxes
from skytrain.prep.grade.fences import program_of
from skytrain.prep.grade.sandbox import check_level
from skytrain.prep.judging import Record, TestsDigests, judged
from skytrain.prep.problems import Malformed, check_problem
from skytrain.prep.sections import Irregular, check_think, sections
from skytrain.prep.stage import Row, Stage, add_stage_arguments, beside, guarded, progress_bar, run_stage

VERSION = 2
"""Of the verdicts: raised where a logged one could no longer be given."""


def grade(
    inputs: list[str | Path],
    out: str | Path,
    *,
    workers: int | None = None,
    ungraded: Literal["drop", "keep"] = "drop",
    sandbox: str = "bubblewrap",
    on_error: str = "error",
    overwrite: bool = False,
) -> None:
    """Writes the rows with a `verdict`.

    workers: programs or answers looked at a time; one a core if None. ungraded: what rows without a gold answer or
    tests do. sandbox: see `grade_code`. Raises `UserError`, and KeyboardInterrupt.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    settings = {"ungraded": ungraded, "sandbox": sandbox, "version": VERSION}
    stage = Stage("grade", inputs, out, settings, check=_check, on_error=on_error)
    run_stage(
        stage,
        lambda stage: _Grading(stage, workers or len(os.sched_getaffinity(0)), ungraded, sandbox).work(),
        overwrite=overwrite,
    )


def _check(row: Row) -> None:
    check_problem(row)
    talk = row.get("messages")
    if not isinstance(talk, list) or not talk or not isinstance(talk[-1], dict):
        raise Malformed("'messages' must be a list that ends in the reply, as `skytrain prep rewrite` writes it")
    if talk[-1].get("role") != "assistant" or not isinstance(talk[-1].get("content"), str):
        raise Malformed("the last message must be the assistant's, and its content text")
    if row.get("form") not in ("tags", "think"):
        raise Malformed("'form' must be tags or think, as `skytrain prep rewrite` writes it")


class Verdict(msgspec.Struct):
    """A line of the log."""

    key: str
    status: str
    id: str
    detail: str


class _Grading:
    def __init__(self, stage: Stage, workers: int, ungraded: str, sandbox: str):
        self._stage, self._workers, self._ungraded, self._sandbox = stage, workers, ungraded, sandbox
        self._digests = TestsDigests()

    def work(self) -> None:
        with AnswerLog(beside(self._stage.out, "verdicts.jsonl"), Verdict) as log, progress_bar() as bar:
            task = bar.add_task("grading", total=None)
            for where, row, verdict, detail in self._verdicts(log):
                bar.advance(task)
                self._take(where, row, verdict, detail)
        if self._sandbox != "bubblewrap":
            self._stage.notes[f"sandbox {self._sandbox}, weaker"] = 1

    def _verdicts(self, log: AnswerLog) -> Iterator[tuple[str, Row, str, str]]:
        """In the order of the rows."""

        def work() -> Iterator[tuple[tuple[str, Row], str, Callable[[], Record]]]:
            for where, row in self._stage.rows():
                key = self._key(row)
                yield (where, row), key, partial(self._record, key, row)

        for (where, row), found in judged(log, work(), self._workers):
            yield where, row, found["status"], found["detail"]

    def _record(self, key: str, row: Row) -> Record:
        verdict, detail = self._judge(row)
        return {"key": key, "status": verdict, "id": row["id"], "detail": detail}

    def _key(self, row: Row) -> str:
        """Of all that decides the verdict."""
        parts = (
            row["messages"][-1]["content"],
            row["form"],
            row["domain"],
            row.get("gold"),
            row.get("solution"),
            self._digests(row.get("tests")),
        )
        return key_of(VERSION, self._sandbox, *parts)

    def _judge(self, row: Row) -> tuple[str, str]:
        """(verdict, detail). Whether the reply is right is asked before whether its reference is: most are wrong."""
        try:
            parts = (check_think if row["form"] == "think" else sections)(row["messages"][-1]["content"])
        except Irregular as error:
            return "no_tags", str(error)
        if row["domain"] == "code":
            return self._judge_program(row, parts[1])
        if row.get("gold") is None:
            return "ungraded", "no gold answer"
        # The whole of the reply's answer is passed on, and not the reply: its tags were looked at.
        judge = grade_text if row["domain"] == "other" else grade_math
        verdict = judge(parts[1], row["gold"])
        reference = row.get("solution") or ""
        if verdict == "correct" and any(boxes(reference)) and judge(reference, row["gold"]) != "correct":
            return "bad_reference", "the reference solution's box is not the gold answer"
        return (
            verdict,
            "" if verdict == "correct" else f"answer {_told(answer_of(parts[1]))}, gold {_told(row['gold'])}",
        )

    def _judge_program(self, row: Row, solution: str) -> tuple[str, str]:
        tests = row.get("tests")
        if not tests:
            return "ungraded", "no tests"
        program = program_of(solution)
        if program is None:
            return "no_answer", "no code block of Python in the solution"
        try:
            verdict = grade_code(program, tests, sandbox=self._sandbox)
        except BadTests as error:
            return "bad_tests", str(error)
        reference = row.get("solution")
        if verdict == "correct" and reference:
            of_reference = grade_code(program_of(reference) or reference, tests, sandbox=self._sandbox)
            if of_reference != "correct":
                return "bad_reference", f"the reference solution is {of_reference}"
        return verdict, ""

    def _take(self, where: str, row: Row, verdict: str, detail: str) -> None:
        weak = "check" in (row.get("tests") or {})
        notes = self._stage.notes
        if weak:
            name = f"{verdict} by the weaker check"
            notes[name] = notes.get(name, 0) + 1
        if verdict == "ungraded":
            notes["ungraded"] = notes.get("ungraded", 0) + 1
        wanted = verdict == "correct" or (verdict == "ungraded" and self._ungraded == "keep")
        if not wanted and not (weak and verdict not in ("no_tags", "no_answer")):
            self._stage.drop(row, verdict, detail, where)
            return
        made = {"verdict": verdict, "version": VERSION, "strength": "weak" if weak else "full"}
        if row["domain"] == "code":
            made["sandbox"] = self._sandbox
        self._stage.keep({**row, "verdict": verdict, "provenance": {**row.get("provenance", {}), "grade": made}})


def _told(text: str | None) -> str:
    return repr(text if text is None or len(text) <= 200 else f"{text[:200]}...")


def register(subparsers: Any) -> None:
    """Adds `grade` to the parsers of `skytrain prep`."""
    parser = subparsers.add_parser(
        "grade",
        help="keep the replies that are right",
        description="Compares each reply's answer with the problem's gold, or runs its program on the problem's tests. "
        "Keeps the verdict `correct`, and drops every other one under its name. A HumanEval check is the weaker test: "
        "its verdict is recorded and told, and neither drops a row nor is taken for a proof.",
        epilog="Example:\n  skytrain prep grade rewritten.jsonl --out graded.jsonl",
        formatter_class=HelpFormatter,
    )
    add_stage_arguments(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="replies graded at a time (default: one a core)")
    parser.add_argument(
        "--ungraded", choices=("drop", "keep"), default="drop", help="what becomes of rows without gold and tests"
    )
    parser.add_argument(
        "--sandbox",
        choices=("bubblewrap", "process"),
        default="bubblewrap",
        help="where programs run; process: with limits of time and memory only, not isolated from this machine",
    )
    parser.set_defaults(run=run, check=lambda args: check_level(args.sandbox))


def run(args: argparse.Namespace) -> int:
    settings = {"workers": args.workers, "ungraded": args.ungraded, "sandbox": args.sandbox}
    settings |= {"on_error": args.on_error, "overwrite": args.overwrite}
    return guarded(lambda: grade(args.inputs, args.out, **settings), args.out)

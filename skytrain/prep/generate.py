"""`skytrain prep generate`: a teacher's answers to problems, one row a sample."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skytrain.errors import UserError
from skytrain.help import HelpFormatter
from skytrain.prep.asking import Model, add_model_arguments, ask_all, log_of, model_of, spent, unanswered, unfinished
from skytrain.prep.client import Request
from skytrain.prep.problems import check_problem
from skytrain.prep.prompts import messages
from skytrain.prep.stage import Row, Stage, add_stage_arguments, guarded, run_stage


def generate(
    inputs: list[str | Path],
    out: str | Path,
    model: Model,
    *,
    samples: int = 1,
    system: bool = True,
    on_error: str = "error",
    overwrite: bool = False,
) -> None:
    """Writes a row for each problem and sample whose answer is whole; the others are dropped by their status.

    system: whether the teacher's system prompt is sent. Raises `UserError`, and KeyboardInterrupt; the answers stay
    logged.
    """
    if samples < 1:
        raise UserError(f"--samples {samples}: must be at least 1")
    settings = {**model.settings("teacher."), "samples": samples, "system": system}
    stage = Stage("generate", inputs, out, settings, check=check_problem, on_error=on_error, samples=samples)
    run_stage(stage, lambda stage: _Generation(stage, model, samples, system).work(), overwrite=overwrite)


class _Generation:
    def __init__(self, stage: Stage, model: Model, samples: int, system: bool):
        self._stage, self._model, self._samples, self._system = stage, model, samples, system

    def work(self) -> None:
        with log_of(self._stage.out) as log:
            failed = ask_all("generate", self._model, log, self._requests())
            self._seen: Counter[tuple[str, bytes]] = Counter()
            ids = set()
            for where, row in self._stage.rows():
                if row["id"] in ids:
                    self._stage.drop(row, "duplicate_id", "a row before it has this id", where, self._samples)
                    continue
                ids.add(row["id"])
                for sample in range(self._samples):
                    request, version = self._request(row, sample)
                    record = log.get(request.key)
                    if record is None:
                        self._stage.drop(row, *unanswered(failed.get(request.key)), where)
                    else:
                        spent(self._stage, self._model, [record])
                        made = self._model.provenance(version, request, record)
                        self._take({**row, "asked": _asked(request)}, sample, record, made, where)
        self._warn()

    def _requests(self) -> Iterator[Request]:
        ids = set()
        for row in self._stage.peek():
            if row["id"] in ids:
                continue
            ids.add(row["id"])
            for sample in range(self._samples):
                yield self._request(row, sample)[0]

    def _request(self, row: Row, sample: int) -> tuple[Request, str]:
        name = f"teacher.{form_of(row)}"
        names = ("teacher.system", name) if self._system else (name,)
        version = self._model.prompts.version(*names)
        prompt, starter = row["prompt"], row.get("starter") or ""
        if starter.strip() == prompt.strip():  # HumanEval's question is the code that its answer begins with.
            prompt = "Complete the function below, as its text asks."
        user = self._model.prompts.render(name, prompt=prompt, starter=starter)
        system = self._model.prompts.render("teacher.system") if self._system else None
        return self._model.request(messages(system, user), version, sample), version

    def _take(self, row: Row, sample: int, record: dict[str, Any], made: dict[str, Any], where: str) -> None:
        reason = unfinished(record)
        if reason is not None:
            detail = (
                f"{record['status']}, finish_reason {record['finish_reason']}, {record['completion_tokens']} tokens"
            )
            self._stage.drop({"id": row["id"], "sample": sample}, reason, detail, where)
            return
        digest = hashlib.sha256(f"{record['reasoning']}\0{record['answer']}".encode(errors="replace")).digest()[:8]
        self._seen[row["id"], digest] += 1
        self._stage.keep(
            {
                **row,
                "id": row["id"] if self._samples == 1 else f"{row['id']}#{sample}",
                "problem": row["id"],
                "sample": sample,
                "reasoning": record["reasoning"],
                "answer": record["answer"],
                "provenance": {**row.get("provenance", {}), "generate": made},
            }
        )

    def _warn(self) -> None:
        """Samples that equal another of their problem are paid for twice, and tell nothing new."""
        same = sum(count - 1 for count in self._seen.values())
        if same:
            self._stage.notes["identical samples"] = same
            if self._model.sampling.temperature > 0:
                print(
                    f"warning: {same:,} samples equal another of the same problem, at temperature "
                    f"{self._model.sampling.temperature:g}; does the server look at `seed`?",
                    file=sys.stderr,
                )


def _asked(request: Request) -> str:
    return request.body["messages"][-1]["content"]


def form_of(row: Row) -> str:
    """Which text asks for it: the domain, or for code whether a program or a function is wanted."""
    if row["domain"] != "code":
        return row["domain"]
    tests = row.get("tests") or {}
    return "function" if tests.get("fn_name") or "check" in tests or row.get("starter") else "stdin"


def register(subparsers: Any) -> None:
    """Adds `generate` to the parsers of `skytrain prep`."""
    parser = subparsers.add_parser(
        "generate",
        help="ask a teacher for reasoning traces",
        description="Asks a teacher for solutions of the problems, with its reasoning. One or more servers that speak "
        "OpenAI's chat completions (such as vLLM) serve it. Asks only what OUT.answers.jsonl does not hold, so that a "
        "run that was ended goes on.",
        epilog="Example:\n  skytrain prep generate chosen.jsonl --out traces.jsonl --server http://127.0.0.1:8000/v1 "
        "--model Qwen/QwQ-32B-Preview --samples 4",
        formatter_class=HelpFormatter,
    )
    add_stage_arguments(parser)
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="answers asked for each problem")
    parser.add_argument(
        "--system",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="send a system prompt (teacher.system.txt)",
    )
    add_model_arguments(parser, temperature=0.7, max_tokens=16384)
    parser.set_defaults(run=run, check=model_of)


def run(args: argparse.Namespace) -> int:
    settings = {"samples": args.samples, "system": args.system, "on_error": args.on_error, "overwrite": args.overwrite}
    return guarded(lambda: generate(args.inputs, args.out, model_of(args), **settings), args.out)

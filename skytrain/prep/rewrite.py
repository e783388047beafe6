"""`skytrain prep rewrite`: traces as replies that can be trained on, in two sections.

By rules where the trace is regular, by a second model, or by rules first and the model for the rest. Whatever makes
them, they are checked: tags, code block, box, and for a model's rewriting that the thoughts are the trace's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

from skytrain.errors import UserError
from skytrain.help import HelpFormatter
from skytrain.prep.asking import Model, add_model_arguments, ask_all, log_of, model_of, spent, unanswered, unfinished
from skytrain.prep.client import Request
from skytrain.prep.problems import Malformed, check_problem
from skytrain.prep.prompts import Prompts, messages
from skytrain.prep.sections import LEAST, Irregular, check_rewritten, split, tagged, think
from skytrain.prep.stage import Row, Stage, add_stage_arguments, guarded, run_stage

By = Literal["rules", "model", "rules-then-model", "think"]
BY = ("rules", "model", "rules-then-model", "think")
GONE = ("reasoning", "answer", "asked")
"""What the messages take the place of."""


def rewrite(
    inputs: list[str | Path],
    out: str | Path,
    *,
    by: By,
    model: Model | None = None,
    prompts: Prompts | None = None,
    system: bool | None = None,
    least: float = LEAST,
    on_error: str = "error",
    overwrite: bool = False,
) -> None:
    """Writes a row with `messages` for each trace that became a reply of the form.

    by: "rules", "model", "rules-then-model", or "think" for `<think>` sections as the model's own. system: whether the
    training prompt stands in front; by default with tags, not with think. least: see `sections.check_rewritten`. Raises
    `UserError`, and KeyboardInterrupt.
    """
    _fitting(by, model)
    if not 0 <= least <= 1:
        raise UserError(f"--least {least}: must be between 0 and 1")
    prompts = model.prompts if model is not None else prompts or Prompts()
    system = by != "think" if system is None else system
    settings = {"by": by, "least": least, "train_system": prompts.version("train.system") if system else None}
    if model is not None:
        settings |= model.settings("rewrite.")
    stage = Stage("rewrite", inputs, out, settings, check=_check, on_error=on_error)
    training = prompts.render("train.system") if system else None
    run_stage(stage, lambda stage: _Rewriting(stage, by, model, training, least).work(), overwrite=overwrite)


def _fitting(by: By, model: Model | None) -> None:
    if (by in ("model", "rules-then-model")) != (model is not None):
        needs = "needs --server and --model" if model is None else "asks no model; leave --server and --model out"
        raise UserError(f"--by {by}: {needs}")


def _check(row: Row) -> None:
    check_problem(row)
    if not isinstance(row.get("answer"), str) or not isinstance(row.get("reasoning"), str | None):
        raise Malformed("'answer' must be text, and 'reasoning' text or null, as `skytrain prep generate` writes them")


class _Rewriting:
    def __init__(self, stage: Stage, by: By, model: Model | None, system: str | None, least: float):
        self._stage, self._by, self._model, self._system, self._least = stage, by, model, system, least

    def work(self) -> None:
        if self._model is None:
            for where, row in self._stage.rows():
                try:
                    self._keep(row, self._by_rules(row), {"by": self._by})
                except Irregular as error:
                    self._stage.drop(row, error.reason, str(error), where)
            return
        with log_of(self._stage.out) as log:
            wanted = (self._request(row)[0] for row in self._stage.peek() if self._regular(row) is None)
            failed = ask_all("rewrite", self._model, log, wanted)
            for where, row in self._stage.rows():
                text = self._regular(row)
                if text is not None:
                    self._keep(row, text, {"by": "rules"})
                    continue
                request, version = self._request(row)
                record = log.get(request.key)
                if record is None:
                    self._stage.drop(row, *unanswered(failed.get(request.key)), where)
                    continue
                spent(self._stage, self._model, [record])
                try:
                    made = {"by": "model", **self._model.provenance(version, request, record)}
                    self._keep(row, self._by_model(row, record), made)
                except Irregular as error:
                    self._stage.drop(row, error.reason, str(error), where)

    def _by_rules(self, row: Row) -> str:
        """Raises `Irregular`."""
        if self._by == "think":
            return think(row["reasoning"] or "", row["answer"])
        return tagged(*split(row["reasoning"], row["answer"], row["domain"], boxed(row)))

    def _regular(self, row: Row) -> str | None:
        if self._by != "rules-then-model":
            return None
        try:
            return self._by_rules(row)
        except Irregular:
            return None

    def _by_model(self, row: Row, record: dict[str, Any]) -> str:
        """Raises `Irregular`, also for an answer that was cut off."""
        reason = unfinished(record)
        if reason is not None:
            raise Irregular(reason, f"the rewriting is {record['status']}")
        return tagged(*check_rewritten(record["answer"], trace_of(row), row["domain"], boxed(row), self._least))

    def _request(self, row: Row) -> tuple[Request, str]:
        name = "rewrite.code" if row["domain"] == "code" else "rewrite.prose"
        prompts = self._model.prompts
        user = prompts.render(name, prompt=row["prompt"], trace=trace_of(row))
        version = prompts.version("rewrite.system", name)
        # Two samples whose traces are the same text are one request.
        return self._model.request(messages(prompts.render("rewrite.system"), user), version), version

    def _keep(self, row: Row, text: str, made: dict[str, Any]) -> None:
        talk = messages(self._system, row.get("asked") or row["prompt"])
        self._stage.notes[f"by {made['by']}"] = self._stage.notes.get(f"by {made['by']}", 0) + 1
        self._stage.keep(
            {
                **{key: value for key, value in row.items() if key not in GONE},
                "messages": [*talk, {"role": "assistant", "content": text}],
                "form": "think" if self._by == "think" else "tags",
                "provenance": {**row.get("provenance", {}), "rewrite": made},
            }
        )


def trace_of(row: Row) -> str:
    """All that the teacher wrote."""
    return "\n\n".join(part.strip() for part in (row["reasoning"], row["answer"]) if part and part.strip())


def boxed(row: Row) -> bool:
    """Whether a reply needs its answer in a box: where there is one to compare it with."""
    if row.get("provenance", {}).get("gold_is") == "solution":
        return False
    return row["domain"] in ("math", "choice") or row.get("gold") is not None


def register(subparsers: Any) -> None:
    """Adds `rewrite` to the parsers of `skytrain prep`."""
    parser = subparsers.add_parser(
        "rewrite",
        help="put traces into two sections, thought and solution",
        description="Makes of each trace a reply with a thought section and a solution section, as it is trained on: "
        "by rules, or by a model, whose reply is dropped where too little of the trace is left in it.",
        epilog="Example:\n  skytrain prep rewrite traces.jsonl --out rewritten.jsonl --by rules",
        formatter_class=HelpFormatter,
    )
    add_stage_arguments(parser)
    parser.add_argument(
        "--by", choices=BY, required=True, help="who makes the sections; think: as they are, between <think> tags"
    )
    parser.add_argument(
        "--least",
        type=float,
        default=LEAST,
        metavar="PART",
        help="part of the trace that a model has to keep, from 0 to 1",
    )
    parser.add_argument(
        "--system",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="put the training system prompt in front (default: with all but --by think)",
    )
    add_model_arguments(parser, temperature=0.7, max_tokens=16384)
    parser.set_defaults(run=run, check=check)


def check(args: argparse.Namespace) -> Model | None:
    """The model, where one is named. Raises `UserError` for settings that do not go together."""
    model = model_of(args) if args.model or args.server else None
    _fitting(args.by, model)
    return model


def run(args: argparse.Namespace) -> int:
    model = check(args)
    prompts = None if model else Prompts(args.prompts)
    settings = {"least": args.least, "system": args.system, "on_error": args.on_error, "overwrite": args.overwrite}
    settings |= {"by": args.by, "model": model, "prompts": prompts}
    return guarded(lambda: rewrite(args.inputs, args.out, **settings), args.out)

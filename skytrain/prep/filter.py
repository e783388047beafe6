"""`skytrain prep filter`: graded chats in, those that are worth training on out, lean enough for `tokenize`.

Each check drops a row under its own reason, in this order: what a chat must be (malformed, bad_role, empty), wrong,
too_short, too_long, repetition, mixed_language, contaminated, duplicate, duplicate_problem, per_problem; and when all
rows were read, over_quota. Rows are read twice where evaluation sets are given, and never held: only digests are.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from skytrain.data.messages import REASONING, Conversation, Refused, from_row
from skytrain.errors import UserError
from skytrain.help import HelpFormatter
from skytrain.prep.balance import Limits, allowed, chosen, rank
from skytrain.prep.contamination import EvaluationSets, Match
from skytrain.prep.quality import foreign_script, loop
from skytrain.prep.rows import Unreadable, read_rows
from skytrain.prep.stage import Account, Row, Stage, add_stage_arguments, dumps, fingerprint, guarded, run_stage
from skytrain.prep.texts import count_words, digest, squeezed, tokens

LEFT_OUT = ("prompt", "gold", "tests", "solution", "starter", "reasoning", "answer")
"""What graded rows carry and training does not need."""
_TAGS = re.compile(r"<\|(?:begin|end)_of_(?:thought|solution)\|>|</?think>")
_ANSWER_STARTS = ("<|begin_of_solution|>", "</think>")


@dataclass(frozen=True)
class Checks:
    """What is asked of a row; see `skytrain prep filter --help`. None or False: not asked."""

    source: str = "unknown"
    verdicts: bool = True
    min_words: int | None = None
    max_words: int | None = None
    loops: bool = True
    loop_words: int = 200
    loop_repeats: int = 8
    languages: bool = True
    foreign_share: float = 0.01
    foreign_run: int = 3
    ngram: int = 13
    coverage: float = 0.5
    similarity: float = 0.8
    dedup: bool = True
    per_problem: int | None = None
    limits: Limits = field(default_factory=Limits)
    seed: int = 0

    def check(self) -> None:
        """Raises `UserError` for a setting out of its range."""
        for name, least in (("min_words", 0), ("max_words", 1), ("loop_words", 20), ("loop_repeats", 3),
                            ("foreign_run", 0), ("ngram", 2), ("per_problem", 1)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
        for name in ("foreign_share", "coverage", "similarity"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be from 0 to 1")
        if self.coverage == 0:
            raise UserError("--coverage 0: must be above 0; leave --against out for no decontamination")
        if self.min_words and self.max_words and self.min_words > self.max_words:
            raise UserError(f"--min-words {self.min_words} is above --max-words {self.max_words}; nothing would pass")
        if not self.source.strip():
            raise UserError("--source: must not be empty")
        self._check_limits()

    def _check_limits(self) -> None:
        limits = self.limits
        if limits.each is not None and limits.each < 1:
            raise UserError(f"--max-per-source {limits.each}: must be at least 1")
        for source, share in limits.shares.items():
            if not 0 < share <= 1:
                raise UserError(f"--max-share {source}={share:g}: must be above 0 and at most 1")
        for source, count in limits.quotas.items():
            if count < 0:
                raise UserError(f"--quota {source}={count}: must be at least 0")


class Dropped(NamedTuple):
    reason: str
    detail: str


@dataclass(frozen=True)
class Texts:
    """What the checks look at. prompts: the user turns, and the row's own prompt where it is not in one of them."""

    prompts: list[str]
    asked: str
    response: str
    last: str

    @classmethod
    def of(cls, row: Row, talk: Conversation) -> Texts:
        turns = [message["content"] for message in talk.messages if message["role"] == "user"]
        answers = [message for message in talk.messages if message["role"] == "assistant"]
        spoken = [[str(m[key]) for key in (*REASONING, "content") if isinstance(m.get(key), str)] for m in answers]
        own = row.get("prompt")
        own = own if isinstance(own, str) and own.strip() else None
        prompts = turns if own is None or any(own in turn for turn in turns) else [own, *turns]
        # Instructions around a problem may differ between rows; with one turn, the problem is what is asked.
        asked = own if own is not None and len(turns) == 1 else "\n".join(turns)
        last = answers[-1].get("content") or str(answers[-1].get("tool_calls") or "") if answers else ""
        return cls(prompts, asked, "\n".join(text for texts in spoken for text in texts), last)


def filter_chats(
    inputs: list[str | Path],
    out: str | Path,
    *,
    against: list[str | Path] | None = None,
    checks: Checks | None = None,
    on_error: str = "error",
    overwrite: bool = False,
) -> Account:
    """Writes OUT of the rows that pass, prints the ledger line, and returns the account.

    against: evaluation sets. Raises `UserError` for settings and files; then, and on Ctrl-C, OUT is as it was.
    """
    checks, sets = checks or Checks(), [Path(path) for path in against or []]
    checks.check()
    for path in sets:
        if Path(out).exists() and path.exists() and path.samefile(out):
            raise UserError(f"{path}: is both read and written; give another --out")
    settings = {**asdict(checks), "against": [fingerprint(path) for path in sets]}
    if not sets:
        print("no --against: no decontamination is made", file=sys.stderr, flush=True)
    stage = Stage("filter", inputs, out, settings, on_error=on_error)
    return run_stage(stage, lambda stage: _Filter(stage, checks, sets).run(), overwrite=overwrite)


class _Filter:
    def __init__(self, stage: Stage, checks: Checks, against: list[Path]):
        self.stage, self.checks = stage, checks
        self._rows: dict[bytes, str] = {}
        self._problems: dict[bytes, list[Any]] = {}
        self._counts: Counter[bytes] = Counter()
        self._evaluation = None
        if against:
            self._evaluation = EvaluationSets(
                against, ngram=checks.ngram, coverage=checks.coverage, similarity=checks.similarity
            )
            stage.notes["same_template"] = 0
            for texts in self._first_reading():
                for text in texts.prompts:
                    self._evaluation.count(text)
            self._evaluation.settle()

    def _first_reading(self) -> Iterator[Texts]:
        """Of the rows that are chats; what is wrong with the others is said when they are read again."""
        for path in self.stage.inputs:
            for raw in read_rows(path):
                try:
                    row = raw.parse()
                    yield Texts.of(row, from_row(row))
                except (Unreadable, Refused, RecursionError):
                    continue

    def run(self) -> None:
        if not self.checks.limits:
            for _, row in self._passed():
                self.stage.keep(_lean(row))
            return
        # Which rows a source keeps is known when all were read. The file has no name, so that nothing is left of it
        # even where this process is killed.
        with tempfile.TemporaryFile(dir=self.stage.out.parent) as spool:
            ranks = []
            for where, row in self._passed():
                spool.write(dumps([where, row]))
                ranks.append((row["source"], rank(self.checks.seed, _identity(row))))
            spool.seek(0)
            self._note_shortages(Counter(source for source, _ in ranks))
            for line, keep in zip(spool, chosen(ranks, self.checks.limits)):
                where, row = json.loads(line)
                if keep:
                    self.stage.keep(_lean(row))
                else:
                    self.stage.drop(row, "over_quota", f"of {row['source']}", where)

    def _note_shortages(self, found: Counter[str]) -> None:
        kept = allowed(found, self.checks.limits)
        for source, count in sorted(self.checks.limits.quotas.items()):
            if kept.get(source, 0) < count:
                self.stage.notes[f"short of {source}"] = count - kept.get(source, 0)
        for source in sorted(set(self.checks.limits.shares) - set(found)):
            self.stage.notes[f"rows of {source}"] = 0

    def _passed(self) -> Iterator[tuple[str, Row]]:
        for where, row in self.stage.rows():
            try:
                texts = Texts.of(row, from_row(row))
            except Refused as refused:
                self.stage.drop(row, refused.reason, refused.detail, where)
                continue
            if not isinstance(row.get("source"), str) or not row["source"].strip():
                row = {**row, "source": self.checks.source}
            dropped = self._unfit(row, texts)
            template = None
            if dropped is None and self._evaluation is not None:
                copy, template = self._evaluation.check(texts.prompts, texts.response)
                dropped = copy and Dropped("contaminated", str(copy))
            dropped = dropped or (self._seen_before(row, texts, where) if self.checks.dedup else None)
            dropped = dropped or self._one_too_many(texts)
            if dropped is None:
                yield where, row if template is None else self._told(row, template)
            else:
                self.stage.drop(row, dropped.reason, dropped.detail, where)

    def _unfit(self, row: Row, texts: Texts) -> Dropped | None:
        """What the row's own text and verdict say."""
        checks, verdict = self.checks, row.get("verdict")
        if not _said(texts):
            return Dropped("empty", "no answer")
        if checks.verdicts and verdict not in (None, "correct", "ungraded") and not _weak(row):
            return Dropped("wrong", str(verdict)[:80])
        words = count_words(texts.response)
        if checks.min_words is not None and words < checks.min_words:
            return Dropped("too_short", f"{words} words, limit {checks.min_words}")
        if checks.max_words is not None and words > checks.max_words:
            return Dropped("too_long", f"{words} words, limit {checks.max_words}")
        if checks.loops:
            found = loop(texts.response, words=checks.loop_words, repeats=checks.loop_repeats)
            if found:
                return Dropped("repetition", found)
        if checks.languages:
            asked = "\n".join(texts.prompts)
            found = foreign_script(asked, texts.response, share=checks.foreign_share, run=checks.foreign_run)
            if found:
                return Dropped("mixed_language", found)
        return None

    def _seen_before(self, row: Row, texts: Texts, where: str) -> Dropped | None:
        name = where if row.get("id") is None else str(row["id"])
        asked = digest(tokens(texts.asked))
        both = digest([asked.hex(), squeezed(texts.response)])
        if both in self._rows:
            return Dropped("duplicate", f"the same prompt and response as {self._rows[both]}")
        problem = row.get("problem")
        first = self._problems.setdefault(asked, [problem, name])
        if problem is not None and first[0] is not None and problem != first[0]:
            return Dropped("duplicate_problem", f"the same prompt as {first[1]}, of the problem {first[0]}")
        if first[0] is None:
            first[:] = [problem, name]
        self._rows[both] = name
        return None

    def _one_too_many(self, texts: Texts) -> Dropped | None:
        limit = self.checks.per_problem
        if limit is None:
            return None
        asked = digest(tokens(texts.asked))
        self._counts[asked] += 1
        return Dropped("per_problem", f"more than {limit} of one prompt") if self._counts[asked] > limit else None

    def _told(self, row: Row, template: Match) -> Row:
        """A row of an item's template is kept, and carries which item's."""
        self.stage.notes["same_template"] += 1
        provenance = row.get("provenance") or {}
        if not isinstance(provenance, dict):
            return row
        return {**row, "provenance": {**provenance, "same_template": template.item.name}}


def _said(texts: Texts) -> bool:
    """Whether there is an answer: not tags alone, and not thoughts alone."""
    answer = texts.last
    for start in _ANSWER_STARTS:
        answer = answer.rpartition(start)[2]
    return bool(_TAGS.sub("", answer).strip())


def _lean(row: Row) -> Row:
    return {key: value for key, value in row.items() if key not in LEFT_OUT}


def _identity(row: Row) -> str:
    if row.get("id") is not None:
        return str(row["id"])
    return digest([json.dumps(row.get("messages") or row.get("conversations"), sort_keys=True)]).hex()


def _by_source(option: str, values: list[str], kind: type) -> dict[str, Any]:
    """`["numina=0.4"]` -> `{"numina": 0.4}`. Raises `UserError`."""
    found = {}
    for value in values:
        source, _, amount = value.rpartition("=")
        try:
            number = kind(amount)
        except ValueError:
            number = None
        if not source or number is None:
            raise UserError(f"{option} {value}: must be SOURCE={'0.4' if kind is float else '1000'}")
        if source in found:
            raise UserError(f"{option} {value}: {source} is given twice")
        found[source] = number
    return found


def _weak(row: Row) -> bool:
    """Whether the verdict is that of a weaker test, which decides nothing."""
    provenance = row.get("provenance")
    made = provenance.get("grade") if isinstance(provenance, dict) else None
    return isinstance(made, dict) and made.get("strength") == "weak"


def register(subparsers: Any) -> None:
    """Adds `filter` to the parsers of `skytrain prep`."""
    parser = subparsers.add_parser(
        "filter",
        help="leave out what should not be trained on",
        description="Drops chats that are wrong, too short or long, loop, mix languages, copy an evaluation set or are "
        "there twice, each under its reason, and balances the sources.",
        epilog="Example:\n  skytrain prep filter graded.jsonl --out filtered.jsonl --against math500.jsonl",
        formatter_class=HelpFormatter,
    )
    add_stage_arguments(parser)
    _add_check_arguments(parser)
    parser.set_defaults(run=run, check=check)


def _add_check_arguments(parser: argparse.ArgumentParser) -> None:
    default, add, switch = Checks(), parser.add_argument, argparse.BooleanOptionalAction
    number = {"type": int, "metavar": "N"}
    share = {"type": float, "metavar": "SHARE"}
    add(
        "--against",
        action="extend",
        nargs="+",
        default=[],
        metavar="EVAL_FILE",
        help="evaluation sets: rows that copy one of their items are dropped",
    )
    add("--ngram", default=default.ngram, help="so many words in a row, shared with an item, count as copied", **number)
    add("--coverage", default=default.coverage, help="share of an item's words in such runs that makes a copy", **share)
    add(
        "--similarity",
        default=default.similarity,
        help="share of an item's pairs of words, found near each other, that makes a copy; 0: not looked for",
        **share,
    )
    add("--source", default=default.source, metavar="NAME", help="source of rows that name none")
    add(
        "--verdicts", action=switch, default=True, help="drop rows whose verdict is not correct; those without one stay"
    )
    add("--min-words", help="words of the shortest response that is kept (default: no limit)", **number)
    add("--max-words", help="words of the longest response that is kept (default: no limit)", **number)
    add("--loops", action=switch, default=True, help="drop responses that repeat a phrase again and again")
    add("--loop-words", default=default.loop_words, help="tokens that a repeated phrase covers to be a loop", **number)
    add(
        "--loop-repeats", default=default.loop_repeats, help="repeats of a phrase of three words that are one", **number
    )
    add("--languages", action=switch, default=True, help="drop responses in another script than their prompt's")
    add("--foreign-share", default=default.foreign_share, help="share of letters of another script allowed", **share)
    add("--foreign-run", default=default.foreign_run, help="words of another script in a row allowed", **number)
    add("--dedup", action=switch, default=True, help="drop equal rows, and a prompt that stands under a second problem")
    add("--per-problem", help="responses kept of one prompt, the first ones (default: all)", **number)
    add(
        "--max-share",
        action="append",
        default=[],
        metavar="SOURCE=SHARE",
        help="largest share of all kept rows that a source may have, from 0 to 1; may be given again",
    )
    add("--max-per-source", help="most rows of a source that has no --quota (default: no limit)", **number)
    add(
        "--quota",
        action="append",
        default=[],
        metavar="SOURCE=ROWS",
        help="most rows of a source; it is told where it has fewer; may be given again",
    )
    add("--seed", default=0, help="seed of the choice among a source's rows", **number)


def check(args: argparse.Namespace) -> Checks:
    """Raises `UserError` for settings that mean nothing, and for evaluation files that are not there."""
    for path in args.against:
        fingerprint(Path(path))
    shares = _by_source("--max-share", args.max_share, float)
    quotas = _by_source("--quota", args.quota, int)
    own = {name: getattr(args, name) for name in Checks.__dataclass_fields__ if name != "limits"}
    return Checks(**own, limits=Limits(shares, quotas, args.max_per_source))


def run(args: argparse.Namespace) -> int:
    given = {"against": args.against, "checks": check(args), "on_error": args.on_error, "overwrite": args.overwrite}
    return guarded(lambda: filter_chats(args.inputs, args.out, **given), args.out)

"""`skytrain prep select`: the problems that rules ask for, by source, domain, difficulty, level and number."""

from __future__ import annotations

import argparse
import json
import random
import shlex
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from skytrain.errors import UserError
from skytrain.help import HelpFormatter
from skytrain.prep.problems import DOMAINS, Malformed, check_problem
from skytrain.prep.rows import Unreadable, read_rows
from skytrain.prep.stage import Account, Row, Stage, add_stage_arguments, dumps, fingerprint, guarded, run_stage

KEYS = ("source", "domain", "difficulty", "level", "first", "count")
Span = tuple[float, float]


@dataclass
class Rule:
    """A row must be of one of the sources and domains, among the `first` rows of its source, and have one of the
    levels and a difficulty within one of the spans (both ends included). Empty: all are taken. `count` of those are
    kept."""

    text: str
    source: frozenset[str] = frozenset()
    domain: frozenset[str] = frozenset()
    difficulty: tuple[Span, ...] = ()
    level: tuple[str | Span, ...] = ()
    first: int | None = None
    count: int | None = None
    taken: list[int] = field(default_factory=list)
    """The places of the rows that it matched, in the order of the inputs."""
    unlabelled: int = 0
    _seen: dict[str, int] = field(default_factory=dict)

    def match(self, row: Row) -> bool | str:
        """Whether the row is taken; for one that lacks the label that it is to be judged by, the label's name."""
        if self.source and row["source"] not in self.source:
            return False
        if not self._among_first(row) or (self.domain and row["domain"] not in self.domain):
            return False
        if self.difficulty and row.get("difficulty") is None:
            return "difficulty"
        if self.difficulty and not any(low <= row["difficulty"] <= high for low, high in self.difficulty):
            return False
        level = row.get("provenance", {}).get("level")
        if self.level and level is None:
            return "level"
        return not self.level or any(_is_level(level, wanted) for wanted in self.level)

    def _among_first(self, row: Row) -> bool:
        """By the place that the row had in the published source where it is known; what `import` dropped counts."""
        source = row["source"]
        self._seen[source] = self._seen.get(source, 0) + 1
        if self.first is None:
            return True
        place = row.get("provenance", {}).get("row_of_source")
        return (place if isinstance(place, int) else self._seen[source]) <= self.first


def parse_rule(text: str) -> Rule:
    """`source=a,b difficulty=1..4,9 level=4,5 domain=math first=20000 count=100`. Raises `UserError`."""
    values: dict[str, Any] = {}
    for word in _words(text):
        key, equals, value = word.partition("=")
        if not equals or key not in KEYS:
            raise UserError(f"--rule {text!r}: {word!r} is not KEY=VALUE with a key of {', '.join(KEYS)}")
        if key in values:
            raise UserError(f"--rule {text!r}: {key} stands twice; separate its values by commas")
        try:
            values[key] = _value(key, value)
        except ValueError as error:
            raise UserError(f"--rule {text!r}: {key}: {error}") from None
    if not values:
        raise UserError(f"--rule {text!r}: is empty; give it KEY=VALUE with a key of {', '.join(KEYS)}")
    return Rule(text, **values)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"--rule {text!r}: cannot be split into words ({error})") from None


def _value(key: str, value: str) -> Any:
    if key in ("first", "count"):
        if not (value.isascii() and value.isdigit()) or len(value) > 15 or int(value) < 1:
            raise ValueError(f"must be a whole number above 0, not {value!r}")
        return int(value)
    words = value.split(",")
    if not all(words):
        raise ValueError("a value is empty")
    if key == "difficulty":
        return tuple(_span(word) for word in words)
    if key == "level":
        return tuple(_span(word) if ".." in word else word for word in words)
    if key == "domain" and (unknown := {*words} - {*DOMAINS}):
        raise ValueError(f"{min(unknown)!r} is not one of {', '.join(DOMAINS)}")
    return frozenset(words)


def _span(word: str) -> Span:
    low, dots, high = word.partition("..")
    try:
        span = (float(low), float(high if dots else low))
    except ValueError:
        raise ValueError(f"{word!r} is no number and no span as 1..9") from None
    if not span[0] <= span[1]:
        raise ValueError(f"the span {word!r} is empty")
    return span


def _is_level(level: Any, wanted: str | Span) -> bool:
    text = str(level).strip().casefold().removeprefix("level").strip()
    if isinstance(wanted, str):
        return text == wanted.casefold()
    try:
        return wanted[0] <= float(text) <= wanted[1]
    except ValueError:
        return False


def select(
    inputs: list[str | Path],
    out: str | Path,
    rules: list[str],
    *,
    seed: int = 0,
    first: bool = False,
    levels: str | Path | None = None,
    on_error: str = "error",
    overwrite: bool = False,
) -> Account:
    """Keeps each row that a rule takes, in the order of the inputs; a row belongs to the first rule that takes it. Of
    more rows than a rule's count, a sample by the seed is kept, or with `first` the first ones. levels: problems with
    levels, for rows of the same question that have none (NuminaMath's copy of MATH does not publish them).

    Raises `UserError` for a rule that cannot be read, and for one that takes no row.
    """
    parsed = [parse_rule(text) for text in rules]
    settings = {"rules": rules, "seed": seed, "first": first, "levels": fingerprint(Path(levels)) if levels else None}
    stage = Stage("select", inputs, out, settings, on_error=on_error)

    def work(stage: Stage) -> None:
        with tempfile.TemporaryFile(dir=stage.out.parent) as spool:
            _match(stage, parsed, _levels(Path(levels)) if levels else {}, spool)
            wanted = [_kept(rule, random.Random(f"{seed} {i}"), first) for i, rule in enumerate(parsed)]
            _write(stage, parsed, wanted, spool)

    return run_stage(stage, work, overwrite=overwrite)


def _levels(path: Path) -> dict[str, Any]:
    """Question to level. Raises `UserError` where no row has one."""
    found = {}
    for raw in read_rows(path):
        try:
            row = raw.parse()
            check_problem(row)
        except (Unreadable, Malformed, AttributeError):
            raise UserError(
                f"{raw.where}: is no problem, so --levels cannot use it; make it by `prep import`"
            ) from None
        if (level := row.get("provenance", {}).get("level")) is not None:
            found[_question(row)] = level
    if not found:
        raise UserError(f"{path}: no row has a level, so --levels cannot use it; import MATH as it is published")
    return found


def _question(row: Row) -> str:
    return "".join(row["prompt"].split())


def _match(stage: Stage, rules: list[Rule], levels: dict[str, Any], spool: BinaryIO) -> None:
    """Drops what no rule takes. The others are spooled, for which of them a sample holds is known only at the end."""
    place = 0
    for where, row in stage.rows():
        try:
            check_problem(row)
        except Malformed as error:
            stage.drop(row, "malformed", str(error), where)
            continue
        provenance = row.get("provenance", {})
        if levels and provenance.get("level") is None and (level := levels.get(_question(row))) is not None:
            row["provenance"] = {**provenance, "level": level}
        # All rules see every row: each counts the rows of a source.
        found = [rule.match(row) for rule in rules]
        for rule, label in zip(rules, found):
            rule.unlabelled += isinstance(label, str)
        if True in found:
            rule = rules[found.index(True)]
            rule.taken.append(place)
            spool.write(dumps([where, found.index(True), row]))
            place += 1
        elif labels := [label for label in found if label]:
            stage.drop(row, "unlabelled", f"no {labels[0]}", where)
        else:
            stage.drop(row, "not_selected", "no rule takes it", where)
    for rule in rules:
        if not rule.taken:
            lacking = f"; {rule.unlabelled:,} rows lack the label that it asks for" if rule.unlabelled else ""
            raise UserError(
                f"--rule {rule.text!r}: takes no row that the rules before it leave{lacking}; mend or omit the rule"
            )


def _kept(rule: Rule, rng: random.Random, first: bool) -> set[int]:
    if rule.count is None or len(rule.taken) <= rule.count:
        return set(rule.taken)
    return set(rule.taken[: rule.count] if first else rng.sample(rule.taken, rule.count))


def _write(stage: Stage, rules: list[Rule], wanted: list[set[int]], spool: BinaryIO) -> None:
    ids: set[str] = set()
    spool.seek(0)
    for place, line in enumerate(spool):
        where, number, row = json.loads(line)
        if place not in wanted[number]:
            stage.drop(row, "over_count", f"--rule {rules[number].text!r} has its {rules[number].count:,}", where)
            continue
        published, copy = row["id"], 2
        while row["id"] in ids:
            row["id"] = f"{published}#{copy}"
            copy += 1
        if row["id"] != published:
            stage.notes["ids made unique"] = stage.notes.get("ids made unique", 0) + 1
        ids.add(row["id"])
        stage.keep(row)
    for rule in rules:
        if rule.count is not None and len(rule.taken) < rule.count:
            stage.notes[f"fewer than asked by {rule.text!r}"] = rule.count - len(rule.taken)


def register(subparsers: Any) -> None:
    """Adds `select` to the parsers of `skytrain prep`."""
    parser = subparsers.add_parser(
        "select",
        help="keep problems by source, domain, difficulty, level and number",
        description="Keeps the problems that fit a rule; one that fits several counts as the first rule's.",
        epilog="Example:\n  skytrain prep select labelled.jsonl --out chosen.jsonl --rule 'domain=math difficulty=4..9 "
        "count=4000' --rule domain=code",
        formatter_class=HelpFormatter,
    )
    add_stage_arguments(parser)
    parser.add_argument(
        "--rule",
        action="append",
        required=True,
        metavar="RULE",
        help="what to keep, and at most how many (count, of the first so many): 'source=a,b domain=math "
        "difficulty=1..9 level=4,5 first=20000 count=4000'; may be given again",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random sample that a count takes")
    parser.add_argument("--first", action="store_true", help="a count takes the first rows instead of a random sample")
    parser.add_argument(
        "--levels", metavar="FILE", help="problems with levels (MATH), for rows of the same question that have none"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    def work() -> None:
        select(
            args.inputs,
            args.out,
            args.rule,
            seed=args.seed,
            first=args.first,
            levels=args.levels,
            on_error=args.on_error,
            overwrite=args.overwrite,
        )

    return guarded(work, args.out)

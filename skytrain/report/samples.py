"""The samples of evaluations: what is counted of them, and their texts, one after another."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from skytrain.errors import UserError
from skytrain.eval.results import AGAIN, Sample, Texts
from skytrain.prep.stage import Row, long_integers
from skytrain.report.runs import Evaluated

END_OF_THOUGHT = "<|end_of_thought|>"
_HALVES = re.compile("[\ud800-\udfff]")


class Turn(msgspec.Struct):
    role: str
    content: str


class Item(msgspec.Struct):
    """Of a line of items/TASK.jsonl, what is shown, and what decides a verdict."""

    id: str
    prompt: str
    domain: str | None = None
    gold: str | None = None
    starter: str | None = None
    tests: Any = None
    messages: list[Turn] = []


@dataclass
class Counted:
    """Of one model and task. right: problem to 0 or 1 of each sample. questions: problem to the digest of what decides
    a verdict on it: question, gold and tests.

    lengths: (tokens, 0 or 1) of each sample that has an answer; missing: those that have none; lost: those whose
    answer is not in answers.jsonl.
    """

    right: dict[str, list[float]] = field(default_factory=dict)
    questions: dict[str, bytes] = field(default_factory=dict)
    lengths: list[tuple[int, int]] = field(default_factory=list)
    missing: int = 0
    lost: int = 0


def count(evaluated: list[Evaluated]) -> dict[tuple[str, str], Counted]:
    """By a model's name and a task's. Raises `UserError` for a folder that does not hold what its scores are of."""
    found = {}
    for one in evaluated:
        with one.evaluation.answers() as answers:
            found |= {(one.name, task): _count(one, task, answers) for task in one.tasks}
    return found


def _count(one: Evaluated, task: str, answers: Texts | dict) -> Counted:
    found = Counted()
    verdicts: Counter[str] = Counter()
    for sample in one.evaluation.samples(task):
        right = int(sample.verdict == "correct")
        found.right.setdefault(sample.id, []).append(float(right))
        if sample.status == "missing":
            found.missing += 1
        else:
            found.lengths.append((sample.tokens, right))
            found.lost += sample.key not in answers
        verdicts[sample.verdict] += 1
    with long_integers():
        found.questions = {item.id: _digest(item) for item in _items(one, task)}
    _check(one, task, found, verdicts)
    return found


def _check(one: Evaluated, task: str, found: Counted, verdicts: Counter[str]) -> None:
    """Raises `UserError` where the items or the samples are not those of the scores: files that were cut, or are of
    another evaluation."""
    told = one.tasks[task]

    def refuse(kind: str, has: str, expected: str, advice: str) -> None:
        path = one.evaluation.folder / kind / f"{task}.jsonl"
        raise UserError(f"{path}: holds {has}, and results.json tells of {expected}; {advice}")

    if len(found.questions) != told.problems:
        refuse("items", f"{len(found.questions):,} problems", f"{told.problems:,}", AGAIN)
    again = f"{AGAIN}, or --rescore it"
    sizes = Counter(map(len, found.right.values()))
    if not sizes or sizes != Counter({told.samples: told.problems}):
        has = f"{verdicts.total():,} samples of {len(found.right):,} problems"
        refuse("samples", has, f"{told.samples:,} of each of {told.problems:,}", again)
    if verdicts != Counter(told.verdicts):
        has, expected = (
            ", ".join(f"{n:,} {name}" for name, n in sorted(one.items())) for one in (verdicts, told.verdicts)
        )
        refuse("samples", has, expected, again)
    if strangers := found.right.keys() - found.questions.keys():
        raise UserError(
            f"{one.evaluation.folder / 'samples' / f'{task}.jsonl'}: {len(strangers):,} problems that are not in "
            f"items/{task}.jsonl, as {min(strangers)!r}; {again}"
        )


def _items(one: Evaluated, task: str) -> Iterator[Item]:
    """Raises `UserError` for a line that is none of ours. Whole numbers in tests may have many digits."""
    for number, row in enumerate(one.evaluation.items(task), 1):
        try:
            yield msgspec.convert(row, Item)
        except (ValueError, msgspec.ValidationError) as error:
            path = one.evaluation.folder / "items" / f"{task}.jsonl"
            raise UserError(f"{path}:{number}: is no problem ({error}); {AGAIN}") from None


def _digest(item: Item) -> bytes:
    tests = item.tests
    if isinstance(tests, dict) and isinstance(tests.get("file"), str):
        # The file's name is its content's digest; its folder says nothing of the tests.
        tests = {**tests, "file": Path(tests["file"]).name}
    text = json.dumps([item.prompt, item.domain, item.gold, item.starter, tests], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def texts(evaluated: list[Evaluated]) -> Iterator[tuple[int, str, Sample, Row]]:
    """(number of the model, task, sample, its texts), with the samples of a problem side by side where the folder has
    them so. Only a task's questions are held in memory."""
    with ExitStack() as stack:
        for number, one in enumerate(evaluated):
            answers = stack.enter_context(one.evaluation.answers())
            for task in one.tasks:
                asked = _questions(one, task)
                for sample in one.evaluation.samples(task):
                    yield number, task, sample, _texts(sample, asked.get(sample.id, {}), answers)


def _questions(one: Evaluated, task: str) -> dict[str, Row]:
    """Of each problem what the page shows: without its tests, which may be large."""
    with long_integers():
        return {
            item.id: {"messages": [[turn.role, turn.content] for turn in item.messages], "gold": item.gold}
            for item in _items(one, task)
        }


def _texts(sample: Sample, question: Row, answers: Texts | dict) -> Row:
    """What the page shows of a sample; texts are None where there are none."""
    found: dict[str, Any] = {"messages": [], "gold": None, **question}
    found |= {"taken": sample.answer, "detail": sample.detail, "thoughts": None, "answer": None}
    answer = answers.get(sample.key)
    if answer is not None:
        thoughts, text = answer["reasoning"], answer["answer"]
        if not thoughts and END_OF_THOUGHT in text:
            before, tag, text = text.partition(END_OF_THOUGHT)
            thoughts = before + tag
        found |= {"thoughts": thoughts, "answer": text}
    return found


def whole(text: str) -> str:
    """Half a surrogate pair, which no file can hold, becomes U+FFFD."""
    return _HALVES.sub("\ufffd", text)


def bins(lengths: list[tuple[int, int]], count: int = 5) -> list[tuple[int, int, int, float]]:
    """(fewest tokens, most, samples, share that is right) of groups of about equal size, short to long. Samples of one
    length are in one group, so that there may be fewer groups."""
    ordered = sorted(lengths)
    groups: list[list[tuple[int, int]]] = []
    due = len(ordered) / count
    for _, equal in itertools.groupby(ordered, key=lambda pair: pair[0]):
        filled = sum(map(len, groups))
        if not groups or filled >= due * len(groups):
            groups.append([])
        groups[-1] += equal
    return [(g[0][0], g[-1][0], len(g), sum(right for _, right in g) / len(g)) for g in groups]

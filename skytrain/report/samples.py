"""The samples of evaluations: what is counted of them, and their texts, one after another."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from skytrain.eval.results import Sample
from skytrain.prep.answers import Answers
from skytrain.prep.stage import Row
from skytrain.report.runs import Evaluated

END_OF_THOUGHT = "<|end_of_thought|>"
_HALVES = re.compile("[\ud800-\udfff]")


@dataclass
class Counted:
    """Of one model and task. right: problem to 0 or 1 of each sample. questions: problem to its question's digest.

    lengths: (tokens, 0 or 1) of each sample that has an answer; missing: those that have none.
    """

    right: dict[str, list[float]] = field(default_factory=dict)
    questions: dict[str, bytes] = field(default_factory=dict)
    lengths: list[tuple[int, int]] = field(default_factory=list)
    missing: int = 0


def count(evaluated: list[Evaluated]) -> dict[tuple[str, str], Counted]:
    """By a model's name and a task's."""
    return {(one.name, task): _count(one, task) for one in evaluated for task in one.tasks}


def _count(one: Evaluated, task: str) -> Counted:
    found = Counted()
    for sample in one.evaluation.samples(task):
        right = int(sample.verdict == "correct")
        found.right.setdefault(sample.id, []).append(float(right))
        if sample.status == "missing":
            found.missing += 1
        else:
            found.lengths.append((sample.tokens, right))
    for item in one.evaluation.items(task):
        text = str(item.get("prompt"))
        found.questions[str(item.get("id"))] = hashlib.blake2b(whole(text).encode(), digest_size=16).digest()
    return found


def texts(evaluated: list[Evaluated]) -> Iterator[tuple[int, str, Sample, Row]]:
    """(number of the model, task, sample, its texts), with the samples of a problem side by side where the folder has
    them so. Only a task's questions are held in memory."""
    with ExitStack() as stack:
        for number, one in enumerate(evaluated):
            answers = stack.enter_context(one.evaluation.answers())
            for task in one.tasks:
                asked = {str(item.get("id")): _question(item) for item in one.evaluation.items(task)}
                for sample in one.evaluation.samples(task):
                    yield number, task, sample, _texts(sample, asked.get(sample.id, {}), answers)


def _question(item: Row) -> Row:
    """Without its tests, which may be large."""
    messages = [[str(turn.get("role")), str(turn.get("content"))] for turn in item.get("messages") or []]
    return {"messages": messages, "gold": item.get("gold")}


def _texts(sample: Sample, question: Row, answers: Answers) -> Row:
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

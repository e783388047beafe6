"""What an evaluation leaves in its folder, and how it is read again.

eval.json            the settings, written first
items/TASK.jsonl     a line a problem: its row, `part`, `messages` (as asked) and `prompt_version`
answers.jsonl        every answer that was paid for, by its key (`skytrain.prep.answers`)
verdicts.jsonl       every judgement that was made, by its key
servers.jsonl        what the servers told of themselves, at each start
samples/TASK.jsonl   a line a sample, with its verdict
results.json         the scores; written last: a folder without it is unfinished
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec

from skytrain.errors import UserError
from skytrain.files import open_regular, read_regular
from skytrain.prep.answers import Answers
from skytrain.prep.completions import Completion
from skytrain.prep.stage import Row

FORMAT = 1
AGAIN = "run the evaluation again"
"""What mends a folder: answers that were paid for are kept."""


class Score(msgspec.Struct, forbid_unknown_fields=True):
    """A share of 1. stderr: of the mean, clustered by problem; None where the problems' means are all one, which tells
    nothing of it. low, high: 95% interval."""

    mean: float
    stderr: float | None
    low: float
    high: float


class Part(msgspec.Struct, forbid_unknown_fields=True):
    """Of a benchmark, as LiveCodeBench's easy problems."""

    problems: int
    score: Score


class TaskResult(msgspec.Struct, forbid_unknown_fields=True):
    """name, title: of the task. data: [file, bytes, sha256] each. version, since, until: of the problems asked.

    prompt: VARIANT.FORM@DIGEST of each text used; system: NAME@DIGEST, or none. sampling: as sent. skipped: rows that
    could not be asked, by reason. verdicts: of all problems x samples, so that they sum to that; `truncated` and
    `missing` are wrong answers of their own kinds. pass_at: by k. truncated: share of the samples; tokens: mean length
    of the answers, thoughts included, None where no server told any; prompt_tokens,
    completion_tokens: in all, answers that a task before it has too left out.
    expected: [low, high] in percent, of the whole ("") or a part, where a recipe names them. limit: only the first
    problems were asked. whole: whether these are all problems of the published set, or of an own one, so that scores
    can be held against others'. warnings: what a reader of the scores has to know.
    """

    name: str
    title: str
    data: list[tuple[str, int, str]]
    version: str | None
    since: str | None
    until: str | None
    prompt: list[str]
    system: str
    sampling: dict[str, Any]
    seed: int
    samples: int
    limit: int | None
    problems: int
    whole: bool
    skipped: dict[str, int]
    score: Score
    parts: dict[str, Part]
    pass_at: dict[int, Score]
    verdicts: dict[str, int]
    truncated: float
    tokens: float | None
    prompt_tokens: int
    completion_tokens: int
    expected: dict[str, tuple[float, float]]
    warnings: list[str]

    def met(self, part: str = "") -> bool | None:
        """Whether the score is within the expected range; None where there is none, or not the whole set was asked."""
        if part not in self.expected or not self.whole:
            return None
        low, high = self.expected[part]
        return low <= 100 * (self.parts[part].score if part else self.score).mean <= high


class Results(msgspec.Struct, forbid_unknown_fields=True):
    """made: date and time, UTC. servers: what they told of engine, version, dtype and parallelism. money: USD for the
    tokens, where prices are given."""

    format: int
    model: str
    made: str
    servers: list[dict[str, Any]]
    sandbox: str
    prompt_tokens: int
    completion_tokens: int
    money: float | None
    tasks: list[TaskResult]


class Sample(msgspec.Struct, forbid_unknown_fields=True):
    """A line of samples/TASK.jsonl. id: of the problem; answer: what was taken for the answer; gold: the right one,
    None for programs; status: of the completion, or missing; tokens: of the completion; key: finds the text in
    answers.jsonl."""

    id: str
    sample: int
    part: str | None
    verdict: str
    detail: str
    answer: str | None
    gold: str | None
    status: str
    tokens: int
    key: str


class Evaluation:
    """A finished evaluation's folder. Raises `UserError` where it is none, or cannot be read."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / "results.json"
        if not path.exists():
            if (self.folder / "eval.json").exists():
                raise UserError(f"{self.folder}: this evaluation is unfinished; run it again, and it goes on")
            raise UserError(f"{self.folder}: holds no results.json; name the folder of an evaluation")
        self.results: Results = _decoded(path, Results)
        if self.results.format != FORMAT:
            raise UserError(f"{path}: format {self.results.format}, and this version reads {FORMAT}")

    def samples(self, task: str) -> Iterator[Sample]:
        return result_lines(self.folder / "samples" / f"{task}.jsonl", Sample, f"{AGAIN}, or --rescore it")

    def items(self, task: str) -> Iterator[Row]:
        return result_lines(self.folder / "items" / f"{task}.jsonl", dict, AGAIN)

    def answers(self) -> AbstractContextManager[Texts | dict[str, Any]]:
        """A context; `get(sample.key)` is the record of `skytrain.prep.completions`, or None for a missing one. Empty
        where there is no file: it is the largest one, and may have been left out of a copy."""
        path = self.folder / "answers.jsonl"
        return Texts(path, Completion) if path.exists() else nullcontext({})


class Texts(Answers):
    """Answers as somebody sent them. Unlike our own log, a line may hold half a surrogate pair, and texts that are
    read have it."""

    def __contains__(self, key: str) -> bool:
        return key in self.statuses

    def _decoded(self, line: bytes) -> Any:
        try:
            return super()._decoded(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return msgspec.convert(json.loads(line), self._line)


def _decoded(path: Path, kind: Any) -> Any:
    try:
        return msgspec.json.decode(read_regular(path), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def result_lines(path: Path, kind: Any, advice: str = f"remove it, and {AGAIN}") -> Iterator[Any]:
    """kind: of each line: a struct, or dict. Raises `UserError` with the advice."""
    decoder = msgspec.json.Decoder(kind)
    try:
        with open_regular(path) as file:
            for number, line in enumerate(file, 1):
                try:
                    # msgspec reads no whole numbers of many digits, and tests of programs hold some.
                    found = json.loads(line) if kind is dict else decoder.decode(line)
                except (ValueError, RecursionError, msgspec.MsgspecError) as error:
                    raise UserError(f"{path}:{number}: cannot be read ({error}); {advice}") from None
                if kind is dict and not isinstance(found, dict):
                    raise UserError(f"{path}:{number}: holds {type(found).__name__}, and a line is an object; {advice}")
                yield found
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {advice}") from None

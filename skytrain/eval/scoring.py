"""Answers to verdicts, and verdicts to scores."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from skytrain.eval import engine
from skytrain.eval.folder import Kept, put_results, samples_file, write_kept
from skytrain.eval.load import Loaded
from skytrain.eval.results import FORMAT, Evaluation, Part, Results, Sample, TaskResult
from skytrain.eval.scores import pass_at_all, score
from skytrain.eval.settings import Settings, TaskSettings, expected
from skytrain.eval.task import Task
from skytrain.prep.answers import AnswerLog, key_of
from skytrain.prep.asking import Model
from skytrain.prep.client import Request
from skytrain.prep.judging import Record, TestsDigests, judged
from skytrain.prep.sections import THOUGHT
from skytrain.prep.stage import Row, dumps, progress_bar, write_atomically

VERSION = 1
"""Of the judgements: raised where a logged one could no longer be given."""
UNJUDGED = {"truncated": "truncated", "empty": "no_answer", "filtered": "filtered", "unfinished": "unfinished"}
"""Verdicts on completions that hold no whole answer. None is right, whatever their text says."""
MANY = 0.1
"""Share of truncated samples from which on a score is told to be one of the limit as well."""
Key = tuple[str, int]
"""A problem's id and a sample's number."""


@dataclass(frozen=True)
class Plan:
    """A task as it is asked. system: the system prompt's name; items: problems with `messages` and `prompt_version`."""

    settings: TaskSettings
    task: Task
    model: Model
    system: str
    items: list[Row]
    loaded: Loaded

    def request(self, row: Row, sample: int) -> Request:
        return self.model.request(row["messages"], row["prompt_version"], sample)


class Verdict(msgspec.Struct):
    """A line of verdicts.jsonl."""

    key: str
    status: str
    id: str
    answer: str | None
    detail: str


def scored(
    folder: Path,
    settings: Settings,
    plans: list[Plan],
    answers: AnswerLog,
    servers: list[dict[str, Any]],
    kept: Kept,
    failed: dict[str, str],
    *,
    again: bool = False,
) -> Results:
    """Writes the samples and, last, results.json with the tasks that the folder holds beside. failed: why requests
    stayed unanswered, by key. again: whether what has a logged verdict is judged anew."""
    workers = settings.workers or len(os.sched_getaffinity(0))
    beside = _beside(folder, plans, kept)
    fingerprints = {row["server"]: set(row["fingerprints"]) for row in beside.servers} if beside else {}
    results = {task.name: task for task in beside.tasks} if beside else {}
    made: list[_Scoring] = []
    paid = {sample.key for task in results for sample in Evaluation(folder).samples(task)}
    with AnswerLog(folder / "verdicts.jsonl", Verdict) as verdicts, progress_bar() as bar:
        for plan in plans:
            judging = bar.add_task(f"judging {plan.settings.name}", total=len(plan.items) * plan.settings.samples)
            found = _judged(plan, answers, verdicts, settings.sandbox, workers, again, partial(bar.advance, judging))
            made.append(_Scoring(plan, answers, found, failed, paid))
    # Scores of what the samples are no longer: a kill before the new ones leaves these tasks unfinished.
    put_results(folder, beside)
    for one in made:
        one.write(samples_file(folder, one.plan.settings.name))
        results[one.plan.settings.name] = one.result(settings.thinks)
        for server, told in one.fingerprints.items():
            fingerprints.setdefault(server, set()).update(told)
    order = [task.settings.name for task in kept.tasks if task.settings.name in results]
    done = _results(settings, [results[name] for name in order], _with_fingerprints(servers, fingerprints))
    put_results(folder, done)
    for task in kept.tasks:
        task.finished = task.settings.name in results
    write_kept(folder, kept)
    return done


def _beside(folder: Path, plans: list[Plan], kept: Kept) -> Results | None:
    """The scores of the folder's other tasks, as they are; None where there are none."""
    own = {plan.settings.name for plan in plans}
    others = {task.settings.name for task in kept.tasks if task.finished} - own
    if not others or not (folder / "results.json").exists():
        return None
    found = Evaluation(folder).results
    return msgspec.structs.replace(found, tasks=[task for task in found.tasks if task.name in others])


def _results(settings: Settings, tasks: list[TaskResult], servers: list[dict[str, Any]]) -> Results:
    spent = [sum(getattr(task, name) for task in tasks) for name in ("prompt_tokens", "completion_tokens")]
    prices = settings.price
    return Results(
        format=FORMAT,
        model=settings.model,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        servers=servers,
        sandbox=settings.sandbox,
        prompt_tokens=spent[0],
        completion_tokens=spent[1],
        money=sum(tokens * price for tokens, price in zip(spent, prices)) / 1e6 if prices else None,
        tasks=tasks,
    )


def _judged(
    plan: Plan,
    answers: AnswerLog,
    verdicts: AnswerLog,
    sandbox: str,
    workers: int,
    again: bool,
    advance: Callable[[], None],
) -> dict[Key, Record]:
    """The records of verdicts.jsonl of all answers that are whole."""
    digests = TestsDigests()

    def record(key: str, row: Row, text: str) -> Record:
        found = plan.task.judge(row, text, sandbox)
        return {"key": key, "status": found.verdict, "id": row["id"], "answer": found.answer, "detail": found.detail}

    def work() -> Iterator[tuple[Key, str, Callable[[], Record]]]:
        for row in plan.items:
            tests = digests(row.get("tests"))
            for sample in range(plan.settings.samples):
                answer = answers.get(plan.request(row, sample).key)
                if answer is None or answer["status"] in UNJUDGED:
                    advance()
                    continue
                text = answer["answer"]
                what = (plan.task.name, row["domain"], row.get("gold"), tests, row.get("starter"), row["provenance"])
                key = key_of(VERSION, sandbox, text, *what)
                yield (row["id"], sample), key, partial(record, key, row, text)

    found = {}
    for key, one in judged(verdicts, work(), workers, again=again):
        advance()
        found[key] = one
    return found


class _Scoring:
    """Of one task, in one pass over its answers."""

    def __init__(
        self, plan: Plan, answers: AnswerLog, judgements: dict[Key, Record], failed: dict[str, str], paid: set[str]
    ):
        """paid: keys of answers whose tokens have been counted; those counted here are added."""
        self.plan = plan
        self.spent: Counter[str] = Counter()
        self.fingerprints: dict[str, set[str]] = {}
        self._answers, self._judgements, self._failed, self._paid = answers, judgements, failed, paid
        self._right: dict[str, list[float]] = {}
        self._verdicts: Counter[str] = Counter()
        self._lengths: list[int] = []
        self._thinking = self._seen = 0
        self._missing = ""
        """Why the last missing one is."""
        self._alike = True
        """Whether all samples of each problem are one text."""

    def write(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        lines = []
        for row in self.plan.items:
            texts = set()
            for sample in range(self.plan.settings.samples):
                made, text = self._sample(row, sample)
                texts.add(text)
                lines.append(dumps(msgspec.to_builtins(made)))
            self._alike = self._alike and len(texts) == 1
        write_atomically(path, b"".join(lines))

    def _sample(self, row: Row, sample: int) -> tuple[Sample, str | None]:
        key = self.plan.request(row, sample).key
        record = self._answers.get(key)
        if record is None:
            self._missing = self._failed.get(key, "no answer is logged")
            made = (None, "missing", self._missing, None, "missing", 0)
        elif record["status"] in UNJUDGED:
            detail = f"finish_reason {record['finish_reason']}"
            made = (record, UNJUDGED[record["status"]], detail, None, record["status"], record["completion_tokens"])
        else:
            found = self._judgements[row["id"], sample]
            made = (record, found["status"], found["detail"], found["answer"], record["status"],
                    record["completion_tokens"])  # fmt: skip
        verdict = made[1]
        self._right.setdefault(row["id"], []).append(float(verdict == "correct"))
        self._verdicts[verdict] += 1
        if record is not None:
            self._count(record)
        told = Sample(row["id"], sample, row.get("part"), *made[1:4], row.get("gold"), *made[4:], key)
        return told, record and f"{record['reasoning']}\0{record['answer']}"

    def _count(self, record: dict[str, Any]) -> None:
        self._seen += 1
        self._thinking += bool(record["reasoning"]) or THOUGHT[0] in record["answer"]
        if record["key"] not in self._paid:
            self._paid.add(record["key"])
            for name in ("prompt_tokens", "completion_tokens"):
                self.spent[name] += record[name]
        if record["completion_tokens"]:
            self._lengths.append(record["completion_tokens"])
        if record["engine"]:
            self.fingerprints.setdefault(record["server"], set()).add(record["engine"])

    def result(self, thinks: bool) -> TaskResult:
        plan, settings = self.plan, self.plan.settings
        parts: dict[str, dict[str, list[float]]] = {}
        for row in plan.items:
            if row.get("part") is not None:
                parts.setdefault(row["part"], {})[row["id"]] = self._right[row["id"]]
        order = [*plan.task.parts, *sorted(parts.keys() - set(plan.task.parts))]
        asked = len(plan.items) * settings.samples
        return TaskResult(
            name=settings.name,
            title=plan.task.title,
            data=plan.loaded.data,
            version=settings.version,
            since=settings.since,
            until=settings.until,
            prompt=sorted({row["prompt_version"] for row in plan.items}),
            system=plan.system,
            sampling=plan.model.sampling.body(),
            seed=settings.seed,
            samples=settings.samples,
            limit=settings.limit,
            problems=len(plan.items),
            whole=self._whole(),
            skipped=plan.loaded.skipped,
            score=score(self._right),
            parts={name: Part(len(parts[name]), score(parts[name])) for name in order if name in parts},
            pass_at=pass_at_all(self._right),
            verdicts=dict(self._verdicts.most_common()),
            truncated=self._verdicts["truncated"] / asked,
            tokens=sum(self._lengths) / len(self._lengths) if self._lengths else None,
            prompt_tokens=self.spent["prompt_tokens"],
            completion_tokens=self.spent["completion_tokens"],
            expected=expected(settings),
            warnings=[*plan.loaded.notes, *self._warnings(thinks, asked)],
        )

    def _whole(self) -> bool:
        settings, task = self.plan.settings, self.plan.task
        if settings.limit is not None or settings.since or settings.until or (task.versions and not settings.version):
            return False
        return task.problems in (None, len(self.plan.items))

    def _warnings(self, thinks: bool, asked: int) -> Iterator[str]:
        settings, verdicts = self.plan.settings, self._verdicts
        if settings.limit is not None:
            yield f"only the first {len(self.plan.items):,} problems were asked (--limit)"
        if verdicts["missing"]:
            yield f"{verdicts['missing']:,} of {asked:,} samples are missing, and count as wrong ({self._missing})"
        if verdicts["truncated"] >= MANY * asked:
            yield f"{verdicts['truncated'] / asked:.0%} of the samples were cut off at {settings.max_tokens:,} tokens"
        if thinks and self._seen and self._thinking < self._seen / 2:
            none = self._seen - self._thinking
            yield (
                f"no thoughts in {none:,} of {self._seen:,} answers (no thought tags, no <think>): a model trained to "
                f"think may need its system prompt (--system train; it was {self.plan.system}); else --no-thinks"
            )
        if settings.samples > 1 and self._seen and self._alike:
            why = "does the server look at `seed`?" if settings.temperature > 0 else "one would tell as much"
            yield f"all samples of each problem are the same, at temperature {settings.temperature:g}: {why}"
        for name, what in (("gold_unparseable", "gold answers that cannot be read"), ("bad_tests", "tests of no form")):
            if verdicts[name]:
                yield f"{verdicts[name]:,} samples of problems with {what}; they count as wrong"
        engines = set().union(*self.fingerprints.values())
        if len(engines) > 1:
            yield f"the answers are of more than one engine: {', '.join(sorted(engines))}"


def _with_fingerprints(servers: list[dict[str, Any]], seen: dict[str, set[str]]) -> list[dict[str, Any]]:
    """What the answers' own fingerprints say, where a server told nothing; and the fingerprints themselves."""
    rows = []
    for row in servers:
        own = sorted(seen.get(row["server"], ()))
        told = engine.of_fingerprint(own[-1]) if own else {}
        open_still = {key: value for key, value in told.items() if row.get(key) is None}
        rows.append({**row, **open_still, "fingerprints": own})
    return rows

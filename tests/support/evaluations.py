"""Folders of evaluations and of training runs, in the form in which the commands leave them, with texts to order."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from skytrain import cli, config
from skytrain.eval.results import FORMAT, Part, Results, Sample, Score, TaskResult
from skytrain.prep.completions import Completion
from skytrain.report import runs, samples

SYSTEM = "Think first, then answer."


@dataclass
class Problem:
    """verdicts: of each sample. answer: the text of a sample, thoughts apart."""

    id: str
    verdicts: list[str]
    part: str | None = None
    question: str = "What is 1 + 1?"
    gold: str | None = "2"
    thoughts: str | None = "One and one are two."
    answer: Callable[[int], str] = lambda sample: f"Sample {sample}: \\boxed{{2}}"
    tokens: Callable[[int], int] = lambda sample: 100 + 10 * sample
    item: dict[str, Any] = field(default_factory=dict)
    """More of its line in items/TASK.jsonl."""


def write(folder: Path, model: str, tasks: dict[str, Iterable[Problem]], **changed: dict[str, Any]) -> Path:
    """changed: task to fields of its `TaskResult`. A sample's verdict `missing` means that it has no answer."""
    for name in ("items", "samples"):
        (folder / name).mkdir(parents=True)
    (folder / "eval.json").write_text("{}")
    with (folder / "answers.jsonl").open("w", encoding="utf-8", errors="surrogatepass") as answers:
        results = [_task(folder, answers, model, name, given, changed.get(name, {})) for name, given in tasks.items()]
    server = {"url": "http://gpu:8000/v1", "engine": "vllm", "version": "0.11.0", "dtype": "bfloat16"}
    found = Results(FORMAT, model, "2026-01-02 03:04:05", [server], "bwrap", 1000, 2000, 1.25, results)
    (folder / "results.json").write_bytes(msgspec.json.encode(found))
    return folder


def _task(folder: Path, answers: Any, model: str, name: str, problems: Iterable[Problem], changed: dict) -> TaskResult:
    verdicts: Counter[str] = Counter()
    shares: dict[str | None, list[float]] = {}
    tokens: list[int] = []
    count = 0
    with (folder / f"items/{name}.jsonl").open("w") as items, (folder / f"samples/{name}.jsonl").open("wb") as lines:
        for problem in problems:
            count += 1
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": problem.question}]
            row = {"id": problem.id, "prompt": problem.question, "gold": problem.gold, "domain": "math"}
            items.write(json.dumps({**row, "part": problem.part, "messages": messages, **problem.item}) + "\n")
            shares.setdefault(problem.part, []).append(problem.verdicts.count("correct") / len(problem.verdicts))
            for i, verdict in enumerate(problem.verdicts):
                key = f"{model}/{name}/{problem.id}/{i}"
                sample = _sample(problem, i, verdict, key)
                lines.write(msgspec.json.encode(sample) + b"\n")
                if verdict != "missing":
                    tokens.append(sample.tokens)
                    answers.write(json.dumps(_completion(problem, i, sample).record()) + "\n")
            verdicts.update(problem.verdicts)
    every = [share for listed in shares.values() for share in listed]
    fields: dict[str, Any] = {
        "name": name, "title": name, "data": [("test.jsonl", 1234, "ab" * 32)], "version": None, "since": None,
        "until": None, "prompt": ["math.box@0123456789ab"], "system": "train@ba9876543210",
        "sampling": {"temperature": 0.7, "max_tokens": 32768}, "seed": 0,
        "samples": sum(verdicts.values()) // max(count, 1), "limit": None, "problems": count,
        "whole": True, "prompt_tokens": 1000, "completion_tokens": 2000, "skipped": {}, "score": _score(every),
        "parts": {part: Part(len(listed), _score(listed)) for part, listed in shares.items() if part},
        "pass_at": {1: _score(every)}, "verdicts": dict(verdicts),
        "truncated": verdicts["truncated"] / max(1, sum(verdicts.values())),
        "tokens": sum(tokens) / len(tokens) if tokens else None, "expected": {}, "warnings": [],
    }  # fmt: skip
    return TaskResult(**{**fields, **changed})


def _score(shares: list[float]) -> Score:
    mean = sum(shares) / len(shares)
    return Score(mean, 0.02, max(0.0, mean - 0.04), min(1.0, mean + 0.04))


def _sample(problem: Problem, i: int, verdict: str, key: str) -> Sample:
    status = verdict if verdict in ("missing", "truncated") else "finished"
    taken = {"correct": "2", "wrong": "3"}.get(verdict)
    tokens = 0 if verdict == "missing" else problem.tokens(i)
    return Sample(problem.id, i, problem.part, verdict, "", taken, problem.gold, status, tokens, key)


def _completion(problem: Problem, i: int, sample: Sample) -> Completion:
    finish = "length" if sample.status == "truncated" else "stop"
    texts = (problem.thoughts, problem.answer(i))
    return Completion(sample.key, sample.status, *texts, finish, 50, sample.tokens, "http://gpu:8000", 1.0, None)


def write_training(folder: Path, steps: int = 20, of: int = 20, **changes: Callable[[int], Any]) -> Path:
    """steps: that are done, of so many. changes: key to its value at a step."""
    folder.mkdir(parents=True)
    tables = {"run": {"dir": str(folder)}, "model": {"path": "model"}, "data": {"path": "data"}}
    settings = config.resolve({**tables, "batch": {"documents": 96, "max_tokens": 16384}}, "test")
    (folder / "config.toml").write_text(config.dumps(settings))
    draw = random.Random(0)
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        line = {
            "step": step, "loss": 0.5 + 1 / step + draw.random() / 20, "grad_norm": 1 + draw.random(),
            "lr": 1e-5 * (1 - step / of), "epoch": 0, "skipped": 0, "tokens": 400_000, "trained_tokens": 380_000,
            "tokens_per_s": 40_000 + draw.random() * 1000, "trained_tokens_per_s": 38_000.0, "step_s": 10.0,
            "peak_memory_gib": 70.5, "recomputed": 0.25, "eta_s": (of - step) * 10.0, "mfu": 0.45,
            "money": step * 0.07,
        }  # fmt: skip
        lines.append({**line, **{key: value(step) for key, value in changes.items()}})
        if step % 5 == 0:
            lines.append({"step": step, "validation_loss": 0.55 + 1 / step})
    if steps == of:
        lines.append({"step": of, "checkpoint_pause_s": 1.0, "checkpoint_s": 20.0})
        planned = {"planned_peak_memory_gib": 69.0, "planned_step_s": 9.5, "planned_tokens_per_s": 42_000.0}
        measured = {"measured_peak_memory_gib": 70.5, "measured_step_s": 10.0, "measured_tokens_per_s": 40_500.0}
        lines.append({"step": of, **planned, **measured})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def report(*folders, out, overwrite=False) -> int:
    parsed = cli.parse(["report", *map(str, folders), "--out", str(out), *(["--overwrite"] if overwrite else [])])
    return parsed.run(parsed)


def read(*folders):
    training, evaluated, _ = runs.read(list(folders))
    return training, evaluated, samples.count(evaluated)


def changed(folder: Path, **fields: Any) -> Path:
    """results.json with other fields."""
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder

"""What the stages of data preparation, or the tasks of an evaluation, will take: requests, tokens, hours, money.

A stage that asks a model takes what its servers' roofline says (serving.py). Grading takes the CPU's cores at measured
rates. The others (reading, choosing, filtering, writing tokens) take minutes, and are not planned. Money is that of the
GPUs, which are rented while the cores grade too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from skytrain.errors import UserError
from skytrain.files import read_regular
from skytrain.plan.hardware import Device, find
from skytrain.plan.known import positions, served
from skytrain.plan.serving import Pool, Serving, plan_serving
from skytrain.plan.work import Work, WorkPlan

ANSWERS_A_CORE_S = 1396 / 2
PROGRAMS_A_CORE_S = 57.49 / 2
"""Answers of mathematics, and sandboxed runs of a program on a test, that a core judges a second: the medians of
bench/results/grading.csv on two cores of an AMD EPYC (28 November 2026). The programs there end at once, so this is
what a run costs by itself; what a program computes comes on top of it."""
ASKING = ("label", "generate", "rewrite")
OTHERS = ("import", "select", "filter", "tokenize")
IN_FLIGHT = 256
"""Where a stage does not say it."""


@dataclass(frozen=True)
class StagePlan:
    """name: of the stage or task. serving: None where no model is asked. runs: of programs on tests. hours: None where
    it is too small to plan."""

    name: str
    do: str
    work: Work
    serving: Serving | None = None
    runs: int = 0
    grading_hours: float = 0.0

    @property
    def hours(self) -> float | None:
        if self.serving is None and not self.work.answers + self.runs:
            return None
        return (self.serving.hours if self.serving else 0.0) + self.grading_hours


@dataclass(frozen=True)
class RecipePlan:
    recipe: str
    plan: WorkPlan
    device: Device
    stages: list[StagePlan]

    @property
    def hours(self) -> float:
        return sum(stage.hours or 0.0 for stage in self.stages)

    def money(self, hours: float | None) -> float | None:
        price = self.plan.price_per_gpu_hour
        return None if hours is None or price is None else hours * self.plan.gpus * price


def plan_recipe(
    path: str | Path, overrides: list[str], *, gpu: str | None, gpus: int | None, price: float | None
) -> RecipePlan:
    """Of a recipe of preparation (`[[stage]]`) or evaluation (`[[task]]`). gpu, gpus, price: in the place of [plan]'s.
    UserError for a recipe or a [plan] that is not right."""
    stages, table = _preparation(path, overrides) if kind(path) == "preparation" else _evaluation(path, overrides)
    given = {"gpu": gpu, "gpus": gpus, "price_per_gpu_hour": price}
    plan = msgspec.structs.replace(table, **{key: value for key, value in given.items() if value is not None})
    device = find(plan.gpu)
    return RecipePlan(str(path), plan, device, [_planned(path, stage, plan, device) for stage in stages])


@dataclass(frozen=True)
class _Stage:
    """asks, grades: what it does of the two. in_flight: requests that the client has out at a time."""

    name: str
    do: str
    asks: bool
    grades: bool
    work: Work | None
    in_flight: int


def kind(path: str | Path) -> str:
    """preparation, evaluation, or training for all else, a file that cannot be read among it."""
    try:
        keys = tomllib.loads(read_regular(path).decode()).keys()
    except (OSError, ValueError, RecursionError):
        return "training"
    return "preparation" if "stage" in keys else "evaluation" if "task" in keys else "training"


def _preparation(path: str | Path, overrides: list[str]) -> tuple[Iterable[_Stage], WorkPlan]:
    from skytrain.prep.recipe import read_stages

    _, stages, plan = read_stages(Path(path), overrides)
    found = []
    for stage in stages:
        do, in_flight = stage.get("do"), stage.get("in_flight", IN_FLIGHT)
        name = stage.get("name", do)
        if do not in (*ASKING, "grade", *OTHERS):
            raise UserError(f"{path}: stage {name!r}: do must be one of {', '.join((*ASKING, 'grade', *OTHERS))}")
        if not isinstance(in_flight, int) or in_flight < 1:
            raise UserError(f"{path}: stage {name!r}: in_flight must be a whole number, 1 or more, not {in_flight!r}")
        _check_work(path, name, stage, plan, overrides)
        asks = do in ASKING and "model" in stage
        found.append(_Stage(name, do, asks, do == "grade", plan.work.get(name), in_flight))
    return found, plan


def _check_work(path: str | Path, name: str, stage: dict[str, Any], plan: WorkPlan, overrides: list[str]) -> None:
    """UserError where the stage's own settings and its work in [plan] cannot both be."""
    given = [word.partition("=")[0] for word in overrides]
    requests = f"plan.work.{name}.requests"
    if f"{name}.samples" in given and requests not in given:
        raise UserError(f"{name}.samples: changes how much is asked; give {requests} too, and of what stands behind it")
    work, most = plan.work.get(name), stage.get("max_tokens")
    if work is not None and most is not None and (not isinstance(most, int) or work.completion_tokens > most):
        raise UserError(
            f"{path}: plan.work.{name}.completion_tokens = {work.completion_tokens:,}, and no answer of stage {name!r} "
            f"has more than its max_tokens, {most!r}; lower the one, or raise the other"
        )


def _evaluation(path: str | Path, overrides: list[str]) -> tuple[Iterable[_Stage], WorkPlan]:
    from skytrain.eval.settings import TaskSettings, read
    from skytrain.eval.tasks import task_of

    if overrides:
        raise UserError(f"{overrides[0]}: a recipe of evaluation takes no settings here; write them into its [plan]")
    settings = read(path, {}, [])

    def work(task: TaskSettings) -> Work | None:
        own = settings.plan.work.get(task.name)
        if own is None or own.requests is not None:
            return own
        known = task_of(task.name)
        problems = known.versions[task.version].problems if task.version else known.problems
        asked = min(number for number in (problems, task.limit) if number is not None) if problems else None
        return msgspec.structs.replace(own, requests=asked * task.samples if asked else None)

    tasks = (_Stage(one.name, "task", True, False, work(one), settings.in_flight) for one in settings.task)
    return tasks, settings.plan


def _planned(path: str | Path, stage: _Stage, plan: WorkPlan, device: Device) -> StagePlan:
    where = f"{path}: plan.work.{stage.name}"
    if not stage.asks and not stage.grades:
        if stage.work is not None:
            raise UserError(f"{where}: this stage neither asks a model nor grades, so nothing of it is planned")
        return StagePlan(stage.name, stage.do, Work())
    work = stage.work
    if work is None:
        raise UserError(f"{where}: is missing; say how many requests or answers there will be, and their tokens")
    serving = None
    if stage.asks:
        if not work.requests or not work.completion_tokens:
            raise UserError(f"{where}: needs requests and completion_tokens, of 1 or more")
        name = work.model or plan.model
        if name is None:
            raise UserError(f"{path}: plan.model is missing; name the known model that the servers' has the shapes of")
        longest, mean = positions(name), work.prompt_tokens + work.completion_tokens
        if mean > longest:
            raise UserError(f"{where}: a request of {mean:,} tokens, and {name} holds {longest:,}; give fewer tokens")
        pool = Pool(device, served(name), plan.gpus, plan.tensor_parallel, plan.max_sequences, stage.in_flight)
        serving = plan_serving(pool, work.requests, work.prompt_tokens, work.completion_tokens)
    runs = work.programs * work.tests
    hours = (work.answers / ANSWERS_A_CORE_S + runs / PROGRAMS_A_CORE_S) / plan.cores / 3600
    return StagePlan(stage.name, stage.do, work, serving, runs, hours)


def as_json(one: RecipePlan) -> dict[str, Any]:
    """Hours, tokens, USD; `hours` is null for a stage that takes minutes and is not planned."""

    def row(stage: StagePlan) -> dict[str, Any]:
        found: dict[str, Any] = {"name": stage.name, "do": stage.do, "hours": stage.hours}
        found["money"] = one.money(stage.hours)
        if stage.serving is not None:
            work, serving = stage.work, stage.serving
            found |= {
                "requests": work.requests,
                "prompt_tokens": work.requests * work.prompt_tokens,
                "completion_tokens": work.requests * work.completion_tokens,
                "tokens_per_s": serving.tokens_per_s,
                "batch": serving.batch,
                "bound": serving.bound,
            }
        if stage.work.answers or stage.runs:
            grading = {"answers": stage.work.answers, "program_runs": stage.runs, "grading_hours": stage.grading_hours}
            found |= grading
        return found

    plan = one.plan
    return {
        "recipe": one.recipe,
        "gpu": one.device.id,
        "gpus": plan.gpus,
        "tensor_parallel": plan.tensor_parallel,
        "cores": plan.cores,
        "serving_efficiency": one.device.efficiency.serving,
        "stages": [row(stage) for stage in one.stages],
        "hours": one.hours,
        "money": one.money(one.hours),
    }

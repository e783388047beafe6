"""The [plan] of a recipe of data preparation or evaluation: what `skytrain plan` takes that the recipe does not say.

    [plan]
    gpu = "h100-80gb"
    gpus = 8
    tensor_parallel = 4                # GPUs that hold one copy of the model
    model = "qwen2.5-32b"              # whose shapes the servers' models have (skytrain/plan/models.toml)
    price_per_gpu_hour = 2.96

    [plan.work.generate]               # a stage's name, or a task's
    requests = 40791
    prompt_tokens = 400                # means
    completion_tokens = 4660

A run reads none of it but checks it, so that a mistake is told before anything is done.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

import msgspec

from skytrain.errors import UserError

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Price = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class Work(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """requests: to the servers; of a task of evaluation its problems times its samples, where none are given.
    prompt_tokens, completion_tokens: the means of one. model: another than the plan's. answers: compared with a gold
    one. programs: programs that are run on tests, `tests` of them each."""

    requests: Positive | None = None
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    model: str | None = None
    answers: Count = 0
    programs: Count = 0
    tests: Positive = 1


class WorkPlan(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """gpu: a row of the hardware table. gpus: in all. tensor_parallel: of them in a replica. max_sequences: that a
    replica answers at a time. model: a known one. cores: of the CPU, for grading. work: by stage or task."""

    gpu: str = "h100-80gb"
    gpus: Positive = 8
    tensor_parallel: Positive = 1
    max_sequences: Positive = 256
    model: str | None = None
    price_per_gpu_hour: Price | None = None
    cores: Positive = 1
    work: dict[str, Work] = {}


def work_plan(table: Any, names: Collection[str], where: str) -> WorkPlan:
    """The table checked. names: as in `check_names`. UserError that names the key."""
    try:
        plan = msgspec.convert(table, WorkPlan)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at ")
        raise UserError(f"{where}: plan{place.strip('`').removeprefix('$')}: {text}") from None
    check_names(plan, names, where)
    return plan


def check_names(plan: WorkPlan, names: Collection[str], where: str) -> None:
    """names: of the recipe's stages or tasks. UserError for work of another one."""
    if unknown := sorted(plan.work.keys() - {*names}):
        raise UserError(
            f"{where}: plan.work.{unknown[0]}: the recipe has no such stage or task, but {', '.join(names) or 'none'}"
        )

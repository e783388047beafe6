"""The benchmarks, each in a file of its own, and the sets that users bring."""

from __future__ import annotations

from difflib import get_close_matches

from skytrain.errors import UserError
from skytrain.eval.task import Task
from skytrain.eval.tasks import aime, amc, gpqa, humaneval, livecodebench, math500, olympiadbench
from skytrain.eval.tasks import plain as plain_rows

_ALL = (
    math500.TASK,
    *aime.TASKS,
    *amc.TASKS,
    gpqa.TASK,
    livecodebench.TASK,
    olympiadbench.TASK,
    humaneval.TASK,
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def check_name(name: str) -> None:
    """Raises `UserError` for a name that is nearly a benchmark's, which would be taken for a set of one's own."""
    near = [one for one in TASKS if one.startswith(f"{name}_")] or get_close_matches(name, TASKS, n=1, cutoff=0.85)
    if name not in TASKS and near:
        raise UserError(f"{name}: is {near[0]} meant? Problems of your own need a name that is less like it")


def task_of(name: str) -> Task:
    """The benchmark of this name, or else the task of a user's own problems."""
    return TASKS.get(name) or Task(name, name, plain_rows.read)

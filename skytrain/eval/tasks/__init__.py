"""The benchmarks, each in a file of its own, and the sets that users bring."""

from __future__ import annotations

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


def task_of(name: str) -> Task:
    """The benchmark of this name, or else the task of a user's own problems."""
    return TASKS.get(name) or Task(name, name, plain_rows.read)

"""The benchmarks, each in a file of its own, and the sets that users bring."""

from __future__ import annotations

import re

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


def plain(name: str) -> Task:
    """The task of a user's own problems. Raises `UserError` for a name that is another task's, or cannot be one."""
    if name in TASKS:
        raise UserError(f"{name}: is the name of a benchmark ({TASKS[name].title}); give your problems another")
    if not re.fullmatch(r"[a-z0-9_-]+", name):
        raise UserError(f"{name!r}: the name of a task has small letters, digits, _ and - alone")
    return Task(name, name, plain_rows.read)

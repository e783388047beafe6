"""What an evaluation is asked to do: a recipe's TOML, the command line over it, and what both leave out.

A recipe's [plan] is for `skytrain plan` (skytrain/plan/work.py).

model = "NovaSky-AI/Sky-T1-32B-Preview"
server = ["http://127.0.0.1:8000/v1"]
samples = 8                            # of every task that does not say otherwise

[[task]]
name = "aime24"
data = "data/eval/aime24.jsonl"
expected = [31, 46]                    # percent; or by part: { easy = [80, 92], hard = [11, 25] }
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal

import msgspec

from skytrain.errors import UserError
from skytrain.eval.asked import Variant
from skytrain.eval.tasks import check_name, task_of
from skytrain.files import read_regular, unopened
from skytrain.plan.work import WorkPlan, check_names

SHARED = ("samples", "limit", "prompt", "system", "temperature", "top_p", "max_tokens", "extra", "seed")
"""What a task may have of its own."""
TOLD = ("server", "serves", "max_model_len", "fingerprints", "answers")
WINDOW = ("version", "since", "until")
"""What tasks have that grow."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


class TaskSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """name: of a task, or of a set of one's own. data: its published file or files, or a folder that holds them; the
    hub's where none is named. version: of LiveCodeBench, as release_v2; since, until: dates of its contests, both
    inclusive. expected: [low, high] in percent, or by part. The rest as in `Settings`, for this task."""

    name: str
    data: str | list[str] | None = None
    version: str | None = None
    since: str | None = None
    until: str | None = None
    expected: tuple[float, float] | dict[str, tuple[float, float]] | None = None
    samples: int | None = None
    limit: int | None = None
    prompt: Variant | None = None
    system: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    extra: dict[str, Any] | None = None
    seed: int | None = None


class Settings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Everything that an evaluation depends on; each is an option of the command line too.

    out: the folder of all that is made; runs/eval-MODEL if not given. prompt: before, after or bare (where the
    instruction stands). system: none (the model's chat template says its own, if it has one), train (the one that
    skytrain trains with) or a file. prompts: a folder of texts in the place of ours. thinks: whether answers without
    thoughts are warned of. engine: what the servers do not tell of themselves, as dtype. price: USD for a million
    tokens in and out. plan: for `skytrain plan` alone. The rest as in `skytrain.prep.asking` and
    `skytrain.prep.grading`.
    """

    model: str = ""
    server: list[str] = []
    out: str | None = None
    task: list[TaskSettings] = []
    samples: int = 16
    limit: int | None = None
    prompt: Variant = "before"
    system: str = "none"
    prompts: str | None = None
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 32768
    extra: dict[str, Any] = {}
    seed: int = 0
    thinks: bool = True
    engine: dict[str, str] = {}
    in_flight: int = 256
    tries: int = 8
    patience: float = 600.0
    timeout: float | None = None
    api_key_env: str = "OPENAI_API_KEY"
    price: tuple[float, float] | None = None
    on_unanswered: Literal["error", "drop"] = "error"
    workers: int | None = None
    sandbox: Literal["bubblewrap", "process"] = "bubblewrap"
    plan: WorkPlan = WorkPlan()

    @property
    def folder(self) -> Path:
        return Path(self.out or f"runs/eval-{re.sub(r'[^A-Za-z0-9._-]+', '-', self.model).strip('-')}")


def read(path: str | Path | None, given: dict[str, Any], tasks: Sequence[str]) -> Settings:
    """The recipe (none if None), `given` over it and over its tasks' own, and of its tasks those that `tasks` names.

    given: settings by their names, and of WINDOW, for the tasks that have it.

    tasks: NAME or NAME=FILE each; all of the recipe's where there are none. Raises `UserError` that names the key.
    """
    where = str(path or "skytrain eval")
    window = {key: given[key] for key in WINDOW if key in given}
    content = {**_toml(path), **{key: value for key, value in given.items() if key not in window}}
    try:
        settings = msgspec.convert(content, Settings)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {_told(error)}") from None
    every = settings.task
    chosen = every if not tasks else [_named(word, every, where) for word in tasks]
    if not chosen:
        raise UserError(f"{where}: names no task; as --tasks aime24=FILE, or [[task]] in a recipe")
    if settings.out == "":
        raise UserError(f"{where}: out is empty; leave it out for runs/eval-MODEL")
    if told := sorted(settings.engine.keys() & set(TOLD)):
        raise UserError(f"{where}: engine {told[0]}: is the server's own to tell; as dtype, parallelism or hardware")
    names = [task.name for task in chosen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where}: the task {twice[0]} stands twice; give one of them another name")
    own = {key: None for key in SHARED if key in given}
    growing = [task.name for task in chosen if task_of(task.name).dated]
    if window and not growing:
        raise UserError(f"--{next(iter(window))}: none of the tasks grows, as livecodebench does; leave it out")
    check_names(settings.plan, [task.name for task in every], where)
    settings.task = [
        resolved(msgspec.structs.replace(task, **own, **(window if task.name in growing else {})), settings)
        for task in chosen
    ]
    for task in settings.task:
        _check(task, where)
        check_name(task.name)
    return settings


def resolved(task: TaskSettings, settings: Settings) -> TaskSettings:
    """The task with nothing of `SHARED` left open, but for a limit that there is not."""
    open_still = {key: getattr(settings, key) for key in SHARED if getattr(task, key) is None}
    return msgspec.structs.replace(task, **open_still)


def _toml(path: str | Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(read_regular(path).decode())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({unopened(path, error)}); give the path of a TOML recipe") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot be read as TOML ({error})") from None


def _told(error: msgspec.ValidationError) -> str:
    """msgspec's message, with the key as the recipe has it: `$.task[0].limit` is task[0].limit."""
    text, _, place = str(error).partition(" - at ")
    key = place.strip("`").removeprefix("$").removeprefix(".")
    return f"{key}: {text}" if key else text


def _named(word: str, tasks: list[TaskSettings], where: str) -> TaskSettings:
    name, equals, file = word.partition("=")
    if equals and not file:
        raise UserError(f"--tasks {word}: names no file behind the equals sign")
    found = next((task for task in tasks if task.name == name), None)
    if found is None and tasks:
        raise UserError(f"--tasks {name}: is not in {where}, which has {', '.join(task.name for task in tasks)}")
    found = found or TaskSettings(name=name)
    # Other files than the recipe's need not be of its version.
    return msgspec.structs.replace(found, data=file, version=None) if file else found


def _check(task: TaskSettings, where: str) -> None:
    if not _NAME.fullmatch(task.name):
        raise UserError(f"{where}: task {task.name!r}: a name has lower-case letters, digits, _ and - alone")
    for key in ("since", "until"):
        value = getattr(task, key)
        try:
            if value is not None:
                date.fromisoformat(value)
        except ValueError:
            raise UserError(f"{where}: task {task.name}: {key} must be a date as 2024-05-01, not {value!r}") from None
    for low, high in expected(task).values():
        if not 0 <= low <= high <= 100:
            raise UserError(f"{where}: task {task.name}: expected must be low and high in percent, not {low}, {high}")


def expected(task: TaskSettings) -> dict[str, tuple[float, float]]:
    """By part; "" is the whole."""
    if task.expected is None:
        return {}
    return task.expected if isinstance(task.expected, dict) else {"": task.expected}

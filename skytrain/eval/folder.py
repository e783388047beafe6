"""An evaluation's folder: one model's scores, each task asked in one way. See `results` for its files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NoReturn

import msgspec

from skytrain.errors import UserError
from skytrain.eval.load import Loaded
from skytrain.eval.results import Results, result_lines
from skytrain.eval.settings import SHARED, WINDOW, Settings, TaskSettings
from skytrain.files import read_regular
from skytrain.prep.stage import Row, absolute_tests, dumps, fingerprint, relative_tests, write_atomically

FORMAT = 1
_ADVICE = "give another --out, or --overwrite (answers that still fit are not asked again)"
_KIND = [key for key in (*SHARED, *WINDOW) if key not in ("samples", "limit", "system")]


class TaskKept(msgspec.Struct, forbid_unknown_fields=True):
    """system: the system prompt's name. data, skipped, notes: as `load` told them. items: sha256 of their file.
    finished: whether results.json holds the scores of these settings."""

    settings: TaskSettings
    system: str
    data: list[tuple[str, int, str]]
    skipped: dict[str, int]
    notes: list[str]
    items: str
    finished: bool = False


class Kept(msgspec.Struct, forbid_unknown_fields=True):
    """eval.json. settings: of the last run, without its tasks. tasks: all that the folder holds."""

    format: int
    settings: Settings
    tasks: list[TaskKept]

    def task(self, name: str) -> TaskKept | None:
        return next((one for one in self.tasks if one.settings.name == name), None)


def read_kept(folder: Path) -> Kept | None:
    """None where there is no eval.json. Raises `UserError` for one that is none."""
    path = folder / "eval.json"
    try:
        kept = msgspec.json.decode(read_regular(path), type=Kept)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give another --out") from None
    if kept.format != FORMAT:
        raise UserError(f"{path}: format {kept.format}, and this version writes {FORMAT}; give another --out")
    return kept


def write_kept(folder: Path, kept: Kept) -> None:
    write_atomically(folder / "eval.json", msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")


def put_results(folder: Path, results: Results | None) -> None:
    """Writes results.json, or removes it where there are no tasks."""
    path = folder / "results.json"
    if results is None or not results.tasks:
        path.unlink(missing_ok=True)
    else:
        write_atomically(path, msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def check_model(folder: Path, kept: Kept, model: str) -> None:
    """Raises `UserError` where the folder is another model's."""
    if kept.settings.model != model:
        raise UserError(f"{folder}: is of the model {kept.settings.model}, not {model}; {_ADVICE}")


def check_same(folder: Path, before: TaskKept, now: TaskSettings, system: str) -> None:
    """Raises `UserError` where the scores would be of another kind, or of fewer samples or problems: more only add."""

    def refuse(why: str) -> NoReturn:
        raise UserError(f"{folder}: {now.name} was asked with {why}; {_ADVICE}")

    old = before.settings
    changed = [key for key in _KIND if getattr(old, key) != getattr(now, key)]
    changed += ["system"] if before.system != system else []
    if changed:
        refuse(f"another {', '.join(changed)}")
    if now.samples < old.samples:
        refuse(f"{old.samples} samples of each problem, and {now.samples} would replace them")
    if now.limit is not None and (old.limit is None or now.limit < old.limit):
        refuse(f"{'all' if old.limit is None else old.limit} problems, and the first {now.limit} would replace them")


def check_data(folder: Path, before: TaskKept, data: list[tuple[str, int, str]]) -> None:
    """Raises `UserError` where the task's files are not those that it was asked from."""
    if before.data != data:
        was, now = (", ".join(name for name, _, _ in files) for files in (before.data, data))
        what = f"{now} instead of {was}" if was != now else f"{now} has changed"
        raise UserError(f"{folder}: {before.settings.name} was asked with other problems ({what}); {_ADVICE}")


def items_file(folder: Path, task: str) -> Path:
    return folder / "items" / f"{task}.jsonl"


def samples_file(folder: Path, task: str) -> Path:
    return folder / "samples" / f"{task}.jsonl"


def read_items(folder: Path, task: str) -> list[Row]:
    path = items_file(folder, task)
    return [absolute_tests(row, path.parent) for row in result_lines(path, dict)]


def write_items(folder: Path, task: str, rows: list[Row]) -> str:
    """Returns the sha256 of the file."""
    path = items_file(folder, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join(dumps(relative_tests(row, path.parent)) for row in rows)
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def missing_tests(rows: list[Row]) -> str | None:
    """A file that holds tests of one of the items, and is not there; None where all are."""
    for row in rows:
        tests = row.get("tests")
        if isinstance(tests, dict) and "file" in tests and not Path(tests["file"]).is_file():
            return tests["file"]
    return None


def remove_task(folder: Path, task: str) -> None:
    """Its items and samples; answers stay, since they were paid for."""
    for path in (items_file(folder, task), samples_file(folder, task)):
        path.unlink(missing_ok=True)


def loaded_before(folder: Path, before: TaskKept | None, now: TaskSettings, data: list) -> Loaded | None:
    """The items of an earlier start from the same files: LiveCodeBench's tests are gigabytes to decode."""
    path = items_file(folder, now.name)
    if before is None or before.data != data or not path.exists() or fingerprint(path)[2] != before.items:
        return None
    if any(getattr(before.settings, key) != getattr(now, key) for key in (*WINDOW, "limit")):
        return None
    rows = read_items(folder, now.name)
    return None if missing_tests(rows) else Loaded(rows, before.data, before.skipped, before.notes)

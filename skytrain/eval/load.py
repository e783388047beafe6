"""The problems of a task from the files that it is published in."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skytrain.errors import UserError
from skytrain.eval.task import Task
from skytrain.prep import hub
from skytrain.prep.importing import Unfit, complete, id_of, unique
from skytrain.prep.problems import Malformed
from skytrain.prep.rows import Unreadable, read_rows
from skytrain.prep.stage import Row, absolute_tests, dumps, fingerprint, long_integers, without_times
from skytrain.prep.tests_folder import TestsFolder


@dataclass(frozen=True)
class Loaded:
    """items: checked problems with ids of their own and `part`; the names of files of tests are absolute. data: [file,
    bytes, sha256] each. skipped: rows left out, by reason. notes: what a reader of the scores has to know."""

    items: list[Row]
    data: list[tuple[str, int, str]]
    skipped: dict[str, int]
    notes: list[str]


def load(
    task: Task,
    data: list[str | Path] | None,
    out: str | Path,
    *,
    version: str | None = None,
    since: str | None = None,
    until: str | None = None,
    limit: int | None = None,
) -> Loaded:
    """data: files, or one folder with the published files of a version; None for the hub. out: the file of items that
    will be written: what the hub gives and large tests go beside it. since, until: days, YYYY-MM-DD, of the first and
    the last contest asked. limit: only the first problems.

    Raises `UserError` for data that are not this task's, and for settings that the task does not have.
    """
    window = _checked(task, version, since, until, limit)
    paths = files_of(task, data, Path(out), version)
    folder = TestsFolder(Path(out))
    reading = _Reading(task, paths, window, limit, folder)
    try:
        with long_integers():
            reading.work()
        reading.check(version)
    except BaseException:
        folder.undo()
        raise
    return Loaded(reading.items, [fingerprint(path) for path in paths], dict(reading.skipped), reading.notes())


def _checked(
    task: Task, version: str | None, since: str | None, until: str | None, limit: int | None
) -> tuple[datetime.date, datetime.date]:
    """The window."""
    if version is not None and version not in task.versions:
        known = f"name one of {', '.join(task.versions)}" if task.versions else "this task has no versions"
        raise UserError(f"{task.name}: version {version!r}: {known}")
    if limit is not None and limit < 1:
        raise UserError(f"{task.name}: limit {limit}: must be at least 1")
    if not task.dated and (since or until):
        raise UserError(
            f"{task.name}: its problems have no dates, so that since and until cannot be asked for; leave them out"
        )
    first = _day(task, "since", since) if since else datetime.date.min
    last = _day(task, "until", until) if until else datetime.date.max
    if first > last:
        raise UserError(f"{task.name}: since {since} is later than until {until}; exchange them")
    return first, last


def _day(task: Task, name: str, text: str) -> datetime.date:
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            return datetime.date.fromisoformat(text)
    except ValueError:
        pass
    raise UserError(f"{task.name}: {name} {text!r}: must be a day, as 2024-08-01")


def files_of(task: Task, data: list[str | Path] | None, out: Path, version: str | None) -> list[Path]:
    """The files that `load` reads; the hub's is fetched. Raises `UserError`."""
    if data is None:
        return [_fetched(task, out, version)]
    paths = [Path(path) for path in data]
    if not paths:
        raise UserError(f"{task.name}: no data are named")
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise UserError(f"{task.name}: {twice[0]} is named twice; name each file once")
    if missing := [path for path in paths if not path.exists()]:
        where = f"; it is {_published(task, version)}" if task.hub else ""
        raise UserError(f"{task.name}: {missing[0]} is not there{where}")
    if len(paths) > 1 or not paths[0].is_dir():
        return paths
    if version is None:
        what = "name a version, which chooses them" if task.versions else "name its files"
        raise UserError(f"{task.name}: {paths[0]} is a folder; {what}")
    chosen = [paths[0] / name for name in task.versions[version].files]
    if missing := [path.name for path in chosen if not path.exists()]:
        raise UserError(f"{task.name}: {paths[0]} has no {', '.join(missing)}, which {version} needs; download it")
    return chosen


def _fetched(task: Task, out: Path, version: str | None) -> Path:
    if task.hub is None:
        raise UserError(
            f"{task.name}: is none of the benchmarks (skytrain eval --help names them), and no file of your own is "
            f"named; name it: {task.name}=FILE"
        )
    if task.versions and version is None:
        raise UserError(f"{task.name}: name a version ({', '.join(task.versions)}), or files")
    try:
        return hub.fetch(task.hub.format(version=version), out)
    except hub.NotInstalled:
        raise UserError(
            f"{task.name}: no data are named; download {_published(task, version)} and name the file, or pip install "
            "datasets"
        ) from None


def _published(task: Task, version: str | None) -> str:
    """Where the problems are."""
    name, config, split = task.hub.split(":")
    files = " and ".join(task.versions[version].files) if version else f"the split {split}"
    part = f" ({config})" if config and not task.versions else ""
    return f"{files} of {name}{part} on the Hugging Face hub"


class _Reading:
    def __init__(
        self,
        task: Task,
        paths: list[Path],
        window: tuple[datetime.date, datetime.date],
        limit: int | None,
        folder: TestsFolder,
    ):
        self.items: list[Row] = []
        self.skipped: Counter[str] = Counter()
        self._task, self._paths, self._window, self._limit, self._folder = task, paths, window, limit, folder
        self._whole_time = window == (datetime.date.min, datetime.date.max)
        self._read = 0
        self._ids: set[str] = set()
        self._first: dict[str, str] = {}
        """Of each reason the first row, and why."""

    def work(self) -> None:
        for where, row in self._rows():
            self._read += 1
            try:
                found = self._problem(row)
            except Unfit as unfit:
                self.skipped[unfit.reason] += 1
                self._first.setdefault(unfit.reason, f"{where}: {unfit.detail}")
            # ValueError and TypeError: values that cannot be written, as NaN within a text that holds JSON.
            except (ValueError, TypeError, RecursionError) as error:
                raise UserError(f"{where}: is no row of {self._task.title} ({error})") from None
            else:
                if found is not None:
                    self._ids.add(found["id"])
                    self.items.append(found)
            if len(self.items) == self._limit:
                return

    def _rows(self) -> Iterator[tuple[str, Row]]:
        for path in self._paths:
            for raw in read_rows(path):
                try:
                    row = raw.parse()
                except Unreadable as error:
                    raise UserError(f"{raw.where}: {error}; mend it, or download the file again") from None
                if not isinstance(row, dict):
                    raise UserError(f"{raw.where}: a row is an object, not {type(row).__name__}")
                yield raw.where, absolute_tests(without_times(row), path.parent)

    def _problem(self, row: Row) -> Row | None:
        """None for one outside of the window. Its tests are not read."""
        found = self._task.read(row)
        if self._task.dated and not self._window[0] <= _date_of(found) <= self._window[1]:
            return None
        part, found["id"] = found["part"], id_of(found["id"], f"{self._task.name}-{self._read}")
        found["id"] = unique(found["id"], self._ids)
        found = {**complete(found, self._folder), "part": part}
        dumps(found)
        return found

    def check(self, version: str | None) -> None:
        """Raises `UserError` where nothing is left, or the files are those of another version."""
        if not self.items:
            why = "none of its rows can be asked" if self.skipped else "its files hold no rows"
            if self._read > self.skipped.total():
                why = "no problem is of these days"
            raise UserError(f"{self._task.name}: {'; '.join([why, *self._skips()])}")
        if version is not None and len(self.items) != self._limit:
            expected = self._task.versions[version].problems
            if self._read != expected:
                raise UserError(
                    f"{self._task.name}: {version} has {expected} problems, and these files hold {self._read}; name "
                    f"{', '.join(self._task.versions[version].files)}"
                )

    def notes(self) -> list[str]:
        found = self._skips()
        expected = self._task.problems
        if expected not in (None, len(self.items)) and self._limit is None and self._whole_time:
            found.append(f"{len(self.items)} problems, and the published set has {expected}")
        first: dict[str, str] = {}
        again = [
            (item["id"], known)
            for item in self.items
            if (known := first.setdefault(" ".join(item["prompt"].split()), item["id"])) != item["id"]
        ]
        if again:
            found.append(f"problems with the text of another: {len(again)}, the first: {again[0][0]} as {again[0][1]}")
        return found

    def _skips(self) -> list[str]:
        return [f"rows left out, {reason}: {n}, the first: {self._first[reason]}" for reason, n in self.skipped.items()]


def _date_of(found: Row) -> datetime.date:
    text = found["provenance"].get("contest_date")
    try:
        return datetime.date.fromisoformat(text[:10])
    except (TypeError, ValueError):
        raise Malformed(f"'contest_date' must begin with a day, as 2023-08-21, not {text!r}") from None

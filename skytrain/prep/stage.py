"""What every stage of `skytrain prep` shares: rows in, rows out, and an account that adds up.

A stage reads files of rows and writes OUT.jsonl, OUT.dropped.jsonl (what was left out, and why) and, last,
OUT.ledger.json. Only with that one is it finished: a stage that was killed leaves the files of its forerunner as they
were, and runs again; a finished one is not run again unless its inputs or settings have changed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from datetime import date, time
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from skytrain import locks
from skytrain.errors import UserError, failed_write, one_line
from skytrain.files import open_regular, unopened
from skytrain.prep.rows import RawRow, Unreadable, read_rows

FORMAT = 1
LONGEST_INTEGER = 100_000
"""Digits of a whole number in a row, while a stage runs: tests of programs hold more of them than Python's own limit of
4,300, which is there because reading them takes time with the square of their number."""
Row = dict[str, Any]


class Account(msgspec.Struct, forbid_unknown_fields=True):
    """read x samples = kept + dropped. `samples`: rows that one row read becomes (generate), else 1.

    `notes` are counts beside the account, as of tokens or of rows without a label.
    """

    stage: str
    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = {}
    samples: int = 1
    notes: dict[str, float] = {}

    def problem(self) -> str | None:
        """What does not add up, or None."""
        dropped = sum(self.dropped.values())
        if min(self.read, self.kept, *self.dropped.values()) < 0:
            return f"{self.stage}: a count below 0"
        if self.read * self.samples != self.kept + dropped:
            return f"{self.stage}: read {self.read} x {self.samples} != kept {self.kept} + dropped {dropped}"
        return None

    def line(self) -> str:
        """`label: read 10 = kept 9 + dropped 1 (malformed 1); unlabelled 2`"""
        dropped = f" + dropped {sum(self.dropped.values()):,}"
        if self.dropped:
            parts = sorted(self.dropped.items(), key=lambda item: (-item[1], item[0]))
            dropped += f" ({', '.join(f'{reason} {count:,}' for reason, count in parts)})"
        times = f" x {self.samples}" if self.samples > 1 else ""
        notes = "".join(f"; {name} {count:,.6g}" for name, count in self.notes.items())
        return f"{self.stage}: read {self.read:,}{times} = kept {self.kept:,}{dropped}{notes}"


class Finished(msgspec.Struct, forbid_unknown_fields=True):
    """OUT.ledger.json. `inputs`: [name, bytes, sha256] each."""

    format: int
    account: Account
    settings: dict[str, Any]
    inputs: list[tuple[str, int, str]]
    rows_sha256: str


class Stage:
    """A context: leaves OUT as it was where an exception ends it.

    >>> with Stage("filter", ["in.jsonl"], "out.jsonl", {"max_length": 9}) as stage:
    ...     for where, row in stage.rows():
    ...         stage.keep(row) if wanted(row) else stage.drop(row, "too_long", "10 characters", where)
    """

    def __init__(
        self,
        name: str,
        inputs: list[str | Path],
        out: str | Path,
        settings: Row,
        *,
        check: Callable[[Row], None] | None = None,
        on_error: str = "error",
        samples: int = 1,
    ):
        """settings: what the rows depend on, as JSON values. check: raises ValueError for a row that the stage cannot
        use. on_error: what such a row, or one that cannot be read, does: "error" or "drop". Raises `UserError` for
        inputs that cannot be read, or where OUT is one of them."""
        self.account = Account(name, samples=samples)
        self.out = Path(out)
        self.dropped_out = beside(self.out, "dropped.jsonl")
        self.inputs = [Path(path) for path in inputs]
        self.settings = json.loads(json.dumps(settings))
        self.notes = self.account.notes
        self._check, self._on_error = check, on_error
        self._digest = hashlib.sha256()
        self._examples: dict[str, str] = {}
        """Of each reason the first row, and why."""
        self._files: list[BinaryIO] = []
        self._digits = contextlib.ExitStack()
        if self.out.is_dir():
            raise UserError(f"{self.out}: is a folder; --out names the file of JSON lines to write")
        for path in self.inputs:
            if self.out.exists() and path.exists() and path.samefile(self.out):
                raise UserError(f"{path}: is both read and written; give another --out")
        self._fingerprints = [fingerprint(path) for path in self.inputs]

    def finished(self, overwrite: bool = False) -> Account | None:
        """The account of an earlier run that made OUT of the same inputs with the same settings; None where none did.

        Raises `UserError` where OUT is finished and other, and not to be overwritten."""
        done = read_finished(self.out)
        if done is None:
            return None
        now = Finished(FORMAT, done.account, self.settings, self._fingerprints, done.rows_sha256)
        if done == now:
            if fingerprint(self.out)[2] == done.rows_sha256:
                return done.account
            if not overwrite:
                raise UserError(f"{self.out}: has changed since it was made; --overwrite makes it anew")
        if overwrite:
            return None
        keys = sorted({*done.settings, *self.settings})
        changed = [key for key in keys if done.settings.get(key) != self.settings.get(key)]
        what = f"settings ({', '.join(changed)})" if changed else "inputs"
        raise UserError(f"{self.out}: was made with other {what}; give another --out, or --overwrite")

    def __enter__(self) -> Stage:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        for path in (self.out, self.dropped_out):
            self._files.append(_locked(partial(path)))
        self._digits.enter_context(long_integers())
        return self

    def rows(self) -> Iterator[tuple[str, Row]]:
        """(where it stands, row), each counted as read. Rows that cannot be used are dropped, or end the stage."""
        for folder, raw in self._raw():
            self.account.read += 1
            try:
                row = self._parsed(raw)
            except Unreadable as error:
                if self._on_error == "error":
                    advice = "mend it, or leave such rows out with --on-error drop"
                    raise UserError(f"{raw.where}: {error}; {advice}") from None
                self.drop({}, "malformed", str(error), raw.where, self.account.samples)
            else:
                yield raw.where, absolute_tests(row, folder)

    def peek(self) -> Iterator[Row]:
        """The same rows, not counted, without those that cannot be used."""
        for folder, raw in self._raw():
            with contextlib.suppress(Unreadable):
                yield absolute_tests(self._parsed(raw), folder)

    def _raw(self) -> Iterator[tuple[Path, RawRow]]:
        for path in self.inputs:
            for raw in read_rows(path):
                yield path.parent, raw

    def _parsed(self, raw: RawRow) -> Row:
        """Raises `Unreadable`."""
        row = raw.parse()
        if not isinstance(row, dict):
            raise Unreadable(f"a row is an object, not {type(row).__name__}")
        try:
            row = without_times(row)
            # NaN and half a surrogate pair are read, and cannot be written again.
            dumps(row)
            if self._check is not None:
                self._check(row)
        except (ValueError, RecursionError, TypeError) as error:
            raise Unreadable(str(error)) from None
        return row

    def keep(self, row: Row) -> None:
        line = dumps(relative_tests(row, self.out.parent))
        self._digest.update(line)
        self._files[0].write(line)
        self.account.kept += 1

    def drop(self, row: Row, reason: str, detail: str = "", where: str = "", count: int = 1) -> None:
        """`count`: how many samples of the account this row stands for."""
        self.account.dropped[reason] = self.account.dropped.get(reason, 0) + count
        if detail:
            self._examples.setdefault(reason, f"{where}: {detail}" if where else detail)
        told = {"id": row.get("id"), "where": where, "reason": reason, "detail": detail}
        self._files[1].write(dumps({**told, "row": relative_tests(row, self.out.parent)}))

    def __exit__(self, kind: type | None, *_: Any) -> None:
        self._digits.close()
        paths = (self.out, self.dropped_out)
        if kind is not None:
            for path, file in zip(paths, self._files):
                partial(path).unlink(missing_ok=True)
                file.close()
            return
        problem = self.account.problem()
        if problem is not None:
            raise AssertionError(problem)
        ledger = beside(self.out, "ledger.json")
        ledger.unlink(missing_ok=True)
        for path, file in zip(paths, self._files):
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial(path), path)
        done = Finished(FORMAT, self.account, self.settings, self._fingerprints, self._digest.hexdigest())
        write_atomically(ledger, msgspec.json.format(msgspec.json.encode(done), indent=1) + b"\n")
        for file in self._files:
            file.close()
        for reason, example in sorted(self._examples.items()):
            print(f"{reason}, the first: {one_line(example)[:300]}", flush=True)
        print(self.account.line(), flush=True)


@contextlib.contextmanager
def long_integers() -> Iterator[None]:
    """A context in which whole numbers of up to LONGEST_INTEGER digits are read and written."""
    digits = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(LONGEST_INTEGER)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(digits)


def beside(out: Path, end: str) -> Path:
    """`a/b.jsonl` -> `a/b.ledger.json`: a file that belongs to OUT."""
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.{end}")


def partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _locked(path: Path) -> BinaryIO:
    """Opened for writing, and empty; `UserError` where another process has it open so."""
    while True:
        file = open(path, "ab")  # noqa: SIM115
        if not locks.take(file.fileno()):
            file.close()
            raise UserError(f"{path}: another process writes it; wait for it, or give another --out")
        # Another writer may have renamed the file between our opening and our locking it.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            file.truncate(0)
            return file
        file.close()


def read_finished(out: Path) -> Finished | None:
    """None where OUT is not finished. Raises `UserError` for a ledger that is none, or whose rows are gone."""
    path = beside(out, "ledger.json")
    try:
        with open_regular(path) as file:
            done = msgspec.json.decode(file.read(), type=Finished)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it to run the stage again") from None
    if done.format != FORMAT:
        raise UserError(f"{path}: format {done.format}, and this version writes {FORMAT}; give another --out")
    if not out.exists():
        return None
    return done


def fingerprint(path: Path) -> tuple[str, int, str]:
    """(name, bytes, sha256) of a file. Raises `UserError`."""
    try:
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return path.name, os.fstat(file.fileno()).st_size, digest
    except OSError as error:
        why = "is a folder; name the files in it" if path.is_dir() else f"cannot be read ({unopened(path, error)})"
        raise UserError(f"{path}: {why}") from None


def write_atomically(path: Path, content: bytes) -> None:
    with open(partial(path), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial(path), path)


def dumps(row: Any) -> bytes:
    """One line of JSON lines. ValueError for NaN and half a surrogate pair, TypeError for what is no JSON."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def without_times(row: Row) -> Row:
    """Times and dates of Parquet as the text that JSON files of the same rows have for them."""
    return {key: value.isoformat() if isinstance(value, date | time) else value for key, value in row.items()}


def absolute_tests(row: Row, folder: Path) -> Row:
    """Tests too large for a row stand in a file (`{"file": ...}`), named from the folder of the file of rows."""
    return _with_tests_file(row, lambda file: os.path.abspath(folder / file))


def relative_tests(row: Row, folder: Path) -> Row:
    """The way back: as a file of rows in `folder` names them."""
    return _with_tests_file(row, lambda file: os.path.relpath(file, folder))


def _with_tests_file(row: Row, named: Callable[[str], str]) -> Row:
    tests = row.get("tests")
    if not isinstance(tests, dict) or not isinstance(tests.get("file"), str):
        return row
    return {**row, "tests": {**tests, "file": named(tests["file"])}}


def run_stage(stage: Stage, work: Callable[[Stage], None], *, overwrite: bool = False) -> Account:
    """Does the work unless it is done; prints the ledger line either way, and returns the account."""
    done = stage.finished(overwrite)
    if done is not None:
        print(f"{done.line()} (done before)", flush=True)
        return done
    with stage:
        work(stage)
    return stage.account


def progress_bar() -> Progress:
    """On stderr, and only on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def add_stage_arguments(parser: argparse.ArgumentParser, nargs: str = "+") -> None:
    """INPUT..., --out, --on-error and --overwrite, which every stage has."""
    parser.add_argument(
        "inputs", nargs=nargs, metavar="INPUT", help="file of rows: JSON lines, one JSON array, Parquet or CSV"
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="OUT.jsonl",
        help="file of rows to write; beside it OUT.dropped.jsonl (what was left out, and why) and OUT.ledger.json",
    )
    add_on_error(parser)
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an OUT.jsonl that was made of other inputs or with other settings",
    )


def add_on_error(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-error",
        choices=("error", "drop"),
        default="error",
        help="what becomes of a row that cannot be read: end the stage, or drop and count the row",
    )


def guarded(work: Callable[[], Any], out: str | Path) -> int:
    """Runs a stage from the command line: exit status 0, or 130 after Ctrl-C. Raises `UserError` for a full disk,
    or a folder that may not be written."""
    try:
        work()
    except KeyboardInterrupt:
        print(f"interrupted; {out} is as it was before", file=sys.stderr)
        return 130
    except OSError as error:
        raise failed_write(out, error) from None
    return 0

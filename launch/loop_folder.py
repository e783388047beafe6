"""The loop's folder: what is done stays done, however the loop was ended."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from steps import LAUNCH, stage

from skytrain.errors import UserError, unwritten
from skytrain.locks import lock

MARKER = "loop.json"
"""Written first: only a folder that holds it is ever removed."""

ENDING_SECONDS = 60
"""What a loop had started ends by itself when that is killed: a training saves first."""


class LoopFolder:
    """path: the folder, which holds `MARKER` with its settings and the seconds of each stage that was finished.

    taken: the descriptor of its lock. What the loop starts holds it too, so that a killed loop is over when they are.
    """

    def __init__(self, path: Path, settings: dict[str, Any], seconds: dict[str, float], taken: int):
        self.path, self.settings, self.seconds, self.taken = path, settings, seconds, taken

    @classmethod
    @contextmanager
    def claimed(cls, path: Path, settings: dict[str, Any], *, overwrite: bool) -> Iterator[LoopFolder]:
        """The folder, begun or gone on with, for this process alone.

        UserError where something else is in its place, where it was begun with other settings, or another process has
        it.
        """
        free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
        if path.is_symlink() or not (free or (path / MARKER).is_file()):
            what = "is a link" if path.is_symlink() else "exists and is not a loop's folder"
            raise UserError(f"{path} {what}; name another with --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {path}: {unwritten(error)}") from None
        taken = _lock(path)
        try:
            if overwrite:
                for entry in sorted(path.iterdir(), key=lambda entry: entry.name == MARKER):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            begun = _begun(path / MARKER)
            if begun is not None and begun.settings != settings:
                raise UserError(
                    f"{path} was begun with {begun.settings}, and this is {settings}; go on with the same, name "
                    "another with --out, or begin anew with --overwrite"
                )
            folder = cls(path, settings, begun.seconds if begun else {}, taken)
            folder.note()
            # The recipes as they are now: a loop that goes on later goes on with these.
            folder.made("recipes", copy_recipes)
            yield folder
        finally:
            os.close(taken)

    def done(self, *titles: str) -> bool:
        return all(title in self.seconds for title in titles)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Not for a stage that is done. What it does has to go on where an earlier start was ended."""
        started = time.perf_counter()
        with stage(title):
            yield
        self.seconds[title] = time.perf_counter() - started
        self.note()

    def made(self, name: str, make: Callable[..., object], *arguments: Any) -> None:
        """A file or folder of the name, whole or not there: `make` is first given another place to make it in."""
        if (self.path / name).exists():
            return
        place = self.path / f"{name}.partial"
        if place.is_dir():
            shutil.rmtree(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        make(place, *arguments)
        place.rename(self.path / name)

    def note(self, found: dict[str, Any] | None = None) -> None:
        """Writes `MARKER`, with what the loop came to where that is known."""
        place = self.path / f"{MARKER}.partial"
        content = {"settings": self.settings, "seconds": self.seconds, **(found or {})}
        place.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        place.replace(self.path / MARKER)


class _Begun(msgspec.Struct):
    settings: dict[str, Any]
    seconds: dict[str, float]


def _begun(marker: Path) -> _Begun | None:
    if not marker.exists():
        return None
    try:
        return msgspec.json.decode(marker.read_bytes(), type=_Begun)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"{marker}: is not as the loop wrote it ({error}); begin anew with --overwrite") from None


def _lock(path: Path) -> int:
    """UserError where another process keeps the folder for longer than one that was told to end takes for it."""
    deadline = time.monotonic() + ENDING_SECONDS
    while (taken := lock(path)) is None:
        if deadline - time.monotonic() > ENDING_SECONDS - 0.5:
            print(f"waiting for another loop in {path} to end", flush=True)
        if time.monotonic() > deadline:
            raise UserError(f"{path}: another loop is at work in it; wait for it, or name another with --out")
        time.sleep(0.5)
    return taken


def copy_recipes(place: Path) -> None:
    shutil.copytree(LAUNCH / "recipes" / "loop", place)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

"""Reading files of folders that somebody gives us, where anything may stand in a file's place."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `object_pairs_hook` of json: ValueError where a key stands twice, of which json would keep the last alone."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} stands twice in an object")
    return value


def sought(path: str | Path) -> str:
    """For a message that a path does not exist: the folder in which a relative one was looked for."""
    return "" if Path(path).is_absolute() else f" in {Path.cwd()}"


def unopened(path: str | Path, error: OSError) -> str:
    """Why `path` could not be opened, for a `UserError` that names it."""
    return (error.strerror or str(error)) + (sought(path) if isinstance(error, FileNotFoundError) else "")


def open_regular(path: str | Path) -> BufferedReader:
    """Opens for reading. OSError for what is no regular file: a read of a FIFO would wait for its writer for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: str | Path) -> bytes:
    """The whole content. OSError as `open_regular`."""
    with open_regular(path) as file:
        return file.read()

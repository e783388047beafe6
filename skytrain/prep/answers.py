"""An append-only log of answers that were paid for: a line each, found again by its key."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO, Self

import msgspec

from skytrain import locks
from skytrain.errors import UserError
from skytrain.files import open_regular


class Answers:
    """A context. Holds keys and places in memory, and the answers on disk alone (17,000 traces are about 1 GB).

    Half a line at the end is what a killed process leaves: it is passed over. Every other line that cannot be read is
    an error, since it was an answer. Raises `UserError` for that, and where there is no file.
    """

    def __init__(self, path: Path, line: type):
        """line: a struct or a dataclass with `key` and `status`: what every line has to hold."""
        self.path, self._line, self._decoder = path, line, msgspec.json.Decoder(line)
        self._places: dict[str, tuple[int, int]] = {}
        self.statuses: dict[str, str] = {}

    def __enter__(self) -> Self:
        try:
            self._file = self._opened()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be opened ({error.strerror or error}); give another --out") from None
        try:
            self._end = self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def _opened(self) -> BinaryIO:
        return open_regular(self.path)

    def _read(self) -> int:
        """Remembers every line's place. The last line of a key counts. Returns the end of the last whole line in
        bytes."""
        at = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    found = self._decoded(line)
                except (ValueError, RecursionError, msgspec.MsgspecError) as error:
                    raise UserError(
                        f"{self.path}:{number}: no answer can be read here ({error}); remove the line"
                    ) from None
                self._places[found.key] = (at, len(line))
                self.statuses[found.key] = found.status
                at += len(line)
        return at

    def _decoded(self, line: bytes) -> Any:
        return self._decoder.decode(line)

    def get(self, key: str) -> dict[str, Any] | None:
        place = self._places.get(key)
        if place is None:
            return None
        return json.loads(os.pread(self._file.fileno(), place[1], place[0]))


class AnswerLog(Answers):
    """Answers that more are added to, by one process at a time. Half a line at the end is cut off."""

    def __exit__(self, *_: Any) -> None:
        self.sync()
        self._file.close()

    def _opened(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        if not locks.take(file.fileno()):
            file.close()
            raise UserError(f"{self.path}: another process writes it; wait for it, or give another --out")
        return file

    def _read(self) -> int:
        end = super()._read()
        os.ftruncate(self._file.fileno(), end)
        return end

    def add(self, record: dict[str, Any]) -> None:
        """record: JSON values, with `key` and `status`, both text. On disk, or at least the system's, on return."""
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        written = 0
        # A write to a disk that fills up may be a part of the line; what follows would be glued to it.
        while written < len(line):
            try:
                written += os.write(self._file.fileno(), line[written:])
            except OSError:
                os.ftruncate(self._file.fileno(), self._end)
                raise
        self._places[record["key"]] = (self._end, len(line))
        self.statuses[record["key"]] = record["status"]
        self._end += len(line)

    def sync(self) -> None:
        os.fsync(self._file.fileno())


def key_of(*parts: Any) -> str:
    """The same for the same JSON values, whatever the order of their keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]

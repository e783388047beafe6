"""Tests too large for a row: files beside the rows, one line `[input, output]` a test.

A file is named by its content and gets its name when it is whole, so that nothing half-written is ever taken for it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from skytrain.prep.stage import Row, beside, dumps, partial

LARGEST_INLINE = 64 << 10
"""Bytes of JSON that the tests of a row may have before they go to a file."""


@dataclass
class Pairs:
    """The tests of a program: (input, output) each, which may be read but once."""

    fn_name: str | None
    each: Iterator[tuple[Any, Any]]


class TestsFolder:
    """`a/b.tests/` for the rows `a/b.jsonl`. Files of earlier runs stay: rows made from them may name them."""

    __test__ = False  # its name makes pytest take it for a class of tests

    def __init__(self, out: Path):
        self.path = beside(out, "tests")
        self._added: list[Path] = []

    def place(self, pairs: Pairs) -> Row:
        """The tests in the form of a row, with the absolute name of a file where they are large.

        Raises what reading them raises, and ValueError or TypeError for values that JSON cannot hold."""
        inputs, outputs, lines, size = [], [], [], 0
        for value, output in pairs.each:
            line = dumps([value, output])
            size += len(line)
            lines.append(line)
            if size > LARGEST_INLINE:
                return self._in_file(lines, pairs)
            inputs.append(value)
            outputs.append(output)
        return {"inputs": inputs, "outputs": outputs, "fn_name": pairs.fn_name}

    def _in_file(self, lines: list[bytes], pairs: Pairs) -> Row:
        self.path.mkdir(parents=True, exist_ok=True)
        unnamed = partial(self.path / "tests.jsonl")
        try:
            with open(unnamed, "wb") as file:
                digest, count = _write(file, lines, pairs)
            path = self.path / f"{digest[:32]}.jsonl"
            if not path.exists():
                self._added.append(path)
            os.replace(unnamed, path)
        finally:
            unnamed.unlink(missing_ok=True)
        return {"file": os.path.abspath(path), "count": count, "fn_name": pairs.fn_name}

    def undo(self) -> None:
        """Removes the files that were not there before, and the folder where it is empty then."""
        for path in self._added:
            path.unlink(missing_ok=True)
        if self._added and not any(self.path.iterdir()):
            self.path.rmdir()


def _write(file: BinaryIO, lines: list[bytes], pairs: Pairs) -> tuple[str, int]:
    """(sha256, lines) of the content: these lines, and then the pairs that are left."""
    digest, count = hashlib.sha256(), 0
    for line in lines:
        file.write(line)
        digest.update(line)
        count += 1
    for pair in pairs.each:
        line = dumps(list(pair))
        file.write(line)
        digest.update(line)
        count += 1
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest(), count

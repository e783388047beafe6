"""Rows of CSV: the first one names the columns, and all values are text. RFC 4180, of UTF-8."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import BinaryIO

from skytrain.errors import UserError

LARGEST_FIELD = 256 << 20
"""Characters, of four bytes each while they are read. Tests of programs take a hundred million; a quote that is never
closed must end somewhere."""

_BAD_BYTES = re.compile("[\udc80-\udcff]")


class Table:
    """name: of the file, for messages. Raises `UserError` for columns whose names stand twice or cannot be read."""

    def __init__(self, name: str, file: BinaryIO):
        csv.field_size_limit(max(LARGEST_FIELD, csv.field_size_limit()))
        self._file = file
        self.bytes_read = 0
        self._reader = csv.reader(self._lines(), strict=True)
        self.line = 1
        """Where the row begins that was read last."""
        found = self._next()
        if isinstance(found, str):
            raise UserError(f"{name}:{self.line}: the names of the columns cannot be read as CSV ({found})")
        self._names = found or []
        if twice := sorted({column for column in self._names if self._names.count(column) > 1}):
            raise UserError(f"{name}: the column {twice[0]!r} stands twice; rename or drop one")

    def rows(self) -> Iterator[dict[str, str] | str]:
        """Each row, or as text why it is none."""
        while (found := self._next()) is not None:
            if isinstance(found, list) and len(found) != len(self._names):
                found = f"{len(found)} fields, where the first row names {len(self._names)} columns"
            yield found if isinstance(found, str) else dict(zip(self._names, found))

    def _next(self) -> list[str] | str | None:
        """The fields of the next row that is not blank, or as text why there are none; None at the end."""
        try:
            fields: list[str] = []
            while not fields:
                self.line = self._reader.line_num + 1
                fields = next(self._reader)
        except StopIteration:
            return None
        except csv.Error as error:
            return f"not CSV ({error})"
        spoilt = next(filter(None, map(_BAD_BYTES.search, fields)), None)
        return f"not UTF-8 (byte 0x{ord(spoilt[0]) - 0xDC00:02x})" if spoilt else fields

    def _lines(self) -> Iterator[str]:
        for number, line in enumerate(self._file):
            self.bytes_read += len(line)
            # A byte that is not UTF-8 becomes half a surrogate pair, so that it spoils one row and not the file.
            text = line.decode("utf-8", "surrogateescape")
            yield text.removeprefix("\ufeff") if number == 0 else text

"""Rows of JSON lines, a JSON array, Parquet, Arrow or CSV, each with its place in the file, in bounded memory."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from skytrain.errors import UserError
from skytrain.files import open_regular, unique_keys, unopened
from skytrain.prep.csv_rows import Table

BOM = codecs.BOM_UTF8
CONTINUATION = b"\xff\xff\xff\xff"
"""With which a stream of Arrow begins, and each message of it."""
ARROW_END = CONTINUATION + bytes(4)
CHUNK = 1 << 20
LARGEST_ROW = 64 << 20
"""Characters of one element of a JSON array: where none ends within these, the array is broken."""

_BLANKS = re.compile(r"[ \t\r\n]*")
_BAD_BYTES = re.compile("[\udc80-\udcff]")


class Unreadable(Exception):
    """A row that is not JSON (or CSV), or not UTF-8; the message says why."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it was found. `size`: the bytes of the file that reading it used up, for a progress bar."""

    file: str
    number: int
    """From 1: the line of JSON lines, the element of a JSON array, the row of Parquet or Arrow, or of CSV behind its
    names."""
    line: int | None
    size: int
    data: bytes | dict[str, Any] | Unreadable
    """A line still to be parsed (so that a worker does it), or the parsed row."""

    @property
    def where(self) -> str:
        """For a message: file:line."""
        if self.line is None:
            return f"{self.file} row {self.number}"
        return f"{self.file}:{self.line}" + ("" if self.number == self.line else f" (element {self.number})")

    def parse(self) -> Any:
        """The row as JSON gives it. Raises `Unreadable`."""
        if isinstance(self.data, Unreadable):
            raise self.data
        if not isinstance(self.data, bytes):
            return self.data
        try:
            # The line's end would be counted as a line before the column of a row that is cut off.
            return json.loads(self.data.decode("utf-8").rstrip(), object_pairs_hook=unique_keys)
        except UnicodeDecodeError as error:
            raise Unreadable(f"not UTF-8 (byte 0x{self.data[error.start]:02x} in column {error.start + 1})") from None
        except json.JSONDecodeError as error:
            raise Unreadable(f"not JSON ({error.msg}, column {error.colno})") from None
        except (ValueError, RecursionError) as error:  # a number of too many digits; brackets too deep
            raise Unreadable(f"not JSON that can be read ({error})") from None


def read_rows(path: str | Path) -> Iterator[RawRow]:
    """All rows of a file, whose kind is told by its first bytes, but for CSV, which its name tells (.csv, .csv.gz); any
    kind may be packed by gzip.

    Raises `UserError` when it cannot be opened or unpacked.
    """
    name = str(path)
    try:
        with open_regular(path) as file:
            if file.peek(2)[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield from _rows(name, unpacked)
            else:
                yield from _rows(name, file)
    except (EOFError, zlib.error) as error:
        raise UserError(f"{name}: cannot be unpacked ({error}); download or pack it again") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({unopened(name, error)})") from None


def _rows(name: str, file: BinaryIO) -> Iterator[RawRow]:
    if name.lower().endswith((".csv", ".csv.gz")):
        yield from _csv(name, file)
        return
    start = file.read(CHUNK)
    file.seek(0)
    if start.startswith(b"PAR1"):
        yield from _parquet(name, file)
    elif start.startswith(CONTINUATION):
        yield from _arrow(name, file)
    elif start.removeprefix(BOM).lstrip()[:1] == b"[":
        yield from read_array(name, file)
    else:
        yield from _lines(name, file)


def _lines(name: str, file: BinaryIO) -> Iterator[RawRow]:
    # In bytes, a line ends at \n alone; text mode would also split at a lone \r, and str.splitlines at U+2028.
    for number, line in enumerate(file, 1):
        text = line.removeprefix(BOM) if number == 1 else line
        if text.strip():
            yield RawRow(name, number, number, len(line), text)


class _Array:
    """Walks over the elements of one JSON array, holding a part of the file's text around the current position."""

    def __init__(self, file: BinaryIO):
        self._file = file
        # A byte that is not UTF-8 becomes half a surrogate pair, so that it spoils one row and not the file.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._decode = json.JSONDecoder(object_pairs_hook=self._object).raw_decode
        self._twice: list[str] = []
        self._text, self._at, self._ended = "", 0, False
        self._line, self._counted = 1, 0
        start = file.read(len(BOM))
        self._text = "" if start == BOM else self._decoder.decode(start)
        self.bytes_read = len(start)
        self.opened = self._next() == "["
        self._at += 1

    def advance(self, number: int) -> bool:
        """Moves to the element of this number, from 1; False behind the last one. Raises `Unreadable`."""
        found = self._next()
        if found == "]":
            self._at += 1
            if self._next():
                raise Unreadable("text after the end of the array")
            return False
        if number > 1:
            if found != ",":
                raise Unreadable("no comma after the last element" if found else "the array is cut off")
            self._at += 1
            self._next()
        return True

    def line(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def value(self) -> Any:
        """The element here, or an `Unreadable` where it alone is spoilt. Raises `Unreadable` where no more follow."""
        while True:
            try:
                self._twice.clear()
                value, end = self._decode(self._text, self._at)
                if end < len(self._text) or self._ended:
                    break
            except (ValueError, RecursionError) as error:
                if self._ended or len(self._text) - self._at > LARGEST_ROW:
                    reason = getattr(error, "msg", error)
                    raise Unreadable(f"not JSON ({reason}), so nothing behind it can be read") from None
            self._more()
        spoilt = _BAD_BYTES.search(self._text, self._at, end)
        self._at = end
        if spoilt:
            return Unreadable(f"not UTF-8 (byte 0x{ord(spoilt[0]) - 0xDC00:02x})")
        return Unreadable(f"not JSON that can be read ({self._twice[0]})") if self._twice else value

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Spoils its element alone, which an exception would not tell from one that is cut off here."""
        try:
            return unique_keys(pairs)
        except ValueError as error:
            self._twice.append(str(error))
            return dict(pairs)

    def _next(self) -> str:
        """The next character that is no blank, or "" at the end. Stays in front of it."""
        while True:
            self._at = _BLANKS.match(self._text, self._at).end()
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def _more(self) -> None:
        """Reads on: at least as much as is left, so that trying a long element again and again stays linear."""
        self.line()
        self._text = self._text[self._at :]
        self._at = self._counted = 0
        raw = self._file.read(max(CHUNK, len(self._text)))
        self._ended = not raw
        self.bytes_read += len(raw)
        self._text += self._decoder.decode(raw, self._ended)


def read_array(name: str, file: BinaryIO) -> Iterator[RawRow]:
    """The elements of a JSON array that begins where the file stands, which need not be able to seek."""
    array, read, last = _Array(file), 0, False
    for number in count(1):
        try:
            if not array.opened:
                raise Unreadable("not a JSON array")
            if not array.advance(number):
                return
            line = array.line()
            value = array.value()
        except Unreadable as error:
            line, value, last = array.line(), error, True
        yield RawRow(name, number, line, array.bytes_read - read, value)
        read = array.bytes_read
        if last:
            return


def _csv(name: str, file: BinaryIO) -> Iterator[RawRow]:
    table, read = Table(name, file), 0
    for number, row in enumerate(table.rows(), 1):
        value = Unreadable(row) if isinstance(row, str) else row
        yield RawRow(name, number, table.line, table.bytes_read - read, value)
        read = table.bytes_read


def _parquet(name: str, file: BinaryIO) -> Iterator[RawRow]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{name}: reading Parquet needs pyarrow; pip install 'skytrain[prep]'") from None
    table = _opened(name, "Parquet", lambda: pyarrow.parquet.ParquetFile(file, page_checksum_verification=True))
    share = Path(name).stat().st_size // max(1, table.metadata.num_rows)
    yield from _columnar(name, "Parquet", table.schema_arrow.names, table.iter_batches(batch_size=64), lambda _: share)


def _arrow(name: str, file: BinaryIO) -> Iterator[RawRow]:
    """A stream of record batches, as `datasets` saves them."""
    try:
        import pyarrow.ipc
    except ImportError:
        raise UserError(f"{name}: reading Arrow needs pyarrow; pip install 'skytrain[prep]'") from None
    table = _opened(name, "Arrow", lambda: pyarrow.ipc.open_stream(pyarrow.PythonFile(file, mode="r")))
    yield from _columnar(name, "Arrow", table.schema.names, table, lambda batch: batch.nbytes // batch.num_rows)
    file.seek(file.tell() - len(ARROW_END))
    if file.read() != ARROW_END:  # pyarrow takes the end of the file for the end of the stream
        raise UserError(f"{name}: is cut off (no mark of its end); download it again")


def _opened(name: str, kind: str, opened: Callable[[], Any]) -> Any:
    import pyarrow

    try:
        return opened()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot be read as {kind} ({' '.join(str(error).split())})") from None


def _columnar(
    name: str, kind: str, columns: list[str], batches: Iterable[Any], share: Callable[[Any], int]
) -> Iterator[RawRow]:
    """share: bytes of a row of a batch."""
    import pyarrow

    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise UserError(f"{name}: the column {twice[0]!r} stands twice; rename or drop one")
    number = 0
    try:
        for batch in batches:
            for i in range(batch.num_rows):
                number += 1
                try:
                    value: Any = batch.slice(i, 1).to_pylist()[0]
                except (ValueError, OverflowError) as error:  # bytes that are no UTF-8; a time that Python cannot hold
                    value = Unreadable(f"not UTF-8 ({error})" if isinstance(error, UnicodeDecodeError) else str(error))
                yield RawRow(name, number, None, share(batch), value)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: cannot be read as {kind} after row {number} ({reason})") from None

"""The tests of a LiveCodeBench row, one at a time: some decompress to hundreds of megabytes.

They are a JSON array, as text or as base64 of zlib of a pickle of that text. A pickle can run any code when it is
loaded, so none ever is: it may hold one string and nothing else, and that string's bytes are read by hand.
"""

from __future__ import annotations

import binascii
import codecs
import io
import zlib
from collections.abc import Iterator
from typing import Any

from skytrain.prep.problems import Malformed
from skytrain.prep.rows import Unreadable, read_array

PIECE = 1 << 16
"""Characters of base64, or bytes of text, that are held at a time. A multiple of four."""
LARGEST = 8 << 30
"""Bytes that the tests of one row may decompress to."""

_LENGTH_BYTES = {b"\x8c": 1, b"X": 4, b"\x8d": 8}  # SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
_UNICODE, _PROTO, _FRAME, _PUT, _STOP = b"V", b"\x80", b"\x95", b"p", b"."
_SKIPPED = {b"\x94": 0, b"q": 1, b"r": 4, _FRAME: 8}  # MEMOIZE, BINPUT, LONG_BINPUT


def each_test(value: Any) -> Iterator[Any]:
    """The elements of the tests in any of their published forms. Raises `Malformed`, also between two of them."""
    if isinstance(value, list):
        yield from value
        return
    if not isinstance(value, str):
        raise Malformed(f"tests must be text or a list, not {type(value).__name__}")
    if not value:
        return
    text = _utf8(value) if value[:100].lstrip().startswith("[") else _pickled(_reader(_inflated(value)))
    try:
        for raw in read_array("tests", _reader(text)):
            yield raw.parse()
    except Unreadable as error:
        raise Malformed(f"tests: {error}") from None


class _Pieces(io.RawIOBase):
    def __init__(self, pieces: Iterator[bytes]):
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


def _reader(pieces: Iterator[bytes]) -> io.BufferedReader:
    return io.BufferedReader(_Pieces(pieces), PIECE)


def _utf8(text: str) -> Iterator[bytes]:
    for at in range(0, len(text), PIECE):
        yield text[at : at + PIECE].encode("utf-8", "surrogatepass")


def _inflated(text: str) -> Iterator[bytes]:
    if not text.isascii():
        raise Malformed("tests: neither a JSON array nor compressed data in base64 (not ASCII)")
    inflater, size = zlib.decompressobj(), 0
    try:
        for at in range(0, len(text), PIECE):
            raw = binascii.a2b_base64(text[at : at + PIECE], strict_mode=True)
            if inflater.eof:
                raise Malformed("tests: something stands behind the compressed data")
            # Also once after all is taken in: what max_length held back comes out of an empty input.
            while piece := inflater.decompress(raw, PIECE):
                size += len(piece)
                if size > LARGEST:
                    raise Malformed(f"tests: decompress to more than {LARGEST:,} bytes")
                yield piece
                raw = inflater.unconsumed_tail
    except (zlib.error, binascii.Error) as error:
        raise Malformed(f"tests: neither a JSON array nor compressed data in base64 ({error})") from None
    if not inflater.eof:
        raise Malformed("tests: the compressed data are cut off")
    if inflater.unused_data:
        raise Malformed("tests: something stands behind the compressed data")


def _pickled(file: io.BufferedReader) -> Iterator[bytes]:
    """UTF-8 of the string that is all that the pickle holds, in any of the protocols 0 to 5."""
    code = file.read(1)
    if code == _PROTO:
        if _exactly(file, 1)[0] > 5:
            raise Malformed("tests: a pickle of an unknown protocol")
        code = file.read(1)
    if code == _FRAME:
        _exactly(file, 8)
        code = file.read(1)
    if code == _UNICODE:
        yield from _escaped_line(file)
    elif code in _LENGTH_BYTES:
        left = int.from_bytes(_exactly(file, _LENGTH_BYTES[code]), "little")
        while left:
            piece = file.read(min(left, PIECE))
            if not piece:
                raise Malformed("tests: the pickle is cut off")
            left -= len(piece)
            yield piece
    else:
        raise Malformed("tests: a pickle of something else than one string, which is not loaded")
    _expect_end(file)


def _expect_end(file: io.BufferedReader) -> None:
    while (code := file.read(1)) != _STOP:
        if code == _PUT:
            file.readline(32)
        elif code in _SKIPPED:
            _exactly(file, _SKIPPED[code])
        else:
            raise Malformed("tests: a pickle that does more than hold one string, which is not loaded")
    if file.read(1):
        raise Malformed("tests: something stands behind the pickle")


def _escaped_line(file: io.BufferedReader) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder("raw-unicode-escape")()
    ended = False
    try:
        while not ended:
            piece = file.readline(PIECE)
            if not piece:
                raise Malformed("tests: the pickle is cut off")
            ended = piece.endswith(b"\n")
            yield decoder.decode(piece.removesuffix(b"\n"), ended).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise Malformed(f"tests: a pickle with a broken string ({error.reason})") from None


def _exactly(file: io.BufferedReader, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise Malformed("tests: the pickle is cut off")
    return data

"""Whether what a program printed or returned is what was expected: tests/cases/README.md, policies for programs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import Any

_CLOSE = Decimal("1e-6")
_NUMBER = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
# The look behind keeps a long run of blanks from being searched again from each of its blanks.
_TRAILING = re.compile(rb"(?<![ \t\r\f\v])[ \t\r\f\v]++(?![^\n])")


def same_output(expected: bytes, printed: bytes) -> bool:
    """Trailing blanks and final newlines do not count, and numbers with a point or an exponent may be a little off."""
    expected, printed = (_TRAILING.sub(b"", text).rstrip(b"\n") for text in (expected, printed))
    if expected == printed:
        return True
    if expected.count(b"\n") != printed.count(b"\n"):
        return False
    return all(a == b or _same_line(a, b) for a, b in zip(_lines(expected), _lines(printed)))


def _lines(text: bytes) -> Iterator[bytes]:
    """One at a time: a list of all may take many times the text's memory."""
    at = 0
    while (end := text.find(b"\n", at)) >= 0:
        yield text[at:end]
        at = end + 1
    yield text[at:]


def _same_line(expected: bytes, printed: bytes) -> bool:
    """Tokens and the white space between them, one at a time for the same reason."""
    pairs = zip(re.finditer(rb"\s+|\S+", expected), re.finditer(rb"\s+|\S+", printed))
    end, other_end = 0, 0
    for one, other in pairs:
        if one[0] != other[0] and not _same_token(one[0], other[0]):
            return False
        end, other_end = one.end(), other.end()
    return (end, other_end) == (len(expected), len(printed))


def _same_token(expected: bytes, printed: bytes) -> bool:
    if not (_NUMBER.fullmatch(expected) and _NUMBER.fullmatch(printed)):
        return False
    if not any(mark in expected + printed for mark in b".eE"):
        return False
    return _near(expected.decode(), printed.decode())


def _near(expected: str, given: str) -> bool:
    """1e-6, absolute or of what is expected. Decimals, since 1e400 and 1e500 are one float."""
    context = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
    one, other = context.create_decimal(expected), context.create_decimal(given)
    if not (one.is_finite() and other.is_finite()):
        return False
    off = context.abs(context.subtract(one, other))
    return off <= _CLOSE or off <= context.multiply(_CLOSE, context.abs(one))


def same_value(expected: Any, returned: Any) -> bool:
    """`expected` is JSON's. bool equals only bool, a tuple equals a list, and JSON's keys are text."""
    if isinstance(expected, bool) or isinstance(returned, bool) or expected is None or returned is None:
        return expected is returned
    if isinstance(expected, int | float) and isinstance(returned, int | float):
        return expected == returned or _near_numbers(expected, returned)
    if isinstance(expected, list | tuple) and isinstance(returned, list | tuple):
        return len(expected) == len(returned) and all(map(same_value, expected, returned))
    if isinstance(expected, dict) and isinstance(returned, dict):
        expected, returned = _with_text_keys(expected), _with_text_keys(returned)
        return expected.keys() == returned.keys() and all(same_value(expected[key], returned[key]) for key in expected)
    return isinstance(expected, str) and isinstance(returned, str) and expected == returned


def _near_numbers(expected: float, returned: float) -> bool:
    if isinstance(expected, int) and isinstance(returned, int):
        return False
    return _near(_text(expected), _text(returned))


def _text(value: float) -> str:
    """Python refuses to print the digits of a long integer, and a decimal has no such limit."""
    return repr(value) if isinstance(value, float) else str(Decimal(value))


def _with_text_keys(values: dict[Any, Any]) -> dict[Any, Any]:
    """Integers as their digits. What cannot be a key in JSON stays, and equals none; so do 1 and "1" in one dict."""
    if len({_key(key) for key in values}) < len(values):
        return {(): values}
    return {_key(key): value for key, value in values.items()}


def _key(key: Any) -> Any:
    return _text(key) if isinstance(key, int) and not isinstance(key, bool) else key

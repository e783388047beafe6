"""Numbers in LaTeX as exact rationals. A decimal is the fraction that it writes, and nothing near to it."""

from __future__ import annotations

import math
import re
from fractions import Fraction

LARGEST_EXPONENT = 5000
"""Of ten. Python itself refuses to print, and takes long to make, what is much longer."""

_DIGITS = re.compile(r"(\d+)?(?:\.(\d*)(?:\\overline\{?(\d+)\}?)?)?")
_POWER = re.compile(r"(?:(.+?)(?:\\times|\\cdot|\*))?10\^(?:\{([+-]?\d+)\}|(\d))")
_EXPONENT = re.compile(r"([\d.]+)[eE]([+-]?\d+)")
_TOWER = re.compile(r"([1-9]\d*)\^(?:\{(.+)\}|(\d))")
_FACTORIAL = re.compile(r"(?:(\d+)|\((.+)\))!")
_MANY = 100_000
"""2 to this power, and its factorial, have more digits than any number that is read here."""
_MIXED = re.compile(r"(\d+)(\\frac\{\d+\}\{\d+\}| \d+/\d+)")


def number(text: str) -> Fraction | None:
    r"""The rational that `text` (as `latex.clean` leaves it) writes: integers, decimals, repeating ones, a/b, `\frac`,
    mixed numbers, powers of ten. None for everything else."""
    sign = 1
    while text[:1] in ("-", "+"):
        sign, text = (-sign if text[0] == "-" else sign), text[1:]
    if not text or len(text) > 10_000:
        return None
    value = _decimal(text)
    for read in (_power, _mixed, _quotient):
        value = read(text) if value is None else value
    return None if value is None else sign * value


def _decimal(text: str) -> Fraction | None:
    found = _DIGITS.fullmatch(text)
    if found is None or not any(found.groups()):
        return None
    whole, part, repeated = (group or "" for group in found.groups())
    if len(whole) + len(part) + len(repeated) > LARGEST_EXPONENT:
        return None
    value = Fraction(int(whole + part or "0"), 10 ** len(part))
    if repeated:
        value += Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(part))
    return value


def _power(text: str) -> Fraction | None:
    found = _POWER.fullmatch(text)
    if found is not None:
        factor, exponent = found[1], found[2] or found[3]
    else:
        found = _EXPONENT.fullmatch(text)
        if found is None:
            return None
        factor, exponent = found.groups()
    if len(exponent) > 5 or abs(int(exponent)) > LARGEST_EXPONENT:
        return None
    value = Fraction(1) if factor is None else number(factor)
    return None if value is None else value * Fraction(10) ** int(exponent)


def _mixed(text: str) -> Fraction | None:
    found = _MIXED.fullmatch(text)
    if found is None:
        return None
    part = number(found[2].strip())
    return None if part is None else int(found[1]) + part


def _quotient(text: str) -> Fraction | None:
    found = re.fullmatch(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", text) or re.fullmatch(r"([^/]+)/([^/]+)", text)
    if found is None:
        return None
    above, below = number(found[1]), number(found[2])
    return None if above is None or not below else above / below


def beyond(text: str) -> bool:
    """Whether `text` is a power or a factorial of whole numbers larger than all that `number` can be: sympy would work
    it out, and not come to an end."""
    text = text.removeprefix("-")
    power, factorial = _TOWER.fullmatch(text), _FACTORIAL.fullmatch(text)
    if power is not None:
        return (_at_least(power[1]) or 0) > 1 and _at_least(power[2] or power[3]) == _MANY
    return factorial is not None and _at_least(factorial[1] or factorial[2]) == _MANY


def _at_least(text: str) -> int | None:
    """The whole number that a tower of powers and factorials is, or `_MANY` where it is no less."""
    if text.isdecimal():
        return min(int(text), _MANY) if len(text) < 10 else _MANY
    power, factorial = _TOWER.fullmatch(text), _FACTORIAL.fullmatch(text)
    if power is not None:
        base, exponent = _at_least(power[1]), _at_least(power[2] or power[3])
        if base is None or exponent is None:
            return None
        return min(base ** min(exponent, 20), _MANY)
    below = None if factorial is None else _at_least(factorial[1] or factorial[2])
    return None if below is None else min(math.factorial(min(below, 10)), _MANY)

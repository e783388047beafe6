"""Whether two expressions are one, by sympy: in a worker process, since nothing in it knows when to stop."""

from __future__ import annotations

import functools
import re
from itertools import combinations

import sympy
from latex2sympy2_extended import latex2sympy

DIGITS = 60
"""Evaluated to so many, and equal where they agree in two thirds of them: decimals were made exact before."""
_PLACES = ((7, 3), (11, 7), (5, 13))


class Unparsed(ValueError):
    """Text that is no expression."""


@functools.lru_cache(4096)
def expression(text: str) -> sympy.Expr:
    r"""Of cleaned LaTeX. Raises `Unparsed`. Decimals become fractions, e and i the constants."""
    exact = re.sub(r"(\d*)\.(\d+)", lambda d: rf"\frac{{{int(d[1] + d[2])}}}{{{10 ** len(d[2])}}}", text)
    exact = re.sub(r"(\d+)\.(?!\d)", r"\1", exact)
    if re.search(r"\\text|\\begin|[?=<>&]", exact) or not exact.strip():
        raise Unparsed(text)
    try:
        found = latex2sympy(exact)
    except Exception as error:  # The parser's own are bare Exceptions, and it lets many others through.
        raise Unparsed(text) from error
    if not isinstance(found, sympy.Expr):
        raise Unparsed(text)
    constants = {sympy.Symbol("e"): sympy.E, sympy.Symbol("i"): sympy.I}
    return found.xreplace({s: constants[sympy.Symbol(s.name)] for s in found.free_symbols if s.name in ("e", "i")})


def equal(one: sympy.Expr, other: sympy.Expr) -> bool:
    if one == other:
        return True
    if one.is_infinite or other.is_infinite:
        return False
    values = _values(one, other)
    if values is None:
        return sympy.simplify(one - other) == 0
    return all(_near(a, b) for a, b in values)


def proportional(one: sympy.Expr, other: sympy.Expr, positive: bool = False) -> bool:
    """Whether one is the other times a number that is not zero; `positive`: or below it."""
    values = _values(one, other)
    if values is None or any(b == 0 or a == 0 for a, b in values):
        return False
    factors = [a / b for a, b in values]
    return all(_near(a, b) for a, b in combinations(factors, 2)) and not (positive and sympy.re(factors[0]) < 0)


def _values(one: sympy.Expr, other: sympy.Expr) -> list[tuple[sympy.Expr, sympy.Expr]] | None:
    """Both at a few places, or None where they have no numbers there."""
    symbols = sorted(one.free_symbols | other.free_symbols, key=lambda symbol: symbol.name)
    signs = (1, -1) if one.has(sympy.Abs) or other.has(sympy.Abs) else (1,)
    values = []
    for sign in signs:
        for place in _PLACES if symbols else _PLACES[:1]:
            point = {s: sign * sympy.Rational(place[0] + 6 * i, place[1] + i) for i, s in enumerate(symbols)}
            pair = tuple(each.subs(point).evalf(DIGITS) for each in (one, other))
            if not all(value.is_number and value.is_finite for value in pair):
                return None
            values.append(pair)
    return values


def _near(a: sympy.Expr, b: sympy.Expr) -> bool:
    size = max(abs(a), abs(b))
    return bool(abs(a - b) <= size * sympy.Float(10, DIGITS) ** (-DIGITS * 2 // 3))

"""Whether two expressions are one, by sympy: in a worker process, since nothing in it knows when to stop."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from itertools import combinations

import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig

DIGITS = (60, 300)
"""Evaluated to so many, and equal where they agree in two thirds of them: decimals were made exact before. Twice, since
10^50 and the root of 10^100 + 1 have their first 100 digits in common."""
FOR_ZERO = 3000
"""Where one side is zero: e to the power of -1000 is not."""
Point = dict[sympy.Symbol, sympy.Rational]
_PLACES = ((7, 3), (11, 7), (5, 13))
_MORE = ((1009, 7), (-7, 3), (-1013, 3))
"""Large ones and negative ones, where roots and logarithms are real: |x - 50| is 50 - x for small x."""
_UNREAD = re.compile(
    r"\\(?:text|begin|ldots|equiv|pmod|partial|nabla|land|lor|lnot|neg|mathbb|overrightarrow|vec)(?![A-Za-z])|[?=<>&]"
    r"|\\frac\{\s*d(?:\^\{?\d\}?)?\s*[A-Za-z]?\s*\}\s*\{\s*d|(?<![_\d])\d+\s+\d"
)
_PRIMES = re.compile(r"([A-Za-z])((?:'|\^\{?(?:\\prime)+\}?)+)")
_CONFIG = ConversionConfig(lowercase_symbols=False)


class Unparsed(ValueError):
    """Text that is no expression."""


@functools.lru_cache(4096)
def expression(text: str) -> sympy.Expr:
    r"""Of cleaned LaTeX. Raises `Unparsed`. Decimals become fractions, e and i the constants; R is another letter
    than r, and f' than f."""
    exact = re.sub(r"(\d*)\.(\d+)", lambda d: rf"\frac{{{int(d[1] + d[2])}}}{{{10 ** len(d[2])}}}", text)
    exact = re.sub(r"(\d+)\.(?!\d)", r"\1", exact)
    if _UNREAD.search(re.sub(r"_\{\s*\w\s*=", "_{", exact)) or not exact.strip():
        raise Unparsed(text)
    exact = _PRIMES.sub(lambda found: f"{found[1]}_{{{'q' * len(re.findall(chr(39) + '|prime', found[2]))}}}", exact)
    # The parser reads a function there, and the first of the complex roots.
    exact = re.sub(r"\\Gamma(?![A-Za-z(])", r"\\Upsilon_{qg}", exact)
    exact = re.sub(r"\\sqrt\[(\d*[13579])\]\{-(\d+)\}", r"(-\\sqrt[\1]{\2})", exact)
    try:
        found = latex2sympy(exact, conversion_config=_CONFIG)
    except Exception as error:  # The parser's own are bare Exceptions, and it lets many others through.
        raise Unparsed(text) from error
    if not isinstance(found, sympy.Expr):
        raise Unparsed(text)
    constants = {sympy.Symbol("e"): sympy.E, sympy.Symbol("i"): sympy.I}
    if re.search(r"\\(?:sum|prod)_\{?\s*i", exact):  # There i counts.
        del constants[sympy.Symbol("i")]
    named = {s: constants[sympy.Symbol(s.name)] for s in found.free_symbols if sympy.Symbol(s.name) in constants}
    return found.xreplace(named)


def equal(one: sympy.Expr, other: sympy.Expr) -> bool:
    if one == other:
        return True
    one, other = one.doit(), other.doit()
    if one.is_Rational and other.is_Rational:
        return one == other
    if one.is_infinite or other.is_infinite:
        return one == other
    for digits in DIGITS:
        values = _values(one, other, digits)
        if values is None:
            return sympy.simplify(one - other) == 0
        if not all(_near(a, b, digits) for a, b in values):
            return False
    if 0 in (one, other) and not one.free_symbols | other.free_symbols:
        return bool(abs((one - other).evalf(FOR_ZERO, maxn=2 * FOR_ZERO)) < sympy.Float(10) ** -(FOR_ZERO * 2 // 3))
    return True


def proportional(one: sympy.Expr, other: sympy.Expr, positive: bool = False) -> bool:
    """Whether one is the other times a number that is not zero; `positive`: or below it."""
    for digits in DIGITS:
        values = _values(one, other, digits)
        if values is None or any(b == 0 or a == 0 for a, b in values):
            return False
        factors = [a / b for a, b in values]
        if positive and sympy.re(factors[0]) < 0:
            return False
        if not all(_near(a, b, digits) for a, b in combinations(factors, 2)):
            return False
    return True


def _values(one: sympy.Expr, other: sympy.Expr, digits: int) -> list[tuple[sympy.Expr, sympy.Expr]] | None:
    """Both at a few places, or None where they have no numbers there."""
    symbols = sorted(one.free_symbols | other.free_symbols, key=lambda symbol: symbol.name)
    values = []
    for point in _points(symbols, _PLACES if symbols else _PLACES[:1]):
        pair = _at(one, point, digits), _at(other, point, digits)
        if None in pair:
            return None
        values.append(pair)
    for point in _points(symbols, (*_MORE, None) if symbols else ()):
        if _real(one, point) and _real(other, point):
            pair = _at(one, point, digits), _at(other, point, digits)
            if None not in pair:
                values.append(pair)
    return values


def _points(symbols: list[sympy.Symbol], places: tuple[tuple[int, int] | None, ...]) -> Iterator[Point]:
    """None: whole numbers."""
    for place in places:
        if place is None:
            yield {symbol: sympy.Integer(12 + 5 * i) for i, symbol in enumerate(symbols)}
        else:
            sign = 1 if place[0] > 0 else -1
            yield {symbol: sympy.Rational(place[0] + sign * 6 * i, place[1] + i) for i, symbol in enumerate(symbols)}


def _at(expr: sympy.Expr, point: Point, digits: int) -> sympy.Expr | None:
    value = expr.subs(point).evalf(digits, maxn=2 * digits)
    return value if value.is_number and value.is_finite else None


def _real(expr: sympy.Expr, point: Point) -> bool:
    """Whether no root and no logarithm in it is of a number below zero, where the rules for them end."""
    for node in sympy.preorder_traversal(expr):
        inner = node.base if isinstance(node, sympy.Pow) and not node.exp.is_integer else None
        inner = node.args[0] if isinstance(node, sympy.log) else inner
        if inner is not None and not inner.subs(point).is_nonnegative:
            return False
    return True


def _near(a: sympy.Expr, b: sympy.Expr, digits: int) -> bool:
    small = sympy.Float(10, digits) ** (-digits * 2 // 3)
    sizes = sorted((abs(a), abs(b)))
    # What is nothing to all of the digits is zero; the expressions themselves were compared before.
    if sizes[0] <= small * small or sizes[1] == 0:
        return bool(sizes[1] <= small)
    return bool(abs(a - b) <= sizes[1] * small)

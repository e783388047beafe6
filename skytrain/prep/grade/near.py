"""Whether an answer is off by no more than a tolerance: where a problem asks for so much precision, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import sympy

from skytrain.prep.grade import symbols
from skytrain.prep.grade.forms import Ordered, Relation, Unordered, Value, readings
from skytrain.prep.grade.numbers import number
from skytrain.prep.grade.symbols import Unparsed
from skytrain.prep.grade.wording import plain

_DIGITS = 60
"""Of what is no exact number."""


def near(gold: str, answer: str, tolerances: Sequence[Fraction]) -> bool:
    """Of cleaned text: numbers, and tuples, intervals and lists of them. One tolerance holds for all numbers; of
    several, each is that of one member of the gold, in its order."""
    return any(_near(one, other, tolerances) for one in readings(gold) for other in readings(answer))


def _near(gold: Any, answer: Any, tolerances: Sequence[Fraction]) -> bool:
    names = [plain(form.left) for form in (gold, answer) if isinstance(form, Relation)]
    if len(set(names)) == 2:
        return False
    gold, answer = _right(gold), _right(answer)
    if isinstance(gold, Unordered) and isinstance(answer, Unordered):
        return len(gold.items) == len(answer.items) and _members(gold.items, answer.items, tolerances)
    if isinstance(gold, Ordered) and isinstance(answer, Ordered):
        if gold.name and answer.name and gold.name != answer.name:
            return False
        if (gold.opened, gold.closed, len(gold.items)) != (answer.opened, answer.closed, len(answer.items)):
            return False
        return _in_turn(gold.items, answer.items, tolerances)
    if not isinstance(gold, Value) or not isinstance(answer, Value) or len(tolerances) != 1:
        return False
    return _values(gold, answer, tolerances[0])


def _right(form: Any) -> Any:
    """Of x = 5."""
    return form.right if isinstance(form, Relation) and form.sign == "=" else form


def _members(golds: list[Any], answers: list[Any], tolerances: Sequence[Fraction]) -> bool:
    """In any order, where one tolerance holds for all."""
    if len(tolerances) > 1:
        return _in_turn(golds, answers, tolerances)
    sizes = [[_size(item) for item in items] for items in (golds, answers)]
    if None not in sizes[0] and None not in sizes[1]:
        # Of all pairings, that by size has the smallest of the largest distances.
        golds, answers = (
            [items[i] for i in sorted(range(len(items)), key=size.__getitem__)]
            for items, size in zip((golds, answers), sizes)
        )
        return _in_turn(golds, answers, tolerances)
    left = list(answers)
    for one in golds:
        other = next((other for other in left if _near(one, other, tolerances)), None)
        if other is None:
            return False
        left.remove(other)
    return True


def _in_turn(golds: list[Any], answers: list[Any], tolerances: Sequence[Fraction]) -> bool:
    each = tolerances * len(golds) if len(tolerances) == 1 else tolerances
    return len(each) == len(golds) and all(
        _near(one, other, [tolerance]) for one, other, tolerance in zip(golds, answers, each)
    )


def _size(form: Any) -> sympy.Rational | None:
    form = _right(form)
    return _rational(form) if isinstance(form, Value) else None


def _values(gold: Value, answer: Value, tolerance: Fraction) -> bool:
    if gold.unit != answer.unit and gold.unit and answer.unit:
        return False
    if plain(gold.text) == plain(answer.text) and "%" not in (gold.unit, answer.unit):
        return True  # Infinity, as an interval's end.
    one, other = _rational(gold), _rational(answer)
    return None not in (one, other) and bool(abs(one - other) <= sympy.Rational(tolerance))


def _rational(value: Value) -> sympy.Rational | None:
    """The real number that a value is, as near as makes no difference. None: it is none, or a percentage, which is
    another number."""
    if value.unit == "%":
        return None
    exact = number(plain(value.text))
    if exact is not None:
        return sympy.Rational(exact)
    try:
        found = symbols.expression(value.text)
    except Unparsed:
        return None
    if found.free_symbols:
        return None
    found = found.doit().evalf(_DIGITS, maxn=2 * _DIGITS)
    return sympy.Rational(found) if found.is_Number and found.is_finite else None

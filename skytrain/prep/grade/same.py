"""Whether two answers are the same, form by form (forms.py)."""

from __future__ import annotations

import re
from typing import Any

from skytrain.prep.grade import symbols
from skytrain.prep.grade.forms import (
    BASE,
    CLOCK,
    FLIP,
    NAME,
    Cases,
    Grid,
    Ordered,
    Relation,
    Unordered,
    Value,
    read,
    readings,
)
from skytrain.prep.grade.latex import clean
from skytrain.prep.grade.numbers import beyond, number
from skytrain.prep.grade.symbols import Unparsed
from skytrain.prep.grade.wording import is_word, plain, words, wordy

_LABEL = re.compile(r"\s*(?:\\text\{\s*\(?([A-Z])\)\s*[.:]?\s*\}|\(([A-E])\)(?=\s+-?\d))\s*(?=\S)")


def same(gold: str, answer: str) -> bool:
    """Whether a cleaned answer is the cleaned gold. Raises `Unparsed` where the gold cannot be read."""
    if plain(gold) == plain(answer) or (wordy(gold) and wordy(answer) and words(gold) == words(answer)):
        return True
    gold, answer = _unlabelled(gold, answer), _unlabelled(answer, gold)
    golds, answers = readings(gold), readings(answer)
    unread = 0
    for one in golds:
        for other in answers:
            try:
                if _same(one, other):
                    return True
            except Unparsed as error:
                unread += str(error) in gold
    if unread == len(golds) * len(answers):
        raise Unparsed(gold)
    return False


def _unlabelled(text: str, other: str) -> str:
    """Without the letter of the choice that it is, where the other has none."""
    found = _LABEL.match(text)
    return text[found.end() :] if found is not None and not _LABEL.match(other) else text


def _same(gold: Any, answer: Any) -> bool:
    gold, answer = _settled(gold), _settled(answer)
    if answer is None:
        return False
    if isinstance(gold, Relation) != isinstance(answer, Relation):
        relation, other = (gold, answer) if isinstance(gold, Relation) else (answer, gold)
        if relation.sign != "=" or not NAME.fullmatch(plain(relation.left)):
            return False
        return _same(relation.right, other) if relation is gold else _same(other, relation.right)
    for kind in (Ordered, Unordered, Grid, Cases):
        if isinstance(gold, kind) != isinstance(answer, kind):
            return _alone(gold, answer)
    return _SAME[type(gold)](gold, answer)


def _settled(form: Any) -> Any:
    r"""`\binom{8}{4} = 70` is 70, as is every chain of numbers that are equal. None: they are not."""
    if not isinstance(form, Relation) or form.sign != "=" or not form.chain:
        return form
    chain = [value for part in form.chain if (value := _constant(read(part))) is not None]
    last = _constant(form.right)
    if not chain or last is None:
        return form
    if not all(symbols.equal(value, last) for value in chain):
        return None
    return form.right if len(chain) == len(form.chain) and plain(form.left) == plain(form.chain[-1]) else form


def _constant(form: Any) -> Any:
    """The number that a value is, whatever its unit; None for anything else."""
    if not isinstance(form, Value):
        return None
    try:
        found = symbols.expression(form.text)
    except Unparsed:
        return None
    return None if found.free_symbols else found / 100 if form.unit == "%" else found


def _alone(gold: Any, answer: Any) -> bool:
    """A set or list of one is its element; nothing else is two kinds of thing."""
    if isinstance(gold, Unordered) and len(gold.items) == 1:
        return _same(gold.items[0], answer)
    if isinstance(answer, Unordered) and len(answer.items) == 1:
        return _same(gold, answer.items[0])
    return False


def _relation(gold: Relation, answer: Relation) -> bool:
    if gold.sign != answer.sign:
        if {gold.sign, answer.sign} <= set(FLIP) and FLIP[gold.sign] == answer.sign:
            answer = Relation(str(answer.right), gold.sign, answer.left)
        else:
            return False
    if plain(gold.left) == plain(answer.left):
        if not isinstance(gold.right, str):
            if _same(gold.right, answer.right):
                return True
        elif plain(gold.right) == plain(answer.right):
            return True
    if gold.sign not in ("=", *FLIP):
        return False
    sides = [_difference(relation) for relation in (gold, answer)]
    if None in sides:
        return False
    return symbols.proportional(*sides, positive=gold.sign != "=")


def _difference(relation: Relation) -> Any:
    right = relation.right if isinstance(relation.right, str) else getattr(relation.right, "text", None)
    if right is None:
        return None
    return symbols.expression(clean(relation.left)) - symbols.expression(clean(right))


def _ordered(gold: Ordered, answer: Ordered) -> bool:
    if gold.name and answer.name and gold.name != answer.name:
        return False
    if (gold.opened, gold.closed, len(gold.items)) != (answer.opened, answer.closed, len(answer.items)):
        return False
    return all(map(_same, gold.items, answer.items))


def _unordered(gold: Unordered, answer: Unordered) -> bool:
    joints = {gold.joint, answer.joint}
    sets = gold.is_set != answer.is_set and bool(joints - {""})
    claims = [item for item in (*gold.items, *answer.items) if _claims(item)]
    if (joints == {"and", "or"} and claims) or (sets and any(isinstance(item, Value) for item in claims)):
        return False
    named, bare = (_names(form.items) for form in (gold, answer))
    if (len(set(named)) > 1 and not any(bare)) or (len(set(bare)) > 1 and not any(named)):
        return len(gold.items) == len(answer.items) and all(map(_same, gold.items, answer.items))
    if gold.is_set or answer.is_set:
        every = all(any(_same(one, other) for other in answer.items) for one in gold.items)
        return every and all(any(_same(one, other) for one in gold.items) for other in answer.items)
    left = list(answer.items)
    for one in gold.items:
        other = next((other for other in left if _same(one, other)), None)
        if other is None:
            return False
        left.remove(other)
    return not left


def _claims(item: Any) -> bool:
    """Whether it says something, where a value is only one of several."""
    return isinstance(item, Relation) or (isinstance(item, Ordered) and bool(item.name)) or (
        isinstance(item, Value) and re.fullmatch(r"[a-zA-Z]", item.text) is not None
    )  # fmt: skip


def _names(items: list[Any]) -> list[str]:
    return [plain(item.left) if isinstance(item, Relation) and item.sign == "=" else "" for item in items]


def _grid(gold: Grid | Cases, answer: Grid | Cases) -> bool:
    if [len(row) for row in gold.rows] != [len(row) for row in answer.rows] or gold.bars != answer.bars:
        return False
    return all(_same(a, b) for one, other in zip(gold.rows, answer.rows) for a, b in zip(one, other))


def _cases(gold: Cases, answer: Cases) -> bool:
    left = list(answer.rows)
    for row in gold.rows:
        other = next((other for other in left if len(other) == len(row) and all(map(_same, row, other))), None)
        if other is None:
            return False
        left.remove(other)
    return not left


def _values(gold: Value, answer: Value) -> bool:
    if "%" not in (gold.unit, answer.unit) and gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if plain(gold.text) == plain(answer.text) and gold.unit == answer.unit:
        return True
    bases = [
        BASE.fullmatch(re.sub(r"\\text\{(\w+)\}|\((\w+)\)(?=_)", r"\1\2", plain(value.text)))
        for value in (gold, answer)
    ]
    if any(bases):
        return all(bases) and bases[0][1].lower() == bases[1][1].lower() and int(bases[0][2] or bases[0][3]) == int(
            bases[1][2] or bases[1][3]
        )  # fmt: skip
    times = [CLOCK.fullmatch(plain(value.text)) for value in (gold, answer)]
    if all(times):
        return times[0].groups() == times[1].groups() and gold.unit == answer.unit
    one, other = (_number(plain(value.text)) for value in (gold, answer))
    if one is not None and other is not None:
        if gold.unit == "%":
            return other == one if answer.unit == "%" else other in (one, one / 100)
        return one == (other / 100 if answer.unit == "%" else other)
    if one is not None and beyond(plain(answer.text)):
        return False
    if re.fullmatch(r"[A-Z]{2,}", gold.text):  # Corners, and no product.
        return False
    # "stop" and "pots" are one product of letters.
    if any(is_word(value.text) for value in (gold, answer)):
        return words(gold.text) == words(answer.text)
    if any(mark in value.text for mark in ("\\text", "\\mathbb") for value in (gold, answer)):
        return bool(words(gold.text)) and words(gold.text) == words(answer.text)
    if "%" in (gold.unit, answer.unit) and gold.unit != answer.unit:
        return False
    expected = symbols.expression(_ratio(gold.text))
    try:
        return symbols.equal(expected, symbols.expression(_ratio(answer.text)))
    except Unparsed:
        return False
    except Exception as error:  # sympy's own, over what its parser took
        raise Unparsed(answer.text) from error


def _ratio(text: str) -> str:
    above, colon, below = text.partition(":")
    return rf"\frac{{{above}}}{{{below}}}" if colon and ":" not in below else text


def _number(text: str) -> Any:
    """A number, or a ratio of two."""
    if text.count(":") == 1:
        above, below = (number(part) for part in text.split(":"))
        return above / below if above is not None and below else None
    return number(text)


_SAME = {Value: _values, Ordered: _ordered, Unordered: _unordered, Grid: _grid, Cases: _cases, Relation: _relation}

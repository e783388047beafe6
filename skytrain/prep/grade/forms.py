"""What kind of thing an answer is, and whether two are the same: policies, where sympy only has opinions.

An answer is read into a form: a value with its unit, words, a tuple or an interval, a set or a list, a matrix, an
equation, an inequality. Leaves are exact numbers where they can be, else expressions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from skytrain.prep.grade import symbols
from skytrain.prep.grade.latex import clean
from skytrain.prep.grade.numbers import number
from skytrain.prep.grade.symbols import Unparsed
from skytrain.prep.grade.wording import is_word, plain, words, wordy

_OPEN, _CLOSE = ("\\{", "\\langle", "\\begin", "(", "[", "{"), ("\\}", "\\rangle", "\\end", ")", "]", "}")
_ORDER = {"<": "<", ">": ">", "\\le": "<=", "\\ge": ">="}
_FLIP = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)
_SYMBOL = re.compile(
    r"\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?'*(?:\([A-Za-z](?:,[A-Za-z])*\))?|\\text\{[^{}]*\}|\([A-Za-z](?:,[A-Za-z])+\)"
)
_CONDITION = re.compile(r"\b(?:for|where|when|if|with|all|any|every|such|unless|except|only|each|not)\b", re.IGNORECASE)
_UNITS = {"dollar": "$", "usd": "$", "degree": "°", "deg": "°", "percent": "%", "centimeter": "cm", "centimetre": "cm",
          "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km", "millimeter": "mm", "millimetre": "mm",
          "inche": "in", "inch": "in", "foot": "ft", "feet": "ft", "mile": "mi", "second": "s", "sec": "s",
          "minute": "min", "hour": "h", "hr": "h", "gram": "g", "kilogram": "kg", "liter": "l", "litre": "l",
          "mph": "mi/h", "milesperhour": "mi/h", "kmph": "km/h", "cent": "¢"}  # fmt: skip
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_KNOWN = {unit for unit in (*_UNITS, *_UNITS.values(), "km/h", "m/s", "lb", "oz", "ml", "kmh") if len(unit) > 1}
_MATRIX = re.compile(r"\\begin\{([a-zA-Z]*matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_CASES = re.compile(r"(?:.*=)?\s*\\begin\{cases\}(.*)\\end\{cases\}", re.DOTALL)
_BASE = re.compile(r"([0-9A-Fa-f]+)_(?:\{(\d+)\}|(\d))")
_PARTS = (r"\text{or}", r"\lor", " or ", r"\text{and}", r"\land", " and ", ";")


@dataclass(frozen=True)
class Value:
    text: str
    unit: str = ""


@dataclass(frozen=True)
class Ordered:
    """A tuple, or an interval; `name`: of the variable whose range an inequality gives."""

    opened: str
    items: list[Any]
    closed: str
    name: str = ""


@dataclass(frozen=True)
class Unordered:
    items: list[Any]
    is_set: bool = False


@dataclass(frozen=True)
class Grid:
    rows: list[list[Any]]


@dataclass(frozen=True)
class Cases:
    rows: list[list[Any]]


@dataclass(frozen=True)
class Relation:
    left: str
    sign: str
    right: Any


def same(gold: str, answer: str) -> bool:
    """Whether a cleaned answer is the cleaned gold. Raises `Unparsed` where the gold cannot be read."""
    if plain(gold) == plain(answer) or (wordy(gold) and wordy(answer) and words(gold) == words(answer)):
        return True
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


def readings(text: str) -> list[Any]:
    """The forms that a text may have: 1,234 is a number and a list."""
    joined = text if re.search(r"[(\[]|\\\{", text) else _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    return [read(each) for each in dict.fromkeys((joined, text))]


def read(text: str) -> Any:
    text = text.strip()
    for reader in (_grids, _several, _unions, _membership, _relations, _brackets, _both_signs):
        form = reader(text)
        if form is not None:
            return form
    return _value(text)


def split(text: str, *marks: str) -> list[str]:
    """At these marks, where they stand in no bracket."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        mark = next((mark for mark in marks if text.startswith(mark, at)), None) if depth == 0 else None
        if mark is not None and not (mark[-1].isalpha() and text[at + len(mark) :][:1].isalpha()):
            parts.append(text[start:at])
            at = start = at + len(mark)
            continue
        token = _TOKEN.match(text, at)[0]
        depth += (token in _OPEN) - (token in _CLOSE)
        at += len(token)
    return [*parts, text[start:]]


def _grids(text: str) -> Any:
    found = _CASES.fullmatch(text)
    if found is not None:
        return Cases([[read(cell.rstrip(" ,")) for cell in row] for row in _cells(found[1])])
    found = _MATRIX.fullmatch(re.sub(r"^[(\[]\s*(?=\\begin)|(?<=\})\s*[)\]]$", "", text))
    return None if found is None else Grid([[read(cell) for cell in row] for row in _cells(found[2])])


def _cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.split("&")] for row in text.split("\\\\") if row.strip()]


def _several(text: str) -> Any:
    spaced = re.sub(r"\\text\{\s*(or|and)\s*\}", r"\\text{\1}", text)
    if (listed := re.fullmatch(r"\\text\{([^{}]*,[^{}]*)\}", spaced)) is not None:
        spaced = listed[1]
    for marks in (_PARTS, (",",)):
        parts = [part.strip() for part in split(spaced, *marks)]
        parts = [part for part in parts if part]
        if len(parts) > 1:
            items: list[Any] = []
            for part in parts:
                form = read(part)
                items += form.items if isinstance(form, Unordered) and not form.is_set else [form]
            return Unordered(items)
    return None


def _unions(text: str) -> Any:
    r"""`a \cup b`."""
    parts = split(text, r"\cup")
    return Unordered([read(part) for part in parts], is_set=True) if len(parts) > 1 else None


def _membership(text: str) -> Any:
    parts = split(text, r"\in")
    return read(parts[1]) if len(parts) == 2 and _SYMBOL.fullmatch(plain(parts[0])) else None


def _relations(text: str) -> Any:
    spaced = re.sub(r"\\([lg]e)(?![A-Za-z])", r"\\\1 ", text)
    found = [token for token in ("\\ne", "=", "<", ">", "\\le", "\\ge") if len(split(spaced, token)) > 1]
    if not found:
        return None
    parts = [part.strip() for part in split(spaced, "=", "<", ">", "\\le", "\\ge", "\\ne")]
    if found == ["="]:
        return Relation(parts[-2], "=", read(parts[-1])) if all(parts[-2:]) else None
    if "=" in found or "\\ne" in found:
        return Relation(plain(parts[0]), "".join(found), plain("".join(parts[1:])))
    order = _order(spaced)
    if len(parts) == 3 and order[0][0] == order[1][0] and _SYMBOL.fullmatch(plain(parts[1])):
        if order[0][0] == ">":
            parts, order = parts[::-1], [_FLIP[sign] for sign in reversed(order)]
        opened, closed = ("[" if order[0] == "<=" else "("), ("]" if order[1] == "<=" else ")")
        return Ordered(opened, [read(parts[0]), read(parts[2])], closed, plain(parts[1]))
    if len(parts) == 2:
        left, right, sign = *parts, order[0]
        if not _SYMBOL.fullmatch(plain(left)) and _SYMBOL.fullmatch(plain(right)):
            left, right, sign = right, left, _FLIP[sign]
        if _SYMBOL.fullmatch(plain(left)):
            bound = read(right)
            if sign[0] == ">":
                return Ordered("[" if sign == ">=" else "(", [bound, Value("\\infty")], ")", plain(left))
            return Ordered("(", [Value("-\\infty"), bound], "]" if sign == "<=" else ")", plain(left))
        return Relation(left, sign, right)
    return Relation(plain(parts[0]), " ".join(order), plain("|".join(parts[1:])))


def _order(text: str) -> list[str]:
    signs, at = [], 0
    for part in split(text, *_ORDER)[:-1]:
        at += len(part)
        mark = next(mark for mark in _ORDER if text.startswith(mark, at))
        signs.append(_ORDER[mark])
        at += len(mark)
    return signs


def _brackets(text: str) -> Any:
    found = re.fullmatch(r"(\\\{|\\langle|[(\[])(.*)(\\\}|\\rangle|[)\]])", text, re.DOTALL)
    if text == r"\emptyset":
        return Unordered([], is_set=True)
    if found is None:
        return None
    opened, inner, closed = found.groups()
    if len(split(opened + inner + closed + "\0", "\0")) != 2 or len(split("(" + inner + ")", "\0")) != 1:
        return None
    depth = 0
    for token in _TOKEN.findall(inner):
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth < 0:
            return None
    items = [item.strip() for item in split(inner, ",")]
    if opened == "\\{":
        builder = re.fullmatch(r"\s*(\S+?)\s*(?:\||:|\\in\s*\\mathbb\{?R\}?\s*\|)(.*)", inner)
        if builder is not None and _SYMBOL.fullmatch(builder[1]):
            return read(builder[2])
        return Unordered([read(item) for item in items if item], is_set=True)
    if len(items) < 2:
        return read(inner) if opened == "(" and closed == ")" else None
    ends = "(" if opened == "\\langle" else opened, ")" if closed == "\\rangle" else closed
    return Ordered(ends[0], [read(item) for item in items], ends[1])


def _both_signs(text: str) -> Any:
    if r"\pm" not in text and r"\mp" not in text:
        return None
    both = []
    for plus, minus in (("+", "-"), ("-", "+")):
        one = re.sub(r"\\pm(?![A-Za-z])", plus, re.sub(r"\\mp(?![A-Za-z])", minus, text))
        both.append(read(one.strip().removeprefix("+")))
    return Unordered(both)


def _value(text: str) -> Value:
    found = re.fullmatch(r"(.*?[^\s\\])\s*(?:\\cdot\s*)?\\text\{([^{}]*)\}((?:\^\{?-?\d\}?)?)", text, re.DOTALL)
    bare = re.fullmatch(r"([-+]?[\d.,/]+|[-+]?\\frac\{\d+\}\{\d+\})\s*([A-Za-z][A-Za-z. /]*)((?:\^\{?\d\}?)?)", text)
    if bare is not None and not bare[0][bare.end(1)].isspace() and _unit(bare[2]) not in _KNOWN:
        bare = None  # 5x is a product.
    if (found := found or bare) is not None and not _CONDITION.search(found[2]):
        inner = _value(found[1].strip())
        return Value(inner.text, inner.unit + _unit(found[2]) + re.sub(r"[{}]", "", found[3]))
    found = re.fullmatch(r"(-?)\\text\{(dollar|pound|euro)\}\s*(.+)", text, re.DOTALL)
    if found is not None:
        inner = _value(found[3])
        return Value(found[1] + inner.text, _unit(found[2]))
    if text.endswith("%") and len(text) > 1:
        return Value(text[:-1].strip(), "%")
    return Value(text)


def _unit(text: str) -> str:
    text = re.sub(r"[\s.]", "", text.lower())
    text = text if len(text) < 3 or text.endswith("ss") else text.removesuffix("s")
    return _UNITS.get(text, text)


def _same(gold: Any, answer: Any) -> bool:
    if isinstance(gold, Relation) != isinstance(answer, Relation):
        relation, other = (gold, answer) if isinstance(gold, Relation) else (answer, gold)
        if relation.sign != "=" or not _SYMBOL.fullmatch(plain(relation.left)):
            return False
        return _same(relation.right, other) if relation is gold else _same(other, relation.right)
    for kind in (Ordered, Unordered, Grid, Cases):
        if isinstance(gold, kind) != isinstance(answer, kind):
            return _alone(gold, answer)
    return _SAME[type(gold)](gold, answer)


def _alone(gold: Any, answer: Any) -> bool:
    """A set or list of one is its element; nothing else is two kinds of thing."""
    if isinstance(gold, Unordered) and len(gold.items) == 1:
        return _same(gold.items[0], answer)
    if isinstance(answer, Unordered) and len(answer.items) == 1:
        return _same(gold, answer.items[0])
    return False


def _relation(gold: Relation, answer: Relation) -> bool:
    if gold.sign != answer.sign:
        if {gold.sign, answer.sign} <= set(_FLIP) and _FLIP[gold.sign] == answer.sign:
            answer = Relation(str(answer.right), gold.sign, answer.left)
        else:
            return False
    if plain(gold.left) == plain(answer.left):
        if not isinstance(gold.right, str):
            if _same(gold.right, answer.right):
                return True
        elif plain(gold.right) == plain(answer.right):
            return True
    if gold.sign not in ("=", *_FLIP):
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


def _grid(gold: Grid | Cases, answer: Grid | Cases) -> bool:
    if [len(row) for row in gold.rows] != [len(row) for row in answer.rows]:
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
    bases = [_BASE.fullmatch(re.sub(r"\\text\{(\w+)\}", r"\1", plain(value.text))) for value in (gold, answer)]
    if any(bases):
        return all(bases) and bases[0][1].lower() == bases[1][1].lower() and int(bases[0][2] or bases[0][3]) == int(
            bases[1][2] or bases[1][3]
        )  # fmt: skip
    one, other = (_number(plain(value.text)) for value in (gold, answer))
    if one is not None and other is not None:
        if gold.unit == "%":
            return other == one if answer.unit == "%" else other in (one, one / 100)
        return one == (other / 100 if answer.unit == "%" else other)
    if re.fullmatch(r"[A-Z]{2,}", gold.text):  # Corners, and no product.
        return False
    # "stop" and "pots" are one product of letters.
    if any(is_word(value.text) for value in (gold, answer)):
        return words(gold.text) == words(answer.text)
    if any(mark in value.text for mark in ("\\text", "\\mathbb", ":") for value in (gold, answer)):
        return bool(words(gold.text)) and words(gold.text) == words(answer.text)
    if "%" in (gold.unit, answer.unit) and gold.unit != answer.unit:
        return False
    expected = symbols.expression(gold.text)
    try:
        return symbols.equal(expected, symbols.expression(answer.text))
    except Unparsed:
        return False


def _number(text: str) -> Any:
    """A number, or a ratio of two."""
    if text.count(":") == 1:
        above, below = (number(part) for part in text.split(":"))
        return above / below if above is not None and below else None
    return number(text)


_SAME = {Value: _values, Ordered: _ordered, Unordered: _unordered, Grid: _grid, Cases: _cases, Relation: _relation}

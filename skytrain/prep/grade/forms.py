"""What kind of thing an answer is: policies, where sympy only has opinions. Whether two are the same: same.py.

An answer is read into a form: a value with its unit, words, a tuple or an interval, a set or a list, a matrix, an
equation, an inequality. Leaves are exact numbers where they can be, else expressions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from skytrain.prep.grade.numbers import number
from skytrain.prep.grade.units import CONDITION, KNOWN, unit
from skytrain.prep.grade.wording import plain

_OPEN, _CLOSE = ("\\{", "\\langle", "\\begin", "(", "[", "{"), ("\\}", "\\rangle", "\\end", ")", "]", "}")
_ORDER = {"<": "<", ">": ">", "\\le": "<=", "\\ge": ">="}
FLIP = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)
_SYMBOL = re.compile(
    r"\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?'*(?:\([A-Za-z](?:,[A-Za-z])*\))?|\\text\{[^{}]*\}|\([A-Za-z](?:,[A-Za-z])+\)"
)
NAME = re.compile(
    rf"{_SYMBOL.pattern}|[A-Za-z]+\([^()=]*\)|\|[A-Z]{{2}}\||(?:m)?\\(?:angle|overline|triangle)\{{?[A-Z]{{1,3}}\}}?"
)
"""What a value may be the value of: x, f(2), |AB|, an angle."""
CLOCK = re.compile(r"0?(\d{1,2}):(\d\d)(?::(\d\d))?")
_TURN = re.compile(r"(\d+(?:\.\d+)?)\s*\\text\{degrees?\}")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_MATRIX = re.compile(r"\\begin\{([a-zA-Z]*matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_CASES = re.compile(r"(?:.*=)?\s*\\begin\{cases\}(.*)\\end\{cases\}", re.DOTALL)
BASE = re.compile(r"([0-9A-Fa-f]+)_(?:\{(\d+)\}|(\d))")
_OR, _AND = (r"\text{or}", r"\lor", " or "), (r"\text{and}", r"\land", " and ")


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
    joint: str = ""
    """"and" or "or", where one of them stands between all."""


@dataclass(frozen=True)
class Grid:
    rows: list[list[Any]]
    bars: str = ""
    """Those of a determinant, which is no matrix."""


@dataclass(frozen=True)
class Cases:
    rows: list[list[Any]]


@dataclass(frozen=True)
class Relation:
    left: str
    sign: str
    right: Any
    chain: tuple[str, ...] = ()
    """What else is said to be equal to `right`, from the left."""


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
    if found is None:
        return None
    bars = found[1][0] if found[1][0] in "vV" else ""
    return Grid([[read(cell) for cell in row] for row in _cells(found[2])], bars)


def _cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.split("&")] for row in text.split("\\\\") if row.strip()]


def _several(text: str) -> Any:
    spaced = re.sub(r"\\text\{\s*(or|and)\s*\}", r"\\text{\1}", text)
    if (listed := re.fullmatch(r"\\text\{([^{}]*,[^{}]*)\}", spaced)) is not None:
        spaced = listed[1]
    for marks in ((*_OR, *_AND, ";"), (",",)):
        parts = [part.strip() for part in split(spaced, *marks)]
        parts = [part for part in parts if part]
        if len(parts) > 1:
            items: list[Any] = []
            for part in parts:
                form = read(part)
                items += form.items if isinstance(form, Unordered) and not form.is_set else [form]
            joints = {name for name, words in (("or", _OR), ("and", _AND)) if len(split(spaced, *words)) > 1}
            joint = joints.pop() if len(joints) == 1 else ""
            return (_between(items) if joint == "and" else None) or Unordered(items, joint=joint)
    return None


def _between(items: list[Any]) -> Ordered | None:
    """x > 1 and x < 2 is 1 < x < 2."""
    if len(items) != 2 or not all(isinstance(item, Ordered) and item.name for item in items):
        return None
    above = [item for item in items if item.items[1] == Value("\\infty")]
    below = [item for item in items if item.items[0] == Value("-\\infty")]
    if len(above) != 1 or len(below) != 1 or items[0].name != items[1].name:
        return None
    return Ordered(above[0].opened, [above[0].items[0], below[0].items[1]], below[0].closed, items[0].name)


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
        if not all(parts[-2:]):
            return None
        if len(parts) == 2 and _SYMBOL.fullmatch(plain(parts[1])) and number(plain(parts[0])) is not None:
            parts.reverse()
        # S = ab = 6 is S = 6, and x = y = 2 is x = 2, y = 2.
        names = [part for part in parts[:-1] if NAME.fullmatch(plain(part))]
        last, others = read(parts[-1]), tuple(part for part in parts[:-1] if part not in names)
        said = [Relation(name, "=", last, others) for name in names or parts[-2:-1]]
        return said[0] if len(said) == 1 else Unordered(list(said))
    if "=" in found or "\\ne" in found:
        return Relation(plain(parts[0]), "".join(found), plain("".join(parts[1:])))
    order = _order(spaced)
    if len(parts) == 3 and order[0][0] == order[1][0] and _SYMBOL.fullmatch(plain(parts[1])):
        if order[0][0] == ">":
            parts, order = parts[::-1], [FLIP[sign] for sign in reversed(order)]
        opened, closed = ("[" if order[0] == "<=" else "("), ("]" if order[1] == "<=" else ")")
        return Ordered(opened, [read(parts[0]), read(parts[2])], closed, plain(parts[1]))
    if len(parts) == 2:
        left, right, sign = *parts, order[0]
        if not _SYMBOL.fullmatch(plain(left)) and _SYMBOL.fullmatch(plain(right)):
            left, right, sign = right, left, FLIP[sign]
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
    if not re.search(r"\\(?:pm|mp)(?![A-Za-z])", text):
        return None
    both = []
    for plus, minus in (("+", "-"), ("-", "+")):
        one = re.sub(r"\\pm(?![A-Za-z])", plus, re.sub(r"\\mp(?![A-Za-z])", minus, text))
        both.append(read(one.strip().removeprefix("+")))
    return Unordered(both)


def _value(text: str) -> Value:
    if _TRIGONOMETRIC.search(text):  # Degrees within a function are no unit of its value.
        text = _TURN.sub(r"{\\frac{\1\\pi}{180}}", text)
    found = re.fullmatch(r"(.*?[^\s\\])\s*(?:\\cdot\s*)?\\text\{([^{}]*)\}((?:\^\{?-?\d\}?)?)", text, re.DOTALL)
    bare = re.fullmatch(r"([-+]?[\d.,/]+|[-+]?\\frac\{\d+\}\{\d+\})\s*([A-Za-z][A-Za-z. /]*)((?:\^\{?\d\}?)?)", text)
    if bare is not None and not bare[0][bare.end(1)].isspace() and unit(bare[2]) not in KNOWN:
        bare = None  # 5x is a product.
    if (found := found or bare) is not None and not CONDITION.search(found[2]):
        inner = _value(found[1].strip())
        return Value(inner.text, inner.unit + unit(found[2]) + re.sub(r"[{}]", "", found[3]))
    counted = re.fullmatch(r"\\text\{\s*([-+]?\d[\d.,/]*)\s+([A-Za-z][A-Za-z. ]*)\}", text)
    if counted is not None and not CONDITION.search(counted[2]):
        return Value(counted[1], unit(counted[2]))
    found = re.fullmatch(r"(-?)\\text\{(dollar|pound|euro)\}\s*(.+)", text, re.DOTALL)
    if found is not None:
        inner = _value(found[3])
        return Value(found[1] + inner.text, unit(found[2]))
    if text.endswith("%") and len(text) > 1:
        return Value(text[:-1].strip(), "%")
    return Value(text)

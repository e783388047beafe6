"""What the tasks share: the fields of published rows, which one copy of a set names so and another so."""

from __future__ import annotations

import re
from typing import Any

from skytrain.eval.task import Skip
from skytrain.prep.problems import Malformed
from skytrain.prep.stage import Row

_WHOLE = re.compile(r"\+?\s*(\d+)(?:\.0+)?\s*(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|°)?\s*\.?")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{([^{}]*(?:\{[^{}]*\})?[^{}]*)\}\s*\.?")
_YEAR = re.compile(r"(20\d\d)_(?:AIME|AMC)|^(20\d\d)-")


def want(row: Row, *fields: str | tuple[str, ...]) -> None:
    """Raises `Malformed` where a field is missing; of several names in one tuple, one will do."""
    groups = [(field,) if isinstance(field, str) else field for field in fields]
    if all(any(name in row for name in group) for group in groups):
        return
    wanted = ", ".join(" or ".join(map(repr, group)) for group in groups)
    found = ", ".join(map(repr, row)) or "none"
    raise Malformed(f"another form: the fields must be {wanted}; found are {found[:300]}")


def field(row: Row, *names: str) -> Any:
    """The first of these that is there and not null."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def text_of(row: Row, *names: str) -> str:
    """Raises `Malformed` for what is missing, empty or no text."""
    value = field(row, *names)
    if not isinstance(value, str) or not value.strip():
        raise Malformed(f"{' or '.join(map(repr, names))} must be text that is not empty")
    return value


def of_year(row: Row, year: int) -> None:
    """Raises `Skip` for a problem of another year, where the row tells its own: by year, url, or an id as 2024-I-12."""
    told = [_YEAR.search(str(row[key])) for key in ("url", "id", "ID") if row.get(key) is not None]
    years = [int(found[1] or found[2]) for found in told if found]
    if re.fullmatch(r"\d{4}", str(row.get("year"))):
        years.append(int(row["year"]))
    if years and years[0] != year:
        raise Skip("another_year", f"a problem of {years[0]}, where {year} is asked for")


def whole_number(value: Any) -> int | None:
    r"""Of an answer: 33, "033", "+33", 33.0, "33.", "$33$", `\(33\)`, `\boxed{33}` or degrees; None for others."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        return None
    bare = re.sub(r"\\[()\[\]]|\$", " ", value).strip()
    boxed = _BOXED.fullmatch(bare)
    found = _WHOLE.fullmatch(boxed[1].strip() if boxed else bare)
    return int(found[1]) if found else None

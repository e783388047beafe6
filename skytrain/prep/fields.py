"""What the published forms share: fields of a row that must be of a kind, and the problem that they become."""

from __future__ import annotations

from typing import Any

from skytrain.prep.problems import Malformed
from skytrain.prep.stage import Row


def text(row: Row, key: str) -> str:
    """Raises `Malformed` for what is missing, empty or no text."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        kind = (
            "missing"
            if value is None
            else "empty"
            if isinstance(value, str)
            else f"no text, but {type(value).__name__}"
        )
        raise Malformed(f"{key!r} is {kind}")
    return value


def optional_text(row: Row, key: str) -> str | None:
    """None for what is missing or blank. Raises `Malformed` for what is no text."""
    value = row.get(key)
    if not isinstance(value, str | None):
        raise Malformed(f"{key!r} must be text or null, not {type(value).__name__}")
    return value if value and value.strip() else None


def problem(
    *,
    id: Any = None,
    source: Any,
    domain: str,
    prompt: str,
    gold: Any = None,
    solution: str | None = None,
    tests: Any = None,
    starter: Any = None,
    difficulty: float | None = None,
    **provenance: Any,
) -> Row:
    """The keys of a problem, in their order. What is None is left out of the provenance."""
    return {
        "id": id,
        "source": source,
        "domain": domain,
        "difficulty": difficulty,
        "prompt": prompt,
        "gold": gold,
        "tests": tests,
        "starter": starter,
        "solution": solution,
        "provenance": {key: value for key, value in provenance.items() if value is not None},
    }

"""The one form of a problem, and what the stages add to it.

| key | what |
|---|---|
| `id` | text, unique in its file |
| `source` | text: the pool that it came from, as numina_amc_aime or apps |
| `domain` | math, code, choice (the gold is a letter) or other (the gold is text) |
| `difficulty` | a number from 1 to 10, or null |
| `prompt` | text: the question as it is asked, choices included |
| `gold` | text: the answer; null for code |
| `tests` | for code, one of the three forms below; null else |
| `starter` | for code: code that the program begins with, or null |
| `solution` | the reference solution: a program, or text with the answer in a box; null where none is published |
| `provenance` | an object: file, line, what the row carried beside; stages add their own keys to it |

Tests: `{"inputs": [...], "outputs": [...], "fn_name": text or null}`; the same in a file where they are large,
`{"file": name, "count": n, "fn_name": ...}` with one line `[input, output]` a test, its name relative to the
folder of the rows; or HumanEval's `{"check": source, "entry_point": name}`.

`generate` adds `problem` (the id before samples were told apart), `sample`, `asked` (the user's turn), `reasoning`
(text or null) and `answer`. `rewrite` puts `messages` and `form` ("tags" or "think") in the place of the last three.
`grade` adds `verdict`.
"""

from __future__ import annotations

from typing import Any

DOMAINS = ("math", "code", "choice", "other")


class Malformed(ValueError):
    """A row that is no problem; the message says which key, and what it should be."""


def check_problem(row: dict[str, Any]) -> None:
    """Raises `Malformed` where a later stage could not use the row."""
    for key in ("id", "source", "prompt"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise Malformed(f"{key!r} must be text that is not empty, not {_told(row.get(key))}")
    if row.get("domain") not in DOMAINS:
        raise Malformed(f"'domain' must be one of {', '.join(DOMAINS)}, not {_told(row.get('domain'))}")
    difficulty = row.get("difficulty")
    if difficulty is not None and (isinstance(difficulty, bool) or not isinstance(difficulty, int | float)):
        raise Malformed(f"'difficulty' must be a number or null, not {_told(difficulty)}")
    for key in ("gold", "solution", "starter"):
        if not isinstance(row.get(key), str | None):
            raise Malformed(f"{key!r} must be text or null, not {_told(row[key])}")
    if not isinstance(row.get("provenance", {}), dict):
        raise Malformed(f"'provenance' must be an object, not {_told(row['provenance'])}")
    if row["domain"] == "code":
        if row.get("tests") is not None:
            check_tests(row["tests"])
    elif row.get("tests") is not None:
        raise Malformed(f"'tests' must be null in the domain {row['domain']}")


def check_tests(tests: Any) -> None:
    """Raises `Malformed` for tests that are of none of the three forms. Their values are not looked at."""
    if not isinstance(tests, dict):
        raise Malformed(f'\'tests\' must be {{"inputs": [...], "outputs": [...]}}, not {_told(tests)}')
    if "check" in tests:
        if not isinstance(tests["check"], str) or not isinstance(tests.get("entry_point"), str):
            raise Malformed("'tests' with a check need its source and an entry_point, both text")
        return
    if not isinstance(tests.get("fn_name"), str | None):
        raise Malformed(f"'fn_name' must be text or null, not {_told(tests['fn_name'])}")
    if "file" in tests:
        if not isinstance(tests["file"], str):
            raise Malformed(f"'file' of the tests must be text, not {_told(tests['file'])}")
        return
    inputs, outputs = tests.get("inputs"), tests.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise Malformed("'tests' need inputs and outputs, two lists of one length")


def _told(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

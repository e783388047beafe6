"""The published forms of programming problems. See `formats`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from skytrain.files import unique_keys
from skytrain.prep.encoded_tests import each_test
from skytrain.prep.fields import optional_text, problem, text
from skytrain.prep.problems import Malformed
from skytrain.prep.stage import Row
from skytrain.prep.tests_folder import Pairs


def parsed(value: str, key: str) -> Any:
    """The JSON value that a text holds. Raises `Malformed`."""
    try:
        return json.loads(value, object_pairs_hook=unique_keys)
    except RecursionError:
        raise Malformed(f"{key!r}: brackets too deep") from None
    except ValueError as error:
        raise Malformed(f"{key!r} must hold JSON ({error})") from None


def pairs(inputs: list[Any], outputs: list[Any], fn_name: Any) -> Pairs | None:
    """None where there are no tests. Raises `Malformed`."""
    if len(inputs) != len(outputs):
        raise Malformed(f"{len(inputs)} inputs and {len(outputs)} outputs; the tests need one of each")
    if not isinstance(fn_name, str | None):
        raise Malformed(f"'fn_name' must be text or null, not {type(fn_name).__name__}")
    return Pairs(fn_name or None, iter(zip(inputs, outputs))) if inputs else None


def apps(row: Row) -> Row:
    return problem(
        id=row.get("id") if row.get("problem_id") is None else row["problem_id"],
        source="apps",
        **_with_input_output(row),
        level=row.get("difficulty"),
        url=row.get("url"),
    )


def taco(row: Row) -> Row:
    """`platform` of its provenance: where the problem is from, which TACO calls its source."""
    names = ("name", "url", "date", "tags", "raw_tags", "skill_types", "time_limit", "memory_limit")
    return problem(
        id=row.get("id"),
        source="taco",
        **_with_input_output(row),
        level=row.get("difficulty"),
        platform=row.get("source"),
        **{key: row.get(key) for key in names},
    )


def _with_input_output(row: Row) -> Row:
    return {
        "domain": "code",
        "prompt": text(row, "question"),
        "solution": _first_solution(row.get("solutions")),
        "tests": _input_output(row.get("input_output")),
        "starter": optional_text(row, "starter_code"),
    }


def _first_solution(value: Any) -> str | None:
    if isinstance(value, str):
        value = parsed(value, "solutions") if value.strip() else []
    if not isinstance(value, list | None) or not all(isinstance(solution, str) for solution in value or []):
        raise Malformed("'solutions' must be a list of texts, or the JSON of one")
    return next((solution for solution in value or [] if solution.strip()), None)


def _input_output(value: Any) -> Pairs | None:
    if isinstance(value, str):
        value = parsed(value, "input_output") if value.strip() else None
    if not value:
        return None
    if not isinstance(value, dict):
        raise Malformed(f"'input_output' must be an object, not {type(value).__name__}")
    inputs, outputs, fn_name = value.get("inputs", []), value.get("outputs", []), value.get("fn_name")
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise Malformed("'input_output' must have inputs and outputs, two lists")
    if fn_name:
        outputs = _unwrapped(outputs)
    else:
        inputs, outputs = [_stdin(value) for value in inputs], [_stdin(value) for value in outputs]
    return pairs(inputs, outputs, fn_name)


def _unwrapped(outputs: list[Any]) -> list[Any]:
    """Without the one-element list around each. Not where another list of the row has more or fewer elements: there the
    function returns lists, and those of one element are answers like the others."""
    if any(isinstance(output, list) and len(output) != 1 for output in outputs):
        return outputs
    return [output[0] if isinstance(output, list) else output for output in outputs]


def _stdin(value: Any) -> str:
    """The text of a program's input or output, which some rows have as a list of lines or as a number."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(_stdin(line) for line in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise Malformed(f"an input or output of a program must be text or lines, not {type(value).__name__}")


def humaneval(row: Row) -> Row:
    prompt = text(row, "prompt")
    solution = optional_text(row, "canonical_solution")
    return problem(
        id=row.get("task_id"),
        source="humaneval",
        domain="code",
        prompt=prompt,
        solution=None if solution is None else prompt + solution,
        tests={"check": text(row, "test"), "entry_point": text(row, "entry_point")},
        starter=prompt,
    )


def livecodebench(row: Row) -> Row:
    metadata = row.get("metadata")
    if isinstance(metadata, str):
        metadata = parsed(metadata, "metadata") if metadata.strip() else None
    if not isinstance(metadata, dict | None):
        raise Malformed(f"'metadata' must be an object, not {type(metadata).__name__}")
    fn_name = (metadata or {}).get("func_name") or None
    if not isinstance(fn_name, str | None):
        raise Malformed(f"'func_name' of the metadata must be text, not {type(fn_name).__name__}")
    names = ("platform", "contest_id", "contest_date")
    return problem(
        id=row.get("question_id"),
        source="livecodebench",
        domain="code",
        prompt=text(row, "question_content"),
        tests=Pairs(fn_name, _public_then_private(row, fn_name)),
        starter=optional_text(row, "starter_code"),
        title=row.get("question_title"),
        level=row.get("difficulty"),
        **{key: row.get(key) for key in names},
    )


def _public_then_private(row: Row, fn_name: str | None) -> Iterator[tuple[Any, Any]]:
    wanted = "functional" if fn_name else "stdin"
    for key in ("public_test_cases", "private_test_cases"):
        value = row.get(key)
        for test in each_test([] if value is None else value):
            if not isinstance(test, dict):
                raise Malformed(f"{key!r}: a test must be an object, not {type(test).__name__}")
            if test.get("testtype", wanted) != wanted:
                raise Malformed(
                    f"{key!r}: a test of the type {str(test['testtype'])[:40]!r}, and func_name is {fn_name!r}"
                )
            given, output = test.get("input"), test.get("output")
            if not isinstance(given, str) or not isinstance(output, str):
                raise Malformed(f"{key!r}: a test needs input and output, both text")
            if fn_name:
                # Stays text, as its arguments are: "1" decoded would be a text, or a number again.
                parsed(output, "output")
            yield given, output

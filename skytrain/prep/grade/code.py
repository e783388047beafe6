"""Whether a program passes its tests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from skytrain.errors import UserError
from skytrain.prep.grade.inside import decode
from skytrain.prep.grade.outputs import same_output, same_value
from skytrain.prep.grade.pipes import Pipes
from skytrain.prep.grade.running import Program, watch
from skytrain.prep.grade.sandbox import check_level
from skytrain.prep.problems import Malformed, check_tests

Verdict = Literal["correct", "wrong", "timeout", "crash", "no_tests"]
SECONDS = 10.0


class BadTests(UserError):
    """Tests of no form that can be run: of a row, and not of how the grader was set up."""


_SHORT_INT = 4000
"""Digits that Python itself converts; its limit is a little above."""


def grade_code(
    program: str,
    tests: dict[str, Any] | None,
    *,
    seconds: float = SECONDS,
    sandbox: str = "bubblewrap",
    imports: bool = False,
) -> Verdict:
    """The verdict on a program, by the policies of tests/cases/README.md. Any thread of any process may ask.

    `tests` has one of the forms of `skytrain.prep.problems`; each test runs in a fresh sandbox for at most `seconds`,
    1 GiB of memory and 64 MiB of output, and the first that is not passed is the last. What is expected is compared
    here, and never reaches the program. A program whose function is called is no `__main__`.

    `imports`: whether a program that reads and prints is given the names of the usual modules, as List or defaultdict,
    where it has not imported them; one whose function is called always is.

    `sandbox`: "bubblewrap", or "process", which limits what a program uses, and hides neither files nor the network.

    Raises `BadTests`, a `UserError`, for tests of no such form, and `UserError` for a sandbox that is unknown or does
    not start.
    """
    check_level(sandbox)
    if not tests:
        return "no_tests"
    try:
        check_tests(tests)
        if "check" in tests:
            return _by_check(program, tests, seconds, sandbox) if tests["check"].strip() else "no_tests"
        verdict: Verdict = "no_tests"
        for given, expected in _from_file(tests) if "file" in tests else zip(tests["inputs"], tests["outputs"]):
            if tests.get("fn_name") is None:
                verdict = _by_output(program, given, expected, seconds, sandbox, imports)
            else:
                verdict = _by_call(program, tests["fn_name"], given, expected, seconds, sandbox)
            if verdict != "correct":
                break
    except Malformed as error:
        raise BadTests(f"tests: {error}") from None
    return verdict


def _from_file(tests: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """One test at a time, since the file may not fit into memory."""
    path, count = Path(tests["file"]), tests.get("count")
    try:
        with path.open("rb") as file:
            there = sum(1 for _ in file)
            if there != count:
                raise Malformed(f"{path} has {there} lines, where 'count' says {count!r}: make the file again")
            file.seek(0)
            for number, line in enumerate(file, 1):
                pair = _json(line, f"{path}:{number}")
                if not isinstance(pair, list) or len(pair) != 2:
                    raise Malformed(f"{path}:{number} is no [input, output]")
                yield pair[0], pair[1]
    except OSError as error:
        raise Malformed(f"{path} cannot be read: {error.strerror}") from None


def _by_output(program: str, given: Any, expected: Any, seconds: float, level: str, imports: bool) -> Verdict:
    if not isinstance(given, str) or not isinstance(expected, str):
        raise Malformed("inputs and outputs must be text where there is no fn_name")
    verdict, ran = _ran({"mode": "run", "program": program, "imports": imports}, _bytes(given), seconds, level)
    if verdict is not None:
        return verdict
    return "correct" if same_output(_bytes(expected), ran.output) else "wrong"


def _by_call(program: str, name: str, given: Any, expected: Any, seconds: float, level: str) -> Verdict:
    if isinstance(given, str):
        arguments = [_json(line, "an input") for line in given.split("\n") if line.strip()]
        expected = _json_or_text(expected)
    elif isinstance(given, list):
        arguments = given
    else:
        raise Malformed("inputs must be text of JSON lines, or lists of arguments, where there is a fn_name")
    job = {"mode": "call", "program": program, "name": name, "arguments": arguments, "imports": True}
    verdict, ran = _ran(job, b"", seconds, level)
    if verdict is not None:
        return verdict
    try:
        returned = decode(bytes(ran.result[1:]))
    except ValueError:
        return "wrong"
    return "correct" if same_value(expected, returned) else "wrong"


def _ran(job: dict[str, Any], stdin: bytes, seconds: float, level: str) -> tuple[Verdict | None, Program]:
    pipes = Pipes()
    with closing(Program(pipes, level, job, seconds, stdin)) as program:
        verdict = watch(pipes, [program], seconds)
    return verdict or ("crash" if program.status else None), program


def _by_check(program: str, tests: dict[str, Any], seconds: float, level: str) -> Verdict:
    """The check in a sandbox of its own, which two pipes connect with the program's: what it compares are values, and
    nothing that the program can touch."""
    pipes = Pipes()
    with ExitStack() as running:
        with ExitStack() as ends:
            calls, asks, answers, replies = (*os.pipe(), *os.pipe())
            for end in (calls, asks, answers, replies):
                ends.callback(os.close, end)
            check = {"program": tests["check"], "name": tests["entry_point"], "receive": answers, "send": asks}
            serve = {"program": program, "receive": calls, "send": replies}
            programs = [
                running.enter_context(closing(Program(pipes, level, {"mode": mode} | job, seconds, b"", files)))
                for mode, job, files in (("check", check, (answers, asks)), ("serve", serve, (calls, replies)))
            ]
        verdict = watch(pipes, programs, seconds)
    found = verdict or bytes(programs[0].result[1:]).decode() or "crash"
    if found == "malformed":
        raise Malformed("'check' must be the source of a function check(candidate)")
    return found


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _json(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text, parse_int=_int)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{where} is no JSON: {error}") from None


def _json_or_text(value: Any) -> Any:
    """Where inputs are text outputs are mostly JSON's text, but may be the decoded value already."""
    try:
        return _json(value, "") if isinstance(value, str) else value
    except Malformed:
        return value


def _int(digits: str) -> int:
    return int(digits) if len(digits) < _SHORT_INT else int(Decimal(digits))

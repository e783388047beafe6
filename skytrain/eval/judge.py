"""The verdict on a response to a problem, by the graders of `skytrain prep`."""

from __future__ import annotations

from dataclasses import dataclass

from skytrain.prep.grade import grade_code, grade_math, grade_text
from skytrain.prep.grade.code import BadTests
from skytrain.prep.grade.extract import answer_of, choice_of, solution_of
from skytrain.prep.grade.fences import program_of
from skytrain.prep.stage import Row


@dataclass(frozen=True)
class Judgement:
    """verdict: one of `grade_math`'s or `grade_code`'s, or bad_tests; `correct` alone is right. answer: what was taken
    for the answer, or None. detail: why, where the verdict does not say it."""

    verdict: str
    answer: str | None
    detail: str = ""


def judge(problem: Row, response: str, sandbox: str) -> Judgement:
    """sandbox: see `grade_code`."""
    if problem["domain"] == "code":
        program = program_of(solution_of(response) or "")
        return run(program, problem, sandbox)
    gold = problem["gold"]
    if problem["domain"] == "choice":
        return Judgement(grade_math(response, gold), choice_of(response))
    grade = grade_text if problem["domain"] == "other" else grade_math
    return Judgement(grade(response, gold), answer_of(response))


def run(program: str | None, problem: Row, sandbox: str, *, imports: bool = False) -> Judgement:
    """The verdict on a program; None stands for a response without one. imports: see `grade_code`."""
    if program is None:
        return Judgement("no_answer", None, "no closed code block of Python")
    try:
        return Judgement(grade_code(program, problem["tests"], sandbox=sandbox, imports=imports), program)
    except BadTests as error:
        return Judgement("bad_tests", program, str(error))

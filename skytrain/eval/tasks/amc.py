r"""AMC 12 of 2022 and 2023, of which `amc23` are those of 2023. The answer is that of the right choice; the choices are
not asked. A row of AI-MO/aimo-validation-amc:

    {"id": 0, "problem": "$\\frac{m}{n}$ is the Irreducible fraction value of ...", "answer": 142.0,
     "url": "https://artofproblemsolving.com/wiki/index.php/2022_AMC_12A_Problems/Problem_1"}

and of math-ai/amc23: {"id": 0, "question": "...", "answer": "27.0", "url": "..."}
"""

from __future__ import annotations

from typing import Any

from skytrain.eval.task import Task
from skytrain.eval.tasks.published import field, of_year, text_of, want, whole_number
from skytrain.prep.fields import problem
from skytrain.prep.problems import Malformed
from skytrain.prep.stage import Row

_TEXT = ("problem", "question")


def read(row: Row) -> Row:
    want(row, _TEXT, "answer")
    return problem(
        id=row.get("id"),
        source="amc",
        domain="math",
        prompt=text_of(row, *_TEXT),
        gold=_gold(row["answer"]),
        solution=field(row, "solution"),
        url=row.get("url"),
    ) | {"part": None}


def read_2023(row: Row) -> Row:
    want(row, _TEXT, "answer")
    of_year(row, 2023)
    return {**read(row), "source": "amc23"}


def _gold(answer: Any) -> str:
    whole = whole_number(answer)
    if whole is not None:
        return str(whole)
    if isinstance(answer, bool) or not isinstance(answer, str | float) or not str(answer).strip():
        raise Malformed(f"'answer' must be a number or text, not {answer!r}")
    return str(answer).strip()


TASKS = (
    Task("amc", "AMC 2022-2023", read, "AI-MO/aimo-validation-amc::train", 83),
    Task("amc23", "AMC 2023", read_2023, "math-ai/amc23::test", 40),
)

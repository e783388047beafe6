r"""AIME, both examinations of a year: 30 problems, whose answers are whole numbers from 0 to 999. A row of
HuggingFaceH4/aime_2024:

    {"id": 60, "problem": "Every morning Aya ...", "solution": "... $\\boxed{204}$", "answer": "204",
     "url": "https://artofproblemsolving.com/wiki/index.php/2024_AIME_I_Problems/Problem_1", "year": "2024"}

and of others: {"ID": "2024-I-12", "Problem", "Solution", "Answer": 385}; {"question", "answer"};
{"problem_idx": 1, "problem", "answer": 70, "problem_type": [...]}; {"id", "problem", "solution", "url"} with the answer
in the solution's box. Of a file of several years, those of the others are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from skytrain.eval.task import Task
from skytrain.eval.tasks.published import field, of_year, text_of, want, whole_number
from skytrain.prep.fields import problem
from skytrain.prep.formats import last_box
from skytrain.prep.problems import Malformed
from skytrain.prep.stage import Row

_TEXT, _SOLUTION, _ANSWER = ("problem", "Problem", "question"), ("solution", "Solution"), ("answer", "Answer")
_I_12 = ("y=4gfsin2pix", "x=4gfcos3piy")
"""Of the text of 2024 I 12, without all but letters, digits and signs of equality."""


def of(year: int) -> Callable[[Row], Row]:
    def read(row: Row) -> Row:
        want(row, _TEXT, (*_ANSWER, *_SOLUTION))
        of_year(row, year)
        text, solution = text_of(row, *_TEXT), field(row, *_SOLUTION)
        if not isinstance(solution, str | None):
            raise Malformed(f"'solution' must be text or null, not {type(solution).__name__}")
        answer = field(row, *_ANSWER)
        if answer is None or answer == "":
            answer = last_box(solution or "")
        gold = whole_number(answer)
        if gold is None or not 0 <= gold <= 999:
            raise Malformed(f"the answer must be a whole number from 0 to 999, not {str(answer)[:40]!r}")
        wrong = year == 2024 and gold == 384 and _is_i_12(row, text)
        return problem(
            id=field(row, "id", "ID", "problem_idx"),
            source=f"aime{year % 100}",
            domain="math",
            prompt=text,
            gold="385" if wrong else str(gold),
            solution=solution or None,
            url=row.get("url"),
            corrected="the answer, which is 384 in this copy of the set" if wrong else None,
        ) | {"part": None}

    return read


def _is_i_12(row: Row, text: str) -> bool:
    """A well-known copy has a wrong answer there."""
    if field(row, "ID", "id") == "2024-I-12" or str(row.get("url")).rstrip("/").endswith(
        "2024_AIME_I_Problems/Problem_12"
    ):
        return True
    bare = re.sub(r"\\(?:left|right|bigl?|bigr?)|[^A-Za-z0-9=]", "", text.replace("π", "pi"))
    return all(part in bare for part in _I_12)


TASKS = (
    Task("aime24", "AIME 2024", of(2024), "HuggingFaceH4/aime_2024::train", 30),
    Task("aime25", "AIME 2025", of(2025), "yentinglin/aime_2025::train", 30),
)

r"""OlympiadBench, the mathematics that has answers, no images, and is in English. A row of Hothan/OlympiadBench,
OE_TO_maths_en_COMP:

    {"id": 1606, "question": "Let $T=20$. ...", "solution": ["..."], "final_answer": ["$\\frac{5}{36}$"],
     "context": null, "image_1": null, "modality": "Text-only", "difficulty": "Competition",
     "is_multiple_answer": false, "unit": null, "answer_type": "Numerical", "error": null,
     "question_type": "Open-ended", "subfield": "Algebra", "subject": "Math", "language": "English"}

`error`: how far a number may be off, as "1e-1". Rows of the other parts of the set are left out.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

from skytrain.eval import judge as judging
from skytrain.eval.judge import Judgement
from skytrain.eval.task import Skip, Task
from skytrain.eval.tasks.published import text_of, want
from skytrain.prep.fields import optional_text, problem
from skytrain.prep.grade import grade_near
from skytrain.prep.grade.numbers import number
from skytrain.prep.problems import Malformed
from skytrain.prep.stage import Row

LONGEST = 200
"""Characters of an answer that can be a few numbers."""
SEVERAL = "Give all of the answers, separated by commas."


def read(row: Row) -> Row:
    want(row, "question", "final_answer", "answer_type", "error", "is_multiple_answer", "subject", "language")
    _skip_others(row)
    answers = [row["final_answer"]] if isinstance(row["final_answer"], str) else row["final_answer"]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise Malformed("'final_answer' must be a list of texts that are not empty")
    error = None if row["error"] in (None, "") else str(row["error"])
    if error is not None and None in _tolerances(error):
        raise Malformed(f"'error' must be a number, not {error[:40]!r}")
    if not isinstance(row["is_multiple_answer"], bool):
        raise Malformed(f"'is_multiple_answer' must be true or false, not {row['is_multiple_answer']!r}")
    parts = (optional_text(row, "context"), text_of(row, "question"), SEVERAL if row["is_multiple_answer"] else None)
    return problem(
        id=row.get("id"),
        source="olympiadbench",
        domain="math",
        prompt="\n\n".join(part.strip() for part in parts if part),
        gold=", ".join(_without_dollars(answer) for answer in answers),
        solution=_solution(row.get("solution")),
        error=error,
        unit=row.get("unit"),
        answer_type=row["answer_type"],
        subfield=row.get("subfield"),
    ) | {"part": None}


def _skip_others(row: Row) -> None:
    kind = str(row.get("question_type") or "")
    if "theorem" in kind.lower() or "proof" in kind.lower():
        raise Skip("theorem_proof", "a proof is asked for")
    if any(row[key] is not None and row[key] != "" for key in row if key.startswith("image_")):
        raise Skip("image", "the question has an image")
    if str(row["subject"]).strip().casefold() not in ("math", "maths", "mathematics"):
        raise Skip("other_subject", f"the subject is {row['subject']}")
    if str(row["language"]).strip().casefold() != "english":
        raise Skip("other_language", f"the language is {row['language']}")
    if row["answer_type"] == "Need_human_evaluate":
        raise Skip("needs_human", "the answer is to be looked at by a human")


def _without_dollars(answer: str) -> str:
    r"""`$` marks formulas, and `\$` is money."""
    return answer.replace(r"\$", "\0").replace("$", "").replace("\0", r"\$").strip()


def _solution(value: Any) -> str | None:
    """The first, where there are several."""
    if isinstance(value, list):
        value = value[0] if value else None
    if not isinstance(value, str | None):
        raise Malformed("'solution' must be a list of texts")
    return value or None


def judge(row: Row, response: str, sandbox: str) -> Judgement:
    """Where the row has an `error`, numbers that are off by no more are right as well; so are
    expressions that are numbers, and tuples, intervals and lists of them."""
    found = judging.judge(row, response, sandbox)
    error = row["provenance"].get("error")
    if error is None or found.verdict != "wrong" or len(found.answer) > LONGEST:
        return found
    if grade_near(found.answer, row["gold"], _tolerances(error)) != "correct":
        return found
    return replace(found, verdict="correct", detail=f"within {error} of {row['gold']}")


def _tolerances(error: str) -> list[Fraction | None]:
    return [number(part.strip()) for part in error.split(",")]


TASK = Task(
    "olympiadbench",
    "OlympiadBench (math, English)",
    read,
    "Hothan/OlympiadBench:OE_TO_maths_en_COMP:train",
    674,
    judge=judge,
)

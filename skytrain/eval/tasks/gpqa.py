"""GPQA-Diamond: 198 questions of biology, chemistry and physics with four choices. A row of Idavidrein/gpqa,
gpqa_diamond (CSV or Parquet; it has some sixty columns more):

    {"Question": "Two quantum states with energies E1 and E2 ...", "Correct Answer": "10^-4 eV",
     "Incorrect Answer 1": "10^-11 eV", "Incorrect Answer 2": "10^-8 eV", "Incorrect Answer 3": "10^-9 eV",
     "Record ID": "rec06pnAkLOr2t2mp", "High-level domain": "Physics", "Subdomain": "Physics (general)"}

and of copies: {"question", "choices" or "options": [four texts], "answer": a letter, an index from 0, or the text}

The published rows name the right answer first, so the choices are put into an order that a hash of the question and the
choice gives: the same for every run and every copy of the set. `order` of the provenance says which published choice
each letter is.
"""

from __future__ import annotations

import hashlib
from string import ascii_uppercase
from typing import Any

from skytrain.eval.task import Skip, Task
from skytrain.eval.tasks.published import field, text_of, want
from skytrain.prep.fields import problem
from skytrain.prep.formats import with_choices
from skytrain.prep.problems import Malformed
from skytrain.prep.stage import Row

PARTS = ("Biology", "Chemistry", "Physics")
_CHOICES = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_TEXT, _LISTS = ("Question", "question", "problem"), ("choices", "options")


def read(row: Row) -> Row:
    if "Correct Answer" not in row and any(name in row for name in _LISTS):
        want(row, _TEXT, _LISTS, "answer")
        choices = _stripped(field(row, *_LISTS))
        right = _index(row["answer"], choices)
    else:
        want(row, "Question", *_CHOICES)
        choices, right = _stripped([row[name] for name in _CHOICES]), 0
    if not all(choices):
        raise Skip("empty_choice", f"choice {choices.index('') + 1} is empty")
    if len({" ".join(choice.split()) for choice in choices}) < len(choices):
        raise Skip("equal_choices", "two of the choices are the same")
    question = text_of(row, *_TEXT).strip()
    order = sorted(range(len(choices)), key=lambda i: hashlib.sha256(f"{question}\0{choices[i]}".encode()).digest())
    prompt, gold = with_choices(question, [choices[i] for i in order], order.index(right))
    part = field(row, "High-level domain", "domain")
    part = (part.strip() or None) if isinstance(part, str) else part
    if part is not None and part not in PARTS:
        raise Malformed(f"'High-level domain' must be one of {', '.join(PARTS)}, not {part!r}")
    return problem(
        id=field(row, "Record ID", "record_id", "id"),
        source="gpqa_diamond",
        domain="choice",
        prompt=prompt,
        gold=gold,
        order=order,
        subdomain=row.get("Subdomain"),
    ) | {"part": part}


def _stripped(choices: Any) -> list[str]:
    """Null is an empty choice, and a number its text."""
    if not isinstance(choices, list) or not all(
        isinstance(choice, str | int | float | None) and not isinstance(choice, bool) for choice in choices
    ):
        raise Malformed("the choices must be a list of texts or numbers")
    if not 2 <= len(choices) <= 26:
        raise Malformed(f"there must be 2 to 26 choices, not {len(choices)}")
    return ["" if choice is None else str(choice).strip() for choice in choices]


def _index(answer: Any, choices: list[str]) -> int:
    """Of the right choice. Raises `Skip` where it is not among them: it is never the first one then."""
    if isinstance(answer, str):
        answer = answer.strip()
        if answer in choices:
            return choices.index(answer)
        letter = answer.removeprefix("(").removesuffix(")")
        answer = ascii_uppercase.index(letter) if len(letter) == 1 and letter in ascii_uppercase else -1
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise Malformed(f"'answer' must be a letter, an index or a choice, not {type(answer).__name__}")
    if not 0 <= answer < len(choices):
        raise Skip("answer_not_among_choices", "the right answer is none of the choices")
    return answer


TASK = Task("gpqa_diamond", "GPQA-Diamond", read, "Idavidrein/gpqa:gpqa_diamond:train", 198, PARTS)

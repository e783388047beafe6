"""Whether a response's answer is the gold one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from skytrain.prep.grade import workers
from skytrain.prep.grade.extract import answer_of, choice_of
from skytrain.prep.grade.numbers import number
from skytrain.prep.grade.wording import words, wordy

Verdict = Literal["correct", "wrong", "no_answer", "gold_unparseable", "timeout", "crash"]
SECONDS = 5.0
LONGEST = 10_000
"""Characters of an answer. No gold is so long, so that a longer one is wrong without a look."""
_LETTER = re.compile(r"\$?\s*(?:\\(?:text|textbf|mathrm|mathbf|mbox)\s*)?\{?\(?([A-Z])\)?\}?\s*\$?\.?")


def grade_math(response: str, gold: str, seconds: float = SECONDS) -> Verdict:
    """The verdict on a response, by the policies of tests/cases/README.md. Any thread of any process may ask.

    A gold that is one capital letter is a choice. `gold_unparseable`: the gold is empty, or no expression. `timeout`:
    no verdict within `seconds`, in which the process that compares was killed. `crash`: it died, or failed.
    """
    gold = gold.strip()
    if not gold:
        return "gold_unparseable"
    letter = _LETTER.fullmatch(gold)
    if letter is not None:
        chosen = choice_of(response)
        return "no_answer" if chosen is None else "correct" if chosen == letter[1] else "wrong"
    answer = answer_of(response)
    if answer is None:
        return "no_answer"
    answer = re.sub(r"^(\*\*?)([^*]+)\1$", r"\2", answer.strip()).strip().strip("$").strip()
    exact, given = number(gold.strip("$")), number(answer)
    if exact is not None and given is not None:
        return "correct" if exact == given else "wrong"
    if len(answer) > LONGEST:
        return "wrong"
    return _asked([gold, answer], seconds)


def grade_near(answer: str, gold: str, tolerances: Sequence[Fraction], seconds: float = SECONDS) -> Verdict:
    """The verdict on an answer, as `answer_of` finds it, that may be off by this much: one tolerance for all of its
    numbers, or one for each member of the gold."""
    return _asked([gold, answer, *map(str, tolerances)], seconds)


def _asked(message: list[str], seconds: float) -> Verdict:
    try:
        return workers.shared().ask(message, seconds)
    except TimeoutError:
        return "timeout"
    except workers.Died:
        return "crash"


def grade_text(response: str, gold: str, seconds: float = SECONDS) -> Verdict:
    """The verdict where the answer is text, or a grid of it, as in puzzles: blanks part its words, and the order
    counts.

    Case and blanks at the ends are looked over, as in `grade_math`, which decides on a gold of one word.
    """
    answer = answer_of(response)
    if answer is None:
        return "no_answer"
    if not gold.strip():
        return "gold_unparseable"
    if answer.casefold().split() == gold.casefold().split():
        return "correct"
    if len(gold.split()) == 1 and len(answer.split()) == 1:
        return grade_math(response, gold, seconds)
    return "correct" if wordy(gold) and words(answer) == words(gold) else "wrong"

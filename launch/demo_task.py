"""The demo's task: sums of three to six digits, worked out with running totals, as chats in the recipe's form."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

SYSTEM = "Think first."
# Sequences of each length that are drawn. Only 9^3 = 729 sequences have three terms, so those are few.
TRAIN_COUNTS = {3: 500, 4: 3500, 5: 5000, 6: 7000}
HELD_OUT_COUNTS = {3: 20, 4: 40, 5: 60, 6: 80}
DIGITS = range(1, 10)

_SOLUTION = re.compile(r"<\|begin_of_solution\|>(.*)<\|end_of_solution\|>", re.DOTALL)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


@dataclass(frozen=True)
class Problem:
    terms: tuple[int, ...]

    @property
    def question(self) -> str:
        return "+".join(map(str, self.terms)) + "=?"

    @property
    def answer(self) -> str:
        return str(sum(self.terms))

    @property
    def worked_answer(self) -> str:
        """The assistant's turn: one line for each running total, then the solution with the boxed sum."""
        total, lines = self.terms[0], []
        for term in self.terms[1:]:
            lines.append(f"{total}+{term}={total + term}")
            total += term
        thought = "\n".join(lines)
        return (
            f"<|begin_of_thought|>\n{thought}\n<|end_of_thought|>\n\n"
            f"<|begin_of_solution|>\\boxed{{{total}}}<|end_of_solution|>"
        )

    def chat(self) -> dict:
        turns = [{"from": "user", "value": self.question}, {"from": "assistant", "value": self.worked_answer}]
        return {"system": SYSTEM, "conversations": turns}


def make_problems(seed: int) -> tuple[list[Problem], list[Problem]]:
    """(training, held-out) problems, all of them different: no sequence of terms occurs twice."""
    rng = random.Random(seed)
    train: list[Problem] = []
    held_out: list[Problem] = []
    for n_terms, n_train in TRAIN_COUNTS.items():
        n_held_out = HELD_OUT_COUNTS[n_terms]
        # Sampled without replacement as numbers in base 9, each of which is one sequence.
        codes = rng.sample(range(len(DIGITS) ** n_terms), n_train + n_held_out)
        problems = [Problem(_terms(code, n_terms)) for code in codes]
        train += problems[:n_train]
        held_out += problems[n_train:]
    rng.shuffle(train)
    rng.shuffle(held_out)
    return train, held_out


def _terms(code: int, n_terms: int) -> tuple[int, ...]:
    terms = []
    for _ in range(n_terms):
        code, digit = divmod(code, len(DIGITS))
        terms.append(DIGITS[digit])
    return tuple(terms)


def write_chats(problems: list[Problem], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for problem in problems:
            file.write(json.dumps(problem.chat(), ensure_ascii=False) + "\n")


def texts(problems: list[Problem]) -> list[str]:
    """What a tokenizer is made from: every word of the chats is in the first few hundred."""
    return [SYSTEM, *(text for p in problems[:500] for text in (p.question, p.worked_answer))]


def boxed_answer(response: str) -> str | None:
    r"""What stands in the last `\boxed{}` of the solution section; None without a closed section or a box."""
    solution = _SOLUTION.search(response)
    boxes = _BOXED.findall(solution.group(1)) if solution else []
    return boxes[-1].strip() if boxes else None

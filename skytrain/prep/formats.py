"""The published forms of problems: which fields tell each, and how its rows become problems.

A form's function takes one row and returns the keys of a problem, but for what `importing` adds (`file` and `line`, the
id of a row that has none). The tests of a program come as `Pairs`, which are read when they are written out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from string import ascii_uppercase
from typing import Any, NamedTuple

from skytrain.prep import code_formats
from skytrain.prep.fields import optional_text, problem, text
from skytrain.prep.grade.extract import answer_of, boxes, solution_of
from skytrain.prep.problems import DOMAINS, Malformed
from skytrain.prep.stage import Row

_FONT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|bf|rm)(?![A-Za-z])|[{}$]|\\[,;!: ]")
_LETTER = re.compile(r"\(([A-Z])\)\.?|([A-Z])[).]?")
_LETTER_AND_TEXT = re.compile(r"\(([A-Z])\).*", re.DOTALL)
_DOMAINS = {
    "code": "code",
    "coding": "code",
    "programming": "code",
    "math": "math",
    "maths": "math",
    "mathematics": "math",
    "choice": "choice",
    "multiple_choice": "choice",
}
_OTHER = ("other", "physics", "chemistry", "biology", "science", "puzzle", "puzzles", "logic", "general")


def last_box(solution: str) -> str | None:
    """What the last box that is closed and not empty holds; None where there is none."""
    found = [content for content in boxes(solution) if content is not None and content.strip()]
    return found[-1].strip() if found else None


def choice_gold(prompt: str, gold: str) -> str | None:
    """The letter, where the prompt lists choices and the gold names one of them; else None."""
    plain = _FONT.sub("", gold).strip()
    found = _LETTER.fullmatch(plain) or _LETTER_AND_TEXT.fullmatch(plain)
    if found is None:
        return None
    letter = next(group for group in found.groups() if group)
    listed, at = _FONT.sub("", prompt), 0
    for mark in ascii_uppercase[: max(2, ascii_uppercase.index(letter) + 1)]:
        place = re.compile(rf"\({mark}\)|(?<![A-Za-z0-9]){mark}\s*[.):：．、]").search(listed, at)
        if place is None:
            return None
        at = place.end()
    return letter


def domain_of(value: Any) -> str:
    """One of DOMAINS for a field or subject as data sets name it. Raises `Malformed` for an unknown one."""
    name = str(value).strip().casefold().replace(" ", "_")
    if name in _DOMAINS:
        return _DOMAINS[name]
    if name in _OTHER:
        return "other"
    raise Malformed(f"'domain' must be one of {', '.join(DOMAINS)} or a science, not {name[:40]!r}")


def difficulty_of(value: Any) -> tuple[float | None, Any]:
    """(difficulty, level): a number from 1 to 10 is a difficulty, anything else a level."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,2}(\.\d{1,9})?\s*", value):
        value = float(value) if "." in value else int(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 10:
        return value, None
    return None, value


def numina(row: Row) -> Row:
    prompt, solution = text(row, "problem"), text(row, "solution")
    gold = last_box(solution)
    letter = choice_gold(prompt, gold) if gold else None
    return problem(
        source=f"numina_{text(row, 'source')}",
        domain="choice" if letter else "math",
        prompt=prompt,
        gold=letter or gold,
        solution=solution,
    )


def math(row: Row) -> Row:
    solution = text(row, "solution")
    level = row.get("level")
    if isinstance(level, str) and (found := re.fullmatch(r"(?:Level\s*)?(\d+)", level.strip())):
        level = int(found[1])
    return problem(
        id=row.get("unique_id"),
        source="math",
        domain="math",
        prompt=text(row, "problem"),
        gold=optional_text(row, "answer") or last_box(solution),
        solution=solution,
        level=level,
        subject=row.get("subject") or row.get("type"),
    )


def still2(row: Row) -> Row:
    """`answer` is the published thoughts and solution, with their tags, which `rewrite` takes as they are. Many rows of
    science end without a short answer; their gold is the whole solution, and `gold_is` says so."""
    prompt, response = text(row, "question"), text(row, "combined_text")
    subject = row.get("domain")
    domain = domain_of(subject) if subject is not None else "other"
    solution = (solution_of(response) or "").strip() or None
    gold = (optional_text(row, "answer") or optional_text(row, "gold") or answer_of(response) or "").strip()
    whole = domain == "other" and not gold
    if domain != "code" and (letter := choice_gold(prompt, gold)):
        gold, domain = letter, "choice"
    found = problem(
        source=f"still2_{str(subject or 'other').strip().casefold()}",
        domain=domain,
        prompt=prompt,
        gold=None if domain == "code" else solution if whole else gold,
        solution=solution,
        gold_is="solution" if whole else None,
    )
    return {**found, "reasoning": None, "answer": response}


def gsm8k(row: Row) -> Row:
    solution, mark, gold = text(row, "answer").rpartition("####")
    return problem(
        source="gsm8k",
        domain="math",
        prompt=text(row, "question"),
        gold=gold.strip() if mark else None,
        solution=f"{solution.strip()}\n\\boxed{{{gold.strip()}}}",
    )


def plain(row: Row) -> Row:
    """Columns as a problem has them, under their common names. What else there is goes to provenance."""
    left = dict(row)
    prompt_key = next((key for key in ("prompt", "problem", "question") if left.get(key) is not None), "prompt")
    prompt = text(left, prompt_key)
    del left[prompt_key]
    solution = optional_text(left, "solution")
    left.pop("solution", None)
    answer = next((key for key in ("gold", "answer") if left.get(key) is not None), "gold")
    gold = last_box(solution) if solution and left.get(answer) is None else left.pop(answer, None)
    tests = _plain_tests(left.pop("tests", None))
    choices = next((left.pop(key) for key in ("choices", "options") if left.get(key) is not None), None)
    if choices is not None:
        prompt, gold = with_choices(prompt, choices, gold)
    source = _plain_source(left)
    given = left.pop("domain", None)
    domain = "choice" if choices else domain_of(given) if given is not None else "code" if tests else "other"
    difficulty, level = difficulty_of(left.pop("difficulty", None))
    origin = left.pop("provenance", None)
    if not isinstance(origin, dict | None):
        raise Malformed(f"'provenance' must be an object, not {type(origin).__name__}")
    found = problem(
        id=left.pop("id", None),
        source=source,
        domain=domain,
        prompt=prompt,
        gold=None if domain == "code" else _as_text(gold),
        solution=solution,
        tests=tests,
        starter=left.pop("starter", None),
        difficulty=difficulty,
    )
    level = left.get("level") if level is None else level
    beside = {**left, "level": level, **(origin or {})}
    return {**found, "provenance": {key: value for key, value in beside.items() if value is not None}}


def _plain_source(left: Row) -> Any:
    """Items of reasoning-gym say in their metadata what made them."""
    source, metadata = left.pop("source", None), left.get("metadata")
    if source is None and isinstance(metadata, dict):
        source = metadata.get("source_dataset")
    return "plain" if source is None else source


def _as_text(value: Any) -> Any:
    """Numbers and truth values as text; anything else stays, for the check of the problem to name it."""
    if isinstance(value, bool | int | float):
        return str(value)
    return value


def _plain_tests(value: Any) -> Any:
    if isinstance(value, str):
        value = code_formats.parsed(value, "tests") if value.strip() else None
    if isinstance(value, dict) and isinstance(value.get("inputs"), list) and isinstance(value.get("outputs"), list):
        return code_formats.pairs(value["inputs"], value["outputs"], value.get("fn_name"))
    return value


def with_choices(prompt: str, choices: Any, gold: Any) -> tuple[str, Any]:
    """The prompt with its choices as lines, and the gold (letter, index from 0, or the choice itself) as a letter."""
    if isinstance(choices, dict):
        choices = choices.get("text")
    if not isinstance(choices, list) or not 2 <= len(choices) <= 26:
        raise Malformed("'choices' must be a list of 2 to 26")
    if not all(isinstance(choice, str | int | float) for choice in choices):
        raise Malformed("'choices' must be texts")
    letters = ascii_uppercase[: len(choices)]
    _check_one_meaning(choices, letters, gold)
    lines = "\n".join(f"({letter}) {choice}" for letter, choice in zip(letters, choices))
    if isinstance(gold, int) and not isinstance(gold, bool) and 0 <= gold < len(choices):
        gold = letters[gold]
    elif gold in choices and choices.count(gold) == 1:
        gold = letters[choices.index(gold)]
    elif isinstance(gold, str):
        gold = _FONT.sub("", gold).strip().strip("().").upper()
    if gold is not None and (not isinstance(gold, str) or len(gold) != 1 or gold not in letters):
        raise Malformed(f"'gold' must be one of the letters {letters[0]} to {letters[-1]}, not {str(gold)[:40]!r}")
    return f"{prompt.rstrip()}\n\n{lines}", gold


def _check_one_meaning(choices: list[Any], letters: str, gold: Any) -> None:
    """Raises `Malformed` where the gold is a letter or an index of one choice, and the text of another."""
    texts = [str(choice) for choice in choices]
    at = gold if isinstance(gold, int) else letters.find(str(gold)) if len(str(gold)) == 1 else -1
    if 0 <= at < len(texts) and str(gold) in texts and texts[at] != str(gold):
        raise Malformed(f"'gold' {gold!r} is one choice's place and another's text; give the right choice's text alone")


class Form(NamedTuple):
    read: Callable[[Row], Row]
    fields: tuple[str, ...]
    """All of these tell the form."""
    without: tuple[str, ...] = ()
    pool: Callable[[Row], Any] = lambda row: None
    """What tells the sources apart that rows of one file come from."""
    one_of: tuple[str, ...] = ()
    """At least one of these besides, where there are any."""


# What TACO has and APPS has not; the files of APPS call the id of a problem `id`, and its loader `problem_id`.
_TACO = ("tags", "raw_tags", "skill_types", "source", "name")
FORMS = {
    "numina": Form(
        numina, ("problem", "solution", "source"), ("answer", "gold", "prompt", "level"), lambda row: row.get("source")
    ),
    "math": Form(math, ("problem", "solution", "level"), ("source", "gold")),
    "apps": Form(code_formats.apps, ("question", "solutions", "input_output")),
    "taco": Form(code_formats.taco, ("question", "solutions", "input_output"), ("problem_id",), one_of=_TACO),
    "still2": Form(still2, ("question", "combined_text"), (), lambda row: row.get("domain")),
    "livecodebench": Form(code_formats.livecodebench, ("question_content", "public_test_cases")),
    "humaneval": Form(code_formats.humaneval, ("task_id", "prompt", "test", "entry_point")),
    "gsm8k": Form(gsm8k, ("question", "answer"), ("metadata", "choices", "gold", "combined_text")),
    "plain": Form(plain, (), (), lambda row: _plain_source(dict(row))),
}


def told_by(row: Row) -> list[str]:
    """The forms that this row's fields tell; plain alone where no other is told and there is a question."""
    found = [
        name
        for name, form in FORMS.items()
        if form.fields
        and all(key in row for key in form.fields)
        and not any(key in row for key in form.without)
        and (not form.one_of or any(key in row for key in form.one_of))
    ]
    if "taco" in found and "apps" in found:
        found.remove("apps")
    # The fields of GSM8K are those of anything with answers.
    if "gsm8k" in found and not re.search(r"(?m)^#### ", str(row.get("answer"))):
        found.remove("gsm8k")
    asks = any(key in row for key in ("prompt", "problem", "question"))
    answers = any(key in row for key in ("gold", "answer", "solution", "tests"))
    return found or (["plain"] if asks and answers else [])


def fields_told() -> str:
    """For a message: each form and the fields that tell it."""
    told = [f"{name} ({', '.join(form.fields)})" for name, form in FORMS.items() if form.fields]
    return ", ".join([*told, "plain (prompt|problem|question, gold|answer|solution|tests)"])

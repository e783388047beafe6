"""The two tagged sections of a reply: making them from a regular trace, and checking those that a model made."""

from __future__ import annotations

import re
from collections import Counter

from skytrain.prep.grade.extract import boxes
from skytrain.prep.grade.fences import blocks

THOUGHT = ("<|begin_of_thought|>", "<|end_of_thought|>")
SOLUTION = ("<|begin_of_solution|>", "<|end_of_solution|>")
TAGS = (*THOUGHT, *SOLUTION)
THINK = ("<think>", "</think>")
LEAST = 0.8
"""Of the word trigrams, on both sides; see `kept`."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")
_FINAL = re.compile(
    r"""^[ \t]*(?:\#{1,6}[ \t]+)? (?P<bold>\*\*|__)? [ \t]*
    (?:the[ \t]+)? final[ \t]+(?:answer|solution|code|program)
    (?: [ \t]*:?[ \t]*(?:\*\*|__)?[ \t]*:?[ \t]*$ | (?(bold)[ \t]*:?[ \t]*(?:\*\*|__)|[ \t]*:) )""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
"""A heading, alone on its line or with what it heads behind it."""
LONGEST_TAIL = 1500
"""Characters that may stand behind the final code block of a regular trace."""


class Irregular(ValueError):
    """A reply that is not of the form; reason: one word for the account."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


def tagged(thoughts: str, solution: str) -> str:
    return f"{THOUGHT[0]}\n\n{thoughts.strip()}\n\n{THOUGHT[1]}\n\n{SOLUTION[0]}\n\n{solution.strip()}\n\n{SOLUTION[1]}"


def think(thoughts: str, answer: str) -> str:
    """`<think>` once. Raises `Irregular` where there are no thoughts, or a tag stands within them or the answer."""
    if not thoughts.strip():
        raise Irregular("no_thoughts", "no thoughts stand apart from the answer")
    text = f"{THINK[0]}\n{thoughts.strip()}\n{THINK[1]}\n\n{answer.strip()}"
    if any(text.count(tag) != 1 for tag in THINK):
        raise Irregular("tags", "a think tag stands within the thoughts or the answer")
    return text


def sections(text: str) -> tuple[str, str]:
    """(thoughts, solution) of a reply with all four tags, each once and in order, nothing but blanks around them.

    Raises `Irregular`.
    """
    for tag in TAGS:
        count = text.count(tag)
        if count != 1:
            raise Irregular("tags", f"{tag} stands {count} times")
    pattern = r"\s*" + r"(.*)".join(map(re.escape, THOUGHT)) + r"\s*" + r"(.*)".join(map(re.escape, SOLUTION)) + r"\s*"
    found = re.fullmatch(pattern, text, re.DOTALL)
    if found is None:
        raise Irregular("tags", "the tags are not in order, or text stands outside of the sections")
    thoughts, solution = found[1].strip(), found[2].strip()
    if not thoughts or not solution:
        raise Irregular("tags", "a section is empty")
    return thoughts, solution


def check_think(text: str) -> tuple[str, str]:
    """(thoughts, answer) of a reply that begins with `<think>`. Raises `Irregular`."""
    if any(text.count(tag) != 1 for tag in THINK):
        raise Irregular("tags", "the think tags do not stand once each")
    before, _, behind = text.partition(THINK[1])
    thoughts = before.strip().removeprefix(THINK[0])
    if thoughts == before.strip() or not thoughts.strip() or not behind.strip():
        raise Irregular("tags", "text stands before the thoughts, or a section is empty")
    return thoughts.strip(), behind.strip()


def check_solution(solution: str, domain: str, boxed: bool = True) -> None:
    """One closed code block for code; an answer in a box, where `boxed`, for all else. Raises `Irregular`."""
    if domain == "code":
        found = blocks(solution)
        if len(found) != 1 or not found[0].closed or not found[0].python or not found[0].code.strip():
            raise Irregular("code_block", f"{len(found)} code blocks, where one closed block of Python is wanted")
    elif boxed:
        found = list(boxes(solution))
        if not any(content and content.strip() for content in found) or None in found:
            raise Irregular("no_box", "no answer in a box stands in the solution")


def check_rewritten(text: str, trace: str, domain: str, boxed: bool = True, least: float = LEAST) -> tuple[str, str]:
    """(thoughts, solution) of a model's rewriting of a trace. Raises `Irregular`.

    The thoughts are nearly word for word where `kept` is at least `least` on both sides, and they have half of the
    trace's words or more.
    """
    thoughts, solution = sections(text)
    check_solution(solution, domain, boxed)
    of_trace, own = kept(trace, thoughts, solution)
    if of_trace < least:
        raise Irregular("thoughts_changed", f"{of_trace:.0%} of the trace is kept, and {least:.0%} is asked for")
    if own < least:
        raise Irregular("thoughts_changed", f"{own:.0%} of the thoughts are the trace's, and {least:.0%} is asked for")
    if 2 * len(words(thoughts)) < len(words(trace)):
        raise Irregular("thoughts_changed", "the thoughts have less than half of the trace's words")
    return thoughts, solution


def kept(trace: str, thoughts: str, solution: str) -> tuple[float, float]:
    """(the part of the trace's word trigrams that stand in thoughts or solution, the part of the thoughts' that stand
    in the trace), trigrams counted as often as they occur."""
    original, rewritten = _trigrams(trace), _trigrams(thoughts)
    both = rewritten + _trigrams(solution)
    of_trace = (original & both).total() / max(1, original.total())
    own = (rewritten & original).total() / max(1, rewritten.total())
    return of_trace, own


def words(text: str) -> list[str]:
    """In lower case, a character each for scripts without blanks."""
    return _WORD.findall(text.lower())


def _trigrams(text: str) -> Counter[tuple[str, ...]]:
    found = words(text)
    found = found if len(found) >= 3 else [*found, "", ""]
    return Counter(zip(found, found[1:], found[2:]))


def split(reasoning: str | None, answer: str, domain: str, boxed: bool = True) -> tuple[str, str]:
    """(thoughts, solution) of a regular trace, without a model. Raises `Irregular` where the trace is not regular.

    Regular is one that has the two sections already; one whose thoughts came apart from its answer; one that ends in a
    part headed "Final Answer" or the like; or, for code, one that ends in its only code block, or whose last block
    repeats none. The solution has to be one.
    """
    found = _by_tags(answer) if reasoning is None else None
    if found is None and any(tag in part for tag in (*TAGS, *THINK) for part in (reasoning or "", answer)):
        raise Irregular("irregular", "a tag stands within the trace")
    if reasoning is not None:
        found = reasoning.strip(), answer.strip()
    found = found or _by_heading(answer) or (_by_block(answer) if domain == "code" else None)
    if found is None or not found[0] or not found[1]:
        raise Irregular("irregular", "no place where the solution begins can be told")
    try:
        check_solution(found[1], domain, boxed)
    except Irregular as error:
        raise Irregular("irregular", str(error)) from None
    return found


def _by_tags(text: str) -> tuple[str, str] | None:
    try:
        return sections(text)
    except Irregular:
        return None


def _by_heading(text: str) -> tuple[str, str] | None:
    headings = list(_FINAL.finditer(text))
    if not headings:
        return None
    return text[: headings[-1].start()].strip(), text[headings[-1].start() :].strip()


def _by_block(text: str) -> tuple[str, str] | None:
    """The last block with the paragraph before it, where little stands behind it."""
    found = blocks(text)
    if not found or not found[-1].closed or len(text) - found[-1].end > LONGEST_TAIL:
        return None
    last = found[-1]
    lead = text[: last.start].rstrip()
    start = max(lead.rfind("\n\n"), found[-2].end if len(found) > 1 else 0)
    return (text[:start].strip(), text[start:].strip()) if start > 0 else None

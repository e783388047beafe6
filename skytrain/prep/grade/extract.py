"""Finding the answer that a response gives: never the last number or letter of its text.

What is looked at is the text behind the thoughts and, where there are solution tags, inside of them. In it, first the
last box, then the last line that says that it is the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_THOUGHTS = (("<think>", "</think>"), ("<|begin_of_thought|>", "<|end_of_thought|>"))
_SOLUTION = ("<|begin_of_solution|>", "<|end_of_solution|>")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_MARKDOWN = re.compile(r"^[#>\s]+|`+|(?<![\w)\]}*])\*+|\*+(?![\w(\[{\\*])|(?<![\w}\\)])_+(?!\{)|_+(?![\w{\\(])")
"""Marks around words: 2*3, x_{10} and > 5 keep theirs."""
_ANSWER = re.compile(
    r"\b(?:(?:final\s+)?answer\s*[:：]|the\s+(?:(?:final|correct)\s+)?answer\s+is\b\s*[:：]?)", re.IGNORECASE
)
_OR = r"(?:\b(?:or|and|vs|versus|nor)\b\.?)"
_NAMED = r"(?:(?:[Oo]ption|[Cc]hoice|OPTION|CHOICE)s?\b\s*:?\s*)"
_CHOICES = re.compile(
    rf"\(?\s*[A-Za-z]\s*\)?\s*(?:"
    rf"(?:(?:[,/&+|]|{_OR})\s*)+{_NAMED}?(?:\(\s*[A-Za-z]\s*\)|\(?[A-Za-z]\s*\)?\s*(?:$|[.,/&+|]|{_OR}))"
    rf"|(?:[,/&+|]\s*)?{_OR}\s*{_NAMED}?[A-Z](?![\w'-])|{_NAMED}?[-–—]\s*\(?[A-Za-z]\)?\s*$)"
)
"""Two letters, which are no choice."""
_STYLE = re.compile(
    r"\\(?:text(?:bf|rm|it|sf|tt|up)?|math(?:rm|bf|it|sf|tt)|boldsymbol|bm|pmb|bold|emph|underline|mbox|hbox|boxed|fbox"
    r"|displaystyle|textstyle|tiny|small|normalsize|large|Large|LARGE|huge|Huge|left|right|bf|rm|it|tt|sf)(?![A-Za-z])\s*"
    r"|\\(?:textcolor|color)\s*\{\w+\}|\\[()\[\]]|\*\*|`"
)
_CHOICE = re.compile(r"\(?\s*([A-Za-z])\s*(?:\)|[.:,](?!\d)|$|\s+(?=\S))(.*)", re.DOTALL)


def solution_of(response: str) -> str | None:
    """What is graded of a response; None where its thoughts never end."""
    end = max((response.rfind(closed) + len(closed) for _, closed in _THOUGHTS if closed in response), default=0)
    rest = response[end:]
    if any(opened in rest for opened, _ in _THOUGHTS):
        return None
    opened, closed = _SOLUTION
    if opened in rest:
        rest = rest.rpartition(opened)[2].partition(closed)[0]
    return rest


def answer_of(response: str) -> str | None:
    """The answer to a question without choices; None where none is given."""
    text = solution_of(response)
    if text is None:
        return None
    last = None
    for content in boxes(text):
        if content is None:
            return None
        last = content if content.strip() else last
    return last if last is not None else answer_line(text)


def choice_of(response: str) -> str | None:
    """The letter, in upper case, of an answer to a question with choices; None where none is given."""
    text = solution_of(response)
    if text is None:
        return None
    found = [letter for content in boxes(text) if content is not None and (letter := choice(content))]
    if found:
        return found[-1]
    line = answer_line(text)
    return None if line is None else choice(line)


def boxes(text: str) -> Iterator[str | None]:
    r"""What the `\boxed` and `\fbox` of a text hold, from the first to the last, no box within a box. None, the last
    thing to come, stands for one that is never closed."""
    at = 0
    while (found := _BOX.search(text, at)) is not None:
        at = found.end()
        if text[at : at + 1] == "{":
            end = closing(text, at)
            if end is None:
                yield None
                return
            yield text[at + 1 : end]
            at = end + 1
        elif text[at : at + 1].isdigit():
            yield text[at]


def closing(text: str, at: int) -> int | None:
    r"""Where the brace at `at` is closed. `\{` and `\}` are no braces."""
    depth = 0
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return at
        at += 1
    return None


def answer_line(text: str) -> str | None:
    """What the last line of the form "Answer: ..." says, or the line behind one that says nothing."""
    lines = [_MARKDOWN.sub("", line).strip() for line in text.splitlines()]
    for number in range(len(lines) - 1, -1, -1):
        found = list(_ANSWER.finditer(lines[number]))
        if found:
            said = lines[number][found[-1].end() :].strip()
            said = re.sub(r"[.\s]*\bI hope (?:it|this) is correct[.!\s]*$", "", said)
            # A formula may begin with a line of its marks alone.
            behind = (line for line in lines[number + 1 :] if line.strip("$ \\[]"))
            return (said if said.strip("$ ") else next(behind, "")).rstrip(".").strip() or None
    return None


def choice(text: str) -> str | None:
    """The letter that a box or an answer line holds, with or without text after it."""
    text = re.sub(r"[{}$]", "", re.sub(r"\\[,;:! ]|\\q?quad|~", " ", _STYLE.sub("", text))).strip()
    text = re.sub(r"^\*(.*)\*$", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"\[\s*([A-Za-z])\s*\]", r"(\1)", text)
    text = re.sub(rf"^(?:[Tt]he\s+)?(?:[Cc]orrect\s+)?{_NAMED}(?:is\s+)?\(?\s*([A-Za-z])\b\s*\)?", r"(\1)", text)
    found = _CHOICE.fullmatch(text)
    if found is None:
        return None
    letter, rest = found[1], found[2]
    if _CHOICES.match(text):
        return None
    # "A dog" is a word and its article, "B dog" is not; and so is an "I" that begins a sentence.
    bare = not re.match(r"\(?\s*[A-Za-z](?:\s*[).:,]|\s+[-–—])", text)
    if rest.strip() and bare and (letter.islower() or letter in "AI"):
        return None
    return letter.upper()

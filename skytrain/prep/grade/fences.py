"""Code blocks of Markdown, in all the ways in which models open them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

_OPENED = re.compile(r"([ \t]*(?:[-*+>]\s+|\d+[.)]\s+)?)(`{3,}|~{3,})\s*([^`]*?)\s*")
PYTHON = {"", "python", "python3", "py", "py3", "python2", "pypy", "pypy3", "python 3"}
"""What stands behind a fence of Python, in lower case; the empty one too, since programs are asked for in Python."""


@dataclass(frozen=True, slots=True)
class Block:
    """info: what stands behind the fence, in lower case. start, end: characters of the text, fences included."""

    info: str
    code: str
    closed: bool
    start: int
    end: int

    @property
    def python(self) -> bool:
        return re.sub(r"[{}.=\[\]].*", "", self.info).strip() in PYTHON or self.info.startswith(("python", "{.python"))

    @property
    def marked(self) -> bool:
        """Whether a word stands behind the fence."""
        return self.info != ""


def blocks(text: str) -> list[Block]:
    """All code blocks, from the first to the last. One that is never closed reaches to the end of the text."""
    found, fence, start, inside = [], None, 0, []
    at = 0
    for line in text.splitlines(keepends=True):
        bare = line.rstrip()
        if fence is None:
            opened = _OPENED.fullmatch(bare)
            if opened is not None:
                fence, info, start, inside = opened[2], opened[3].lower(), at, []
        elif bare.strip()[:1] == fence[0] and re.fullmatch(rf"\s*{re.escape(fence[0])}{{{len(fence)},}}", bare):
            found.append(Block(info, _dedented(inside), True, start, at + len(line)))
            fence = None
        else:
            inside.append(line)
        at += len(line)
    if fence is not None:
        found.append(Block(info, _dedented(inside), False, start, at))
    return found


def _dedented(lines: list[str]) -> str:
    """A block within a list is indented as a whole."""
    return textwrap.dedent("".join(lines))


def program_of(solution: str) -> str | None:
    """The last closed block of Python; None where there is none. A block without a mark may hold what a program reads
    or prints, and counts only where none is marked."""
    found = programs_of(solution)
    return found[-1] if found else None


def programs_of(solution: str) -> list[str]:
    """The closed blocks of Python, those that are marked as such behind the others: the best is the last."""
    found = [block for block in blocks(solution) if block.closed and block.python and block.code.strip()]
    return [block.code for block in sorted(found, key=lambda block: block.marked)]

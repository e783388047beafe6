"""What the pages for people hold that can be checked: commands, recipes, imports and links, each with its line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*(\w*)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_IMPORT = re.compile(r"^(?:from skytrain\S* import [\w, ]+|import skytrain\S*)$")
_HEADING = re.compile(r"#{1,6} (.+)")


@dataclass(frozen=True)
class Block:
    """line: of its first line of text, from 1. text: without the fences."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """One that bash can be given: continued lines joined, comments cut."""

    page: str
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def blocks(page: str, text: str) -> list[Block]:
    """The fenced blocks. ValueError for one that is not closed."""
    found: list[Block] = []
    fence, language, begin, inside = "", "", 0, []
    for number, line in enumerate(text.splitlines(), 1):
        match = _FENCE.match(line)
        if not fence:
            if match:
                fence, language, begin, inside = match[1], match[2], number + 1, []
        elif match and match[1].startswith(fence) and not match[2]:
            found.append(Block(page, begin, language, "\n".join(inside)))
            fence = ""
        else:
            inside.append(line)
    if fence:
        raise ValueError(f"{page}:{begin - 1}: the block is not closed")
    return found


def commands(block: Block) -> list[Command]:
    """Those of a block of sh, none of another; two that `&&` joins are two."""
    found, pending, begin = [], "", 0
    if block.language != "sh":
        return found
    for number, line in enumerate(block.text.splitlines(), block.line):
        begin = begin if pending else number
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        found += [Command(block.page, begin, part) for part in parts(pending)]
        pending = ""
    return found + [Command(block.page, begin, part) for part in parts(pending)]


def parts(line: str) -> list[str]:
    """The commands of a line, as they are written, without its comment: what stands in quotes is neither."""
    quote, begin, found = "", 0, []
    for i, sign in enumerate(line):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign == "#" and (i == 0 or line[i - 1].isspace()):
            line = line[:i]
            break
        elif line.startswith("&&", i):
            found.append(line[begin:i])
            begin = i + 2
    return [part for one in [*found, line[begin:]] if (part := " ".join(one.split()))]


def imports(text: str) -> Iterator[tuple[int, str]]:
    """(line, statement) of the imports of skytrain, in a block of their own or within backticks."""
    for number, line in enumerate(text.splitlines(), 1):
        for said in [line.strip(), *re.findall(r"`([^`]+)`", line)]:
            if _IMPORT.match(said):
                yield number, said


def broken_links(page: Path) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) of the links within the repository that lead to no file, or to no heading of one."""
    for number, line in _prose(page.read_text(encoding="utf-8")):
        for target in _LINK.findall(line):
            if "://" in target or target.startswith("mailto:"):
                continue
            name, _, anchor = target.partition("#")
            path = page.parent / name if name else page
            if not path.exists():
                yield number, f"the link {target} leads to no file"
            elif anchor and anchor not in anchors(path.read_text(encoding="utf-8")):
                yield number, f"the link {target} leads to no heading of {path.name}"


def anchors(text: str) -> set[str]:
    """The headings as GitHub names them; a second one of the same words has -1 behind it."""
    found: set[str] = set()
    for _, line in _prose(text):
        if match := _HEADING.fullmatch(line):
            plain = re.sub(r"[^\w\- ]", "", match[1].strip().lower()).replace(" ", "-")
            name, count = plain, 0
            while name in found:
                count += 1
                name = f"{plain}-{count}"
            found.add(name)
    return found


def _prose(text: str) -> Iterator[tuple[int, str]]:
    """(line, its text) of what is in no block."""
    inside = {number for block in blocks("", text) for number in _lines(block)}
    for number, line in enumerate(text.splitlines(), 1):
        if number not in inside:
            yield number, line


def _lines(block: Block) -> range:
    return range(block.line - 1, block.line + block.text.count("\n") + 2)

"""The items of evaluation sets, as words and their hashes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from skytrain.errors import UserError
from skytrain.prep.rows import Unreadable, read_rows
from skytrain.prep.texts import count_words, digest, is_number, terms, words

TEXT_KEYS = ("prompt", "problem", "question", "question_content")
INSIDE_PROMPT, INSIDE_RESPONSE, INSIDE_DISTINCT = 5, 6, 4
"""Words of an item (and different ones) from which it is recognised amid other text. Han characters are half a word."""

_BASE = np.uint64(0x9E3779B97F4A7C15)
_NUMBER = hash("0")


@dataclass(eq=False)
class Item:
    file: str
    number: int
    terms: list[str]
    words: list[str]
    values: np.ndarray = field(init=False)
    masked: np.ndarray = field(init=False)
    own: np.ndarray = field(init=False)
    """For each term, whether it is outside of all set phrases."""
    phrase: bool = False
    family: bytes = field(init=False)
    """Equal for items that are the same but for their numbers."""

    def __post_init__(self) -> None:
        self.values, self.masked = hashed(self.terms), hashed(self.terms, masked=True)
        self.family = self.masked.tobytes()
        self.own = np.ones(len(self.terms), bool)

    @property
    def name(self) -> str:
        return f"{self.file} item {self.number}"

    def inside(self, least: int) -> bool:
        """Whether it can be recognised amid other text."""
        spoken = [term for term in self.terms if term[-1].isalnum()]
        weight = len(spoken) - sum(len(term) == 1 and count_words(term) > 1 for term in spoken) / 2
        return weight >= least and len(set(self.terms)) >= INSIDE_DISTINCT


def hashed(parts: list[str], masked: bool = False) -> np.ndarray:
    """[len(parts)] 64-bit hashes; masked: all numbers alike."""
    values = [_NUMBER if masked and is_number(part) else hash(part) for part in parts]
    return np.array(values, np.int64).view(np.uint64)


def windows(values: np.ndarray, n: int) -> np.ndarray:
    """[len(values) - n + 1] hashes of all runs of n values (none where there are fewer)."""
    count = max(0, len(values) - n + 1)
    total = np.zeros(count, np.uint64)
    for k in range(n):
        total = total * _BASE + values[k : k + count]
    return total


def read_items(path: str | Path) -> list[Item]:
    """Of rows with a prompt, problem or question. Raises `UserError`."""
    found: list[tuple[int, str]] = []
    for raw in read_rows(path):
        try:
            row = raw.parse()
        except Unreadable as error:
            raise UserError(f"{raw.where}: {error}; mend the evaluation set") from None
        text = _item_text(row)
        if text is None:
            raise UserError(f"{raw.where}: an item of an evaluation set needs text in prompt, problem or question")
        found.append((raw.number, text))
    if not found:
        raise UserError(f"{path}: holds no items; name an evaluation set")
    items = [Item(Path(path).name, number, terms(text), words(text)) for number, text in found]
    return [item for item in _unwrapped(items) if item.terms]


def _item_text(row: Any) -> str | None:
    if not isinstance(row, dict):
        return None
    lower = {key.lower(): value for key, value in row.items()}
    return next((lower[key] for key in TEXT_KEYS if isinstance(lower.get(key), str) and lower[key].strip()), None)


def _unwrapped(items: list[Item]) -> list[Item]:
    """Without the instructions that stand before or behind every item of a file."""
    if len({tuple(item.terms) for item in items}) < 2:
        return items
    ends = [_shared_ends([item.terms for item in items]), _shared_ends([item.words for item in items])]
    if sum(ends[0]) < INSIDE_PROMPT:
        return items
    bare = [
        Item(item.file, item.number, _middle(item.terms, *ends[0]), _middle(item.words, *ends[1])) for item in items
    ]
    return [new if new.inside(INSIDE_PROMPT) else item for new, item in zip(bare, items)]


def _shared_ends(lists: list[list[str]]) -> tuple[int, int]:
    """How many parts all lists have in common at the start and, of the rest of each, at the end."""
    before = _shared_start(lists)
    return before, _shared_start([parts[: before - 1 if before else None : -1] for parts in lists])


def _shared_start(lists: list[list[str]]) -> int:
    return next((i for i, column in enumerate(zip(*lists)) if len(set(column)) > 1), min(map(len, lists)))


def _middle(parts: list[str], before: int, behind: int) -> list[str]:
    return parts[before : len(parts) - behind]


def different(items: Iterator[Item]) -> list[Item]:
    """The first of those with equal words: an item in two sets is no set phrase."""
    first: dict[bytes, Item] = {}
    for item in items:
        first.setdefault(digest(item.terms), item)
    return list(first.values())

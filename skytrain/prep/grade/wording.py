"""Answers that are words: what makes them so, and when two are the same."""

from __future__ import annotations

import re

_WORD = re.compile(r"(?!(?:arc)?(?:sin|cos|tan|log|ln|exp|sqrt))(?=.*[A-Za-z]{4})(?=.*[aeiouAEIOU])[A-Za-z0-9 ,.'-]+")


def plain(text: str) -> str:
    """Without blanks, but for those between two numbers: 1 000 is a thousand, and 5 6 is not 56."""
    text = re.sub(r"(?<=\d)\s+(?=\d{3}(?!\d))", "", text)
    return re.sub(r"\s+", "", re.sub(r"(?<=\d)\s+(?=\d)", "\0", text)).replace("\0", " ")


def words(text: str) -> str:
    """Without case, dots, articles and a word's final plural."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).replace("\\", " ").lower()
    text = re.sub(r"[.'\"{}]", "", re.sub(r"\s+", " ", text)).strip()
    found = [word for word in re.split(r"[\s,]+", text) if word]
    # No article at the end: Team A is one of several.
    kept = [word for word in found[:-1] if word not in ("a", "an", "the")] + found[-1:]
    return " ".join(re.sub(r"(?<=[a-z]{2})(?<!s)s$", "", word) for word in kept)


def wordy(text: str) -> bool:
    return re.search(r"[A-Za-z]{2}", re.sub(r"\\(?!text)[A-Za-z]+", "", text)) is not None


def is_word(text: str) -> bool:
    """Whether letters stand together as no product of variables would: four or more, a vowel among them, and nothing
    but letters, digits and punctuation. "stop" and "pots" are one product."""
    return _WORD.fullmatch(text) is not None

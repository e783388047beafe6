"""What makes a response unfit to learn from, told from its text alone: another language, loops."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

import numpy as np

from skytrain.prep.texts import HAN_LIKE

LEAST_SHARE = 0.2
"""Of a prompt's letters: a script from this on is one that the prompt is written in."""
COUNTED = 50
"""Times that a phrase may stand there with other numbers, as in steps that are counted. See `loop`."""
NUMBERS_FACTOR = 10
"""Tables, matrices and sums of equal numbers repeat themselves; they may do so this much longer than words."""
GRAM = 8
"""Tokens in a row whose earlier place tells the period of a repetition. See `_stretches`."""
_SCRIPTS = {
    "CJK": "han", "HIRAGANA": "kana", "KATAKANA": "kana", "HANGUL": "hangul", "BOPOMOFO": "han", "CYRILLIC": "cyrillic",
    "ARABIC": "arabic", "HEBREW": "hebrew", "DEVANAGARI": "devanagari", "BENGALI": "bengali", "TAMIL": "tamil",
    "TELUGU": "telugu", "GUJARATI": "gujarati", "GURMUKHI": "gurmukhi", "KANNADA": "kannada", "MALAYALAM": "malayalam",
    "SINHALA": "sinhala", "THAI": "thai", "LAO": "lao", "KHMER": "khmer", "MYANMAR": "myanmar", "TIBETAN": "tibetan",
    "GEORGIAN": "georgian", "ARMENIAN": "armenian", "ETHIOPIC": "ethiopic", "MONGOLIAN": "mongolian",
}  # fmt: skip
_LANGUAGES = {
    "han": "chinese mandarin cantonese kanji hanzi japanese", "kana": "japanese hiragana katakana kanji",
    "hangul": "korean hangul",
    "cyrillic": "russian ukrainian bulgarian serbian macedonian belarusian kazakh cyrillic",
    "arabic": "arabic persian farsi urdu pashto",
    "hebrew": "hebrew yiddish", "devanagari": "hindi sanskrit marathi nepali",
    "thai": "thai", "bengali": "bengali bangla", "tamil": "tamil", "telugu": "telugu", "georgian": "georgian",
    "armenian": "armenian", "ethiopic": "amharic ethiopic",
}  # fmt: skip
_WITHOUT_BLANKS = {"han", "kana", "thai", "lao", "khmer", "myanmar"}
_FOREIGN_WORD = re.compile(r"[^\W\d_\u0000-\u024f]+")
_LETTER = re.compile(r"[^\W\d_]")
_BETWEEN_WORDS = re.compile(r"[\W\d_]*")
_TOKEN = re.compile(rf"[{HAN_LIKE}]|\d+|[^\W\d{HAN_LIKE}]{{1,24}}|[^\w\s]")
_PROSE = re.compile(rf"[^\W\d_]{{2}}|[{HAN_LIKE}]")


@lru_cache(4096)
def script(letter: str) -> str | None:
    """The script of a language that is not written in Latin letters; None for those, and for Greek ones and signs,
    which are mathematics."""
    name = unicodedata.name(letter, "")
    if name.startswith(("HALFWIDTH ", "FULLWIDTH ")):
        name = name.split(" ", 1)[1]
    return _SCRIPTS.get(name.split(" ", 1)[0])


def foreign_script(prompt: str, response: str, *, share: float, run: int) -> str | None:
    """Why the response mixes languages, or None.

    Foreign are letters of a script that the prompt is not written in and names no language of. run: foreign words one
    behind the other that may be; two characters of a script that has no blanks are one word. share: of the response's
    letters that may be foreign where there are more foreign words than `run` in all: fewer are a name, or a symbol.
    Words that the prompt has are not counted, nor is Latin ever foreign.
    """
    if response.isascii():
        return None
    allowed = _allowed(prompt)
    letters: Counter[str] = Counter()
    longest, length, total, end = 0.0, 0.0, 0.0, -1
    for found in _FOREIGN_WORD.finditer(response):
        word = found[0]
        scripts = Counter(map(script, word))
        for known in (None, *allowed):
            scripts.pop(known, None)
        if not scripts or word in prompt:
            continue
        letters.update(scripts)
        if end < 0 or _BETWEEN_WORDS.match(response, end).end() < found.start():
            length = 0.0
        halves = sum(count for name, count in scripts.items() if name in _WITHOUT_BLANKS) / 2
        length, total = length + (halves or 1), total + (halves or 1)
        longest, end = max(longest, length), found.end()
    if not letters:
        return None
    main = letters.most_common(1)[0][0]
    part = letters.total() / max(1, len(_LETTER.findall(response)))
    if longest > run:
        return f"{longest:.3g} words of {main} in a row"
    return f"{part:.1%} of the letters are {main}" if part > share and total > run else None


def _allowed(prompt: str) -> set[str]:
    lower = prompt.lower()
    allowed = {name for name, languages in _LANGUAGES.items() if any(word in lower for word in languages.split())}
    if not prompt.isascii():
        letters = Counter(map(script, _LETTER.findall(prompt)))
        total = letters.total()
        allowed |= {name for name, count in letters.items() if name and count >= LEAST_SHARE * total}
        if allowed & {"kana", "hangul"}:
            allowed.add("han")
    return allowed


def loop(text: str, *, words: int, repeats: int) -> str | None:
    """Where a phrase is said again and again, or None. Linear in the length, but for one sort.

    A loop is a stretch of tokens (words, signs) that equals itself moved by its phrase's length p. It is one too many
    where the phrase has three different words and stands there `repeats` times; or where the stretch is at least
    `words` tokens long and the phrase stands there three times. A phrase of numbers and signs, as in tables, may go on
    for ten times as long. One of four different words that stands there `COUNTED` times with other numbers is a loop
    too.
    """
    said = _TOKEN.findall(text.lower())
    for start, period, length in _stretches(said):
        phrase = said[start : start + period]
        spoken = [token for token in phrase if _PROSE.match(token)]
        several = len(set(spoken)) >= 3
        # "Hmm." is a sentence, and "true, false," may be a list.
        sentence = any(len(token) >= 3 for token in spoken) and bool({".", "!", "?", "…"} & set(phrase))
        enough = words if several or sentence or 2 * len(spoken) > period else NUMBERS_FACTOR * words
        if (2 * len(spoken) > period and several and length >= repeats * period) or (
            length >= enough and length >= 3 * period
        ):
            return _told(phrase, length)
    masked = ["0" if token[0].isdigit() else token for token in said]
    for start, period, length in _stretches(masked):
        phrase = masked[start : start + period]
        spoken = {token for token in phrase if _PROSE.match(token)}
        if len(spoken) >= 4 and 2 * len(spoken) > period and length >= COUNTED * period:
            return _told(phrase, length)
    return None


def _told(phrase: list[str], length: int) -> str:
    return f"{length // len(phrase)} times in a row: {' '.join(phrase)[:80]!r}"


def _stretches(said: list[str]) -> list[tuple[int, int, int]]:
    """(start, period, length) of the stretches of at least two periods, by start.

    In a stretch of period p, the last place at which the GRAM tokens here stood before is p back, all along it.
    """
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(token, len(numbers)) for token in said], np.uint64)
    count = len(ids) - GRAM + 1
    if count < 2:
        return []
    grams = np.zeros(count, np.uint64)
    # An odd factor; equal grams have equal hashes, and for unequal ones 64 bits are enough.
    for k in range(GRAM):
        grams = (grams + ids[k : k + count] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        grams ^= grams >> np.uint64(29)
    order = np.argsort(grams, kind="stable")
    back = np.zeros(count, np.int64)
    same = grams[order[1:]] == grams[order[:-1]]
    back[order[1:][same]] = (order[1:] - order[:-1])[same]
    edges = np.flatnonzero(np.diff(back)) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [count]])
    found = []
    for start, end in zip(starts.tolist(), ends.tolist()):
        period = int(back[start])
        length = end - start + period + GRAM - 1
        if period and length >= 2 * period:
            found.append((start - period, period, length))
    return found

"""Text as comparable tokens: what is only typography (case, width, spaces, markup, LaTeX's spellings) is taken away."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

HAN_LIKE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
"""Han, kana and Thai, which put no blank between words: each character is a word. For a regular expression's class."""
OPERATORS = frozenset("+-*/^=<>≤≥≠%√∞±°!∈∪∩≡→")
"""Signs that make another problem of it, unlike punctuation."""

_BRACKETS = frozenset("()[]|")
_GREEK = {
    unicodedata.name(chr(code)).rsplit(" ", 1)[1].lower(): chr(code) for code in range(0x3B1, 0x3CA) if code != 0x3C2
}
_COMMANDS = {
    "times": "*", "cdot": "*", "ast": "*", "div": "/", "le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥", "geq": "≥",
    "geqslant": "≥", "ne": "≠", "neq": "≠", "lt": "<", "gt": ">", "infty": "∞", "pm": "±", "circ": "°", "degree": "°",
    "sqrt": "√", "in": "∈", "cup": "∪", "cap": "∩", "equiv": "≡", "to": "→", "rightarrow": "→", "lambda": "λ",
    "varepsilon": "ε", "varphi": "φ", "dbinom": "binom", "tbinom": "binom", "bmod": "mod", "pmod": "mod", "quad": "",
    "qquad": "", "left": "", "right": "", "displaystyle": "", "textstyle": "", "limits": "", "dots": "", "ldots": "",
    "cdots": "", "text": "", "textbf": "", "textit": "", "texttt": "", "mathrm": "", "mathbf": "", "mathit": "",
    "mathsf": "", "mathbb": "", "mathcal": "", "boldsymbol": "", "operatorname": "", "mbox": "", "emph": "",
    "big": "", "Big": "", "bigg": "", "Bigg": "", "bigl": "", "bigr": "", "Bigl": "", "Bigr": "", "hfill": "",
    "item": "", "newline": "", "noindent": "", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|",
    **_GREEK, **{name.capitalize(): letter for name, letter in _GREEK.items()}, "Lambda": "λ",
}  # fmt: skip
_SIGNS = str.maketrans({
    "−": "-", "–": "-", "‐": "-", "‑": "-", "—": " ", "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "⁄": "/",
    "⩽": "≤", "⩾": "≥", "º": "°", "…": " ", "∶": ":", "ς": "σ",
})  # fmt: skip
_NUMBER_WORDS = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12",
}  # fmt: skip
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[a-zA-Z]*\*?\}(?:\{[lcr| ]*\})?")
_SPACES = re.compile(r"\\\\(?:\[[^\]]{0,9}\])?|\\[,;:!> ()\[\]]|(?<!\\)\$|~")
_ATOM = r"\s*(?:\{\s*(\w+)\s*\}|(\w))"
_FRACTION = re.compile(rf"\\[dtc]?frac(?![a-zA-Z]){_ATOM}{_ATOM}")
_LONG_FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\([a-zA-Z]+)\*?")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\})\d{3})+(?![\d,])")
# Powers of a program, before asterisks that are Markdown's are taken away.
_PYTHON_POWER = re.compile(r"(?<=[\w)\]])\*\*(?=[\d(-])")
_LIST_MARK = re.compile(r"^[ \t]*(?:[-*+>•][ \t]+|#{1,6} (?=\w))", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<![\w)\]}])\*{1,3}(?=\S)|(?<=\S)\*{1,3}(?![\w(\[{\\-])")
_PROSE_SIGN = re.compile(r"(?<=[^\W\d_]{2})\s*[-/*]+\s*(?=[^\W\d_]{2})")
_FACTORIAL = re.compile(r"(?<=[\w)])!(?=\s*[a-z=+*/^<>)\\!-])")
# A minus that belongs to its number, so that -5 and 5 are the same but for a number.
_NEGATIVE = re.compile(r"(?:(?<=[=(,\[{<>≤≥+*/^:])\s*|(?<=[^\W\d_]{2}\s))-\s?(?=\d)")
_UNDERSCORES = re.compile(r"(?<=[^\W_])_+|_+(?=[^\W_])")
_REWRITES = (
    (",", _THOUSANDS, lambda found: re.sub(r"\D", "", found[0])),
    ("**", _PYTHON_POWER, "^"),
    ("", _LIST_MARK, ""),
    ("*", _EMPHASIS, ""),
    ("-", _PROSE_SIGN, " "),
    ("/", _PROSE_SIGN, " "),
    ("*", _PROSE_SIGN, " "),
    ("-", _NEGATIVE, "⁻"),
    ("_", _UNDERSCORES, " "),
)
_WORDS = rf"[{HAN_LIKE}]|[^\W\d_{HAN_LIKE}]+|⁻?\d+(?:\.\d+)?"
_TOKEN = re.compile(_WORDS + r"|[^\s.,;:?'\"`‘’“”«»。，、；：？！…{}$\\]")


@lru_cache(4)
def tokens(text: str) -> tuple[str, ...]:
    """Words, numbers, operators and brackets; no punctuation. `\\frac{1}{2}`, `$\\frac12$`, `½` and `1/2` are the same.

    Two texts of equal tokens are the same but for typography.
    """
    text = _INVISIBLE.sub("", text)
    if "&" in text:
        text = html.unescape(text)
    if "!" in text:
        text = _FACTORIAL.sub("\u01c3", text)  # a letter in the shape of !, which no other rule touches
    if not text.isascii():
        text = _SUPERSCRIPTS.sub(lambda found: "^" + unicodedata.normalize("NFKC", found[0]), text)
        text = unicodedata.normalize("NFKC", text)
    if "\\" in text or "$" in text:
        text = _without_latex(text)
    # NFKC makes a superscript's minus and the fraction slash of ½, so signs come after it.
    text = text.translate(_SIGNS)
    text = text.replace("<=", "≤").replace(">=", "≥").replace("!=", "≠")
    # Patterns that begin by looking back are slow; most texts need few of them.
    for sign, pattern, instead in _REWRITES:
        if sign in text:
            text = pattern.sub(instead, text)
    text = text.replace("'", "").replace("’", "").casefold()
    return tuple(_NUMBER_WORDS.get(token, token) for token in _TOKEN.findall(text) if token != "!")


def _without_latex(text: str) -> str:
    text = _ENVIRONMENT.sub(" ", text)
    text = _SPACES.sub(" ", text)
    text = _FRACTION.sub(lambda found: f" {found[1] or found[2]}/{found[3] or found[4]} ", text)
    text = _LONG_FRACTION.sub(r" (\1)/(\2) ", text).replace("^\\circ", "°").replace("^{\\circ}", "°")
    return _COMMAND.sub(lambda found: f" {_COMMANDS.get(found[1], found[1])} ", text)


def terms(text: str) -> list[str]:
    """`tokens` without brackets, in which copies are looked for."""
    return [token for token in tokens(text) if token not in _BRACKETS]


def is_number(term: str) -> bool:
    return term[-1].isdigit()


def digest(parts: Iterable[str]) -> bytes:
    """16 bytes."""
    return hashlib.blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=16).digest()


_HAN_LIKE = re.compile(f"[{HAN_LIKE}]")
_WORD = re.compile(rf"[{HAN_LIKE}]|[^\W_{HAN_LIKE}]+")
_BETWEEN = re.compile(r"[^\w+\-/=<>^]+")


def words(text: str) -> list[str]:
    """Letters and digits alone: a tenth of the time of `terms`, for responses."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def squeezed(text: str) -> str:
    """Without case, blanks and punctuation; for digests."""
    return _BETWEEN.sub("", unicodedata.normalize("NFKC", text).casefold())


def count_words(text: str) -> int:
    """Pieces between blanks; where a script has no blanks between words, its characters."""
    count = len(text.split())
    return count if text.isascii() else count + len(_HAN_LIKE.findall(text))

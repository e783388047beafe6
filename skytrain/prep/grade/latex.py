"""LaTeX, plain text and a few characters of Unicode, written in one way."""

from __future__ import annotations

import re

from skytrain.prep.grade.extract import closing

_CHARACTERS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ",
    "≥": r"\ge ", "≠": r"\ne ", "°": r"^\circ ", "√": r"\sqrt ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
    "±": r"\pm ", "∅": r"\emptyset ", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
    "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}", "⅛": r"\frac{1}{8}", "²": "^{2}", "³": "^{3}",
    "⟨": r"\langle ", "⟩": r"\rangle ", "’": "'", "，": ",", "\u00a0": " ", "θ": r"\theta ", "α": r"\alpha ",
    "β": r"\beta ", "£": r"\text{pound}", "€": r"\text{euro}",
}  # fmt: skip
_SPACES = re.compile(r"\\[,;:!> ]|\\q?quad\b|~|\\(?:hspace|vspace)\*?\{[^{}]*\}|\\(?:displaystyle|limits|nolimits)\b")
_GROUPS = re.compile(r"(?<![\d.])\d{1,3}(,(?:\\!)+|\{,\}|\\,)\s*\d{3}(?:\1\s*\d{3})*(?!\d|\1\s*\d)")
"""Digits in groups of three by what no list has between its members: 32,\\!348 and 32{,}348."""
_SIZES = re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*")
_SHORT = re.compile(r"\\frac\s*(\{|[A-Za-z0-9])")
_WORDS = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt|operatorname\*?)\s*\{"
)
_NAMES = {"dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "geq": "ge", "leqslant": "le",
          "geqslant": "ge", "neq": "ne", "lt": "<", "gt": ">", "colon": ":", "lbrace": r"\{", "rbrace": r"\}",
          "varnothing": "emptyset", "vee": "lor", "wedge": "land", "dots": "ldots", "cdots": "ldots", "lbrack": "[",
          "rbrack": "]", "ast": "*", "Longleftrightarrow": "iff", "degree": "circ", "mid": "|",
          "vert": "|", "dbinom": "binom", "tbinom": "binom"}  # fmt: skip
_ROMAN = {
    "e",
    "i",
    "d",
    "sin",
    "cos",
    "tan",
    "log",
    "ln",
    "max",
    "min",
    "gcd",
    "lcm",
    "mod",
    "arcsin",
    "arccos",
    "arctan",
}

_BASES = ["", "", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
          "thirteen", "fourteen", "fifteen", "sixteen"]  # fmt: skip


def clean(text: str) -> str:
    r"""One way to write an answer: no dollars, sizes, thin spaces or outer braces; `\frac` with two braced arguments;
    words in `\text{...}`. Blanks stay where they part words, and nowhere else."""
    for character, written in _CHARACTERS.items():
        text = text.replace(character, written)
    text = re.sub(r"\\\\(\[[^\]]*\])?", "\0", text)  # the end of a matrix's row, which is no escape
    text = re.sub(r"[\0\s]*\\?\s*$", "", text)
    text = re.sub(r"\\text\{\$([^$]*)\$\}", r"\1", text)
    text = re.sub(r"\.\.\.+|…", r"\\ldots ", text)
    text = _GROUPS.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    text = re.sub(r"\\(?:tag|label)\*?\s*\{[^{}]*\}|\\(?:large|Large|LARGE|small|huge|bf|rm|it)(?![A-Za-z])", " ", text)
    text = re.sub(r"\\(?:textcolor|color)\s*\{\w+\}", "", text)
    text = text.replace(r"\$", r"\text{dollar}").replace("$", " ").replace(r"\%", "%").replace(r"\#", "#")
    text = re.sub(r"\\[()\[\]](?![A-Za-z])", " ", text)
    text = _SIZES.sub("", _SPACES.sub(" ", text))
    text = re.sub(r"\\([A-Za-z]+)", _name, text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", r"\\text{degree}", text)
    text = re.sub(r"\\(?:underline|boldsymbol|bm|pmb)\s*(?=\{)", "", text)
    text = re.sub(r"\\dot\{?(\d)\}?(?:(\d*)\\dot\{?(\d)\}?)?", _repeated, text)
    text = _words(text)
    text = re.sub(r"(?<=[0-9A-F)}])_\{?\\text\{\s*([a-z]+)\s*\}\}?", _base, text)
    text = _fractions(re.sub(r"\s*\{\s*|\s*\}", lambda found: found[0].strip(), text))
    text = re.sub(r"\\sqrt\s*([A-Za-z0-9])", r"\\sqrt{\1}", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = text.strip().rstrip(".,;").strip()
    while (inner := _unwrapped(text)) is not None:
        text = inner.strip().rstrip(".,;").strip()
    return text.replace("\0", "\\\\")


def _name(found: re.Match[str]) -> str:
    new = _NAMES.get(found[1], found[1])
    return f"\\{new}" if new.isalpha() else new


def _base(found: re.Match[str]) -> str:
    return f"_{{{_BASES.index(found[1])}}}" if found[1] in _BASES else found[0]


def _repeated(found: re.Match[str]) -> str:
    """Dots over the first and the last digit that come again and again."""
    return rf"\overline{{{''.join(group or '' for group in found.groups())}}}"


def _words(text: str) -> str:
    r"""Every way to write words becomes `\text{...}`; upright letters that are mathematics become letters."""
    at = 0
    while (found := _WORDS.search(text, at)) is not None:
        end = closing(text, found.end() - 1)
        if end is None:
            return text
        inner = _words(text[found.end() : end])
        inner = re.sub(r"\\text\{([^{}]*)\}", r"\1", inner)
        if not found[0].startswith((r"\text", r"\mbox", r"\hbox")) and (
            inner.strip() in _ROMAN or inner.strip().isdigit()
        ):
            new = inner.strip() if len(inner.strip()) == 1 or inner.strip().isdigit() else f"\\{inner.strip()} "
        elif re.fullmatch(r"[\s\d.,+\-/*=()^]*", inner):
            new = inner
        else:
            new = f"\\text{{{inner}}}"
        text = text[: found.start()] + new + text[end + 1 :]
        at = found.start() + len(new)
    return text


def _fractions(text: str) -> str:
    r"""`\frac14`, `\frac{14}3` and `\frac 1{4}` with both of their arguments in braces."""
    at = 0
    while (found := _SHORT.search(text, at)) is not None:
        parts, place = [], found.start(1)
        for _ in range(2):
            while text[place : place + 1] == " ":
                place += 1
            if text[place : place + 1] == "{":
                end = closing(text, place)
                if end is None:
                    return text
                parts.append(text[place + 1 : end])
                place = end + 1
            else:
                parts.append(text[place : place + 1])
                place += 1
        new = f"\\frac{{{_fractions(parts[0])}}}{{{_fractions(parts[1])}}}"
        text = text[: found.start()] + new + text[place:]
        at = found.start() + len(new)
    return text


def _unwrapped(text: str) -> str | None:
    """Without a box or braces around all of it; None where there are none."""
    start = next((len(box) for box in (r"\boxed{", r"\fbox{", "{") if text.startswith(box)), 0)
    if start and closing(text, start - 1) == len(text) - 1:
        return text[start:-1]
    return None

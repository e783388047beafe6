"""Units as answers write them, and the words that make a claim of what would else be one."""

from __future__ import annotations

import re

UNITS = {"dollar": "$", "usd": "$", "degree": "°", "deg": "°", "percent": "%", "centimeter": "cm", "centimetre": "cm",
          "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km", "millimeter": "mm", "millimetre": "mm",
          "inche": "in", "inch": "in", "foot": "ft", "feet": "ft", "mile": "mi", "second": "s", "sec": "s",
          "minute": "min", "hour": "h", "hr": "h", "gram": "g", "kilogram": "kg", "liter": "l", "litre": "l",
          "mph": "mi/h", "milesperhour": "mi/h", "kmph": "km/h", "cent": "¢"}  # fmt: skip
KNOWN = {unit for unit in (*UNITS, *UNITS.values(), "km/h", "m/s", "lb", "oz", "ml", "kmh") if len(unit) > 1}
CONDITION = re.compile(
    r"\b(?:for|where|when|if|with|all|any|every|such|unless|except|only|each|not|no|or|and|more|less|fewer|least|most|greater"
    r"|than|assuming|provided|given|odd|even|prime|positive|negative|is|are|be|factorial|(?:im)?possible|dozen|hundred"
    r"|thousand|[mbtr]+illion)s?\b",
    re.IGNORECASE,
)


def unit(text: str) -> str:
    text = re.sub(r"[\s.]", "", text.lower())
    text = text if len(text) < 3 or text.endswith("ss") else text.removesuffix("s")
    return UNITS.get(text, text)

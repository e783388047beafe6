"""What a problem is asked with: the user's turn, in one of the variants of the texts in `prompts`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from skytrain.errors import UserError
from skytrain.prep.generate import form_of
from skytrain.prep.prompts import Prompts
from skytrain.prep.stage import Row

OURS = Path(__file__).with_name("prompts")
Variant = Literal["before", "after", "bare"]
"""The instruction before the question (as the published scores were made), behind it, or none at all."""
VARIANTS = get_args(Variant)


def prompts(folder: str | Path | None = None) -> Prompts:
    """folder: a user's, whose files replace ours. Raises `UserError`."""
    return Prompts(folder, OURS)


def asked(row: Row, variant: str, texts: Prompts) -> tuple[str, str]:
    """(the user's turn, VARIANT.FORM@DIGEST of its text). Raises `UserError` for an unknown variant."""
    if variant not in VARIANTS:
        raise UserError(f"prompt variant {variant!r}: name one of {', '.join(VARIANTS)}")
    prompt, starter, form = row["prompt"], row.get("starter") or "", form_of(row)
    if form == "function":
        if starter.strip() == prompt.strip():  # HumanEval's question is the code that its answer begins with.
            form = "complete"
        # Else nothing would tell the name by which the function is called.
        starter = starter or f"def {row['tests']['fn_name']}(...):"
    name = f"{variant}.{form}"
    return texts.render(name, prompt=prompt, starter=starter), texts.version(name)

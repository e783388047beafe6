"""The texts that models are asked with. Each is a file, which a user's folder can replace by one of the same name."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from skytrain.errors import UserError
from skytrain.files import read_regular

OURS = Path(__file__).with_name("prompts")
FIELDS = ("prompt", "starter", "trace", "reference")
_FIELD = re.compile(r"\{(" + "|".join(FIELDS) + r")\}")


class Prompts:
    """folder: a user's, whose files replace those of `ours` of the same name. Raises `UserError` for a file of another
    name."""

    def __init__(self, folder: str | Path | None = None, ours: Path = OURS):
        self._texts = {path.stem: path.read_text(encoding="utf-8").strip() for path in sorted(ours.glob("*.txt"))}
        if folder is None:
            return
        try:
            given = sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))
            read = {path: read_regular(path).decode().strip() for path in given}
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts {folder}: cannot be read ({error}); name a folder of .txt files") from None
        for path, text in read.items():
            if path.suffix != ".txt" or path.stem not in self._texts:
                names = ", ".join(f"{name}.txt" for name in self._texts)
                raise UserError(f"{path}: no prompt has this name; the names are {names}")
            if "{prompt}" in self._texts[path.stem] and "{prompt}" not in text:
                raise UserError(f"{path}: the field {{prompt}} is missing; without it no problem is asked")
            self._texts[path.stem] = text

    def render(self, name: str, **fields: str) -> str:
        """One pass, so that a field's name within a problem stays as it is."""
        return _FIELD.sub(lambda found: fields.get(found[1], ""), self._texts[name])

    def version(self, *names: str) -> str:
        """`teacher.math@1f0c...`: the last name, and a digest of all the texts."""
        texts = "\0".join(self._texts[name] for name in names)
        return f"{names[-1]}@{hashlib.sha256(texts.encode()).hexdigest()[:12]}"

    def versions(self, *prefixes: str) -> dict[str, str]:
        """Of every text whose name begins so, for a stage's settings."""
        return {name: self.version(name) for name in self._texts if name.startswith(prefixes)}


def messages(system: str | None, user: str) -> list[dict[str, Any]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": user}]

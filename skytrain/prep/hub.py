"""A data set of the Hugging Face hub as a local file of JSON lines, through the library `datasets` if it is there."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from skytrain.errors import UserError
from skytrain.prep.stage import beside, partial


class NotInstalled(UserError):
    """The library `datasets` is not there."""


def fetch(spec: str, out: Path, *, overwrite: bool = False) -> Path:
    """Writes the rows beside OUT unless they are there, and returns the file's name.

    spec: NAME[:CONFIG[:SPLIT]]; the split is train unless it is given, and an empty CONFIG is the default one.
    Raises `NotInstalled`, a `UserError`, and `UserError` where the hub does not give the rows.
    """
    name, config, split, *more = [*spec.split(":"), "", ""] if spec.count(":") < 2 else spec.split(":")
    if not name or any(more):
        raise UserError(f"--hub {spec}: must be NAME[:CONFIG[:SPLIT]], as codeparrot/apps:all:test")
    path = beside(out, f"hub-{re.sub(r'[^A-Za-z0-9._-]+', '-', spec)}.jsonl")
    if path.exists() and not overwrite:
        print(f"{path}: was fetched before (--overwrite fetches it anew)", flush=True)
        return path
    try:
        import datasets
    except ImportError:
        raise NotInstalled(
            "--hub needs the library `datasets`: pip install datasets, or name the downloaded files as INPUT"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        with open(partial(path), "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, default=_as_text) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial(path), path)
    except Exception as error:  # the library raises its own, those of its downloader and OSError
        raise UserError(f"{spec}: cannot be read from the hub ({type(error).__name__}: {error})") from None
    finally:
        partial(path).unlink(missing_ok=True)
    return path


def _as_text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)

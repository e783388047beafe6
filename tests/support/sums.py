"""Evaluations of sums: what tests of `skytrain eval` ask a `teacher.Teacher`."""

import json
from pathlib import Path

import msgspec

from skytrain.eval.settings import Settings, read


def problems(folder: Path, count: int = 10) -> Path:
    """ "What is i + i? #i#", whose answer is 2i."""
    path = folder / "sums.jsonl"
    asked = [{"id": f"p{i}", "question": f"What is {i} + {i}? #{i}#", "answer": str(2 * i)} for i in range(count)]
    rows = [row | {"domain": "math"} for row in asked]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(folder: Path, url: str, **given) -> Settings:
    path = problems(folder) if not (folder / "sums.jsonl").exists() else folder / "sums.jsonl"
    own = {"model": "m", "server": [url], "out": str(folder / "out"), "samples": 2, "patience": 5.0}
    return read(None, own | given, [f"sums={path}"])


def comparable(results) -> dict:
    """Without the time, and the server's address."""
    return {**msgspec.to_builtins(results), "made": None, "servers": None}

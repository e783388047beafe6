"""Small files made wrong, by a seed: bytes, JSON values, safetensors headers, and what stands in a file's place."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**30, -(2**63),
    "", "x", "../x", "/etc/passwd", "x\0y", "a" * 5000, "\ud800", [], {}, [[]], [None], [1, "x"], {"a": 1}, [[[[[1]]]]],
]  # fmt: skip
SNIPPETS = [
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"NaN",
    b"-",
    b"9" * 400,
    b"[" * 5000,
    b"{" * 5000,
    b'"',
    b"\\",
    b"\n",
    b"#",
]


def mutate(files: list[Path], chance: random.Random) -> str:
    """Makes one of the files wrong, sometimes twice; returns in words what was done."""
    done = []
    for _ in range(chance.choice((1, 1, 1, 2))):
        file = chance.choice(files)
        kinds: list[Callable[[Path, list[Path], random.Random], str]] = [_bytes, _bytes, _place]
        if file.suffix == ".json":
            kinds += [_json] * 4
        if file.suffix == ".safetensors":
            kinds += [_header] * 3
        if file.is_file() and not file.is_symlink():
            done.append(f"{file.name}: {chance.choice(kinds)(file, files, chance)}")
    return "; ".join(done)


def mutate_bytes(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    at = chance.randrange(len(content) + 1)
    to = min(len(content), at + chance.choice((1, 1, 4, 30)))
    kind = chance.randrange(6)
    if kind == 0 and at < len(content):
        bit = 1 << chance.randrange(8)
        return content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :], f"bit {bit} of byte {at} flipped"
    if kind == 1:
        return content[:at], f"cut after {at}"
    if kind == 2:
        return content[:at] + content[to:], f"{at} to {to} taken out"
    if kind == 3:
        return content[:to] + content[at:], f"{at} to {to} twice"
    if kind == 4:
        snippet = chance.choice(SNIPPETS)
        return content[:at] + snippet + content[at:], f"{snippet[:8]!r} at {at}"
    noise = chance.randbytes(chance.choice((1, 8)))
    return content[:at] + noise + content[at + len(noise) :], f"{noise!r} over {at}"


def _bytes(file: Path, files: list[Path], chance: random.Random) -> str:
    content, what = mutate_bytes(file.read_bytes(), chance)
    file.write_bytes(content)
    return what


def _place(file: Path, files: list[Path], chance: random.Random) -> str:
    """Something else where the file was."""
    kind = chance.choice(("gone", "empty", "folder", "fifo", "dangling link", "another file", "longer"))
    if kind == "another file":
        other = chance.choice(files)
        content = other.read_bytes() if other.is_file() else b""
        file.write_bytes(content)
        return f"{kind}, {other.name}"
    if kind == "longer":
        with file.open("ab") as opened:
            opened.write(b"\0" * 64)
        return kind
    file.unlink()
    if kind == "empty":
        file.touch()
    elif kind == "folder":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "dangling link":
        file.symlink_to("nowhere")
    return kind


def mutate_json(value: Any, chance: random.Random) -> str:
    """Changes a place in a tree of lists and dictionaries."""
    places = _places(value)
    if not places:
        return "nothing"
    holder, key = chance.choice(places)
    kind = chance.choice(("replaced", "replaced", "replaced", "removed", "renamed", "nudged"))
    if kind == "removed":
        del holder[key]
    elif kind == "renamed" and isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)
    elif kind == "nudged" and isinstance(holder[key], int | float):
        holder[key] += chance.choice((-8, -1, 1, 8))
    else:
        holder[key] = chance.choice(VALUES)
        return f"{key!r} is {str(holder[key])[:40]!r}"
    return f"{key!r} {kind}"


def _places(value: Any) -> list[tuple[Any, Any]]:
    if not isinstance(value, dict | list):
        return []
    found = []
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        found += [(value, key), *_places(value[key])]
    return found


def _json(file: Path, files: list[Path], chance: random.Random) -> str:
    try:
        value = json.loads(file.read_bytes())
    except ValueError:
        return _bytes(file, files, chance)
    what = mutate_json(value, chance)
    file.write_text(json.dumps(value), encoding="utf-8", errors="surrogatepass")
    return what


def _header(file: Path, files: list[Path], chance: random.Random) -> str:
    """Of a safetensors file: a value of its header, or the header's length."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if chance.random() < 0.2:
        size = chance.choice((0, 1, size - 1, size + 1, len(content), 2**32, 2**63 - 1, 2**64 - 1))
        file.write_bytes((size % 2**64).to_bytes(8, "little") + content[8:])
        return f"header of {size} bytes"
    try:
        header = json.loads(content[8 : 8 + size])
    except ValueError:
        return _bytes(file, files, chance)
    what = mutate_json(header, chance)
    text = json.dumps(header).encode("utf-8", errors="surrogatepass")
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    return f"header: {what}"

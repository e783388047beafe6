"""A checkpoint folder on disk: tensors in safetensors files, everything else in JSON, and no pickle.

    step-00000010/
      tensors-00003-002-5f0c91aa.safetensors   the third file of rank 3; 5f0c91aa names the save that wrote it
      index-5f0c91aa.json                      every tensor's dtype, shape and chunks; the scalars
      complete.json                            the marker: step, and size and sha256 of the files above

The folder is complete when its marker is there, and the marker is put in place last, by an atomic rename. Files of
another save never share a name, so a folder that is written again stays complete with its old files until the
new marker replaces the old one; files that the marker does not list are nobody's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from skytrain import progress
from skytrain.direct import DirectFile
from skytrain.errors import UserError, one_line
from skytrain.files import open_regular, read_regular, unique_keys

FORMAT_VERSION = 1
MARKER = "complete.json"
PIECE_BYTES = 32 << 20
"""Of a tensor on its way to its file: what a writing thread holds beside the state itself."""
THREADS = 4
"""Files of one rank written or verified at a time: a sha256 (1 to 2 GB/s a core) is slower than a good disk."""

# Names of safetensors' format.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


class Damaged(UserError):
    """(folder, reason): it is not a complete checkpoint, or its bytes are not those that were written."""

    def __str__(self) -> str:
        folder, reason = self.args
        return one_line(f"checkpoint {folder}: {reason}; delete this folder or choose another step")


class Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A part of a JSON file."""


class File(Record, frozen=True):
    name: str
    bytes: int
    sha256: str


class Marker(Record):
    format_version: int
    step: int
    index: str
    """Name of the index file; it is one of `files`."""
    files: list[File]


class Chunk(Record):
    """A box of a tensor: `sizes` elements from `offsets` on, stored whole under `key` of `file`."""

    offsets: list[int]
    sizes: list[int]
    file: str
    key: str


class Entry(Record):
    """A tensor. Its chunks tile it; an empty tensor has none."""

    dtype: str
    shape: list[int]
    chunks: list[Chunk]


class Index(Record):
    tensors: dict[str, Entry]
    scalars: dict[str, Any]


def key_of(name: str, offsets: list[int]) -> str:
    """A box's name within its file: the tensor's, and where the box starts."""
    return f"{name}{offsets}"


def step_folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step in the folder's name, or None for any other name."""
    match = re.fullmatch(r"step-([0-9]{8,})", folder.name)
    return int(match[1]) if match else None


def step_folders(root: Path) -> list[Path]:
    """Step folders under `root`, the newest first, complete or not. UserError where it cannot be listed."""
    try:
        found = [path for path in root.iterdir() if step_of(path) is not None and path.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{root}: {error.strerror or error}; checkpoints need a folder that can be read") from None
    return sorted(found, key=step_of, reverse=True)


# Writing.


def write_tensors(path: Path, tensors: list[tuple[str, torch.dtype, list[int], Callable[[], torch.Tensor]]]) -> File:
    """Writes (key, dtype, shape, fetch) into one safetensors file, on any device, at most `PIECE_BYTES` held at once.

    The tensors come with the widest elements first: each then starts at a multiple of its element's size, without
    which it could not be mapped.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, dtype, shape, _ in tensors:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def content() -> Iterable[Any]:
        yield len(text).to_bytes(8, "little")
        yield text
        for _, dtype, _, fetch in tensors:
            flat = fetch().detach().contiguous().reshape(-1)
            for piece in flat.split(PIECE_BYTES // dtype.itemsize):
                yield piece.cpu().view(torch.uint8).numpy()
            # Else this tensor would still be held while the next one is fetched.
            del flat, piece

    return write_file(path, content())


def write_json(path: Path, value: Record) -> File:
    # The standard library's, and not msgspec's: msgspec writes null for a loss that is not a number.
    return write_file(path, [json.dumps(msgspec.to_builtins(value)).encode()])


def write_marker(folder: Path, marker: Marker) -> None:
    """Makes the folder complete. Its files are on disk already."""
    sync_folder(folder)
    temporary = folder / f"{MARKER}.new"
    temporary.unlink(missing_ok=True)
    write_json(temporary, marker)
    os.replace(temporary, folder / MARKER)
    sync_folder(folder)


def write_file(path: Path, content: Iterable[Any]) -> File:
    """A new file of these bytes, on disk when this returns."""
    digest, size = hashlib.sha256(), 0
    with open(path, "xb", buffering=0) as file:
        direct = DirectFile(file.fileno())
        for part in content:
            progress.mark()
            digest.update(part)
            size += direct.write(part)
            del part  # a view of a tensor, which must be gone before the next one is fetched
        direct.flush()
        os.fsync(file.fileno())
    return File(name=path.name, bytes=size, sha256=digest.hexdigest())


def sync_folder(folder: Path) -> None:
    """Names put into, or taken out of, the folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Deleting.


def remove(folder: Path) -> None:
    """Deletes a step folder, the marker first: what a kill leaves of it is never taken for complete."""
    if folder.is_symlink():  # Somebody pointed to another run's checkpoint, which stays.
        return folder.unlink()
    (folder / MARKER).unlink(missing_ok=True)
    sync_folder(folder)
    shutil.rmtree(folder)


def tidy(folder: Path) -> None:
    """Deletes what no save completed: files that the marker does not list, or the folder that has no good marker."""
    try:
        known = {MARKER, *(file.name for file in read_marker(folder).files)}
    except Damaged:
        return remove(folder)
    for path in folder.iterdir():
        if path.name not in known and not path.is_dir():
            path.unlink()


def retain(root: Path, keep: int, written: Path) -> None:
    """Deletes all step folders but the complete one just written and the newest `keep` - 1 complete ones beside it."""
    tidy(written)
    others = [folder for folder in step_folders(root) if folder != written]
    kept = [folder for folder in others if is_complete(folder)][: keep - 1]
    for folder in others:
        if folder not in kept:
            remove(folder)


# Reading.


def is_complete(folder: Path) -> bool:
    try:
        read_marker(folder)
    except Damaged:
        return False
    return True


def read_marker(folder: Path) -> Marker:
    """The marker of a folder that has all its files at their full size; else `Damaged`. No file's content is read."""
    marker = _decode(folder / MARKER, _read(folder / MARKER, absent="it was never finished"), Marker)
    names = [file.name for file in marker.files]
    if marker.format_version != FORMAT_VERSION:
        raise Damaged(folder, f"format version {marker.format_version}; this skytrain reads {FORMAT_VERSION}")
    if marker.step != step_of(folder):
        raise Damaged(folder, f"{MARKER} is that of step {marker.step}")
    if marker.index not in names or len(set(names)) < len(names) or any("/" in name for name in names):
        raise Damaged(folder, f"{MARKER} lists files that no save wrote")
    for file in marker.files:
        try:
            size = (folder / file.name).stat().st_size
        except (OSError, ValueError):
            raise Damaged(folder, f"{file.name} is missing") from None
        if size != file.bytes:
            raise Damaged(folder, f"{file.name} has {size} bytes, not {file.bytes}")
    return marker


def read_index(folder: Path, marker: Marker) -> Index:
    """The index, verified against its sha256 and checked."""
    content = _read(folder / marker.index, absent="the file is gone")
    file = next(file for file in marker.files if file.name == marker.index)
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise Damaged(folder, f"{file.name} is corrupt (its sha256 is not the one in {MARKER})")
    index = _decode(folder / marker.index, content, Index)
    check(folder, index, {file.name for file in marker.files})
    return index


def check(folder: Path, index: Index, files: set[str]) -> None:
    """`Damaged` unless every tensor is tiled by boxes within it, each stored in one of `files` under its own key."""
    for name, entry in index.tensors.items():
        covered = 0
        good = entry.dtype in TORCH_DTYPES
        for chunk in entry.chunks:
            good &= chunk.file in files and len(chunk.offsets) == len(chunk.sizes) == len(entry.shape)
            bounds = zip(chunk.offsets, chunk.sizes, entry.shape)
            good &= all(offset >= 0 and 0 < size <= whole - offset for offset, size, whole in bounds)
            good &= chunk.key == key_of(name, chunk.offsets)
            covered += math.prod(chunk.sizes)
        # DCP's planner does not see a hole: it would leave there what the tensor held before.
        if not good or covered != math.prod(entry.shape) or _overlap(entry.chunks):
            raise Damaged(folder, f"the chunks of tensor {name!r} do not make up its shape {entry.shape}")


def _overlap(chunks: list[Chunk]) -> bool:
    ordered = sorted(chunks, key=lambda chunk: chunk.offsets)
    for i, one in enumerate(ordered):
        for other in itertools.islice(ordered, i + 1, None):
            bounds = list(zip(one.offsets, one.sizes, other.offsets, other.sizes))
            if bounds and bounds[0][2] >= bounds[0][0] + bounds[0][1]:
                break  # Nor does any that comes later.
            if all(a < b + n and b < a + m for a, m, b, n in bounds):
                return True
    return False


def verify(folder: Path, files: list[File]) -> None:
    """`Damaged`, naming the file, where the bytes are not those that were written."""

    def one(file: File) -> None:
        progress.mark()
        try:
            with open_regular(folder / file.name) as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise Damaged(folder, f"{file.name}: {error.strerror or error}") from None
        if digest != file.sha256:
            raise Damaged(folder, f"{file.name} is corrupt (its sha256 is not the one in {MARKER})")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, files))


class TensorFiles:
    """Reads boxes of stored chunks through memory maps, each file opened once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened: dict[str, Any] = {}

    def read(self, chunk: Chunk, dtype: str, offsets: list[int], sizes: list[int]) -> torch.Tensor:
        """The box of `sizes` elements from `offsets` on within the chunk: a CPU tensor over the mapped file."""
        path = self.folder / chunk.file
        try:
            if chunk.file not in self._opened:
                self._opened[chunk.file] = safe_open(path, framework="pt")
            stored = self._opened[chunk.file].get_slice(chunk.key)
            if (stored.get_dtype(), stored.get_shape()) != (dtype, chunk.sizes):
                raise Damaged(self.folder, f"{chunk.file}: {chunk.key!r} is not the tensor that the index names")
            if not sizes:
                return self._opened[chunk.file].get_tensor(chunk.key)
            return stored[tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes))]
        except (OSError, SafetensorError) as error:
            raise Damaged(self.folder, f"{chunk.file}: {error}") from None


def _read(path: Path, absent: str) -> bytes:
    try:
        return read_regular(path)
    except FileNotFoundError:
        raise Damaged(path.parent, f"no {path.name}: {absent}") from None
    except (OSError, ValueError) as error:
        raise Damaged(path.parent, f"{path.name}: {error}") from None


def _decode(path: Path, content: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(json.loads(content, object_pairs_hook=unique_keys), kind)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise Damaged(path.parent, f"{path.name} is not a file that skytrain wrote: {error}") from None

"""The format of a tokenised data set on disk.

A finished folder holds `tokens-00000-of-0000N.safetensors`, `rows.jsonl` and `dataset.json`, the last one written.
Each shard holds four flat arrays:

    offsets  int64  [n_docs + 1]   document i is tokens[offsets[i] : offsets[i + 1]]
    doc_id   int64  [n_docs]       the document's line in rows.jsonl, from 0
    tokens   uint32 [n_tokens]
    trained  uint8  [n_tokens]     1 where the token is a target; never the first token of a document
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import numpy as np

from skytrain.data.ledger import Ledger
from skytrain.files import open_regular

FORMAT_VERSION = 1
ARRAYS = {
    "offsets": ("I64", np.int64),
    "doc_id": ("I64", np.int64),
    "tokens": ("U32", np.uint32),
    "trained": ("U8", np.uint8),
}
"""Arrays of a shard, in their order in the file: safetensors' name of the dtype, numpy's."""


class Shard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    file: str
    n_docs: int
    n_tokens: int
    sha256: str


class DatasetInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """dataset.json."""

    format_version: int
    tokenizer_sha256: str
    """Of the bytes of the model folder's tokenizer.json."""
    chat_template_sha256: str
    max_token_id: int
    """Largest id in the data: the model's vocabulary must be larger."""
    max_length: int
    """Limit on a document's length, in tokens, that the rows were held to."""
    n_docs: int
    n_tokens: int
    n_trained: int
    system: str | None
    """The system text that all rows share, or None: none has one, or they differ."""
    ledger: Ledger
    shards: list[Shard]
    rows_sha256: str


def shard_name(index: int, count: int) -> str:
    return f"tokens-{index:05d}-of-{count:05d}.safetensors"


def shard_header(n_docs: int, n_tokens: int) -> bytes:
    """A safetensors header for the four arrays, the widest dtype first so that each array is aligned."""
    entries, end = {}, 0
    for name, size in zip(ARRAYS, (n_docs + 1, n_docs, n_tokens, n_tokens), strict=True):
        code, dtype = ARRAYS[name]
        begin, end = end, end + size * np.dtype(dtype).itemsize
        entries[name] = {"dtype": code, "shape": [size], "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""One row of a micro-batch: documents end to end, without padding, kept apart by `cu_seqlens` and positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skytrain.data.dataset import TokenDataset


@dataclass(frozen=True)
class PackedRow:
    """T tokens in n documents, K of the tokens targets."""

    input_ids: np.ndarray
    """int64 [T]"""
    positions: np.ndarray
    """int64 [T], from 0 in each document"""
    cu_seqlens: np.ndarray
    """int32 [n + 1]: document i is tokens cu_seqlens[i] to cu_seqlens[i + 1]"""
    max_seqlen: int
    """Tokens of the longest document."""
    target_index: np.ndarray
    """int64 [K]: tokens whose next token is a target, which is in the same document"""
    labels: np.ndarray
    """int64 [K]: those next tokens"""


def pack_row(dataset: TokenDataset, documents: np.ndarray, multiple: int = 1) -> PackedRow:
    """Packs these documents, in this order; `documents` is int64 [n]. T is filled up to a multiple of `multiple` with a
    document of zeros without targets, which adds 0 to the loss and to every gradient.

    With no documents the row is such a one alone: a rank with nothing to do still runs the model, since the others wait
    for it in every collective.
    """
    parts = [dataset.document(int(index)) for index in documents]
    filling = -sum(len(tokens) for tokens, _ in parts) % multiple if parts else multiple
    if filling:
        parts.append((np.zeros(filling, np.uint32), np.zeros(filling, np.uint8)))
    lengths = np.array([len(tokens) for tokens, _ in parts])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    input_ids = np.concatenate([tokens for tokens, _ in parts]).astype(np.int64)
    trained = np.concatenate([marks for _, marks in parts])
    # The token before a document's first one belongs to another document and must not learn to predict it.
    trained[starts] = 0
    targets = np.flatnonzero(trained)
    return PackedRow(
        input_ids=input_ids,
        positions=np.arange(len(input_ids)) - np.repeat(starts, lengths),
        cu_seqlens=np.concatenate([[0], ends]).astype(np.int32),
        max_seqlen=int(lengths.max()),
        target_index=targets - 1,
        labels=input_ids[targets],
    )

"""One tensor in every memory layout that a caller may bring."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def layouts(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor of x's values): contiguous, transposed, and slices of larger tensors with an offset or a step.

    Memory that is not the tensor's own holds NaN, so that a read at a wrong place shows. x: two dimensions or more.
    """
    yield "contiguous", x.contiguous()
    yield "transposed", x.transpose(0, -1).contiguous().transpose(0, -1)
    for name, place in (
        ("columns of a wider one", (..., slice(3, 3 + x.shape[-1]))),
        ("every second column", (..., slice(1, 1 + 2 * x.shape[-1], 2))),
        ("every second row", (slice(1, 1 + 2 * x.shape[0], 2),)),
    ):
        shape = list(x.shape)
        shape[-1 if place[0] is ... else 0] = 2 * shape[-1 if place[0] is ... else 0] + 7
        larger = torch.full(shape, torch.nan, dtype=x.dtype, device=x.device)
        larger[place] = x
        yield name, larger[place]


def expanded(rows: int, columns: int, dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """(name, [rows, columns] with stride 0): one row repeated, one column repeated, one number repeated."""
    for name, shape in (("one row", (1, columns)), ("one column", (rows, 1)), ("one number", (1, 1))):
        yield name, torch.randn(shape, generator=generator).to(dtype).expand(rows, columns)

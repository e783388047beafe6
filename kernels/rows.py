"""Operands of row operations: how a tensor of any strides is walked row by row."""

from __future__ import annotations

from torch import Tensor

from skytrain.kernels.backend import jit, tl


def as_rows(x: Tensor) -> Tensor:
    """x [..., C] as [A, B, C] with a unit stride in the last dimension, B = x.shape[-2] where x has three dimensions.

    A view wherever the strides allow one (slices, heads of a fused projection, expanded rows). Copied are tensors
    whose last dimension is strided or expanded, and those of four or more dimensions whose outer ones do not merge.
    """
    if x.ndim < 3:
        x = x[:, None] if x.ndim == 2 else x[None, None]
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        x = x.contiguous()
    return x.flatten(0, -3)


@jit
def row_offsets(row, inner, outer_stride, inner_stride):
    """Where rows begin, in elements, int64 [ROWS, 1]; inner is B of [A, B, C]. Tokens times width may pass 2^31."""
    return ((row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride)[:, None]

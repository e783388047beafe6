"""Formulas of our custom operations for torch's FlopCounterMode, which counts 0 for what it does not know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _lengths(cu_seqlens: Tensor) -> Tensor:
    return (cu_seqlens[1:] - cu_seqlens[:-1]).double()


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Two products of half a square a head and document: queries with keys, probabilities with values."""
    return int((2 * 2 * q.shape[1] * q.shape[2] * _lengths(cu_seqlens).square() / 2).sum())


def attention_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out, lse, cu_seqlens: Tensor, *_: Any, **__: Any
):
    """Four products: the gradients of both operands of both. (That a kernel makes the scores anew is no work of the
    model's.)"""
    return 2 * attention(q, k, v, cu_seqlens)


def linear_in_fp32(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * x.numel() * weight.shape[0]


def linear_in_fp32_backward(
    d_out, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool, *_: Any, **__: Any
) -> int:
    return (need_x + need_weight) * 2 * x.numel() * weight.shape[0]


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels, coefficients, rows, logits_dtype, statistics, need_hidden: bool,
    need_weight: bool, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Logits, and the gradients that are made with them."""
    return (1 + need_hidden + need_weight) * 2 * hidden.numel() * weight.shape[0]


def _raw(formula):
    formula._get_raw = True  # given tensors and not their shapes
    return formula


def formulas() -> dict[Any, Any]:
    """For FlopCounterMode(custom_mapping=...)."""
    import skytrain.model  # noqa: F401  (registers the operations)

    ops = torch.ops.skytrain
    return {
        ops.packed_attention: _raw(attention),
        ops.packed_attention_backward: _raw(attention_backward),
        ops.linear_in_fp32: _raw(linear_in_fp32),
        ops.linear_in_fp32_backward: _raw(linear_in_fp32_backward),
        ops.linear_cross_entropy: _raw(linear_cross_entropy),
    }

"""Rotary position embedding of queries and keys, in one launch.

For a token's angles a [R / 2], with c = cos(a) and s = sin(a), each head x [D] turns the pairs (i, i + R / 2):

    y[i] = x[i] c[i] - x[i + R/2] s[i]        y[i + R/2] = x[i + R/2] c[i] + x[i] s[i]        y[R:] = x[R:]

in fp32, rounded once (arXiv 2104.09864; with halves, as Hugging Face's files have their weights, not neighbours).
Saved are the tables alone. The gradient is the transposed map, which is the same with -s: the operation itself, so it
also has all higher derivatives. Not in place: q and k are often views of one projection that backward needs.

A program takes one token and all its heads, so that the tables, fp32 and as long as half a head, are read once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skytrain.kernels import backend
from skytrain.kernels.backend import is_traced, jit, tl


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, backend: str) -> tuple[Tensor, Tensor]:
    """(q, k) rotated, contiguous, in their dtype.

    q: [T, Hq, D], k: [T, Hk, D], fp32, bf16 or fp16, alike but for the heads; read in place where their last dimension
    has stride 1, as heads of a fused projection have. cos, sin: fp32 [T, R / 2] for 0 < R <= D, constants of the loss.
    backend: "triton", "reference" or "liger"; liger's works in place, so it is given copies of q and k, and its
    backward writes over the gradients from above. Raises ValueError where shapes or dtypes do not fit.
    """
    _check(q, k, cos, sin, backend)
    if backend == "liger":
        return _liger(q, k, cos, sin)
    if is_traced(backend):
        return _reference_rotate(q, cos, sin), _reference_rotate(k, cos, sin)
    return _rotate(q, k, cos, sin, False, backend)


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, backend: str) -> None:
    if backend not in ("triton", "reference", "liger"):
        raise ValueError(f"backend must be triton, reference or liger, not {backend}")
    if q.ndim != 3 or k.ndim != 3 or q.shape[::2] != k.shape[::2]:
        raise ValueError(f"q {tuple(q.shape)} and k {tuple(k.shape)} must be [T, heads, D] with one T and one D")
    if q.dtype != k.dtype or q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"q is {q.dtype}, k {k.dtype}: they must be alike, fp32, bf16 or fp16")
    tables = cos.ndim == 2 and cos.shape == sin.shape and cos.shape[0] == q.shape[0]
    if not tables or not 0 < 2 * cos.shape[1] <= q.shape[2]:
        raise ValueError(
            f"cos {tuple(cos.shape)} and sin {tuple(sin.shape)} must be [T, R / 2] for T = {q.shape[0]} tokens "
            f"and 0 < R <= {q.shape[2]}"
        )
    if cos.dtype != torch.float32 or sin.dtype != torch.float32:
        raise ValueError(f"cos is {cos.dtype}, sin {sin.dtype}: they must be fp32")
    if cos.requires_grad or sin.requires_grad:
        raise ValueError("cos and sin are constants of the loss: they must not require a gradient")


def _liger(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    from liger_kernel.ops.rope import LigerRopeFunction

    # It takes [batch, heads, T, D] that is [batch, T, heads, D] in memory, and tables that repeat for both halves.
    heads_first = [x.clone(memory_format=torch.contiguous_format)[None].transpose(1, 2) for x in (q, k)]
    tables = [torch.cat([x, x], dim=-1)[None] for x in (cos, sin)]
    q, k = LigerRopeFunction.apply(*heads_first, *tables)
    return q[0].transpose(0, 1), k[0].transpose(0, 1)


@jit
def _rope_kernel(
    q, k, cos, sin, q_out, k_out, q_token, q_head, k_token, k_head, cos_token, sin_token,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr,
    HEADS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, TRANSPOSE: tl.constexpr,
):  # fmt: skip
    token = tl.cast(tl.program_id(0), tl.int64)
    pair = tl.arange(0, PAIRS)
    c = tl.load(cos + token * cos_token + pair, mask=pair < HALF, other=0.0)[None, :]
    s = tl.load(sin + token * sin_token + pair, mask=pair < HALF, other=0.0)[None, :]
    if TRANSPOSE:
        s = -s
    out = token * Q_HEADS * HEAD_DIM
    _turn(q + token * q_token, q_head, q_out + out, c, s, Q_HEADS, HEAD_DIM, HALF, HEADS, PAIRS, REST)
    out = token * K_HEADS * HEAD_DIM
    _turn(k + token * k_token, k_head, k_out + out, c, s, K_HEADS, HEAD_DIM, HALF, HEADS, PAIRS, REST)


@jit
def _turn(
    x, stride, out, c, s, COUNT: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr,
    HEADS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """One token's heads, `HEADS` at a time; REST: a power of two that covers what is left unrotated, or 0."""
    pair = tl.arange(0, PAIRS)[None, :]
    for start in range(0, COUNT, HEADS):
        head = start + tl.arange(0, HEADS)[:, None]
        mask = (head < COUNT) & (pair < HALF)
        source, target = x + head * stride + pair, out + head * HEAD_DIM + pair
        first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
        tl.store(target, (first * c - second * s).to(out.dtype.element_ty), mask=mask)
        tl.store(target + HALF, (second * c + first * s).to(out.dtype.element_ty), mask=mask)
        if REST > 0:
            column = 2 * HALF + tl.arange(0, REST)[None, :]
            mask = (head < COUNT) & (column < HEAD_DIM)
            rest = tl.load(x + head * stride + column, mask=mask, other=0.0)
            tl.store(out + head * HEAD_DIM + column, rest, mask=mask)


def _triton_rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, transpose: bool) -> tuple[Tensor, Tensor]:
    out = q.new_empty(q.shape), k.new_empty(k.shape)
    q, k, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, cos, sin))
    half, rest = cos.shape[1], q.shape[2] - 2 * cos.shape[1]
    pairs = 1 << (half - 1).bit_length()
    # 512 pairs for 64 threads: 8 a thread, loads of 128 bits in 16-bit types. 40 heads of 128 are 5 such tiles.
    backend.launch(
        _rope_kernel, (q.shape[0],), q, k, cos, sin, *out,
        *q.stride()[:2], *k.stride()[:2], cos.stride(0), sin.stride(0),
        Q_HEADS=q.shape[1], K_HEADS=k.shape[1], HEAD_DIM=q.shape[2], HALF=half, HEADS=max(1, 512 // pairs),
        PAIRS=pairs, REST=1 << (rest - 1).bit_length() if rest else 0, TRANSPOSE=transpose, num_warps=2,
    )  # fmt: skip
    return out


def _reference_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[1]
    first, second, rest = x.split([half, half, x.shape[2] - 2 * half], dim=-1)
    first, second, cos, sin = first.float(), second.float(), cos[:, None], sin[:, None]
    turned = first * cos - second * sin, second * cos + first * sin
    # Last, so that a compiler that must keep the result finds it whole and rounded: skytrain.activations looks for it.
    return torch.cat([*(part.to(x.dtype) for part in turned), rest], dim=-1)


@torch.library.custom_op("skytrain::rope", mutates_args=())
def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, transpose: bool, backend: str) -> tuple[Tensor, Tensor]:
    """(q, k) rotated by the tables' angles, or their gradients: the transposed map."""
    if backend == "triton":
        return _triton_rotate(q, k, cos, sin, transpose)
    sin = -sin if transpose else sin
    return _reference_rotate(q, cos, sin), _reference_rotate(k, cos, sin)


@_rotate.register_fake
def _(q, k, cos, sin, transpose, backend):
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _setup_context(ctx, inputs, output) -> None:
    _q, _k, cos, sin, ctx.transpose, ctx.backend = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx, d_q, d_k):
    return *_rotate(d_q, d_k, *ctx.saved_tensors, not ctx.transpose, ctx.backend), None, None, None, None


_rotate.register_autograd(_backward, setup_context=_setup_context)

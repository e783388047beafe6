"""Fused linear head and cross-entropy: the logits of a step never exist at once.

For hidden states h [K, H], head weight W [V, H], labels y [K] and per-token coefficients c [K] (the loss's scale
times the token's weight):

    z   = h W^T                                 logits, fp32
    L   = sum_k c_k (logsumexp(z_k) - z_k[y_k])
    dz  = c (softmax(z) - onehot(y))            dh = dz W         dW = dz^T h

Rows are taken in even chunks whose logits fit a memory budget; what happens to a chunk of logits between its products
is `cross_entropy.py`'s. The coefficients are known beforehand, so the chunk that makes the logits makes both gradients
too, with their final scale: 6 K H V FLOPs in all, and nothing of size K x V is kept or made twice. dW is summed in fp32
over chunks and stays fp32: rounded to bf16 after each chunk it loses about 1% at 64 chunks.

A row that is not trained costs nothing here: the caller gives target rows alone, or their indices. An upstream gradient
multiplies the gradients in place in backward (a kernel that reads it on the device, and returns at once where it is 1),
which is why a second backward through one result is refused.

The weight's gradient is fp32 whatever the weight's dtype, but autograd casts what reaches a leaf to the leaf's own
dtype. A bf16 weight (under FSDP2's mixed precision, the gathered one) therefore needs `keep_fp32_gradient(weight)`
in the forward of the module that owns it, and all parameters of one FSDP2 group need it alike: FSDP2 refuses a group
whose gradients differ in dtype.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from skytrain.kernels import backend as _backend
from skytrain.kernels.backend import jit, tl
from skytrain.kernels.cross_entropy import cross_entropy_


class Statistics(NamedTuple):
    """Sums over the target rows, fp32 scalars on the device, without scale or weights. They are not differentiated."""

    correct: Tensor
    """Rows whose label has the largest logit."""
    z_squared: Tensor
    """Of the logsumexp: the z-loss term, which shows logits that drift away."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    scale: float | Tensor = 1.0,
    weights: Tensor | None = None,
    rows: Tensor | None = None,
    chunk_bytes: int,
    logits_dtype: torch.dtype = torch.float32,
    reduction: str = "sum",
    statistics: bool = False,
    backend: str = "reference",
) -> Tensor | tuple[Tensor, Statistics]:
    """scale * sum_k weights_k * cross_entropy(hidden_k @ weight.T, labels_k), an fp32 scalar, and what was asked for.

    hidden: [K, H] bf16, fp16 or fp32; weight: [V, H] of the same dtype; labels: int64 [K], each in [0, V).
    scale: a number or a scalar tensor on any device, usually 1 / (targets of the global step); weights: [K] or None
    for ones. Neither is differentiated. rows: the target rows of all three, as int64 indices, or as a bool mask [K],
    which makes the host wait for the device once, and warns of it; None: all. chunk_bytes: memory for the logits of
    one chunk (at least one row). logits_dtype: fp32, or the operands' own, at half the memory and less accuracy.
    backend: "triton", "reference" or "liger" (Liger's own function, which has neither weights nor statistics).

    No target rows give a loss of 0 and gradients of 0. No host synchronisation, but for a mask. Gradients: hidden's in
    its dtype, weight's in fp32 (see the module's docstring); none is computed for an operand that needs none. Raises
    ValueError where shapes or dtypes do not fit and for reductions other than "sum" (the gradients are made with the
    loss, so there is none of each row; use weights), RuntimeError on a second backward through the same result.
    """
    _check(hidden, weight, labels, scale, weights, rows, chunk_bytes, logits_dtype, reduction)
    if rows is not None:
        rows = _indices(rows)
        hidden, labels = hidden.index_select(0, rows), labels.index_select(0, rows)
        weights = None if weights is None else weights.index_select(0, rows)
    if backend == "liger":
        return _liger(hidden, weight, labels, scale, weights, statistics)
    if isinstance(scale, Tensor):
        scale = scale.to(device=hidden.device, dtype=torch.float32)
    else:
        scale = torch.full((), scale, dtype=torch.float32, device=hidden.device)
    coefficients = scale.expand(hidden.shape[0]) if weights is None else scale * weights.float()
    grad = torch.is_grad_enabled()
    loss, _, _, sums = _forward(
        hidden, weight, labels, coefficients, chunk_rows(hidden.shape[0], weight.shape[0], logits_dtype, chunk_bytes),
        logits_dtype, statistics, grad and hidden.requires_grad, grad and weight.requires_grad, backend,
    )  # fmt: skip
    return (loss, Statistics(*sums.unbind())) if statistics else loss


def chunk_rows(rows: int, vocab: int, logits_dtype: torch.dtype, chunk_bytes: int) -> int:
    """Rows of a chunk: as even as possible, since a short last chunk would starve its products.

    Rounded up to 128, a tile of the products, where the budget has room for that.
    """
    most = max(1, chunk_bytes // (logits_dtype.itemsize * vocab))
    even = -(-rows // max(1, -(-rows // most)))
    return max(1, min(most, -(-even // 128) * 128))


def _indices(rows: Tensor) -> Tensor:
    if rows.dtype == torch.int64:
        return rows
    warnings.warn(
        "linear_cross_entropy: the target rows are a mask, so the host waits for the device; give their indices",
        stacklevel=3,
    )
    return rows.nonzero()[:, 0]


def keep_fp32_gradient(parameter: Tensor) -> None:
    """Lets a leaf of lower precision receive and accumulate its gradient in fp32; does nothing for other tensors."""
    if parameter.is_leaf and parameter.requires_grad and parameter.grad_dtype != torch.float32:
        parameter.grad_dtype = torch.float32


def _check(hidden, weight, labels, scale, weights, rows, chunk_bytes, logits_dtype, reduction) -> None:
    if reduction != "sum":
        raise ValueError(f"reduction {reduction!r}: only sum is; a gradient of each row's loss does not exist here")
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be [K, H] and [V, H]")
    if hidden.dtype != weight.dtype or hidden.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"hidden is {hidden.dtype}, weight {weight.dtype}: they must be alike, fp32, bf16 or fp16")
    if labels.dtype != torch.int64 or labels.shape != hidden.shape[:1]:
        raise ValueError(f"labels must be int64 [{hidden.shape[0]}], not {labels.dtype} {tuple(labels.shape)}")
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(f"weights must be [{hidden.shape[0]}], not {tuple(weights.shape)}")
    if any(isinstance(x, Tensor) and x.requires_grad for x in (scale, weights)):
        raise ValueError("scale and weights are constants of the loss: they must not require a gradient")
    indices = rows is None or (rows.dtype == torch.int64 and rows.ndim == 1)
    if not indices and (rows.dtype != torch.bool or rows.shape != labels.shape):
        raise ValueError(f"rows must be int64 [n] or bool [{hidden.shape[0]}], not {rows.dtype} {tuple(rows.shape)}")
    if logits_dtype not in (torch.float32, hidden.dtype):
        raise ValueError(f"logits_dtype is {logits_dtype}: it must be fp32 or that of the operands, {hidden.dtype}")
    if chunk_bytes <= 0:
        raise ValueError(f"chunk_bytes must be positive, not {chunk_bytes}")


@torch.library.custom_op("skytrain::linear_cross_entropy", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    coefficients: Tensor,
    rows: int,
    logits_dtype: torch.dtype,
    statistics: bool,
    need_hidden: bool,
    need_weight: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, dh like hidden, dW fp32 like weight, [correct, z_squared]); a gradient that is not needed is empty."""
    # A GPU multiplies 16-bit operands and keeps the fp32 sums. A CPU's 16-bit products are slow: it widens them first.
    narrow = hidden.device.type != "cpu" and hidden.dtype != torch.float32
    w = weight if narrow else weight.float()
    keep_sums = {"out_dtype": torch.float32} if narrow else {}
    count, vocab = hidden.shape[0], weight.shape[0]
    d_hidden, d_weight = _empty_gradients(hidden, weight, need_hidden, need_weight)
    token_loss = hidden.new_empty(count, dtype=torch.float32)
    # Rows begin at multiples of 16 elements, for 128-bit access to a vocabulary that is a multiple of nothing.
    z_memory = hidden.new_empty((min(rows, count), -(-vocab // 16) * 16), dtype=logits_dtype)[:, :vocab]
    gradient_dtype = w.dtype if need_hidden or need_weight else None
    sums = hidden.new_zeros(2, dtype=torch.float32)
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        h = hidden[part].to(w.dtype)
        z = _product(h, w, z_memory[: len(h)])
        token_loss[part], dz, correct, lse = cross_entropy_(
            z, labels[part], coefficients[part], gradient_dtype=gradient_dtype, statistics=statistics, backend=backend
        )
        if need_hidden:
            d_hidden[part] = dz @ w
        if need_weight:
            torch.addmm(d_weight, dz.t(), h, beta=float(start > 0), out=d_weight, **keep_sums)
        if statistics:
            sums += torch.stack([correct.sum(), lse.square().sum()])
    if count == 0:
        d_weight.zero_()
    # In fp32 the sum alone would be several ulp off.
    loss = token_loss.double().dot(coefficients.double()).float()
    return loss, d_hidden, d_weight, sums


def _product(h: Tensor, w: Tensor, out: Tensor) -> Tensor:
    """h w^T in the dtype of `out`, into `out` where a product of these operands can end there."""
    if out.dtype == h.dtype:
        return torch.mm(h, w.t(), out=out)
    if h.device.type == "cpu":
        return torch.mm(h, w.t()).to(out.dtype)
    return torch.mm(h, w.t(), out=out, out_dtype=out.dtype)


def _empty_gradients(hidden: Tensor, weight: Tensor, need_hidden: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if need_hidden else (0,)),
        weight.new_empty(weight.shape if need_weight else (0,), dtype=torch.float32),
    )


@_forward.register_fake
def _(hidden, weight, labels, coefficients, rows, logits_dtype, statistics, need_hidden, need_weight, backend):
    loss, sums = hidden.new_empty((), dtype=torch.float32), hidden.new_empty(2, dtype=torch.float32)
    return loss, *_empty_gradients(hidden, weight, need_hidden, need_weight), sums


@jit
def multiply_unless_one_kernel(x_ptr, factor_ptr, size, BLOCK: tl.constexpr):
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK
        step = tl.num_programs(0).to(tl.int64) * BLOCK
        while at < size:
            place = at + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + place, mask=place < size, other=0.0).to(tl.float32)
            tl.store(x_ptr + place, (x * factor).to(x_ptr.dtype.element_ty), mask=place < size)
            at += step


@torch.library.custom_op("skytrain::multiply_unless_one_", mutates_args=("gradient",))
def _multiply_unless_one_(gradient: Tensor, factor: Tensor, backend: str) -> None:
    """gradient *= factor, without asking a device for the factor; on a CPU asking is free, and 1 is the usual case.

    gradient: contiguous.
    """
    if backend == "triton":
        # Few programs, each over many blocks: where the factor is 1 a grid over all blocks would take 0.1 ms to end.
        grid = (min(-(-gradient.numel() // 4096), 1024),)
        _backend.launch(multiply_unless_one_kernel, grid, gradient, factor, gradient.numel(), BLOCK=4096, num_warps=8)
    elif factor.device.type != "cpu" or factor.item() != 1.0:
        gradient.mul_(factor)


def _setup_context(ctx, inputs, output) -> None:
    *_, need_hidden, need_weight, ctx.backend = inputs
    ctx.needs = need_hidden, need_weight
    ctx.used = False
    ctx.save_for_backward(*output[1:3])
    ctx.mark_non_differentiable(output[3])
    # Else backward would be given zeros like dh and dW, 3 GB at 152k x 5120, as the gradients of those outputs.
    ctx.set_materialize_grads(False)


def _backward(ctx, d_loss, *_unused):
    if ctx.used:
        raise RuntimeError("linear_cross_entropy: a second backward through the same loss; compute the loss again")
    ctx.used = True
    gradients = []
    for gradient, needed in zip(ctx.saved_tensors, ctx.needs):
        if needed:
            gradient = gradient.detach()
            _multiply_unless_one_(gradient, d_loss, ctx.backend)
        gradients.append(gradient if needed else None)
    return (*gradients, *[None] * 8)


_forward.register_autograd(_backward, setup_context=_setup_context)


def _liger(hidden, weight, labels, scale, weights, statistics) -> Tensor:
    if weights is not None or statistics:
        raise ValueError("liger: its fused head has neither weights of tokens nor statistics; use triton")
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    if hidden.shape[0] == 0:
        return (hidden.sum() + 0.0 * weight[:1].sum()).float()
    return scale * liger_fused_linear_cross_entropy(hidden, weight, labels, reduction="sum").float()

"""Fused linear head and cross-entropy: the logits of a step never exist at once.

For hidden states h [K, H], head weight W [V, H], labels y [K] and per-token coefficients c [K] (the loss's scale
times the token's weight):

    z   = h W^T                                 logits, fp32
    L   = sum_k c_k (logsumexp(z_k) - z_k[y_k])
    dz  = c (softmax(z) - onehot(y))            dh = dz W         dW = dz^T h

Rows are taken in chunks whose fp32 logits fit a memory budget. The coefficients are known beforehand, so the chunk
that makes the logits makes both gradients too, with their final scale: 6 K H V FLOPs in all, and nothing of size
K x V is kept or made twice. dW is summed in fp32 over chunks and stays fp32: rounded to bf16 after each chunk it
loses about 1% at 64 chunks.

Only target rows are given: a row that is not trained costs nothing here. An upstream gradient other than 1 multiplies
the gradients in place in backward, which is why a second backward through one result is refused.

The weight's gradient is fp32 whatever the weight's dtype, but autograd casts what reaches a leaf to the leaf's own
dtype. A bf16 weight (under FSDP2's mixed precision, the gathered one) therefore needs `keep_fp32_gradient(weight)`
in the forward of the module that owns it, and all parameters of one FSDP2 group need it alike: FSDP2 refuses a group
whose gradients differ in dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    scale: float | Tensor = 1.0,
    weights: Tensor | None = None,
    chunk_bytes: int,
) -> Tensor:
    """scale * sum_k weights_k * cross_entropy(hidden_k @ weight.T, labels_k), an fp32 scalar.

    hidden: [K, H] bf16, fp16 or fp32; weight: [V, H] of the same dtype; labels: int64 [K], each in [0, V).
    scale: a number or a scalar tensor on any device, usually 1 / (targets of the global step); weights: [K] or None
    for ones. Neither is differentiated. chunk_bytes: memory for the fp32 logits of one chunk (at least one row).
    K = 0 gives a loss of 0 and gradients of 0. No host synchronisation. Gradients: hidden's in its dtype, weight's in
    fp32 (see the module's docstring); none is computed for an operand that needs none. Raises ValueError where shapes
    or dtypes do not fit, RuntimeError on a second backward through the same result.
    """
    _check(hidden, weight, labels, scale, weights, chunk_bytes)
    if isinstance(scale, Tensor):
        scale = scale.to(device=hidden.device, dtype=torch.float32)
    else:
        scale = torch.full((), scale, dtype=torch.float32, device=hidden.device)
    coefficients = scale.expand(hidden.shape[0]) if weights is None else scale * weights.float()
    grad = torch.is_grad_enabled()
    rows = max(1, chunk_bytes // (4 * weight.shape[0]))
    loss, _, _ = _forward(
        hidden, weight, labels, coefficients, rows, grad and hidden.requires_grad, grad and weight.requires_grad
    )
    return loss


def keep_fp32_gradient(parameter: Tensor) -> None:
    """Lets a leaf of lower precision receive and accumulate its gradient in fp32; does nothing for other tensors."""
    if parameter.is_leaf and parameter.requires_grad and parameter.grad_dtype != torch.float32:
        parameter.grad_dtype = torch.float32


def _check(hidden, weight, labels, scale, weights, chunk_bytes) -> None:
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
    if chunk_bytes <= 0:
        raise ValueError(f"chunk_bytes must be positive, not {chunk_bytes}")


@torch.library.custom_op("skytrain::linear_cross_entropy", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    coefficients: Tensor,
    rows: int,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss fp32 scalar, dh like hidden, dW fp32 like weight); a gradient that is not needed is an empty tensor."""
    # A GPU multiplies 16-bit operands and keeps the fp32 sums. A CPU's 16-bit products are slow: it widens them first.
    narrow = hidden.is_cuda and hidden.dtype != torch.float32
    w = weight if narrow else weight.float()
    keep_sums = {"out_dtype": torch.float32} if narrow else {}
    d_hidden, d_weight = _empty_gradients(hidden, weight, need_hidden, need_weight)
    token_loss = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
    z_memory = hidden.new_empty((min(rows, hidden.shape[0]), weight.shape[0]), dtype=torch.float32)
    dz_memory = torch.empty_like(z_memory, dtype=w.dtype) if narrow else z_memory
    for start in range(0, hidden.shape[0], rows):
        part = slice(start, start + rows)
        h, y = hidden[part].to(w.dtype), labels[part, None]
        # In place throughout: z, then z - max, its exponential, and what is left is dz but for a factor a row.
        z = torch.mm(h, w.t(), out=z_memory[: h.shape[0]], **keep_sums)
        z -= z.amax(1, keepdim=True)
        at_label = z.gather(1, y)
        total = z.exp_().sum(1, keepdim=True)
        token_loss[part, None] = total.log() - at_label
        if not (need_hidden or need_weight):
            continue
        z.scatter_add_(1, y, -total)
        dz = torch.mul(z, coefficients[part, None] / total, out=dz_memory[: h.shape[0]])
        if need_hidden:
            d_hidden[part] = dz @ w
        if need_weight:
            torch.addmm(d_weight, dz.t(), h, beta=float(start > 0), out=d_weight, **keep_sums)
    if hidden.shape[0] == 0:
        d_weight.zero_()
    return token_loss.dot(coefficients), d_hidden, d_weight


def _empty_gradients(hidden: Tensor, weight: Tensor, need_hidden: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if need_hidden else (0,)),
        weight.new_empty(weight.shape if need_weight else (0,), dtype=torch.float32),
    )


@_forward.register_fake
def _(hidden, weight, labels, coefficients, rows, need_hidden, need_weight):
    loss = hidden.new_empty((), dtype=torch.float32)
    return loss, *_empty_gradients(hidden, weight, need_hidden, need_weight)


@torch.library.custom_op("skytrain::multiply_unless_one_", mutates_args=("gradient",))
def _multiply_unless_one_(gradient: Tensor, factor: Tensor) -> None:
    """gradient *= factor, without asking a device for the factor; on a CPU asking is free, and 1 is the usual case."""
    if factor.device.type != "cpu" or factor.item() != 1.0:
        gradient.mul_(factor)


def _setup_context(ctx, inputs, output) -> None:
    ctx.needs = inputs[5:7]
    ctx.used = False
    ctx.save_for_backward(*output[1:])


def _backward(ctx, d_loss, *_unused):
    if ctx.used:
        raise RuntimeError("linear_cross_entropy: a second backward through the same loss; compute the loss again")
    ctx.used = True
    gradients = []
    for gradient, needed in zip(ctx.saved_tensors, ctx.needs):
        if needed:
            gradient = gradient.detach()
            _multiply_unless_one_(gradient, d_loss)
        gradients.append(gradient if needed else None)
    return (*gradients, None, None, None, None, None)


_forward.register_autograd(_backward, setup_context=_setup_context)

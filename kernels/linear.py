"""Linear layer that keeps bf16 fast on CPUs without bf16 instructions.

There, torch multiplies bf16 matrices 10 to 100 times slower than fp32 ones. So the operands are widened to fp32 (which
is exact), multiplied, and the result is rounded once: the precision of a GPU's bf16 product with fp32 accumulation.
What is saved for backward are the 16-bit tensors, as by torch's own linear. Everywhere else this is F.linear.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias. x: [..., in]; weight: [out, in]; bias: [out] or None, all of one dtype; -> [..., out]."""
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16) or _cpu_multiplies_bf16():
        return F.linear(x, weight, bias)
    return _forward(x, weight, bias)


@functools.cache
def _cpu_multiplies_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@torch.library.custom_op("skytrain::linear_in_fp32", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


@_forward.register_fake
def _(x, weight, bias):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("skytrain::linear_in_fp32_backward", mutates_args=())
def _gradients(
    d_out: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dW, db); one that is not needed is an empty tensor."""
    d_x, d_weight, d_bias = _new_gradients(x, weight, need_x, need_weight, need_bias)
    d_out = d_out.reshape(-1, weight.shape[0]).float()
    if need_x:
        d_x.copy_((d_out @ weight.float()).view(x.shape))
    if need_weight:
        d_weight.copy_(d_out.t() @ x.reshape(-1, x.shape[-1]).float())
    if need_bias:
        d_bias.copy_(d_out.sum(0))
    return d_x, d_weight, d_bias


def _new_gradients(
    x: Tensor, weight: Tensor, need_x: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if need_x else (0,)),
        x.new_empty(weight.shape if need_weight else (0,)),
        x.new_empty(weight.shape[:1] if need_bias else (0,)),
    )


@_gradients.register_fake
def _(d_out, x, weight, need_x, need_weight, need_bias):
    return _new_gradients(x, weight, need_x, need_weight, need_bias)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, _bias = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, d_out):
    needs = ctx.needs_input_grad
    gradients = _gradients(d_out, *ctx.saved_tensors, *needs)
    return tuple(gradient if needed else None for gradient, needed in zip(gradients, needs))


_forward.register_autograd(_backward, setup_context=_setup_context)

"""SwiGLU: the product of an MLP's gate, through SiLU, and its up projection.

    s = sigmoid(gate)      out = gate s up      d_gate = d_out up s (1 + gate (1 - s))      d_up = d_out gate s

Saved are gate and up, which the projections made; s is computed again in backward. Each direction is one pass:
three tensors forward, five backward. The kernel computes in fp32 and rounds once; the reference is plain torch's
`F.silu(gate) * up` and its gradient bit for bit, which in 16 bits rounds SiLU first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from skytrain.kernels import backend
from skytrain.kernels.backend import is_traced, jit, tl
from skytrain.kernels.rows import as_rows, row_offsets


def swiglu(gate: Tensor, up: Tensor, *, backend: str) -> Tensor:
    """silu(gate) * up, contiguous, in their dtype.

    gate, up: [..., I] fp32, bf16 or fp16, alike in shape and dtype, of any strides: halves of one [..., 2 I] product
    are read in place (`as_rows` says what is copied first). backend: "triton", "reference" or "liger". liger's
    backward writes the gradients over gate and up, which nobody else may then use. Raises ValueError where shapes or
    dtypes do not fit.
    """
    if backend not in ("triton", "reference", "liger"):
        raise ValueError(f"backend must be triton, reference or liger, not {backend}")
    if gate.shape != up.shape or gate.ndim == 0:
        raise ValueError(f"gate {tuple(gate.shape)} and up {tuple(up.shape)} must be alike, [..., I]")
    if gate.dtype != up.dtype or gate.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"gate is {gate.dtype}, up {up.dtype}: they must be alike, fp32, bf16 or fp16")
    if backend == "liger":
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        return LigerSiLUMulFunction.apply(gate, up)
    if is_traced(backend):
        return F.silu(gate) * up
    return _forward(gate, up, backend)


@jit
def _forward_kernel(
    gate, up, out, columns, inner, gate_outer, gate_inner, up_outer, up_inner, blocks, BLOCK: tl.constexpr
):  # fmt: skip
    program = tl.cast(tl.program_id(0), tl.int64)
    row = program // blocks + tl.arange(0, 1)
    column = ((program % blocks) * BLOCK + tl.arange(0, BLOCK))[None, :]
    mask = column < columns
    g = tl.load(gate + row_offsets(row, inner, gate_outer, gate_inner) + column, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + row_offsets(row, inner, up_outer, up_inner) + column, mask=mask, other=0.0).to(tl.float32)
    result = g / (1 + tl.exp(-g)) * u
    tl.store(out + row[:, None] * columns + column, result.to(out.dtype.element_ty), mask=mask)


@jit
def _backward_kernel(
    d_out, gate, up, d_gate, d_up, columns, inner,
    d_out_outer, d_out_inner, gate_outer, gate_inner, up_outer, up_inner, blocks, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.cast(tl.program_id(0), tl.int64)
    row = program // blocks + tl.arange(0, 1)
    column = ((program % blocks) * BLOCK + tl.arange(0, BLOCK))[None, :]
    mask = column < columns
    d = tl.load(d_out + row_offsets(row, inner, d_out_outer, d_out_inner) + column, mask=mask, other=0.0)
    g = tl.load(gate + row_offsets(row, inner, gate_outer, gate_inner) + column, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + row_offsets(row, inner, up_outer, up_inner) + column, mask=mask, other=0.0).to(tl.float32)
    d, s = d.to(tl.float32), tl.sigmoid(g)
    place = row[:, None] * columns + column
    tl.store(d_gate + place, (d * u * s * (1 + g * (1 - s))).to(d_gate.dtype.element_ty), mask=mask)
    tl.store(d_up + place, (d * g * s).to(d_up.dtype.element_ty), mask=mask)


BLOCK = 4096
"""Columns of a program: 16 a thread, two loads of 128 bits for each operand in 16 bits."""


def _launch(kernel, operands: tuple[Tensor, ...], results: tuple[Tensor, ...]) -> None:
    """One row for all, where every operand is contiguous; else the rows of the shape, by their strides."""
    if all(x.is_contiguous() for x in operands):
        operands = tuple(x.view(1, -1) for x in operands)
    operands = tuple(as_rows(x) for x in operands)
    outer, inner, columns = operands[0].shape
    blocks = -(-columns // BLOCK)
    strides = [stride for x in operands for stride in x.stride()[:2]]
    backend.launch(
        kernel, (outer * inner * blocks,), *operands, *results, columns, inner, *strides, blocks,
        BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip


@torch.library.custom_op("skytrain::swiglu", mutates_args=())
def _forward(gate: Tensor, up: Tensor, backend: str) -> Tensor:
    if backend == "reference":
        return (F.silu(gate) * up).contiguous()
    out = gate.new_empty(gate.shape)
    _launch(_forward_kernel, (gate, up), (out,))
    return out


@torch.library.custom_op("skytrain::swiglu_backward", mutates_args=())
def _gradients(d_out: Tensor, gate: Tensor, up: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """(d_gate, d_up), contiguous."""
    if backend == "reference":
        d_gate = torch.ops.aten.silu_backward(d_out * up, gate)
        return d_gate.contiguous(), (d_out * F.silu(gate)).contiguous()
    d_gate, d_up = gate.new_empty(gate.shape), gate.new_empty(gate.shape)
    _launch(_backward_kernel, (d_out, gate, up), (d_gate, d_up))
    return d_gate, d_up


@_forward.register_fake
def _(gate, up, backend):
    return gate.new_empty(gate.shape)


@_gradients.register_fake
def _(d_out, gate, up, backend):
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


def _setup_context(ctx, inputs, output) -> None:
    gate, up, ctx.backend = inputs
    ctx.save_for_backward(gate, up)


def _backward(ctx, d_out):
    d_gate, d_up = _gradients(d_out, *ctx.saved_tensors, ctx.backend)
    return d_gate if ctx.needs_input_grad[0] else None, d_up if ctx.needs_input_grad[1] else None, None


_forward.register_autograd(_backward, setup_context=_setup_context)

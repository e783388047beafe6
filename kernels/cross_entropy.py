"""Cross-entropy of a chunk of logits, and its gradient in the place of the logits.

For logits z [K, V], labels y [K] and coefficients c [K] (the loss's scale times the token's weight):

    m = max z      s = sum exp(z - m)      lse = m + log s
    loss = log s - (z[y] - m)              dz = (exp(z - m) - s onehot(y)) c / s

The difference z[y] - m is taken before the logarithm is added, so that a large common offset of the logits (fp32 near
1e4 has steps of 1e-3) costs no accuracy.

On a GPU one kernel does it, a program a row: it reads the row once for m and s (online: each lane keeps its own pair
and rescales its sum where its maximum grows, so that a block needs no reduction over the program), reads it again for
dz, and writes that. Rows of a real vocabulary (152,064 fp32 logits are 608 kB) cannot stay on chip, so two reads and
one write are the fewest. The gradient is rounded to the dtype of the product that follows; where that is narrower
than the logits', it lies in the first half of each row's memory: a written byte is always before the bytes still to be
read, except within one block, whose loads a barrier ends before its stores begin.

No autograd here: `linear_cross_entropy` owns the formula of both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skytrain.kernels import backend as _backend
from skytrain.kernels.backend import jit, tl

BLOCK = 4096
"""Logits a program holds at a time: 16 a thread, in four 128-bit loads of fp32."""


def cross_entropy_(
    logits: Tensor,
    labels: Tensor,
    coefficients: Tensor,
    *,
    gradient_dtype: torch.dtype | None,
    statistics: bool,
    backend: str,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(loss, dz, correct, lse) of each row; the logits are gone afterwards.

    logits: [K, V] fp32, bf16 or fp16, the last dimension contiguous; labels: int64 [K]; coefficients: fp32 [K].
    loss: fp32 [K], without the coefficients. dz: [K, V] of `gradient_dtype` (None: not made), in the logits' memory
    where the kernel makes it. correct: fp32 [K], 1 where the label is the first of the largest logits; lse: fp32 [K];
    both empty without `statistics`. A label outside [0, V) is an error on a CPU and a loss of NaN from the kernel,
    which cannot raise.
    """
    run = _triton if backend == "triton" else _reference
    return run(logits, labels, coefficients, gradient_dtype, statistics)


def _reference(logits, labels, coefficients, gradient_dtype, statistics):
    # In place throughout: z, then z - m, its exponential, and what is left is dz but for a factor a row.
    z, y = logits.float(), labels[:, None]
    largest, first = z.max(1, keepdim=True) if statistics else (z.amax(1, keepdim=True), None)
    z -= largest
    at_label = z.gather(1, y)
    total = z.exp_().sum(1, keepdim=True)
    log_total = total.log()
    loss = (log_total - at_label)[:, 0]
    # torch leaves open which of equal maxima it names.
    correct = (first == y)[:, 0].float() if statistics else loss.new_empty(0)
    lse = (log_total + largest)[:, 0] if statistics else loss.new_empty(0)
    if gradient_dtype is None:
        return loss, None, correct, lse
    z.scatter_add_(1, y, -total)
    factor = coefficients[:, None] / total
    dz = z.mul_(factor) if gradient_dtype == z.dtype else (z * factor).to(gradient_dtype)
    return loss, dz, correct, lse


@jit
def cross_entropy_kernel(
    z_ptr, z_stride, dz_ptr, dz_stride, label_ptr, label_stride, coefficient_ptr, coefficient_stride,
    loss_ptr, correct_ptr, lse_ptr, columns,
    GRADIENT: tl.constexpr, STATISTICS: tl.constexpr, NARROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    z_row, dz_row = z_ptr + row * z_stride, dz_ptr + row * dz_stride
    label = tl.load(label_ptr + row * label_stride)
    z_label = tl.load(z_row + label, mask=(label >= 0) & (label < columns), other=float("nan")).to(tl.float32)

    # The lowest finite number, and not -inf, whose difference to a masked logit would be NaN.
    lane_max = tl.full([BLOCK], -3.4028234663852886e38, tl.float32)
    lane_sum = tl.zeros([BLOCK], tl.float32)
    before = tl.zeros([BLOCK], tl.int32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = tl.load(z_row + column, mask=column < columns, other=float("-inf")).to(tl.float32)
        difference = z - lane_max
        smaller = tl.exp(-tl.abs(difference))
        lane_sum = tl.where(difference > 0, lane_sum * smaller + 1, lane_sum + smaller)
        lane_max = tl.maximum(lane_max, z)
        if STATISTICS:
            before = before | ((z > z_label) | ((z == z_label) & (column < label))).to(tl.int32)
    largest = tl.max(lane_max, 0)
    total = tl.sum(lane_sum * tl.exp(lane_max - largest), 0)
    tl.store(loss_ptr + row, tl.log(total) - (z_label - largest))
    if STATISTICS:
        tl.store(correct_ptr + row, 1.0 - tl.max(before, 0).to(tl.float32))
        tl.store(lse_ptr + row, tl.log(total) + largest)

    if GRADIENT:
        factor = tl.load(coefficient_ptr + row * coefficient_stride) / total
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < columns
            z = tl.load(z_row + column, mask=inside, other=float("-inf")).to(tl.float32)
            dz = (tl.exp(z - largest) - tl.where(column == label, total, 0.0)) * factor
            if NARROW:
                tl.debug_barrier()
            tl.store(dz_row + column, dz.to(dz_ptr.dtype.element_ty), mask=inside)


def _triton(logits, labels, coefficients, gradient_dtype, statistics):
    rows, columns = logits.shape
    loss = torch.empty(rows, dtype=torch.float32, device=logits.device)
    correct, lse = torch.empty_like(loss), torch.empty_like(loss)
    narrow = gradient_dtype is not None and gradient_dtype.itemsize < logits.dtype.itemsize
    if gradient_dtype is None:
        dz = None
    elif gradient_dtype.itemsize > logits.dtype.itemsize:
        dz = torch.empty_like(logits, dtype=gradient_dtype)
    else:
        dz = logits.view(gradient_dtype)[:, :columns]
    out = logits if dz is None else dz
    _backend.launch(
        cross_entropy_kernel, (rows,),
        logits, logits.stride(0), out, out.stride(0), labels, labels.stride(0), coefficients, coefficients.stride(0),
        loss, correct, lse, columns,
        GRADIENT=dz is not None, STATISTICS=statistics, NARROW=narrow, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return (loss, dz, correct, lse) if statistics else (loss, dz, loss.new_empty(0), loss.new_empty(0))

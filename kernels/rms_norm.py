"""RMSNorm, alone or behind the addition of a residual: hidden states, and the heads of queries and keys.

For a row t [H] (x, or x + residual rounded to its dtype) and a weight w [H]:

    r = 1 / sqrt(mean(t^2) + eps)         n = t r          y = w round(n)
    g = dy w        dt = r (g - n mean(g n)) + d_total     dw = sum over rows of dy n

Statistics are fp32. n is rounded to the dtype of t before the weight multiplies, as the models were trained; the
other order differs in bf16. Backward treats the rounding as the identity and uses n unrounded. Saved are t (x itself,
or the sum, which the caller holds anyway), w and r (fp32, one number a row).

Programs take several rows, so that the weight is read once a program and not once a row, and dw needs no atomics:
each program adds its rows' products in fp32 registers and writes one partial row, and the partial rows are summed
afterwards. The number of programs follows from the shape alone, so results repeat bit for bit on any device.

A row of up to 16,384 columns (8,192 in fp32) stays on the processor between its sum and its result. A wider one does
not fit and would spill: it is walked in blocks and read twice. In backward the first walk is a kernel of its own, for
mean(g n); the second then needs no sum over the row, and its programs split the columns too. Above 8,192 columns
backward's registers hold the sums for dw but not the row as well: the row is read again, out of the cache.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from skytrain.kernels import backend
from skytrain.kernels.backend import is_traced, jit, tl
from skytrain.kernels.rows import as_rows, row_offsets


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, backend: str) -> Tensor:
    """weight * round(x / sqrt(mean(x^2) + eps)) over the last dimension, in x's dtype and shape, contiguous.

    x: [..., H] fp32, bf16 or fp16, of any strides (as_rows says which are copied first); weight: [H] of the same
    dtype; backend: "triton", "reference" or "liger". The gradient of the weight is summed in fp32 over all rows and
    rounded once, to the weight's dtype. Raises ValueError where shapes or dtypes do not fit.
    """
    _check(x, None, weight, backend)
    if backend == "liger":
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        # Its backward otherwise writes dx over dy, which is wrong for everyone else who uses dy.
        return LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)
    forward = _reference_forward if is_traced(backend) else functools.partial(_forward, backend=backend)
    return forward(x, None, weight, eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, backend: str) -> tuple[Tensor, Tensor]:
    """(rms_norm(total), total) for total = x + residual, rounded to their dtype; one pass over memory.

    x, residual: [..., H], alike in shape and dtype; the rest as in `rms_norm`. x and residual receive one gradient,
    that of total: what comes from above (zero where total is not used) plus what comes through the norm.
    """
    _check(x, residual, weight, backend)
    if backend == "liger":
        total = x + residual
        return rms_norm(total, weight, eps, backend=backend), total
    forward = _reference_forward if is_traced(backend) else functools.partial(_forward, backend=backend)
    return forward(x, residual, weight, eps)[:2]


def _check(x: Tensor, residual: Tensor | None, weight: Tensor, backend: str) -> None:
    if backend not in ("triton", "reference", "liger"):
        raise ValueError(f"backend must be triton, reference or liger, not {backend}")
    if weight.ndim != 1 or x.shape[-1:] != weight.shape or weight.shape[0] == 0:
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(weight.shape)} must be [..., H] and [H]")
    if x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"x is {x.dtype}, weight {weight.dtype}: they must be alike, fp32, bf16 or fp16")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"residual {residual.dtype} {tuple(residual.shape)} must be like x, {x.dtype} {tuple(x.shape)}"
        )


@jit
def _forward_kernel(
    x, residual, weight, y, total, rstd, rows, inner, x_outer, x_inner, residual_outer, residual_inner, eps, steps,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)[None, :]
    inside = column < COLUMNS
    if BLOCK >= COLUMNS:
        w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    for step in range(steps):
        row = (tl.program_id(0) + step * tl.num_programs(0)) * ROWS + tl.arange(0, ROWS)
        exists = (row < rows)[:, None]
        out = row.to(tl.int64)[:, None] * COLUMNS
        x_row = x + row_offsets(row, inner, x_outer, x_inner)
        residual_row = x_row
        if residual is not None:
            residual_row = residual + row_offsets(row, inner, residual_outer, residual_inner)
        if BLOCK >= COLUMNS:
            t = _load_total(x_row, residual_row, column, exists & inside, residual is not None)
            r = tl.rsqrt(tl.sum(t * t, 1) / COLUMNS + eps)
            if residual is not None:
                tl.store(total + out + column, t.to(total.dtype.element_ty), mask=exists & inside)
            n = (t * r[:, None]).to(y.dtype.element_ty).to(tl.float32)
            tl.store(y + out + column, (n * w).to(y.dtype.element_ty), mask=exists & inside)
        else:
            squares = tl.zeros([ROWS, BLOCK], tl.float32)
            for start in range(0, COLUMNS, BLOCK):
                part = exists & (start + column < COLUMNS)
                t = _load_total(x_row, residual_row, start + column, part, residual is not None)
                squares += t * t
            r = tl.rsqrt(tl.sum(squares, 1) / COLUMNS + eps)
            for start in range(0, COLUMNS, BLOCK):
                part = exists & (start + column < COLUMNS)
                # The sum is made again: reading back what this program wrote would need a barrier.
                t = _load_total(x_row, residual_row, start + column, part, residual is not None)
                if residual is not None:
                    tl.store(total + out + start + column, t.to(total.dtype.element_ty), mask=part)
                w = tl.load(weight + start + column, mask=start + column < COLUMNS, other=0.0).to(tl.float32)
                n = (t * r[:, None]).to(y.dtype.element_ty).to(tl.float32)
                tl.store(y + out + start + column, (n * w).to(y.dtype.element_ty), mask=part)
        tl.store(rstd + row, r, mask=row < rows)


@jit
def _load_total(x_row, residual_row, column, mask, ADD: tl.constexpr):
    """x, or x + residual rounded to its dtype, as fp32."""
    t = tl.load(x_row + column, mask=mask, other=0.0)
    if ADD:
        t = (t.to(tl.float32) + tl.load(residual_row + column, mask=mask, other=0.0).to(tl.float32)).to(t.dtype)
    return t.to(tl.float32)


@jit
def _slope_kernel(
    d_y, x, weight, rstd, slope, rows, inner, d_y_outer, d_y_inner, x_outer, x_inner,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """slope = mean(g n) of each row, fp32 [rows], for rows that are walked in blocks."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = (row < rows)[:, None]
    x_row = x + row_offsets(row, inner, x_outer, x_inner)
    d_y_row = d_y + row_offsets(row, inner, d_y_outer, d_y_inner)
    products = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = column < COLUMNS
        w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        t = tl.load(x_row + column, mask=exists & inside, other=0.0).to(tl.float32)
        d = tl.load(d_y_row + column, mask=exists & inside, other=0.0).to(tl.float32)
        products += d * w * t
    r = tl.load(rstd + row, mask=row < rows, other=0.0)
    tl.store(slope + row, tl.sum(products, 1) * r / COLUMNS, mask=row < rows)


@jit
def _backward_kernel(
    d_y, d_total, x, weight, rstd, slope, d_x, partial,
    rows, inner, d_y_outer, d_y_inner, d_total_outer, d_total_inner, x_outer, x_inner, steps,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, READ_AGAIN: tl.constexpr,
):  # fmt: skip
    """dx, and the program's sum of dy n into its row of `partial` [programs, COLUMNS]; without slope, a block holds
    the whole row."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = column < COLUMNS
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for step in tl.range(steps, num_stages=STAGES):
        row = (tl.program_id(0) + step * tl.num_programs(0)) * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & inside
        x_row = x + row_offsets(row, inner, x_outer, x_inner)
        d_y_row = d_y + row_offsets(row, inner, d_y_outer, d_y_inner)
        r = tl.load(rstd + row, mask=row < rows, other=0.0)[:, None]
        n = tl.load(x_row + column, mask=mask, other=0.0).to(tl.float32) * r
        d = tl.load(d_y_row + column, mask=mask, other=0.0).to(tl.float32)
        if slope is None:
            mean = (tl.sum(d * w * n, 1) / COLUMNS)[:, None]
        else:
            mean = tl.load(slope + row, mask=row < rows, other=0.0)[:, None]
        if READ_AGAIN:
            # The barrier keeps the compiler from merging these loads with those above.
            tl.debug_barrier()
            w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
            n = tl.load(x_row + column, mask=mask, other=0.0).to(tl.float32) * r
            d = tl.load(d_y_row + column, mask=mask, other=0.0).to(tl.float32)
        gradient = (d * w - n * mean) * r
        if d_total is not None:
            above = d_total + row_offsets(row, inner, d_total_outer, d_total_inner)
            gradient += tl.load(above + column, mask=mask, other=0.0).to(tl.float32)
        place = d_x + row.to(tl.int64)[:, None] * COLUMNS + column
        tl.store(place, gradient.to(d_x.dtype.element_ty), mask=mask)
        if partial is not None:
            sums += d * n
    if partial is not None:
        place = partial + tl.cast(tl.program_id(0), tl.int64) * COLUMNS + column
        tl.store(place, tl.sum(sums, 0)[None, :], mask=inside)


ROWS_PER_PROGRAM = 16
"""Rows over which the read of the weight, and in backward the partial row written and read in fp32, are spread: 3% of
the bytes forward and 10% backward in bf16."""
FORWARD_PROGRAMS = 264
"""Fewer rows a program where there would be fewer programs than this: two for each of an H100's 132 processors."""
BACKWARD_PROGRAMS = 528
"""No more programs than this, to keep partial rows few."""


def _tile(columns: int, itemsize: int) -> tuple[int, int]:
    """(rows, columns) of the tile that a program holds at a time."""
    block = 1 << (columns - 1).bit_length()
    if block * itemsize > 32768:
        return 8, 1024
    return max(1, 4096 // block), block


def _triton_forward(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    y, total, rstd = _new_outputs(x, residual)
    columns, rows = weight.shape[0], rstd.shape[0]
    x = as_rows(x)
    residual = None if residual is None else as_rows(residual)
    tile_rows, block = _tile(columns, x.element_size())
    tiles = -(-rows // tile_rows)
    programs = min(tiles, max(-(-rows // ROWS_PER_PROGRAM), FORWARD_PROGRAMS))
    backend.launch(
        _forward_kernel, (programs,), x, residual, weight.contiguous(), y, None if residual is None else total, rstd,
        rows, x.shape[1], *x.stride()[:2], *(x if residual is None else residual).stride()[:2], eps,
        -(-tiles // max(programs, 1)),
        COLUMNS=columns, ROWS=tile_rows, BLOCK=block, num_warps=tile_rows * block // 1024,
    )  # fmt: skip
    return y, total, rstd


def _triton_backward(
    d_y: Tensor, d_total: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor, need_weight: bool
) -> tuple[Tensor, Tensor]:
    columns, rows = weight.shape[0], rstd.shape[0]
    d_x = x.new_empty(x.shape)
    d_y, x, weight = as_rows(d_y), as_rows(x), weight.contiguous()
    d_total = None if d_total is None else as_rows(d_total)
    tile_rows, block = _tile(columns, x.element_size())
    shape = {"COLUMNS": columns, "ROWS": tile_rows, "BLOCK": block, "num_warps": tile_rows * block // 512}
    tiles = -(-rows // tile_rows)
    slope = None
    if block < columns:
        slope = torch.empty_like(rstd)
        backend.launch(
            _slope_kernel, (tiles,), d_y, x, weight, rstd, slope,
            rows, x.shape[1], *d_y.stride()[:2], *x.stride()[:2], **shape,
        )  # fmt: skip
    # The next tile is on its way in shared memory, except where registers leave no room to take it over from there.
    full = tile_rows * block > 8192
    if full:
        shape["num_warps"] = 16
    programs = min(-(-rows // max(ROWS_PER_PROGRAM, tile_rows)), BACKWARD_PROGRAMS)
    partial = x.new_empty((programs, columns), dtype=torch.float32) if need_weight else None
    backend.launch(
        _backward_kernel, (programs, -(-columns // block)), d_y, d_total, x, weight, rstd, slope, d_x, partial,
        rows, x.shape[1], *d_y.stride()[:2], *(d_y if d_total is None else d_total).stride()[:2], *x.stride()[:2],
        -(-tiles // max(programs, 1)), STAGES=1 if full else 2, READ_AGAIN=full, **shape,
    )  # fmt: skip
    return d_x, partial.sum(0).to(weight.dtype) if need_weight else weight.new_empty(0)


def _reference_forward(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    total = x if residual is None else x + residual
    wide = total.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = weight * (wide * rstd).to(x.dtype)
    return y.contiguous(), x.new_empty(0) if residual is None else total.contiguous(), rstd.flatten()


def _reference_backward(
    d_y: Tensor, d_total: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor, need_weight: bool
) -> tuple[Tensor, Tensor]:
    r = rstd.view(*x.shape[:-1], 1)
    n, d = x.float() * r, d_y.float()
    g = d * weight.float()
    d_x = (g - n * (g * n).mean(-1, keepdim=True)) * r
    if d_total is not None:
        d_x += d_total
    d_weight = (d * n).view(-1, weight.shape[0]).sum(0).to(weight.dtype) if need_weight else weight.new_empty(0)
    return d_x.to(x.dtype).contiguous(), d_weight


@torch.library.custom_op("skytrain::rms_norm", mutates_args=())
def _forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, total, rstd fp32 [rows]); total is an empty tensor where there is no residual."""
    return (_triton_forward if backend == "triton" else _reference_forward)(x, residual, weight, eps)


@torch.library.custom_op("skytrain::rms_norm_backward", mutates_args=())
def _gradients(
    d_y: Tensor, d_total: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor, need_weight: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """(dx, dw) for x the row that was normalised; dw is an empty tensor where it is not needed."""
    return (_triton_backward if backend == "triton" else _reference_backward)(
        d_y, d_total, x, weight, rstd, need_weight
    )


def _new_outputs(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        x.new_empty((0,) if residual is None else x.shape),
        x.new_empty(math.prod(x.shape[:-1]), dtype=torch.float32),
    )


@_forward.register_fake
def _(x, residual, weight, eps, backend):
    return _new_outputs(x, residual)


@_gradients.register_fake
def _(d_y, d_total, x, weight, rstd, need_weight, backend):
    return x.new_empty(x.shape), weight.new_empty(weight.shape if need_weight else (0,))


def _setup_context(ctx, inputs, output) -> None:
    x, residual, weight, _eps, ctx.backend = inputs
    ctx.added = residual is not None
    # An output that nobody used then has the gradient None, instead of zeros that would have to be read.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if residual is None else output[1], weight, output[2])


def _backward(ctx, d_y, d_total, _d_rstd):
    x, weight, rstd = ctx.saved_tensors
    # Without a residual, total is an empty tensor, and so is the gradient of whoever summed it.
    d_total = d_total if ctx.added else None
    if d_y is None:
        return d_total, d_total, None, None, None
    need_x, need_residual, need_weight = ctx.needs_input_grad[:3]
    d_x, d_weight = _gradients(d_y, d_total, x, weight, rstd, need_weight, ctx.backend)
    return d_x if need_x else None, d_x if need_residual else None, d_weight if need_weight else None, None, None


_forward.register_autograd(_backward, setup_context=_setup_context)

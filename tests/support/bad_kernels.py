"""Kernels, each with one fault, that the checks of compiled kernels must find; and one without."""

from skytrain.kernels.backend import jit, tl


@jit
def copy(x, y, n, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + place, tl.load(x + place, mask=place < n, other=0.0), mask=place < n)


@jit
def copy_by_stride(x, y, n, stride, BLOCK: tl.constexpr):
    """Scalar accesses, unless the stride is known to be 1."""
    place = (tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)) * stride
    tl.store(y + place, tl.load(x + place, mask=place < n, other=0.0), mask=place < n)


@jit
def in_fp64(x, y, n, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place, mask=place < n, other=0.0)
    tl.store(y + place, tl.exp2(value.to(tl.float64) + 1).to(tl.float32), mask=place < n)


@jit
def spilling(x, y, rows, BLOCK: tl.constexpr):
    """Keeps two rows of BLOCK fp32 numbers in the registers of too few threads."""
    column = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    largest = tl.zeros((BLOCK,), tl.float32)
    for row in range(rows):
        value = tl.load(x + row * BLOCK + column)
        total += value
        largest = tl.maximum(largest, value)
    tl.store(y + column, total * tl.sum(largest) + largest)


@jit
def product(x, y, z, width, SIZE: tl.constexpr):
    """One tile of x @ y^T; its stages of two 16-bit tiles each are in shared memory."""
    row, column = tl.arange(0, SIZE), tl.arange(0, 64)
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for start in range(0, width, 64):
        place = row[:, None] * width + start + column[None, :]
        total = tl.dot(tl.load(x + place), tl.trans(tl.load(y + place)), total)
    tl.store(z + row[:, None] * SIZE + row[None, :], total)


@jit
def small_dot(x, y):
    """Tiles too small for the warp-group product of sm_90."""
    row = tl.arange(0, 16)
    tile = tl.load(x + row[:, None] * 16 + row[None, :])
    tl.store(y + row[:, None] * 16 + row[None, :], tl.dot(tile, tile))

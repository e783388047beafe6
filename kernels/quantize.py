"""Compact numbers for the optimizer: fp32 weights as bf16 and a remainder, and moments in 8-bit codes.

Split weights. A fp32 number is a bf16 (what the model computes with) and the int16 difference of the two bit
patterns, with ties rounded away from zero: the difference then always fits, and joining gives the same fp32 back.
(Rounding ties to even, 65,537 numbers share each even bf16, one more than an int16 can tell apart.) NaN becomes the
canonical NaN, since the nearest bf16 pattern of some NaNs is infinity's.

Moment codes. A row is cut into groups of 128 columns; the last one may be shorter. A group has one fp32 scale, its
largest absolute value, and each element is a power of its code, relative to it:

    first moment, int8:    sign (|code| / 127)^3
    second moment, uint8:  (code / 255)^8

Near the top codes are fine, where a group of one scale needs them, and they reach down to 2^-18 and 2^-64 of it where
scales differ. Rounding to nearest stalls where codes lie far apart: a decay by beta moves an element by less than half
the way to the next code, and it keeps its code for ever. So second moments (a decay of 0.1% a step) are rounded by a
dither that runs evenly through [0, 1) with the steps, frac(A * element + B * step + C * tensor), against the element's
place between its two neighbours: without bias, like random rounding, but with less noise, with no generator or state,
the same whenever the step is the same, and different in each tensor. (Dithering the root instead would be biased: the
power is convex, and 1e-4 in each step adds up to 10% under that decay.) They are never rounded to 0, since the update
divides by them: what was positive gets code 1 at least. First moments decay by 10%, so that only codes below 16 stall
and are dithered, by their roots; below 2 they are 0, since a lone code 1 beside an exact second moment would be a leap.

Measured: drift of the weights from exact Adam (norm of the difference / norm of the distance moved). Rate constant, 32
to 256 groups of 128 columns; an element's gradients are normal, in the runs of 300 steps and more with a mean of 0.3
deviations, times a scale of its own that is log-normal with sigma 0, 1 or 2. `shrink`: half the elements' gradients
fall to a tenth at step 300 of 1500. All emulated, with first moments rounded to nearest.

                                    beta2 0.999, 50 steps   300 steps      beta2 0.95, 300   shrink, 0.999
    first, second moment            sigma 0    1      2      1      2         1      2         1      2
    linear, linear                                          40%    84%       38%    84%
    square, fourth, nearest                                  4.7%  22%        1.9%  16%       27%    61%
    float 4+3, float 5+3, nearest                            5.4%   5.6%      2.1%   2.8%     43%    45%
    float 4+3, float 5+3, dither      5.1%   5.2%   5.8%     5.3%   6.1%      2.2%   3.4%      6.1%   6.5%
    cube, sixth, dither               1.7%   3.6%  11.8%     4.0%  10.1%      1.5%   5.4%      5.1%  10.8%
    fourth, eighth, dither            2.1%   3.6%   8.3%     4.1%   8.1%      1.5%   3.7%      5.2%   8.5%
    cube, eighth, dither              1.8%   3.6%  10.7%     4.0%   8.8%      1.5%   5.6%      5.2%   8.6%

This file beside the floats (dithered), on the same gradients without a mean (tests/kernels/test_adamw.py, `drift`):

    sigma                     50 steps: 0    1      2      200 steps: 0    1      2
    float 4+3, float 5+3            5.2%   5.2%   5.9%              8.1%   8.0%   8.6%
    this file                       1.8%   3.7%  13.5%              3.0%   5.9%  18.2%

With all first moments rounded to nearest the last is 37%, and an element of 5e-7 of its group's largest moves 7 times
as far as exact Adam's farthest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from skytrain.kernels.backend import jit, tl

GROUP = 128
SMALLEST = 1e-37
"""What a group's largest value counts as at least: smaller numbers have no inverse in fp32."""
FIRST, SECOND = 127, 255
"""The largest codes."""
DITHERED, LEAST = 16.0, 2.0
"""Roots of first moments from which on they are rounded to nearest, and below which they are 0."""
CUBE_ROOT, TINY = 709_958_130, 2.0**-40
"""Bits(x) / 3 + CUBE_ROOT are nearly those of the cube root of x >= TINY, whose code is 0."""
MASK = (1 << 20) - 1
"""The dither counts in 2^-20."""
PER_ELEMENT, PER_STEP, PER_TENSOR = 791_559, 648_055, 434_335
"""Steps of the dither: 2^20 times the inverse plastic number, the inverse golden ratio and sqrt(2) - 1, made odd."""


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """(bf16, int16) of an fp32 tensor, each of its shape; `join` gives back every bit, but for the payload of NaNs."""
    bits = x.contiguous().view(torch.int32)
    bits = torch.where(x.isnan(), (bits & -0x80000000) | 0x7FC00000, bits)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)


def join(weight: Tensor, remainder: Tensor) -> Tensor:
    """The fp32 tensor of `split`'s pair: weight bf16, remainder int16, of one shape."""
    high = weight.contiguous().view(torch.int16).to(torch.int32) << 16
    return (high + remainder.to(torch.int32)).view(torch.float32)


def scales_shape(shape: torch.Size) -> tuple[int, ...]:
    """The shape of the scales of codes of `shape`: a scale for each group of each row."""
    return (*shape[:-1], -(-shape[-1] // GROUP))


def dither(shape: torch.Size, tensor: int, steps: Tensor) -> Tensor:
    """int32 of `shape` in [0, 2^20): the rounding offsets of the tensor numbered `tensor` at step `steps` (scalar)."""
    element = torch.arange(shape.numel(), device=steps.device) & MASK
    step = steps.to(torch.int64) & MASK
    return ((element * PER_ELEMENT + step * PER_STEP + tensor * PER_TENSOR) & MASK).to(torch.int32).view(shape)


def quantize_first(m: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """(codes int8 of m's shape, scales fp32 of `scales_shape`) of first moments m, fp32 [..., columns].

    offsets: int32 in [0, 2^20) of m's shape, `dither`'s; they count for codes below DITHERED alone.
    """
    x, scales = _relative(m)
    root = _cube_root(x) * FIRST
    # The other way round than the second moment's, so that both are rounded up together.
    dithered = (MASK - offsets).float() * (1 / (MASK + 1))
    code = (root + torch.where(root < DITHERED, dithered, 0.5)).to(torch.int32)
    code = torch.where(root < LEAST, 0, code).clamp_max(FIRST)
    return torch.where(m < 0, -code, code).to(torch.int8), scales


def _cube_root(x: Tensor) -> Tensor:
    """Of fp32 x in [0, 1], right to 1e-4 of itself from TINY on: the bits' guess and one step of Halley's method."""
    x = x.clamp_min(TINY)
    y = (x.view(torch.int32) // 3 + CUBE_ROOT).view(torch.float32)
    cube = y * y * y
    return y * (cube + 2.0 * x) / (2.0 * cube + x)


def quantize_second(v: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """(codes uint8 of v's shape, scales fp32 of `scales_shape`) of second moments v, fp32 [..., columns], v >= 0.

    offsets: int32 in [0, 2^20) of v's shape, `dither`'s; 2^19 rounds to nearest.
    """
    x, scales = _relative(v)
    # The nearest fp32 three times, as in the kernels; torch's own fp32 root is off by an ulp on CPUs.
    root = x
    for _ in range(3):
        root = root.double().sqrt().float()
    below = (root * SECOND).to(torch.int32).clamp_max(SECOND - 1)
    low, high = _eighth(below), _eighth(below + 1)
    code = below + (x - low > (high - low) * (offsets.float() * (1 / (MASK + 1)))).to(torch.int32)
    return torch.where(v > 0, code.clamp_min(1), 0).to(torch.uint8), scales


def _eighth(code: Tensor) -> Tensor:
    t = code.float() * (1 / SECOND)
    t = t * t
    t = t * t
    return t * t


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """The fp32 moments of codes int8 (first) or uint8 (second) [..., columns] and their scales."""
    scale = _per_element(scales, codes.shape)
    if codes.dtype == torch.uint8:
        return _eighth(codes) * scale
    t = codes.float() * (1 / FIRST)
    return t * t * t * scale


def _relative(x: Tensor) -> tuple[Tensor, Tensor]:
    """(|x| / its group's largest, that)."""
    shape = scales_shape(x.shape)
    padded = F.pad(x.abs(), (0, shape[-1] * GROUP - x.shape[-1]))
    largest = padded.view(*shape, GROUP).amax(-1).clamp_min(SMALLEST)
    return x.abs() * _per_element(largest.reciprocal(), x.shape), largest


def _per_element(x: Tensor, shape: torch.Size) -> Tensor:
    return x.repeat_interleave(GROUP, -1)[..., : shape[-1]]


# The same in Triton, for tiles [groups, GROUP] with scales [groups].

_CODES = (SMALLEST, FIRST, SECOND, 1 / FIRST, 1 / SECOND, DITHERED, LEAST, CUBE_ROOT, TINY)
_SMALLEST, _FIRST, _SECOND, _PER_FIRST, _PER_SECOND, _DITHERED, _LEAST, _CUBE_ROOT, _TINY = (
    _CODES if tl is None else map(tl.constexpr, _CODES)
)
_DITHER = (MASK, 1 / (MASK + 1), PER_ELEMENT, PER_STEP, PER_TENSOR)
_MASK, _PER_OFFSET, _PER_ELEMENT, _PER_STEP, _PER_TENSOR = _DITHER if tl is None else map(tl.constexpr, _DITHER)


@jit
def join_tile(high, low):
    """fp32 of the 16 bits of a bf16, read as int16, and the int16 remainder."""
    return ((high.to(tl.int32) << 16) + low.to(tl.int32)).to(tl.float32, bitcast=True)


@jit
def split_tile(x):
    """(bf16's bits as int16, remainder int16): built as integers, since the interpreter truncates bf16 stores."""
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(x != x, (bits & -0x80000000) | 0x7FC00000, bits)
    high = (bits + 0x8000) >> 16
    return high.to(tl.int16), (bits - (high << 16)).to(tl.int16)


@jit
def dither_tile(place, first, step, tensor):
    """int32 in [0, 2^20) of elements first + place; place: int32 below 2048 or int64, the rest int64 scalars."""
    start = (first & _MASK) * _PER_ELEMENT + (step & _MASK) * _PER_STEP + tensor * _PER_TENSOR
    return (((place & _MASK) * _PER_ELEMENT + tl.cast(start & _MASK, tl.int32)) & _MASK).to(tl.int32)


@jit
def decode_first_tile(codes, scales):
    t = codes.to(tl.float32) * _PER_FIRST
    return t * t * t * scales[:, None]


@jit
def decode_second_tile(codes, scales):
    return eighth_tile(codes.to(tl.float32)) * scales[:, None]


@jit
def eighth_tile(code):
    t = code * _PER_SECOND
    t = t * t
    t = t * t
    return t * t


@jit
def encode_first_tile(m, offsets):
    x, scales = relative_tile(m)
    x = tl.maximum(x, _TINY)
    y = (x.to(tl.int32, bitcast=True) // 3 + _CUBE_ROOT).to(tl.float32, bitcast=True)
    cube = y * y * y
    root = tl.div_rn(y * (cube + 2.0 * x), 2.0 * cube + x) * _FIRST
    dithered = (offsets ^ _MASK).to(tl.float32) * _PER_OFFSET
    code = (root + tl.where(root < _DITHERED, dithered, 0.5)).to(tl.int32)
    code = tl.where(root < _LEAST, 0, tl.minimum(code, _FIRST))
    return tl.where(m < 0, -code, code).to(tl.int8), scales


@jit
def encode_second_tile(v, offsets):
    x, scales = relative_tile(v)
    root = tl.sqrt(tl.sqrt(tl.sqrt(x)))
    below = tl.minimum((root * _SECOND).to(tl.int32), _SECOND - 1).to(tl.float32)
    low = eighth_tile(below)
    high = eighth_tile(below + 1.0)
    up = x - low > (high - low) * (offsets.to(tl.float32) * _PER_OFFSET)
    code = tl.maximum(below + tl.where(up, 1.0, 0.0), 1.0)
    return tl.where(v > 0, code, 0.0).to(tl.uint8), scales


@jit
def relative_tile(x):
    """(|x| / its group's largest, that)."""
    x = tl.abs(x)
    largest = tl.maximum(tl.max(x, 1), _SMALLEST)
    inverse = tl.div_rn(tl.zeros_like(largest) + 1.0, largest)
    return x * inverse[:, None], largest

"""Compact numbers for the optimizer: fp32 weights as bf16 and a remainder, and moments in 8-bit codes.

Split weights. A fp32 number is a bf16 (what the model computes with) and the int16 difference of the two bit
patterns, with ties rounded away from zero: the difference then always fits, and joining gives the same fp32 back.
(Rounding ties to even, 65,537 numbers share each even bf16, one more than an int16 can tell apart.) NaN becomes the
canonical NaN, since the nearest bf16 pattern of some NaNs is infinity's.

Moment codes. A row is cut into groups of 128 columns; the last one may be shorter. A group has one fp32 scale, its
largest absolute value / 1.875, and each element is a small float relative to it, with subnormal numbers:

    first moment, int8:    sign, 4 bits of exponent, 3 of mantissa: 0, or 2^-17 to 1.875 times the scale
    second moment, uint8:  5 bits of exponent, 3 of mantissa:       0, or 2^-33 to 1.875 times the scale

Multiplied by a power of two that makes their exponents fp32's own, coding is a shift of the bit pattern, and exact to
undo. First moments are rounded to nearest. Second moments must not be rounded to 0 (the update divides by them: what
was positive gets code 1 at least), nor to nearest: codes lie 6 to 12% apart, a decay by beta2 = 0.999 changes an
element by 0.1%, and one whose gradients shrink would keep its code for ever. They are rounded by a dither that runs
evenly through [0, 1) with the steps, frac(A * element + B * step + C * tensor): without bias, like random rounding, but
with less noise, with no generator or state, the same whenever the step is the same, and different in each tensor.

Measured: drift of the weights from exact Adam (norm of the difference / norm of the distance moved). Rate constant, 32
groups of 128 columns; an element's gradients are normal, with a mean of 0.3 deviations, times a scale of its own that
is log-normal with sigma 1 or 2. `shrink`: half the elements' gradients fall to a tenth at step 300 of 1500.

                                            beta2 0.999, 300 steps   beta2 0.95, 300   shrink, 0.999
    first, second moment                       sigma 1   sigma 2         1      2         1      2
    linear, linear                              40%       84%           38%    84%
    linear, linear in the root                  17%       68%           12%    66%
    softsign, linear in the root                14%       61%            8.5%  59%
    quadratic, fourth power                      4.7%     22%            1.9%  16%       27%    61%
    float 4+3, float 4+4 bits, nearest           3.2%     39%            1.9%  38%       26%    45%
    float 4+3, float 5+3, nearest                5.4%      5.6%          2.1%   2.8%     43%    45%
    float 4+3, float 5+3, random rounding        6.3%      6.8%          2.5%   3.2%      7.4%   7.1%
    float 4+3, float 5+3, dither: this file      5.5%      5.8%          2.2%   2.9%      6.2%   6.2%

After 2000 steps it is 6.1% (nearest 8.8%). Gradients of 1e-6 and 1e-9 drift by 5.4% and 2.3%; with fp16 scales, which
underflow, by 2000% and 85%. Groups of 32 to 512 columns drift alike, within 0.5 points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from skytrain.kernels.backend import jit, tl

GROUP = 128
TOP = 1.875
"""The largest code's value."""
SMALLEST = 1e-37
"""What a group's largest value counts as at least."""
FIRST, SECOND = 2.0**-112, 2.0**-96
"""What makes the exponents of the first and the second moment those of fp32, with codes 1 to 7 subnormal there."""
MASK = (1 << 20) - 1
"""The dither counts in 2^-20, the last place of an fp32 mantissa cut to 3 bits."""
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


def quantize_first(m: Tensor) -> tuple[Tensor, Tensor]:
    """(codes int8 of m's shape, scales fp32 of `scales_shape`) of first moments m, fp32 [..., columns]."""
    relative, scales = _relative(m, FIRST)
    code = ((relative.view(torch.int32) + 0x80000) >> 20).clamp_max(127)
    return torch.where(m < 0, -code, code).to(torch.int8), scales


def quantize_second(v: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """(codes uint8 of v's shape, scales fp32 of `scales_shape`) of second moments v, fp32 [..., columns], v >= 0.

    offsets: int32 in [0, 2^20) of v's shape, `dither`'s; 2^19 rounds to nearest.
    """
    relative, scales = _relative(v, SECOND)
    code = ((relative.view(torch.int32) + offsets) >> 20).clamp(1, 255)
    return torch.where(v > 0, code, 0).to(torch.uint8), scales


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """The fp32 moments of codes int8 (first) or uint8 (second) [..., columns] and their scales."""
    code = codes.to(torch.int32)
    size = (code.abs() << 20).view(torch.float32) * (1 / (FIRST if codes.dtype == torch.int8 else SECOND))
    return torch.where(code < 0, -size, size) * _per_element(scales, codes.shape)


def _relative(x: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    """(|x| / its group's scale * unit, scales)."""
    shape = scales_shape(x.shape)
    padded = F.pad(x.abs(), (0, shape[-1] * GROUP - x.shape[-1]))
    largest = padded.view(*shape, GROUP).amax(-1).clamp_min(SMALLEST)
    # Smaller numbers have no inverse in fp32. A tensor on the left, since torch multiplies a number by the inverse.
    inverse = torch.full_like(largest, TOP) / largest
    return x.abs() * _per_element(inverse, x.shape) * unit, largest * (1 / TOP)


def _per_element(x: Tensor, shape: torch.Size) -> Tensor:
    return x.repeat_interleave(GROUP, -1)[..., : shape[-1]]


# The same in Triton, for tiles [groups, GROUP] with scales [groups].

_CONSTANTS = (SMALLEST, TOP, 1 / TOP, FIRST, SECOND, 1 / FIRST, 1 / SECOND, MASK, PER_ELEMENT, PER_STEP, PER_TENSOR)
_SMALLEST, _TOP, _PER_TOP, _FIRST, _SECOND, _PER_FIRST, _PER_SECOND, _MASK, _PER_ELEMENT, _PER_STEP, _PER_TENSOR = (
    _CONSTANTS if tl is None else map(tl.constexpr, _CONSTANTS)
)


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
    code = codes.to(tl.int32)
    size = (tl.abs(code) << 20).to(tl.float32, bitcast=True) * _PER_FIRST
    return tl.where(code < 0, -size, size) * scales[:, None]


@jit
def decode_second_tile(codes, scales):
    return (codes.to(tl.int32) << 20).to(tl.float32, bitcast=True) * _PER_SECOND * scales[:, None]


@jit
def encode_first_tile(m):
    bits, scales = relative_tile(m, _FIRST)
    code = tl.minimum((bits + 0x80000) >> 20, 127)
    return tl.where(m < 0, -code, code).to(tl.int8), scales


@jit
def encode_second_tile(v, offsets):
    bits, scales = relative_tile(v, _SECOND)
    code = tl.minimum(tl.maximum((bits + offsets) >> 20, 1), 255)
    return tl.where(v > 0, code, 0).to(tl.uint8), scales


@jit
def relative_tile(x, UNIT: tl.constexpr):
    """(bits of |x| / its group's scale * UNIT, scales)."""
    x = tl.abs(x)
    largest = tl.maximum(tl.max(x, 1), _SMALLEST)
    inverse = tl.div_rn(tl.zeros_like(largest) + _TOP, largest)
    return (x * inverse[:, None] * UNIT).to(tl.int32, bitcast=True), largest * _PER_TOP

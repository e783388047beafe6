from __future__ import annotations

import pytest
import torch
from torch import Tensor

from skytrain.kernels import backend, quantize
from skytrain.kernels.backend import jit, tl
from skytrain.kernels.quantize import GROUP, dequantize, dither, join, quantize_first, quantize_second, split

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEAREST = 1 << 19


def numbers() -> Tensor:
    """fp32 of every upper half (signs, exponents, subnormals, infinities, NaNs, -0) with ties and their neighbours."""
    high = torch.arange(1 << 16).repeat_interleave(9) << 16
    low = torch.tensor([0, 1, 2, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF, 0x1234]).repeat(1 << 16)
    return (high | low).to(torch.int32).view(torch.float32)


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int32)


@jit
def _split_and_join(x, high, low, joined, n, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    h, r = quantize.split_tile(tl.load(x + place, place < n, 0.0))
    tl.store(high + place, h, place < n)
    tl.store(low + place, r, place < n)
    tl.store(joined + place, quantize.join_tile(h, r), place < n)


def test_split_weights_are_exact_for_every_number():
    x = numbers()
    weight, remainder = split(x)
    assert weight.dtype == torch.bfloat16 and remainder.dtype == torch.int16
    joined = join(weight, remainder)
    number = ~x.isnan()
    assert torch.equal(bits(joined)[number], bits(x)[number])
    assert joined[~number].isnan().all() and weight[~number].isnan().all()
    # bf16 is the nearest, and of two as near the one away from zero: torch's, but at ties.
    tie = number & ((bits(x) & 0xFFFF) == 0x8000)
    others = number & ~tie
    assert torch.equal(weight[others].view(torch.int16), x[others].bfloat16().view(torch.int16))
    finite = tie & (weight.float().abs() < torch.inf)
    assert (weight[finite].float().abs() > x[finite].abs()).all()


def test_split_in_a_kernel_equals_torch():
    x = numbers().to(DEVICE)
    high, low = (torch.empty_like(x, dtype=torch.int16) for _ in range(2))
    joined = torch.empty_like(x)
    backend.launch(_split_and_join, (-(-x.numel() // 65536),), x, high, low, joined, x.numel(), BLOCK=65536)
    weight, remainder = split(x)
    assert torch.equal(high, weight.view(torch.int16)) and torch.equal(low, remainder)
    assert torch.equal(bits(joined), bits(join(weight, remainder)))


def test_join_and_split_take_any_layout():
    x = torch.randn(6, 4).t()
    weight, remainder = split(x)
    assert torch.equal(join(weight, remainder), x) and torch.equal(join(weight.t(), remainder.t()), x.t())


def coded(x: Tensor, offsets: int = NEAREST) -> dict[str, tuple[Tensor, Tensor]]:
    """x through both kinds of codes."""
    return {
        "first": quantize_first(x, torch.full_like(x, offsets, dtype=torch.int32)),
        "second": quantize_second(x.abs(), torch.full_like(x, offsets, dtype=torch.int32)),
    }


def test_codes_are_the_nearest_over_their_range():
    """From 2^-15 and 2^-60 of a group's largest value up: no other code is nearer, but for the width of rounding."""
    g = torch.Generator().manual_seed(0)
    for kind, octaves, codes in (
        ("first", 15, torch.arange(128).to(torch.int8)),
        ("second", 60, torch.arange(256).to(torch.uint8)),
    ):
        x = torch.exp2(-octaves * torch.rand(40, 3 * GROUP + 17, generator=g))
        x[:, ::GROUP] = 1.0
        code, scales = coded(x)[kind]
        assert code.shape == x.shape and scales.shape == (40, 4) and scales.dtype == torch.float32
        values = torch.stack([dequantize(c.view(1, 1), torch.ones(1, 1)).squeeze() for c in codes])
        gaps = (x[..., None] - values).abs()
        # The first moment's is nearest by its root, where a gap's middle is up to 4% of the gap away.
        slack = 0.08 if kind == "first" else 1e-3
        place = code.long()
        width = values[(place + 1).clamp_max(len(codes) - 1)] - values[(place - 1).clamp_min(0)]
        ours = (dequantize(code, scales) - x).abs()
        assert (ours <= gaps.amin(-1) + slack * width).all()
        assert (code > 0).all()


def test_signs_are_kept():
    x = torch.linspace(-1, 1, GROUP)[None]
    offsets = dither(x.shape, 0, torch.tensor(1.0))
    codes, scales = quantize_first(x, offsets)
    assert torch.equal(codes.sign().float(), x.sign())
    assert torch.equal(quantize_first(-x, offsets)[0], -codes) and torch.equal(quantize_first(-x, offsets)[1], scales)


def test_a_group_s_largest_element_is_kept():
    """To rounding, in steps by the hundred: the scale does not creep."""
    x = torch.randn(4, GROUP, generator=torch.Generator().manual_seed(1))
    for kind in ("first", "second"):
        y = x
        for _ in range(300):
            y = dequantize(*coded(y)[kind])
        largest = x.abs().amax(1)
        assert ((y.abs().amax(1) - largest).abs() <= 1e-5 * largest).all()
        # And what is on the codes stays there.
        assert torch.equal(coded(y)[kind][0], coded(x)[kind][0])


def test_every_code_is_used_and_decodes_to_its_own_number():
    for codes in (torch.arange(-127, 128).to(torch.int8), torch.arange(256).to(torch.uint8)):
        values = torch.stack([dequantize(c.view(1, 1), torch.ones(1, 1)).squeeze() for c in codes])
        assert (values.diff() > 0).all() and values.max() == 1.0


def test_second_moments_are_never_0_unless_they_are():
    v = torch.zeros(1, GROUP)
    v[0, :5] = torch.tensor([1.0, 1e-12, 1e-30, 1e-38, 1e-45])
    for offsets in (0, NEAREST, (1 << 20) - 1):
        codes, scales = quantize_second(v, torch.full_like(v, offsets, dtype=torch.int32))
        assert ((codes > 0) == (v > 0)).all() and ((dequantize(codes, scales) > 0) == (v > 0)).all()


@pytest.mark.parametrize("size", [1.0, 1e-12, 1e-18, 1e-36, 1e-44, 0.0, 1e30])
def test_scales_of_any_size(size):
    """1e-12 and 1e-18 are second moments of gradients of 1e-6 and 1e-9; below 1e-37 all that counts is finiteness."""
    x = torch.rand(2, GROUP, generator=torch.Generator().manual_seed(2)).add(0.1) * size
    for codes, scales in coded(x).values():
        y = dequantize(codes, scales)
        assert torch.isfinite(y).all()
        if size == 0.0 or size > 1e-37:
            assert ((y - x).abs() <= 0.0626 * x).all()


def test_the_dither_has_no_bias_and_runs_through_all_offsets():
    """Over 64 steps an element's offsets leave no gap wider than 3/64, and their mean rounding is the number itself."""
    steps = 64
    offsets = torch.stack([dither(torch.Size((5, 40)), 7, torch.tensor(float(t))) for t in range(1, steps + 1)])
    assert offsets.dtype == torch.int32 and offsets.min() >= 0 and offsets.max() < 1 << 20
    assert offsets.sort(0).values.diff(dim=0).max() < 3 / steps * (1 << 20)
    x = torch.rand(5, 40, generator=torch.Generator().manual_seed(3)) + 0.01
    mean = torch.stack([dequantize(*quantize_second(x, o)) for o in offsets]).mean(0)
    assert ((mean - x).abs() <= 0.01 * x).all()
    assert (dequantize(*quantize_second(x, torch.full_like(offsets[0], NEAREST))) - x).abs().max() > 0.01


def test_the_dither_differs_between_tensors_steps_and_neighbours():
    shape = torch.Size((4, 300))
    seen = {(tensor, step): dither(shape, tensor, torch.tensor(float(step))) for tensor in range(20) for step in (1, 2)}
    values = list(seen.values())
    for i, a in enumerate(values):
        assert a.unique().numel() == a.numel()
        for b in values[:i]:
            assert (a != b).all()
    assert torch.equal(dither(shape, 3, torch.tensor(2.0)), seen[3, 2])

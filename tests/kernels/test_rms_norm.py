"""RMSNorm, alone and behind a residual: kernel and reference against fp64, in every layout."""

from __future__ import annotations

import functools

import pytest
import torch
from accuracy import assert_as_accurate
from layouts import expanded, layouts
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from skytrain.kernels import backend as backend_module
from skytrain.kernels import rms_norm as module
from skytrain.kernels.rms_norm import add_rms_norm, rms_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# One column, odd ones, heads, several rows a tile and one, rows in two dimensions, rows walked in blocks.
SHAPES = [(3, 1), (7, 5), (70, 128), (2, 3, 64), (2, 2, 3, 20), (3, 5000), (37, 640), (9, 17000)]

both = pytest.mark.parametrize("backend", ["triton", "reference"])


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def plain(x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Plain torch's, in the operands' dtype with fp32 statistics; (y, total)."""
    total = x if residual is None else x + residual
    wide = total if total.dtype == torch.float64 else total.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return weight * wide.to(x.dtype), total


def ours(x: Tensor, residual: Tensor | None, weight: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    if residual is None:
        return rms_norm(x, weight, EPS, backend=backend), x
    return add_rms_norm(x, residual, weight, EPS, backend=backend)


def graded(function, operands: list[Tensor | None], d_y: Tensor, d_total: Tensor) -> list[Tensor]:
    """y, total and the gradients of leaves with the operands' values and layout."""
    operands = [None if x is None else x.detach().requires_grad_() for x in operands]
    y, total = function(*operands)
    torch.autograd.backward([y, total], [d_y, d_total])
    return [y.detach(), total.detach(), *(x.grad for x in operands if x is not None)]


def compare(backend: str, x: Tensor, residual: Tensor | None, weight: Tensor, d_y: Tensor, d_total: Tensor) -> None:
    operands = [x, residual, weight]
    got = graded(functools.partial(ours, backend=backend), operands, d_y, d_total)
    peer = graded(plain, operands, d_y, d_total)
    exact = graded(plain, [None if t is None else t.double() for t in operands], d_y.double(), d_total.double())
    names = ["y", "total", "dx", "d_residual", "dw"] if residual is not None else ["y", "total", "dx", "dw"]
    for name, *results in zip(names, got, peer, exact):
        assert results[0].dtype == x.dtype
        if backend == "triton" and backend_module.INTERPRETED and x.dtype == torch.bfloat16:
            # The interpreter truncates to bf16: up to one ulp for each of the three roundings (the sum, n and y).
            assert (results[0] - results[2]).abs().max() <= 3 * torch.finfo(x.dtype).eps * results[2].abs().max()
        else:
            assert_as_accurate(*results, what=name)


@both
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_accurate_as_plain_torch(shape, dtype, backend):
    x, residual, d_y, d_total = (random(*shape, dtype=dtype, seed=seed) for seed in range(4))
    weight = 1 + random(shape[-1], dtype=dtype, seed=4) / 4
    compare(backend, x, residual, weight, d_y, d_total)
    compare(backend, x, None, weight, d_y, d_total)


@both
def test_every_layout(backend):
    weight = random(24, seed=9)
    tensors = [random(10, 24, seed=seed) for seed in range(4)]
    # Each operand in turn: x, the residual, and both gradients from above.
    for place in range(4):
        for _, changed in (
            *layouts(tensors[place]),
            *expanded(10, 24, torch.float32, torch.Generator().manual_seed(5)),
        ):
            operands = [*tensors[:place], changed.to(DEVICE), *tensors[place + 1 :]]
            compare(backend, *operands[:2], weight, *operands[2:])
    for name, changed in layouts(torch.stack([weight, weight])):
        if name != "every second row":
            compare(backend, *tensors[:2], changed[0], *tensors[2:])


@both
def test_heads_of_a_fused_projection_are_read_in_place(backend):
    """Queries and keys are slices of one product: rows [tokens, heads] with a gap after each token's heads."""
    fused = random(6, 5 * 64)
    heads = fused[:, 64 : 4 * 64].view(6, 3, 64)
    assert module.as_rows(heads).data_ptr() == heads.data_ptr()
    compare(backend, heads, None, random(64, seed=1), random(6, 3, 64, seed=2), random(6, 3, 64, seed=3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_the_models_formula(dtype):
    """transformers' Qwen2 to the bit: rounded before the weight multiplies."""
    norm = Qwen2RMSNorm(640, EPS).to(dtype)
    norm.weight.data = random(640, dtype=dtype).cpu()
    x = 3 * random(50, 640, dtype=dtype, seed=1).cpu()
    assert torch.equal(rms_norm(x, norm.weight, EPS, backend="reference"), norm(x))
    assert torch.equal(add_rms_norm(x, x.flip(0), norm.weight, EPS, backend="reference")[0], norm(x + x.flip(0)))


def test_the_normalised_value_is_rounded_before_the_weight():
    """The kernel equals the reference bit for bit in nearly all places; with the other order every tenth differs."""
    x, weight = random(64, 512, dtype=torch.float16), random(512, dtype=torch.float16, seed=1)
    y = [rms_norm(x, weight, EPS, backend=backend) for backend in ("triton", "reference")]
    assert (y[0] != y[1]).float().mean() < 0.002


@both
def test_a_residuals_gradient_is_not_scaled(backend):
    """One gradient for both addends; what comes from above is added once, and counts as zero where it is absent."""
    x, residual = random(5, 48).requires_grad_(), random(5, 48, seed=1).requires_grad_()
    weight, d = random(48, seed=2), random(5, 48, seed=3)
    y, total = add_rms_norm(x, residual, weight, EPS, backend=backend)
    through_norm = torch.autograd.grad(y, (x, residual), d, retain_graph=True)
    from_above = torch.autograd.grad(total, (x, residual), d, retain_graph=True)
    both_ways = torch.autograd.grad((y, total), (x, residual), (d, d))
    assert torch.equal(through_norm[0], through_norm[1]) and torch.equal(both_ways[0], both_ways[1])
    assert torch.equal(from_above[0], d) and torch.equal(from_above[1], d)
    torch.testing.assert_close(both_ways[0], through_norm[0] + d)


@both
def test_gradients_from_above_are_left_alone(backend):
    d_y, d_total = random(5, 48, seed=3), random(5, 48, seed=4)
    before = d_y.clone(), d_total.clone()
    x = random(5, 48).requires_grad_()
    outputs = add_rms_norm(x, x, random(48, seed=2), EPS, backend=backend)
    torch.autograd.backward(outputs, (d_y, d_total))
    assert torch.equal(d_y, before[0]) and torch.equal(d_total, before[1])


@both
def test_weight_gradient_is_summed_in_fp32(backend):
    """Summed in bf16, 4096 ones stop at 256."""
    x = torch.ones(4096, 64, dtype=torch.bfloat16, device=DEVICE)
    weight = torch.ones(64, dtype=torch.bfloat16, device=DEVICE).requires_grad_()
    rms_norm(x, weight, 0.0, backend=backend).sum().backward()
    assert torch.equal(weight.grad, torch.full_like(weight, 4096))


@both
@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 16), (16,), (1, 16)], ids=str)
def test_no_row_and_one_row(shape, backend):
    x, weight = random(*shape).requires_grad_(), random(16, seed=1).requires_grad_()
    y, total = add_rms_norm(x, random(*shape, seed=2), weight, EPS, backend=backend)
    (y.sum() + total.sum()).backward()
    assert y.shape == total.shape == x.grad.shape == shape
    if 0 in shape:
        assert torch.equal(weight.grad, torch.zeros(16, device=DEVICE))
    else:
        compare(backend, x, None, weight, random(*shape, seed=3), random(*shape, seed=4))


@both
def test_frozen_operands_have_no_gradient(backend):
    x, weight = random(5, 48), random(48, seed=1)
    leaf = x.clone().requires_grad_()
    rms_norm(leaf, weight, EPS, backend=backend).sum().backward()
    alone = weight.clone().requires_grad_()
    rms_norm(x, alone, EPS, backend=backend).sum().backward()
    assert leaf.grad is not None and alone.grad is not None and weight.grad is None and x.grad is None


def test_rows_further_apart_than_int32_reaches():
    x = torch.empty(2**31 + 64, dtype=torch.float16, device=DEVICE).as_strided((3, 16), (2**30 + 16, 1))
    x.copy_(random(3, 16, dtype=torch.float16))
    weight = random(16, dtype=torch.float16, seed=1)
    y = rms_norm(x, weight, EPS, backend="triton")
    assert torch.equal(y, rms_norm(x.contiguous(), weight, EPS, backend="triton"))


def test_programs_follow_from_the_shape(monkeypatch):
    """16 rows or more a program in backward, so that partial rows stay under a tenth of the bytes; enough programs."""
    launches = []
    monkeypatch.setattr(backend_module, "launch", lambda kernel, grid, *arguments, **options: launches.append(grid))
    for tokens, hidden in ((16384, 5120), (16384, 3584), (4096, 16384), (100, 64), (16384, 32768)):
        x = torch.empty(tokens, hidden, dtype=torch.bfloat16, device="meta")
        weight, rstd = x.new_empty(hidden), x.new_empty(tokens, dtype=torch.float32)
        module._triton_forward(x, x, weight, EPS)
        module._triton_backward(x, x, x, weight, rstd, True)
        programs = launches[-1][0]
        assert tokens / programs >= min(16, tokens) and (programs >= 256 or tokens < 4096)
    assert launches[:2] == [(1024,), (528, 1)]
    assert len(launches) == 11


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.zeros(2, 8), torch.zeros(7), r"x \(2, 8\) and weight \(7,\)"),
        (torch.zeros(2, 8), torch.zeros(1, 8), r"\[\.\.\., H\] and \[H\]"),
        (torch.zeros(2, 8), torch.zeros(8).half(), "x is torch.float32, weight torch.float16"),
        (torch.zeros(2, 8).double(), torch.zeros(8).double(), "torch.float64"),
    ],
)
def test_what_does_not_fit_is_refused(x, weight, message):
    with pytest.raises(ValueError, match=message):
        rms_norm(x, weight, EPS, backend="reference")


def test_other_refusals():
    x, weight = torch.zeros(2, 8), torch.zeros(8)
    with pytest.raises(ValueError, match=r"residual torch.float32 \(2, 7\)"):
        add_rms_norm(x, torch.zeros(2, 7), weight, EPS, backend="reference")
    with pytest.raises(ValueError, match=r"residual torch.float16"):
        add_rms_norm(x, x.half(), weight, EPS, backend="reference")
    with pytest.raises(ValueError, match="not auto"):
        rms_norm(x, weight, EPS, backend="auto")


@both
def test_opcheck(backend):
    x, residual = (random(5, 24, seed=seed).requires_grad_() for seed in range(2))
    weight = random(24, seed=2).requires_grad_()
    torch.library.opcheck(module._forward, (x, residual, weight, EPS, backend))
    torch.library.opcheck(module._forward, (x.detach().t().contiguous().t(), None, weight, EPS, backend))
    rstd = torch.ones(5, device=DEVICE)
    torch.library.opcheck(
        module._gradients, (x.detach(), residual.detach(), x.detach(), weight.detach(), rstd, True, backend)
    )


def test_under_compile():
    x, residual, weight = random(4, 24), random(4, 24, seed=1), random(24, seed=2)
    d_y, d_total = random(4, 24, seed=3), random(4, 24, seed=4)
    function = functools.partial(ours, backend="triton")
    compiled = torch.compile(function, fullgraph=True)
    for got, expected in zip(*(graded(f, [x, residual, weight], d_y, d_total) for f in (compiled, function))):
        assert torch.equal(got, expected)


@pytest.mark.gpu
@pytest.mark.skipif(backend_module.obstacle("liger", torch.device(DEVICE)) is not None, reason="needs a GPU and liger")
def test_liger_agrees():
    x, weight = random(100, 640, dtype=torch.bfloat16), random(640, dtype=torch.bfloat16, seed=1)
    d = [random(100, 640, dtype=torch.bfloat16, seed=seed) for seed in (2, 3)]
    compare("liger", x, x.flip(0), weight, *d)

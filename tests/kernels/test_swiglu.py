"""SwiGLU: kernel and reference against fp64, in every layout."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_as_accurate
from layouts import expanded, layouts
from torch import Tensor

from skytrain.kernels import backend as backend_module
from skytrain.kernels import swiglu as module
from skytrain.kernels.swiglu import swiglu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

both = pytest.mark.parametrize("backend", ["triton", "reference"])


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(DEVICE, dtype)


def plain(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def graded(function, gate: Tensor, up: Tensor, d_out: Tensor) -> list[Tensor]:
    """The product and the gradients of leaves with the operands' values and layout."""
    gate, up = (x.detach().requires_grad_() for x in (gate, up))
    out = function(gate, up)
    out.backward(d_out)
    return [out.detach(), gate.grad, up.grad]


def compare(backend: str, gate: Tensor, up: Tensor, d_out: Tensor) -> None:
    got = graded(functools.partial(swiglu, backend=backend), gate, up, d_out)
    peer = graded(plain, gate, up, d_out)
    exact = graded(plain, gate.double(), up.double(), d_out.double())
    for name, *results in zip(("out", "d_gate", "d_up"), got, peer, exact):
        assert results[0].dtype == gate.dtype
        assert_as_accurate(*results, what=name)


@both
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (5, 7), (3, 4099), (2, 3, 20), (2, 2, 3, 5), (64, 1024)], ids=str)
def test_as_accurate_as_plain_torch(shape, dtype, backend):
    compare(backend, *(random(*shape, dtype=dtype, seed=seed) for seed in range(3)))


@both
def test_every_layout(backend):
    tensors = [random(10, 24, seed=seed) for seed in range(3)]
    # Each operand in turn: gate, up, and the gradient from above.
    for place in range(3):
        for _, changed in (
            *layouts(tensors[place]),
            *expanded(10, 24, torch.float32, torch.Generator().manual_seed(5)),
        ):
            compare(backend, *tensors[:place], changed.to(DEVICE), *tensors[place + 1 :])


@both
@pytest.mark.parametrize("shape", [(3, 4100), (2, 3, 20)], ids=str)
def test_halves_of_one_product_are_read_in_place(shape, backend, monkeypatch):
    gate, up = random(*shape[:-1], 2 * shape[-1]).chunk(2, -1)
    pointers = []
    launch = backend_module.launch

    def record(kernel, grid, *arguments, **options):
        pointers.append([x.data_ptr() for x in arguments if isinstance(x, Tensor)])
        launch(kernel, grid, *arguments, **options)

    monkeypatch.setattr(backend_module, "launch", record)
    compare(backend, gate, up, random(*shape, seed=1))
    if backend == "triton":
        assert pointers[0][:2] == pointers[1][1:3] == [gate.data_ptr(), up.data_ptr()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_plain_torch(dtype):
    operands = [random(30, 100, dtype=dtype, seed=seed) for seed in range(3)]
    for ours, theirs in zip(
        graded(functools.partial(swiglu, backend="reference"), *operands), graded(plain, *operands)
    ):
        assert torch.equal(ours, theirs)


@both
@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_gates(dtype, backend):
    """Far out SiLU is 0 or the identity, and its slope 0 or 1: no NaN from exp's overflow."""
    gate = torch.tensor([[-30000.0, -200.0, -100.0, 0.0, 100.0, 200.0, 30000.0]], device=DEVICE).to(dtype)
    one = torch.ones_like(gate)
    out, d_gate, d_up = graded(functools.partial(swiglu, backend=backend), gate, one, one)
    assert torch.equal(out, gate.clamp(min=0)) and torch.equal(d_up, out)
    assert torch.equal(d_gate, torch.tensor([[0, 0, 0, 0.5, 1, 1, 1]], dtype=dtype, device=DEVICE))


@both
def test_backward_leaves_what_it_reads_alone(backend):
    """Saved operands and the gradient from above are used by others, and by a second backward."""
    gate, up, d_out = (random(4, 24, seed=seed) for seed in range(3))
    before = [x.clone() for x in (gate, up, d_out)]
    leaves = gate.requires_grad_(), up.requires_grad_()
    out = swiglu(*leaves, backend=backend)
    first = torch.autograd.grad(out, leaves, d_out, retain_graph=True)
    second = torch.autograd.grad(out, leaves, d_out)
    for a, b in zip((*first, gate, up, d_out), (*second, *before)):
        assert torch.equal(a, b)


@both
@pytest.mark.parametrize("shape", [(0,), (0, 16), (3, 0), (2, 0, 16)], ids=str)
def test_nothing_to_do(shape, backend):
    results = graded(functools.partial(swiglu, backend=backend), *(random(*shape) for _ in range(3)))
    assert all(x.shape == shape for x in results)


def test_rows_further_apart_than_int32_reaches():
    gate = torch.empty(2**31 + 64, dtype=torch.float16, device=DEVICE).as_strided((3, 16), (2**30 + 16, 1))
    gate.copy_(random(3, 16, dtype=torch.float16))
    up = random(3, 16, dtype=torch.float16, seed=1)
    assert torch.equal(swiglu(gate, up, backend="triton"), swiglu(gate.contiguous(), up, backend="triton"))


def test_what_does_not_fit_is_refused():
    x = torch.zeros(2, 8)
    with pytest.raises(ValueError, match=r"gate \(2, 8\) and up \(8,\)"):
        swiglu(x, x[0], backend="reference")
    with pytest.raises(ValueError, match=r"gate is torch.float32, up torch.float16"):
        swiglu(x, x.half(), backend="reference")
    with pytest.raises(ValueError, match=r"torch.float64"):
        swiglu(x.double(), x.double(), backend="reference")
    with pytest.raises(ValueError, match="not auto"):
        swiglu(x, x, backend="auto")


@both
def test_opcheck(backend):
    gate, up = (random(5, 24, seed=seed).requires_grad_() for seed in range(2))
    torch.library.opcheck(module._forward, (gate, up, backend))
    torch.library.opcheck(module._forward, (gate.detach().t().contiguous().t(), up, backend))
    torch.library.opcheck(module._gradients, (random(5, 24), gate.detach(), up.detach(), backend))


def test_under_compile():
    operands = [random(4, 24, seed=seed) for seed in range(3)]
    function = functools.partial(swiglu, backend="triton")
    for got, expected in zip(*(graded(f, *operands) for f in (torch.compile(function, fullgraph=True), function))):
        assert torch.equal(got, expected)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: half a million programs")
def test_more_elements_than_int32_counts():
    gate = torch.zeros(2**16 + 1, 2**15, dtype=torch.float16, device=DEVICE)
    up = torch.ones_like(gate)
    gate[-1] = random(2**15, dtype=torch.float16)
    assert torch.equal(swiglu(gate, up, backend="triton")[-1:], swiglu(gate[-1:], up[-1:], backend="triton"))


@pytest.mark.gpu
@pytest.mark.skipif(backend_module.obstacle("liger", torch.device(DEVICE)) is not None, reason="needs a GPU and liger")
def test_liger_agrees():
    operands = [random(100, 640, dtype=torch.bfloat16, seed=seed) for seed in range(3)]
    got = graded(functools.partial(swiglu, backend="liger"), *(x.clone() for x in operands))
    for name, *results in zip(
        ("out", "d_gate", "d_up"), got, graded(plain, *operands), graded(plain, *(x.double() for x in operands))
    ):
        assert_as_accurate(*results, what=name)

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_as_accurate
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from skytrain.kernels import linear as module
from skytrain.kernels.linear import linear


@pytest.fixture(autouse=True)
def no_bf16_instructions(monkeypatch):
    """These tests are about such a CPU, whatever this one is."""
    monkeypatch.setattr(module, "_cpu_multiplies_bf16", lambda: False)


def operands(*shape: int, out: int = 9, dtype=torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(s, generator=g) for s in (shape, (out, shape[-1]), (out,)))
    return x.to(dtype), (w / shape[-1] ** 0.5).to(dtype), b.to(dtype)


def graded(function, *inputs: Tensor | None) -> list[Tensor]:
    """[output, gradient of each input] under an uneven upstream gradient."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out.dtype)
    out.backward(upstream)
    return [out.detach(), *(x.grad for x in leaves if x is not None)]


def compare(x: Tensor, w: Tensor, b: Tensor | None) -> None:
    ours, plain = graded(linear, x, w, b), graded(F.linear, x, w, b)
    exact = graded(F.linear, x.double(), w.double(), None if b is None else b.double())
    for name, *results in zip(("output", "dx", "dW", "db"), ours, plain, exact):
        assert results[0].dtype == x.dtype
        assert_as_accurate(*results, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 11, 24), (130, 65), (0, 8)])
def test_output_and_gradients_are_as_accurate_as_plain_torch(shape, dtype):
    x, w, b = operands(*shape, dtype=dtype)
    if shape[0] == 0:
        for result, expected in zip(graded(linear, x, w, b), graded(F.linear, x, w, b)):
            assert torch.equal(result, expected)
    else:
        compare(x, w, b)
        compare(x, w, None)


def test_a_long_sum_is_rounded_once():
    """4,096 products a result: sums kept in bf16 would be off by percents."""
    x, w, _ = operands(4, 4096)
    exact = F.linear(x.double(), w.double())
    assert torch.equal(linear(x, w), exact.float().bfloat16())


def test_strided_and_expanded_operands():
    x, w, b = operands(12, 8)
    every_second = torch.stack((x, torch.full_like(x, torch.nan)), 2).flatten(1)[:, ::2]
    compare(every_second, w.t().contiguous().t(), b)
    compare(x[:1].expand(12, 8), w, b[:1].expand(9))


def test_gradient_of_a_sum_is_right():
    """Its upstream gradient is expanded: every stride is 0."""
    x, w, b = operands(6, 8)
    (dx,) = torch.autograd.grad(linear(x.requires_grad_(), w, b).sum(), x)
    assert torch.equal(dx, w.float().sum(0).bfloat16().expand(6, 8))


def test_saves_the_tensors_that_plain_torch_saves():
    """The input and the weight themselves, in 16 bits: else activations would take three times the memory."""

    def saved(function) -> set[tuple]:
        seen = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
            function(x, w, b)
        return {(t.untyped_storage().data_ptr(), t.dtype) for t in seen}

    x, w, b = (t.requires_grad_() for t in operands(6, 8))
    assert saved(linear) == saved(F.linear) == {(t.data_ptr(), torch.bfloat16) for t in (x, w)}


def test_no_gradient_for_what_needs_none():
    for need in [(True, False, False), (False, True, False), (False, False, True)]:
        leaves = [t.requires_grad_(needed) for t, needed in zip(operands(6, 8), need)]
        linear(*leaves).sum().backward()
        assert [t.grad is not None for t in leaves] == list(need)


def test_other_cases_are_plain_torch(monkeypatch):
    """fp32, and 16-bit where the CPU has instructions for it: bit for bit, and in its name in the graph."""
    x, w, b = operands(6, 8, dtype=torch.float32)
    assert torch.equal(linear(x, w, b), F.linear(x, w, b))
    assert "AddmmBackward" in linear(x.requires_grad_(), w, b).grad_fn.name()
    x, w, b = operands(6, 8)
    assert "AddmmBackward" not in linear(x.requires_grad_(), w, b).grad_fn.name()
    monkeypatch.setattr(module, "_cpu_multiplies_bf16", lambda: True)
    assert "AddmmBackward" in linear(x, w, b).grad_fn.name()


def test_checkpointing_recomputes_the_same():
    x, w, b = operands(6, 8)

    def block(x, w, b):
        return linear(torch.tanh(linear(x, w, b)), w.t()).float()

    plain = graded(block, x, w, b)
    recomputed = graded(lambda *inputs: checkpoint(block, *inputs, use_reentrant=False), x, w, b)
    for expected, result in zip(plain, recomputed):
        assert torch.equal(expected, result)


def test_operations_pass_opcheck():
    x, w, b = operands(3, 2, 8)
    operation = torch.ops.skytrain.linear_in_fp32
    torch.library.opcheck(operation.default, (x.requires_grad_(), w.requires_grad_(), b.requires_grad_()))
    torch.library.opcheck(operation.default, (x, w, None))


def test_compiles_without_a_graph_break():
    x, w, b = operands(6, 8)
    compiled = torch.compile(lambda *inputs: linear(*inputs) * 2, fullgraph=True, backend="aot_eager")
    for expected, result in zip(graded(lambda *inputs: linear(*inputs) * 2, x, w, b), graded(compiled, x, w, b)):
        assert torch.equal(expected, result)


def test_traces_without_memory():
    with FakeTensorMode():
        x, w = torch.empty(5, 70_000, 80_000, dtype=torch.bfloat16), torch.empty(90_000, 80_000, dtype=torch.bfloat16)
        out = linear(x, w.requires_grad_())
        out.sum().backward()
        assert out.shape == (5, 70_000, 90_000) and out.dtype == w.grad.dtype == torch.bfloat16

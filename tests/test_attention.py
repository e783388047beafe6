from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_as_accurate
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from skytrain import attention
from skytrain.attention import packed_attention, resolve_backend
from skytrain.errors import UserError

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: the GPU back ends")
both = pytest.mark.parametrize("backend", ["cpu", "reference"])


def bounds_of(*lengths: int, device="cpu") -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


def row(tokens: int, heads: int, kv_heads: int, dim: int, dtype=torch.float32, device="cpu") -> list[Tensor]:
    """[q, k, v, upstream gradient]."""
    g = torch.Generator().manual_seed(0)
    return [torch.randn(tokens, n, dim, generator=g).to(device, dtype) for n in (heads, kv_heads, kv_heads, heads)]


def alone(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float | None = None) -> Tensor:
    """Each document through torch's own attention, by itself, its key/value heads repeated."""
    parts = []
    for begin, end in zip(bounds.tolist(), bounds[1:].tolist()):
        one = [x[begin:end].transpose(0, 1).repeat_interleave(q.shape[1] // x.shape[1], 0)[None] for x in (q, k, v)]
        parts.append(F.scaled_dot_product_attention(*one, is_causal=True, scale=scale)[0].transpose(0, 1))
    return torch.cat(parts)


def graded(function, q: Tensor, k: Tensor, v: Tensor, upstream: Tensor) -> list[Tensor]:
    """[out, dq, dk, dv]."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    out.backward(upstream)
    return [out.detach(), *(x.grad for x in leaves)]


def packed(bounds: Tensor, backend: str, **options):
    longest = int(bounds.diff().max()) if len(bounds) > 1 else 0
    return lambda q, k, v: packed_attention(q, k, v, bounds, longest, backend=backend, **options)


def compare(inputs: list[Tensor], bounds: Tensor, backend: str, scale: float | None = None) -> None:
    def plain(q, k, v):
        return alone(q, k, v, bounds, scale)

    ours = graded(packed(bounds, backend, scale=scale), *inputs)
    exact = graded(plain, *(x.double() for x in inputs))
    for name, *results in zip(("out", "dq", "dk", "dv"), ours, graded(plain, *inputs), exact):
        assert results[0].dtype == inputs[0].dtype
        assert_as_accurate(*results, name)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 32), (6, 1, 20), (3, 3, 7), (2, 2, 256)])
def test_output_and_gradients_are_as_accurate_as_plain_torch(heads, kv_heads, dim, dtype, backend):
    """Documents of one token and around one and two blocks of 64; head sizes that fill no vector."""
    bounds = bounds_of(1, 5, 63, 64, 65, 131)
    compare(row(329, heads, kv_heads, dim, dtype), bounds, backend)


@both
def test_scale_is_followed(backend):
    compare(row(80, 2, 1, 16), bounds_of(70, 10), backend, scale=0.7)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", ["varlen", "flash_attn", "flash_attn_4"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(8, 2, 64), (5, 5, 128)])
def test_gpu_back_ends_are_as_accurate_as_plain_torch(heads, kv_heads, dim, backend):
    try:
        resolve_backend(backend, "cuda")
    except UserError as error:
        pytest.skip(str(error))
    inputs = row(1200, heads, kv_heads, dim, torch.bfloat16, "cuda")
    compare(inputs, bounds_of(1, 0, 199, 1000, device="cuda"), backend)


@both
def test_b16_documents_do_not_see_each_other(backend):
    """B16: packed outputs equal each document's alone; changing A leaves B and C bit-equal, gradients too."""
    bounds = bounds_of(70, 90, 40)
    inputs = row(200, 4, 2, 32)
    before = graded(packed(bounds, backend), *inputs)
    torch.testing.assert_close(before[0], alone(*inputs[:3], bounds), rtol=1e-5, atol=1e-5)
    for x in inputs:
        x[:70] = torch.randn(70, *x.shape[1:]) * 3
    after = graded(packed(bounds, backend), *inputs)
    for old, new in zip(before, after):
        assert torch.equal(old[70:], new[70:]) and not torch.equal(old[:70], new[:70])


@both
def test_b17_a_document_is_the_same_wherever_it_lies(backend):
    """B17: the place in the row counts for nothing, so positions may restart with each document."""
    q, k, v, _ = row(200, 4, 2, 32)
    expected = packed(bounds_of(90), backend)(q[:90], k[:90], v[:90])
    for start in (1, 64, 110):
        moved = [torch.cat((x[90:], x[:90])).roll(start - 110, 0) for x in (q, k, v)]
        out = packed(bounds_of(start, 90, 110 - start), backend)(*moved)
        assert torch.equal(out[start : start + 90], expected)


@both
def test_d59_a_document_cannot_attend_the_one_before(backend):
    """D59: pack [A(3), B(2)]: B's first token sees itself alone, so its output is its own value."""
    q, k, v, _ = row(5, 2, 2, 8)
    out = packed(bounds_of(3, 2), backend)(q, k, v)
    torch.testing.assert_close(out[3], v[3], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out[3:], alone(q[3:], k[3:], v[3:], bounds_of(2)), rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize("own_segment", [True, False])
def test_b24_a_padding_tail_of_nan_reaches_nothing(own_segment, backend):
    """B24: pad rows of NaN, as a segment of their own or of none, and zero-length segments: documents are unchanged.

    Where the pad belongs to no document, its output and its gradients are 0.
    """
    inputs = row(150, 4, 2, 32)
    clean = graded(packed(bounds_of(60, 70), backend), *(x[:130] for x in inputs))
    for x in inputs:
        x[130:] = torch.nan
    lengths = (0, 60, 0, 0, 70, 0) + ((20, 0) if own_segment else ())
    results = graded(packed(bounds_of(*lengths), backend), *inputs)
    for expected, result in zip(clean, results):
        assert torch.isfinite(result[:130]).all() and torch.equal(result[:130], expected)
        if not own_segment:
            assert (result[130:] == 0).all()


@both
@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)])
def test_a_row_without_documents(lengths, backend):
    for result in graded(packed(bounds_of(*lengths), backend), *row(0, 4, 2, 8)):
        assert result.shape[0] == 0


@both
def test_later_tokens_do_not_reach_earlier_ones(backend):
    q, k, v, _ = row(140, 2, 1, 16)
    before = packed(bounds_of(140), backend)(q, k, v)
    for cut in (1, 63, 64, 100):
        changed = [torch.cat((x[:cut], torch.randn_like(x[cut:]))) for x in (q, k, v)]
        assert torch.equal(packed(bounds_of(140), backend)(*changed)[:cut], before[:cut])


@both
def test_nan_inside_a_document_is_not_hidden(backend):
    """The trainer skips a step by its non-finite gradient norm, so a kernel must not clean NaN away."""
    for which in range(3):
        inputs = row(150, 2, 2, 8)
        inputs[which][70, 0, 3] = torch.nan
        results = graded(packed(bounds_of(50, 100), backend), *inputs)
        # dv holds no value of v, so it alone stays finite where v is not.
        assert all(not torch.isfinite(result[50:]).all() for result in results[: 3 if which == 2 else 4])
        assert all(torch.isfinite(result[:50]).all() for result in results)


@both
def test_scores_of_any_size(backend):
    """Scores near +-1e4, where an exponential without the row's maximum overflows or vanishes."""
    for size in (1e4, -1e4):
        q, k, v, upstream = row(100, 2, 2, 8)
        q, k = q * 0.1, k * 0.1
        q[:, :, 0], k[:, :, 0] = 1.0, size * 8**0.5
        compare([q, k, v, upstream], bounds_of(100), backend)


@both
def test_strided_and_expanded_operands(backend):
    """Views of one fused projection, transposed storage, one key head expanded, and the gradient of a sum."""
    fused = torch.randn(80, 8, 16, generator=torch.Generator().manual_seed(0))
    q, k, v = fused[:, :4], fused[:, 4:6], fused[:, 6:]
    transposed = [x.permute(2, 0, 1).contiguous().permute(1, 2, 0) for x in (q, k, v)]
    one_head = [q, k[:, :1].expand(80, 2, 16), v[:, :1].expand(80, 2, 16)]
    upstream = torch.ones(1, 1, 1).expand(80, 4, 16)
    for strided in ([q, k, v], transposed, one_head):
        ours = graded(packed(bounds_of(66, 14), backend), *strided, upstream)
        contiguous = graded(packed(bounds_of(66, 14), backend), *(x.contiguous() for x in (*strided, upstream)))
        for result, expected in zip(ours, contiguous):
            torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


@both
def test_cost_is_not_quadratic_in_the_row(backend):
    """A row of 100,000 tokens in short documents: a mask of the whole row would be 10 GB."""
    bounds = bounds_of(*[100] * 1000)
    q, k, v, _ = row(100_000, 1, 1, 4)
    out = packed(bounds, backend)(q, k, v)
    torch.testing.assert_close(out[-100:], alone(q[-100:], k[-100:], v[-100:], bounds_of(100)), rtol=1e-5, atol=1e-5)


def test_threads_do_not_change_a_bit():
    inputs, bounds = row(400, 4, 2, 16), bounds_of(70, 200, 3, 127)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(graded(packed(bounds, "cpu"), *inputs))
    finally:
        torch.set_num_threads(threads)
    for one, two, three in zip(*results):
        assert torch.equal(one, two) and torch.equal(one, three)


@both
def test_checkpointing_recomputes_the_same(backend):
    inputs, function = row(90, 4, 2, 16, torch.bfloat16), packed(bounds_of(70, 20), backend)
    recomputed = graded(lambda *x: checkpoint(function, *x, use_reentrant=False), *inputs)
    for expected, result in zip(graded(function, *inputs), recomputed):
        assert torch.equal(expected, result)


@both
def test_operation_passes_opcheck(backend):
    q, k, v, _ = row(12, 4, 2, 8)
    arguments = (q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), bounds_of(5, 7), 7, 0.3, backend)
    torch.library.opcheck(torch.ops.skytrain.packed_attention.default, arguments)


@both
def test_compiles_without_a_graph_break_for_any_row(backend):
    def block(q, k, v, bounds, longest):
        return packed_attention(q * 2, k, v, bounds, longest, backend=backend) + 1

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    for lengths in ((5, 7), (3, 9, 8)):
        inputs, bounds = row(sum(lengths), 4, 2, 8), bounds_of(*lengths)
        results = [graded(lambda *x, f=f: f(*x, bounds, max(lengths)), *inputs) for f in (block, compiled)]
        for expected, result in zip(*results):
            assert torch.equal(expected, result)


@pytest.mark.parametrize("backend", sorted(attention.BACKENDS))
def test_every_back_end_traces_on_a_cpu(backend):
    """What is saved for backward is the same for all of them, so a trace made here is the GPU's."""
    saved = []
    with (
        FakeTensorMode(),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append((tuple(t.shape), t.dtype)) or t, lambda t: t),
    ):
        q, k, v = (torch.empty(70_000, n, 128, dtype=torch.bfloat16, requires_grad=True) for n in (40, 8, 8))
        bounds = torch.empty(9, dtype=torch.int32)
        out = packed_attention(q, k, v, bounds, 16_384, backend=backend)
        out.sum().backward()
    wide, narrow = ((70_000, 40, 128), torch.bfloat16), ((70_000, 8, 128), torch.bfloat16)
    assert saved == [wide, narrow, narrow, wide, ((40, 70_000), torch.float32), ((9,), torch.int32)]
    assert (q.grad.shape, k.grad.shape, v.grad.shape) == (q.shape, k.shape, v.shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(6, 3, 8), "v": torch.zeros(6, 3, 8)}, "kv_heads dividing heads"),
        ({"k": torch.zeros(5, 2, 8), "v": torch.zeros(5, 2, 8)}, "must be"),
        ({"v": torch.zeros(6, 2, 4)}, "must be"),
        ({"k": torch.zeros(6, 2, 8).half()}, "one dtype"),
        ({"q": torch.zeros(6, 4, 264), "k": torch.zeros(6, 2, 264), "v": torch.zeros(6, 2, 264)}, "above 256"),
        ({"bounds": torch.tensor([0, 4, 2], dtype=torch.int32)}, "must rise"),
        ({"bounds": torch.tensor([0, 7], dtype=torch.int32)}, "must rise"),
        ({"bounds": torch.tensor([-1, 6], dtype=torch.int32)}, "must rise"),
        ({"bounds": torch.tensor([0, 6])}, "int32"),
    ],
)
def test_operands_that_do_not_fit_are_refused(change, message):
    good = {"q": torch.zeros(6, 4, 8), "k": torch.zeros(6, 2, 8), "v": torch.zeros(6, 2, 8), "bounds": bounds_of(6)}
    given = good | change
    with pytest.raises(RuntimeError, match=message):
        packed_attention(given["q"], given["k"], given["v"], given["bounds"], 6, backend="cpu")


def test_auto_takes_the_extension_on_a_cpu_and_the_reference_where_it_is_not_built(monkeypatch):
    assert resolve_backend("auto", "cpu") == "cpu"
    monkeypatch.setattr(attention, "_has_extension", lambda: False)
    assert resolve_backend("auto", "cpu") == "reference"
    with pytest.raises(UserError, match=r"attention\.backend = 'cpu' .*not built.*pip install"):
        resolve_backend("cpu", "cpu")


@pytest.mark.parametrize(
    ("installed", "capability", "expected"),
    [
        ({"flash_attn.cute", "flash_attn.flash_attn_interface"}, (9, 0), "flash_attn_4"),
        ({"flash_attn.cute", "flash_attn.flash_attn_interface"}, (8, 0), "flash_attn"),
        ({"flash_attn.cute"}, (10, 0), "flash_attn_4"),
        ({"flash_attn.flash_attn_interface"}, (9, 0), "flash_attn"),
        (set(), (9, 0), "varlen"),
    ],
)
def test_auto_takes_the_fastest_that_runs_on_a_gpu(monkeypatch, installed, capability, expected):
    monkeypatch.setattr(attention, "_importable", lambda name: name in installed | {"torch.nn.attention.varlen"})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_backend("auto", "cuda") == expected
    assert resolve_backend(expected, "cuda:0") == expected


def test_a_back_end_that_cannot_run_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(attention, "_importable", lambda name: "flash_attn" not in name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for name, device, message in [
        ("sdpa", "cpu", "give one of cpu, reference, varlen"),
        ("varlen", "cpu", "needs a CUDA GPU"),
        ("flash_attn_4", "cpu", "needs a CUDA GPU"),
        ("cpu", "cuda", "for CPUs"),
        ("flash_attn", "cuda", "pip install 'flash-attn>=2.7'"),
        ("flash_attn_4", "cuda", "pip install 'flash-attn-4'"),
        ("varlen", "cuda", "capability 8.0 and this GPU has 7.5"),
    ]:
        with pytest.raises(UserError) as raised:
            resolve_backend(name, device)
        assert message in str(raised.value) and repr(name) in str(raised.value) and "\n" not in str(raised.value)


def test_auto_falls_back_to_the_formula_on_an_old_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert resolve_backend("auto", "cuda") == "reference"

from __future__ import annotations

import functools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accuracy import assert_as_accurate
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from skytrain.kernels import backend
from skytrain.kernels.linear_cross_entropy import chunk_rows, keep_fp32_gradient, linear_cross_entropy

# Triton's interpreter takes CPU tensors; on a GPU machine both back ends are tested there.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: the GPU half of the head")
BIG = 1 << 30


@pytest.fixture(params=["reference", "triton"])
def head(request):
    """linear_cross_entropy on each back end."""
    if request.param == "triton" and backend.triton is None:
        pytest.skip("triton is not installed")
    return functools.partial(linear_cross_entropy, backend=request.param)


def seeds(head) -> range:
    """Errors are compared over many cases; the interpreter takes a millisecond a row."""
    return range(32 if head.keywords["backend"] == "reference" else 3)


def operands(tokens: int, hidden: int, vocab: int, dtype=torch.float32, device=DEVICE, seed: int = 0):
    """(hidden states, head weight, labels), with logits of about unit size."""
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(tokens, hidden, generator=g)
    w = torch.randn(vocab, hidden, generator=g) / hidden**0.5
    y = torch.randint(vocab, (tokens,), generator=g)
    return h.to(device, dtype), w.to(device, dtype), y.to(device)


def plain_loss(h: Tensor, w: Tensor, y: Tensor, coefficients: Tensor) -> Tensor:
    """Plain torch's: all logits, in the operands' dtype; F.cross_entropy on their fp32 copy."""
    logits = F.linear(h, w)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return (F.cross_entropy(wide, y, reduction="none") * coefficients).sum()


def graded(loss_of, h: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, dh, dW) of leaves with the values and the layout of h and w."""
    h, w = (x.detach().requires_grad_() for x in (h, w))
    keep_fp32_gradient(w)
    loss = loss_of(h, w)
    loss.backward()
    return loss.detach(), h.grad, w.grad


def compare(head, cases: list[tuple[Tensor, Tensor, Tensor]], coefficients: Tensor, chunk_bytes: int) -> None:
    """Loss and gradients against plain torch's and fp64's, the errors of all cases taken together."""
    ours, plain, exact = [], [], []

    def fused_loss(h, w, y, coefficients):
        return head(h, w, y, weights=coefficients, chunk_bytes=chunk_bytes)

    for h, w, y in cases:
        ours.append(graded(functools.partial(fused_loss, y=y, coefficients=coefficients), h, w))
        plain.append(graded(functools.partial(plain_loss, y=y, coefficients=coefficients), h, w))
        wide = functools.partial(plain_loss, y=y, coefficients=coefficients.double())
        exact.append(graded(wide, h.double(), w.double()))
        assert ours[-1][0].dtype == ours[-1][2].dtype == torch.float32 and ours[-1][1].dtype == h.dtype
    for i, name in enumerate(("loss", "hidden's gradient", "weight's gradient")):
        assert_as_accurate(*(torch.stack([case[i] for case in results]) for results in (ours, plain, exact)), name)


SHAPES = [(1, 8, 5), (37, 16, 101), (65, 24, 1013), (130, 40, 257)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_as_accurate_as_plain_torch(head, shape, dtype):
    """Chunks of 7 rows, which divide none of the shapes, and a weight of its own for each token."""
    coefficients = torch.rand(shape[0], generator=torch.Generator().manual_seed(1)).to(DEVICE) / shape[0]
    compare(
        head, [operands(*shape, dtype, seed=seed) for seed in seeds(head)], coefficients, chunk_bytes=7 * 4 * shape[2]
    )


@gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_as_accurate_as_plain_torch_on_a_gpu(head, shape, dtype):
    coefficients = torch.full(shape[:1], 1 / shape[0], device="cuda")
    cases = [operands(*shape, dtype, "cuda", seed) for seed in range(32)]
    compare(head, cases, coefficients, chunk_bytes=7 * 4 * shape[2])


@gpu
@needs_gpu
def test_nothing_waits_for_the_gpu(head):
    h, w, y = operands(64, 32, 101, torch.bfloat16, "cuda")
    w.requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        head(h, w, y, scale=0.1, chunk_bytes=4096).backward()
        head(h, w, y, scale=torch.ones((), device="cuda"), chunk_bytes=4096).mul(2).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_b11_bf16_loss_is_near_fp64_and_on_no_coarse_grid():
    """B11: bf16 operands and logits up to about 40: the loss within 1e-3 of fp64's, and near-equal batches differ."""
    h, w, y = operands(48, 64, 301, torch.bfloat16)
    w = (w.double() * 40 / F.linear(h.double(), w.double()).abs().max()).bfloat16()
    assert 35 < F.linear(h.double(), w.double()).abs().max() < 45
    ours, exact = [], []
    for step in range(32):
        near = h.clone()
        near[step, 0] *= 1.01
        ours.append(linear_cross_entropy(near, w, y, scale=1 / len(y), chunk_bytes=9000).item())
        exact.append(F.cross_entropy(F.linear(near.double(), w.double()), y).item())
    ours, exact = torch.tensor(ours, dtype=torch.float64), torch.tensor(exact, dtype=torch.float64)
    assert ((ours - exact).abs() <= 1e-3 * exact).all()
    # bf16 logits near 40 lie 0.25 apart; the small differences between these batches must be seen to 1%.
    differences = exact - exact[0]
    assert len(set(ours.tolist())) >= 24
    assert (ours - ours[0] - differences).abs().max() < 0.01 * differences.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_b12_weight_gradient_is_the_same_from_1_chunk_and_from_64(head, dtype):
    """B12: dW is summed in fp32 over chunks. Summed in bf16 over 64 chunks it is off by about 1%."""
    rows = 8 if head.keywords["backend"] == "reference" else 1
    h, w, y = operands(64 * rows, 32, 211, dtype)

    def run(chunk_bytes):
        return graded(lambda h, w: head(h, w, y, scale=1 / 512, chunk_bytes=chunk_bytes), h, w)

    (loss_1, dh_1, dw_1), (loss_64, dh_64, dw_64) = run(BIG), run(rows * 4 * 211)
    assert (dw_1 - dw_64).norm() <= 1e-6 * dw_1.norm()
    assert (dh_1.float() - dh_64.float()).norm() <= 1e-3 * dh_1.float().norm()
    assert abs(loss_1 - loss_64) <= 1e-6 * loss_1


def test_chunks_keep_to_the_budget(monkeypatch):
    """No product has more rows of logits than the budget holds, and there are no more products than that needs."""
    made, mm = [], torch.mm

    def counting(a, b, **options):
        made.append(a.shape[0] * b.shape[1] * 4)
        return mm(a, b, **options)

    monkeypatch.setattr(torch, "mm", counting)
    h, w, y = operands(100, 8, 50)
    for budget, chunks in ((20_000, 1), (19_999, 2), (4000, 5), (1, 100)):
        made.clear()
        linear_cross_entropy(h, w, y, chunk_bytes=budget)
        assert len(made) == chunks and max(made) <= max(budget, 4 * 50)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [1e4, -50.0])
def test_logits_with_a_common_offset(head, offset, dtype):
    """All logits near -50 in a vocabulary that is a multiple of nothing, or near +1e4."""
    h, w, y = operands(33, 16, 997)
    h[:, 0], w[:, 0] = 1.0, offset
    compare(head, [(h.to(dtype), w.to(dtype), y)], torch.full((33,), 1 / 33, device=DEVICE), chunk_bytes=5 * 4 * 997)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_and_expanded_operands(head, dtype):
    h, w, y = operands(24, 16, 101, dtype)
    coefficients = torch.full((1,), 1 / 24, device=DEVICE).expand(24)
    every_second = torch.stack((h, torch.full_like(h, torch.nan)), 2).flatten(1)[:, ::2]
    transposed = w.t().contiguous().t()
    one_row = h[:1].expand(24, 16)
    labels = torch.stack((y, torch.full_like(y, -1)), 1)[:, 0]
    assert not every_second.is_contiguous() and not transposed.is_contiguous() and one_row.stride(0) == 0
    cases = [(every_second, transposed, labels), (one_row, transposed, labels)]
    compare(head, cases, coefficients, chunk_bytes=5 * 4 * 101)


def test_b6_no_targets_give_zero_loss_and_zero_gradients(head):
    """B6: a micro-batch without targets is in the graph, so that FSDP's collectives run, and is not NaN."""
    h, w, y = operands(0, 8, 11)
    loss, dh, dw = graded(lambda h, w: head(h, w, y, scale=0.5, chunk_bytes=BIG), h, w)
    assert loss == 0 and dh.shape == (0, 8) and dw.shape == (11, 8) and (dw == 0).all()


def test_confident_rows_keep_their_small_gradients(head):
    """p - 1 where p rounds to 1 must not be noise: gradients of nearly certain tokens, against fp64."""
    h, w, y = operands(16, 8, 31)
    w[y] += 4 * h / h.norm(dim=1, keepdim=True)
    compare(head, [(h, w, y)], torch.ones(16, device=DEVICE), chunk_bytes=BIG)


def test_upstream_gradient_and_scale_multiply_alike(head):
    h, w, y = operands(21, 8, 31)

    def run(factor, scale):
        return graded(lambda h, w: factor * head(h, w, y, scale=scale, chunk_bytes=700), h, w)

    for scaled, upstream in zip(run(1.0, 3.0), run(3.0, 1.0)):
        assert (scaled - upstream).norm() <= 1e-6 * scaled.norm()
    for number, tensor in zip(run(1.0, 0.3), run(1.0, torch.tensor(0.3))):
        assert torch.equal(number, tensor)


def test_two_losses_add_their_gradients(head):
    """In-place scaling of one result's gradients must not reach another's."""
    h, w, y = operands(12, 8, 31)

    def both(h, w):
        first, second = (head(h, w, part, chunk_bytes=BIG) for part in (y, y.flip(0)))
        return 2 * first + second

    def each(labels, factor):
        return graded(lambda h, w: factor * head(h, w, labels, chunk_bytes=BIG), h, w)

    for total, first, second in zip(graded(both, h, w), each(y, 2.0), each(y.flip(0), 1.0)):
        torch.testing.assert_close(total, first + second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_second_backward_is_refused(head, factor):
    """The saved gradients become the leaves' own, so using them again would be wrong."""
    h, w, y = operands(5, 8, 11)
    loss = factor * head(h.requires_grad_(), w, y, chunk_bytes=BIG)
    loss.backward(retain_graph=True)
    first = h.grad.clone()
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()
    assert torch.equal(h.grad, first)


class Calls(TorchDispatchMode):
    """Records the operations of skytrain's and their arguments."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.namespace == "skytrain":
            self.seen.append((function, args, result))
        return result


def test_only_the_gradients_that_are_needed_are_made():
    h, w, y = operands(6, 8, 11)
    cases = [(False, False, True), (True, False, True), (False, True, True), (True, True, False)]
    for need_h, need_w, grad_mode in cases:
        with torch.set_grad_enabled(grad_mode), Calls() as calls:
            loss = linear_cross_entropy(
                h.clone().requires_grad_(need_h), w.clone().requires_grad_(need_w), y, chunk_bytes=BIG
            )
        (_, _, (_, dh, dw, _)), *_ = calls.seen
        assert dh.numel() == (h.numel() if need_h and grad_mode else 0)
        assert dw.numel() == (w.numel() if need_w and grad_mode else 0)
        assert loss.requires_grad == (grad_mode and (need_h or need_w))


def test_the_weight_gradient_is_handed_over_without_a_copy():
    """At 152k x 5120 a copy would be 3 GB at the moment when memory is at its fullest."""
    h, w, y = operands(6, 8, 11)
    with Calls() as calls:
        loss = linear_cross_entropy(h, w.requires_grad_(), y, chunk_bytes=BIG)
    made = calls.seen[0][2][2].data_ptr()
    calls.seen.clear()
    loss.backward()
    assert w.grad.data_ptr() == made


class Made(TorchDispatchMode):
    """The largest tensor that an operation newly makes, in elements."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and function is not torch.ops.aten.detach.default:
            self.largest = max(self.largest, result.numel())
        return result


def test_backward_makes_nothing_of_the_weight_s_size(head):
    """Autograd hands zeros for the outputs that nobody used, unless told not to: 3 GB at 152k x 5120."""
    h, w, y = operands(6, 8, 110)
    loss = head(h.requires_grad_(), w.requires_grad_(), y, chunk_bytes=BIG)
    with Made() as made:
        loss.backward()
    assert 0 < made.largest < h.numel()


def test_operations_pass_opcheck(head):
    h, w, y = operands(9, 8, 11)
    name = head.keywords["backend"]
    arguments = (
        h.requires_grad_(),
        w.requires_grad_(),
        y,
        torch.full((9,), 0.1, device=DEVICE),
        4,
        torch.float32,
        True,
        True,
        True,
        name,
    )
    # Not its AOT check: that one returns the saved gradients as well, which backward then scales in place. Only the
    # loss leaves linear_cross_entropy; the next test compiles that.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.skytrain.linear_cross_entropy.default, arguments, test_utils=checks)
    torch.library.opcheck(
        torch.ops.skytrain.multiply_unless_one_.default,
        (torch.ones(3, device=DEVICE), torch.tensor(2.0, device=DEVICE), name),
    )


def test_compiles_without_a_graph_break_for_any_number_of_targets(head):
    def loss_of(h, w, y):
        return 2 * head(h * 1.5, w, y, scale=0.5, chunk_bytes=200)

    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (9, 14):
        h, w, y = operands(tokens, 8, 11)
        both = [graded(functools.partial(f, y=y), h, w) for f in (loss_of, compiled)]
        for eager, traced in zip(*both):
            torch.testing.assert_close(eager, traced, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(3, 5)}, "must be"),
        ({"hidden": torch.zeros(3, 4, dtype=torch.bfloat16)}, "alike"),
        ({"labels": torch.zeros(3, dtype=torch.int32)}, "int64"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, "int64"),
        ({"weights": torch.ones(2)}, "weights"),
        ({"scale": torch.ones((), requires_grad=True)}, "constants"),
        ({"chunk_bytes": 0}, "chunk_bytes"),
        ({"reduction": "none"}, "reduction 'none'"),
        ({"reduction": "mean"}, "reduction 'mean'"),
        ({"rows": torch.ones(2, dtype=torch.bool)}, "rows"),
        ({"rows": torch.zeros(2, dtype=torch.int32)}, "rows"),
        ({"logits_dtype": torch.bfloat16}, "logits_dtype"),
        ({"backend": "liger", "weights": torch.ones(3)}, "liger"),
    ],
)
def test_operands_that_do_not_fit_are_refused(change, message):
    good = {"hidden": torch.zeros(3, 4), "weight": torch.zeros(7, 4), "labels": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**({"chunk_bytes": 100} | good | change))


def test_a_label_outside_the_vocabulary_is_refused():
    h, w, y = operands(3, 4, 7)
    for wrong in (-1, 7):
        with pytest.raises(RuntimeError, match="out of bounds"):
            linear_cross_entropy(h, w, y.clone().fill_(wrong), chunk_bytes=100)


def test_rows_by_index_and_by_mask_are_the_rows_themselves(head):
    """Rows without a target never reach the head; a mask costs a wait, and says so."""
    h, w, y = operands(30, 8, 41)
    weights = torch.linspace(0.1, 1, 30, device=DEVICE)
    mask = torch.arange(30, device=DEVICE) % 3 == 1
    y[~mask] = -100
    index = mask.nonzero()[:, 0]

    def chosen(h, w):
        return head(h[index], w, y[index], weights=weights[index], chunk_bytes=900)

    expected = graded(chosen, h, w)
    for rows in (index, mask):

        def by_rows(h, w, rows=rows):
            return head(h, w, y, weights=weights, rows=rows, chunk_bytes=900)

        if rows is mask:
            with pytest.warns(UserWarning, match="waits for the device"):
                got = graded(by_rows, h, w)
        else:
            got = graded(by_rows, h, w)
        for a, b in zip(got, expected):
            assert torch.equal(a, b)
        assert (got[1][~mask] == 0).all()


def test_no_row_is_a_target(head):
    h, w, y = operands(5, 8, 11)
    none = torch.zeros(5, dtype=torch.bool, device=DEVICE)
    with pytest.warns(UserWarning, match="mask"):
        loss, dh, dw = graded(lambda h, w: head(h, w, y.fill_(-100), rows=none, chunk_bytes=BIG), h, w)
    assert loss == 0 and (dh == 0).all() and (dw == 0).all()


def test_statistics_are_those_of_all_logits(head):
    h, w, y = operands(50, 8, 41)
    logits = F.linear(h.double(), w.double())
    y[::2] = logits.argmax(1)[::2]
    loss, statistics = head(h.requires_grad_(), w, y, statistics=True, chunk_bytes=7 * 4 * 41)
    loss.backward()
    assert statistics.correct == (logits.argmax(1) == y).sum()
    torch.testing.assert_close(statistics.z_squared.double(), logits.logsumexp(1).square().sum(), rtol=1e-6, atol=0)
    assert not statistics.correct.requires_grad
    assert torch.equal(loss, head(h, w, y, chunk_bytes=7 * 4 * 41))


def test_logits_in_bf16_are_nearly_those_in_fp32(head):
    """The setting halves the memory of a chunk: as accurate as plain torch, whose logits are bf16 as well."""
    h, w, y = operands(64, 32, 301, torch.bfloat16)
    coefficients = torch.full((64,), 1 / 64, device=DEVICE)
    compare(functools.partial(head, logits_dtype=torch.bfloat16), [(h, w, y)], coefficients, chunk_bytes=9 * 2 * 301)


def test_chunks_are_even():
    assert chunk_rows(16_384, 152_064, torch.float32, 3072 * 4 * 152_064) == 2816  # 6 chunks; not 5 of 3072 and 1,024
    assert chunk_rows(16_384, 152_064, torch.bfloat16, 3072 * 4 * 152_064) == 5504
    assert chunk_rows(100, 50, torch.float32, 7 * 200) == 7
    assert chunk_rows(0, 50, torch.float32, 1) == 1


class TinyHead(nn.Module):
    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, hidden, labels):
        keep_fp32_gradient(self.weight)
        return linear_cross_entropy(hidden, self.weight, labels, scale=0.1, chunk_bytes=1500)


class TinyModel(nn.Module):
    """An embedding and a head, tied or not."""

    def __init__(self, vocab: int, hidden: int, tied: bool):
        super().__init__()
        _, weight, _ = operands(1, hidden, vocab, seed=3)
        self.embedding = nn.Embedding(vocab, hidden, _weight=weight.flip(0).clone())
        self.head = TinyHead(weight)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids, labels):
        return self.head(self.embedding(ids), labels)


def micro_batches(vocab: int) -> list[list[tuple[Tensor, Tensor]]]:
    """[micro-batch][rank] -> (ids, labels), of different lengths; one rank's second one is empty."""
    g = torch.Generator().manual_seed(5)
    return [
        [(torch.randint(vocab, (n,), generator=g), torch.randint(vocab, (n,), generator=g)) for n in lengths]
        for lengths in ((24, 9), (13, 0))
    ]


def rank_head(cases: list[tuple[int, bool, torch.dtype]]) -> list[tuple[list[float], dict[str, Tensor]]]:
    """(losses, whole gradients) of each case after two micro-batches, the gradient reduced with the second."""
    results = []
    for vocab, tied, dtype in cases:
        model = TinyModel(vocab, 16, tied)
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        groups = [model] if tied else [model.head, model]
        for group in groups:
            fully_shard(group, mp_policy=policy)
            group.set_gradient_divide_factor(1.0)
            group.set_force_sum_reduction_for_comms(True)
        losses = []
        for count, batch in enumerate(micro_batches(vocab)):
            model.set_requires_gradient_sync(count == 1)
            loss = model(*batch[dist.get_rank()])
            loss.backward()
            losses.append(loss.item())
        gradients = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
        results.append((losses, gradients))
    return results


def test_b14_sharded_head_on_two_ranks_equals_one():
    """B14: under FSDP2 the fused head sees its whole weight, in a group of its own and tied in the root group, also
    where ranks do not divide the vocabulary; and its gradient reaches the reduction in fp32, not rounded to bf16."""
    cases = [(vocab, tied, dtype) for vocab, tied in ((101, False), (101, True), (64, False))
             for dtype in (torch.float32, torch.bfloat16)]  # fmt: skip
    ranks = run_ranks(2, rank_head, cases)
    for case, (vocab, tied, dtype) in enumerate(cases):
        model = TinyModel(vocab, 16, tied).to(dtype)
        losses = [[model(*row) for row in batch] for batch in micro_batches(vocab)]
        sum(loss for batch in losses for loss in batch).backward()
        for rank in range(2):
            assert ranks[rank][case][0] == pytest.approx([batch[rank].item() for batch in losses], rel=1e-6)
            gradient, expected = ranks[rank][case][1], model.head.weight.grad
            sharded = gradient["embedding.weight" if tied else "head.weight"]
            assert sharded.dtype == expected.dtype == torch.float32
            # A tied weight's gradient has the embedding's part in it, which is bf16 and summed in another order.
            tolerance = 1e-6 if dtype == torch.float32 or not tied else 2e-3
            assert (sharded - expected).norm() <= tolerance * expected.norm()
            assert (sharded != sharded.bfloat16()).float().mean() > 0.9

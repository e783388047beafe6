"""The pass over a chunk of logits, in both halves, against fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_as_accurate

from skytrain.kernels import backend
from skytrain.kernels.cross_entropy import BLOCK, cross_entropy_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=["reference", "triton"])
def name(request):
    if request.param == "triton" and backend.triton is None:
        pytest.skip("triton is not installed")
    return request.param


def operands(rows: int, vocab: int, dtype=torch.float32, seed: int = 0):
    """(logits, labels, coefficients); the first label is a certain one."""
    g = torch.Generator().manual_seed(seed)
    z = (3 * torch.randn(rows, vocab, generator=g)).to(dtype)
    y = torch.randint(vocab, (rows,), generator=g)
    y[0] = z[0].argmax()
    return z.to(DEVICE), y.to(DEVICE), torch.rand(rows, generator=g).to(DEVICE)


def plain(z, y, c):
    """(loss, dz) of plain torch in z's dtype, the loss in fp32 or better."""
    z = z.detach().requires_grad_()
    loss = F.cross_entropy(z if z.dtype == torch.float64 else z.float(), y, reduction="none")
    (loss * c).sum().backward()
    return loss.detach(), z.grad


def check(name, z, y, c, gradient_dtype, rows_a_call: int = 5):
    exact = plain(z.double(), y, c.double())
    torchs = plain(z, y, c)
    calls = [
        cross_entropy_(*parts, gradient_dtype=gradient_dtype, statistics=True, backend=name)
        for parts in zip(z.clone().split(rows_a_call), y.split(rows_a_call), c.split(rows_a_call))
    ]
    loss, dz, correct, lse = map(torch.cat, zip(*calls))
    assert_as_accurate(loss, torchs[0], exact[0], "loss")
    assert_as_accurate(dz, torchs[1].to(gradient_dtype), exact[1], "gradient")
    assert_as_accurate(lse, torch.logsumexp(z.float(), 1), torch.logsumexp(z.double(), 1), "logsumexp")
    assert torch.equal(correct.bool(), z.double().argmax(1) == y)


@pytest.mark.parametrize("vocab", [1, 2, 5, 1013, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
@pytest.mark.parametrize(
    ("dtype", "gradient_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
    ],
)
def test_loss_and_gradient(name, vocab, dtype, gradient_dtype):
    """Also where the narrower gradient lies over the logits that are still to be read."""
    check(name, *operands(5, vocab, dtype), gradient_dtype)


def test_one_row(name):
    check(name, *operands(16, 77), torch.float32, rows_a_call=1)


@pytest.mark.parametrize("offset", [1e4, -50.0, -1e4])
@pytest.mark.parametrize("vocab", [997, BLOCK + 5])
def test_a_common_offset(name, offset, vocab):
    """Lanes beyond the vocabulary must not win where all logits are far below 0."""
    z, y, c = operands(4, vocab)
    check(name, z + offset, y, c, torch.float32)


def test_rows_of_wider_memory_and_strided_labels(name):
    """As the head lays them out: rows padded to 16 elements, whose padding is not read and not written."""
    z, y, c = operands(4, 1013)
    memory = torch.full((4, 1024), torch.nan, device=DEVICE)
    memory[:, :1013] = z
    labels = torch.stack((y, torch.full_like(y, -1)), 1)[:, 0]
    loss, dz, _, _ = cross_entropy_(
        memory[:, :1013], labels, c[:1].expand(4), gradient_dtype=torch.float32, statistics=False, backend=name
    )
    expected = plain(z, y, c[:1].expand(4))
    torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dz, expected[1], rtol=1e-5, atol=1e-6)
    assert memory[:, 1013:].isnan().all()


def test_infinite_and_nan_logits_show_in_the_loss(name):
    """So that the guard of the training step sees them; a logit of -inf is a probability of 0."""
    z, y, c = operands(4, BLOCK + 3)
    z[0, 3], z[1, BLOCK + 1], z[2, :5] = torch.nan, torch.inf, -torch.inf
    y[:] = 7
    loss, _, _, _ = cross_entropy_(z.clone(), y, c, gradient_dtype=torch.float32, statistics=False, backend=name)
    assert loss.isfinite().tolist() == [False, False, True, True]
    torch.testing.assert_close(loss[2:], plain(z[2:], y[2:], c[2:])[0])


def test_equal_logits_name_the_first_as_the_largest(name):
    """Ties are common in bf16: a label is right if no other is larger and no equal one comes before it."""
    z = torch.zeros(3, BLOCK + 9, device=DEVICE)
    z[:, 5], z[:, BLOCK + 2] = 1.0, 1.0
    y = torch.tensor([5, BLOCK + 2, 0], device=DEVICE)
    ones = torch.ones(3, device=DEVICE)
    _, _, correct, _ = cross_entropy_(z, y, ones, gradient_dtype=None, statistics=True, backend=name)
    assert correct.tolist() == [1, 0, 0]


def test_a_label_outside_the_vocabulary_is_no_finite_loss():
    """A kernel cannot raise; it must not read what lies beside the row either."""
    if backend.triton is None:
        pytest.skip("triton is not installed")
    z, y, c = operands(3, 50)
    y[:] = torch.tensor([-100, 50, 3])
    loss, _, _, _ = cross_entropy_(z, y, c, gradient_dtype=torch.float32, statistics=False, backend="triton")
    assert loss.isfinite().tolist() == [False, False, True]


def test_without_a_gradient_the_logits_are_only_read():
    if backend.triton is None:
        pytest.skip("triton is not installed")
    z, y, c = operands(3, 50)
    before = z.clone()
    _, dz, correct, lse = cross_entropy_(z, y, c, gradient_dtype=None, statistics=False, backend="triton")
    assert dz is None and correct.numel() == lse.numel() == 0 and torch.equal(z, before)

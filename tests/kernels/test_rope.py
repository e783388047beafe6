"""Rotary embedding: kernel and reference against fp64 and the model's own formula, in every layout."""

from __future__ import annotations

import functools

import pytest
import torch
from accuracy import assert_as_accurate
from layouts import layouts
from torch import Tensor

from skytrain.kernels import backend as backend_module
from skytrain.kernels import rope as module
from skytrain.kernels.rope import rope
from skytrain.rotary import Rope, rotary_tables

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

both = pytest.mark.parametrize("backend", ["triton", "reference"])


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As Hugging Face's models have it, in fp32, rounded once."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def tables(tokens: int, rotary_dim: int) -> tuple[Tensor, Tensor]:
    """Of yarn, whose tables are scaled, so that turning back is not the inverse; positions far from 0."""
    settings = Rope("yarn", 10000.0, factor=4.0, original_max_position_embeddings=4096, attention_factor=1.3)
    return rotary_tables(settings, rotary_dim, torch.arange(tokens, device=DEVICE) + 30000)


def plain(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
    """Written out from the definition, pair by pair; in fp32, or fp64 where q is."""
    cos, sin = cos[:, None], sin[:, None]
    rotated = []
    for x in (q, k):
        wide = x if x.dtype == torch.float64 else x.float()
        half = cos.shape[-1]
        first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
        rotated.append(torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1).to(x.dtype))
    return rotated


def graded(function, q: Tensor, k: Tensor, d_q: Tensor, d_k: Tensor) -> list[Tensor]:
    """The rotated, and the gradients of leaves with the operands' values and layout."""
    q, k = (x.detach().requires_grad_() for x in (q, k))
    out = function(q, k)
    torch.autograd.backward(out, [d_q, d_k])
    return [*(x.detach() for x in out), q.grad, k.grad]


def compare(backend: str, q: Tensor, k: Tensor, d_q: Tensor, d_k: Tensor, cos: Tensor, sin: Tensor) -> None:
    got = graded(functools.partial(rope, cos=cos, sin=sin, backend=backend), q, k, d_q, d_k)
    peer = graded(functools.partial(plain, cos=cos, sin=sin), q, k, d_q, d_k)
    wide = functools.partial(plain, cos=cos.double(), sin=sin.double())
    exact = graded(wide, *(x.double() for x in (q, k, d_q, d_k)))
    for name, *results in zip(("q", "k", "d_q", "d_k"), got, peer, exact):
        assert results[0].dtype == q.dtype
        assert_as_accurate(*results, what=name)


def operands(tokens: int, q_heads: int, k_heads: int, head_dim: int, dtype=torch.float32) -> list[Tensor]:
    """q, k and the gradients from above of the rotated ones."""
    return [
        random(tokens, heads, head_dim, dtype=dtype, seed=seed) for seed, heads in enumerate([q_heads, k_heads] * 2)
    ]


@both
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("q_heads", "k_heads", "head_dim", "rotary_dim"),
    [
        (5, 1, 128, 128),
        (12, 3, 64, 64),
        (3, 2, 80, 80),
        (2, 2, 10, 6),
        (9, 1, 96, 32),
        (1, 1, 2, 2),
        (2, 1, 2048, 2048),
    ],
)
def test_as_accurate_as_plain_torch(q_heads, k_heads, head_dim, rotary_dim, dtype, backend):
    """A single KV head, many, head sizes that are no power of two, part of a head left as it is."""
    compare(backend, *operands(3, q_heads, k_heads, head_dim, dtype), *tables(3, rotary_dim))


@both
@pytest.mark.parametrize(("k_heads", "rotary_dim"), [(1, 64), (2, 24)])
def test_every_layout(k_heads, rotary_dim, backend):
    tensors = [*operands(6, 3, k_heads, 64), *tables(6, rotary_dim)]
    # Each operand in turn: q, k, the gradients from above and the tables.
    for place in range(6):
        for _, changed in layouts(tensors[place]):
            compare(backend, *tensors[:place], changed, *tensors[place + 1 :])
        repeated = tensors[place][:1].expand_as(tensors[place])
        compare(backend, *tensors[:place], repeated, *tensors[place + 1 :])
    number = random(1, 1, 1)
    compare(backend, tensors[0], tensors[1], number.expand(6, 3, 64), number.expand(6, k_heads, 64), *tensors[4:])


@both
def test_heads_of_a_fused_projection_are_read_in_place(backend, monkeypatch):
    fused = random(4, (6 + 2 + 2) * 64).view(4, -1, 64)
    q, k = fused[:, :6], fused[:, 6:8]
    pointers = []
    launch = backend_module.launch

    def record(kernel, grid, *arguments, **options):
        pointers.append([x.data_ptr() for x in arguments if isinstance(x, Tensor)])
        launch(kernel, grid, *arguments, **options)

    monkeypatch.setattr(backend_module, "launch", record)
    before = fused.clone()
    compare(backend, q, k, random(4, 6, 64, seed=1), random(4, 2, 64, seed=2), *tables(4, 64))
    assert torch.equal(fused, before)
    # One launch each way, for q and k together.
    assert len(pointers) == (2 if backend == "triton" else 0)
    assert all(places[:2] == [q.data_ptr(), k.data_ptr()] for places in pointers[:1])  # Forward's.


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_the_models_formula(dtype):
    q, k, d_q, d_k = operands(30, 4, 1, 64, dtype)
    cos, sin = tables(30, 64)
    ours = graded(functools.partial(rope, cos=cos, sin=sin, backend="reference"), q, k, d_q, d_k)
    theirs = graded(lambda q, k: [rotate(q, cos, sin), rotate(k, cos, sin)], q, k, d_q, d_k)
    for a, b in zip(ours, theirs):
        assert torch.equal(a, b)


@both
def test_gradients_from_above_are_left_alone(backend):
    cos, sin = tables(3, 16)
    tensors = operands(3, 2, 1, 16)
    before = [x.clone() for x in tensors]
    graded(functools.partial(rope, cos=cos, sin=sin, backend=backend), *tensors)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before))


@both
@pytest.mark.parametrize(("tokens", "k_heads"), [(0, 1), (1, 1), (2, 0)])
def test_no_token_one_token_no_key(tokens, k_heads, backend):
    cos, sin = tables(tokens, 16)
    tensors = operands(tokens, 2, k_heads, 16)
    results = graded(functools.partial(rope, cos=cos, sin=sin, backend=backend), *tensors)
    assert [x.shape for x in results] == [x.shape for x in tensors]
    if tokens == 1:
        compare(backend, *tensors, cos, sin)


def test_tokens_further_apart_than_int32_reaches():
    q = torch.empty(2**31 + 256, dtype=torch.float16, device=DEVICE).as_strided((3, 2, 16), (2**30 + 16, 16, 1))
    q.copy_(random(3, 2, 16, dtype=torch.float16))
    k = random(3, 1, 16, dtype=torch.float16, seed=1)
    far, near = (rope(x, k, *tables(3, 16), backend="triton") for x in (q, q.contiguous()))
    assert torch.equal(far[0], near[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(3, 1, 8)}, r"q \(3, 2, 16\) and k \(3, 1, 8\)"),
        ({"k": torch.zeros(4, 1, 16)}, "one T and one D"),
        ({"k": torch.zeros(3, 1, 16).half()}, r"q is torch.float32, k torch.float16"),
        ({"cos": torch.zeros(3, 9), "sin": torch.zeros(3, 9)}, r"cos \(3, 9\).* 0 < R <= 16"),
        ({"cos": torch.zeros(3, 0), "sin": torch.zeros(3, 0)}, r"cos \(3, 0\)"),
        ({"cos": torch.zeros(4, 8), "sin": torch.zeros(4, 8)}, "T = 3 tokens"),
        ({"sin": torch.zeros(3, 7)}, r"sin \(3, 7\)"),
        ({"sin": torch.zeros(3, 8).half()}, r"cos is torch.float32, sin torch.float16"),
        ({"sin": torch.zeros(3, 8).requires_grad_()}, "must not require a gradient"),
        ({"backend": "auto"}, "not auto"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    fitting = {
        "q": torch.zeros(3, 2, 16),
        "k": torch.zeros(3, 1, 16),
        "cos": torch.zeros(3, 8),
        "sin": torch.zeros(3, 8),
    }
    with pytest.raises(ValueError, match=message):
        rope(**(fitting | {"backend": "reference"} | change))


@both
def test_opcheck(backend):
    q, k = (x.requires_grad_() for x in operands(4, 3, 1, 16)[:2])
    torch.library.opcheck(module._rotate, (q, k, *tables(4, 16), False, backend))
    transposed = q.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    torch.library.opcheck(module._rotate, (transposed, k, *tables(4, 8), True, backend))


def test_under_compile():
    cos, sin = tables(3, 16)
    function = functools.partial(rope, cos=cos, sin=sin, backend="triton")
    compiled = torch.compile(function, fullgraph=True)
    for got, expected in zip(*(graded(f, *operands(3, 2, 1, 16)) for f in (compiled, function))):
        assert torch.equal(got, expected)


@pytest.mark.gpu
@pytest.mark.skipif(backend_module.obstacle("liger", torch.device(DEVICE)) is not None, reason="needs a GPU and liger")
@pytest.mark.parametrize("k_heads", [1, 8])
def test_liger_agrees(k_heads):
    cos, sin = tables(100, 128)
    liger, reference = (
        graded(
            functools.partial(rope, cos=cos, sin=sin, backend=backend), *operands(100, 8, k_heads, 128, torch.bfloat16)
        )
        for backend in ("liger", "reference")
    )
    for got, expected in zip(liger, reference):
        torch.testing.assert_close(got, expected)

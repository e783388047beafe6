from __future__ import annotations

import pytest
import torch
from accuracy import assert_as_accurate
from torch import Tensor

from skytrain.kernels import adamw, backend
from skytrain.kernels.adamw import FORMATS, AdamW, bias_corrections
from skytrain.kernels.quantize import GROUP, join

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("triton", "reference")
# Whole groups, part groups, one row, three dimensions, vectors, empty shards, a scalar; a tensor of two programs.
SHAPES = [(17, 128), (3, 256), (7, 130), (1, 1), (2, 3, 40), (130,), (64,), (0, 128), (0,), ()]
NONE = {"divisor": torch.ones((), device=DEVICE), "skip": torch.zeros((), device=DEVICE)}


def dtype_of(format: str) -> torch.dtype:
    return torch.bfloat16 if format == "split_8bit" else torch.float32


def randn(shape, dtype, generator) -> Tensor:
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def snapshot(optimizer: AdamW) -> dict[str, Tensor]:
    """Everything an optimizer holds, by name."""
    everything = {f"weight.{i}": p for i, p in enumerate(optimizer.parameters)} | {"steps": optimizer.steps}
    for kind, tensors in optimizer.state.items():
        everything |= {f"{kind}.{i}": t for i, t in enumerate(tensors) if t is not None}
    return {name: t.clone() for name, t in everything.items()}


def masters(optimizer: AdamW) -> list[Tensor]:
    """The fp32 weights."""
    if "remainder" not in optimizer.state:
        return optimizer.parameters
    return [join(p, r) for p, r in zip(optimizer.parameters, optimizer.state["remainder"])]


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """To the bit in the interpreter. On a GPU, where products and sums are contracted, within an ulp or a code."""
    assert ours.keys() == theirs.keys()
    for name, a in ours.items():
        b = theirs[name]
        assert a.dtype == b.dtype and a.shape == b.shape
        if DEVICE == "cpu":
            assert torch.equal(a, b), name
        elif name.startswith("remainder"):
            continue
        elif a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=8 * torch.finfo(a.dtype).eps, atol=1e-8)
        else:
            assert (a.int() - b.int()).abs().max() <= 1 if a.numel() else True, name


def run(format, backend, shapes=SHAPES, steps=2, seed=0, rate=1e-2, **options) -> AdamW:
    g = torch.Generator().manual_seed(seed)
    parameters = [randn(s, dtype_of(format), g) for s in shapes]
    optimizer = AdamW(parameters, [0.1 * (len(s) > 1) for s in shapes], format=format, backend=backend, **options)
    for step in range(steps):
        gradients = [randn(s, dtype_of(format), g) for s in shapes]
        divisor = torch.tensor(1.0 + step, device=DEVICE)
        optimizer.step(gradients, rate, divisor, NONE["skip"])
    return optimizer


@pytest.mark.parametrize("format", FORMATS)
def test_kernel_equals_reference(format):
    assert_equal(*(snapshot(run(format, name, betas=(0.8, 0.95), eps=1e-6)) for name in BACKENDS))


@pytest.mark.parametrize("backend", BACKENDS)
def test_fp32_is_as_accurate_as_torch(backend):
    """50 steps against fp64, beside torch's fused step."""
    g = torch.Generator().manual_seed(1)
    shapes, decays, rate = [(9, 128), (64,)], [0.1, 0.0], 3e-3
    start = [randn(s, torch.float32, g) for s in shapes]
    ours = AdamW([p.clone() for p in start], decays, backend=backend, betas=(0.9, 0.99))
    peers = []
    for dtype, fused in ((torch.float32, True), (torch.float64, False)):
        copies = [p.to(dtype) for p in start]
        groups = [{"params": [p], "weight_decay": d} for p, d in zip(copies, decays)]
        peers.append((copies, torch.optim.AdamW(groups, rate, (0.9, 0.99), fused=fused)))
    for _ in range(50):
        gradients = [randn(s, torch.float32, g) * 1e-3 for s in shapes]
        for copies, peer in peers:
            for p, gradient in zip(copies, gradients):
                p.grad = gradient.to(p.dtype) / 3
            peer.step()
        ours.step(gradients, rate, torch.tensor(3.0, device=DEVICE), NONE["skip"])
    for i in range(len(shapes)):
        (plain, plain_optimizer), (exact, exact_optimizer) = peers
        assert_as_accurate(ours.parameters[i], plain[i], exact[i], f"weight {i}")
        for moment in ("exp_avg", "exp_avg_sq"):
            assert_as_accurate(
                ours.state[moment][i],
                plain_optimizer.state[plain[i]][moment],
                exact_optimizer.state[exact[i]][moment],
                moment,
            )


@pytest.mark.parametrize("backend", BACKENDS)
def test_split_weights_equal_fp32_weights_to_the_bit(backend):
    """Fed the same gradients, with fp32 moments (vectors) and with 8-bit moments; at rates too small for bf16."""
    g = torch.Generator().manual_seed(2)
    shapes = [(3, 256), (5, 70), (300,)]
    start = [randn(s, torch.bfloat16, g) for s in shapes]
    made = {
        format: AdamW([p.to(dtype_of(format), copy=True) for p in start], [0.1] * 3, format=format, backend=backend)
        for format in FORMATS
    }
    for _ in range(4):
        gradients = [randn(s, torch.bfloat16, g) for s in shapes]
        for format, optimizer in made.items():
            optimizer.step([x.to(dtype_of(format)) for x in gradients], 1e-5, **NONE)
    split_weights, coded, plain = (masters(made[f]) for f in ("split_8bit", "fp32_8bit", "fp32"))
    for a, b, before in zip(split_weights, coded, start):
        assert torch.equal(a, b) and not torch.equal(a, before.float())
    assert torch.equal(split_weights[2], plain[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_decay_is_each_tensor_s_own_and_reaches_split_weights(backend):
    """Decay alone at a product of 1e-5, which bf16 weights cannot feel; and none for the second tensor."""
    weights = [torch.full((2, 128), 1.5, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)]
    optimizer = AdamW(weights, [0.1, 0.0], format="split_8bit", backend=backend)
    for _ in range(20):
        optimizer.step([torch.zeros_like(w) for w in weights], 1e-4, **NONE)
    decayed, kept = masters(optimizer)
    assert (kept == 1.5).all() and (weights[0] == 1.5).all()
    torch.testing.assert_close(
        decayed.double(), torch.full_like(decayed, 1.5 * (1 - 1e-5) ** 20).double(), rtol=2e-6, atol=0
    )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_skipped_step_changes_nothing(backend, format):
    optimizer = run(format, backend, steps=1)
    before = snapshot(optimizer)
    gradients = [torch.full_like(p, torch.nan) for p in optimizer.parameters]
    optimizer.step(gradients, 1.0, torch.tensor(torch.nan, device=DEVICE), torch.ones((), device=DEVICE))
    after = snapshot(optimizer)
    assert all(torch.equal(before[name], after[name]) for name in before) and optimizer.steps == 1


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.95, 0.9999)])
def test_bias_corrections_are_exact(betas):
    for steps in (1, 2, 10, 1000, 100_000):
        got = bias_corrections(torch.tensor(betas, dtype=torch.float64), torch.tensor(float(steps)))
        exact = torch.tensor([1 / (1 - betas[0] ** steps), (1 - betas[1] ** steps) ** -0.5], dtype=torch.float64)
        assert got.dtype == torch.float32 and ((got - exact).abs() <= 6e-8 * exact).all()


@pytest.mark.parametrize("format", FORMATS)
def test_any_address_and_any_layout(format):
    """Misaligned weights and gradients, gradients that move in memory, strided and expanded ones: the same results."""
    dtype = dtype_of(format)
    g = torch.Generator().manual_seed(3)
    start = [randn((5, 256), dtype, g), randn((6, 128), dtype, g), randn((40,), dtype, g)]

    def shifted(x: Tensor) -> Tensor:
        """A contiguous copy whose address is a multiple of its item size alone."""
        memory = torch.full((x.numel() + 9,), torch.nan, dtype=x.dtype, device=x.device)
        memory[1:-8] = x.flatten()
        return memory[1:-8].view(x.shape)

    plain = AdamW([p.clone() for p in start], [0.1] * 3, format=format, backend="triton")
    moved = AdamW([shifted(p) for p in start], [0.1] * 3, format=format, backend="triton")
    aligned_weights = AdamW([p.clone() for p in start], [0.1] * 3, format=format, backend="triton")
    kept = []
    for _ in range(2):
        gradients = [randn((5, 1), dtype, g).expand(5, 256), randn((128, 6), dtype, g).t(), randn((80,), dtype, g)[::2]]
        plain.step([x.clone(memory_format=torch.contiguous_format) for x in gradients], 1e-2, **NONE)
        moved.step(gradients, 1e-2, **NONE)
        kept.append([shifted(x) for x in gradients])
        aligned_weights.step(kept[-1], 1e-2, **NONE)
    for other in (moved, aligned_weights):
        assert_equal(snapshot(other), snapshot(plain))


def test_gradients_at_new_addresses_are_found():
    """Also where the old ones are still alive and hold other values."""
    p = torch.zeros(2, 128, device=DEVICE)
    optimizer = AdamW([p], [0.0], backend="triton", betas=(0.0, 0.0))
    first, second = torch.ones_like(p), -torch.ones_like(p)
    for gradient, expected in ((first, -1.0), (second, 0.0), (second, 1.0), (first, 0.0)):
        optimizer.step([gradient], 1.0, **NONE)
        assert torch.allclose(p, torch.full_like(p, expected), atol=1e-6)


def test_offsets_past_two_to_the_31():
    """A table that places the tensor's start 2^33 elements before its memory, of which the last block alone is run."""
    before, memory = 1 << 33, [torch.ones(3, 128, device=DEVICE) for _ in range(3)]
    gradient = torch.ones(3, 128, device=DEVICE)
    for elements in (before + 384, before + 128 + 3):
        for x in memory:
            x.fill_(1.0)
        address = [x.data_ptr() - 4 * before for x in memory]
        table = torch.tensor([[address[0], 0, address[1], address[2], 0, 0, elements, elements]], device=DEVICE)
        block = torch.tensor([[0, before // (GROUP * adamw.GROUPS)]], dtype=torch.int32, device=DEVICE)
        scalars = (torch.ones((), device=DEVICE), torch.ones(2, device=DEVICE), NONE["divisor"], NONE["skip"])
        addresses = torch.tensor([gradient.data_ptr() - 4 * before], device=DEVICE)
        decays = torch.zeros(1, device=DEVICE)
        adamw._launch(table, block, addresses, decays, scalars, (0.5, 1.0, 1.0, 1e-8), "fp32")
        changed = memory[0].flatten() != 1
        assert changed[: elements - before].all() and not changed[elements - before :].any()


class Recorder:
    """Counts launches and the programs of each, and starts none."""

    def __init__(self):
        self.grids = []

    def __call__(self, kernel, grid, *arguments, **options):
        self.grids.append(grid)


@pytest.mark.parametrize("format", FORMATS)
def test_one_launch_whatever_the_number_of_tensors(format, monkeypatch):
    """1.2e9 parameters in 300 tensors, and 3,000 small ones; on tensors without memory."""
    monkeypatch.setattr(backend, "launch", recorder := Recorder())
    monkeypatch.setattr(adamw, "resolve", lambda name, device: "triton")
    for shapes in ([(4000, 1024)] * 298 + [(1024,)] * 2, [(3, 8), (7,), (130,)] * 1000):
        parameters = [torch.empty(s, dtype=dtype_of(format), device="meta") for s in shapes]
        optimizer = AdamW(parameters, [0.0] * len(shapes), format=format)
        optimizer.step(parameters, 1e-3, *(torch.empty((), device="meta") for _ in range(2)))
        programs = sum(-(-p.numel() // 2048) for p in parameters)
        assert recorder.grids.pop() == (programs,) and not recorder.grids


@pytest.mark.parametrize(
    ("format", "memory", "traffic"), [("fp32", 16, 28), ("fp32_8bit", 10.2, 16.2), ("split_8bit", 8.2, 14.2)]
)
def test_memory_and_traffic_a_parameter(format, memory, traffic, monkeypatch):
    """Every byte is read once and written once: counted in the interpreter."""
    p = torch.zeros(64, 128, dtype=dtype_of(format), device=DEVICE)
    optimizer = AdamW([p], [0.0], format=format, backend="triton")
    held = [p, p] + [t for tensors in optimizer.state.values() for t in tensors if t is not None]
    assert sum(t.numel() * t.element_size() for t in held) <= memory * p.numel()
    if DEVICE == "cpu":
        from triton.runtime.interpreter import InterpreterBuilder

        moved = []

        def count(name, mask_at):
            original = getattr(InterpreterBuilder, name)

            def counted(self, pointers, *rest):
                moved.append(rest[mask_at].data.sum() * pointers.get_element_ty().primitive_bitwidth // 8)
                return original(self, pointers, *rest)

            monkeypatch.setattr(InterpreterBuilder, name, counted)

        count("create_masked_load", 0)
        count("create_masked_store", 1)
        optimizer.step([torch.ones_like(p)], 1e-3, **NONE)
        assert traffic * 0.98 * p.numel() <= sum(moved) <= 1.02 * traffic * p.numel()


@pytest.mark.parametrize("format", FORMATS)
def test_state_is_sharded_like_the_parameter(format):
    """Also on a rank whose shard is empty; vectors keep fp32 moments."""
    state = run(format, "reference", steps=0).state
    assert all(len(tensors) == len(SHAPES) for tensors in state.values())
    for i, shape in enumerate(SHAPES):
        coded = format != "fp32" and len(shape) > 1
        moments = state["exp_avg"][i], state["exp_avg_sq"][i]
        assert [m.dtype for m in moments] == ([torch.int8, torch.uint8] if coded else [torch.float32] * 2)
        assert all(m.shape == shape for m in moments)
        if format != "fp32":
            scales = state["exp_avg_max"][i], state["exp_avg_sq_max"][i]
            rows = (*shape[:-1], -(-shape[-1] // GROUP)) if coded else None
            assert all(s.shape == rows and s.dtype == torch.float32 if coded else s is None for s in scales)


def drift(sigma, magnitude, beta2, steps, *, mean=0.3, shrinking=False) -> tuple[float, float]:
    """Distance of the weights of `fp32_8bit` from exact Adam's, over the distance moved; and the most that an element
    moved over the most of exact Adam's. Rate 1, no decay, eps as small beside the gradients as 1e-8 beside 1."""
    g = torch.Generator().manual_seed(0)
    shape, eps = (32, 2 * GROUP), 1e-8 * magnitude
    size = torch.exp(sigma * torch.randn(shape, generator=g)) * magnitude
    means, shrunk = mean * torch.randn(shape, generator=g), torch.rand(shape, generator=g) < 0.5
    # Weights of 0 and small steps, so that their own rounding plays no part.
    ours = AdamW([torch.zeros(shape)], [0.0], format="fp32_8bit", betas=(0.9, beta2), eps=eps, backend="reference")
    exact = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.AdamW([exact], 1.0, (0.9, beta2), eps=eps, weight_decay=0.0)
    for step in range(steps):
        gradient = (torch.randn(shape, generator=g) + means) * size
        if shrinking and step >= 200:
            gradient = torch.where(shrunk, 0.1 * gradient, gradient)
        exact.grad = gradient.double()
        adam.step()
        ours.step([gradient], 1.0, torch.ones(()), torch.zeros(()))
    exact, moved = exact.detach(), ours.parameters[0]
    return ((moved - exact).norm() / exact.norm()).item(), (moved.abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize("beta2", [0.95, 0.999])
@pytest.mark.parametrize(("sigma", "after_50", "after_200"), [(0.0, 0.02, 0.04), (1.0, 0.1, 0.1), (2.0, 0.15, 0.2)])
@pytest.mark.parametrize("magnitude", [1.0, 1e-3, 1e-6, 1e-9])
def test_8bit_moments_stay_near_exact_adam(magnitude, sigma, after_50, after_200, beta2):
    """Gradients of one scale, and of scales that differ within a group; 1e-6 and 1e-9, where fp16 scales underflow.

    A first moment rounded to nearest where its codes lie far apart keeps its code for ever: elements of 1e-6 of their
    group's largest then move 7 times as far as exact Adam's.
    """
    for steps, most in ((50, after_50), (200, after_200)):
        for mean in (0.0, 0.3):
            error, farthest = drift(sigma, magnitude, beta2, steps, mean=mean)
            assert error <= most, f"{steps} steps, mean {mean}"
            assert farthest < 1.5, f"{steps} steps, mean {mean}"


def test_second_moments_follow_gradients_that_shrink():
    """Rounded to nearest they keep their codes, and the drift is 40%."""
    assert drift(1.0, 1.0, 0.999, 1200, shrinking=True)[0] < 0.1


def test_tiny_huge_and_zero_gradients_stay_finite():
    for value in (0.0, 1e-45, 1e-30, 1e-20, 1e15):
        for name in BACKENDS:
            p = torch.zeros(2, 130, device=DEVICE)
            optimizer = AdamW([p], [0.0], format="fp32_8bit", backend=name)
            for _ in range(2):
                optimizer.step([torch.full_like(p, value)], 1.0, **NONE)
            assert torch.isfinite(p).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "int4"}, "unknown optimizer format"),
        ({"format": "split_8bit"}, "bfloat16"),
        ({"decays": []}, "as many"),
        ({"parameters": [torch.zeros(4, 3).t()]}, "contiguous"),
        ({"parameters": [torch.zeros(3).bfloat16()]}, "float32"),
        ({"parameters": [], "decays": []}, "at least 1"),
        ({"backend": "cuda"}, "unknown"),
    ],
)
def test_what_cannot_be_built_is_refused(change, message):
    good = {"parameters": [torch.zeros(3)], "decays": [0.0], "backend": "reference"}
    with pytest.raises(ValueError, match=message):
        AdamW(**(good | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradients": []}, "0 gradients for 1"),
        ({"gradients": [torch.zeros(4)]}, "gradient 0"),
        ({"gradients": [torch.zeros(3).half()]}, "float16"),
        ({"divisor": torch.ones(1)}, "divisor"),
        ({"skip": torch.tensor(False)}, "skip"),
    ],
)
def test_what_cannot_be_stepped_is_refused(change, message):
    good = {"gradients": [torch.zeros(3)], "rate": 0.1, "divisor": torch.ones(()), "skip": torch.zeros(())}
    optimizer = AdamW([torch.zeros(3)], [0.0], backend="reference")
    with pytest.raises(ValueError, match=message):
        optimizer.step(**(good | change))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device: that no step waits for it")
@pytest.mark.parametrize("format", FORMATS)
def test_nothing_waits_for_the_gpu(format):
    optimizer = run(format, "triton", steps=1)
    gradients = [torch.ones_like(p) for p in optimizer.parameters]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            optimizer.step(gradients, 1e-3, **NONE)
            gradients = [g.clone() for g in gradients]
    finally:
        torch.cuda.set_sync_debug_mode("default")

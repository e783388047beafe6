"""The schedule as a pure function, and the optimizer against torch's own."""

import itertools
import math

import pytest
import torch
from ranks import run_ranks

from skytrain.config import Optim, Schedule
from skytrain.optim import Optimizer, learning_rate, sum_over_ranks


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_peak_and_floor_are_hit_at_the_planned_steps(name, floor):
    schedule = Schedule(name=name, warmup_steps=5, min_ratio=floor)
    rates = [learning_rate(step, 50, schedule, 2.0) for step in range(50)]
    assert rates[0] == pytest.approx(0.4)
    assert rates[4] == max(rates) == 2.0
    assert rates[-1] == pytest.approx(2.0 * floor)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))


def test_constant_stays_at_the_peak_after_warm_up():
    rates = [learning_rate(step, 10, Schedule(name="constant", warmup_ratio=0.2), 1.0) for step in range(10)]
    assert rates == [0.5] + [1.0] * 9


def test_wsd_is_flat_until_its_decay():
    schedule = Schedule(name="wsd", warmup_steps=2, decay_ratio=0.2, min_ratio=0.0)
    rates = [learning_rate(step, 100, schedule, 1.0) for step in range(100)]
    assert rates[1:80] == [1.0] * 79
    assert rates[80] < 1.0
    assert rates[-1] == 0.0


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "wsd"])
def test_very_short_runs_have_finite_rates(name, total):
    for warmup in (0, 1, 5):
        schedule = Schedule(name=name, warmup_steps=warmup)
        assert all(0.0 <= learning_rate(step, total, schedule, 1.0) <= 1.0 for step in range(total))


def parameters(seed: int = 0) -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (7, 5), "b": (5,), "e": (11, 3)}
    return {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def give_gradients(params: dict[str, torch.nn.Parameter], seed: int, size: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params.values():
        p.grad = size * torch.randn(p.shape, generator=generator)


ONE, NO = torch.ones(()), torch.zeros(())


def test_adamw_equals_torch_and_leaves_vectors_undecayed():
    ours, theirs = parameters(), parameters()
    config = Optim(format="fp32", lr=1e-2, weight_decay=0.1, betas=(0.8, 0.95))
    optimizer = Optimizer(ours.items(), config)
    groups = [
        {"params": [theirs["w"], theirs["e"]], "weight_decay": 0.1},
        {"params": [theirs["b"]], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.95), fused=True)
    for step in range(20):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step(1e-2, ONE, NO)
        reference.step()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert optimizer.steps.item() == 20


def test_the_divisor_clips_and_the_skip_changes_nothing():
    ours, clipped = parameters(), parameters()
    optimizer, reference = (Optimizer(p.items(), Optim(format="fp32")) for p in (ours, clipped))
    give_gradients(ours, 1)
    give_gradients(clipped, 1, size=0.25)
    optimizer.step(1e-2, torch.tensor(4.0), NO)
    reference.step(1e-2, ONE, NO)
    for name in ours:
        assert torch.equal(ours[name], clipped[name])
    before = {name: tensor.clone() for name, tensor in [*optimizer.state().items(), *ours.items()]}
    for bad in (float("nan"), float("inf")):
        give_gradients(ours, 2)
        ours["w"].grad[3, 2] = bad
        optimizer.step(1e-2, torch.tensor(bad), ONE)
    after = dict([*optimizer.state().items(), *ours.items()])
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_8_bit_moments_take_their_bytes_and_stay_near_exact_adamw():
    """10.1 bytes a parameter with weight and gradient; after 50 steps the change is within 2% of exact AdamW's."""
    shapes = {"w": (256, 384), "norm": (384,)}
    start = {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in shapes.items()}
    changes = {}
    for format in ("fp32", "fp32_8bit"):
        params = {name: torch.nn.Parameter(x.clone()) for name, x in start.items()}
        optimizer = Optimizer(params.items(), Optim(lr=1e-3, format=format))
        for step in range(50):
            give_gradients(params, step)
            optimizer.step(1e-3, ONE, NO)
        changes[format] = torch.cat([(params[name].detach() - start[name]).flatten() for name in shapes])
    error = (changes["fp32_8bit"] - changes["fp32"]).norm() / changes["fp32"].norm()
    assert 0 < error < 0.02
    held = sum(t.nbytes for name, t in optimizer.state().items() if name.endswith(".w")) + params["w"].grad.nbytes
    assert held / params["w"].numel() == pytest.approx(10.0625)
    # Tensors of one dimension keep exact moments; their weights, of 3 at most, are off by an ulp or two.
    torch.testing.assert_close(changes["fp32_8bit"][-384:], changes["fp32"][-384:], rtol=0, atol=5e-7)
    state = optimizer.state()
    assert state["optim.exp_avg.norm"].dtype == torch.float32
    # Codes read with another meaning would be wrong in silence: a new one takes a new name, and the old is refused.
    assert {"optim.exp_avg_max.w", "optim.exp_avg_sq_max.w"} < state.keys()


def test_8_bit_moments_follow_weights_that_moved():
    moved, stayed = parameters(), parameters()
    optimizers = [Optimizer(p.items(), Optim(format="fp32_8bit")) for p in (moved, stayed)]
    for step in range(3):
        for params, optimizer in zip((moved, stayed), optimizers):
            give_gradients(params, step)
            optimizer.step(1e-2, ONE, NO)
        for p in moved.values():
            p.data = p.data.clone()
    assert all(torch.equal(moved[name], stayed[name]) for name in moved)


@pytest.mark.parametrize("format", ["fp32", "fp32_8bit"])
def test_the_embedding_may_be_left_undecayed(format):
    params = {name: torch.nn.Parameter(torch.ones(4, 4)) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    config = Optim(weight_decay=0.5, decay_embeddings=False, format=format)
    optimizer = Optimizer(params.items(), config)
    for p in params.values():
        p.grad = torch.zeros_like(p)
    optimizer.step(0.1, ONE, NO)
    assert torch.equal(params["model.embed_tokens.weight"].detach(), torch.ones(4, 4))
    torch.testing.assert_close(params["lm_head.weight"].detach(), torch.full((4, 4), 0.95))


def test_sgd_is_one_line_of_arithmetic():
    ours = parameters()
    optimizer = Optimizer(ours.items(), Optim(format="fp32", name="sgd", weight_decay=0.5))
    give_gradients(ours, 3)
    expected = {
        name: p.detach() - 0.1 * (p.grad / 2 + (0.5 * p.detach() if p.ndim > 1 else 0)) for name, p in ours.items()
    }
    optimizer.step(0.1, torch.tensor(2.0), NO)
    for name, p in ours.items():
        torch.testing.assert_close(p.detach(), expected[name])
    assert set(optimizer.state()) == {"optim.steps", *(f"model.{name}" for name in ours)}


@pytest.mark.parametrize("format", ["fp32", "fp32_8bit", "split_8bit"])
def test_small_updates_are_not_lost(format):
    """B56: the exact weights move by 200 updates of 1e-5 on a weight of 1.0, where bf16 ones would stand still."""
    dtype = torch.bfloat16 if format == "split_8bit" else torch.float32
    weight = torch.nn.Parameter(torch.ones(64, 64, dtype=dtype))
    optimizer = Optimizer([("w", weight)], Optim(lr=1e-5, format=format))
    for step in range(200):
        before = optimizer.master("w").clone()
        weight.grad = torch.ones_like(weight)
        optimizer.step(1e-5, ONE, NO)
        if step < 50:
            assert (optimizer.master("w") == before).float().mean() < 0.05
    after = optimizer.master("w")
    torch.testing.assert_close(after, torch.full_like(after, 1.0 - 200 * 1e-5), rtol=0, atol=2e-5)
    assert after.dtype == torch.float32


def bf16_norm() -> float:
    gradients = [torch.ones(70_000, dtype=torch.bfloat16), torch.full((3,), 1000.0, dtype=torch.bfloat16)]
    return sum_over_ranks(torch.tensor(2.0), gradients, replicas=1)[1].item()


def test_the_norm_of_bf16_gradients_is_summed_in_fp32():
    """70,000 ones and three thousands: rounding the parts' norms to bf16 alone would be off by 1e-3."""
    assert run_ranks(1, bf16_norm) == [pytest.approx(math.sqrt(70_000 + 3e6), rel=1e-6)]

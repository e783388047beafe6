"""The packer of a step: C++ against numpy, its promises, and how much of a step's time it keeps."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import skytrain
from skytrain.data.packing import CostModel, pack_step, pack_step_reference, step_time
from skytrain.errors import UserError

ROW = 16_384
LINEAR, QUADRATIC = 6 * 32.0e9, 6.0 * 64 * 5120
COST = CostModel(LINEAR, QUADRATIC, 0.02 * (LINEAR * ROW + QUADRATIC * ROW**2))

SHAPES = {
    "reasoning": lambda random, n, most: random.lognormal(np.log(most / 5), 0.65, n),
    "uniform": lambda random, n, most: random.integers(1, most + 1, n),
    "one a row": lambda random, n, most: random.integers(most // 2, most + 1, n),
    "two a row": lambda random, n, most: random.integers(most // 3, most // 2 + 1, n),
    "many a row": lambda random, n, most: random.integers(1, most // 20 + 2, n),
    "equal": lambda random, n, most: np.full(n, most // 4),
    "full rows": lambda random, n, most: full_rows(random, n, most),
}


def full_rows(random: np.random.Generator, n: int, most: int) -> np.ndarray:
    """Pieces of rows that were full, so that a packing without any room to spare exists."""
    cuts = np.sort(random.integers(1, max(2, most), (n // 3 + 1, 2)), axis=1)
    pieces = np.diff(cuts, axis=1, prepend=0, append=most).ravel()[:n]
    return pieces[random.permutation(len(pieces))]


def draw(shape: str, seed: int) -> tuple[np.ndarray, int, int]:
    """(lengths int64 [n], ranks, max_tokens)"""
    random = np.random.default_rng([seed, list(SHAPES).index(shape)])
    n, ranks, most = int(random.integers(1, 80)), int(random.integers(1, 10)), int(random.choice([6, 100, 2_000, ROW]))
    return np.clip(SHAPES[shape](random, n, most), 1, most).astype(np.int64), ranks, most


def fewest(lengths: np.ndarray, ranks: int, max_tokens: int) -> int:
    return -(-int(lengths.sum()) // (ranks * max_tokens))


def capped_steps(count: int) -> list[np.ndarray]:
    """Steps of 96 documents of mean 4,500, about one in a hundred as long as a row."""
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(3_690), 0.65, (count, 96)), 200, ROW)
    return list(lengths.astype(np.int64))


@pytest.mark.parametrize("shape", SHAPES)
def test_cpp_finds_the_slots_that_numpy_finds(shape):
    for seed in range(12):
        lengths, ranks, most = draw(shape, seed)
        cost = COST if seed % 3 else CostModel(1.0, 0.0)
        costs = cost.integers(lengths, most)
        expected = pack_step_reference(lengths, costs, ranks, most)
        np.testing.assert_array_equal(pack_step(lengths, costs, ranks, most), expected, err_msg=f"seed {seed}")


def test_cpp_finds_the_slots_that_numpy_finds_in_large_steps():
    for lengths in capped_steps(4):
        costs = COST.integers(lengths, ROW)
        expected = pack_step_reference(lengths, costs, 8, ROW)
        np.testing.assert_array_equal(pack_step(lengths, costs, 8, ROW), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_hold_every_document_within_the_limit(shape):
    for seed in range(300):
        lengths, ranks, most = draw(shape, seed)
        slots = pack_step(lengths, COST.integers(lengths, most), ranks, most)
        assert slots.shape == lengths.shape and slots.min() == 0, f"seed {seed}"
        assert np.bincount(slots, weights=lengths).max() <= most, f"seed {seed}"
        micro_batches = int(slots.max()) // ranks + 1
        # Never more than a row for each document, and none without a document.
        assert fewest(lengths, ranks, most) <= micro_batches <= -(-len(lengths) // ranks), f"seed {seed}"
        assert len(np.unique(slots // ranks)) == micro_batches, f"seed {seed}"


def test_micro_batches_come_heaviest_first():
    for lengths in capped_steps(20):
        slots = pack_step(lengths, COST.integers(lengths, ROW), 8, ROW)
        costs = np.bincount(slots, weights=COST.integers(lengths, ROW))
        assert (np.diff(costs) <= 0).all()


def test_full_rows_are_found_where_dealing_by_cost_leaves_a_document_over():
    """Of 3 3 2 2 2, longest-first dealing makes 3+2 and 3+2 in two rows of 6, and the last 2 has no room."""
    lengths = np.array([3, 3, 2, 2, 2])
    slots = pack_step(lengths, COST.integers(lengths, 6), 2, 6)
    assert np.bincount(slots, weights=lengths).tolist() == [6, 6]
    extra = 0
    for seed in range(50):
        lengths = np.random.default_rng(seed).lognormal(np.log(3_690), 0.65, 96)
        # 98.5% of four micro-batches of 8 rows: with dealing alone, 38 of these steps needed a fifth.
        lengths = np.clip(lengths * (0.985 * 4 * 8 * ROW / lengths.sum()), 1, ROW).astype(np.int64)
        slots = pack_step(lengths, COST.integers(lengths, ROW), 8, ROW)
        extra += int(slots.max()) // 8 + 1 - fewest(lengths, 8, ROW)
    assert extra <= 6


def test_the_plan_keeps_the_time_that_it_is_known_for():
    """Of the ideal time, the overhead of a micro-batch counted as work: 98.6% here, and longest-first dealing 95%."""
    work = time = 0.0
    for lengths in capped_steps(100):
        slots = pack_step(lengths, COST.integers(lengths, ROW), 8, ROW)
        micro_batches = int(slots.max()) // 8 + 1
        assert micro_batches <= fewest(lengths, 8, ROW) + 1
        work += COST(lengths).sum() / 8 + micro_batches * COST.overhead
        time += step_time(lengths, slots, 8, COST)
    assert work / time > 0.98


def test_a_step_lasts_as_long_as_the_slowest_rank_of_each_micro_batch():
    cost = CostModel(linear=1.0, quadratic=0.5, overhead=10.0)
    lengths, slots = np.array([4, 2, 6, 1]), np.array([0, 0, 1, 2])
    # Micro-batch 0: rank 0 has 4 + 8 + 2 + 2, rank 1 has 6 + 18. Micro-batch 1: rank 0 has 1 + 0.5, rank 1 nothing.
    assert step_time(lengths, slots, 2, cost) == 24.0 + 10.0 + 1.5 + 10.0


def test_integer_costs_never_fall_with_length_and_are_linear_times_length_and_square():
    cost = CostModel(linear=3.0, quadratic=0.25)
    lengths = np.arange(1, 2_001)
    costs = cost.integers(lengths, 2_000)
    assert costs.dtype == np.int64 and (np.diff(costs) > 0).all() and costs[-1] == 2**32
    exact = (3 * lengths + lengths**2 / 4) / (3 * 2_000 + 2_000**2 / 4) * 2**32
    np.testing.assert_allclose(costs, exact, rtol=0, atol=0.5 + 1e-6)


@pytest.mark.parametrize("bad", [(-1.0, 1.0, 0.0), (1.0, -1.0, 0.0), (1.0, 0.0, -1.0), (0.0, 0.0, 1.0)])
def test_a_cost_model_without_sense_is_refused(bad):
    with pytest.raises(ValueError, match="cost"):
        CostModel(*bad)


@pytest.mark.parametrize(
    ("lengths", "costs", "ranks", "max_tokens", "message"),
    [
        ([3, 11], [1, 2], 2, 10, "outside 1..max_tokens"),
        ([3, 0], [1, 2], 2, 10, "outside 1..max_tokens"),
        ([3, 4], [1], 2, 10, "differ in size"),
        ([3, 4], [1, -1], 2, 10, "0 or more"),
        ([3, 4], [2**62, 2**62], 2, 10, "fit an int64"),
        ([], [], 2, 10, "no documents"),
        ([3, 4], [1, 2], 0, 10, "ranks"),
        ([3, 4], [1, 2], 2**31, 10, "ranks"),
        ([3, 4], [1, 2], 2, 2**31, "max_tokens"),
    ],
)
def test_the_cpp_refuses_values_on_which_it_would_fail(lengths, costs, ranks, max_tokens, message):
    with pytest.raises(ValueError, match=message):
        pack_step(np.array(lengths, np.int64), np.array(costs, np.int64), ranks, max_tokens)


def test_the_cpp_refuses_arrays_of_another_kind():
    good = np.array([3, 4], np.int64)
    for bad in (good.astype(np.int32), good.astype(np.float64), good.astype(np.uint64), good.reshape(1, 2)):
        with pytest.raises(TypeError, match=r"lengths: expected int64 \[n\]"):
            pack_step(bad, good, 2, 10)
    with pytest.raises(ValueError, match="contiguous"):
        pack_step(np.arange(1, 9)[::2], np.arange(4), 2, 10)


def test_without_the_extension_the_user_is_told_what_to_do(monkeypatch):
    monkeypatch.delattr(skytrain, "_pack", raising=False)
    monkeypatch.setitem(sys.modules, "skytrain._pack", None)
    with pytest.raises(UserError, match="build_ext --inplace"):
        pack_step(np.array([3]), np.array([1]), 1, 10)

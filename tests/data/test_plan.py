"""The step plan: what each step takes, for whichever rank, epoch or resumed run asks."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from skytrain.data.packing import CostModel
from skytrain.data.plan import Planner, StepPlan
from skytrain.errors import UserError

COST = CostModel(linear=100.0, quadratic=0.1, overhead=500.0)


def planner(lengths, *, targets=None, **settings) -> Planner:
    lengths = np.asarray(lengths, np.int64)
    targets = lengths // 2 if targets is None else np.asarray(targets, np.int64)
    return Planner(lengths, targets, **({"ranks": 2, "max_tokens": 100, "cost": COST} | settings))


def some_lengths(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 101, n)


def documents(plan: StepPlan) -> list[int]:
    return [int(i) for ranks in plan.rows for row in ranks for i in row]


def content(plan: StepPlan) -> tuple:
    rows = [[row.tolist() for row in ranks] for ranks in plan.rows]
    return plan.epoch, plan.index, rows, plan.tokens, plan.targets


def digest(plans: Planner) -> str:
    return hashlib.sha256(repr([content(plans.step(step)) for step in range(plans.total_steps)]).encode()).hexdigest()


def test_five_documents_by_four_are_exactly_two_steps():
    """B4: the last step takes the one document that is left, and its denominator is that document's own."""
    plans = planner([7, 7, 7, 7, 7], targets=[1, 2, 3, 4, 5], ranks=1, max_tokens=7, documents=4)
    assert plans.total_steps == 2
    first, second = plans.step(0), plans.step(1)
    assert [len(first.rows), len(second.rows)] == [4, 1]
    assert all(len(row) == 1 for plan in (first, second) for ranks in plan.rows for row in ranks)
    assert sorted(documents(first) + documents(second)) == [0, 1, 2, 3, 4]
    assert (second.tokens, second.targets) == (7, documents(second)[0] + 1)
    assert first.targets + second.targets == 15


@pytest.mark.parametrize("n", [1, 3])
def test_ranks_without_a_document_get_an_idle_row(n):
    """B23: 3 documents that fill a row each, on 2 ranks, and a step of 1: every rank has as many micro-batches."""
    plans = planner([100] * 6, documents=n)
    for step in range(plans.total_steps):
        rows = plans.step(step).rows
        assert [len(ranks) for ranks in rows] == [2] * (-(-n // 2))
        assert [len(row) for ranks in rows for row in ranks] == ([1, 0] if n == 1 else [1, 1, 1, 0])
        assert all(row.dtype == np.int64 for ranks in rows for row in ranks)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(5))
def test_all_ranks_run_the_same_number_of_micro_batches_within_the_limit(ranks, seed):
    """B23"""
    lengths = some_lengths(60, seed)
    plans = planner(lengths, ranks=ranks, documents=13)
    for step in range(plans.total_steps):
        rows = plans.step(step).rows
        assert all(len(micro_batch) == ranks for micro_batch in rows)
        assert all(lengths[row].sum() <= 100 for micro_batch in rows for row in micro_batch)


@pytest.mark.parametrize("how", [{"documents": 16}, {"tokens": 700}])
def test_an_epoch_takes_every_document_once(how):
    lengths = some_lengths(101)
    plans = planner(lengths, epochs=3, **how)
    for epoch in range(3):
        steps = [plan for plan in map(plans.step, range(plans.total_steps)) if plan.epoch == epoch]
        assert [plan.index for plan in steps] == list(range(len(steps)))
        assert sorted(i for plan in steps for i in documents(plan)) == list(range(101))
        for plan in steps:
            assert plan.tokens == lengths[documents(plan)].sum()
            assert plan.targets == (lengths // 2)[documents(plan)].sum()


def test_steps_take_exactly_so_many_documents_and_the_last_what_is_left():
    plans = planner(some_lengths(101), documents=16, epochs=2)
    sizes = [len(documents(plans.step(step))) for step in range(plans.total_steps)]
    assert sizes == [16, 16, 16, 16, 16, 16, 5] * 2


def test_steps_of_tokens_take_whole_documents_in_order_while_they_fit():
    lengths = some_lengths(200)
    order = [documents(planner(lengths, documents=1, ranks=1).step(step))[0] for step in range(200)]
    plans, at = planner(lengths, tokens=700, ranks=1), 0
    for step in range(plans.total_steps):
        taken = documents(plans.step(step))
        assert sorted(taken) == sorted(order[at : at + len(taken)])
        at += len(taken)
        assert lengths[taken].sum() <= 700
        assert at == 200 or lengths[taken].sum() + lengths[order[at]] > 700
    assert at == 200


def test_a_step_of_tokens_may_be_filled_exactly():
    plans = planner([50] * 12, tokens=200)
    assert [plans.step(step).tokens for step in range(plans.total_steps)] == [200, 200, 200]


def test_epochs_and_seeds_differ_in_their_order():
    lengths = some_lengths(64)
    epochs = planner(lengths, documents=8, epochs=2)
    first, second = ([documents(epochs.step(step + epoch * 8)) for step in range(8)] for epoch in (0, 1))
    other = [documents(planner(lengths, documents=8, seed=1).step(step)) for step in range(8)]
    orders = [list(map(set, order)) for order in (first, second, other)]
    assert orders[0] != orders[1] and orders[0] != orders[2] and orders[1] != orders[2]


def test_the_order_stays_what_it_was():
    """A run may be resumed with another numpy, or another skytrain: the order of a seed and epoch is for good."""
    plans = planner([1] * 12, documents=1, ranks=1, seed=3, epochs=2)
    order = [documents(plans.step(step))[0] for step in range(24)]
    assert order == [6, 1, 11, 8, 5, 2, 7, 10, 9, 4, 3, 0, 9, 7, 8, 3, 5, 6, 4, 0, 10, 2, 1, 11]


@pytest.mark.parametrize("how", [{"documents": 7}, {"tokens": 300}])
def test_a_step_is_the_same_for_whoever_asks_first(how):
    """A run resumed at any step goes on as the one that never stopped: also at and around the ends of epochs."""
    lengths = some_lengths(50)
    whole = planner(lengths, epochs=3, seed=5, **how)
    expected = [content(whole.step(step)) for step in range(whole.total_steps)]
    for step in range(whole.total_steps):
        assert content(planner(lengths, epochs=3, seed=5, **how).step(step)) == expected[step]
    backwards = [content(whole.step(step)) for step in reversed(range(whole.total_steps))]
    assert backwards[::-1] == expected


def test_another_process_plans_the_same():
    """Ranks do not talk about the plan, so nothing of a process may enter it."""
    plans = planner(some_lengths(80), documents=9, ranks=3, epochs=2)
    program = (
        "import sys, importlib.util as u; spec = u.spec_from_file_location('plan_of_a_rank', sys.argv[1]);"
        "m = u.module_from_spec(spec); spec.loader.exec_module(m);"
        "print(m.digest(m.planner(m.some_lengths(80), documents=9, ranks=3, epochs=2)))"
    )
    ranks = [subprocess.Popen([sys.executable, "-c", program, __file__], stdout=subprocess.PIPE) for _ in range(2)]
    assert [rank.communicate()[0].decode().strip() for rank in ranks] == [digest(plans)] * 2


@pytest.mark.parametrize(("max_steps", "total"), [(1, 1), (6, 6), (7, 7), (8, 8), (14, 14), (1_000, 21)])
def test_max_steps_ends_the_run_before_its_epochs_do(max_steps, total):
    plans = planner(some_lengths(50), documents=8, epochs=3, max_steps=max_steps)
    free = planner(some_lengths(50), documents=8, epochs=3)
    assert plans.total_steps == total and free.total_steps == 3 * 7
    assert content(plans.step(total - 1)) == content(free.step(total - 1))
    for outside in (total, -1):
        with pytest.raises(IndexError):
            plans.step(outside)


def test_locate_counts_steps_over_epochs_of_different_sizes():
    plans = planner(some_lengths(300), tokens=400, epochs=4)
    ends = [planner(some_lengths(300), tokens=400, epochs=epochs).total_steps for epochs in (1, 2, 3, 4)]
    sizes = np.diff([0, *ends]).tolist()
    assert len(set(sizes)) > 1, "the epochs of this case should differ"
    expected = [(epoch, index) for epoch, size in enumerate(sizes) for index in range(size)]
    assert [plans.locate(step) for step in range(plans.total_steps)] == expected


def test_more_ranks_than_documents_of_a_step_is_no_error():
    plans = planner(some_lengths(9), ranks=4, documents=2)
    assert [len(documents(plans.step(step))) for step in range(plans.total_steps)] == [2, 2, 2, 2, 1]


@pytest.mark.parametrize(
    ("lengths", "settings", "message"),
    [
        ([], {"documents": 4}, "no documents"),
        ([5], {"documents": 4}, "1 documents for 2 ranks"),
        ([5, 101, 7, 300], {"documents": 4}, r"batch\.max_tokens = 100: 2 of 4 .* document 1 with 101 .* at least 300"),
        ([5, 60, 7], {"tokens": 50}, r"batch\.tokens = 50: 1 of 3 .* document 1 with 60 .* at least 60"),
        ([5, 0, 7], {"documents": 4}, "document 1 of the data set has no tokens"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_the_start(lengths, settings, message):
    """B23: among them no documents, and fewer than ranks."""
    with pytest.raises(UserError, match=message):
        planner(lengths, **settings)


@pytest.mark.parametrize("settings", [{}, {"documents": 4, "tokens": 400}])
def test_a_step_is_of_documents_or_of_tokens(settings):
    with pytest.raises(ValueError, match="exactly one"):
        planner([5, 6], **settings)

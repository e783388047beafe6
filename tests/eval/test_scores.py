"""Intervals are held against simulation, pass@k against the closed form and against counting."""

import itertools
import math

import numpy as np
import pytest

from skytrain.eval.scores import compare, pass_at, pass_at_all, proportion, score, student_t


def samples(right, n):
    """right: of each problem the number of right samples."""
    return {f"p{i}": [1.0] * c + [0.0] * (n - c) for i, c in enumerate(right)}


@pytest.mark.parametrize(
    "freedom, value", [(1, 12.70620), (2, 4.30265), (5, 2.57058), (29, 2.04523), (197, 1.97208), (499, 1.96473)]
)
def test_students_t_is_the_tables(freedom, value):
    assert student_t(freedom) == pytest.approx(value, abs=2e-5)


@pytest.mark.parametrize("problems", [30, 198, 500])
def test_intervals_cover_what_they_say(problems):
    """2,000 runs of 16 samples, success rates from Beta(2, 2): 93% to 97% of the intervals hold the true mean."""
    random = np.random.default_rng(problems)
    rates = random.beta(2, 2, (2000, problems))
    means = random.binomial(16, rates) / 16
    found = [proportion(row, 16) for row in means]
    assert 0.93 <= np.mean([one.low <= 0.5 <= one.high for one in found]) <= 0.97


@pytest.mark.parametrize("a, b", [(0.3, 6), (8, 0.4)])
def test_intervals_cover_near_the_ends_too(a, b):
    """A mean near 0 or 1 of 30 problems, where mean +- t stderr covers 76% and leaves the range."""
    random = np.random.default_rng(1)
    means = random.binomial(1, random.beta(a, b, (2000, 30))).astype(float)
    found = [proportion(row, 1) for row in means]
    assert 0.93 <= np.mean([one.low <= a / (a + b) <= one.high for one in found]) <= 0.98
    assert all(0 <= one.low <= one.mean <= one.high <= 1 for one in found)
    plain = [abs(one.mean - a / (a + b)) <= student_t(29) * (one.stderr or 0) for one in found]
    assert np.mean(plain) < 0.9


def test_samples_of_a_problem_are_no_problems():
    """Ten problems that are always right and ten that are always wrong: 16 samples each tell nothing more than one."""
    once, often = score(samples([1, 0] * 10, 1)), score(samples([16, 0] * 10, 16))
    assert (once.low, once.high) == pytest.approx((often.low, often.high), abs=1e-9)
    independent = 1.96 * math.sqrt(0.25 / 320)
    assert often.high - often.mean > 3 * independent


def test_d17_the_standard_error_is_of_a_sample():
    """ddof=1: of means 0, 0, 1 it is 1/3, and with ddof=0 it would be 0.272."""
    assert score(samples([0, 0, 4], 4)).stderr == pytest.approx(1 / 3)


def test_all_right_is_not_certain():
    found = score(samples([4] * 30, 4))
    assert found.mean == 1 and found.stderr is None and 0.8 < found.low < 0.95 and found.high == 1
    nothing = score(samples([0] * 30, 4))
    assert nothing.mean == 0 and nothing.low == 0 and nothing.high == pytest.approx(1 - found.low)


@pytest.mark.parametrize("right, n", [(1, 3), (3, 8), (1, 10), (7, 10)])
def test_rounding_is_no_spread(right, n):
    """Means that are all alike, and whose mean is another number in its last digit."""
    for problems in (2, 3, 7, 10, 30):
        found = score(samples([right] * problems, n))
        assert found.stderr is None
        assert (found.low, found.high) == pytest.approx(_wilson(right / n, problems - 1, student_t(problems - 1)))
    gains = compare(samples([5, 1], 10), samples([6, 2], 10))
    assert gains.stderr is None and gains.low < -0.5 and gains.high > 0.5


def _wilson(p, n, t):
    middle, half = p + t * t / 2 / n, t * math.sqrt(p * (1 - p) / n + t * t / 4 / n / n)
    return max(0.0, (middle - half) / (1 + t * t / n)), min(1.0, (middle + half) / (1 + t * t / n))


def test_one_problem_tells_nothing_of_the_spread():
    found = score(samples([3], 4))
    assert (found.mean, found.stderr, found.low, found.high) == (0.75, None, 0, 1)


@pytest.mark.parametrize("broken", [{}, {"a": []}, {"a": [1.0, 0.0], "b": [1.0]}])
def test_d21_a_mean_over_some_of_what_was_asked_is_refused(broken):
    with pytest.raises(ValueError, match="one number of samples"):
        score(broken)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n):
    for c in range(n + 1):
        drawn = [1] * c + [0] * (n - c)
        for k in range(1, n + 1):
            draws = list(itertools.combinations(drawn, k))
            assert pass_at(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_pass_at_k_is_the_closed_form_where_counting_is_too_long():
    """1 - prod(1 - k/i for i in n-c+1..n), as it was published."""
    for n, c, k in ((200, 3, 100), (200, 150, 8), (1000, 1, 10), (64, 64, 1)):
        product = math.prod(1 - k / i for i in range(n - c + 1, n + 1)) if n - c >= k else 0.0
        assert pass_at(n, c, k) == pytest.approx(1 - product, rel=1e-12)


def test_d23_and_d25():
    with pytest.raises(ValueError, match="pass@100 of 0 right of 99"):
        pass_at(99, 0, 100)
    assert pass_at(200, 1, 1) == pytest.approx(0.005)
    assert max(pass_at_all(samples([0] * 3, 99))) == 99
    assert sorted(pass_at_all(samples([0, 3], 12))) == [1, 2, 4, 8, 12]
    assert pass_at_all(samples([1, 0], 200))[1].mean == pytest.approx(0.0025)


def test_pass_at_1_is_the_mean():
    right = samples([3, 0, 4, 1], 4)
    assert pass_at_all(right)[1] == score(right)


def test_a_paired_comparison_is_narrower_than_two_intervals():
    """Two models that differ by 5 points on problems of very different difficulty."""
    random = np.random.default_rng(0)
    base = random.beta(0.5, 0.5, 200) * 0.9
    before = {str(i): random.binomial(1, p, 16).astype(float) for i, p in enumerate(base)}
    after = {str(i): random.binomial(1, p + 0.05, 16).astype(float) for i, p in enumerate(base)}
    found, apart = compare(before, after), (score(before), score(after))
    assert found.mean == pytest.approx(apart[1].mean - apart[0].mean)
    assert found.low > 0.02 and found.high < 0.08
    assert found.high - found.low < (apart[0].high - apart[0].low) / 2


def test_paired_intervals_cover_what_they_say():
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        base = random.beta(2, 2, 30)
        shift = random.normal(0.03, 0.1, 30)
        truth = 0.0
        rows = []
        for p, change in zip(base, shift):
            q = min(1.0, max(0.0, p + change))
            rows.append((random.binomial(16, p) / 16, random.binomial(16, q) / 16))
            truth += (q - p) / 30
        before = {str(i): [row[0]] for i, row in enumerate(rows)}
        after = {str(i): [row[1]] for i, row in enumerate(rows)}
        found = compare(before, after)
        covered += found.low <= truth <= found.high
    assert covered >= 930


def test_no_difference_anywhere_is_not_certain_either():
    same = samples([1, 0, 1, 1] * 10, 1)
    found = compare(same, same)
    assert found.mean == 0 and found.low == pytest.approx(-found.high) and 0.05 < found.high < 0.15


def test_a_comparison_needs_the_same_problems():
    with pytest.raises(ValueError, match="same problems"):
        compare(samples([1, 1], 1), samples([1], 1))
    with pytest.raises(ValueError, match="same problems"):
        compare({}, {})

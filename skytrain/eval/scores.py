"""Scores and how sure they are: a problem is one observation, however often it was asked.

Samples of one problem are alike, so that an interval over all samples as if they were independent is too narrow by up
to the square root of their number. The spread of the problems' own means holds both kinds of chance: which problems
were asked, and what was sampled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from skytrain.eval.results import Score

CONFIDENCE = 0.95


def score(samples: Mapping[str, Sequence[float]]) -> Score:
    """The mean of the problems' means, with its 95% interval.

    samples: of each problem its samples' values, 0 or 1. Raises ValueError where there are no problems, where one has
    no samples, or where their numbers differ: a mean over some of what was asked is another score.

    The interval is Wilson's, with Student's t and with as many observations as have the standard error that the
    problems' means show: p(1 - p)/stderr^2 (an effective sample size, as in Korn and Graubard 1998). Unlike mean +- t
    stderr it stays within 0 and 1, and it has a width where all problems are right.
    """
    sizes = {len(values) for values in samples.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"problems with {sorted(sizes)} samples; one number of samples is needed, and at least 1")
    means = np.array([np.mean(values) for values in samples.values()])
    return proportion(means, sizes.pop())


def proportion(means: np.ndarray, samples: int) -> Score:
    """means: [problems] shares of 1, each of `samples` samples. See `score`."""
    n, p = len(means), float(np.mean(means))
    if n == 1:
        return Score(p, None, 0.0, 1.0)
    stderr = _spread(means) / math.sqrt(n)
    # All alike tells nothing of the spread: then the problems are the observations, as they are with one sample each.
    observations = p * (1 - p) / stderr**2 if stderr > 0 else 0.0
    observations = min(max(observations, n - 1), n * samples)
    t = student_t(n - 1)
    square = t * t / observations
    middle = (p + square / 2) / (1 + square)
    half = t * math.sqrt(p * (1 - p) / observations + square / (4 * observations)) / (1 + square)
    return Score(p, stderr or None, max(0.0, middle - half), min(1.0, middle + half))


def _spread(values: np.ndarray) -> float:
    """Standard deviation, ddof=1; 0 where the values differ by rounding alone."""
    return 0.0 if np.ptp(values) < 1e-9 else float(np.std(values, ddof=1))


def compare(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> Score:
    """The mean of `after` minus `before` over the same problems, with its 95% interval (t, over the problems'
    differences), in shares of 1.

    Pairing takes out what problems differ in difficulty, which is most of a score's own interval. Raises ValueError
    where the problems are not the same, or there are none.
    """
    if before.keys() != after.keys() or not before:
        raise ValueError("a comparison needs the same problems on both sides, and at least one")
    differences = np.array([np.mean(after[key]) - np.mean(before[key]) for key in before])
    mean, n = float(np.mean(differences)), len(differences)
    if n == 1:
        return Score(mean, None, -1.0, 1.0)
    stderr = _spread(differences) / math.sqrt(n)
    # Where no problem differs from another, those that do may only be rare: Clopper and Pearson's bound on how rare.
    half = student_t(n - 1) * stderr if stderr > 0 else 1 - ((1 - CONFIDENCE) / 2) ** (1 / n)
    return Score(mean, stderr or None, max(-1.0, mean - half), min(1.0, mean + half))


def pass_at(samples: int, correct: int, k: int) -> float:
    """1 - C(samples - correct, k) / C(samples, k): the unbiased estimate of at least one right of k (Chen et al. 2021).

    Raises ValueError where k is more than there are samples: then there is no such estimate.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {correct} right of {samples} samples")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def pass_at_all(samples: Mapping[str, Sequence[float]]) -> dict[int, Score]:
    """pass@k for 1, 2, 4, ... and for the number of samples itself, never for more than there are."""
    n = len(next(iter(samples.values())))
    found = {}
    for k in sorted({2**i for i in range(n.bit_length())} | {n}):
        means = np.array([pass_at(n, round(sum(values)), k) for values in samples.values()])
        found[k] = proportion(means, n)
    return found


@lru_cache
def student_t(freedom: int) -> float:
    """The t that 95% of Student's distribution with `freedom` degrees lie below in size.

    With t = sqrt(freedom) tan(a), the density of a is proportional to cos(a)^(freedom - 1) on (-pi/2, pi/2).
    """
    angles = np.linspace(0.0, math.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(CONFIDENCE, below / below[-1], angles)))

"""Scores with intervals. A stand-in that holds `compare` alone."""

from __future__ import annotations

import math
import statistics

from skytrain.eval.results import Score


def compare(a: dict[str, list[float]], b: dict[str, list[float]]) -> Score:
    """The mean over problems of b's mean minus a's. a, b: problem id to its samples, 0 or 1 each.

    ValueError where a problem is in one of them only.
    """
    if a.keys() != b.keys() or not a:
        raise ValueError("the two need the same problems, at least one")
    differences = [statistics.fmean(b[name]) - statistics.fmean(a[name]) for name in a]
    mean, n = statistics.fmean(differences), len(differences)
    if n == 1:
        return Score(mean, None, -1.0, 1.0)
    stderr = statistics.stdev(differences) / math.sqrt(n)
    half = _t(n - 1) * stderr
    return Score(mean, stderr, max(-1.0, mean - half), min(1.0, mean + half))


def _t(freedom: int) -> float:
    """Near Student's 97.5% point."""
    if freedom < 3:
        return {1: 12.706, 2: 4.303}[freedom]
    z = 1.959964
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / freedom**k for k, term in enumerate(terms, 1))

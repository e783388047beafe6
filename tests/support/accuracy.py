"""The rule for numbers: an error against fp64 of at most twice plain torch's own."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_as_accurate(ours: Tensor, plain: Tensor, exact: Tensor, what: str = "") -> None:
    """Largest and root-mean-square error of `ours` are at most twice those of `plain`, or one ulp of what is largest.

    ours, plain: results of one computation in one dtype (`ours` may be wider); exact: the same in fp64.
    """
    assert ours.shape == exact.shape, f"{what}: {tuple(ours.shape)} instead of {tuple(exact.shape)}"
    assert torch.isfinite(ours).all(), f"{what}: not finite"
    ulp = torch.finfo(plain.dtype).eps * exact.abs().max()
    mine, theirs = ours.double() - exact, plain.double() - exact
    for name, error, allowed in (
        ("largest", mine.abs().max(), max(2 * theirs.abs().max(), ulp)),
        ("rms", mine.square().mean().sqrt(), max(2 * theirs.square().mean().sqrt(), ulp)),
    ):
        assert error <= allowed, f"{what}: {name} error {error:.3e}, allowed {allowed:.3e}"

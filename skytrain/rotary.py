"""Rotary position embeddings: frequencies from the settings, tables from the positions; kernels/rope.py rotates.

Nothing here is a buffer of a module: `to_empty` fills buffers with what the allocator last held, and `.to(bf16)`
rounds frequencies so far that positions past a few hundred are wrong. Frequencies cost microseconds, so each forward
pass computes them anew, on the device (a copy from the host would wait for it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rope:
    """Settings under the names of config.json, except `kind` (`rope_type`) and `theta` (`rope_theta`)."""

    kind: Literal["default", "linear", "llama3", "yarn"]
    theta: float
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    """Length of pretraining, in tokens; llama3 and yarn."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float = 1.0
    """Multiplies the tables, so attention's logits by its square; yarn."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


def yarn_attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """YaRN (arXiv 2309.00071, eq. 22): 0.1 ln(factor) + 1; DeepSeek's two scales divide one such by another."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if mscale and mscale_all_dim:
        return scale(mscale) / scale(mscale_all_dim)
    return scale(1.0)


def inverse_frequencies(rope: Rope, head_dim: int, device: torch.device | str) -> Tensor:
    """Radians a position, fp32 [head_dim / 2]: computed in fp64 and rounded once.

    Sources: default, arXiv 2104.09864; linear, positions divided by the factor; llama3, the interpolation by wavelength
    that Llama 3.1 published; yarn, arXiv 2309.00071, section 3.2.
    """
    index = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device)
    frequency = rope.theta ** (-index / head_dim)
    if rope.kind == "linear":
        frequency = frequency / rope.factor
    elif rope.kind == "llama3":
        # Turns within the pretraining length: few of them means that the wave was never seen whole.
        turns = rope.original_max_position_embeddings * frequency / (2 * math.pi)
        kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        frequency = _blend(frequency, rope.factor, kept.clamp(0, 1))
    elif rope.kind == "yarn":
        low, high = _yarn_range(rope, head_dim)
        frequency = _blend(frequency, rope.factor, 1 - ((index / 2 - low) / (high - low)).clamp(0, 1))
    return frequency.float()


def _blend(frequency: Tensor, factor: float, kept: Tensor) -> Tensor:
    """Frequencies as they are where `kept` is 1, divided by `factor` where it is 0."""
    return frequency * kept + frequency / factor * (1 - kept)


def _yarn_range(rope: Rope, head_dim: int) -> tuple[float, float]:
    """Pairs of dimensions between which yarn's ramp runs: those that turn beta_fast and beta_slow times."""

    def pair(turns: float) -> float:
        length = rope.original_max_position_embeddings
        return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    # The upper bound is head_dim - 1 though there are half as many pairs: that is how yarn's models were trained.
    low, high = max(low, 0), min(high, head_dim - 1)
    return low, high if high != low else high + 0.001


def rotary_tables(rope: Rope, head_dim: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles, each fp32 [T, head_dim / 2], from positions int64 [T]."""
    frequency = inverse_frequencies(rope, head_dim, positions.device)
    # An fp32 product is wrong by 1e-3 radians at position 30,000; 1 M products in fp64 a forward cost nothing.
    angle = positions.double()[:, None] * frequency.double()
    return (angle.cos() * rope.attention_factor).float(), (angle.sin() * rope.attention_factor).float()

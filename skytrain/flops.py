"""FLOPs of the model, for MFU and for the planner's cost: what the mathematics needs, whatever is recomputed."""

from __future__ import annotations

import numpy as np

from skytrain.data.packing import CostModel
from skytrain.model import ModelConfig


def flop_coefficients(config: ModelConfig) -> tuple[float, float]:
    """(a, b): a document of L tokens costs a L + b L^2 FLOPs, forward and backward.

    a = 6 x the parameters of the matrix products, the head's among them for every token (the embedding is a look-up):
    a multiplication and an addition, once forward and twice backward (PaLM, arXiv 2204.02311, appendix B).
    b = 6 x layers x heads x head_dim: the scores and the mix are 2 x 2 heads head_dim L^2 forward for a full square,
    three times that with backward, and half of it under a causal mask.
    """
    hidden, head_dim = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    layer = hidden * (2 * queries + 2 * keys) + 3 * hidden * config.intermediate_size
    parameters = config.num_hidden_layers * layer + config.vocab_size * hidden
    return 6.0 * parameters, 6.0 * config.num_hidden_layers * queries


def model_flops(config: ModelConfig, lengths: np.ndarray) -> float:
    """FLOPs of forward and backward over packed documents of these lengths, int64 [documents]."""
    linear, quadratic = flop_coefficients(config)
    lengths = np.asarray(lengths, dtype=np.float64)  # int64 would overflow past 48 M tokens of a 32B model
    return float(linear * lengths.sum() + quadratic * np.square(lengths).sum())


def cost_model(config: ModelConfig, max_tokens: int) -> CostModel:
    """What the step plan balances: a document's FLOPs, and 2% of a full row for what a micro-batch costs by itself."""
    linear, quadratic = flop_coefficients(config)
    return CostModel(linear, quadratic, 0.02 * (linear * max_tokens + quadratic * max_tokens**2))

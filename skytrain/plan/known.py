"""Shapes of published models, and how lengths of reasoning traces spread. Without torch, as plans of servers are."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skytrain.errors import UserError

SPREAD = 0.65
"""Sigma of the logarithm of drawn lengths: with a mean of 4,660 tokens it leaves 12% over 8,192, as reasoning traces
have (7 to 14% of Sky-T1's rows)."""


@functools.cache
def known_shapes() -> dict[str, dict[str, Any]]:
    """Name to the keys of its config.json, of the models in models.toml."""
    table = tomllib.loads(Path(__file__).with_name("models.toml").read_text(encoding="utf-8"))
    found = {name: table[own["model_type"]] | own for name, own in table["models"].items()}
    return {name: {key: value for key, value in keys.items() if key != "parameters"} for name, keys in found.items()}


@dataclass(frozen=True)
class Served:
    """A model in bf16 as a server holds it. weights: parameters in all, the embedding's too. products: those that a
    token is multiplied with."""

    name: str
    weights: int
    products: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def weight_bytes(self) -> int:
        return 2 * self.weights

    @property
    def cache_bytes(self) -> int:
        """Of a token's keys and values in all layers."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim

    def token_flops(self, context: float) -> float:
        """Of a token behind `context` others: 2 for each weight of a product, and scores and mix over the context."""
        return 2.0 * self.products + 4.0 * self.layers * self.heads * self.head_dim * context


def positions(name: str) -> int:
    """Tokens of the longest context that a known model was made for. UserError as `served`."""
    return known_shapes()[served(name).name]["max_position_embeddings"]


def served(name: str) -> Served:
    """UserError for a model that is not known."""
    if name not in known_shapes():
        raise UserError(f"plan: model {name!r}: unknown; give one of {', '.join(known_shapes())}")
    keys = known_shapes()[name]
    hidden, layers, head_dim = keys["hidden_size"], keys["num_hidden_layers"], keys["head_dim"]
    heads, kv_heads = keys["num_attention_heads"], keys["num_key_value_heads"]
    layer = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * keys["intermediate_size"]
    table = keys["vocab_size"] * hidden
    products = layers * layer + table
    weights = products if keys["tie_word_embeddings"] else products + table
    return Served(name, weights, products, layers, heads, kv_heads, head_dim)

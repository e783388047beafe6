"""Seconds of a step, by a roofline: work over the rate that the hardware table gives for its kind.

For a row of T tokens whose documents' lengths have the squares' sum S, a layer with P weights in its products, h, q, k
and I the widths of the stream, of all queries, of all keys and of the MLP, and b bytes a value:

forward     products 2 P T at the matmul rate; attention 2 q S (causal: half of 4 q L^2) at the attention rate; traffic
            of what is no product at the memory's rate (`_forward_values`); copying the gathered weights into place
backward    products 4 P T; attention 5 q S (5 products where forward has 2: it makes the scores again); traffic; what
            the policy does again; copies of gathered weights and of gradients into the reduction's buffer
beside it   gathering the weights in both passes, reducing the gradients in backward; moving offloaded values to the
            host in forward and back in backward. They run on links of their own: a layer takes the longest of
            computing, communicating and moving, and what is over the computing is called exposed

Under train.float8 the layers' products run at that rate, and their operands are cast first (`_cast_bytes`).

The head makes logits and both gradients in forward: 6 V h T. The embedding's gather begins the forward pass and its
reduction ends the backward pass, with nothing to hide behind. A micro-batch takes as long as its slowest rank; the
others wait. The optimizer moves the bytes of its format once a step: the host formats in the host's memory, with the
ways down and up under the update (none of it begins under backward: a clipped update needs the whole gradient's norm).

Not in it: starting kernels, loading, validation, checkpoints and exports.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from skytrain import flops
from skytrain.flops import attention_flops, product_flops, recomputed_flops
from skytrain.model import ModelConfig
from skytrain.plan.hardware import Device
from skytrain.plan.memory import (
    FORMATS,
    Setting,
    host_state_bytes,
    layer_shapes,
    offloaded_bytes,
    padded,
    state_bytes,
)
from skytrain.plan.workload import Packed

KINDS = ("matmul", "attention", "recomputation", "traffic", "communication", "offload", "waiting", "optimizer")


def _forward_values(c: ModelConfig) -> int:
    """Values a token read and written in a layer's forward besides products and attention, each operation fused as in
    kernels/: norm (2 h), sum and norm (4 h), rotation, SwiGLU, sum (3 h)."""
    h, heads = c.hidden_size, (c.num_attention_heads + c.num_key_value_heads) * c.head_dim
    return 9 * h + 2 * heads * (2 if c.qk_norm else 1) + 3 * c.intermediate_size


def _backward_values(c: ModelConfig) -> int:
    """The same in backward: the norms (3 h and 4 h), rotation, SwiGLU (reads three, writes two), and the sums of
    gradients where a value was used twice or three times (3 h each: two of q, k, v, one of gate and up, one of x)."""
    h, heads = c.hidden_size, (c.num_attention_heads + c.num_key_value_heads) * c.head_dim
    return 19 * h + heads * (5 if c.qk_norm else 2) + 5 * c.intermediate_size


def _cast_bytes(c: ModelConfig) -> tuple[int, int]:
    """(forward, backward) bytes a token that casting products' operands to float8 moves, of 2-byte values: each is read
    for its largest value, read again and written; gradients are written in two layouts, one for each product."""
    h, q, k = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    inputs, outputs = 2 * h + q + c.intermediate_size, q + 2 * k + 2 * h + 2 * c.intermediate_size
    return 5 * inputs, 5 * inputs + 6 * outputs


class Pace:
    """What a setting costs on a device."""

    def __init__(self, s: Setting, device: Device, replicas: int = 1):
        """replicas: groups of ranks that each hold the model; their gradients meet over the network (HSDP)."""
        self.s, self.device, self.replicas = s, device, replicas
        c, b = s.model, s.itemsize
        self.layer = padded(layer_shapes(c), s.ranks)
        self.table = padded([(c.vocab_size, c.hidden_size)], s.ranks)
        layers = c.num_hidden_layers
        again = b * (layers - 1) / layers if s.sharding.reshard else 0  # the last layer's stay
        self.forward_copy, self.backward_copy = self._copy(self.layer, b), self._copy(self.layer, again, b)
        self.rate, self.casts = device.product_rate(s.float8), (0.0, 0.0)
        if s.float8 is not None:
            self.casts = tuple(size / device.memory_rate for size in _cast_bytes(c))
            weights = 5 * self.layer / device.memory_rate
            self.forward_copy, self.backward_copy = self.forward_copy + weights, self.backward_copy + weights
        self.forward_link, self.backward_link = self._link(self.layer * b), self._link(self.layer * again)
        self.backward_link += self._reduce(self.layer, b)
        self.ends_copy = self._copy(self.table, b, 4) + self._copy(self.table, b, b)
        self.head_link = self._link(self.table * b) + self._reduce(self.table, 4)
        self.embedding_link = self._link(self.table * b) + self._reduce(self.table, b)
        if c.tie_word_embeddings:
            self.ends_copy, self.head_link = self._copy(self.table, b, 4), 0.0

    def _link(self, gathered: float) -> float:
        """Seconds to receive the other ranks' parts of so many bytes."""
        n = self.s.ranks
        return gathered * (n - 1) / n / self.device.link_rate(n) if n > 1 else 0.0

    def _reduce(self, elements: int, gradient: int) -> float:
        sent = elements * self.s.sharding.reduced(gradient)
        between = 2 * sent / self.s.ranks * (self.replicas - 1) / self.replicas
        return self._link(sent) + (between / self.device.network_rate if between else 0.0)

    def _copy(self, elements: int, gathered: float, gradient: float = 0) -> float:
        """Seconds to copy weights of so many gathered bytes each into place and, with `gradient` bytes each, gradients
        into the buffer they are reduced in, and to add the result to the shard."""
        reduced = self.s.sharding.reduced(gradient)
        moved = 2 * gathered * elements
        if gradient:
            moved += (gradient + reduced) * elements + (reduced + 8) * elements // self.s.ranks
        return moved / self.device.memory_rate

    def micro_batch(self, tokens: np.ndarray, squares: np.ndarray) -> dict[str, np.ndarray]:
        """Seconds by kind of rows of so many tokens and squares; arrays of one shape."""
        s, c, d = self.s, self.s.model, self.device
        mine = dict.fromkeys(KINDS[:6], np.zeros_like(tokens))
        products, squared = sum(product_flops(c).values()), attention_flops(c) * squares / d.attention_rate
        traffic = _forward_values(c) * s.itemsize / d.memory_rate + self.casts[0]
        forward = tokens * (products / self.rate), tokens * traffic
        backward_traffic = tokens * (_backward_values(c) * s.itemsize / d.memory_rate + self.casts[1])
        for policy, count in Counter(s.policies).items():
            again_products, again_squares = recomputed_flops(c, policy)
            again = tokens * (again_products / self.rate) + again_squares * squares / d.attention_rate
            again = again + (0.0 if policy is None else forward[1])
            moved = offloaded_bytes(s, policy) / s.tokens * tokens / d.offload_rate
            first = forward[0] + squared + forward[1] + self.forward_copy
            second = 2 * forward[0] + 2.5 * squared + backward_traffic + again + self.backward_copy
            for compute, link in ((first, self.forward_link), (second, self.backward_link)):
                exposed = np.maximum(link - compute, 0.0)
                mine["communication"] = mine["communication"] + count * exposed
                mine["offload"] = mine["offload"] + count * np.maximum(moved - compute - exposed, 0.0)
            mine["matmul"] = mine["matmul"] + count * 3 * forward[0]
            mine["attention"] = mine["attention"] + count * 3.5 * squared
            mine["recomputation"] = mine["recomputation"] + count * again
            copies = self.forward_copy + self.backward_copy
            mine["traffic"] = mine["traffic"] + count * (forward[1] + backward_traffic + copies)
        logits = c.vocab_size * (2 * s.logits_itemsize + s.itemsize)  # two passes read them, one writes the gradient
        head = tokens * (6 * c.vocab_size * c.hidden_size / d.matmul_rate), tokens * logits / d.memory_rate
        mine["matmul"] = mine["matmul"] + head[0]
        mine["traffic"] = mine["traffic"] + head[1] + self.ends_copy
        mine["communication"] = (
            mine["communication"] + self.embedding_link + np.maximum(self.head_link - head[0] - head[1], 0.0)
        )
        return mine

    def optimizer(self) -> float:
        """Seconds of an update, the reading of the gradients for their norm among them."""
        s, d = self.s, self.device
        weight, gradient = FORMATS[s.format]
        sizes = state_bytes(s)
        elements = sizes["weights"] / weight
        if states := host_state_bytes(s):
            # States both ways; gradients and weights written once and read once, by the update and by the link.
            update = (2 * states + elements * 2 * (gradient + weight)) / d.host_memory_rate
            return max(update, elements * weight / d.host_link_rate)
        return 2 * (sizes["weights"] + sizes["gradients"] + sizes["optimizer"]) / d.memory_rate


@dataclass(frozen=True)
class Timing:
    """Of a step on average, in seconds, and of the run."""

    kinds: dict[str, float]
    """KINDS: of a rank on average, with what it waits for the slowest."""
    steps: int
    tokens: float
    """Of the run."""
    flops: float
    """Of the model, of the run, nothing done twice counted."""
    ranks: int
    """All."""
    peak: float
    """FLOP/s of one device."""

    @property
    def step(self) -> float:
        return sum(self.kinds.values())

    @property
    def hours(self) -> float:
        return self.step * self.steps / 3600

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / (self.step * self.steps)

    @property
    def mfu(self) -> float:
        return self.flops / (self.step * self.steps) / (self.ranks * self.peak)


def plan_timing(s: Setting, device: Device, packed: Packed, replicas: int = 1) -> Timing:
    pace = Pace(s, device, replicas)
    parts = pace.micro_batch(packed.tokens, packed.squares)
    each_step = packed.share / packed.steps
    kinds = {kind: float(seconds.mean(1).sum()) * each_step for kind, seconds in parts.items()}
    slowest = float(sum(parts.values()).max(1).sum()) * each_step
    waiting = slowest - sum(kinds.values())
    kinds["waiting"] = waiting if waiting > 1e-9 * slowest else 0.0  # Of one rank, what is left is rounding.
    kinds["optimizer"] = pace.optimizer()
    linear, quadratic = flops.flop_coefficients(s.model)
    return Timing(
        kinds, packed.steps, packed.run_tokens, linear * packed.run_tokens + quadratic * packed.run_squares,
        packed.tokens.shape[1], device.bf16_tflops * 1e12,
    )  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """Of a step on average, on one rank."""

    flops: float
    recomputed: float
    """FLOPs that are done again."""
    gathered: float
    """Bytes of weights received."""
    reduced: float
    """Bytes of gradients sent."""
    offloaded: float
    """Bytes moved to the host; as many come back."""


def plan_counts(s: Setting, packed: Packed) -> Counts:
    linear, quadratic = flops.flop_coefficients(s.model)
    a_step = 1.0 / packed.steps / packed.tokens.shape[1]
    tokens, squares = packed.run_tokens * a_step, packed.run_squares * a_step
    again = [(recomputed_flops(s.model, policy), count) for policy, count in Counter(s.policies).items()]
    micro_batches = len(packed.tokens) * packed.share / packed.steps
    others = (s.ranks - 1) / s.ranks
    c, b, sharding = s.model, s.itemsize, s.sharding
    layer, table = padded(layer_shapes(c), s.ranks), padded([(c.vocab_size, c.hidden_size)], s.ranks)
    layers, tables = c.num_hidden_layers, 1 if c.tie_word_embeddings else 2
    gathered = b * (layer * (2 * layers - 1 if sharding.reshard else layers) + table * tables)
    reduced = sharding.reduced(b) * layer * layers + table * (4 + (0 if tables == 1 else sharding.reduced(b)))
    return Counts(
        linear * tokens + quadratic * squares,
        sum(count * (per_token * tokens + per_square * squares) for (per_token, per_square), count in again),
        micro_batches * others * gathered,
        micro_batches * others * reduced,
        sum(offloaded_bytes(s, policy) for policy in s.policies) / s.tokens * tokens,
    )

"""Memory a GPU needs at the peak of a step, by arithmetic on shapes: what FSDP2, autograd and the optimizer hold.

Symbols: T tokens a row, h hidden size, q and k the widths of all queries and of all keys, I the MLP's width, V the
vocabulary, b bytes of a computed value (2 in bf16), r bytes of a gradient while it is reduced (4), N ranks that share
the weights, P parameters of a layer.

All the time a rank holds its shards: weights, gradients and optimizer states, P / N each (`state_bytes`). With more
than one micro-batch a step the gradients of the first are there while the second runs; with one they grow as backward
goes on. The rest comes and goes; these are the moments that can be the highest:

head        All saved activations; d_hidden and the head's fp32 gradient (4 V h), which the fused head makes in
            forward; its gathered weight (b V h), the buffer it was gathered in (b V h), a chunk of logits. In its
            backward the gradient's reduction.
layer i     What the layers below have saved; the layer's weights (b P), the buffer in which those of layer i - 1 are
            being gathered (b P: FSDP2 prefetches), and the input of the reduction of layer i + 1 (r P), which lives
            until layer i has its own. Over this, the highest of three:
              MLP     all that the layer's backward reads, and at the SwiGLU gate, up, their gradients and d_act
                      (5 b I T)
              end     all gradients of the layer's weights (b P), a few rows of width h
              reduce  the weights are free again; the layer's gradients are reduced
embedding   The same with the embedding's P = V h, when nothing is saved any more.
optimizer   The shards alone: our kernels and torch's fused ones update in place.

A reduction holds gradients and its input (r P) while the one is copied to the other, then input and output (r P / N).

One rank alone gathers nothing and has no buffer for it, but FSDP2 still copies the weights to the compute dtype, and
divides the reduction's input into a temporary of its size. A tied embedding belongs to the root: it stays gathered for
the whole pass, and its fp32 gradient waits from the head to the end. (Traced, with a test: tests/plan/test_memory.py.)
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass

import torch

from skytrain import activations
from skytrain.activations import Policy
from skytrain.config import Config
from skytrain.kernels.linear_cross_entropy import chunk_rows
from skytrain.kernels.quantize import GROUP
from skytrain.model import ModelConfig

Policies = tuple[Policy | None, ...]
GIB = 2**30
NCCL_BYTES = 2 * GIB
"""Of NCCL's channels, where there is more than one rank: 1 to 2 GiB are seen on one node."""
CONTEXT_BYTES = int(0.6 * GIB)
"""CUDA's context with the kernels of torch and cuBLAS."""
FRAGMENTATION = 0.05
"""Of the live bytes: what the caching allocator holds and cannot use, with expandable segments."""

FORMATS = {"fp32": (4, 4), "fp32_8bit": (4, 4), "split_8bit": (2, 2), "host": (2, 2), "host_8bit": (2, 2)}
"""Bytes of a weight and of its gradient on the device, a parameter. FSDP2 gives a bf16 shard a bf16 gradient."""
HOST_MOMENTS = {"host": "fp32", "host_8bit": "fp32_8bit"}
"""Formats whose fp32 weights and moments are in host memory -> the format that has such moments on the device."""


@dataclass(frozen=True)
class Sharding:
    """What FSDP2 is told. Besides: norm and last layer stay whole from forward to backward, and neither the head's nor
    the embedding's weight is gathered for backward."""

    ranks: int
    """N: that share one copy of the weights."""
    reshard: bool = True
    """parallel.reshard_after_forward."""
    reduce_itemsize: int = 4
    """Of parallel.reduce_dtype."""

    def reduced(self, gradient: int) -> int:
        """Bytes of a gradient of `gradient` bytes while it is reduced: where reductions have the dtype of compute,
        FSDP2 takes them for "as it comes", and the head's fp32 gradient stays fp32."""
        return max(self.reduce_itemsize, gradient)


@dataclass(frozen=True)
class Setting:
    """Everything the memory of a step follows from."""

    model: ModelConfig
    sharding: Sharding
    format: str
    policies: Policies
    """Of each layer; None keeps everything (no checkpoint)."""
    tokens: int
    """T: of the fullest row."""
    micro_batches: int = 2
    itemsize: int = 2
    """b: of the compute dtype."""
    chunk_bytes: int = 2**29
    logits_itemsize: int = 4
    moments: bool = True
    """AdamW; SGD has none."""
    float8: str | None = None
    """train.float8. It changes no peak: what is saved stays wide, and the compiled casts of a product (a byte for each
    value of its operands) are there when the MLP's inner gradients, of five times as many bytes, are not."""

    @property
    def ranks(self) -> int:
        return self.sharding.ranks

    @classmethod
    def of(
        cls, config: Config, model: ModelConfig, ranks: int, micro_batches: int, policies: Policies | None = None
    ) -> Setting:
        """ranks: of the whole run; policies: the recipe's own, if they are not given."""
        policies = policies or recipe_policies(config, model)
        reduce_itemsize = 4 if config.parallel.reduce_dtype == "float32" else 2
        ranks //= config.parallel.nodes
        sharding = Sharding(ranks, config.parallel.reshard_after_forward, reduce_itemsize)
        return cls(
            model, sharding, config.optim.format,
            policies, config.batch.max_tokens, micro_batches,
            2 if config.train.dtype == "bfloat16" else 4, config.kernels.head_chunk_mib * 2**20,
            4 if config.kernels.logits == "float32" else 2, config.optim.name == "adamw", config.train.float8,
        )  # fmt: skip


def recipe_policies(config: Config, model: ModelConfig) -> Policies:
    """Of each layer, as the recipe's [activations] say (budget_gib apart: choice.py)."""
    return tuple(activations.policies(config.activations, model.num_hidden_layers))


# ---- parameters


def layer_shapes(c: ModelConfig) -> list[tuple[int, ...]]:
    """Shapes of a decoder layer's parameters."""
    h, q, k = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    shapes: list[tuple[int, ...]] = [(q, h), (k, h), (k, h), (h, q), (h,), (h,)]
    shapes += [(c.intermediate_size, h)] * 2 + [(h, c.intermediate_size)]
    shapes += [(q,), (k,), (k,)] if c.qkv_bias else []
    shapes += [(h,)] if c.output_bias else []
    return shapes + ([(c.head_dim,)] * 2 if c.qk_norm else [])


def all_shapes(c: ModelConfig) -> Counter[tuple[int, ...]]:
    """Shapes of all parameters -> how many there are of each."""
    table = (c.vocab_size, c.hidden_size)
    counts = Counter({shape: count * c.num_hidden_layers for shape, count in Counter(layer_shapes(c)).items()})
    counts[c.hidden_size,] += 1
    counts[table] += 1 if c.tie_word_embeddings else 2
    return counts


def parameters(c: ModelConfig) -> int:
    return sum(math.prod(shape) * count for shape, count in all_shapes(c).items())


def shard_shape(shape: tuple[int, ...], ranks: int) -> tuple[int, ...]:
    """Of the first rank's shard, the largest: FSDP2 cuts the rows into even blocks."""
    return (-(-shape[0] // ranks), *shape[1:])


def padded(shapes: list[tuple[int, ...]], ranks: int) -> int:
    """Elements of a group of parameters as it is gathered and reduced: each padded to whole shards."""
    return ranks * sum(math.prod(shard_shape(shape, ranks)) for shape in shapes)


def state_bytes(s: Setting) -> dict[str, int]:
    """Bytes of a rank's shards: {"weights", "gradients", "optimizer"}."""
    weight, gradient = FORMATS[s.format]
    shards = [(shard_shape(shape, s.ranks), count) for shape, count in all_shapes(s.model).items()]
    elements = sum(math.prod(shape) * count for shape, count in shards)
    states = 0 if s.format in HOST_MOMENTS or not s.moments else _states(shards, s.format)
    return {"weights": elements * weight, "gradients": elements * gradient, "optimizer": states}


def host_state_bytes(s: Setting) -> int:
    """Bytes of a rank's fp32 weights and moments in host memory."""
    if s.format not in HOST_MOMENTS:
        return 0
    shards = [(shard_shape(shape, s.ranks), count) for shape, count in all_shapes(s.model).items()]
    return 4 * sum(math.prod(shape) * count for shape, count in shards) + _states(shards, HOST_MOMENTS[s.format])


def checkpoint_bytes(s: Setting) -> int:
    """Bytes of a rank's part of a checkpoint: exact weights and moments, wherever they are."""
    states = state_bytes(s)
    return host_state_bytes(s) or states["weights"] + states["optimizer"]


def _states(shards: list[tuple[tuple[int, ...], int]], format: str) -> int:
    return sum(_moment_bytes(shape, format) * count for shape, count in shards)


def _moment_bytes(shape: tuple[int, ...], format: str) -> int:
    """Moments (and remainder) of one shard: 8-bit codes and two fp32 scales a group; fp32 in one dimension."""
    elements = math.prod(shape)
    if format == "fp32" or len(shape) == 1:
        moments = 8 * elements
    else:
        moments = 2 * elements + 8 * math.prod(shape[:-1]) * -(-shape[-1] // GROUP)
    return moments + (2 * elements if format == "split_8bit" else 0)


# ---- activations


def operation_bytes(c: ModelConfig, itemsize: int) -> dict[str, int]:
    """Bytes a token of what a layer can keep: config_rules.OPERATIONS and "input"."""
    h, q, k = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return {
        "input": h * itemsize,
        "attention": q * itemsize + 4 * c.num_attention_heads,
        "qkv": (q + 2 * k) * itemsize,
        "o_proj": h * itemsize,
        "gate": c.intermediate_size * itemsize,
        "up": c.intermediate_size * itemsize,
    }


def saved_bytes(s: Setting, policy: Policy | None) -> int:
    """What one layer holds on the device from its forward to its backward."""
    each = operation_bytes(s.model, s.itemsize)
    if policy is None:
        return s.tokens * (_read_bytes(s, None) + 3 * each["gate"])
    keep = policy.keep | ({"input"} - policy.offload)
    return s.tokens * sum(each[name] for name in keep)


def offloaded_bytes(s: Setting, policy: Policy | None) -> int:
    """What one layer moves to the host in forward, and back in backward."""
    each = operation_bytes(s.model, s.itemsize)
    return s.tokens * sum(each[name] for name in policy.offload) if policy else 0


def _read_bytes(s: Setting, policy: Policy | None) -> int:
    """A token, what backward of a layer reads beside the MLP's inner values: input, two norms' results and the sum
    before the second, queries, keys, values, attention's result and logsumexp; the norms' own statistics."""
    each, c = operation_bytes(s.model, s.itemsize), s.model
    heads = (c.num_attention_heads + c.num_key_value_heads) if c.qk_norm else 0
    normed = heads * (c.head_dim * s.itemsize + 4)  # the heads before their norm, and its statistics
    o_proj = each["o_proj"] if policy is not None and "o_proj" in policy.keep | policy.offload else 0
    return 4 * each["input"] + each["qkv"] + each["attention"] + 8 + normed + o_proj


# ---- moments of a step


def moments(s: Setting) -> dict[str, dict[str, int]]:
    """Bytes by kind at each moment that can be the peak, without what the process needs besides tensors (`Memory`).

    Kinds: weights, gradients, optimizer (the shards); gathered (weights, and buffers they are gathered in); in_flight
    (gradients on their way to the shards); backward (the values of the layer that is at work); saved; head.
    """
    c = s.model
    table, layer = padded([(c.vocab_size, c.hidden_size)], s.ranks), padded(layer_shapes(c), s.ranks)
    size = {policy: saved_bytes(s, policy) for policy in set(s.policies)}
    below = [0, *itertools.accumulate(size[policy] for policy in s.policies)]
    always = state_bytes(s) | {"saved": s.tokens * 4 * c.head_dim}  # the rotary tables, fp32
    base = _plus(always, saved=below[-1], gathered=_stays(s, c.num_hidden_layers, layer, table))
    found = {"optimizer": state_bytes(s), "head": _head(s, base, table)}
    # Layers with the same policies differ in what is below them alone, so that few have to be worked out; and what is
    # below grows evenly, so that of several like each other in a row the last or the first is the highest.
    number = {policy: n for n, policy in enumerate(size)}
    numbers = [number[policy] for policy in s.policies]
    top = c.num_hidden_layers - 1
    kinds = [(numbers[i], numbers[i - 1] if i else None, i == top) for i in range(c.num_hidden_layers)]
    at_work: dict[tuple, dict[str, int]] = {}
    for i in reversed(range(c.num_hidden_layers)):
        if kinds[i - 1 : i] == kinds[i : i + 1] == kinds[i + 1 : i + 2]:
            continue
        if kinds[i] not in at_work:
            at_work[kinds[i]] = _layer(s, i, layer, table)
        base = _plus(_grown(s, always, i), saved=below[i], gathered=_stays(s, i, layer, table))
        found[f"layer {i}"] = _plus(base, **at_work[kinds[i]])
    found["embedding"] = _embedding(s, _plus(_grown(s, always, -1), gathered=_stays(s, 0, layer, table)), layer, table)
    return found


def _stays(s: Setting, below: int, layer: int, table: int) -> int:
    """Bytes of weights that are whole since forward while what lies over the first `below` layers is at work."""
    if s.sharding.reshard:
        return s.itemsize * (layer * (below == s.model.num_hidden_layers) + table * s.model.tie_word_embeddings)
    return s.itemsize * (layer * below + table)


def _plus(base: dict[str, int], **more: int) -> dict[str, int]:
    return base | {kind: base.get(kind, 0) + size for kind, size in more.items()}


def _highest(*candidates: dict[str, int]) -> dict[str, int]:
    return max(candidates, key=lambda kinds: sum(kinds.values()))


def _grown(s: Setting, base: dict[str, int], layer: int) -> dict[str, int]:
    """With one micro-batch the gradients of this layer, and of what is below it, are not there yet."""
    if s.micro_batches > 1:
        return base
    c, each = s.model, FORMATS[s.format][1]
    below = padded(layer_shapes(c), s.ranks) * (layer + 1) + padded([(c.vocab_size, c.hidden_size)], s.ranks)
    return base | {"gradients": base["gradients"] - each * below // s.ranks}


def _reduction(s: Setting, elements: int, itemsize: int) -> int:
    """Most bytes while gradients of `itemsize` are reduced: they and the buffer they are copied to; then, with them
    freed, that buffer, the result, and the result in the shard's own dtype (one rank alone: a divided copy)."""
    reduced, gradient = s.sharding.reduced(itemsize), FORMATS[s.format][1]
    buffer = reduced * elements
    cast = gradient * elements // s.ranks if gradient != reduced else 0
    copy = max(cast, buffer) if s.ranks == 1 else cast
    return buffer + max(itemsize * elements, buffer // s.ranks + copy)


def _gathering(s: Setting, elements: int) -> int:
    """Bytes of the buffer of an all-gather."""
    return elements * s.itemsize if s.ranks > 1 else 0


def _head(s: Setting, base: dict[str, int], table: int) -> dict[str, int]:
    """In forward, with a chunk of logits, or in backward, at the reduction. All tokens are taken for targets."""
    c = s.model
    row = s.tokens * c.hidden_size * s.itemsize
    rows = chunk_rows(
        s.tokens, c.vocab_size, torch.float32 if s.logits_itemsize == 4 else torch.bfloat16, s.chunk_bytes
    )
    chunk = min(rows, s.tokens) * -(-c.vocab_size // 16) * 16 * s.logits_itemsize
    # The final norm's input and d_hidden stay until their backward, dW until it is reduced.
    base = _plus(base, head=2 * row, saved=_on_the_way(s))
    if c.tie_word_embeddings:
        return _plus(base, head=4 * table + row + chunk)
    forward = _plus(base, head=4 * table + row + chunk, gathered=table * s.itemsize + _gathering(s, table))
    return _highest(forward, _plus(base, in_flight=_reduction(s, table, 4)))


def _layer(s: Setting, i: int, layer: int, table: int) -> dict[str, int]:
    """What the highest moment of the backward of layer i adds to what is there anyway."""
    c, b, reduced = s.model, s.itemsize, s.sharding.reduced(s.itemsize)
    row, inner = s.tokens * c.hidden_size * b, s.tokens * c.intermediate_size * b
    norm = padded([(c.hidden_size,)], s.ranks)
    above = reduced * (layer if i < c.num_hidden_layers - 1 else norm)
    below = layer if i > 0 else 0
    ahead = offloaded_bytes(s, s.policies[i - 1]) if i > 0 else 0
    base = {"saved": ahead, "gathered": _gathering(s, below) if s.sharding.reshard else 0}
    if c.tie_word_embeddings:
        base = _plus(base, in_flight=4 * table)
    down = c.hidden_size * c.intermediate_size * b
    read = s.tokens * _read_bytes(s, s.policies[i])
    mlp = _plus(base, gathered=layer * b, in_flight=above + down, backward=read + 5 * inner + row)
    end = _plus(base, gathered=layer * b, in_flight=above + layer * b, backward=5 * row)
    reduce = _plus(base, in_flight=_reduction(s, layer, b), backward=row)
    return _highest(mlp, end, reduce)


def _embedding(s: Setting, base: dict[str, int], layer: int, table: int) -> dict[str, int]:
    c, b, row = s.model, s.itemsize, s.tokens * s.model.hidden_size * s.itemsize
    above = s.sharding.reduced(b) * layer
    if c.tie_word_embeddings:
        # The embedding's own gradient, widened, the head's and their sum; then the sum alone is reduced.
        added = _plus(base, in_flight=12 * table + above, backward=row)
        return _highest(added, _plus(base, in_flight=_reduction(s, table, 4)))
    made = _plus(base, in_flight=table * b + above, backward=row)
    return _highest(made, _plus(base, in_flight=_reduction(s, table, b)))


def _on_the_way(s: Setting) -> int:
    """Device bytes of values that are being moved to the host: those of two layers."""
    return 2 * max(offloaded_bytes(s, policy) for policy in set(s.policies))


@dataclass(frozen=True)
class Memory:
    """Of the first rank, which has the largest shards; bytes."""

    moment: str
    """Of the peak."""
    kinds: dict[str, int]
    """At the peak, `buffers` among them: NCCL, context, fragmentation."""
    host: int
    """Of this rank in the host's memory: the states of the host formats, offloaded activations of all layers."""

    @property
    def total(self) -> int:
        return sum(self.kinds.values())

    @property
    def live(self) -> int:
        """Of tensors alone: what a trace, or torch.cuda.max_memory_allocated, finds."""
        return self.total - self.kinds["buffers"]


def plan_memory(s: Setting) -> Memory:
    found = moments(s)
    moment = max(found, key=lambda name: sum(found[name].values()))
    kinds = found[moment]
    live = sum(kinds.values())
    buffers = CONTEXT_BYTES + (NCCL_BYTES if s.ranks > 1 else 0) + int(FRAGMENTATION * live)
    host = host_state_bytes(s) + sum(offloaded_bytes(s, policy) * n for policy, n in Counter(s.policies).items())
    return Memory(moment, {**kinds, "buffers": buffers}, host)

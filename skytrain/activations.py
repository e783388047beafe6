"""What a layer keeps for its backward pass: everything, or its input alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from torch.utils.checkpoint import checkpoint

from skytrain.config import Activations
from skytrain.model import CausalLM

OPERATIONS = ("attention", "qkv", "o_proj", "gate", "up")
"""What can be kept of a decoder layer besides its input, in the order it is made. attention: output and logsumexp;
qkv: the queries, keys and values that attention reads; o_proj, gate, up: the outputs of these projections."""


@dataclass(frozen=True)
class Policy:
    """What one decoder layer holds from forward to backward; an operation in neither set is done again in backward."""

    keep: frozenset[str] = frozenset()
    """Of OPERATIONS: on the device."""
    offload: frozenset[str] = frozenset()
    """Of OPERATIONS and "input" (the layer's own input): in pinned host memory."""


def apply(model: CausalLM, settings: Activations) -> None:
    """Wraps the forward of each decoder layer. Before compile and fully_shard: their hooks then run once a layer."""
    if settings.checkpoint == "full":
        for layer in model.model.layers:
            # The bound method is replaced rather than the module, so that parameters keep their Hugging Face names.
            # Nothing in a layer draws random numbers, and saving the generator's state would wait for the device.
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)

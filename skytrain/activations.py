"""What a layer keeps for its backward pass: everything, or its input alone."""

from __future__ import annotations

import functools

from torch.utils.checkpoint import checkpoint

from skytrain.config import Activations
from skytrain.model import CausalLM


def apply(model: CausalLM, settings: Activations) -> None:
    """Wraps the forward of each decoder layer. Before compile and fully_shard: their hooks then run once a layer."""
    if settings.checkpoint == "full":
        for layer in model.model.layers:
            # The bound method is replaced rather than the module, so that parameters keep their Hugging Face names.
            # Nothing in a layer draws random numbers, and saving the generator's state would wait for the device.
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)

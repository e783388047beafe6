"""What one decoder layer holds from its forward pass to its backward pass."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """An operation in neither set is done again in backward. In the place of a policy, None keeps everything."""

    keep: frozenset[str] = frozenset()
    """Of config.OPERATIONS: on the device."""
    offload: frozenset[str] = frozenset()
    """Of OPERATIONS and "input" (the layer's own input): in pinned host memory."""

"""Sees what an operation starts: each Triton launch, and each torch operation inside our own custom ops.

`watched(launch)` replaces backend.launch by `launch`. Inside it, a custom op of ours runs its launchers whatever the
device of its tensors is, also on meta tensors, where torch would ask its shape function alone; forward and backward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skytrain.kernels import backend


@contextlib.contextmanager
def watched(
    launch: Callable[..., None], torch_operation: Callable[[object, list[Tensor], list[Tensor]], None] | None = None
) -> Iterator[None]:
    """launch: called as backend.launch is; torch_operation: told of each torch operation, its inputs, its outputs."""
    # The check of the device is all that keeps the launchers from meta tensors.
    with (
        mock.patch.object(backend, "launch", launch),
        mock.patch.object(backend, "obstacle", lambda *_: None),
        _Inside(torch_operation),
    ):
        yield


class _Inside(TorchDispatchMode):
    def __init__(self, torch_operation):
        super().__init__()
        self.torch_operation = torch_operation

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        definition = OPDEFS.get(function._schema.name)
        if definition is not None and definition._namespace == "skytrain":
            with self:
                return definition._init_fn(*args, **kwargs)
        result = function(*args, **kwargs)
        if self.torch_operation is not None:
            self.torch_operation(function, _tensors((args, kwargs)), _tensors(result))
        return result


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]

"""The memory of a step, traced: the real modules on a fake process group, with tensors that have shapes and no data.

Runs on a CPU, whatever the model's size: `FakeTensorMode` gives every operation its result's shape, and a dispatch mode
adds up the storages that are alive. What is run is the product's own: `CausalLM`, `parallel.shard` (FSDP2 with its
hooks, its gathers and its reductions) and the custom operations' fake kernels, which save what the GPU's save.

The trace ends before the optimizer. Its states are added by counting (`memory.state_bytes`): the GPU's kernel updates
them in place and needs no memory of its own, while the CPU's reference, which a trace would run, makes temporaries.
FSDP2's first step is another one (it finds out the order of the layers for its prefetch), so one step goes before.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skytrain import parallel
from skytrain.config import Config
from skytrain.model import Backends, CausalLM, ModelConfig


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that are alive: `now`, and the most since `peak` was last set.

    workspace: (name of an operation -> bytes it needs inside, from its arguments): what a custom operation allocates
    and frees itself is not seen here.
    """

    def __init__(self, workspace: dict[str, Callable[..., int]] | None = None):
        super().__init__()
        self.workspace = workspace or {}
        self.now, self.peak, self.at = 0, 0, ""
        self.sizes: dict[int, int] = {}
        self.log = []

    def watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = 0
            weakref.finalize(storage, self._free, key)
        self._resize(key, storage.nbytes())

    def _resize(self, key: int, size: int) -> None:
        self.now += size - self.sizes[key]
        self.sizes[key] = size

    def _free(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def note(self, extra: int, at: str) -> None:
        self.log.append((self.now+extra, at))
        if self.now + extra > self.peak:
            self.peak, self.at = self.now + extra, at

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.watch(leaf)
        name = func._schema.name
        inside = self.workspace.get(name)
        self.note(inside(*args, **(kwargs or {})) if inside else 0, name)
        return result

    def __enter__(self):
        original, mode = torch.UntypedStorage.resize_, self

        def resize_(storage, size):
            original(storage, size)
            if storage._cdata in mode.sizes:
                mode._resize(storage._cdata, storage.nbytes())
                mode.note(0, "resize_")

        self.original = original
        torch.UntypedStorage.resize_ = resize_
        return super().__enter__()

    def __exit__(self, *error):
        torch.UntypedStorage.resize_ = self.original
        return super().__exit__(*error)

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
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skytrain import parallel
from skytrain.config import Config
from skytrain.model import Backends, CausalLM, ModelConfig
from skytrain.optim import BF16_WEIGHTS, local
from skytrain.plan.memory import Policies, Setting, state_bytes


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
        self.elsewhere: set[int] = set()
        """Storages that count as no device memory."""

    def watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.elsewhere:
            return
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


@dataclass(frozen=True)
class Trace:
    """Bytes of tensors on the first rank in the second step, the optimizer's states among them."""

    peak: int
    at: str
    """The operation after which it stood."""
    after_forward: int


def trace(config: Config, model: ModelConfig, *, ranks: int, tokens: int, policies: Policies | None = None) -> Trace:
    """One row of `tokens` targets a rank and two micro-batches a step. Offloaded values are gone at once, where on a
    GPU those of two layers would be on their way. policies: of each layer, where the recipe leaves them to the plan.
    Raises RuntimeError where a process group is up."""
    if dist.is_initialized():
        raise RuntimeError("a trace needs a process group of its own: end the one that is up")
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    uncompiled = msgspec.structs.replace(config, train=msgspec.structs.replace(config.train, compile=False))
    live = LiveBytes({"skytrain::linear_cross_entropy": _logits})
    try:
        world = _world(config, ranks)
        with FakeTensorMode(), _quiet():
            network = _network(config, model)
            host = parallel.shard(network, world, uncompiled, policies)
            network.to_empty(device="cpu")
            row = _row(tokens, model.vocab_size)
            for _micro_batch in range(2):  # of an untracked step
                network(**row).backward()
            _clear(network)
            if host is not None:
                # Made in the step before, and used again.
                live.elsewhere = {buffer.untyped_storage()._cdata for buffer in host.free_buffers()}
            with live:
                for parameter in network.parameters():
                    live.watch(local(parameter))
                after_forward = 0
                for _micro_batch in range(2):
                    loss = network(**row)
                    after_forward = live.now
                    loss.backward()
                    del loss
    finally:
        dist.destroy_process_group()
    states = state_bytes(Setting.of(config, model, ranks, 2))["optimizer"]
    return Trace(live.peak + states, live.at, after_forward + states)


def _world(config: Config, ranks: int) -> parallel.World:
    nodes = config.parallel.nodes
    shape, names = ((nodes, ranks // nodes), ("replicate", "shard")) if nodes > 1 else ((ranks,), ("shard",))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    return parallel.World(0, ranks, torch.device("cpu"), nodes, mesh, mesh)


def _network(config: Config, model: ModelConfig) -> CausalLM:
    """The model as a run makes it, uncompiled, with the CPU's back ends: their fake kernels save what the GPU's do."""
    logits = getattr(torch, config.kernels.logits)
    backends = Backends("reference", "reference", config.kernels.head_chunk_mib * 2**20, logits)
    before = torch.get_default_dtype()
    try:
        # Fake parameters cannot be cast afterwards.
        torch.set_default_dtype(torch.bfloat16 if config.optim.format in BF16_WEIGHTS else torch.float32)
        with torch.device("meta"):
            return CausalLM(model, backends)
    finally:
        torch.set_default_dtype(before)


def _row(tokens: int, vocab: int) -> dict[str, Any]:
    """One document, each of whose tokens is a target."""
    numbers = torch.arange(tokens)
    bounds = torch.tensor([0, tokens], dtype=torch.int32)
    return {
        "input_ids": numbers % vocab, "positions": numbers, "cu_seqlens": bounds, "max_seqlen": tokens,
        "target_index": numbers, "labels": numbers % vocab,
    }  # fmt: skip


def _clear(network: CausalLM) -> None:
    for parameter in network.parameters():
        parameter.grad = None


def _logits(hidden, weight, labels, coefficients, rows, logits_dtype, *_: Any) -> int:
    """Bytes of one chunk of logits, as the custom operation allocates it."""
    return min(rows, hidden.shape[0]) * -(-weight.shape[0] // 16) * 16 * logits_dtype.itemsize


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

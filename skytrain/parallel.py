"""Ranks, devices, the mesh, and the order in which a model is wrapped, compiled and sharded."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import os
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from skytrain import activations
from skytrain.activations import Policy
from skytrain.config import Config
from skytrain.errors import UserError
from skytrain.model import CausalLM
from skytrain.offload import HostMemory

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class World:
    """This process among the others. `replicas` is the number of groups that hold the whole model (HSDP)."""

    rank: int
    size: int
    device: torch.device
    replicas: int
    mesh: DeviceMesh
    host_mesh: DeviceMesh
    """The same ranks' CPUs, for tensors in host memory."""
    local_rank: int = 0
    local_size: int = 1
    """Among the ranks of this host, and how many these are."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def start(config: Config) -> World:
    """Joins the process group that torchrun describes in the environment; without torchrun, a group of one."""
    settings = config.train
    kind = settings.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device = 'cuda': torch finds no GPU here; use cpu, or install a CUDA build of torch")
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if size % config.parallel.nodes:
        raise UserError(
            f"parallel.nodes = {config.parallel.nodes}: does not divide the number of ranks, {size}; "
            "set 1, or the number of machines"
        )
    if kind == "cuda":
        # Not of this rank's own number: the first rank, which tells it, has a GPU.
        if local_size > (gpus := torch.cuda.device_count()):
            raise UserError(f"{local_size} processes on this node, which has {gpus} GPU(s): --nproc-per-node {gpus}")
        torch.cuda.set_device(local_rank)
        if settings.deterministic:
            # cuBLAS is only deterministic with a fixed workspace, which it reads when it starts.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
    # On a GPU too: AdamW in host memory runs on these, and torchrun sets OMP_NUM_THREADS to 1.
    torch.set_num_threads(settings.threads or max(1, len(os.sched_getaffinity(0)) // local_size))
    torch.manual_seed(config.run.seed)
    device = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
    if not dist.is_initialized():
        # gloo beside NCCL carries what must travel between hosts without touching the device.
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        timeout = datetime.timedelta(seconds=settings.timeout_seconds)
        store = dist.HashStore()
        if "RANK" in os.environ:
            shared, *_ = next(dist.rendezvous("env://", timeout=timeout))
            store = fresh_store(shared, rank, size, settings.timeout_seconds)
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=size)
    nodes = config.parallel.nodes
    if nodes > 1:
        shape, names = (nodes, size // nodes), ("replicate", "shard")
    else:
        shape, names = (size,), ("shard",)
    mesh = init_device_mesh(kind, shape, mesh_dim_names=names)
    host_mesh = mesh if kind == "cpu" else init_device_mesh("cpu", shape, mesh_dim_names=names)
    return World(rank, size, device, nodes, mesh, host_mesh, local_rank, local_size)


def fresh_store(store: dist.Store, rank: int, size: int, seconds: float) -> dist.Store:
    """Collective: a part of `store` that no earlier start of these ranks has written to.

    torchrun starts ranks again with the store that they had, so what a dead rank has left there would be taken for its
    successor's address. Nor do nodes count restarts alike. Rank 0 therefore makes up a name, and repeats under it what
    each of the others has made up: only a live rank 0 can know that.

    Raises dist.DistStoreError where a rank does not come within `seconds`.
    """
    mine = uuid.uuid4().hex
    if rank == 0:
        store.set("start", mine)
        for other in range(1, size):
            store.set(f"{mine}/known/{other}", store.get(f"{mine}/{other}"))
        return dist.PrefixStore(mine, store)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        start = store.get("start").decode()
        store.set(f"{start}/{rank}", mine)
        known = f"{start}/known/{rank}"
        if store.check([known]) and store.get(known).decode() == mine:
            return dist.PrefixStore(start, store)
        time.sleep(0.02)
    raise dist.DistStoreError(f"rank {rank}: rank 0 did not start within {seconds:g} s")


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def crowded(world: World) -> list[str]:
    """A warning where more ranks than cores share this host, which is slower than fewer of them."""
    cores = len(os.sched_getaffinity(0))
    if world.device.type != "cpu" or world.local_size <= cores:
        return []
    return [f"warning: {world.local_size} ranks share {cores} CPU core(s); --nproc-per-node {cores} is faster"]


def together(work: Callable[[], T]) -> T:
    """Runs `work` (without collectives in it) on every rank. A `UserError` on one becomes the same error on all.

    Without it the others would wait in their next collective for a rank that has left.
    """
    result, problem = None, None
    try:
        result = work()
    except UserError as error:
        problem = str(error)
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for text in problems:
        if text is not None:
            raise UserError(text)
    return result  # type: ignore[return-value]


def reshard(model: CausalLM) -> None:
    """Frees all gathered weights, as a backward pass does.

    After a forward pass alone the root's stay (a tied embedding, or all with parallel.reshard_after_forward = false),
    and a checkpoint would be given them, in train.dtype.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _prefetch(model: CausalLM) -> None:
    """Each group's weights are gathered while the group before it computes, in both directions.

    FSDP2 by itself gathers ahead in forward only as far as the host runs ahead of the device, and in backward by the
    order of the last forward pass.
    """
    head = [] if model.config.tie_word_embeddings else [model.lm_head]
    first = [] if model.config.tie_word_embeddings else [model.model.embed_tokens]
    order = [*first, *model.model.layers, model.model.norm, *head]
    for module, following in itertools.pairwise(order):
        module.set_modules_to_forward_prefetch([following])
    for layer, before in itertools.pairwise(reversed(model.model.layers)):
        layer.set_modules_to_backward_prefetch([before])


def shard(
    model: CausalLM, world: World, config: Config, policies: Sequence[Policy | None] | None = None
) -> HostMemory | None:
    """Recomputation, then compile, then fully_shard, each over the one before, a layer at a time.

    policies: what each layer holds for backward; None: as the recipe's activations.keep and .offload say. Returns the
    host memory of activations that are offloaded, None where none are.

    Groups of parameters: each layer, the embedding, the head and the final norm. The head's weight is alone in its
    group because its gradient is fp32 where the others are bf16, and one group takes one dtype. A tied weight is used
    in two places, so it is the root's, which is whole for the length of the forward pass.
    """
    policies = policies or activations.policies(config.activations, len(model.model.layers))
    # Rows differ in length, so the number of tokens is symbolic from the first compilation on.
    compile = functools.partial(torch.compile, dynamic=True) if config.train.compile else None
    host = activations.apply(model, policies, tokens=config.batch.max_tokens, compile=compile)
    dtype, reduce_dtype = getattr(torch, config.train.dtype), getattr(torch, config.parallel.reduce_dtype)
    # cast_forward_inputs would round the fp32 rotary tables to bf16 on their way into each layer.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduce_dtype, cast_forward_inputs=False)
    options = {"mesh": world.mesh, "mp_policy": policy}
    reshard = config.parallel.reshard_after_forward
    *layers, last = model.model.layers
    for layer in layers:
        fully_shard(layer, reshard_after_forward=reshard, **options)
    # Backward begins with these two: freed, they would be gathered again at once.
    fully_shard(last, reshard_after_forward=False, **options)
    fully_shard(model.model.norm, reshard_after_forward=False, **options)
    if not model.config.tie_word_embeddings:
        for module in (model.model.embed_tokens, model.lm_head):
            fully_shard(module, reshard_after_forward=reshard, **options)
            # The embedding's gradient needs no weight, and the head's was made in the forward pass.
            module.set_unshard_in_backward(False)
    fully_shard(model, reshard_after_forward=False, **options)
    _prefetch(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is already divided by the global step's target tokens: ranks add up, nothing is averaged.
            # Neither call recurses, and without the second one some backends would pre-divide.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return host

"""Builds the model from a folder, sharded where there is a process group, and what tests do with it on every rank.

Apart from tiny_models.py, so that a rank does not import transformers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from skytrain import config, parallel
from skytrain.attention import resolve_backend
from skytrain.data.batch import pack_row
from skytrain.export import export, model_tensors
from skytrain.hf import load_weights, read_config
from skytrain.model import Backends, CausalLM


def build(
    folder: str | Path, *, backend: str = "auto", kernels: str = "reference", dtype: str = "float32", nodes: int = 1
) -> CausalLM:
    """The model of a folder, fp32: on the meta device, sharded as a run's (given a process group), then filled.

    `backend` is of attention, `kernels` of the other kernels; `dtype` is of compute and counts only when sharded;
    `nodes` are groups of ranks that hold replicas.
    """
    with torch.device("meta"):
        model = CausalLM(read_config(folder), Backends(resolve_backend(backend, "cpu"), kernels, 1 << 20))
    if dist.is_initialized():
        settings = config.Config(
            run=config.Run(dir=""),
            model=config.Model(path=str(folder)),
            data=config.Data(path=""),
            batch=config.Batch(documents=1),
            train=config.Train(dtype=dtype),
        )
        ranks = dist.get_world_size()
        if nodes > 1:
            mesh = init_device_mesh("cpu", (nodes, ranks // nodes), mesh_dim_names=("replicate", "shard"))
        else:
            mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("shard",))
        parallel.shard(model, parallel.World(dist.get_rank(), ranks, torch.device("cpu"), nodes, mesh, mesh), settings)
    model.to_empty(device="cpu")
    load_weights(model, folder)
    return model


class Documents:
    """Documents of which every token is trained, as a data set gives them."""

    def __init__(self, documents: list[list[int]]) -> None:
        self.documents = documents

    def document(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.array(self.documents[index], np.uint32)
        return tokens, np.ones(len(tokens), np.uint8)


def packed(documents: list[list[int]]) -> dict:
    """The forward arguments of documents packed into one row, in this order."""
    row = pack_row(Documents(documents), np.arange(len(documents)))
    return {
        "input_ids": torch.from_numpy(row.input_ids),
        "positions": torch.from_numpy(row.positions),
        "cu_seqlens": torch.from_numpy(row.cu_seqlens),
        "max_seqlen": row.max_seqlen,
    }


def targets(documents: list[list[int]]) -> dict:
    """The arguments that make it a loss: every token but each document's first is a target."""
    row = pack_row(Documents(documents), np.arange(len(documents)))
    return {"target_index": torch.from_numpy(row.target_index), "labels": torch.from_numpy(row.labels)}


def logits(model: CausalLM, documents: list[list[int]]) -> Tensor:
    with torch.no_grad():
        return model(**packed(documents))


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def rank_logits(folders: list[Path], documents: list[list[int]], nodes: int = 1) -> list[Tensor]:
    """Of each folder's model."""
    return [logits(build(folder, nodes=nodes), documents) for folder in folders]


def rank_parameters(folder: Path, nodes: int) -> dict[str, Tensor]:
    return {name: whole(parameter) for name, parameter in build(folder, nodes=nodes).named_parameters()}


def rank_export(folder: Path, out: Path, dtype: torch.dtype, shard_bytes: int) -> None:
    model = build(folder)
    first = not dist.is_initialized() or dist.get_rank() == 0
    export(model_tensors(model, dtype), folder, out, dtype=dtype, is_writer=first, shard_bytes=shard_bytes)


def gradients(model: CausalLM, documents: list[list[int]], scale: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of the row and the whole gradient of each parameter; a rank's part of both, summed by FSDP."""
    loss = model(**packed(documents), **targets(documents), scale=scale)
    loss.backward()
    return loss.detach(), {name: whole(parameter.grad) for name, parameter in model.named_parameters()}


def rank_gradients(
    folder: Path, rows: list[list[list[int]]], scale: float, dtype: str = "float32"
) -> tuple[Tensor, dict[str, Tensor]]:
    """As `gradients`, for the row of each rank."""
    return gradients(build(folder, dtype=dtype), rows[dist.get_rank()], scale)


def rank_train_and_export(folder: Path, out: Path, steps: list[list[list[int]]], lr: float) -> Tensor:
    """SGD on one row a step, the same on every rank; logits of the first row afterwards. The model is exported."""
    model = build(folder)
    world = dist.get_world_size() if dist.is_initialized() else 1
    for documents in steps:
        count = len(targets(documents)["labels"])
        model(**packed(documents), **targets(documents), scale=1 / (count * world)).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= lr * parameter.grad
                parameter.grad = None
    first = not dist.is_initialized() or dist.get_rank() == 0
    export(model_tensors(model, torch.float32), folder, out, dtype=torch.float32, is_writer=first)
    return logits(model, steps[0])


def rank_poisoned_loss(folder: Path, documents: list[list[int]]) -> tuple[Tensor, int]:
    """(loss, number of buffers) of a model built where the allocator's freed memory is NaN."""
    junk = [torch.full((size,), float("nan")) for size in (8, 16, 64, 256, 4096, 20544) for _ in range(64)]
    del junk
    model = build(folder)
    with torch.no_grad():
        loss = model(**packed(documents), **targets(documents), scale=1 / len(targets(documents)["labels"]))
    return loss, len(list(model.buffers()))

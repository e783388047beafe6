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
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from skytrain.attention import resolve_backend
from skytrain.data.batch import pack_row
from skytrain.export import export, model_tensors
from skytrain.hf import load_weights, read_config
from skytrain.model import CausalLM


def build(
    folder: str | Path, *, backend: str = "auto", param_dtype: torch.dtype | None = None, nodes: int = 1
) -> CausalLM:
    """The model of a folder in fp32: on the meta device, sharded in its groups (given a process group), then filled."""
    config = read_config(folder)
    with torch.device("meta"):
        model = CausalLM(config, attention_backend=resolve_backend(backend, "cpu"), head_chunk_bytes=1 << 20)
    if dist.is_initialized():
        _shard(model, param_dtype, nodes)
    model.to_empty(device="cpu")
    load_weights(model, folder)
    return model


def _shard(model: CausalLM, param_dtype: torch.dtype | None, nodes: int) -> None:
    world = dist.get_world_size()
    if nodes > 1:
        mesh = init_device_mesh("cpu", (nodes, world // nodes), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh("cpu", (world,))
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    groups = [*model.model.layers, model.model.norm]
    if not model.config.tie_word_embeddings:
        groups += [model.model.embed_tokens, model.lm_head]
    for group in [*groups, model]:
        fully_shard(group, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if hasattr(module, "set_gradient_divide_factor"):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


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
    folder: Path, rows: list[list[list[int]]], scale: float, param_dtype: torch.dtype | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """As `gradients`, for the row of each rank."""
    return gradients(build(folder, param_dtype=param_dtype), rows[dist.get_rank()], scale)


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

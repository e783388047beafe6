"""torch.distributed.checkpoint's (DCP) storage writer and reader over the form on disk of `skytrain.storage`.

Failures to write or read do not leave as exceptions: DCP would pickle them with their tracebacks, which torch 2.11
cannot do on Python 3.13, so that the other ranks hang. They wait in `Metadata.storage_data` and `Reader.failure`.
"""

from __future__ import annotations

import math
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from skytrain import storage
from skytrain.errors import UserError
from skytrain.storage import Damaged

FILE_BYTES = 4 << 30
"""A rank starts another file when one has so much: several are written, and verified, at a time."""


def _key(index: MetadataIndex) -> str:
    return storage.key_of(index.fqn, list(index.offset))


class Writer(dcp.StorageWriter):
    """Writes one step folder, then its marker, then lets `storage.retain` delete old ones.

    `Metadata.storage_data`, as DCP's `save` returns it to all ranks, is the list of what failed, in words.
    """

    def __init__(self, folder: Path, step: int, names: list[str], scalars: dict[str, Any], keep: int) -> None:
        self.folder, self.step, self.names, self.scalars, self.keep = folder, step, names, scalars, keep

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self.token = secrets.token_hex(4)
        return [replace(plan, storage_data=(rank, self.token)) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes this rank's boxes. Each result holds the `storage.File` it is in, or the words of a failure."""
        rank, token = plan.storage_data

        def write(number: int, items: list[WriteItem]) -> list[WriteResult]:
            file = storage.write_tensors(
                self.folder / f"tensors-{rank:05d}-{number:03d}-{token}.safetensors",
                [
                    (_key(item.index), _dtype(item), _sizes(item), lambda item=item: planner.resolve_data(item))
                    for item in items
                ],
            )
            return [WriteResult(item.index, _bytes(item), file) for item in items]

        groups = _split(plan.items)
        try:
            with ThreadPoolExecutor(storage.THREADS) as pool:
                results = [result for part in pool.map(write, range(len(groups)), groups) for result in part]
        except OSError as error:
            results = [WriteResult(MetadataIndex(""), 0, f"rank {rank}: {error}")]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On rank 0, when all have written: index, marker, retention."""
        flat = [result for part in results for result in part]
        failures = [result.storage_data for result in flat if isinstance(result.storage_data, str)]
        try:
            if not failures:
                self._complete(metadata, flat)
                storage.retain(self.folder.parent, self.keep, self.folder)
        except (OSError, UserError) as error:
            failures.append(str(error))
        if failures:
            with suppress(OSError):
                storage.tidy(self.folder)
        metadata.storage_data = failures

    def _complete(self, metadata: Metadata, results: list[WriteResult]) -> None:
        tensors = {}
        for name in self.names:  # Not in the order of the plans, which deals replicas out to the ranks.
            entry = metadata.state_dict_metadata[name]
            dtype = storage.DTYPES[entry.properties.dtype]
            tensors[name] = storage.Entry(dtype=dtype, shape=list(entry.size), chunks=[])
        files = {}
        for result in results:
            file, index = result.storage_data, result.index
            files[file.name] = file
            sizes = metadata.state_dict_metadata[index.fqn].chunks[index.index].sizes
            chunk = storage.Chunk(offsets=list(index.offset), sizes=list(sizes), file=file.name, key=_key(index))
            tensors[index.fqn].chunks.append(chunk)
        index = storage.Index(tensors=tensors, scalars=self.scalars)
        storage.check(self.folder, index, set(files))
        written = storage.write_json(self.folder / f"index-{self.token}.json", index)
        marker = storage.Marker(
            format_version=storage.FORMAT_VERSION, step=self.step, index=written.name, files=[written, *files.values()]
        )
        storage.write_marker(self.folder, marker)


def _dtype(item: WriteItem) -> torch.dtype:
    return item.tensor_data.properties.dtype


def _sizes(item: WriteItem) -> list[int]:
    return list(item.tensor_data.chunk.sizes)


def _bytes(item: WriteItem) -> int:
    return math.prod(_sizes(item)) * _dtype(item).itemsize


def _split(items: list[WriteItem]) -> list[list[WriteItem]]:
    """The boxes of each file of a rank, the widest elements first; ranks without a part of a tensor write nothing."""

    def kind(item: WriteItem) -> str:
        return item.index.fqn.partition(".")[0]

    groups: list[list[WriteItem]] = []
    room = 0
    for item in sorted(items, key=lambda item: (kind(item), -_dtype(item).itemsize, _key(item.index))):
        if _bytes(item) == 0:
            continue
        if room <= 0 or kind(item) != kind(groups[-1][0]):
            groups.append([])
            room = FILE_BYTES
        groups[-1].append(item)
        room -= _bytes(item)
    return groups


class Reader(dcp.StorageReader):
    """Reads from a step folder whose index and files have been verified."""

    def __init__(self, folder: Path, index: storage.Index) -> None:
        self.index = index
        self.files = storage.TensorFiles(folder)
        self.failure: Damaged | None = None

    def raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False

    def read_metadata(self) -> Metadata:
        """Tensors only: DCP reads anything else through pickle."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    properties=TensorProperties(dtype=storage.TORCH_DTYPES[entry.dtype]),
                    size=torch.Size(entry.shape),
                    chunks=[
                        ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
                        for chunk in entry.chunks
                    ],
                )
                for name, entry in self.index.tensors.items()
            }
        )

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        try:
            for item in plan.items:
                entry = self.index.tensors[item.storage_index.fqn]
                chunk = entry.chunks[item.storage_index.index]
                box = self.files.read(chunk, entry.dtype, list(item.storage_offsets), list(item.lengths))
                target = planner.resolve_tensor(item).detach()
                target.copy_(box)
                planner.commit_tensor(item, target)
        except Damaged as error:
            self.failure = error
        future: Future[None] = Future()
        future.set_result(None)
        return future

"""Sharded checkpoints of training state: saved on any number of ranks, loaded bit for bit on any other.

torch.distributed.checkpoint (DCP) plans who writes and who reads which box of which tensor; `skytrain.storage` is
the form on disk. DCP's own file storage is not used, because it unpickles its metadata.

Names: `model.<parameter>` for weights and `optim.<state>.<parameter>` for optimizer states. The part before the
first dot never shares a file with another, so that an export reads the weights alone.

The folder is shared by all ranks. Collective functions take an optional `group`: a process group of all ranks with
a CPU backend; they work without any process group too, on one process.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner

from skytrain import storage
from skytrain.dcp_storage import Reader, Writer
from skytrain.errors import UserError
from skytrain.storage import Damaged

T = TypeVar("T")
TensorsFor = Callable[[storage.Index, Path], dict[str, torch.Tensor]]


def save(
    root: Path,
    step: int,
    tensors: dict[str, torch.Tensor],
    scalars: dict[str, Any],
    *,
    keep: int,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Writes `root`/step-N, then deletes all but the newest `keep` complete checkpoints. Collective.

    tensors: name -> tensor or DTensor of any shape and dtype of `storage.DTYPES`, the same names on all ranks. Plain
        tensors are taken to be equal on all ranks, and one rank writes each.
    scalars: what JSON can hold; rank 0's are kept.

    When this returns, the checkpoint is complete and on disk. A step that exists is replaced, and stays complete
    until then. UserError on all ranks, older checkpoints untouched, when any rank cannot write.
    """
    folder = storage.step_folder(root, step)

    def prepare() -> None:
        for name, tensor in tensors.items():
            if tensor.dtype not in storage.DTYPES:
                raise TypeError(f"tensor {name!r}: {tensor.dtype} cannot be saved")
        if _rank(group) == 0:
            _prepare(root, folder)

    _together(prepare, group)
    with _quiet_alone():
        metadata = dcp.save(
            dict(tensors),
            storage_writer=Writer(folder, step, list(tensors), scalars, keep),
            planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=group,
        )
    if metadata.storage_data:
        raise UserError(
            f"checkpoint {folder}: not written: {metadata.storage_data[0]}; older ones are kept; "
            "free disk space or mend the folder's rights"
        )
    return folder


def load(folder: Path, tensors: dict[str, torch.Tensor], *, group: dist.ProcessGroup | None = None) -> dict[str, Any]:
    """Fills `tensors` in place from a step folder and returns its scalars. Collective.

    tensors: as for `save`, on any number of ranks and any placements. They must be exactly those of the checkpoint,
    in shape and dtype too: else UserError, naming the tensor. Every file is verified against its sha256 once, the
    work shared by the ranks, before anything is filled. `Damaged` (a UserError) when the folder is not complete or
    not intact. All ranks raise alike.
    """
    return _load(folder, lambda index, folder: tensors, group)


def _load(folder: Path, tensors_for: TensorsFor, group: dist.ProcessGroup | None) -> dict[str, Any]:
    def inspect() -> tuple[storage.Index, dict[str, torch.Tensor]]:
        marker = storage.read_marker(folder)
        index = storage.read_index(folder, marker)
        tensors = tensors_for(index, folder)
        _match(folder, index, tensors)
        world = dist.get_world_size(group) if dist.is_initialized() else 1
        # The largest are dealt out first, so that the shares are even.
        files = [file for file in marker.files if file.name != marker.index]
        files.sort(key=lambda file: (-file.bytes, file.name))
        storage.verify(folder, files[_rank(group) :: world])
        return index, tensors

    index, tensors = _together(inspect, group)
    reader = Reader(folder, index)
    with _quiet_alone():
        dcp.load(
            dict(tensors),
            storage_reader=reader,
            planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=group,
        )
    _together(reader.raise_failure, group)
    return index.scalars


def resume(
    root: Path,
    tensors_for: TensorsFor,
    want: Literal["newest"] | int = "newest",
    *,
    group: dist.ProcessGroup | None = None,
) -> tuple[Path | None, dict[str, Any], list[tuple[Path, str]]]:
    """`load`s the newest checkpoint that is complete and intact. Collective.

    tensors_for: (index, folder) -> the tensors to fill; may raise UserError. Returns the checkpoint's folder, its
    scalars, and (folder, reason) of newer ones that were passed over. The folder is None, and nothing is filled, where
    there is none. A step that is asked for by number is never passed over: its damage is raised.
    """
    listing = [_together(lambda: _candidates(root, want), group)]
    if dist.is_initialized():
        dist.broadcast_object_list(listing, src=0, group=group)  # Network folders may list differently on two hosts.
    skipped = []
    for folder in listing[0]:
        try:
            return folder, _load(folder, tensors_for, group), skipped
        except Damaged as error:
            if want != "newest":
                raise
            skipped.append(error.args)
    return None, {}, skipped


def find(root: Path, want: Literal["newest"] | int = "newest") -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest complete checkpoint, or None, and (folder, reason) of newer ones that were passed over.

    A step that is asked for by number is `Damaged` (a UserError) where it is not complete. Looks at the files' sizes
    and not into tensor files: `load` and `read_tensors` verify what they read. On one process.
    """
    skipped = []
    for folder in _candidates(root, want):
        try:
            storage.read_index(folder, storage.read_marker(folder))
            return folder, skipped
        except Damaged as error:
            if want != "newest":
                raise
            skipped.append(error.args)
    return None, skipped


def read_tensors(folder: Path, prefix: str = "") -> Iterator[tuple[str, tuple[int, ...], Callable[[], torch.Tensor]]]:
    """(name, shape, fetch) of the tensors whose names start with `prefix`, in the order in which `save` was given them.

    `fetch()` reads the whole tensor into CPU memory, in its stored dtype. Needs no process group. The files that hold
    these tensors are verified first; `Damaged` when one is not intact.
    """
    marker = storage.read_marker(folder)
    index = storage.read_index(folder, marker)
    chosen = {name: entry for name, entry in index.tensors.items() if name.startswith(prefix)}
    needed = {chunk.file for entry in chosen.values() for chunk in entry.chunks}
    storage.verify(folder, [file for file in marker.files if file.name in needed])
    files = storage.TensorFiles(folder)

    def fetch(entry: storage.Entry) -> torch.Tensor:
        whole = torch.empty(entry.shape, dtype=storage.TORCH_DTYPES[entry.dtype])
        for chunk in entry.chunks:
            box = tuple(slice(offset, offset + size) for offset, size in zip(chunk.offsets, chunk.sizes))
            whole[box].copy_(files.read(chunk, entry.dtype, [0] * len(chunk.sizes), chunk.sizes))
        return whole

    for name, entry in chosen.items():
        yield name, tuple(entry.shape), lambda entry=entry: fetch(entry)


def _candidates(root: Path, want: Literal["newest"] | int) -> list[Path]:
    folders = storage.step_folders(root)
    if want == "newest":
        return folders
    chosen = storage.step_folder(root, want)
    if chosen not in folders:
        there = ", ".join(str(storage.step_of(folder)) for folder in reversed(folders))
        raise UserError(f"{root}: holds no step {want}; it holds {'steps ' + there if there else 'no step at all'}")
    return [chosen]


@contextlib.contextmanager
def _quiet_alone() -> Iterator[None]:
    """One process without a group is meant. With a group nothing is changed, since filters are all threads'."""
    if dist.is_initialized():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _rank(group: dist.ProcessGroup | None) -> int:
    return dist.get_rank(group) if dist.is_initialized() else 0


def _together(work: Callable[[], T], group: dist.ProcessGroup | None) -> T:
    """`work()` on every rank. Where it fails on any, all raise the first failing rank's error: none waits for ever."""
    result, error = None, None
    try:
        result = work()
    except Exception as caught:
        error = caught
    if dist.is_initialized():
        # Other exceptions may not survive pickling.
        sent = error if error is None or isinstance(error, UserError) else RuntimeError(repr(error))
        errors: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(errors, sent, group=group)
        first = next((other for other in errors if other is not None), None)
    else:
        first = error
    if first is not None:
        raise first from error
    return result


def _prepare(root: Path, folder: Path) -> None:
    """Frees what killed saves left, before the new one needs the space, and makes the folder."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        for other in storage.step_folders(root):
            if other == folder or not (other / storage.MARKER).exists():
                storage.tidy(other)
        folder.mkdir(exist_ok=True)
        storage.sync_folder(root)
    except OSError as error:
        raise UserError(f"checkpoint {folder}: {error}; mend the folder's rights or free disk space") from None


def _match(folder: Path, index: storage.Index, tensors: dict[str, torch.Tensor]) -> None:
    advice = "resume with the model and the optim section that wrote it"
    for name in sorted(tensors.keys() | index.tensors.keys()):
        if name not in index.tensors:
            raise UserError(f"checkpoint {folder}: tensor {name!r} is missing; {advice}")
        if name not in tensors:
            raise UserError(f"checkpoint {folder}: tensor {name!r} is unknown to this run; {advice}")
        stored, here = index.tensors[name], tensors[name]
        if (stored.shape, stored.dtype) != (list(here.shape), storage.DTYPES.get(here.dtype)):
            raise UserError(
                f"checkpoint {folder}: tensor {name!r} is {stored.dtype} {stored.shape}, "
                f"this run's is {storage.DTYPES.get(here.dtype, here.dtype)} {list(here.shape)}; {advice}"
            )

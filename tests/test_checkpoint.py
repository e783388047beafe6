"""Saving and loading of training state: bit-exact on any number of ranks, complete or not there at all, no pickle."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import resource
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from checkpoint_states import (
    LAYOUT,
    SCALARS,
    assert_same,
    bits,
    blank_state,
    flip,
    load_and_compare,
    save_one,
    spread,
    tensor_file,
    whole_state,
)
from ranks import run_ranks
from safetensors import safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from skytrain import checkpoint, dcp_storage, storage
from skytrain.errors import UserError
from skytrain.storage import Damaged

# Any number of ranks to any other.


def two_ranks(root: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    folder = checkpoint.save(root / "two", 10, spread(whole_state(1), mesh), SCALARS, keep=1)
    load_and_compare(folder, 1, mesh)
    fsdp_parameters_and_moments(root / "fsdp", mesh)
    a_rank_that_cannot_write(root / "two", mesh)
    damage_is_raised_on_all(folder, mesh)


def fsdp_parameters_and_moments(root: Path, mesh) -> None:
    """Through `fully_shard`'s own parameters, and an optimizer's moments, after a step."""

    def build(seed: int):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Embedding(7, 6), torch.nn.Linear(6, 3))
        fully_shard(model[1], mesh=mesh)
        fully_shard(model, mesh=mesh)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        model(torch.arange(7)).square().sum().backward()
        optimizer.step()
        state = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
        for name, parameter in model.named_parameters():
            state |= {f"optim.{key}.{name}": value for key, value in optimizer.state[parameter].items()}
        return state

    saved, fresh = build(1), build(2)
    folder = checkpoint.save(root, 1, saved, {}, keep=1)
    assert bits(saved["model.0.weight"]) != bits(fresh["model.0.weight"])
    checkpoint.load(folder, fresh)
    assert_same(fresh, saved)
    assert all(parameter.requires_grad for name, parameter in fresh.items() if name.startswith("model."))


def a_rank_that_cannot_write(root: Path, mesh) -> None:
    written = storage.write_tensors
    if dist.get_rank() == 1:

        def full(path, tensors):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        storage.write_tensors = full
    with pytest.raises(UserError, match=r"step-00000011: not written: rank 1: .*No space left"):
        checkpoint.save(root, 11, spread(whole_state(2), mesh), SCALARS, keep=1)
    storage.write_tensors = written
    assert os.listdir(root) == ["step-00000010"]
    load_and_compare(root / "step-00000010", 1, mesh)


def damage_is_raised_on_all(folder: Path, mesh) -> None:
    """Each file is verified by one rank alone; both stop, and nothing is filled."""
    copy = folder.parent.parent / "copy" / folder.name
    for name in sorted(path.name for path in folder.glob("tensors-*")):
        if dist.get_rank() == 0:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            flip(copy / name, -1)
        dist.barrier()
        got = spread(blank_state(), mesh)
        with pytest.raises(Damaged, match=f"{name} is corrupt"):
            checkpoint.load(copy, got)
        assert_same(got, spread(blank_state(), mesh))
        found, _, skipped = checkpoint.resume(copy.parent, lambda *_: got)
        assert found is None and len(skipped) == 1


def four_ranks(root: Path) -> None:
    flat, grid = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    load_and_compare(root / "two" / "step-00000010", 1, flat)
    load_and_compare(root / "two" / "step-00000010", 1, grid)
    folder = checkpoint.save(root / "grid", 10, spread(whole_state(2), grid), SCALARS, keep=1)
    load_and_compare(folder, 2, flat)
    folder = checkpoint.save(root / "four", 10, spread(whole_state(3), flat), SCALARS, keep=1)
    load_and_compare(folder, 3, grid)


def test_ranks_load_what_other_ranks_saved(tmp_path):
    """2 ranks to 1, 2 and 4, 4 to 1, with replicas (HSDP) and without, empty shards and 0-dim tensors: same bits."""
    run_ranks(2, two_ranks, tmp_path)
    run_ranks(4, four_ranks, tmp_path)
    for name, seed in {"two": 1, "grid": 2, "four": 3}.items():
        folder = tmp_path / name / "step-00000010"
        load_and_compare(folder, seed)
        assert_same({name: fetch() for name, _, fetch in checkpoint.read_tensors(folder)}, whole_state(seed))
        stored = 0
        for path in folder.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                stored += sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118
        # No replica is stored twice.
        assert stored == sum(tensor.nbytes for tensor in whole_state(seed).values())


# On one process, without a process group.


def test_folder_holds_safetensors_and_json_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(dcp_storage, "FILE_BYTES", 200)
    folder = save_one(tmp_path, 10, 1)
    load_and_compare(folder, 1)
    marker = json.loads((folder / "complete.json").read_bytes())
    assert marker["step"] == 10
    assert {file["name"] for file in marker["files"]} | {"complete.json"} == set(os.listdir(folder))
    for file in marker["files"]:
        content = (folder / file["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    tensor_files = sorted(folder.glob("*.safetensors"))
    assert len(tensor_files) > 2
    for path in tensor_files:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__")
        assert len({key.partition(".")[0] for key in header}) == 1  # Weights apart from optimizer states.
        for entry in header.values():
            width = (entry["data_offsets"][1] - entry["data_offsets"][0]) // torch.Size(entry["shape"]).numel()
            assert (8 + length + entry["data_offsets"][0]) % width == 0


def test_strided_tensors_and_parameters(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": whole.t(), "b": torch.nn.Parameter(whole[0] + 1), "c": whole[1, ::2]}
    folder = checkpoint.save(tmp_path, 1, tensors, {}, keep=1)
    target = torch.zeros(3, 4)
    got = {"a": target.t(), "b": torch.nn.Parameter(torch.zeros(4)), "c": torch.zeros(4)[1::2]}
    checkpoint.load(folder, got)
    assert all(torch.equal(got[name], tensors[name]) for name in tensors)
    assert torch.equal(target, whole)


def test_read_tensors_reads_a_part_and_verifies_it(tmp_path):
    folder = save_one(tmp_path, 10, 1)
    flip(next(path for path in folder.glob("*.safetensors") if "optim.step[]" in header_of(path)), -1)
    read = {name: (shape, fetch()) for name, shape, fetch in checkpoint.read_tensors(folder, "model.")}
    assert list(read) == [name for name in LAYOUT if name.startswith("model.")]
    assert all(shape == LAYOUT[name][0] for name, (shape, _) in read.items())
    assert_same({name: tensor for name, (_, tensor) in read.items()}, {name: whole_state(1)[name] for name in read})
    with pytest.raises(Damaged, match="is corrupt"):
        next(checkpoint.read_tensors(folder))


def memory_of_a_save(root: Path) -> int:
    tensors = {f"model.{i}": torch.full((24 << 20,), i, dtype=torch.float32) for i in range(2)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checkpoint.save(root, 1, tensors, {}, keep=1)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def test_saving_holds_no_second_copy(tmp_path):
    """192 MiB of state, one tensor of 96: memory grows by less than half of the smaller figure."""
    assert run_ranks(1, memory_of_a_save, tmp_path, process_group=False)[0] < 48 << 20


class Evil:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (Path(self.target),))


def test_no_pickle_is_ever_loaded(tmp_path, monkeypatch):
    """A planted pickle that writes a file when it is loaded lies where DCP's own reader would look for one."""
    root, canary = tmp_path / "checkpoints", tmp_path / "canary"
    save_one(root, 9, 1)
    folder = save_one(root, 10, 2)
    poison = pickle.dumps(Evil(str(canary)))
    pickle.loads(poison)
    assert canary.exists()  # The poison works.
    canary.unlink()
    for name in (".metadata", "__0_0.distcp", "tensors.pt"):
        (folder / name).write_bytes(poison)

    def forbidden(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, forbidden)
    load_and_compare(folder, 2)
    assert checkpoint.find(root) == (folder, [])
    assert checkpoint.resume(root, lambda *_: blank_state())[0] == folder
    assert dict((name, shape) for name, shape, _ in checkpoint.read_tensors(folder)).keys() == LAYOUT.keys()
    # A pickle in the place of a file of the checkpoint.
    marker = (folder / "complete.json").read_bytes()
    (folder / "complete.json").write_bytes(poison)
    assert checkpoint.find(root)[0].name == "step-00000009"
    (folder / "complete.json").write_bytes(marker)
    next(folder.glob("*.safetensors")).write_bytes(poison)
    assert checkpoint.resume(root, lambda *_: blank_state())[0].name == "step-00000009"
    assert not canary.exists()


# Damage.


def header_of(path: Path) -> str:
    content = path.read_bytes()
    return content[8 : 8 + int.from_bytes(content[:8], "little")].decode()


def edit_marker(folder: Path, change) -> None:
    marker = json.loads((folder / "complete.json").read_bytes())
    change(marker)
    (folder / "complete.json").write_text(json.dumps(marker))


def index_file(folder: Path) -> Path:
    return next(folder.glob("index-*"))


def edit_index(folder: Path, change) -> None:
    """The checksums fit afterwards."""
    index = json.loads(index_file(folder).read_bytes())
    change(index["tensors"])
    index_file(folder).write_text(json.dumps(index))
    content = index_file(folder).read_bytes()

    def fit(marker: dict) -> None:
        entry = next(file for file in marker["files"] if file["name"] == index_file(folder).name)
        entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    edit_marker(folder, fit)


def exchange_keys(tensors: dict) -> None:
    one, other = [entry["chunks"][0] for entry in tensors.values() if entry["chunks"]][:2]
    one["key"], other["key"] = other["key"], one["key"]


def half_twice(tensors: dict) -> None:
    """In volume the whole, and yet half of it is missing."""
    chunk = next(
        entry for entry in tensors.values() if entry["chunks"] and entry["shape"][:1] and entry["shape"][0] % 2 == 0
    )
    half = chunk["chunks"][0] | {"sizes": [chunk["shape"][0] // 2, *chunk["shape"][1:]]}
    chunk["chunks"] = [half, half]


DAMAGE = {
    "flipped data": (lambda f: flip(tensor_file(f), -1), "is corrupt"),
    "flipped header": (lambda f: flip(tensor_file(f), 12), "is corrupt"),
    "flipped index": (lambda f: flip(index_file(f), 40), "is corrupt"),
    "truncated tensors": (lambda f: os.truncate(tensor_file(f), 20), "has 20 bytes, not"),
    "empty tensors": (lambda f: os.truncate(tensor_file(f), 0), "has 0 bytes, not"),
    "longer tensors": (lambda f: tensor_file(f).open("ab").write(b"x"), "bytes, not"),
    "missing tensors": (lambda f: tensor_file(f).unlink(), "is missing"),
    "missing index": (lambda f: index_file(f).unlink(), "is missing"),
    "missing marker": (lambda f: (f / "complete.json").unlink(), "never finished"),
    "truncated marker": (lambda f: os.truncate(f / "complete.json", 50), "not a file that skytrain wrote"),
    "marker of another step": (lambda f: edit_marker(f, lambda m: m.update(step=3)), "that of step 3"),
    "later format": (lambda f: edit_marker(f, lambda m: m.update(format_version=2)), "format version 2"),
    "unlisted file": (lambda f: edit_marker(f, lambda m: m["files"].pop()), "chunks of tensor"),
    "exchanged keys": (lambda f: edit_index(f, exchange_keys), "chunks of tensor"),
    "half of a tensor twice": (lambda f: edit_index(f, half_twice), "chunks of tensor"),
    "path in marker": (lambda f: edit_marker(f, lambda m: m["files"][1].update(name="../x")), "no save wrote"),
    "unknown key": (lambda f: edit_marker(f, lambda m: m.update(extra=1)), "not a file that skytrain wrote"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoint_is_refused_and_passed_over(tmp_path, kind):
    save_one(tmp_path, 9, 1)
    folder = save_one(tmp_path, 10, 2)
    damage, words = DAMAGE[kind]
    damage(folder)
    got = blank_state()
    with pytest.raises(UserError, match=words) as raised:
        checkpoint.load(folder, got)
    assert "step-00000010" in str(raised.value) and "\n" not in str(raised.value)
    assert_same(got, blank_state())
    found, scalars, skipped = checkpoint.resume(tmp_path, lambda *_: got)
    assert found.name == "step-00000009" and skipped == [(folder, raised.value.args[1])]
    assert scalars == SCALARS
    assert_same(got, whole_state(1))
    with pytest.raises(UserError, match=words):
        checkpoint.resume(tmp_path, lambda *_: got, 10)
    if kind not in ("flipped data", "flipped header"):  # `find` reads no tensor file.
        assert checkpoint.find(tmp_path) == (found, skipped)
        with pytest.raises(UserError, match=words):
            checkpoint.find(tmp_path, 10)


def test_every_file_is_verified(tmp_path, monkeypatch):
    monkeypatch.setattr(dcp_storage, "FILE_BYTES", 100)
    folder = save_one(tmp_path, 10, 1)
    names = [file.name for file in storage.read_marker(folder).files]
    assert len(names) > 4
    for name in names:
        flip(folder / name, -1)
        with pytest.raises(Damaged, match=f"{name} is corrupt"):
            checkpoint.load(folder, blank_state())
        flip(folder / name, -1)
    load_and_compare(folder, 1)


def test_find_without_any(tmp_path):
    assert checkpoint.find(tmp_path / "absent") == (None, [])
    assert checkpoint.resume(tmp_path / "absent", lambda *_: blank_state()) == (None, {}, [])
    folder = save_one(tmp_path, 9, 1)
    (tmp_path / "step-00000010").mkdir()
    assert checkpoint.find(tmp_path, 9) == (folder, [])
    with pytest.raises(UserError, match="holds no step 8; it holds steps 9, 10"):
        checkpoint.find(tmp_path, 8)
    with pytest.raises(UserError, match=r"step-00000010: no complete.json.*choose another step"):
        checkpoint.find(tmp_path, 10)
    shutil.rmtree(folder)
    found, skipped = checkpoint.find(tmp_path)
    assert found is None and [path.name for path, _ in skipped] == ["step-00000010"]


def test_other_tensors_than_those_saved_are_named(tmp_path):
    """B52: a missing key, an unknown key, a wrong shape or dtype is an error that names it, and nothing is filled."""
    folder = save_one(tmp_path, 10, 1)
    got = blank_state()
    changes = {
        "tensor 'model.extra' is missing": got | {"model.extra": torch.zeros(2)},
        "tensor 'optim.step' is unknown": {name: got[name] for name in got if name != "optim.step"},
        r"'model.one_row' is F32 \[1, 6\], this run's is F32 \[6\]": got | {"model.one_row": torch.zeros(6)},
        r"'optim.plain' is BF16 \[3, 2\], this run's is F32 \[3, 2\]": got | {"optim.plain": torch.zeros(3, 2)},
    }
    for words, tensors in changes.items():
        with pytest.raises(UserError, match=words):
            checkpoint.load(folder, tensors)
        assert_same(got, blank_state())
        # The wrong model is no damage: an older checkpoint is not tried in its place.
        with pytest.raises(UserError, match=words):
            checkpoint.resume(tmp_path, lambda *_: tensors)

"""Retention, full disks and kills: the last good checkpoint stays, and nothing unfinished does."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from checkpoint_states import assert_same, bits, blank_state, load_and_compare, save_one, tensor_file, whole_state
from ranks import run_ranks

from skytrain import checkpoint, storage
from skytrain.errors import UserError


def steps(root: Path) -> list[int]:
    return [storage.step_of(folder) for folder in storage.step_folders(root)]


def test_retention_keeps_the_newest_complete_ones(tmp_path):
    for step in (1, 2, 3):
        save_one(tmp_path, step, step, keep=2)
    assert steps(tmp_path) == [3, 2]
    tensor_file(tmp_path / "step-00000003").unlink()
    (tmp_path / "step-00000007").mkdir()
    (tmp_path / "step-00000007" / "tensors-00000-000-dead.safetensors").write_bytes(b"half")
    (tmp_path / "notes").mkdir()
    save_one(tmp_path, 4, 4, keep=2)
    assert steps(tmp_path) == [4, 2]  # The broken ones are gone and have pushed out no good one.
    assert (tmp_path / "notes").is_dir()
    save_one(tmp_path, 3, 3, keep=1)
    assert steps(tmp_path) == [3]  # Just written: never deleted for a later one.
    load_and_compare(tmp_path / "step-00000003", 3)


def test_half_deleted_folder_is_not_complete(tmp_path, monkeypatch):
    folder = save_one(tmp_path, 1, 1)
    monkeypatch.setattr(shutil, "rmtree", lambda folder: None)
    storage.remove(folder)
    assert not storage.is_complete(folder) and len(list(folder.glob("*.safetensors"))) == 2


def test_link_to_another_runs_checkpoint_is_left_whole(tmp_path):
    other = save_one(tmp_path / "other", 5, 5)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step-00000005").symlink_to(other)
    save_one(tmp_path / "run", 6, 6, keep=1)
    assert steps(tmp_path / "run") == [6]
    load_and_compare(other, 5)


@pytest.mark.parametrize("fails", ["replace", "fsync"])
def test_failed_save_leaves_the_older_one_and_nothing_else(tmp_path, monkeypatch, fails):
    """Disk full while the marker is put in place, or while a file is brought to disk."""
    save_one(tmp_path, 1, 1)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    for step in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(os, fails, full if fails == "replace" else lambda fd: full() if is_file(fd) else None)
            with pytest.raises(UserError, match="No space left on device"):
                save_one(tmp_path, step, 2, keep=1)
        assert steps(tmp_path) == [1]
        load_and_compare(tmp_path / "step-00000001", 1)
        known = {file.name for file in storage.read_marker(tmp_path / "step-00000001").files}
        assert set(os.listdir(tmp_path / "step-00000001")) == known | {"complete.json"}


def is_file(descriptor: int) -> bool:
    return not os.path.isdir(f"/proc/self/fd/{descriptor}")


def killed_at(operation: int, root: Path, step: int) -> bool:
    """Saves `step` in a forked child that is killed -9 at its n-th file operation; False when it was not reached."""
    child = os.fork()
    if child == 0:
        left = [operation]

        def hook(event: str, args: tuple) -> None:
            if event in {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"} and "checkpoints" in str(args):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        save_one(root, step, step + 100, keep=1)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def kill_everywhere(folder: Path, step: int) -> int:
    root, operation, seen = folder / "checkpoints", 0, set()
    while True:
        shutil.rmtree(root, ignore_errors=True)
        save_one(root, 1, 1)
        killed = killed_at(operation, root, step)
        got = blank_state()
        found, _, skipped = checkpoint.resume(root, lambda *_: got)
        new = found.name == f"step-{step:08d}" and bits(got["optim.plain"]) != bits(whole_state(1)["optim.plain"])
        assert_same(got, whole_state(step + 100 if new else 1))
        assert new or killed
        assert bool(skipped) == (len(steps(root)) > 1 and not new)
        seen.add(new)
        # The next save leaves nothing of the killed one.
        last = save_one(root, 3, 3, keep=1)
        assert steps(root) == [3]
        assert len(os.listdir(last)) == len(storage.read_marker(last).files) + 1
        if not killed:
            assert seen == {True, False}
            return operation
        operation += 1


@pytest.mark.parametrize("step", [2, 1])
def test_killed_save_leaves_the_last_good_one(tmp_path, step):
    """B45: kill -9 at each file operation of a save, of a new step and of one that is replaced: the newest complete
    one is loaded, bit for bit, the unfinished one is named, and nothing of it stays after the next save."""
    assert run_ranks(1, kill_everywhere, tmp_path, step, process_group=False)[0] > 12

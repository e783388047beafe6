"""Bytes written past the page cache are those that were given; what goes wrong is told as a plain write tells it."""

import errno
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from skytrain import direct
from skytrain.direct import STAGE_BYTES, DirectFile


def write(path: Path, parts: list[bytes]) -> list[bool]:
    """Returns after which of the parts the file was still written directly."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        file = DirectFile(descriptor)
        modes = []
        for part in parts:
            assert file.write(part) == memoryview(part).nbytes
            modes.append(file.direct)
        file.flush()
        return modes
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("sizes", [[0], [1], [STAGE_BYTES], [STAGE_BYTES - 1, 2], [7, 3 * STAGE_BYTES, 4095, 0, 1]])
def test_what_is_written_is_what_was_given(sizes, tmp_path):
    parts = [random.Random(size).randbytes(size) for size in sizes]
    write(tmp_path / "file", parts)
    assert (tmp_path / "file").read_bytes() == b"".join(parts)


def test_memory_of_any_shape_and_dtype_is_bytes(tmp_path):
    values = np.arange(3000, dtype=np.float32).reshape(50, 60)
    write(tmp_path / "file", [values])
    assert (tmp_path / "file").read_bytes() == values.tobytes()


@pytest.mark.parametrize("refused", ["at once", "when written", "written in part"])
def test_a_file_system_that_refuses_is_written_to_through_the_cache(refused, tmp_path, monkeypatch):
    real_flags, real_write = direct.fcntl.fcntl, os.write

    def flags(descriptor, command, value=0):
        if refused == "at once" and value & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct writes here")
        return real_flags(descriptor, command, value)

    def put(descriptor, data):
        if real_flags(descriptor, direct.fcntl.F_GETFL) & os.O_DIRECT:
            if refused == "when written":
                raise OSError(errno.EINVAL, "no direct writes here")
            return real_write(descriptor, data[:8192])
        return real_write(descriptor, data)

    monkeypatch.setattr(direct.fcntl, "fcntl", flags)
    monkeypatch.setattr(direct.os, "write", put)
    parts = [random.Random(0).randbytes(2 * STAGE_BYTES + 5)]
    assert write(tmp_path / "file", parts) == [False]
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == parts[0]


def test_a_file_that_may_not_grow_is_told_as_such(tmp_path):
    """A limit that is no multiple of a block: a direct write past it would be told as an invalid argument."""
    program = f"""
import os, resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({STAGE_BYTES} + 5000, {resource.RLIM_INFINITY}))
from skytrain.direct import DirectFile
file = DirectFile(os.open({str(tmp_path / "file")!r}, os.O_WRONLY | os.O_CREAT))
try:
    file.write(bytes({3 * STAGE_BYTES}))
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\n"

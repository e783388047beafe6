"""How a sandbox is started: the command, the limits, and the user that a program becomes.

Root needs no user namespace: bubblewrap keeps what it takes to become another user, and the runner becomes one that no
other sandbox is. An ordinary user stays the same user, in a namespace of its own.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from skytrain.errors import UserError
from skytrain.prep.grade import inside, seccomp

LEVELS = ("bubblewrap", "process")
MIB = 1 << 20
MEMORY = 1024 * MIB
OUTPUT = 64 * MIB
PROCESSES = 64
"""Threads count."""
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}
_FLAGS = ["-I", "-S", "-B", "-X", "utf8"]
_LIMITS = [
    # Above the memory: the interpreter itself, and the stack of a thread that recurses deeply.
    (resource.RLIMIT_AS, MEMORY + 320 * MIB),
    # The kernel leaves 128 MiB of addresses below the first stack, whatever the limit was at the start.
    (resource.RLIMIT_STACK, 100 * MIB),
    (resource.RLIMIT_NPROC, PROCESSES),
    (resource.RLIMIT_FSIZE, OUTPUT),
    (resource.RLIMIT_NOFILE, 128),
    (resource.RLIMIT_MSGQUEUE, 0),
    (resource.RLIMIT_CORE, 0),
]
_numbers = itertools.count()


def check_level(level: str) -> None:
    """Raises `UserError` for a level that is none, or whose program is missing."""
    if level not in LEVELS:
        raise UserError(f"sandbox {level!r}: name one of {', '.join(LEVELS)}")
    if level == "bubblewrap":
        _path()


def advice() -> str:
    return 'install bubblewrap (apt-get install bubblewrap), or name sandbox="process", which contains less'


def limits(seconds: float) -> list[tuple[int, int]]:
    """Which resource, and how much. Processor time is the wall time's belt: all threads may use all of it."""
    return [*_LIMITS, (resource.RLIMIT_CPU, math.ceil(seconds) * PROCESSES + 1)]


def user(level: str) -> int | None:
    """The user that the next program becomes, or None for the one that this process is.

    Neighbours differ, since the limit on processes is one a user.
    """
    if os.geteuid() != 0 or (level == "process" and not _open_to_all(Path(sys.base_prefix))):
        return None
    return 20_000 + (os.getpid() * 64 + next(_numbers) % 64) % 40_000


def command(level: str, inbox: int, outbox: int, reports: int, calls: int, numpy: bool) -> list[str]:
    """Starts the runner, whose job comes through `inbox` and whose results go to `outbox`. For bubblewrap, `reports` is
    where it reports, and `calls` gives the filter of system calls."""
    python = [_python(), *_FLAGS, "-c", inside.BOOT, str(inbox), str(outbox)]
    if level == "process":
        return python
    packages = [part for path in numpy_packages() for part in ("--ro-bind", str(path), f"/packages/{path.name}")]
    packages = ["--perms", "0755", "--dir", "/packages", *packages] if numpy else []
    pipes = ["--json-status-fd", str(reports), *(["--seccomp", str(calls)] if seccomp.program() else [])]
    return [*_bubblewrap(), *packages, *pipes, "--remount-ro", "/", *python]


def packages(level: str, numpy: bool) -> list[str]:
    """Where the runner looks for more than the standard library."""
    found = numpy_packages() if numpy else ()
    return [] if not found else ["/packages"] if level == "bubblewrap" else [str(found[0].parent)]


@functools.cache
def numpy_packages() -> tuple[Path, ...]:
    """numpy's folder and that of its libraries, or nothing where it is not installed."""
    found = importlib.util.find_spec("numpy")
    if found is None or found.origin is None:
        return ()
    folder = Path(found.origin).parent
    return tuple(path for path in (folder, folder.with_name("numpy.libs")) if path.is_dir())


@functools.cache
def _python() -> str:
    """The interpreter itself: the sandbox has no virtual environment."""
    return os.path.realpath(sys.executable)


def _path() -> str:
    """Raises `UserError`. Looked for anew each time: what is kept below was found once."""
    path = shutil.which("bwrap")
    if path is None:
        raise UserError(f"sandbox 'bubblewrap': there is no bwrap on the PATH; {advice()}")
    return path


@functools.cache
def _bubblewrap() -> tuple[str, ...]:
    """Up to what a single program needs. Raises `UserError` where there is none."""
    path = _path()
    spaces = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--die-with-parent"]
    if os.geteuid() == 0:
        spaces += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        spaces += ["--unshare-user"]
    return (path, *spaces, *_system(), *_interpreter(), *_devices())


def _system() -> Iterator[str]:
    """What is not /usr itself is mostly a link into it. The loader's cache knows where else libraries lie."""
    yield from ("--ro-bind", "/usr", "/usr")
    for path in map(Path, ("/bin", "/lib", "/lib32", "/lib64", "/libx32")):
        if path.is_symlink():
            yield from ("--symlink", os.readlink(path), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
    yield from ("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache")


def _interpreter() -> Iterator[str]:
    """Python where it lies outside of /usr. Bubblewrap would copy the modes of the folders above it, and some home
    folders are closed to others."""
    for path in dict.fromkeys(map(Path, (sys.base_prefix, sys.base_exec_prefix))):
        if not path.is_relative_to("/usr"):
            for parent in reversed(path.parents[:-1]):
                yield from ("--perms", "0755", "--dir", str(parent))
            yield from ("--ro-bind", str(path), str(path))


def _devices() -> Iterator[str]:
    """Those that programs use. `--dev` makes all, and a file system of terminals, in a quarter of the whole start."""
    yield from ("--proc", "/proc", "--dir", "/dev", "--dev-bind", "/dev/null", "/dev/null")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        yield from ("--symlink", f"/proc/self/fd/{number}", f"/dev/{name}")
    yield from ("--symlink", "/proc/self/fd", "/dev/fd")
    yield from ("--symlink", "/tmp", "/dev/shm")
    yield from ("--size", str(64 * MIB), "--perms", "1777", "--tmpfs", "/tmp", "--chdir", "/tmp")


def _open_to_all(path: Path) -> bool:
    return all(each.stat().st_mode & 0o005 == 0o005 for each in (path, *path.parents))

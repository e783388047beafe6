"""The processes below one, as /proc tells of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def below(pid: int) -> Iterator[int]:
    """A process and all of its descendants. Those that end meanwhile may be missing."""
    waiting = [pid]
    while waiting:
        found = waiting.pop()
        yield found
        try:
            for thread in os.listdir(f"/proc/{found}/task"):
                waiting += map(int, Path(f"/proc/{found}/task/{thread}/children").read_bytes().split())
        except OSError:
            continue


def memory(pid: int, limit: int) -> int:
    """Bytes resident in a process and its descendants. Only a sum over the limit is worth the exact one, in which what
    several share counts once."""
    pids = list(below(pid))
    resident = sum(map(_resident, pids))
    return resident if resident <= limit else sum(map(_share, pids))


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _share(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(b"Pss:"))
    except OSError:
        return _resident(pid)


def kill_all_of(user: int) -> None:
    """Until a look finds none: each look may meet children of those that the last one killed."""
    killed = True
    while killed:
        killed = False
        for name in os.listdir("/proc"):
            if name.isdigit() and _owner_of_running(name) == user:
                os.kill(int(name), signal.SIGKILL)
                killed = True


def _owner_of_running(name: str) -> int | None:
    try:
        status = Path(f"/proc/{name}/status").read_text()
    except OSError:
        return None
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return None if fields["State"].startswith(("Z", "X")) else int(fields["Uid"].split()[0])

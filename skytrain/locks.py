"""One writer a folder or file: the kernel's lock on it, which a killed process cannot leave behind."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def lock(folder: Path) -> int | None:
    """Takes the folder, which exists, for this process; returns the descriptor that holds it until `os.close`.

    None where another process has it. Where the file system has no locks, nobody is refused.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    if not take(descriptor):
        os.close(descriptor)
        return None
    return descriptor


def take(descriptor: int) -> bool:
    """Whether this process now has the file or folder, until it closes it. Without locks, nobody is refused."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True

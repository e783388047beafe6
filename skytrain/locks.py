"""One writer a folder: the kernel's lock on the folder itself, which a killed process cannot leave behind."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def lock(folder: Path) -> int | None:
    """Takes the folder, which exists, for this process; returns the descriptor that holds it until `os.close`.

    None where another process has it. Where the file system has no locks, nobody is refused.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        pass
    return descriptor

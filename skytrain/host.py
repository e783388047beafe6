"""The host that this process runs on."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def host_memory() -> int:
    """Bytes: this host's, or what a container may have of it."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file; the word "max"
            there = min(there, int(Path(limit).read_text()))
    return there

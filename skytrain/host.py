"""The host that this process runs on."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path


def host_memory() -> int:
    """Bytes: this host's, or what a container may have of it."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file; the word "max"
            there = min(there, int(Path(limit).read_text()))
    return there


def vllm_program() -> str | None:
    """`vllm`: on the PATH, beside this Python, or where `make vllm` puts it."""
    own = os.environ.get("SKYTRAIN_VLLM") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skytrain" / "vllm"
    )
    places = [shutil.which("vllm"), str(Path(sys.executable).parent / "vllm"), str(Path(own) / "bin" / "vllm")]
    return next((place for place in places if place and os.access(place, os.X_OK)), None)

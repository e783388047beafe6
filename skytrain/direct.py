"""Writing past the page cache.

A checkpoint is not read again while its run lives. Kept in the page cache it drives out what is, and the cache's new
pages cost a core several times what hashing the same bytes does (LOG.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from typing import Any

STAGE_BYTES = 4 << 20
"""Written at once. Direct writes are of whole blocks, from memory that starts at a block's boundary."""


class DirectFile:
    """Writes bytes to an open descriptor, in order and from its start, past the page cache where the file system can.

    Whatever a file system refuses of that is written through the cache, so that errors are those of a plain write.
    """

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.stage = mmap.mmap(-1, STAGE_BYTES)
        self.used = 0
        self._set_direct(True)

    def write(self, part: Any) -> int:
        """`part`: anything of contiguous bytes. Returns how many."""
        rest = memoryview(part).cast("B")
        size = len(rest)
        while rest:
            piece = rest[: STAGE_BYTES - self.used]
            self.stage[self.used : self.used + len(piece)] = piece
            self.used += len(piece)
            rest = rest[len(piece) :]
            if self.used == STAGE_BYTES:
                self._put()
        return size

    def flush(self) -> None:
        """Writes what is staged: after it the file's place is no block's boundary, and the cache is used."""
        self._set_direct(False)
        self._put()

    def _put(self) -> None:
        with memoryview(self.stage)[: self.used] as staged:
            done = 0
            while done < self.used:
                try:
                    done += os.write(self.descriptor, staged[done:])
                except OSError:
                    if not self.direct:
                        raise
                if done < self.used:
                    self._set_direct(False)
        self.used = 0

    def _set_direct(self, direct: bool) -> None:
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL) & ~os.O_DIRECT
        self.direct = False
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags | (os.O_DIRECT if direct else 0))
            self.direct = direct

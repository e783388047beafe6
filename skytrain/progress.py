"""Where the process is in its work, for whoever watches that it moves."""

from __future__ import annotations

import time

_last: tuple[float, str] = (time.monotonic(), "starting")


def mark(doing: str | None = None) -> None:
    """Called wherever work goes on. doing: what is done now; None: the same as before."""
    global _last
    _last = (time.monotonic(), doing or _last[1])


def last() -> tuple[float, str]:
    """(seconds of the monotonic clock, what was done) of the last mark."""
    return _last

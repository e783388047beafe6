"""SIGTERM, SIGUSR1 and Ctrl-C ask a run to stop at the end of a step; a second one ends the process at once.

Nothing here imports torch, so that a door can listen before it loads anything.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SAME_REQUEST_SECONDS = 1.0
"""A signal to a whole group of processes comes twice to a rank: from the sender, and passed on by torchrun."""

_asked: tuple[float, str] | None = None


def listen() -> None:
    """From now on, in this process. Forgets what was asked before. Only the main thread can; another one leaves the
    signals as they are."""
    global _asked
    _asked = None
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            signal.signal(number, _handle)


def asked() -> str | None:
    """The name of the signal that asked this process to stop."""
    return None if _asked is None else _asked[1]


def _handle(number: int, frame: FrameType | None) -> None:
    global _asked
    now = time.monotonic()
    if _asked is None:
        _asked = (now, signal.Signals(number).name)
        if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
            # Not print, which the signal may have come in the middle of.
            os.write(2, b"\ninterrupted: stops after this step, with a checkpoint; once more ends it at once\n")
    elif now - _asked[0] > SAME_REQUEST_SECONDS:
        # No clean-up: every file gets its name when it is whole, so that what stands is good.
        os._exit(128 + number)

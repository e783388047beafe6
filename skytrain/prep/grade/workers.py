"""Processes that are asked one thing at a time, and killed at their deadline."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from typing import Any

START_SECONDS = 60.0


class Died(Exception):
    """The process ended without an answer."""


class Worker:
    """One process. Raises `TimeoutError` or `Died` when asked; it is gone then."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "skytrain.prep.grade.worker"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, **pipes)
        try:
            self._line(START_SECONDS)
        except BaseException:
            self.end()
            raise

    def ask(self, message: Any, seconds: float) -> str:
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
            return self._line(seconds)
        except BrokenPipeError:
            self.end()
            raise Died from None
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _line(self, seconds: float) -> str:
        until, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            read = os.read(self.process.stdout.fileno(), 1 << 16)
            if not read:
                raise Died
            line += read
        return line.decode().strip()


class Pool:
    """At most `count` workers, started when they are needed. Any thread may ask."""

    def __init__(self, count: int) -> None:
        self.idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(count):
            self.idle.put(None)

    def ask(self, message: Any, seconds: float) -> str:
        """Waits for a free worker, and then for at most `seconds`. Raises `TimeoutError` or `Died`."""
        worker = self.idle.get()
        try:
            if worker is None or worker.process.poll() is not None:
                worker = None  # Stays None in the pool should the start fail.
                worker = Worker()
            return worker.ask(message, seconds)
        except BaseException:
            worker = None
            raise
        finally:
            self.idle.put(worker)

    def close(self) -> None:
        """Ends the workers that are idle."""
        for _ in range(self.idle.qsize()):
            worker = self.idle.get()
            if worker is not None:
                worker.end()
            self.idle.put(None)


_pools: dict[int, Pool] = {}
_lock = threading.Lock()


def shared() -> Pool:
    """This process's: one worker a core. A forked child has its own, since a pipe has one reader."""
    with _lock:
        if os.getpid() not in _pools:
            _pools.clear()
            _pools[os.getpid()] = Pool(len(os.sched_getaffinity(0)))
        return _pools[os.getpid()]

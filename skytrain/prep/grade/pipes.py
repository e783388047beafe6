"""Descriptors that are read and written as the other side pleases."""

from __future__ import annotations

import functools
import os
import select
from collections.abc import Callable

_CHUNK = 1 << 18


class Pipes:
    """The descriptors that it owns. Each is closed at its end, or by `close`, and none twice."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[int], None] | None] = {}

    def own(self, file: int) -> int:
        """From now on closes it, whatever else becomes of it."""
        os.set_blocking(file, False)
        self._handlers[file] = None
        return file

    def feed(self, file: int, data: bytes) -> None:
        """Writes `data`, and closes. A reader that stops early is no error."""
        rest = memoryview(data)

        def write(file: int) -> None:
            nonlocal rest
            try:
                rest = rest[os.write(file, rest[:_CHUNK]) :] if rest else rest
            except BlockingIOError:
                return
            except BrokenPipeError:
                rest = rest[:0]
            if not rest:
                self.close(file)

        self._add(file, select.POLLOUT, write)

    def read(self, file: int, taker: Callable[[bytes], None]) -> None:
        self._add(file, select.POLLIN, functools.partial(self._take, taker=taker))

    def notice(self, file: int, handler: Callable[[], None]) -> None:
        """Calls `handler` once, when `file` is readable."""

        def handle(file: int) -> None:
            self.close(file)
            handler()

        self._add(file, select.POLLIN, handle)

    def wait(self, seconds: float) -> None:
        """Handles what is ready, at once or within `seconds`."""
        for file, _ in self._poll.poll(max(0.0, seconds) * 1000):
            # One handler may have closed another's descriptor.
            if file in self._handlers:
                self._handlers[file](file)

    def drain(self, file: int) -> None:
        """Reads what is left in a pipe that nobody writes to any more."""
        ready = select.poll()
        ready.register(file, select.POLLIN)
        while (handler := self._handlers.get(file)) is not None and ready.poll(0):
            handler(file)

    def close(self, file: int) -> None:
        if file in self._handlers:
            if self._handlers.pop(file) is not None:
                self._poll.unregister(file)
            os.close(file)

    def _add(self, file: int, events: int, handler: Callable[[int], None]) -> None:
        self._poll.register(file, events)
        self._handlers[file] = handler

    def _take(self, file: int, taker: Callable[[bytes], None]) -> None:
        try:
            data = os.read(file, _CHUNK)
        except BlockingIOError:
            return
        if data:
            taker(data)
        else:
            self.close(file)

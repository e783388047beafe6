"""Which server is asked next: the live one with the fewest requests in flight. One that fails is left out, for a
while."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

FAILURES = 8
"""Failed requests in a row after which a server is left out. A refused connection is enough by itself. With hundreds in
flight, 3 in a row come by chance where one in three fails."""
LONGEST_REST = 30.0


@dataclass(eq=False)
class Server:
    """`url`: up to and with /v1."""

    url: str
    in_flight: int = 0
    failures: int = 0
    rests: int = 0
    """How often in a row it was left out without an answer between."""
    out: bool = False
    until: float = 0.0
    """On the monotonic clock: it asked not to be asked before."""

    def rest(self, seconds: float) -> None:
        self.until = max(self.until, time.monotonic() + seconds)


class NoServer(Exception):
    """None has answered for the whole of `patience`; the message is the last failure."""


class Servers:
    """`probe(url)`: whether something answers there at all, asked before a server is taken back.

    patience: seconds without an answer of any server, while none can be asked, after which `take` gives up.
    """

    def __init__(self, urls: list[str], patience: float, probe: Callable[[str], Awaitable[bool]]):
        self._all = [Server(url) for url in urls]
        self._patience, self._probe = patience, probe
        self._heard = time.monotonic()
        self._changed = asyncio.Event()
        self._probing: set[asyncio.Task] = set()
        self._why = "no server"

    def __len__(self) -> int:
        return len(self._all)

    @property
    def live(self) -> int:
        return sum(not server.out for server in self._all)

    async def take(self) -> Server:
        """Waits for a server that may be asked. Raises `NoServer`."""
        while True:
            now = time.monotonic()
            free = [server for server in self._all if not server.out and now >= server.until]
            if free:
                server = min(free, key=lambda one: (one.in_flight, random.random()))
                server.in_flight += 1
                return server
            if now - self._heard > self._patience:
                raise NoServer(self._why)
            resting = [server.until - now for server in self._all if not server.out]
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), min([1.0, *(max(0.01, wait) for wait in resting)]))
            except TimeoutError:
                continue

    def give_back(self, server: Server) -> None:
        server.in_flight -= 1

    def answered(self, server: Server) -> None:
        self._heard = time.monotonic()
        server.failures = server.rests = 0

    def failed(self, server: Server, why: str, at_once: bool = False) -> None:
        """`at_once`: one failure is enough. What it had in flight fails together, and that is one failure."""
        self._why = f"{server.url}: {why}"
        if server.out:
            return
        server.failures += 1
        if at_once or server.failures >= FAILURES:
            print(f"{server.url}: left out for now ({why})", file=sys.stderr)
            server.out = True
            if not self.live:
                print(f"no server is left; waiting for one, up to {self._patience:g} s (--patience)", file=sys.stderr)
            task = asyncio.ensure_future(self._take_back(server))
            self._probing.add(task)
            task.add_done_callback(self._probing.discard)

    async def _take_back(self, server: Server) -> None:
        while server.out:
            # A server that answers a probe and fails every request comes back ever more rarely.
            await asyncio.sleep(min(LONGEST_REST, 0.5 * 2**server.rests) * random.uniform(0.5, 1.0))
            server.rests += 1
            if await self._probe(server.url):
                print(f"{server.url}: taken back", file=sys.stderr)
                server.out, server.failures = False, 0
                self._changed.set()

    async def close(self) -> None:
        for task in self._probing:
            task.cancel()
        await asyncio.gather(*self._probing, return_exceptions=True)

"""Many requests to servers that speak OpenAI's chat completions (vLLM first), each answered once.

A request is asked again only where that makes sense: after 408, 409, 429 and 5xx, a broken connection, or a body that
is no answer. There is no time limit by default: a trace of 16,000 tokens takes minutes, and asking again while the
server still works on it is how a slow server is brought down. A request that is given up is cancelled by closing its
connection.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp

from skytrain.errors import UserError, one_line
from skytrain.prep.completions import Completion, NotAnAnswer, completion
from skytrain.prep.servers import NoServer, Server, Servers

AGAIN = {408, 409, 429}
"""And every 5xx."""
SETTINGS = {
    401: "an API key (--api-key-env)",
    403: "the API key's rights",
    404: "--server (its address ends in /v1) and --model",
    405: "--server (its address ends in /v1)",
}
"""Statuses that every request would get, and what to look at."""
LONGEST_WAIT = 30.0
"""Seconds between two tries of a request, unless the server asks for more."""
CONNECT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Request:
    """key: under which the answer is logged; body: the JSON that is sent."""

    key: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Asking:
    """How requests are sent. None of it changes what is asked.

    servers: up to and with /v1. tries: times that a request may fail, connections that could not be made not counted.
    patience: seconds without any answer, no server being there, after which all is given up. timeout: seconds for one
    request, or None. api_key_env: the environment variable with the key.
    """

    servers: list[str]
    in_flight: int = 256
    tries: int = 8
    patience: float = 600.0
    timeout: float | None = None
    api_key_env: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        if not self.servers:
            raise UserError("--server: name at least one, as http://127.0.0.1:8000/v1")
        for url in self.servers:
            if not re.fullmatch(r"https?://[^/\s?#]+(/[^\s?#]*)?", url):
                raise UserError(f"--server {url}: must be an address such as http://127.0.0.1:8000/v1")
        for name in ("in_flight", "tries", "patience", "timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be above 0, and finite")


@dataclass
class Counts:
    """What is told while requests are out."""

    out: int = 0
    done: int = 0
    again: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    """Of the answers."""
    live: int = 0
    servers: int = 0
    most_out: int = 0
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Failed:
    """A request without an answer. `lasting`: it will not be answered by asking again (the server refused it)."""

    key: str
    why: str
    lasting: bool


class Client:
    def __init__(self, asking: Asking, counts: Counts):
        self._asking, self.counts = asking, counts
        key = (os.environ.get(asking.api_key_env) or "").strip()
        if not key.isascii() or not key.isprintable():
            raise UserError(
                f"{asking.api_key_env}: holds more than the letters, digits and signs of a key; set it anew"
            )
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def ask(self, requests: Iterable[Request], take: Callable[[Completion | Failed], None]) -> None:
        """Asks all, at most `in_flight` at a time, and hands each outcome to `take` in the order in which they come.

        Raises `UserError` where every request would fail for the same reason, or no server is there.
        """
        waiting = iter(requests)
        timeout = aiohttp.ClientTimeout(total=self._asking.timeout, sock_connect=CONNECT_SECONDS)
        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, socket_factory=_kept_alive)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=self._headers) as session:
            self._session = session
            self._servers = Servers(
                [url.rstrip("/") for url in self._asking.servers], self._asking.patience, self._probe
            )
            self.counts.servers = len(self._servers)
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._asking.in_flight):
                        group.create_task(self._one_after_another(waiting, take))
            except* UserError as errors:
                raise errors.exceptions[0] from None
            finally:
                await self._servers.close()

    async def _one_after_another(self, waiting: Iterator[Request], take: Callable[..., None]) -> None:
        for request in waiting:
            self.counts.out += 1
            self.counts.most_out = max(self.counts.most_out, self.counts.out)
            try:
                outcome = await self._answer(request)
            finally:
                self.counts.out -= 1
            self.counts.done += 1
            if isinstance(outcome, Completion):
                self.counts.prompt_tokens += outcome.prompt_tokens
                self.counts.tokens += outcome.completion_tokens
            take(outcome)

    async def _answer(self, request: Request) -> Completion | Failed:
        failures, why = 0, ""
        while failures < self._asking.tries:
            if failures:
                self.counts.again += 1
            try:
                server = await self._servers.take()
            except NoServer as error:
                raise UserError(
                    f"no server has answered for {self._asking.patience:g} s ({error}); start one"
                ) from None
            self.counts.live = self._servers.live
            try:
                return await self._post(server, request)
            except _Again as again:
                why, self.counts.live = again.why, self._servers.live
                failures += again.counts
                if again.wait is not None:
                    await asyncio.sleep(again.wait)
                elif again.counts:
                    await asyncio.sleep(random.uniform(0, min(LONGEST_WAIT, 0.2 * 2**failures)))
            finally:
                self._servers.give_back(server)
        return Failed(request.key, f"{failures} tries, the last: {why}", lasting=False)

    async def _post(self, server: Server, request: Request) -> Completion | Failed:
        since = time.monotonic()
        try:
            async with self._session.post(f"{server.url}/chat/completions", json=request.body) as response:
                body = await response.read()
        except aiohttp.ClientConnectorError as error:
            self._servers.failed(server, _told(error), at_once=True)
            raise _Again(_told(error), counts=0, wait=0.0) from None
        except TimeoutError:
            if self._asking.timeout is not None and time.monotonic() - since >= self._asking.timeout:
                raise _Again(f"no answer in {self._asking.timeout:g} s") from None
            self._servers.failed(server, "no connection", at_once=True)
            raise _Again("no connection", counts=0, wait=0.0) from None
        except (aiohttp.ClientError, OSError) as error:
            self._servers.failed(server, _told(error))
            raise _Again(_told(error)) from None
        if response.status != 200:
            return self._refused(server, request, response, body)
        try:
            found = completion(request.key, body, server.url, time.monotonic() - since)
        except NotAnAnswer as error:
            self._servers.failed(server, str(error))
            raise _Again(str(error)) from None
        self._servers.answered(server)
        return found

    def _refused(self, server: Server, request: Request, response: aiohttp.ClientResponse, body: bytes) -> Failed:
        status = response.status
        why = f"status {status} of {server.url}: {_message(body)}"
        if status in SETTINGS:
            raise UserError(f"{why}; look at {SETTINGS[status]}")
        if status not in AGAIN and status < 500:
            self._servers.answered(server)
            return Failed(request.key, why, lasting=True)
        wait = _retry_after(response.headers.get("Retry-After"))
        if status == 429:
            self._servers.answered(server)
        elif wait is None:
            self._servers.failed(server, f"status {status}")
        if wait is not None:
            # So that the others do not ask before, and then not all at once.
            server.rest(wait)
            wait += random.uniform(0, 0.1 * wait)
        # A server that says when to come back is at work, however often it does.
        raise _Again(why, counts=0 if status == 429 and wait is not None else 1, wait=wait)

    async def _probe(self, url: str) -> bool:
        try:
            async with self._session.get(f"{url}/models", timeout=aiohttp.ClientTimeout(total=10)) as response:
                return response.status < 500
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False


class _Again(Exception):
    """counts: 1 where the request itself failed, 0 where it reached no server. wait: seconds, None for a growing
    time."""

    def __init__(self, why: str, counts: int = 1, wait: float | None = None):
        super().__init__(why)
        self.why, self.counts, self.wait = why, counts, wait


def _kept_alive(address: tuple[Any, ...]) -> socket.socket:
    """Without a time limit, only these questions find out that a server's machine is gone: after about 2 minutes."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return made


def _retry_after(header: str | None) -> float | None:
    """Seconds; the header holds them, or a date."""
    if header is None:
        return None
    if re.fullmatch(r"\s*\d+(\.\d*)?\s*", header):
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _message(body: bytes) -> str:
    """What a server says is wrong, in its JSON or as it is."""
    text = body[:2000].decode(errors="replace")
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = found if isinstance(found, str) else found.get("message", text)
    except (ValueError, AttributeError, RecursionError):
        pass
    return one_line(" ".join(str(text).split())[:300])


def _told(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer broke off"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed before an answer"
    return " ".join(str(error).split()) or type(error).__name__

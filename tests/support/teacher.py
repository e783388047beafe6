"""A chat completions server for tests, in a process of its own: it answers by a book, and fails as it is told to.

GET /counts tells what it has seen.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
import urllib.request
from collections import Counter

import forked
from aiohttp import web

FAULTS = ("500", "503", "429", "429-after", "408", "reset", "malformed", "no-choices", "abort", "400", "401")


class Server:
    """faults: kind -> share of the requests. only_first: a request fails at its first try alone. delay: seconds of each
    answer. book: text that a prompt contains -> message, or text of one. same: `seed` is not looked at. engine: its
    fingerprint. listed: what /v1/models holds."""

    def __init__(
        self,
        faults=None,
        only_first=False,
        delay=0.0,
        book=None,
        same=False,
        retry_after=0.2,
        finish="stop",
        engine="teacher-1",
        listed=(),
        **_,
    ):
        self.engine, self.listed = engine, list(listed)
        self.faults, self.only_first, self.delay, self.book = faults or {}, only_first, delay, book or {}
        self.same, self.retry_after, self.finish = same, retry_after, finish
        self.random = random.Random(0)
        self.asked, self.answered = Counter(), Counter()
        self.now = self.most = self.cancelled = 0
        self.bodies, self.last = [], {}

    async def complete(self, request):
        body = await request.json()
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        self.asked[key] += 1
        self.last = {"body": body, "authorization": request.headers.get("Authorization")}
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            fault = self.fault(key)
            if fault:
                return await self.fail(fault, request)
            if self.delay:
                await asyncio.sleep(self.delay)
            self.answered[key] += 1
            return web.json_response(self.answer(body))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.now -= 1

    def fault(self, key):
        if self.only_first and self.asked[key] > 1:
            return None
        at = self.random.random()
        for kind, share in self.faults.items():
            at -= share
            if at < 0:
                return kind
        return None

    async def fail(self, kind, request):
        if kind == "reset":
            response = web.StreamResponse(headers={"Content-Length": "5000", "Content-Type": "application/json"})
            await response.prepare(request)
            await response.write(b'{"choices": [{"message": {"content": "half')
            request.transport.abort()
            return response
        if kind == "malformed":
            return web.Response(text='{"choices": [{"mess', content_type="application/json")
        if kind == "no-choices":
            return web.json_response({"error": {"message": "overloaded"}})
        if kind == "abort":
            return web.json_response({"choices": [{"message": {"content": "hal"}, "finish_reason": "abort"}]})
        headers = {"Retry-After": str(self.retry_after)} if kind == "429-after" else {}
        status = int(kind.partition("-")[0])
        return web.json_response({"error": {"message": f"told to say {kind}"}}, status=status, headers=headers)

    def answer(self, body):
        prompt = body["messages"][-1]["content"]
        seed = 0 if self.same else body.get("seed", 0)
        message = next((said for text, said in self.book.items() if text in prompt), None)
        if message is None:
            message = f"I think about {seed}, and again.\n\n**Final Answer**\n\n\\boxed{{{seed % 1000}}}"
        if isinstance(message, str):
            message = {"content": message}
        finish = message.get("finish_reason", self.finish)
        choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": 10}
        return {"choices": [choice], "usage": usage, "model": body["model"], "system_fingerprint": self.engine}

    async def models(self, request):
        return web.json_response({"data": self.listed})

    async def counts(self, request):
        told = {"asked": sum(self.asked.values()), "different": len(self.asked), "most": self.most, "last": self.last}
        told |= {"answered": sum(self.answered.values()), "twice": sum(n > 1 for n in self.answered.values())}
        return web.json_response({**told, "cancelled": self.cancelled})


async def serve(settings, started):
    """`started` is sent the port."""
    server = Server(**settings)
    app = web.Application(client_max_size=1 << 28)
    app.add_routes([web.post("/v1/chat/completions", server.complete), web.get("/v1/models", server.models)])
    app.add_routes([web.get("/counts", server.counts)])
    # So that a request whose client went away is cancelled, as vLLM does.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", settings.get("port", 0), backlog=1024)
    await site.start()
    started.send(site._server.sockets[0].getsockname()[1])
    await asyncio.Event().wait()


def run(settings, started):
    asyncio.run(serve(settings, started))


class Teacher:
    """A context: the server, running. `url` with /v1."""

    def __init__(self, **settings):
        self.settings = settings

    def __enter__(self):
        context = forked.context()
        found, started = context.Pipe(duplex=False)
        self.process = context.Process(target=run, args=(self.settings, started), daemon=True)
        self.process.start()
        started.close()
        self.port = found.recv()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    def counts(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/counts", timeout=30) as answer:
            return json.load(answer)

    def kill(self):
        self.process.kill()
        self.process.join()

    def __exit__(self, *_):
        self.kill()


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)

"""Requests a second of the client that asks servers: python bench/asking.py [--requests 4000] [--rounds 5]

`skytrain prep generate`'s client and log against a server on this machine, in a process of its own, that answers each
request after a fixed time. 256 are in flight. The server's own work, in Python on the same two cores, is in the figure.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import record
from aiohttp import web
from timing import summary

from skytrain.prep.answers import AnswerLog, key_of
from skytrain.prep.client import Asking, Client, Counts, Request
from skytrain.prep.completions import Completion

IN_FLIGHT = 256
DELAY = 0.1
"""Seconds of an answer: 256 in flight could be 2,560 a second."""
ANSWER = "I think about it, and again. " * 40 + "\n\n**Final Answer**\n\n\\boxed{42}"


async def serve() -> None:
    async def complete(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(DELAY)
        choice = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 50, "completion_tokens": 300}})

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", complete)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


def ask(url: str, count: int, round_number: int) -> tuple[float, int]:
    """(requests a second, the most that were in flight at a time)."""
    counts, answered = Counts(), 0
    body = {"model": "m", "messages": [{"role": "user", "content": "What is 40 + 2? " * 20}], "max_tokens": 16384}
    requests = (Request(key_of(round_number, i), {**body, "seed": i}) for i in range(count))
    with tempfile.TemporaryDirectory() as folder, AnswerLog(Path(folder) / "answers.jsonl", Completion) as log:

        def take(outcome: Completion) -> None:
            nonlocal answered
            log.add(outcome.record())
            answered += 1

        since = time.perf_counter()
        asyncio.run(Client(Asking([url], in_flight=IN_FLIGHT), counts).ask(requests, take))
        seconds = time.perf_counter() - since
    assert answered == count, f"{answered} of {count} answered"
    return count / seconds, counts.most_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000, help="of each round (4000)")
    parser.add_argument("--rounds", type=int, default=5, help="each with new requests (5)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
        return
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        found = [ask(url, arguments.requests, number) for number in range(arguments.rounds)]
    finally:
        server.kill()
        server.wait()
    assert all(most == IN_FLIGHT for _, most in found), found
    rows = [
        {"metric": f"requests a second, {part}", "value": f"{value:.4g}", "unit": "1/s"}
        for part, value in vars(summary([rate for rate, _ in found])).items()
    ]
    rows.append({"metric": "in flight", "value": str(IN_FLIGHT), "unit": "requests"})
    for row in rows:
        print(f"{row['metric']}: {row['value']} {row['unit']}")
    print(record.append("asking", rows))


if __name__ == "__main__":
    main()

"""What the stages that ask a model share: settings, keys, the log, a display, and what is done when some stay
unanswered."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from skytrain.errors import UserError
from skytrain.prep.answers import AnswerLog, key_of
from skytrain.prep.client import Asking, Client, Counts, Failed, Request
from skytrain.prep.completions import Completion
from skytrain.prep.prompts import Prompts
from skytrain.prep.stage import Stage, beside

SYNC_SECONDS = 5.0
FIRST_SECONDS, LINE_SECONDS = 10.0, 60.0
REFUSED_AT_FIRST = 20
"""Requests refused before any is answered, after which the fault is taken to be in what is asked."""
OWN = ("model", "messages", "n", "seed", "stream", "temperature", "top_p", "max_tokens")


@dataclass(frozen=True)
class Sampling:
    """temperature, top_p, max_tokens: as the server's. extra: further keys of the request, as top_k."""

    temperature: float
    top_p: float
    max_tokens: int
    extra: dict[str, Any]

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 10:
            raise UserError(f"--temperature {self.temperature}: must be between 0 and 10")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p {self.top_p}: must be above 0 and at most 1")
        if self.max_tokens < 1:
            raise UserError(f"--max-tokens {self.max_tokens}: must be at least 1")
        for key in self.extra:
            if key in OWN:
                raise UserError(f"--extra {key}: is not set here; it has an option, or is not for the user to set")

    def body(self) -> dict[str, Any]:
        own = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        return {**own, **self.extra}


@dataclass(frozen=True)
class Model:
    """What is asked, and how: everything that a stage with a model needs.

    seed: each request has a seed of its own, from this one and its key. prices: USD for a million tokens in and out.
    on_unanswered: "error" or "drop", for requests that no try has answered.
    """

    name: str
    sampling: Sampling
    asking: Asking
    prompts: Prompts
    seed: int = 0
    prices: tuple[float, float] | None = None
    on_unanswered: str = "error"

    def request(self, messages: list[dict[str, Any]], version: str, sample: int = 0) -> Request:
        """The key stands for all that decides the answer, the sample's number too."""
        sampling = self.sampling.body()
        key = key_of(self.name, messages, sampling, self.seed, version, sample)
        body = {"model": self.name, "messages": messages, **sampling, "seed": int(key[:8], 16) >> 1}
        return Request(key, body)

    def settings(self, *prefixes: str) -> dict[str, Any]:
        """For a stage's account: what the rows depend on."""
        return {
            "model": self.name,
            "sampling": self.sampling.body(),
            "seed": self.seed,
            "prompts": self.prompts.versions(*prefixes),
        }

    def provenance(self, version: str, request: Request, record: dict[str, Any]) -> dict[str, Any]:
        told = ("server", "engine", "finish_reason", "prompt_tokens", "completion_tokens", "seconds")
        own = {"model": self.name, "prompt": version, "sampling": self.sampling.body(), "seed": request.body["seed"]}
        return {**own, "key": request.key, **{name: record[name] for name in told if record.get(name) is not None}}


def log_of(out: Path) -> AnswerLog:
    return AnswerLog(beside(out, "answers.jsonl"), Completion)


def ask_all(
    name: str, model: Model, log: AnswerLog, requests: Iterable[Request], waiting: int | None = None
) -> dict[str, Failed]:
    """Asks what the log does not hold, and returns those that stayed unanswered, by key.

    name, waiting: for the display; waiting: how many the log does not hold.

    Raises `UserError` where some did and model.on_unanswered is "error", and KeyboardInterrupt on Ctrl-C and SIGTERM;
    what was answered until then is in the log, and is not asked again.
    """
    failed: dict[str, Failed] = {}
    before = len(log.statuses)
    counts = Counts()

    def missing() -> Iterator[Request]:
        asked = set()
        for request in requests:
            if request.key not in log.statuses and request.key not in asked:
                asked.add(request.key)
                yield request

    def take(outcome: Completion | Failed) -> None:
        if isinstance(outcome, Completion):
            log.add(outcome.record())
            return
        failed[outcome.key] = outcome
        if outcome.lasting and len(failed) >= REFUSED_AT_FIRST and len(log.statuses) == before:
            raise UserError(f"{outcome.why}; so were the first {len(failed)} requests, so nothing more is asked")

    try:
        with _display(name, counts, before, waiting, model.prices):
            asyncio.run(_until_done(Client(model.asking, counts), missing(), take, log))
    except KeyboardInterrupt:
        print(f"{len(log.statuses):,} answers are saved in {log.path}; run again to go on", file=sys.stderr)
        raise
    open_still = [one for one in failed.values() if not one.lasting]
    if open_still and model.on_unanswered == "error":
        raise UserError(
            f"{len(open_still):,} requests stayed unanswered ({open_still[-1].why}); the others' answers are in "
            f"{log.path}: run again to ask the rest, or leave them out with --on-unanswered drop"
        )
    return failed


async def _until_done(client: Client, requests: Iterable[Request], take: Any, log: AnswerLog) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        task.cancel()

    async def sync() -> None:
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            await asyncio.to_thread(log.sync)

    with contextlib.suppress(RuntimeError, ValueError):  # not the main thread
        loop.add_signal_handler(signal.SIGTERM, stop)
    syncing = asyncio.create_task(sync())
    try:
        await client.ask(requests, take)
    except asyncio.CancelledError:
        if stopped:
            raise KeyboardInterrupt from None
        raise
    finally:
        syncing.cancel()
        await asyncio.gather(syncing, return_exceptions=True)


def unanswered(failed: Failed | None) -> tuple[str, str]:
    """(reason, detail) of a request without an answer, for the account."""
    return ("refused" if failed is not None and failed.lasting else "unanswered"), (failed.why if failed else "")


def unfinished(record: dict[str, Any]) -> str | None:
    """The reason for which an answer is of no use; None where it is whole."""
    status = record["status"]
    return None if status == "finished" else "unfinished" if status == "truncated" else status


def spent(stage: Stage, model: Model, records: Iterable[dict[str, Any]]) -> None:
    """Notes the tokens and the money of the answers that the rows stand on, those of earlier runs too."""
    notes = stage.notes
    for record in records:
        for name in ("prompt_tokens", "completion_tokens"):
            label = name.replace("_", " ")
            notes[label] = notes.get(label, 0) + record[name]
    if model.prices is not None:
        tokens = [notes.get(name, 0) for name in ("prompt tokens", "completion tokens")]
        notes["USD"] = sum(count * price for count, price in zip(tokens, model.prices)) / 1e6


@contextlib.contextmanager
def _display(
    stage: str, counts: Counts, before: int, waiting: int | None, prices: tuple[float, float] | None
) -> Iterator[None]:
    """A line that is kept up to date on a terminal, and else a new one now and then."""
    console = Console(stderr=True)

    def line() -> Text:
        seconds = max(1e-9, time.monotonic() - counts.since)
        done = f"{before + counts.done:,}" if waiting is None else f"{counts.done:,} of {waiting:,}"
        parts = [f"{stage}: {done} answered, {counts.out} in flight"]
        parts.append(f"{counts.done / seconds:,.1f} a second, {counts.tokens / seconds:,.0f} tokens a second")
        parts.append(f"{counts.again:,} asked again, {counts.live} of {counts.servers} servers")
        if prices is not None:
            parts.append(f"{(counts.prompt_tokens * prices[0] + counts.tokens * prices[1]) / 1e6:,.2f} USD by this run")
        return Text(", ".join(parts))

    if console.is_terminal:
        with Live(get_renderable=line, console=console, refresh_per_second=4, transient=True):
            yield
        return
    ended = threading.Event()

    def tell() -> None:
        wait = FIRST_SECONDS
        while not ended.wait(wait):
            print(line(), file=sys.stderr, flush=True)
            wait = LINE_SECONDS

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def add_model_arguments(
    parser: argparse.ArgumentParser, temperature: float, max_tokens: int, *, unset: bool = False
) -> None:
    """unset: options that are not given are left out of the namespace, so that a recipe's stand; the help tells their
    defaults all the same."""

    def add(name: str, help: str, default: Any = None, **kinds: Any) -> None:
        if unset:
            shown = f" (default: {default})" if default not in (None, []) else ""
            parser.add_argument(name, help=help + shown, default=argparse.SUPPRESS, **kinds)
        else:
            parser.add_argument(name, help=help, default=default, **kinds)

    count, seconds = {"type": int, "metavar": "N"}, {"type": float, "metavar": "SECONDS"}
    add(
        "--server",
        "address of a server, as http://127.0.0.1:8000/v1; may be given again, and the work is shared",
        action="append",
        metavar="URL",
    )
    add("--model", "the model, by the name that the servers know it by", metavar="NAME")
    add("--temperature", "sampling temperature", temperature, type=float, metavar="T")
    add("--top-p", "sampling: the likeliest tokens of so much probability in all", 1.0, type=float, metavar="P")
    add("--max-tokens", "longest answer in tokens; one that is cut off there counts as unfinished", max_tokens, **count)
    add(
        "--extra",
        "another field to send with each request, as top_k=20 (what is no JSON is sent as text); may be given again",
        [],
        action="append",
        metavar="KEY=JSON",
    )
    add("--seed", "seed, of which each request gets one of its own", 0, **count)
    add("--prompts", "folder of texts that replace the built-in prompts of the same file names", metavar="FOLDER")
    add("--in-flight", "requests at a time, over all servers", 256, **count)
    add("--tries", "times that one request may fail before it is given up", 8, **count)
    add("--patience", "how long no server may answer before all is given up", 600.0, **seconds)
    add("--timeout", "longest time for one request (default: no limit)", **seconds)
    add("--api-key-env", "environment variable that holds the API key", "OPENAI_API_KEY", metavar="NAME")
    add(
        "--price",
        "USD for a million tokens sent, and for a million answered: the cost is told",
        type=float,
        nargs=2,
        metavar=("IN", "OUT"),
    )
    add(
        "--on-unanswered",
        "what becomes of requests that were given up: end without OUT, or drop and count them",
        "error",
        choices=("error", "drop"),
    )


def extra_of(words: list[str]) -> dict[str, Any]:
    """KEY=JSON each. Raises `UserError`."""
    extra = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UserError(f"--extra {word}: must be KEY=JSON, as top_k=20")
        try:
            extra[key] = json.loads(value)
        except ValueError:
            extra[key] = value
    return extra


def check_sendable(model: str, extra: dict[str, Any]) -> None:
    """Raises `UserError` for what JSON cannot hold."""
    try:
        json.dumps([model, extra], allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError) as error:
        raise UserError(f"--model and --extra: cannot be sent ({error})") from None


def check_price(price: Sequence[float] | None) -> None:
    """Raises `UserError`."""
    if price and not all(0 <= one < math.inf for one in price):
        raise UserError(f"--price {price[0]} {price[1]}: must be 0 or more, in USD for a million tokens")


def model_of(args: argparse.Namespace) -> Model:
    """Raises `UserError` for settings that mean nothing."""
    if not args.model:
        raise UserError("--model: is missing; name the model as the servers know it")
    extra = extra_of(args.extra)
    check_sendable(args.model, extra)
    check_price(args.price)
    asking = Asking(args.server or [], args.in_flight, args.tries, args.patience, args.timeout, args.api_key_env)
    sampling = Sampling(args.temperature, args.top_p, args.max_tokens, extra)
    prices = tuple(args.price) if args.price else None
    return Model(args.model, sampling, asking, Prompts(args.prompts), args.seed, prices, args.on_unanswered)

"""`skytrain prep tokenize`: chats in, a tokenised data set out.

Worker processes parse and encode chunks of rows; this process alone reads, counts and writes, in the order of the
input, so that the data set is the same bytes for any number of workers.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from skytrain.data.chat import ChatTokenizer
from skytrain.data.dataset import DatasetInfo, DatasetWriter
from skytrain.data.ledger import Ledger
from skytrain.data.messages import Refused, from_row
from skytrain.errors import UserError
from skytrain.files import unopened
from skytrain.help import HelpFormatter
from skytrain.prep.rows import RawRow, Unreadable, read_rows
from skytrain.prep.stage import add_on_error, guarded

CHUNK_ROWS = 256
CHUNK_BYTES = 1 << 20
BYTES_A_WORKER = 8 << 20
"""Input that is worth the start of another process."""
CONVERSATION_KEYS = ("id", "messages", "conversations", "system", "tools")


@dataclass(slots=True)
class Outcome:
    """What became of one row: kept (no reason), or dropped for a reason with `n_tokens` rendered tokens."""

    where: str
    row: dict[str, Any]
    tokens: np.ndarray | None = None
    trained: np.ndarray | None = None
    system: str | None = None
    n_tokens: int = 0
    reason: str | None = None
    detail: str = ""
    unreadable: bool = False


@dataclass(frozen=True)
class Encoder:
    tokenizer: ChatTokenizer
    max_length: int

    def __call__(self, chunk: list[RawRow]) -> list[Outcome]:
        return [self._encode(raw) for raw in chunk]

    def _encode(self, raw: RawRow) -> Outcome:
        outcome = Outcome(raw.where, {})
        try:
            row = raw.parse()
            talk = from_row(row)
            encoded = self.tokenizer.encode_conversation(talk)
        except Unreadable as error:
            outcome.reason, outcome.detail, outcome.unreadable = "malformed", str(error), True
        except Refused as refused:
            outcome.reason, outcome.detail, outcome.n_tokens = refused.reason, refused.detail, refused.tokens
        except RecursionError:
            outcome.reason, outcome.detail = "malformed", "lists or objects nested too deep"
        else:
            outcome.n_tokens = len(encoded.tokens)
            if outcome.n_tokens > self.max_length:
                outcome.reason, outcome.detail = "too_long", f"{outcome.n_tokens} tokens, limit {self.max_length}"
            else:
                outcome.row = _provenance(raw, row)
                outcome.tokens, outcome.trained, outcome.system = encoded.tokens, encoded.trained, talk.system
        return outcome


def _provenance(raw: RawRow, row: dict[str, Any]) -> dict[str, Any]:
    """The line of rows.jsonl: the row's id, its place, and all that it carries beside the conversation."""
    identity = row.get("id")
    return {
        "id": f"{Path(raw.file).name}:{raw.number}" if identity is None else identity,
        "file": raw.file,
        "line": raw.number if raw.line is None else raw.line,
        "provenance": {key: value for key, value in row.items() if key not in CONVERSATION_KEYS and value is not None},
    }


def tokenize(
    inputs: list[str | Path],
    model: str | Path,
    out: str | Path,
    *,
    max_length: int = 16384,
    overlong: Literal["drop", "error"] = "drop",
    workers: int | None = None,
    on_error: Literal["error", "drop"] = "error",
    dedup: bool = True,
    overwrite: bool = False,
) -> DatasetInfo:
    """Writes the data set, prints its ledger, and returns its description.

    `max_length`: in tokens; longer rows are dropped or, with overlong="error", end the run. `workers`: processes;
    None chooses by the machine and the size of the input. `on_error`: what a row that is no JSON or no UTF-8 does.
    With more than one worker the calling script needs its `if __name__ == "__main__"`. Raises `UserError`; then, and
    on Ctrl-C, `out` is as it was before.
    """
    if max_length < 2:
        raise UserError(f"--max-length {max_length}: a document needs 2 tokens for one target")
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    sizes = [_size(path) for path in inputs]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = workers or max(1, min(cores, sum(sizes) // BYTES_A_WORKER))
    now = datetime.now()
    tokenizer = ChatTokenizer.load(model, now)
    writer = DatasetWriter(
        out,
        tokenizer_sha256=tokenizer.tokenizer_sha256,
        chat_template_sha256=tokenizer.chat_template_sha256,
        max_length=max_length,
        overwrite=overwrite,
    )
    with writer, _progress() as progress:
        stage = _Stage(writer, overlong, on_error, dedup)
        task = progress.add_task("tokenising", total=sum(sizes))
        encode = Encoder(tokenizer, max_length)
        chunks = _chunks(inputs, stage.ledger)
        with closing(_in_order(chunks, encode, workers, (model, max_length, now))) as results:
            for size, outcomes in results:
                for outcome in outcomes:
                    stage.take(outcome)
                progress.advance(task, size)
        progress.stop()
        return stage.finish()


def _size(path: str | Path) -> int:
    try:
        if Path(path).is_dir():
            raise UserError(f"{path}: is a folder; name the files in it")
        return Path(path).stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({unopened(path, error)})") from None


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _chunks(inputs: list[str | Path], ledger: Ledger) -> Iterator[list[RawRow]]:
    """Rows in lots for one worker; the same lots however many workers there are."""
    chunk: list[RawRow] = []
    size = 0
    for path in inputs:
        for raw in read_rows(path):
            ledger.read()
            chunk.append(raw)
            size += raw.size
            if len(chunk) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def _in_order(
    chunks: Iterable[list[RawRow]], encode: Encoder, workers: int, recipe: tuple[Any, ...]
) -> Iterator[tuple[int, list[Outcome]]]:
    """(bytes of input, outcomes) of each chunk, in order. At most 4 chunks a worker are in memory."""
    if workers == 1:
        for chunk in chunks:
            yield _bytes(chunk), encode(chunk)
        return
    pool = _start_pool(workers, recipe)
    waiting: deque = deque()
    try:
        for chunk in chunks:
            waiting.append((_bytes(chunk), pool.submit(_in_worker, chunk)))
            if len(waiting) >= 4 * workers:
                size, future = waiting.popleft()
                yield size, future.result()
        for size, future in waiting:
            yield size, future.result()
    except BrokenProcessPool:
        raise UserError("a worker process died, perhaps for want of memory; try fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_pool(workers: int, recipe: tuple[Any, ...]) -> ProcessPoolExecutor:
    """Workers that Ctrl-C never reaches: it goes to the whole process group, and the parent alone answers it.

    A worker imports for a while before `_start_worker` runs, and a traceback from there would hide the message. So
    the signal is blocked while they start, which they inherit; one that comes meanwhile reaches the parent after it.
    """
    # It unblocks the signal when it first starts, in whichever process that is.
    resource_tracker.ensure_running()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, recipe)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        pool.submit(int)  # All workers start at the first call.
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    return pool


def _bytes(chunk: list[RawRow]) -> int:
    return sum(raw.size for raw in chunk)


_encoder: Encoder | None = None


def _start_worker(model: str | Path, max_length: int, now: datetime) -> None:
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A parent that is killed answers no signal, so each worker watches for its end.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = Encoder(ChatTokenizer.load(model, now), max_length)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _in_worker(chunk: list[RawRow]) -> list[Outcome]:
    return _encoder(chunk)


class _Stage:
    """Takes outcomes in order: writes, counts, and remembers what was seen (16 bytes of a digest a row)."""

    def __init__(self, writer: DatasetWriter, overlong: str, on_error: str, dedup: bool):
        self.ledger = Ledger()
        self._writer, self._overlong, self._on_error, self._dedup = writer, overlong, on_error, dedup
        self._seen: set[bytes] = set()
        self._systems: set[str | None] = set()
        self._examples: dict[str, str] = {}

    def take(self, outcome: Outcome) -> None:
        where = f"{outcome.where}: {' '.join(outcome.detail.split())}"
        if outcome.unreadable and self._on_error == "error":
            form = outcome.where.endswith(":1") and "not JSON" in where
            hint = ": a line is a row, or the whole file one JSON array" if form else ""
            raise UserError(f"{where}{hint}; mend it, or leave such rows out with --on-error drop")
        if outcome.reason == "too_long" and self._overlong == "error":
            raise UserError(f"{where}; raise --max-length, or leave such rows out with --overlong drop")
        self.ledger.read(0, outcome.n_tokens)
        reason = outcome.reason
        if reason is None and self._dedup:
            digest = hashlib.sha256(outcome.tokens.data).digest()[:16]
            if digest in self._seen:
                reason, where = "duplicate", f"{outcome.where}: the same tokens as an earlier row"
            self._seen.add(digest)
        if reason is not None:
            self.ledger.drop(reason, outcome.n_tokens)
            self._examples.setdefault(reason, where)
            return
        self._writer.add(outcome.tokens, outcome.trained, outcome.row)
        trained = int(outcome.trained.sum(dtype=np.int64))
        self.ledger.keep(trained, outcome.n_tokens - trained)
        if len(self._systems) < 2:
            self._systems.add(outcome.system)

    def finish(self) -> DatasetInfo:
        print(self.ledger.table(self._examples))
        if self.ledger.rows.kept == 0:
            raise UserError(f"{self._writer.folder}: no row was kept, so no data set was written: {self._why_none()}")
        system = next(iter(self._systems)) if len(self._systems) == 1 else None
        info = self._writer.finish(self.ledger, system)
        print(f"wrote {self._writer.folder}: {info.n_docs:,} documents, {info.n_tokens:,} tokens")
        return info

    def _why_none(self) -> str:
        """The commonest reason, with its first row."""
        rows = self.ledger.rows
        if rows.read == 0:
            return "the input has no rows"
        reason = max(rows.dropped, key=rows.dropped.__getitem__)
        remedy = "; raise --max-length" if reason == "too_long" else ""
        form = '; a row is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
        return f"{rows.dropped[reason]:,} of {rows.read:,} {reason}, the first {self._examples[reason]}" + (
            form if reason in ("malformed", "bad_role", "empty") else remedy
        )


def register(subparsers: Any) -> None:
    """Adds `tokenize` to the parsers of `skytrain prep`."""
    parser = subparsers.add_parser(
        "tokenize",
        help="turn chats into a tokenised data set",
        description="Renders chats by the model's chat template and writes the folder that training reads. A row is "
        '{"messages": [{"role", "content"}]}, or {"system", "conversations": [{"from", "value"}]}; the '
        'assistant\'s turns are trained, but for messages with "train": false. Prints how many rows and tokens were '
        "kept, and how many were dropped for which reason.",
        epilog="Example:\n  skytrain prep tokenize chats.jsonl --model models/Qwen2.5-7B-Instruct --out data/chats",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="file of chats: JSON lines, one JSON array or Parquet"
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="Hugging Face folder of the model: its tokenizer and chat template",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument(
        "--max-length", type=int, default=16384, metavar="N", help="tokens of the longest row that is kept"
    )
    parser.add_argument("--overlong", choices=("drop", "error"), default="drop", help="what becomes of a longer row")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: by the cores and the size of the inputs)"
    )
    add_on_error(parser)
    parser.add_argument(
        "--dedup",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="drop rows whose tokens equal those of an earlier one",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a finished data set in --out")
    parser.set_defaults(run=run, check=lambda args: ChatTokenizer.load(args.model, datetime.now()))


def run(args: argparse.Namespace) -> int:
    settings = {"max_length": args.max_length, "overlong": args.overlong, "workers": args.workers}
    settings |= {"on_error": args.on_error, "dedup": args.dedup, "overwrite": args.overwrite}
    return guarded(lambda: tokenize(args.inputs, args.model, args.out, **settings), args.out)

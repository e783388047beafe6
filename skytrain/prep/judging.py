"""Verdicts that are made by several threads, logged, and handed on in the order of what they are on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from skytrain.errors import UserError
from skytrain.prep.answers import AnswerLog
from skytrain.prep.grade import running
from skytrain.prep.stage import fingerprint

T = TypeVar("T")
Record = dict[str, Any]


def judged(
    log: AnswerLog, work: Iterable[tuple[T, str, Callable[[], Record]]], workers: int, *, again: bool = False
) -> Iterator[tuple[T, Record]]:
    """For each (item, key, judge) the item and the verdict's record: the log's, or else what `judge` returns.

    A record has `key` and `status`. workers: judges at a time; at most 4 items each are waited for. again: whether
    judges are asked though the log has a record.
    """
    waiting: deque[tuple[T, Record | Future[Record]]] = deque()
    pool = ThreadPoolExecutor(workers)

    def following() -> tuple[T, Record]:
        item, found = waiting.popleft()
        if isinstance(found, dict):
            return item, found
        record = found.result()
        if again or record["key"] not in log.statuses:
            log.add(record)
        return item, record

    try:
        for item, key, judge in work:
            known = None if again else log.get(key)
            waiting.append((item, known or pool.submit(judge)))
            if len(waiting) >= 4 * workers:
                yield following()
        while waiting:
            yield following()
    finally:
        # Else Ctrl-C would wait for programs that run until their deadline.
        running.given_up.set()
        pool.shutdown(cancel_futures=True)
        running.given_up.clear()


class TestsDigests:
    """Tests as a key of a verdict has them: those in a file stand for its content, and not for its name."""

    __test__ = False  # its name makes pytest take it for a class of tests

    def __init__(self) -> None:
        self._of_file: dict[str, str] = {}

    def __call__(self, tests: Any) -> Any:
        if isinstance(tests, dict) and "file" in tests:
            return {**tests, "file": self._digest(tests["file"])}
        return tests

    def _digest(self, name: str) -> str:
        """ "" where there is no such file, which the verdict tells."""
        if name not in self._of_file:
            try:
                self._of_file[name] = fingerprint(Path(name))[2]
            except UserError:
                self._of_file[name] = ""
        return self._of_file[name]

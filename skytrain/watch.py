"""A thread beside the training loop: stops all ranks at one step, and ends a run that no longer moves.

Ranks tell each other through a small store of their own, in rank 0's memory, never through the device.

Stopping. A rank is at its own step, and on a GPU its host may be many ahead of another's. So that all stop at the same
one, a request (a signal to any rank, or the end of its launcher) makes every rank's thread publish how many steps the
rank has begun, and lets it begin no more until all have published. The largest of these numbers is where all stop. No
rank can wait for another's step meanwhile: a step that one has begun, all may begin as soon as the number is known.

Stalling. Each rank's thread beats in the store. A rank that beats no longer has died or is suspended; one whose main
thread has passed no mark (progress.py) for long publishes its stack. One rank tells which, and all end with status 1.
Should this thread be stuck itself (a call that never gives the interpreter back, a suspended rank 0), a timer that
needs no interpreter prints all stacks and ends the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from skytrain import progress, signals
from skytrain.parallel import World

TICK = 0.25
SILENT, STUCK = 0.5, 0.7
"""Parts of stall_seconds: without a beat a rank is given up after the first, without a mark after the second."""
STORE_SECONDS = 5
LEAVING_SECONDS = 5.0


class Watch:
    """Of one rank. Making it is collective, and `close` ends it where all ranks have come to their end."""

    def __init__(self, world: World, stall_seconds: float):
        self.world, self.stall_seconds = world, stall_seconds
        self.store = _store(world)
        self.launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self.changed = threading.Condition()
        self.started = 0
        """Steps begun."""
        self.limit: int | None = None
        self.stop_at: int | None = None
        self.why: str | None = None
        self.beats: dict[int, tuple[float, Any]] = {}
        self.ticks = 0
        self.main = threading.get_ident()
        self.ended = threading.Event()
        self._beat()
        dist.barrier()
        self.thread = threading.Thread(target=self._work, name="watch", daemon=True)
        self.thread.start()

    def settle(self, done: int) -> None:
        """Collective, before the first step of this process: what was asked for while it loaded stops it here."""
        asked: list[str | None] = [None] * self.world.size
        dist.all_gather_object(asked, signals.asked())
        told = [f"rank {rank} got {name}" for rank, name in enumerate(asked) if name is not None]
        if told:
            with self.changed:
                self.why, self.limit, self.stop_at = told[0], done, done

    def may_begin(self, done: int) -> bool:
        """Whether the step after `done` completed ones may begin. False alike on all ranks, after the same step."""
        with self.changed:
            self.changed.wait_for(lambda: self.limit is None or done < self.limit or self.stop_at is not None)
            if self.stop_at is not None and done >= self.stop_at:
                return False
            self.started = done + 1
        progress.mark("training")
        return True

    def close(self) -> None:
        """After the last thing that all ranks do together. The store stays until all have left it."""
        self._end()
        try:
            self.store.add("left", 1)
            until = time.monotonic() + LEAVING_SECONDS
            while self.world.is_first and self.store.add("left", 0) < self.world.size and time.monotonic() < until:
                time.sleep(0.01)
        except dist.DistError:
            pass

    def failed(self, error: BaseException) -> None:
        """This rank ends by an exception that the others do not have: they are told. Where a collective has failed
        because another rank is gone, that one is named."""
        self._end()
        # What is left to do on the way out may wait for a rank that is gone.
        faulthandler.dump_traceback_later(self.stall_seconds, exit=True, file=sys.__stderr__)
        try:
            self._beat()  # The last one may be of several steps ago.
            self.store.set(f"failed/{self.world.rank}", f"{type(error).__name__}: {error}".splitlines()[0][:500])
            self.store.set("failed", "1")
            until = time.monotonic() + 8 * TICK
            while time.monotonic() < until:
                time.sleep(TICK)
                self._read_beats()
            silent = [rank for rank, age in self._ages().items() if age > 4 * TICK and rank != self.world.rank]
            text = "; ".join(self._failure(rank) or f"{self._told(rank)}, has died" for rank in silent)
        except dist.DistError:
            text = f"rank 0 has died, around step {self.started}"
        if text:
            print(f"error: {text}", file=sys.stderr, flush=True)

    def _end(self) -> None:
        self.ended.set()
        self.thread.join()
        faulthandler.cancel_dump_traceback_later()

    # The thread.

    def _work(self) -> None:
        heard = time.monotonic()
        while not self.ended.wait(TICK):
            faulthandler.dump_traceback_later(self.stall_seconds, exit=True, file=sys.__stderr__)
            try:
                self._beat()
                self._agree()
                self._read_beats()
                heard = time.monotonic()
                if self.store.check(["over"]):
                    os._exit(1)
                trouble = self._trouble()
            except dist.DistError as error:
                gone = isinstance(error, dist.DistNetworkError) and time.monotonic() - heard > 4 * TICK
                if not gone and time.monotonic() - heard < SILENT * self.stall_seconds:
                    continue
                trouble = f"rank 0 {'has died' if gone else 'does not answer'}, around step {self.started}"
            if trouble and not self.ended.is_set():
                self._give_up(trouble)

    def _beat(self) -> None:
        self.ticks += 1
        self.store.set(f"beat/{self.world.rank}", json.dumps([self.ticks, self.started, progress.last()[1]]))

    def _read_beats(self) -> None:
        now = time.monotonic()
        names = [f"beat/{rank}" for rank in range(self.world.size)]
        for rank, beat in enumerate(self.store.multi_get(names)):
            beat = json.loads(beat)
            if rank not in self.beats or self.beats[rank][1] != beat:
                self.beats[rank] = (now, beat)

    def _ages(self) -> dict[int, float]:
        now = time.monotonic()
        return {rank: now - since for rank, (since, _) in self.beats.items()}

    def _agree(self) -> None:
        """Where a stop is asked for, the step of it."""
        if self.stop_at is not None:
            return
        if self.why is None:
            if (name := signals.asked()) is not None:
                self.store.set("stop", f"rank {self.world.rank} got {name}")
            elif self.launcher not in (None, os.getppid()):
                self.store.set("stop", "the launcher has gone")
            if not self.store.check(["stop"]):
                return
            self.why = self.store.get("stop").decode()
            with self.changed:
                self.limit = self.started
            self.store.set(f"limit/{self.world.rank}", str(self.limit))
        names = [f"limit/{rank}" for rank in range(self.world.size)]
        if self.store.check(names):
            with self.changed:
                self.stop_at = max(int(limit) for limit in self.store.multi_get(names))
                self.changed.notify_all()

    def _trouble(self) -> str | None:
        """Why the run must end; None while all is well."""
        if self.store.check(["failed"]):
            self._read_beats()
            return "; ".join(text for rank in range(self.world.size) if (text := self._failure(rank)))
        silent = [rank for rank, age in self._ages().items() if age > SILENT * self.stall_seconds]
        if silent:
            return "; ".join(f"{self._told(rank)}, has died or is suspended" for rank in silent)
        if time.monotonic() - progress.last()[0] > STUCK * self.stall_seconds:
            self.store.set(f"stack/{self.world.rank}", json.dumps(self._stack()))
            time.sleep(4 * TICK)  # Others find the same within a tick or two, and have their own stacks to tell.
            return self._stalled()
        return None

    def _failure(self, rank: int) -> str | None:
        if not self.store.check([f"failed/{rank}"]):
            return None
        return f"{self._told(rank)} failed: {self.store.get(f'failed/{rank}').decode()}"

    def _told(self, rank: int) -> str:
        since, (_, started, doing) = self.beats[rank]
        return f"rank {rank}, at step {started} ({doing}), last heard of {time.monotonic() - since:.1f} s ago"

    def _stack(self) -> list[str]:
        return traceback.format_stack(sys._current_frames()[self.main])

    def _stalled(self) -> str:
        """The ranks that do not move, those first and with their stacks that do not wait for others."""
        stacks = {}
        for rank in range(self.world.size):
            if self.store.check([f"stack/{rank}"]):
                stacks[rank] = json.loads(self.store.get(f"stack/{rank}"))
        waiting = {rank for rank, stack in stacks.items() if any("torch/distributed/" in frame for frame in stack[-8:])}
        causes = sorted(stacks.keys() - waiting) or sorted(stacks)
        lines = [f"no progress for {STUCK * self.stall_seconds:.0f} s (train.stall_seconds = {self.stall_seconds:g})"]
        for rank in causes:
            _, (_, started, doing) = self.beats[rank]
            lines.append(f"rank {rank} stands at step {started} ({doing}):\n{''.join(stacks[rank][-12:]).rstrip()}")
        if others := sorted(stacks.keys() - set(causes)):
            lines.append(f"waiting for it: rank(s) {', '.join(map(str, others))}")
        return "\n".join(lines)

    def _give_up(self, trouble: str) -> None:
        """One rank tells; all end. The main thread may be in a call that never returns, so it is not asked."""
        try:
            tells = self.store.add("told", 1) == 1
        except dist.DistError:
            tells = True
        if tells:
            advice = "the run ends; --resume auto goes on from its newest complete checkpoint"
            print(f"error: {trouble}\n{advice}", file=sys.stderr, flush=True)
        with contextlib.suppress(dist.DistError):
            self.store.set("over", "1")
        if self.world.is_first:
            time.sleep(4 * TICK)  # The store goes with this process, and the others have not read it yet.
        os._exit(1)


def _store(world: World) -> dist.Store:
    """A store of this run alone: torchrun's is in its agent, which may end before the ranks do."""
    if world.size == 1:
        return dist.HashStore()
    options = {"timeout": timedelta(seconds=STORE_SECONDS), "wait_for_workers": False}
    host = os.environ.get("MASTER_ADDR", "localhost")
    port: list[Any] = [None]
    if world.is_first:
        store = dist.TCPStore(host, 0, None, True, **options)
        port = [store.port]
    dist.broadcast_object_list(port, src=0)
    return store if world.is_first else dist.TCPStore(host, port[0], None, False, **options)

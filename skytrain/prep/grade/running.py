"""Programs that run in sandboxes: fed and read through pipes, watched, and gone when they are closed."""

from __future__ import annotations
import __future__

import contextlib
import functools
import json
import marshal
import os
import resource
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skytrain.errors import UserError
from skytrain.prep.grade import inside, processes, sandbox, seccomp
from skytrain.prep.grade.pipes import Pipes

START_SECONDS = 60.0
given_up = threading.Event()
"""Set while programs that run are not to be waited for; `watch` raises `GivenUp` then."""
LOOK_SECONDS = 0.05
"""Between two looks at the memory of all of a sandbox's processes."""


class GivenUp(Exception):
    """There is no verdict, since nobody waits for it."""


class Program:
    """One program in its sandbox. To be closed, after which no process of it is left.

    `job`: for `inside.main`, without what only the sandbox knows; `files`: what the program inherits beside, under the
    same numbers. `fault`: the verdict, where it may not go on. `status`: as a shell would tell it, once it has ended.
    """

    def __init__(
        self, pipes: Pipes, level: str, job: dict[str, Any], seconds: float, stdin: bytes, files: Sequence[int] = ()
    ) -> None:
        self.output, self.result, self.errors = bytearray(), bytearray(), b""
        self.ready = self.ended = False
        self.fault: str | None = None
        self.status: int | None = None
        self._pipes, self._level, self._user = pipes, level, sandbox.user(level)
        self._numpy = "numpy" in job["program"]
        self._limits = sandbox.limits(seconds)
        own = {"user": self._user, "path": sandbox.packages(level, self._numpy)}
        self._job = _runner() + marshal.dumps(job | own)
        self._booted, self._seen, self._reports = False, 0, bytearray()
        self._process: subprocess.Popen[bytes] | None = None
        self._root: int | None = None
        self._root_file: int | None = None
        self._reports_file: int | None = None
        self._files: list[int] = []
        self._folder = tempfile.TemporaryDirectory() if level == "process" else None
        try:
            self._start(stdin, files)
        except BaseException:
            self.close()
            raise

    def _start(self, stdin: bytes, files: Sequence[int]) -> None:
        with contextlib.ExitStack() as theirs:
            stdin_theirs, stdin_mine = self._pipe(theirs, reads=True)
            inbox, self._inbox = self._pipe(theirs, reads=True)
            (output, output_mine), (errors, errors_mine) = self._pipe(theirs), self._pipe(theirs)
            (outbox, outbox_mine), (reports, reports_mine) = self._pipe(theirs), self._pipe(theirs)
            calls, filter_mine = self._pipe(theirs, reads=True)
            os.write(filter_mine, seccomp.program())
            self._pipes.close(filter_mine)
            if self._user is not None:
                for file in (stdin_theirs, output, errors):
                    # Else no program could open /dev/stdin, which is the pipe itself.
                    os.fchown(file, self._user, self._user)
            self._process = subprocess.Popen(
                sandbox.command(self._level, inbox, outbox, reports, calls, self._numpy),
                stdin=stdin_theirs,
                stdout=output,
                stderr=errors,
                pass_fds=(inbox, outbox, reports, calls, *files),
                cwd=self._prepared_folder(),
                env=sandbox.ENVIRONMENT,
                start_new_session=True,
            )
        self._pipes.feed(stdin_mine, stdin)
        self._pipes.read(output_mine, functools.partial(self._printed, kept=True))
        self._pipes.read(errors_mine, functools.partial(self._printed, kept=False))
        self._pipes.read(outbox_mine, self._returned)
        self._pipes.read(reports_mine, self._reported)
        self._reports_file = reports_mine
        self._pipes.notice(self._own(os.pidfd_open(self._process.pid)), self._end)
        if self._level == "process":
            self._know(self._process.pid)

    def _prepared_folder(self) -> str | None:
        if self._folder is None:
            return None
        if self._user is not None:
            os.chown(self._folder.name, self._user, self._user)
        return self._folder.name

    def _pipe(self, theirs: contextlib.ExitStack, reads: bool = False) -> tuple[int, int]:
        """Two ends, theirs first, which is closed with `theirs`."""
        read, write = os.pipe()
        ends = (read, write) if reads else (write, read)
        theirs.callback(os.close, ends[0])
        return ends[0], self._own(ends[1])

    def _own(self, file: int) -> int:
        self._files.append(self._pipes.own(file))
        return file

    def _know(self, root: int) -> None:
        """Of its first process, which waits for the job, so that the number is still its own."""
        self._root, self._root_file = root, os.pidfd_open(root)
        self._begin()

    def _begin(self) -> None:
        """Hands over the job, once Python has started: before, its limits would be those of bubblewrap."""
        if not self._booted or self._root is None:
            return
        found = list(processes.below(self._root))
        if self._level == "bubblewrap" and len(found) < 2:
            raise UserError("a sandbox died, or /proc tells no children (the kernel's CONFIG_PROC_CHILDREN)")
        with contextlib.suppress(ProcessLookupError):
            for which, limit in self._limits:
                most = resource.prlimit(found[-1], which)[1]
                limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
                resource.prlimit(found[-1], which, (limit, limit))
        self._pipes.feed(self._inbox, self._job)

    def _printed(self, data: bytes, kept: bool) -> None:
        self._seen += len(data)
        if self._seen > sandbox.OUTPUT:
            self.fault = "crash"
        elif kept:
            self.output += data
        else:
            self.errors = (self.errors + data)[-1000:]

    def _returned(self, data: bytes) -> None:
        if not self._booted:
            self._booted, data = True, data[1:]
            self._begin()
        self.result += data
        self.ready = self.ready or bool(self.result)
        if len(self.result) > sandbox.OUTPUT:
            self.fault = "crash"

    def _reported(self, data: bytes) -> None:
        self._reports += data
        while b"\n" in self._reports:
            line, _, self._reports = self._reports.partition(b"\n")
            report = json.loads(line)
            if "child-pid" in report:
                self._know(report["child-pid"])
            self.status = report.get("exit-code", self.status)

    def look(self) -> None:
        """Whether all of its processes together have too much memory."""
        if self._root is not None and processes.memory(self._root, sandbox.MEMORY) > sandbox.MEMORY:
            self.fault = "crash"

    def _end(self) -> None:
        """Its first process ended; what that left behind does not go on."""
        self.ended = True
        self._kill()
        for file in self._files:
            self._pipes.drain(file)
        if self.status is None:
            self.status = self._process.returncode

    def _kill(self) -> None:
        """All of its processes. Those of a namespace are gone before its first one is."""
        if self._process is None:
            return
        if self._root is None and self._reports_file is not None:
            self._pipes.drain(self._reports_file)
        if self._root_file is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._root_file, signal.SIGKILL)
        if self._level == "process":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            if self._user is not None:
                processes.kill_all_of(self._user)
        self._process.kill()
        self._process.wait()
        if self._root_file is not None:
            # No select: it takes no descriptor above 1023.
            gone = select.poll()
            gone.register(self._root_file, select.POLLIN)
            gone.poll()
            os.close(self._root_file)
            self._root_file = None

    def close(self) -> None:
        self._kill()
        for file in self._files:
            self._pipes.close(file)
        if self._folder is not None:
            self._folder.cleanup()


def watch(pipes: Pipes, programs: Sequence[Program], seconds: float) -> str | None:
    """Until the first program has ended: None then, else the verdict for which it was not let go on.

    `seconds` count from when all have started. Raises `UserError` where a sandbox does not start.
    """
    until, started = time.monotonic() + START_SECONDS, False
    look = time.monotonic() + LOOK_SECONDS
    while not programs[0].ended:
        if given_up.is_set():
            raise GivenUp
        now = time.monotonic()
        if not started and all(program.ready for program in programs):
            started, until = True, now + seconds
        if now >= until:
            if started:
                return "timeout"
            break
        pipes.wait(min(until, look) - now)
        if time.monotonic() >= look:
            for program in programs:
                program.look()
            look = time.monotonic() + LOOK_SECONDS
        fault = next((program.fault for program in programs if program.fault), None)
        if fault is not None:
            return fault
    for program in programs:
        # One whose partner came to its end without it may still be about to start.
        if not program.ready and (program.ended or not programs[0].ended):
            raise UserError(f"a sandbox did not start: {_last_line(program.errors)}; {sandbox.advice()}")
    return programs[0].fault


def _last_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"no word within {START_SECONDS:.0f} s"


@functools.cache
def _runner() -> bytes:
    """The future is the compiler's business alone, and would be imported from a file of its own.

    Cut out as text: ast.parse in several threads at a time fails in Python 3.11, which counts its depth for all of
    them.
    """
    source = Path(inside.__file__).read_text(encoding="utf-8").replace("from __future__ import annotations\n", "\n", 1)
    flags = __future__.annotations.compiler_flag
    return marshal.dumps(compile(source, "<runner>", "exec", flags=flags, dont_inherit=True))

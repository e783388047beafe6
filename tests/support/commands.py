"""The `skytrain` command in tests: within this process, or in a forked one that can be killed."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from multiprocessing.process import BaseProcess
from subprocess import CompletedProcess

import forked

from skytrain import cli


def run(*words: object) -> CompletedProcess:
    """Its exit status and what it printed, without a process of its own: a start takes a second."""
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True)
        for errors in ("strict", "backslashreplace")  # as Python opens them
    )
    before = sys.argv
    sys.argv = ["skytrain", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        told = (file.buffer.getvalue().decode() for file in (out, err))
        return CompletedProcess(sys.argv, end.code, *told)
    finally:
        sys.argv = before
    raise AssertionError("the command did not say how it ended")


def start(*words: object) -> BaseProcess:
    """Begins to run in a process that has imported it already; what it prints is lost."""
    process = forked.context().Process(target=_main, args=([*map(str, words)],), daemon=True)
    process.start()
    return process


def _main(words: list[str]) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    sys.argv = ["skytrain", *words]
    cli.main()

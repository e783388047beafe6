"""How the demo and the loop work: stages that are timed, and commands that are shown as one would type them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LAUNCH = Path(os.path.relpath(Path(__file__).parent))
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """For `preexec_fn`: SIGTERM where the process that starts this one has ended, by kill -9 too."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def stage(title: str) -> Iterator[None]:
    print(f"\n== {title}", flush=True)
    started = time.perf_counter()
    yield
    print(f"== {title}: {time.perf_counter() - started:.1f} s", flush=True)


def command(program: str, *arguments: object, folder: Path = Path(), held: Sequence[int] = ()) -> None:
    """Shows a command as one would type it in `folder`, and runs it there with this interpreter, its output on this
    terminal.

    held: descriptors that it has too, as of a lock that lasts until it has ended. SystemExit with its status where it
    fails, since it has said why.
    """
    words = [str(word) for word in arguments]
    print("$", program, *words, flush=True)
    entry = {
        "torchrun": ["-m", "torch.distributed.run"],
        "skytrain": ["-c", "from skytrain.cli import main; main()"],
    }[program]
    # -P: the working folder may be the repository's root, whose `kernels` shadows a package of that name.
    # One thread: each rank sets its own number later, and torchrun would warn that it chose one.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", *entry, *words], env=environment, cwd=folder, pass_fds=held, preexec_fn=end_with_parent
    )
    if done.returncode:
        sys.exit(done.returncode)

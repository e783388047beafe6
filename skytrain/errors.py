"""A user's mistake, and how every command reports it."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

LONGEST = 2000
LATE_SECONDS = 20.0
EXTRAS = {
    **dict.fromkeys(("torch", "triton", "tensorboard"), "train"),
    "torchao": "float8",
    **dict.fromkeys(("aiohttp", "pyarrow", "latex2sympy2_extended", "sympy"), "prep"),
}
"""By package, the extra that brings it."""


class Parser(argparse.ArgumentParser):
    """Words that mean nothing are a mistake as any other, told once where several ranks find it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help tells more")


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong, where (file, line, key), what to do."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """What cannot be printed as its escape, and no middle of a very long text: names come from users' files."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def unwritten(error: OSError) -> str:
    """What is wrong with a file or folder that could not be written, and what to do: behind its name in a message."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "free space, or name one on another disk" if full else "name one in a folder that can be written"
    return f"cannot be written ({error.strerror or error}); {advice}"


def failed_write(out: str | Path, error: OSError) -> UserError:
    """For a command that writes at its --out. That is what was typed, where the error names a file in it, one that is
    ours beside it, or a folder above it; any other file is named itself."""
    own = Path(out).absolute()
    there = Path(os.fsdecode(error.filename)).absolute() if error.filename else own
    if str(there).startswith(str(own).removesuffix(".jsonl").removesuffix(".html")) or there in own.parents:
        return UserError(f"--out {out}: {unwritten(error)}")
    return UserError(f"{error.filename}: {error.strerror or error}")


def exit_on_user_error(main: Callable[[], int | None]) -> None:
    """Runs `main` and ends the process: status 2 and one line on stderr for a `UserError` or where a package of an
    extra is not installed, 130 for Ctrl-C, 141 where nobody reads the output any more, else what `main` returned.

    Under torchrun every rank finds the same mistake, so only one of them tells it (`tell`).
    """
    # Files' names need not be text; stderr is made so by Python itself.
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
    except UserError as error:
        tell(f"error: {error}")
        status = 2
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        extra = EXTRAS[error.name]
        tell(f"error: this command needs {error.name}; pip install 'skytrain[{extra}]' (skytrain doctor tells more)")
        status = 2
    except KeyboardInterrupt:
        if int(os.environ.get("RANK", "0")) == 0:
            print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        status = _nobody_reads()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = _nobody_reads()
    sys.exit(status)


def _nobody_reads() -> int:
    """As a program that SIGPIPE has ended: whoever read the output, as `head`, has had enough of it."""
    # What is left in the buffer would be tried again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def tell(line: str) -> None:
    """Once: on stderr, or under torchrun in the file whose content it prints last. What a rank itself prints stands
    above the forty lines that torchrun writes of its failure, and is out of sight."""
    if int(os.environ.get("LOCAL_RANK", "0")) != 0:
        # torchrun ends all ranks where one has ended, so that the first one, which tells it, must not be the later
        # one. It is slower by seconds on a busy machine; once it has ended, torchrun's signal ends this wait.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(LATE_SECONDS)
        return
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        try:
            # Of several failures the earliest is printed last, and torchrun counts in whole seconds.
            content = {"message": line, "extraInfo": {"timestamp": int(time.time()) - 1}}
            with open(file, "w", encoding="utf-8") as told:
                json.dump({"message": content}, told)
            return
        except OSError:
            pass
    if int(os.environ.get("RANK", "0")) == 0:
        print(line, file=sys.stderr)

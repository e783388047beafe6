"""A user's mistake, and how every command reports it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

LONGEST = 2000


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong, where (file, line, key), what to do."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """What cannot be printed as its escape, and no middle of a very long text: names come from users' files."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def exit_on_user_error(main: Callable[[], int | None]) -> None:
    """Runs `main` and ends the process: status 2 and one line on stderr for a `UserError`, 130 for Ctrl-C, else
    what `main` returned.

    Under torchrun every rank finds the same mistake, so only rank 0 prints it.
    """
    # Files' names need not be text; stderr is made so by Python itself.
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
    except UserError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        if int(os.environ.get("RANK", "0")) == 0:
            print("interrupted", file=sys.stderr)
        status = 130
    sys.stdout.flush()
    sys.exit(status)

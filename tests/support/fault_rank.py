"""What a rank of tests/faults.py runs. Apart, so that its processes import no more than a real run does."""

from __future__ import annotations

import faulthandler
import os
import threading
from pathlib import Path

from skytrain import checkpoint, progress, trainer


def rank_main(c, folder: Path) -> None:
    """Trains, and notes at every mark what it does."""
    rank = os.environ["RANK"]
    for stream in (1, 2):
        os.dup2(os.open(folder / f"stderr-{rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    faulthandler.enable()
    notes = os.open(folder / f"doing.{rank}", os.O_CREAT | os.O_WRONLY)
    mark, save = progress.mark, checkpoint.save
    writing = threading.Event()

    def noted(what: str | None = None) -> None:
        mark(what)
        text = f"{progress.last()[1]}{' and saving' if writing.is_set() else ''}"
        os.pwrite(notes, f"{text:<40}".encode(), 0)

    def saving(*args, **kwargs):
        writing.set()
        noted()
        try:
            return save(*args, **kwargs)
        finally:
            writing.clear()
            noted()

    progress.mark, checkpoint.save = noted, saving
    trainer.train(c, resume=True)

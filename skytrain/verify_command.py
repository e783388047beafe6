"""`skytrain verify RECIPE`: checks of one's own model and data, a line and a figure each."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from skytrain import config
from skytrain.errors import UserError
from skytrain.help import HelpFormatter

if TYPE_CHECKING:
    from rich.console import Console

    from skytrain.verify import Verdict

NAMES = ("data", "export", "packing", "ranks", "resume")
LEAST = {"ranks": 2, "steps": 2, "examples": 0}


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "verify",
        help="check the trainer on your own model and data",
        description="Checks, each a line with a figure: data (the ledger adds up; decoded examples, what is trained in "
        "colour), export (tensors and logits against transformers), packing (packed against unpacked), ranks (several "
        "against one) and resume (to the bit). Exit status 0 where none fails, 1 where one does, 2 for a recipe, model "
        "or data set that cannot be checked. Nothing is left behind.",
        epilog="Example:\n  skytrain verify launch/recipes/sky_t1_7b.toml model.path=models/mine data.path=data/mine",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="TOML recipe, as for training")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="settings in the recipe's place")
    parser.add_argument("--only", metavar="NAMES", help=f"the checks to make, some of {','.join(NAMES)} (default: all)")
    parser.add_argument(
        "--ranks", type=int, default=2, metavar="N", help="processes that the checks ranks and resume start"
    )
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="optimizer steps of the check resume")
    parser.add_argument(
        "--examples", type=int, default=2, metavar="N", help="documents that the check data prints decoded"
    )
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 1 where a check fails. UserError for a recipe, a model or a data set that is not right."""
    chosen = NAMES if arguments.only is None else tuple(arguments.only.split(","))
    for name in chosen:
        if name not in NAMES:
            raise UserError(f"--only {arguments.only}: {name!r} is none of {', '.join(NAMES)}")
    for option, least in LEAST.items():
        if getattr(arguments, option) < least:
            raise UserError(f"--{option} {getattr(arguments, option)}: must be at least {least}")
    settings = config.load(arguments.recipe, arguments.overrides)
    # Not at the top: `skytrain prep` runs where torch is absent.
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, quiet=arguments.json)
    found: dict[str, Verdict] = {}
    try:
        for name in chosen:
            found[name] = judge(name, settings, arguments, found.get("data"))
            tell(console, name, found[name])
            if name == "data" and found[name].good:
                show(console, settings, arguments.examples)
    finally:
        if arguments.json and found:
            print(json.dumps({name: verdict._asdict() for name, verdict in found.items()}, indent=1))
    return 1 if any(verdict.good is False for verdict in found.values()) else 0


def judge(name: str, settings: config.Config, arguments: argparse.Namespace, data: Verdict | None) -> Verdict:
    """One check, in a temporary folder on the disk of the run folder. data: the verdict on the data set, if there is
    one. UserError as `run`, and where a check that was asked for by name cannot be made here."""
    from skytrain import verify

    if data is not None and not data.good:
        return verify.Verdict(None, "the data set is not right")
    beside = Path(settings.run.dir).absolute().parent
    while not beside.exists():
        beside = beside.parent
    try:
        with unwound_by_sigterm(), tempfile.TemporaryDirectory(prefix=".verify-", dir=beside) as folder:
            inside = verify.within(settings, Path(folder))
            return verify.CHECKS[name](inside, Path(folder), arguments.ranks, arguments.steps)
    except verify.NotRun as reason:
        if arguments.only is not None:
            raise UserError(f"verify {name}: {reason}") from None
        return verify.Verdict(None, str(reason))
    except UserError as error:
        raise UserError(f"verify {name}: {error}") from None
    except OSError as error:
        raise UserError(f"verify {name}: {error.filename or beside}: {error.strerror or error}") from None


@contextlib.contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the process as Ctrl-C does, so that its folder and its processes end with it."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def tell(console: Console, name: str, verdict: Verdict) -> None:
    word, style = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("not run", "yellow")}[verdict.good]
    console.print(f"{name:<8} [{style}]{word:<7}[/{style}] ", end="")
    console.print(verdict.figure, markup=False)


def show(console: Console, settings: config.Config, count: int) -> None:
    """Documents as the model sees them. Where there are no colours, what is trained stands in brackets."""
    from rich.text import Text

    from skytrain import verify

    for number, spans in enumerate(verify.examples(settings, count), 1):
        text = Text(f"--- document {number}: ")
        text.append("trained" if console.is_terminal else "[[trained]]", "bold green" if console.is_terminal else "")
        text.append(", context\n")
        for part, trained in spans:
            if trained and not console.is_terminal:
                part = f"[[{part}]]"
            text.append(part, "green" if trained else "dim")
        console.print(text)

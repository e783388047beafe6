"""`skytrain verify RECIPE`: checks of one's own model and data, a line and a figure each."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from skytrain import config
from skytrain.errors import UserError

NAMES = ("data", "export", "packing", "ranks", "resume")


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "verify",
        help="check the trainer on your own model and data",
        description="Checks, each a line with a figure: data (the ledger adds up; decoded examples, what is trained in "
        "colour), export (tensors and logits against transformers), packing (packed against unpacked), ranks (several "
        "against one) and resume (to the bit). Exit status 1 where one fails. Nothing is left behind.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="TOML recipe, as for training")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="settings in the recipe's place")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(NAMES)}")
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="processes of ranks and resume (2)")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="steps of resume (4)")
    parser.add_argument("--examples", type=int, default=2, metavar="N", help="decoded documents of data (2)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 1 where a check fails. UserError for a recipe, a model or a data set that is not right."""
    chosen = NAMES if arguments.only is None else tuple(arguments.only.split(","))
    for name in chosen:
        if name not in NAMES:
            raise UserError(f"--only {arguments.only}: {name!r} is none of {', '.join(NAMES)}")
    for option in ("ranks", "steps"):
        if getattr(arguments, option) < 2:
            raise UserError(f"--{option} {getattr(arguments, option)}: must be at least 2")
    settings = config.load(arguments.recipe, arguments.overrides)
    # Not at the top: `skytrain prep` runs where torch is absent.
    from rich.console import Console

    from skytrain import verify

    console = Console(highlight=False, soft_wrap=True)
    found = {}
    beside = Path(settings.run.dir).absolute().parent
    while not beside.exists():
        beside = beside.parent
    for name in chosen:
        try:
            with tempfile.TemporaryDirectory(prefix=".verify-", dir=beside) as folder:
                verdict = verify.CHECKS[name](settings, Path(folder), arguments.ranks, arguments.steps)
        except OSError as error:
            raise UserError(f"verify {name}: {error.filename or beside}: {error.strerror or error}") from None
        found[name] = {"good": verdict.good, "figure": verdict.figure}
        if not arguments.json:
            word = "[green]ok[/green]    " if verdict.good else "[bold red]FAILED[/bold red]"
            console.print(f"{name:<8} {word} ", end="")
            console.print(verdict.figure, markup=False)
        if name == "data" and not arguments.json:
            show(console, settings, arguments.examples)
    if arguments.json:
        print(json.dumps(found, indent=1))
    return 0 if all(check["good"] for check in found.values()) else 1


def show(console, settings: config.Config, count: int) -> None:
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

"""The `skytrain` command. Each subcommand's module registers its own arguments and says what runs."""

from __future__ import annotations

import argparse
import sys

from skytrain import __version__
from skytrain.errors import exit_on_user_error


def parser(words: list[str]) -> argparse.ArgumentParser:
    """The commands are imported here and not above, so that Ctrl-C meanwhile is answered as any other. `doctor` comes
    alone: it tells of what the others import, and that may be missing or broken."""
    from skytrain import doctor_command

    top = argparse.ArgumentParser(prog="skytrain", description="Supervised fine-tuning of reasoning models.")
    top.add_argument("--version", action="version", version=f"skytrain {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    if words[:1] != ["doctor"]:
        _register(commands)
    doctor_command.register(commands)
    return top


def _register(commands: argparse._SubParsersAction) -> None:
    from skytrain import export_command, verify_command
    from skytrain.eval import command as eval_command
    from skytrain.plan import command as plan_command
    from skytrain.report import command as report_command

    prep = commands.add_parser("prep", help="prepare data", description="Data preparation; needs no torch.")
    stages = prep.add_subparsers(required=True, metavar="STAGE")
    for stage in prep_stages():
        stage.register(stages)
    plan_command.register(commands)
    export_command.register(commands)
    eval_command.register(commands)
    verify_command.register(commands)
    report_command.register(commands)


def prep_stages() -> tuple:
    """The modules of `skytrain prep`, in the order of a recipe."""
    from skytrain.prep import filter as filtering
    from skytrain.prep import generate, grading, importing, label, recipe, rewrite, select, tokenize

    return importing, label, select, generate, rewrite, grading, filtering, tokenize, recipe


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Exits with 2 for words that mean nothing. Settings (section.key=value) may stand after options, where argparse by
    itself no longer looks for them."""
    words = sys.argv[1:] if words is None else words
    top = parser(words)
    arguments, rest = top.parse_known_args(words)
    settings = [word for word in rest if "=" in word and not word.startswith("-")]
    if rest != settings or (rest and not hasattr(arguments, "overrides")):
        hint = " (settings are options here: --samples 4)" if settings else ""
        top.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if rest:
        arguments.overrides += rest
    return arguments


def main() -> None:
    exit_on_user_error(_run)


def _run() -> int | None:
    arguments = parse()
    return arguments.run(arguments)

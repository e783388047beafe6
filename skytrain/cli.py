"""The `skytrain` command. Each subcommand's module registers its own arguments and says what runs."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterable
from types import ModuleType

from skytrain import __version__
from skytrain.errors import exit_on_user_error

COMMANDS = {
    "plan": "skytrain.plan.command",
    "export": "skytrain.export_command",
    "eval": "skytrain.eval.command",
    "verify": "skytrain.verify_command",
    "report": "skytrain.report.command",
    "doctor": "skytrain.doctor_command",
}
STAGES = {
    "import": "skytrain.prep.importing",
    "label": "skytrain.prep.label",
    "select": "skytrain.prep.select",
    "generate": "skytrain.prep.generate",
    "rewrite": "skytrain.prep.rewrite",
    "grade": "skytrain.prep.grading",
    "filter": "skytrain.prep.filter",
    "tokenize": "skytrain.prep.tokenize",
    "run": "skytrain.prep.recipe",
}
"""Of `skytrain prep`, in the order of a recipe."""


def parser(words: list[str]) -> argparse.ArgumentParser:
    """Knows the command that `words` name, and where they name none, as before --help, all: to import all of them takes
    a second, and libraries that a single command does without."""
    named = [word for word in words if not word.startswith("-")]
    top = argparse.ArgumentParser(prog="skytrain", description="Supervised fine-tuning of reasoning models.")
    top.add_argument("--version", action="version", version=f"skytrain {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    prep = commands.add_parser("prep", help="prepare data", description="Data preparation; needs no torch.")
    if named[:1] == ["prep"]:
        stages = prep.add_subparsers(required=True, metavar="STAGE")
        # A recipe is of all the stages' words.
        for stage in modules(STAGES, [] if named[1:2] == ["run"] else named[1:]):
            stage.register(stages)
    else:
        for command in modules(COMMANDS, named):
            command.register(commands)
    return top


def modules(table: dict[str, str], named: list[str]) -> Iterable[ModuleType]:
    """The module of the first of `named`, or all of the table. Not imported at the top, so that Ctrl-C meanwhile is
    answered as any other."""
    wanted = named[:1] if named and named[0] in table else table
    return (importlib.import_module(table[name]) for name in wanted)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """words: `sys.argv`'s where they are None. Exits with 2 for words that mean nothing. Settings (section.key=value)
    may stand after options, where argparse by itself no longer looks for them."""
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

"""The `skytrain` command. Each subcommand's module registers its own arguments and says what runs."""

from __future__ import annotations

import argparse

from skytrain import __version__, export_command
from skytrain.errors import exit_on_user_error
from skytrain.plan import command as plan_command
from skytrain.prep import tokenize


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="skytrain", description="Supervised fine-tuning of reasoning models.")
    top.add_argument("--version", action="version", version=f"skytrain {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    prep = commands.add_parser("prep", help="prepare data", description="Data preparation; needs no torch.")
    stages = prep.add_subparsers(required=True, metavar="STAGE")
    tokenize.register(stages)
    plan_command.register(commands)
    export_command.register(commands)
    return top


def main() -> None:
    arguments = parser().parse_args()
    exit_on_user_error(lambda: arguments.run(arguments))

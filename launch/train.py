"""Trains by a recipe: torchrun --nproc-per-node 8 launch/train.py RECIPE.toml [section.key=value ...]

Without torchrun it trains in one process. The run folder (run.dir) then holds the resolved config.toml,
metrics.jsonl, tensorboard/, checkpoints/ and export/. skytrain/config.py tells every setting and its default.

    torchrun --nproc-per-node 8 launch/train.py launch/recipes/sky_t1_7b.toml data.path=data/mine run.dir=runs/mine
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    from skytrain import signals
    from skytrain.errors import Parser, exit_on_user_error
except ModuleNotFoundError as missing:
    if missing.name != "skytrain":
        raise
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from skytrain.errors import tell

    tell(
        f"error: skytrain is not installed for {sys.executable}: use the torchrun of the environment where it is "
        "(after make setup: .venv/bin/torchrun), or install it there"
    )
    sys.exit(2)


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Optional for argparse alone, which else counts the overrides among the arguments that are required.
    parser.add_argument("recipe", nargs="?", metavar="RECIPE.toml", help="settings of a run, as in launch/recipes")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the recipe's")
    parser.add_argument(
        "--resume", choices=["never", "auto"], default="never",
        help="auto: go on from the newest complete checkpoint in the run folder, if there is one (default: never)",
    )  # fmt: skip
    parser.add_argument(
        "--change", action="append", default=[], metavar="KEY",
        help="a setting that may differ from the resumed run's although it changes its course, as optim.lr; may be "
        "given again",
    )  # fmt: skip
    arguments = parser.parse_intermixed_args()
    if arguments.recipe is None:
        parser.error("give a recipe, as in: launch/train.py launch/recipes/cpu_demo.toml")
    from skytrain import config

    settings = config.load(arguments.recipe, arguments.overrides)
    # Imported later still, so that a mistake in the recipe is told before torch has loaded.
    from skytrain.trainer import train

    run = train(settings, resume=arguments.resume == "auto", changes=arguments.change)
    # As of any program that Ctrl-C has ended, so that what a shell would do next is not done.
    return 130 if run.done < run.total and signals.asked() == "SIGINT" else 0


if __name__ == "__main__":
    # Before anything else is loaded, which takes seconds.
    signals.listen()
    exit_on_user_error(main)

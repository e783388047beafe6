"""`skytrain eval RECIPE` or `skytrain eval --tasks ...`: the scores of a model that servers serve."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from skytrain.errors import UserError, failed_write
from skytrain.eval.asked import VARIANTS
from skytrain.eval.results import Results, Score, TaskResult
from skytrain.eval.run import evaluate, rescore
from skytrain.eval.settings import WINDOW, Settings, read
from skytrain.eval.tasks import TASKS
from skytrain.help import HelpFormatter
from skytrain.prep.asking import add_model_arguments, extra_of

OPTIONS = {*Settings.__struct_fields__, *WINDOW} - {"task", "plan"}


def register(commands: Any) -> None:
    """Adds `eval` to the parsers of `skytrain`."""
    parser = commands.add_parser(
        "eval",
        help="score a model on benchmarks, with intervals",
        description="Asks the servers what the folder's log does not hold, judges the answers, and writes scores with "
        f"95% intervals to OUT/results.json. Tasks: {', '.join(TASKS)}, or a name and file of your own problems.",
        epilog="Examples:\n  skytrain eval --tasks math500,aime24=aime.jsonl --server http://127.0.0.1:8000/v1 --model "
        "NAME\n  skytrain eval launch/recipes/eval_sky_t1.toml --server http://127.0.0.1:8000/v1 --model NAME",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE.toml", help="settings and tasks; options replace its settings"
    )
    parser.add_argument(
        "--tasks",
        action="append",
        default=[],
        metavar="NAME[=FILE],...",
        help="benchmarks to ask; with a recipe, some of its tasks (default: all of them)",
    )
    add_model_arguments(parser, temperature=0.7, max_tokens=32768, unset=True)
    _add_own_arguments(parser)
    parser.add_argument(
        "--rescore", action="store_true", help="judge the answers that --out holds anew, and ask nothing"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace scores that were made with other settings")
    parser.set_defaults(run=run)


def _add_own_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings of evaluations alone. Those that are not given are left out of the namespace, so that a recipe's
    stand."""
    unset = {"default": argparse.SUPPRESS}
    parser.add_argument(
        "--out", metavar="DIR", help="folder for answers, verdicts and scores (default: runs/eval-MODEL)", **unset
    )
    parser.add_argument(
        "--samples", type=int, metavar="N", help="answers asked for each problem (default: 16)", **unset
    )
    parser.add_argument("--limit", type=int, metavar="N", help="ask only the first N problems of each task", **unset)
    parser.add_argument(
        "--prompt",
        choices=VARIANTS,
        help="where the instruction on the answer's form stands, to the question; bare: nowhere (default: before)",
        **unset,
    )
    parser.add_argument(
        "--system",
        metavar="WHICH",
        help="system prompt: none, train (the one that is trained with) or a file (default: none)",
        **unset,
    )
    parser.add_argument(
        "--thinks",
        action=argparse.BooleanOptionalAction,
        help="warn where answers hold no thoughts (the default)",
        **unset,
    )
    parser.add_argument(
        "--engine",
        action="append",
        metavar="KEY=TEXT",
        help="kept with the scores: what servers do not tell of themselves, as dtype=bfloat16; may be given again",
        **unset,
    )
    parser.add_argument("--version", metavar="NAME", help="release of LiveCodeBench, as release_v2", **unset)
    parser.add_argument(
        "--since", metavar="DAY", help="LiveCodeBench: contests from this day on, as 2024-08-01", **unset
    )
    parser.add_argument("--until", metavar="DAY", help="LiveCodeBench: contests up to this day", **unset)
    parser.add_argument(
        "--workers", type=int, metavar="N", help="answers judged at a time (default: one a core)", **unset
    )
    parser.add_argument(
        "--sandbox",
        choices=("bubblewrap", "process"),
        help="where programs run; process: with limits of time and memory only, not isolated (default: bubblewrap)",
        **unset,
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 0, or 130 after Ctrl-C. Raises `UserError`."""
    given = {key: value for key, value in vars(args).items() if key in OPTIONS}
    out: str | Path = given.get("out", "runs")
    try:
        if args.rescore:
            results, folder = _rescored(args, given), Path(given["out"])
        else:
            settings = _settings(args, given)
            out = folder = settings.folder
            results = evaluate(settings, overwrite=args.overwrite)
    except KeyboardInterrupt:
        print("interrupted; what was answered and judged is kept, and the same command goes on", file=sys.stderr)
        return 130
    except OSError as error:
        raise failed_write(out, error) from None
    show(results, folder)
    return 0


def _settings(args: argparse.Namespace, given: dict[str, Any]) -> Settings:
    for key in ("server", "engine", "extra"):
        if key in given:
            given[key] = [part for word in given[key] for part in word.split(",")] if key == "server" else given[key]
    if "extra" in given:
        given["extra"] = extra_of(given["extra"])
    if "engine" in given:
        given["engine"] = dict(_pair(word) for word in given["engine"])
    return read(args.recipe, given, [name for word in args.tasks for name in word.split(",") if name])


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not key or not equals:
        raise UserError(f"--engine {word}: must be KEY=TEXT, as dtype=bfloat16")
    return key, value


def _rescored(args: argparse.Namespace, given: dict[str, Any]) -> Results:
    others = sorted(given.keys() - {"out", "samples", "workers"})
    if args.recipe or args.tasks or others or "out" not in given:
        named = args.recipe or (args.tasks and "--tasks") or (others and f"--{others[0].replace('_', '-')}")
        raise UserError(f"--rescore takes --out DIR, and --samples and --workers, not {named or 'nothing'}")
    return rescore(Path(given["out"]), samples=given.get("samples"), workers=given.get("workers"))


def show(results: Results, folder: Path) -> None:
    """The scores as a table, and what a reader of them has to know. folder: where they are."""
    # As text, since names may hold what rich takes for markup.
    table = Table(title=Text(results.model))
    for name in ("task", "score, %", "95%", "problems x samples", "truncated", "missing", "tokens", "expected"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for task in results.tasks:
        _rows(table, task)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    for task in results.tasks:
        for warning in task.warnings:
            print(f"warning: {task.name}: {warning}", file=sys.stderr)
    print(f"written: {folder}; skytrain report {folder} shows every sample")


def _rows(table: Table, task: TaskResult) -> None:
    asked = task.problems * task.samples
    last = (
        f"{task.truncated:.1%}",
        f"{task.verdicts.get('missing', 0) / asked:.1%}",
        "" if task.tokens is None else f"{task.tokens:,.0f}",
    )
    table.add_row(task.title, *told(task.score), f"{task.problems} x {task.samples}", *last, _range(task, ""))
    for name, part in task.parts.items():
        table.add_row(Text(f"  {name}"), *told(part.score), str(part.problems), "", "", "", _range(task, name))


def told(score: Score) -> tuple[str, str]:
    """Percent, and the interval."""
    return f"{100 * score.mean:.1f}", f"{100 * score.low:.1f} to {100 * score.high:.1f}"


def _range(task: TaskResult, part: str) -> str:
    met = task.met(part)
    if met is None:
        return "(not the whole set)" if part in task.expected else ""
    low, high = task.expected[part]
    return f"{low:g} to {high:g}: {'met' if met else 'NOT met'}"

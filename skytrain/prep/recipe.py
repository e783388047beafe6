"""`skytrain prep run RECIPE.toml`: all stages, one after another, each with the settings that its command takes.

    folder = "data/mine"           # where all that is made goes; paths are from where the command is given

    [[stage]]
    do = "import"                  # the stage; its output is FOLDER/import.jsonl
    name = "amc"                   # or FOLDER/amc.jsonl: a name of its own where a stage is done twice
    inputs = ["numina/*.parquet"]  # files, or names of earlier stages; by default all that no stage has read yet
    format = "numina"              # what the command calls --format; a list is an option given again and again

A recipe's [plan] is for `skytrain plan` (skytrain/plan/work.py).

What can be told beforehand is checked before the first stage begins: words, servers' addresses, prompts, the sandbox,
evaluation files, the tokenizer. A stage that is finished is not done again, so that a run that was ended goes on by
being started again.
"""

from __future__ import annotations

import argparse
import glob
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from skytrain.data.dataset import read_info
from skytrain.errors import UserError
from skytrain.files import read_regular, unopened
from skytrain.plan.work import WorkPlan, work_plan
from skytrain.prep.stage import FORMAT, Account, Finished, beside, fingerprint, read_finished, write_atomically

OWN = ("do", "name", "inputs")


@dataclass
class Step:
    """A stage of a recipe. out: the file of rows, or the folder of the data set. reads: the steps that it reads."""

    name: str
    do: str
    out: Path
    inputs: list[Path]
    reads: list[Step]
    words: list[str]
    args: argparse.Namespace | None = None


def run_recipe(
    path: str | Path, parsers: Mapping[str, Any], overrides: list[str], overwrite: bool = False, to: str | None = None
) -> int:
    """Does all stages and prints what became of the rows. Returns the first exit status that is not 0.

    parsers: of the stages' commands, by name. overrides: NAME.KEY=VALUE each. to: the last stage to do, by name. Raises
    `UserError`.
    """
    steps = read_recipe(Path(path), parsers, overrides)
    names = [step.name for step in steps]
    if to is not None and to not in names:
        raise UserError(f"--to {to}: no stage of {path} has this name; give one of {', '.join(names)}")
    for step in steps:
        step.args = _parse(step, parsers[step.do], overwrite, path, overrides)
    for step in steps:
        if hasattr(step.args, "check"):
            step.args.check(step.args)
    steps = steps if to is None else steps[: names.index(to) + 1]
    for step in steps:
        if step.name != step.do:
            print(f"{step.name}:", flush=True)
        status = _tokenize(step) if step.do == "tokenize" else step.args.run(step.args)
        if status:
            return status
    _told(steps)
    return 0


def read_recipe(path: Path, parsers: Mapping[str, Any], overrides: list[str]) -> list[Step]:
    """Raises `UserError` that names the stage and the key."""
    folder, stages, _ = read_stages(path, overrides)
    steps: dict[str, Step] = {}
    unread: list[Step] = []
    for number, stage in enumerate(stages, 1):
        step = _step(path, Path(folder), number, stage, steps, unread, parsers)
        unread = [one for one in unread if one not in step.reads] + [step]
        steps[step.name] = step
    if not steps:
        raise UserError(f"{path}: has no [[stage]]")
    return list(steps.values())


def read_stages(path: Path, overrides: list[str]) -> tuple[str, list[dict[str, Any]], WorkPlan]:
    """(folder, the stages' own tables, [plan]). Looks at none of their files. Raises `UserError`."""
    try:
        content = tomllib.loads(read_regular(path).decode())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({unopened(path, error)}); give the path of a TOML recipe") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot be read as TOML ({error})") from None
    stages, folder, plan = content.pop("stage", None), content.pop("folder", None), content.pop("plan", {})
    if content:
        raise UserError(f"{path}: unknown key {next(iter(content))!r}; a recipe has folder, [[stage]]s and [plan]")
    if not isinstance(folder, str) or not isinstance(stages, list) or not all(isinstance(one, dict) for one in stages):
        raise UserError(f"{path}: needs folder, as text, and [[stage]]s")
    by_name = {str(stage.get("name", stage.get("do"))): stage for stage in stages}
    _override(path, {"plan": plan, **by_name}, overrides)
    return folder, stages, work_plan(plan, by_name, str(path))


def _step(
    path: Path,
    folder: Path,
    number: int,
    stage: dict[str, Any],
    steps: dict[str, Step],
    unread: list[Step],
    parsers: Any,
) -> Step:
    do = stage.get("do")
    where = f"{path}: stage {number}"
    if do not in parsers or do == "run":
        raise UserError(
            f"{where}: do must be one of {', '.join(name for name in parsers if name != 'run')}, not {do!r}"
        )
    name = stage.get("name", do)
    if not isinstance(name, str) or not name or "/" in name or name in steps:
        raise UserError(f"{where}: the name {name!r} is taken, or none; give the stage a name of its own")
    given = stage.get("inputs")
    if given is None and not unread:
        raise UserError(f"{where} ({name}): needs inputs, the files that it reads")
    if given is not None and (not isinstance(given, list) or not all(isinstance(one, str) for one in given)):
        raise UserError(f"{where} ({name}): inputs must be a list of files or names of earlier stages")
    reads = unread if given is None else [steps[one] for one in given if one in steps]
    files = [step.out for step in reads]
    for pattern in given or []:
        if pattern not in steps:
            files += _files(f"{where} ({name})", pattern)
    out = folder / name if do == "tokenize" else folder / f"{name}.jsonl"
    words = [word for key, value in stage.items() if key not in OWN for word in _words(key, value)]
    return Step(name, do, out, files, list(reads), words)


def _files(where: str, pattern: str) -> list[Path]:
    found = sorted(glob.glob(pattern))
    if not found:
        raise UserError(f"{where}: no file and no earlier stage is {pattern!r}")
    return [Path(one) for one in found]


def _words(key: str, value: Any) -> list[str]:
    """A setting as the command line has it: `top_p = 0.9` is --top-p 0.9, a list is the option again and again."""
    option = _option(key)
    if isinstance(value, bool):
        return [option] if value else [_option(f"no-{key}")]
    if isinstance(value, list):
        if key == "price":
            return [option, *map(str, value)]
        return [word for one in value for word in (option, str(one))]
    # With an equals sign, since a value may begin with a dash.
    return [f"{option}={value}"]


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _override(path: Path, by_name: dict[str, dict[str, Any]], overrides: list[str]) -> None:
    for word in overrides:
        key, _, value = word.partition("=")
        name, _, key = key.partition(".")
        if name not in by_name or not key:
            raise UserError(f"{word}: no stage of {path} is named {name!r}; as NAME.KEY=VALUE")
        table = by_name[name]
        if name == "plan":  # whose settings are tables in tables
            *tables, key = key.split(".")
            for inner in tables:
                table = table.setdefault(inner, {}) if isinstance(table, dict) else None
            if not isinstance(table, dict):
                raise UserError(f"{word}: no table of {path} is named so; as plan.work.generate.requests=1000")
        try:
            table[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            table[key] = value


def _parse(
    step: Step, parser: argparse.ArgumentParser, overwrite: bool, path: str | Path, overrides: list[str]
) -> argparse.Namespace:
    """By the command's own parser, so that a recipe can say what the command line can, and nothing else. A mistake is
    told of the override whose option the parser names, or else of the recipe."""
    own = [word for word in overrides if word.startswith(f"{step.name}.")]
    given = {_option(word.partition("=")[0].removeprefix(f"{step.name}.")): word for word in own}

    def refuse(message: str) -> NoReturn:
        named = re.search(r"(?:argument|unrecognized arguments:) (--[^\s=:/]+)", message)
        word = given.get(named[1]) if named else None
        raise UserError(f"setting {word}: {message}" if word else f"{path}: stage {step.name}: {message}")

    words = [*map(str, step.inputs), "--out", str(step.out), *step.words]
    words += ["--overwrite"] if overwrite else []
    usual, abbreviations = parser.error, parser.allow_abbrev
    # A shortened name that stands in a file would become another option's when a new one is added.
    parser.error, parser.allow_abbrev = refuse, False
    try:
        return parser.parse_args(words)
    finally:
        parser.error, parser.allow_abbrev = usual, abbreviations


def _tokenize(step: Step) -> int:
    """Tokenising has an account of its own kind, in dataset.json; here it is put beside, with what it was made of."""
    ledger = beside(step.out, "ledger.json")
    settings = {"model": fingerprint(Path(step.args.model) / "tokenizer.json")[2], "words": step.words}
    inputs = [fingerprint(path) for path in step.inputs]
    if ledger.exists() and (step.out / "dataset.json").exists():
        done = read_finished(step.out)
        if done is not None and (done.settings, done.inputs) == (settings, inputs):
            print(f"{done.account.line()} (done before)", flush=True)
            return 0
    status = step.args.run(step.args)
    if status == 0:
        rows = read_info(step.out).ledger.rows
        account = Account("tokenize", rows.read, rows.kept, rows.dropped)
        done = Finished(FORMAT, account, settings, inputs, "")
        write_atomically(ledger, msgspec.json.format(msgspec.json.encode(done), indent=1) + b"\n")
    return status


def _told(steps: list[Step]) -> None:
    """Every row that a stage kept is one that the next has read: a lost one ends the run with an error of ours."""
    accounts = {step.name: read_finished(step.out).account for step in steps}
    for step in steps:
        own, files = accounts[step.name], len(step.inputs) - len(step.reads)
        problem = own.problem()
        expected = sum(accounts[read.name].kept for read in step.reads)
        if problem is None and not files and own.read != expected:
            problem = f"{step.name}: read {own.read}, and the stages before it kept {expected}"
        if problem is not None:
            raise AssertionError(problem)
    first = sum(accounts[step.name].read for step in steps if not step.reads)
    last = accounts[steps[-1].name]
    print(f"adds up: {first:,} rows read, {last.kept:,} kept at the end by {len(steps)} stages; {steps[-1].out}")


def register(subparsers: Any) -> None:
    """Adds `run` to the parsers of `skytrain prep`; the others have been added."""
    parser = subparsers.add_parser(
        "run", help="all stages of a recipe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", metavar="RECIPE.toml")
    parser.add_argument("overrides", nargs="*", metavar="NAME.KEY=VALUE", help="settings that replace the recipe's")
    parser.add_argument("--overwrite", action="store_true", help="do again what was made with other inputs or settings")
    parser.add_argument("--to", metavar="NAME", help="stop after this stage; the same command without it goes on")
    parser.set_defaults(
        run=lambda args: run_recipe(args.recipe, subparsers.choices, args.overrides, args.overwrite, args.to)
    )

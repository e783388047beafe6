"""An evaluation: problems asked of a model, answers judged, scores written. See `results` for what its folder holds."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from skytrain.errors import UserError
from skytrain.eval import engine
from skytrain.eval.asked import asked, prompts
from skytrain.eval.load import Loaded, files_of, load
from skytrain.eval.results import Results, result_lines
from skytrain.eval.scoring import Plan, scored
from skytrain.eval.settings import SHARED, Settings, TaskSettings
from skytrain.eval.tasks import task_of
from skytrain.files import read_regular
from skytrain.prep.answers import AnswerLog
from skytrain.prep.asking import Model, Sampling, ask_all
from skytrain.prep.client import Asking, Request
from skytrain.prep.completions import Completion
from skytrain.prep.grade.sandbox import check_level
from skytrain.prep.prompts import Prompts, messages
from skytrain.prep.stage import Row, absolute_tests, dumps, fingerprint, long_integers, relative_tests, write_atomically

FORMAT = 1


class Kept(msgspec.Struct, forbid_unknown_fields=True):
    """eval.json. loaded: of each task what `load` told beside the items: [data, skipped, notes]."""

    format: int
    settings: Settings
    systems: dict[str, str]
    loaded: dict[str, tuple[list[tuple[str, int, str]], dict[str, int], list[str]]]


@dataclass(frozen=True)
class System:
    """text: None where no system turn is sent. name: `none`, or a name and a digest."""

    text: str | None
    name: str


def evaluate(settings: Settings, *, overwrite: bool = False) -> Results:
    """Asks what the folder's log does not hold, judges what it has not judged, and writes the scores.

    Raises `UserError`, and KeyboardInterrupt; what was answered and judged until then is kept, and a second call goes
    on from there.
    """
    if not settings.model:
        raise UserError("--model: is missing; name the model as the servers know it")
    folder, texts = settings.folder, prompts(settings.prompts)
    systems = {one.name: system_of(one.system) for one in settings.task}
    with long_integers():
        before = read_kept(folder)
        if before is not None and not overwrite:
            _same(before, settings, systems, folder)
        plans = [_plan(settings, one, systems[one.name], texts, before) for one in settings.task]
        if any(row["domain"] == "code" for plan in plans for row in plan.items):
            check_level(settings.sandbox)
        with AnswerLog(folder / "answers.jsonl", Completion) as answers:
            _write(folder, settings, systems, plans)
            servers = _servers(settings, folder)
            failed = ask_all("eval", plans[0].model, answers, _requests(plans))
            return scored(folder, settings, plans, answers, servers, {key: one.why for key, one in failed.items()})


def _plan(settings: Settings, one: TaskSettings, system: System, texts: Prompts, before: Kept | None) -> Plan:
    model, task, out = model_of(settings, one, texts), task_of(one.name), items_file(settings.folder, one.name)
    paths = files_of(task, [one.data] if isinstance(one.data, str) else one.data, out, one.version)
    loaded = _loaded_before(one, paths, out, before) or load(
        task, paths, out, version=one.version, since=one.since, until=one.until, limit=one.limit
    )
    items = [_as_asked(row, one.prompt, texts, system) for row in loaded.items]
    return Plan(one, task, model, system.name, items, loaded)


def _loaded_before(one: TaskSettings, paths: list[Path], items: Path, before: Kept | None) -> Loaded | None:
    """The items of an earlier start from the same files: LiveCodeBench's tests are gigabytes to decode."""
    old = next((task for task in before.settings.task if task.name == one.name), None) if before else None
    chosen = ("version", "since", "until", "limit")
    if old is None or not items.exists() or any(getattr(old, key) != getattr(one, key) for key in chosen):
        return None
    data, skipped, notes = before.loaded[one.name]
    if [fingerprint(path) for path in paths] != data:
        return None
    return Loaded(_items(items), data, skipped, notes)


def _items(path: Path) -> list[Row]:
    return [absolute_tests(row, path.parent) for row in result_lines(path, dict)]


def rescore(folder: Path, *, samples: int | None = None, workers: int | None = None) -> Results:
    """Judges what an evaluation's folder holds again, and writes new scores. Asks nobody.

    samples: the first so many of each problem; never more than were asked. Raises `UserError`.
    """
    kept = read_kept(folder)
    if kept is None:
        raise UserError(f"{folder}: holds no eval.json; name the folder of an evaluation with --out")
    settings, plans = kept.settings, []
    settings.out, settings.workers = str(folder), workers or settings.workers
    texts = prompts()
    for one in settings.task:
        if samples is not None and samples > one.samples:
            raise UserError(
                f"--samples {samples}: task {one.name} has {one.samples} of each problem; ask for more first"
            )
        one.samples = samples or one.samples
        with long_integers():
            items = _items(items_file(folder, one.name))
        data, skipped, notes = kept.loaded[one.name]
        loaded = Loaded(items, data, skipped, notes)
        plans.append(
            Plan(one, task_of(one.name), model_of(settings, one, texts), kept.systems[one.name], items, loaded)
        )
    servers = list(result_lines(folder / "servers.jsonl", dict))
    with long_integers(), AnswerLog(folder / "answers.jsonl", Completion) as answers:
        return scored(folder, settings, plans, answers, servers, {}, again=True)


def model_of(settings: Settings, task: TaskSettings, texts: Prompts) -> Model:
    """Raises `UserError` for settings that mean nothing."""
    for name, value in (("samples", task.samples), ("limit", task.limit), ("workers", settings.workers)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    asking = Asking(
        settings.server, settings.in_flight, settings.tries, settings.patience, settings.timeout, settings.api_key_env
    )
    sampling = Sampling(task.temperature, task.top_p, task.max_tokens, task.extra)
    return Model(settings.model, sampling, asking, texts, task.seed, settings.price, settings.on_unanswered)


def system_of(name: str) -> System:
    """name: none, train or a file. Raises `UserError`."""
    if name == "none":
        return System(None, "none")
    if name == "train":
        ours = Prompts()
        return System(ours.render("train.system"), ours.version("train.system"))
    try:
        text = read_regular(name).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--system {name}: is neither none, nor train, nor a file of text ({error})") from None
    if not text:
        raise UserError(f"--system {name}: is empty; none sends no system prompt")
    return System(text, f"{Path(name).name}@{hashlib.sha256(text.encode()).hexdigest()[:12]}")


def items_file(folder: Path, task: str) -> Path:
    return folder / "items" / f"{task}.jsonl"


def read_kept(folder: Path) -> Kept | None:
    """None where there is no eval.json. Raises `UserError` for one that is none."""
    path = folder / "eval.json"
    try:
        kept = msgspec.json.decode(read_regular(path), type=Kept)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give another --out") from None
    if kept.format != FORMAT:
        raise UserError(f"{path}: format {kept.format}, and this version writes {FORMAT}; give another --out")
    return kept


def _same(before: Kept, settings: Settings, systems: dict[str, System], folder: Path) -> None:
    """Raises `UserError` where scores in one folder would not be of one kind. More samples, problems and tasks are."""
    advice = "give another --out, or --overwrite (answers that still fit are not asked again)"
    if before.settings.model != settings.model:
        raise UserError(f"{folder}: is of the model {before.settings.model}, not {settings.model}; {advice}")
    now = {task.name: task for task in settings.task}
    for old in before.settings.task:
        new = now.get(old.name)
        if new is None:
            raise UserError(
                f"{folder}: holds the task {old.name} too; name it as well (it is not asked again), or {advice}"
            )
        keys = [key for key in (*SHARED, "version", "since", "until") if key not in ("samples", "limit", "system")]
        changed = [key for key in keys if getattr(old, key) != getattr(new, key)]
        changed += ["system"] if before.systems[old.name] != systems[old.name].name else []
        if changed:
            raise UserError(f"{folder}: {old.name} was asked with another {', '.join(changed)}; {advice}")


def _as_asked(row: Row, variant: str, texts: Prompts, system: System) -> Row:
    user, version = asked(row, variant, texts)
    return {**row, "messages": messages(system.text, user), "prompt_version": version}


def _requests(plans: list[Plan]) -> Iterator[Request]:
    for plan in plans:
        for row in plan.items:
            for sample in range(plan.settings.samples):
                yield plan.request(row, sample)


def _write(folder: Path, settings: Settings, systems: dict[str, System], plans: list[Plan]) -> None:
    """eval.json and the items. The scores of an earlier run go: they are not of what is asked now."""
    (folder / "results.json").unlink(missing_ok=True)
    for plan in plans:
        path = items_file(folder, plan.settings.name)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, b"".join(dumps(relative_tests(row, path.parent)) for row in plan.items))
    told = {plan.settings.name: (plan.loaded.data, plan.loaded.skipped, plan.loaded.notes) for plan in plans}
    kept = Kept(FORMAT, settings, {name: system.name for name, system in systems.items()}, told)
    write_atomically(folder / "eval.json", msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")


def _servers(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    """What the servers tell, of this start and of those before it. Raises `UserError` where no answer would fit."""
    path = folder / "servers.jsonl"
    told = engine.ask_servers(settings.server, settings.api_key_env, settings.model)
    for row in told:
        length, longest = row["max_model_len"], max(task.max_tokens for task in settings.task)
        if isinstance(length, int) and longest >= length:
            raise UserError(
                f"--max-tokens {longest}: {row['server']} serves at most {length} tokens, the question's included; "
                "ask for fewer, or serve with a longer --max-model-len"
            )
        row |= settings.engine
    for row in told:
        untold = [name for name in engine.UNTOLD if row.get(name) is None]
        if untold:
            names = " ".join(f"--engine {name}=..." for name in untold)
            print(
                f"{row['server']} does not tell {', '.join(untold)}; {names} notes it beside the scores",
                file=sys.stderr,
            )
    known = list(result_lines(path, dict)) if path.exists() else []
    new = [row for row in told if row not in known]
    with open(path, "ab") as file:
        file.writelines(json.dumps(row).encode() + b"\n" for row in new)
    return known + new

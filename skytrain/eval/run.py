"""An evaluation: problems asked of a model, answers judged, scores written. See `results` for what its folder holds."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from skytrain.errors import UserError
from skytrain.eval import engine
from skytrain.eval.asked import asked, prompts
from skytrain.eval.folder import (
    FORMAT,
    Kept,
    TaskKept,
    check_data,
    check_model,
    check_same,
    items_file,
    loaded_before,
    missing_tests,
    put_results,
    read_items,
    read_kept,
    remove_task,
    write_items,
    write_kept,
)
from skytrain.eval.load import Loaded, files_of, load
from skytrain.eval.results import Evaluation, Results, result_lines
from skytrain.eval.scoring import Plan, scored
from skytrain.eval.settings import Settings, TaskSettings, expected
from skytrain.eval.tasks import task_of
from skytrain.files import read_regular
from skytrain.prep.answers import AnswerLog
from skytrain.prep.asking import Model, Sampling, ask_all, check_price, check_sendable
from skytrain.prep.client import Asking, Request
from skytrain.prep.completions import Completion
from skytrain.prep.grade.sandbox import check_level
from skytrain.prep.prompts import Prompts, messages
from skytrain.prep.stage import Row, dumps, fingerprint, long_integers, write_atomically


@dataclass(frozen=True)
class System:
    """text: None where no system turn is sent. name: `none`, or a name and a digest."""

    text: str | None
    name: str


def evaluate(settings: Settings, *, overwrite: bool = False) -> Results:
    """Asks what the folder's log does not hold, judges what it has not judged, and writes the scores. Tasks that the
    folder holds beside stay.

    overwrite: whether scores of another model, or asked in another way, are replaced. Raises `UserError`, and
    KeyboardInterrupt; what was answered and judged until then is kept, and a second call goes on from there.
    """
    if not settings.model:
        raise UserError("--model: is missing; name the model as the servers know it")
    folder, texts = settings.folder, prompts(settings.prompts)
    systems = {one.name: system_of(one.system) for one in settings.task}
    models = {one.name: model_of(settings, one, texts) for one in settings.task}
    files = {one.name: _files(folder, one) for one in settings.task}
    with long_integers():
        before = read_kept(folder)
        if before is not None and not overwrite:
            check_model(folder, before, settings.model)
        same_model = before is not None and before.settings.model == settings.model
        old = {one.settings.name: one for one in before.tasks} if same_model else {}
        if not overwrite:
            for one in settings.task:
                if one.name in old:
                    check_same(folder, old[one.name], one, systems[one.name].name)
                    check_data(folder, old[one.name], files[one.name][1])
        plans = []
        for one in settings.task:
            loaded = _loaded(folder, one, old.get(one.name), *files[one.name])
            items = [_as_asked(row, one.prompt, texts, systems[one.name]) for row in loaded.items]
            plans.append(Plan(one, task_of(one.name), models[one.name], systems[one.name].name, items, loaded))
            _check_expected(plans[-1])
        if any(row["domain"] == "code" for plan in plans for row in plan.items):
            check_level(settings.sandbox)
        with AnswerLog(folder / "answers.jsonl", Completion) as answers:
            told = _told_by_servers(settings)
            kept = _begin(folder, settings, plans, before, list(old.values()), overwrite)
            servers = _noted(folder, told)
            failed = _ask(plans, answers)
            return scored(folder, settings, plans, answers, servers, kept, failed)


def _ask(plans: list[Plan], answers: AnswerLog) -> dict[str, str]:
    """Why requests stayed unanswered, by key. Raises `UserError` where a server has refused everything."""
    asked = {request.key for request in _requests(plans)}
    waiting = asked - answers.statuses.keys()
    failed = ask_all("eval", plans[0].model, answers, _requests(plans), len(waiting))
    if failed and len(failed) == len(asked) and all(one.lasting for one in failed.values()):
        raise UserError(f"{next(iter(failed.values())).why}; so were all {len(failed)} requests")
    return {key: one.why for key, one in failed.items()}


def _files(folder: Path, one: TaskSettings) -> tuple[list[Path], list[tuple[str, int, str]]]:
    """A task's files, and what tells them from others."""
    data = [one.data] if isinstance(one.data, str) else one.data
    paths = files_of(task_of(one.name), data, items_file(folder, one.name), one.version)
    return paths, [fingerprint(path) for path in paths]


def _loaded(
    folder: Path, one: TaskSettings, before: TaskKept | None, paths: list[Path], data: list[tuple[str, int, str]]
) -> Loaded:
    return loaded_before(folder, before, one, data) or load(
        task_of(one.name),
        paths,
        items_file(folder, one.name),
        version=one.version,
        since=one.since,
        until=one.until,
        limit=one.limit,
    )


def _begin(
    folder: Path, settings: Settings, plans: list[Plan], before: Kept | None, old: list[TaskKept], overwrite: bool
) -> Kept:
    """Writes the items and eval.json. before: the folder's; old: its tasks, if they are of the same model."""
    if before is not None and not old:
        for one in before.tasks:
            remove_task(folder, one.settings.name)
        for name in ("results.json", "servers.jsonl"):
            (folder / name).unlink(missing_ok=True)
    elif overwrite and (folder / "results.json").exists():
        results, own = Evaluation(folder).results, {plan.settings.name for plan in plans}
        others = [task for task in results.tasks if task.name not in own]
        put_results(folder, msgspec.structs.replace(results, tasks=others))
    now = {}
    for plan in plans:
        digest = write_items(folder, plan.settings.name, plan.items)
        loaded = plan.loaded
        now[plan.settings.name] = TaskKept(
            plan.settings, plan.system, loaded.data, loaded.skipped, loaded.notes, digest
        )
    tasks = [now.pop(one.settings.name, one) for one in old] + list(now.values())
    made = Kept(FORMAT, msgspec.structs.replace(settings, task=[]), tasks)
    write_kept(folder, made)
    return made


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
    for task in kept.tasks:
        one = task.settings
        if not task.finished:
            raise UserError(f"{folder}: {one.name} is unfinished; run it again, and it goes on")
        if samples is not None and samples > one.samples:
            raise UserError(
                f"--samples {samples}: task {one.name} has {one.samples} of each problem; ask for more first"
            )
        one = msgspec.structs.replace(one, samples=samples or one.samples)
        with long_integers():
            loaded = Loaded(read_items(folder, one.name), task.data, task.skipped, task.notes)
        if missing := missing_tests(loaded.items):
            raise UserError(f"{missing}: is not there, and holds tests of {one.name}; copy the folder as a whole")
        plans.append(Plan(one, task_of(one.name), model_of(settings, one, texts), task.system, loaded.items, loaded))
    servers = list(result_lines(folder / "servers.jsonl", dict))
    with long_integers(), AnswerLog(folder / "answers.jsonl", Completion) as answers:
        _check_answers(folder, plans, answers)
        return scored(folder, settings, plans, answers, servers, kept, {}, again=True)


def _check_answers(folder: Path, plans: list[Plan], answers: AnswerLog) -> None:
    """Raises `UserError` where answers that were judged are gone: they would be missing ones, which are wrong."""
    if not (folder / "results.json").exists():
        return
    before = {task.name: task.verdicts.get("missing", 0) for task in Evaluation(folder).results.tasks}
    for plan in plans:
        gone = sum(request.key not in answers.statuses for request in _requests([plan]))
        if gone > before.get(plan.settings.name, gone):
            raise UserError(
                f"{answers.path}: lacks answers to {plan.settings.name} that were there ({gone:,}); bring it back, or "
                "run the evaluation again"
            )


def model_of(settings: Settings, task: TaskSettings, texts: Prompts) -> Model:
    """Raises `UserError` for settings that mean nothing."""
    for name, value in (("samples", task.samples), ("limit", task.limit), ("workers", settings.workers)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    check_sendable(settings.model, task.extra)
    check_price(settings.price)
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


def _as_asked(row: Row, variant: str, texts: Prompts, system: System) -> Row:
    user, version = asked(row, variant, texts)
    return {**row, "messages": messages(system.text, user), "prompt_version": version}


def _requests(plans: list[Plan]) -> Iterator[Request]:
    for plan in plans:
        for row in plan.items:
            for sample in range(plan.settings.samples):
                yield plan.request(row, sample)


def _check_expected(plan: Plan) -> None:
    """Raises `UserError` for a part that the task does not have."""
    parts = plan.task.parts or tuple({row["part"]: None for row in plan.items if row["part"]})
    for part in expected(plan.settings):
        if part and part not in parts:
            has = f"the parts are {', '.join(parts)}" if parts else "it has no parts"
            raise UserError(f"{plan.settings.name}: expected names the part {part!r}, and {has}")


def _told_by_servers(settings: Settings) -> list[dict[str, Any]]:
    """A row a server. Raises `UserError` where no answer would fit."""
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
        names = " ".join(f"--engine {name}=..." for name in untold)
        if not row.pop("answers"):
            print(f"{row['server']} does not answer; is it started, and is this its address?", file=sys.stderr)
        elif untold:
            print(
                f"{row['server']} does not tell {', '.join(untold)}; {names} notes it beside the scores",
                file=sys.stderr,
            )
    return told


def _noted(folder: Path, told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the servers told, at this start and at those before it; written to servers.jsonl."""
    path = folder / "servers.jsonl"
    known = list(result_lines(path, dict)) if path.exists() else []
    rows = known + [row for row in told if row not in known]
    write_atomically(path, b"".join(map(dumps, rows)))
    return rows

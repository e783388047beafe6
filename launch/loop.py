"""The whole system in miniature, with real parts: python launch/loop.py --vllm ENVIRONMENT [--short]

Problems of reasoning-gym are answered, several times each, by a teacher that our own training made and vLLM serves.
The traces are rewritten, graded, filtered and tokenised. A smaller and weaker student learns from them; it is exported,
served and evaluated, beside what it was before, its teacher, and a student that learned from traces that nobody graded.
All of it ends in one report.

Started again, it goes on where it was ended, whatever ended it. Exit status 1 where the student's gain is not larger
than its interval. --short: one family of problems, and no student of ungraded traces.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop_folder import LoopFolder, write_jsonl
from loop_problems import FAMILIES, Item, chat, make_parts, worked
from loop_scores import ALL, larger_than_its_interval, measured, summary, told
from loop_serve import program, served
from small_model import Size, write_model_folder
from steps import LAUNCH, command

from skytrain.errors import UserError, exit_on_user_error
from skytrain.prep.prompts import Prompts

NEEDED = ("torch", "reasoning_gym", "aiohttp")
RANKS = 2
MAX_MODEL_LEN = 512


TEACHER, BEFORE, VERIFIED, UNVERIFIED = "teacher", "student-before", "student-verified", "student-unverified"
EPOCHS = 6
"""Of the student's training on traces."""


@dataclass(frozen=True)
class Form:
    """counts: problems of each family, by what they are for. samples: of each problem, traces and answers alike. steps:
    of the first trainings. students: of traces, and the data set of each."""

    name: str
    families: tuple[str, ...]
    counts: dict[str, int]
    samples: int
    teacher: Size
    student: Size
    steps: dict[str, int]
    students: dict[str, str]


FULL = Form(
    "full",
    tuple(FAMILIES),
    {"held_out": 150, "asked": 750, "taught": 1600},
    4,
    Size(vocabulary=640),
    Size(vocabulary=640, layers=3),
    {TEACHER: 1200, BEFORE: 600},
    {VERIFIED: "verified", UNVERIFIED: "unverified"},
)
SHORT = Form(
    "short",
    ("leg_counting",),
    {"held_out": 200, "asked": 600, "taught": 4000},
    2,
    Size(vocabulary=640, layers=3),
    Size(vocabulary=640, layers=2),
    {TEACHER: 400, BEFORE: 150},
    {VERIFIED: "verified"},
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of all that is made; default: runs/loop, or runs/loop_short")
    parser.add_argument("--short", action="store_true", help="one family of problems and one student: under 6 minutes")
    parser.add_argument("--seed", type=_seed, default=0, help="of the problems, first weights, order and sampling")
    parser.add_argument("--vllm", type=Path, required=True, help="environment with vLLM, as make vllm makes it")
    parser.add_argument("--overwrite", action="store_true", help="remove an earlier loop in --out, and begin anew")
    arguments = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the loop needs {', '.join(missing)}: pip install -e '.[train,prep,dev]', or run make loop")
    form = SHORT if arguments.short else FULL
    out = arguments.out or Path("runs") / ("loop_short" if arguments.short else "loop")
    vllm = program(arguments.vllm)
    settings = {"form": form.name, "seed": arguments.seed, "made by": digest(form)}
    with LoopFolder.claimed(out, settings, overwrite=arguments.overwrite) as folder:
        return Loop(folder, form, arguments.seed, vllm).run()


class Loop:
    """The stages, each of which goes on where an earlier start was ended. Commands are given in the loop's folder."""

    def __init__(self, folder: LoopFolder, form: Form, seed: int, vllm: Path):
        self._folder, self._form, self._seed, self._vllm = folder, form, seed, vllm
        self._path = folder.path
        self._prompts = Prompts(self._path / "recipes" / "prompts" / "data")

    def run(self) -> int:
        print(f"commands are given in {self._path}")
        self._stage("problems and untrained models", self._make_problems)
        self._stage("the teacher's training", self._first_training, TEACHER)
        self._stage("the student's first training", self._first_training, BEFORE)
        traces, before, after = "traces, graded and not", "evaluation before", "evaluation after"
        if not self._folder.done(traces, before):
            with ExitStack() as stack:
                servers = self._serve(stack, TEACHER, BEFORE)
                self._stage(traces, self._prepare, servers[TEACHER])
                self._stage(before, self._evaluate, servers)
        for student, data in self._form.students.items():
            self._stage(f"training of {student}", self._teach, student, data)
        if not self._folder.done(after):
            with ExitStack() as stack:
                self._stage(after, self._evaluate, self._serve(stack, *self._form.students))
        # A report compares the earlier one of two models with the later one.
        models = [BEFORE, *reversed(self._form.students), TEACHER]
        self._stage("report", self._command, "skytrain", "report", *models, *map(evaluation_of, models), "data")
        return self._conclude(models)

    def _stage(self, title: str, work: Callable[..., None], *arguments: Any) -> None:
        if self._folder.done(title):
            print(f"== {title}: done before, in {self._folder.seconds[title]:.1f} s", flush=True)
            return
        with self._folder.stage(title):
            work(*arguments)

    def _command(self, program: str, *words: object) -> None:
        command(program, *words, folder=self._path, held=[self._folder.taken])

    def _make_problems(self) -> None:
        parts = make_parts(self._form.families, self._form.counts, self._seed)
        for name in self._form.families:
            held_out = [item for item in parts["held_out"] if item["metadata"]["source_dataset"] == name]
            self._write(f"problems/{name}.jsonl", map(problem, held_out))
        self._write("problems/asked.jsonl", map(problem, parts["asked"]))
        system = self._prompts.render("teacher.system")
        chats = [chat(system, self._question(item), worked(item)) for item in parts["taught"]]
        self._write("chats.jsonl", chats)
        # One tokenizer for both, as within a family of models.
        texts = [turn["content"] for row in chats[:2000] for turn in row["messages"]]
        texts.append(self._prompts.render("train.system"))
        for name, size in {TEACHER: self._form.teacher, BEFORE: self._form.student}.items():
            self._folder.made(f"models/{name}", write_model_folder, texts, self._seed, size)
        item = parts["asked"][0]
        print(", ".join(f"{len(items):,} {part}" for part, items in parts.items()) + " problems; one of them:")
        print(f"{item['question']}\n{worked(item)}")

    def _question(self, item: Item) -> str:
        return self._prompts.render("teacher.math", prompt=item["question"])

    def _write(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        self._folder.made(name, write_jsonl, rows)

    def _first_training(self, model: str) -> None:
        """The student's ends early: it is to be weak, and it is smaller."""
        if not (self._path / "chats" / "dataset.json").exists():
            self._command("skytrain", "prep", "tokenize", "chats.jsonl", "--model", f"models/{model}",
                          "--out", "chats", "--workers", 1)  # fmt: skip
        self._train(model, f"models/{model}", "chats", "train.epochs=10", f"train.max_steps={self._form.steps[model]}")

    def _train(self, run: str, model: str, data: str, *settings: str) -> None:
        places = f"run.dir={run}", f"model.path={model}", f"data.path={data}", f"run.seed={self._seed}"
        program = os.path.relpath(LAUNCH / "train.py", self._path)
        self._command("torchrun", "--standalone", "--nproc-per-node", RANKS, program, "recipes/train.toml",
                      "--resume", "auto", *places, *settings)  # fmt: skip

    def _exported(self, run: str) -> str:
        (folder,) = (self._path / run / "export").glob("step-*[0-9]")
        return str(folder.relative_to(self._path))

    def _serve(self, stack: ExitStack, *models: str) -> dict[str, str]:
        folders = {model: self._exported(model) for model in models}
        servers = served(self._vllm, folders, self._path, MAX_MODEL_LEN, held=[self._folder.taken])
        with self._folder.stage(f"start of vLLM for {' and '.join(models)}"):
            return stack.enter_context(servers)

    def _prepare(self, server: str) -> None:
        # Tokens are the student's own as it was exported: that has a chat template with its system prompt in it.
        model = self._exported(BEFORE)
        settings = [
            f'generate.server=["{server}"]',
            f"generate.seed={self._seed}",
            f"generate.samples={self._form.samples}",
        ]
        settings += [f"{data}.model={model}" for data in ("verified", "unverified")]
        self._command("skytrain", "prep", "run", "recipes/data.toml", *settings)

    def _evaluate(self, servers: dict[str, str]) -> None:
        families = ",".join(self._form.families)
        for model, server in servers.items():
            # Until traces are rewritten for it, a model thinks without tags.
            untagged = [] if model in self._form.students else ["--no-thinks"]
            self._command("skytrain", "eval", "recipes/eval.toml", "--tasks", families, "--server", server,
                          "--model", model, "--samples", self._form.samples, "--seed", self._seed,
                          "--out", evaluation_of(model), *untagged)  # fmt: skip

    def _teach(self, student: str, data: str) -> None:
        """On all that was kept, some epochs; on what was not graded, which is more, for as many steps."""
        steps = []
        if student != VERIFIED:
            lines = (self._path / VERIFIED / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            steps = [f"train.max_steps={max(json.loads(line)['step'] for line in lines)}"]
        self._train(student, self._exported(BEFORE), f"data/{data}", f"train.epochs={EPOCHS}", "optim.lr=2e-3", *steps)

    def _conclude(self, models: list[str]) -> int:
        values = {model: measured(self._path / evaluation_of(model)) for model in models}
        pairs = [(BEFORE, student) for student in self._form.students]
        if UNVERIFIED in models:
            pairs.append((UNVERIFIED, VERIFIED))
        found = summary(values, pairs, self._path / "data")
        self._folder.note(found)
        print(f"\n{told(found)}\n")
        print(f"{sum(self._folder.seconds.values()) / 60:.1f} minutes; {self._path / 'report.html'}")
        gains = found["gains"][f"{BEFORE} -> {VERIFIED}"]
        if not larger_than_its_interval(gains[ALL]):
            print(f"failed: the gain of {VERIFIED} over all problems is not larger than its interval")
            return 1
        return 0


def digest(form: Form) -> str:
    """Of all that decides what a loop computes beside the code: one begun before a change does not go on after it."""
    found = hashlib.sha256(repr((form, [FAMILIES[name].settings for name in form.families], EPOCHS)).encode())
    for path in sorted((LAUNCH / "recipes" / "loop").rglob("*.*")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def _seed(word: str) -> int:
    """As numpy and reasoning-gym take it."""
    if not word.isdecimal() or (seed := int(word)) >= 2**31:
        raise argparse.ArgumentTypeError(f"{word!r} is no whole number from 0 to {2**31 - 1}")
    return seed


def evaluation_of(model: str) -> str:
    return f"eval-{model}"


def problem(item: Item) -> dict[str, Any]:
    found = {"question": item["question"], "answer": item["answer"], "domain": "math"}
    return {**found, "source": item["metadata"]["source_dataset"]}


if __name__ == "__main__":
    exit_on_user_error(main)

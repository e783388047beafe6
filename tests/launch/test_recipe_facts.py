"""The recipes of Sky-T1-32B beside what its authors published: data, order, tags, prompts, hyperparameters, tasks."""

import argparse
import re
from pathlib import Path

import pytest

from skytrain import cli, config
from skytrain.eval.settings import read
from skytrain.eval.tasks import task_of
from skytrain.prep import recipe
from skytrain.prep.prompts import OURS, Prompts
from skytrain.prep.sections import TAGS
from skytrain.prep.select import parse_rule

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "launch" / "recipes"
DATA = RECIPES / "prep" / "sky_t1.toml"

TRAINING = {  # as published
    "optim.name": "adamw", "optim.lr": 1e-5, "optim.betas": [0.9, 0.999], "optim.weight_decay": 0.0, "optim.clip": 1.0,
    "schedule.name": "cosine", "schedule.warmup_ratio": 0.1, "schedule.warmup_steps": None, "schedule.min_ratio": 0.0,
    "train.epochs": 3, "train.max_steps": None, "train.dtype": "bfloat16", "train.float8": None,
    "batch.documents": 96, "batch.tokens": None, "batch.max_tokens": 16384,
    "model.path": "models/Qwen2.5-32B-Instruct", "plan.documents": 16401, "log.price_per_gpu_hour": 2.96,
}  # fmt: skip
POOLS = {  # source: (what the rules must say of it, how many problems were published before filters)
    "apps": ({}, 5000),
    "taco_train": ({"level": ("MEDIUM",)}, 3244),
    "taco_test": ({}, 1000),
    "numina_amc_aime": ({"difficulty": ((1.0, 9.0),)}, 4070),
    "numina_math": ({"level": ("4", "5")}, 7477),
    "numina_olympiads": ({"difficulty": ((9.0, 9.0),), "first": 20000}, 20000),
}
LIVECODEBENCH = {"easy": (182, 3415), "medium": (206, 8263), "hard": (123, 14564)}
"""Problems, and the published mean length of an answer."""


@pytest.fixture
def steps(monkeypatch):
    """Of the data recipe, by name, with the arguments that their commands read. The data sets are not at hand here."""
    monkeypatch.setattr(recipe, "_files", lambda where, pattern: [Path(pattern)])
    monkeypatch.chdir(ROOT)

    def parse(*overrides: str) -> dict[str, recipe.Step]:
        stages = argparse.ArgumentParser().add_subparsers()
        for stage in cli.modules(cli.STAGES, []):
            stage.register(stages)
        found = recipe.read_recipe(DATA, stages.choices, list(overrides))
        for step in found:
            step.args = recipe._parse(step, stages.choices[step.do], False, DATA, [])
        return {step.name: step for step in found}

    return parse


def reaches(step: recipe.Step) -> set[str]:
    return {step.name}.union(*(reaches(before) for before in step.reads))


def test_training_has_the_published_hyperparameters():
    found = config.flat(config.load(RECIPES / "sky_t1_32b.toml"))
    assert {key: found[key] for key in TRAINING} == TRAINING
    assert found["export.default_system"] == "dataset"  # the system turn that the traces begin with


def test_problems_are_the_published_pools(steps):
    found = steps()
    said: dict[str, dict[str, object]] = {}
    for name in ("to_label", "hard_math", "select"):
        for rule in map(parse_rule, found[name].args.rule):
            for source in rule.source:
                told = {key: getattr(rule, key) for key in ("difficulty", "level", "first") if getattr(rule, key)}
                said.setdefault(source, {}).update(told)
    assert said == {source: rules for source, (rules, _) in POOLS.items()}
    assert reaches(found["generate"]) == {
        "numina", "apps", "taco_train", "taco_test", "to_label", "label", "hard_math", "select", "generate",
    }  # fmt: skip
    assert [rule for rule in found["science"].args.rule] == [
        "source=still2_physics,still2_chemistry,still2_biology,still2_puzzle"
    ]


def test_science_is_taken_as_it_is_published_and_all_else_is_generated_rewritten_and_graded_in_this_order(steps):
    found = steps()
    order = list(found)
    assert [name for name in order if name in ("generate", "rewrite", "grade", "filter", "tokenize")] == [
        "generate", "rewrite", "grade", "filter", "tokenize",
    ]  # fmt: skip
    assert reaches(found["grade"]) == reaches(found["generate"]) | {"rewrite", "grade"}
    assert reaches(found["as_published"]) == {"still2", "science", "as_published"}
    assert {step.name for step in found["filter"].reads} == {"grade", "as_published"}
    assert found["as_published"].args.by == "rules"
    assert {step.name for step in found["tokenize"].reads} == {"filter"}


def test_the_teacher_and_the_editor_are_asked_as_published(steps):
    found = steps()
    teacher, editor = found["generate"].args, found["rewrite"].args
    assert teacher.model == "Qwen/QwQ-32B-Preview"
    assert (teacher.samples, teacher.max_tokens, teacher.temperature, teacher.top_p) == (1, 16384, 0.7, 1.0)
    assert (editor.max_tokens, editor.temperature, editor.by) == (16384, 0.7, "rules-then-model")
    assert editor.system is None and found["as_published"].args.system is None  # the training prompt, with tags
    assert found["tokenize"].args.max_length == 16384 and found["tokenize"].args.overlong == "drop"


def test_the_plan_counts_the_published_pools():
    _, _, plan = recipe.read_stages(DATA, [])
    problems = {source: count for source, (_, count) in POOLS.items()}
    programs = sum(count for source, count in problems.items() if source.startswith(("apps", "taco")))
    assert plan.work["generate"].requests == plan.work["rewrite"].requests == sum(problems.values())
    assert plan.work["label"].requests == problems["numina_amc_aime"] + problems["numina_olympiads"]
    assert (plan.work["grade"].programs, plan.work["grade"].answers) == (programs, sum(problems.values()) - programs)
    assert plan.work["generate"].completion_tokens == config.load(RECIPES / "sky_t1_32b.toml").plan.mean_tokens


def test_every_stage_that_uses_prompts_names_the_folder_beside_the_recipe(steps):
    found = steps()
    using = [step for step in found.values() if hasattr(step.args, "prompts")]
    assert {step.name for step in using} == {"label", "generate", "rewrite", "as_published"}
    for step in using:
        assert step.args.prompts == "launch/recipes/prompts"
        assert Prompts(step.args.prompts).versions("") == Prompts().versions("")
    link = RECIPES / "prompts"
    assert link.is_symlink() and not link.readlink().is_absolute() and link.resolve() == OURS.resolve()


def test_another_folder_of_prompts_can_be_set(steps, tmp_path):
    (tmp_path / "teacher.math.txt").write_text("Find the answer, and box it.\n\n{prompt}")
    found = steps(f"generate.prompts={tmp_path}")
    own = Prompts(found["generate"].args.prompts)
    assert own.render("teacher.math", prompt="1+1?") == "Find the answer, and box it.\n\n1+1?"
    assert found["rewrite"].args.prompts == "launch/recipes/prompts"


def test_prompts_are_an_instruction_and_then_the_problem():
    for path in OURS.glob("teacher.*.txt"):
        text = path.read_text(encoding="utf-8")
        if path.stem != "teacher.system":
            instruction, problem, rest = re.fullmatch(r"(?s)(.+?)\n\n(\{prompt\})(.*)", text.strip()).groups()
            assert problem and ("\\boxed{}" in instruction or "code block" in instruction), path.stem
            assert rest in ("", "\n\nGiven code:\n{starter}"), path.stem


def test_the_training_prompt_asks_for_two_sections_and_names_the_four_tags():
    training, teacher = (Prompts().render(name) for name in ("train.system", "teacher.system"))
    places = [training.index(tag) for tag in TAGS]
    assert places == sorted(places) and len(TAGS) == 4 and training != teacher
    assert not any(tag in teacher for tag in TAGS)
    for name in ("rewrite.code", "rewrite.prose"):
        text = Prompts().render(name, prompt="P", trace="T")
        assert [text.index(tag) for tag in TAGS] == sorted(text.index(tag) for tag in TAGS)
        assert "almost word for word" in text


def test_the_evaluation_has_the_published_tasks():
    settings = read(RECIPES / "eval_sky_t1.toml", {}, [])
    assert [task.name for task in settings.task] == ["math500", "aime24", "gpqa_diamond", "livecodebench"]
    code = settings.task[-1]
    assert code.version == "release_v2" and task_of("livecodebench").versions["release_v2"].problems == 511
    assert sum(count for count, _ in LIVECODEBENCH.values()) == 511
    mean = sum(count * length for count, length in LIVECODEBENCH.values()) / 511
    work = settings.plan.work
    assert work["livecodebench"].completion_tokens == round(mean)
    lengths = {name: work[name].completion_tokens for name in ("math500", "aime24", "gpqa_diamond")}
    assert lengths == {"math500": 2124, "aime24": 6881, "gpqa_diamond": 3503}

"""`skytrain plan` of recipes of preparation and evaluation."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from skytrain import cli
from skytrain.errors import UserError
from skytrain.plan import stages

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "launch" / "recipes"
DATA, EVALUATION = str(RECIPES / "prep" / "sky_t1.toml"), str(RECIPES / "eval_sky_t1.toml")
STAGES = """
folder = "a"
[[stage]]
do = "import"
inputs = ["nowhere.jsonl"]
[[stage]]
do = "generate"
model = "teacher"
in_flight = 64
[[stage]]
do = "grade"
"""
PLAN = """
[plan]
model = "qwen2.5-7b"
gpus = 2
cores = 10
[plan.work.generate]
requests = 1000
completion_tokens = 500
[plan.work.grade]
answers = 3490
programs = 100
tests = 4
"""


@pytest.fixture(autouse=True)
def no_rows_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


def plan(*words: object) -> None:
    parsed = cli.parse(["plan", *map(str, words)])
    parsed.run(parsed)


def as_json(capsys, *words: object) -> dict:
    plan(*words, "--json")
    return json.loads(capsys.readouterr().out)


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_of_one_s_own(tmp_path, capsys):
    found = as_json(capsys, write(tmp_path, STAGES + PLAN), "--price", "2")
    by_name = {stage["name"]: stage for stage in found["stages"]}
    assert by_name["import"]["hours"] is None and by_name["import"]["money"] is None
    asked, graded = by_name["generate"], by_name["grade"]
    assert (asked["requests"], asked["completion_tokens"], asked["batch"]) == (1000, 500_000, 32)
    assert asked["hours"] * 3600 == pytest.approx(500_000 / asked["tokens_per_s"])
    assert graded["program_runs"] == 400
    seconds = (3490 / stages.ANSWERS_A_CORE_S + 400 / stages.PROGRAMS_A_CORE_S) / 10
    assert graded["hours"] == pytest.approx(seconds / 3600)
    assert found["hours"] == pytest.approx(asked["hours"] + graded["hours"])
    assert found["money"] == pytest.approx(found["hours"] * 2 * 2)


def test_options_and_settings_take_the_place_of_the_recipe_s(capsys):
    one = as_json(capsys, DATA)
    two = as_json(capsys, DATA, "--gpus", "16", "--gpu", "h200-141gb", "--price", "1", "plan.tensor_parallel=2")
    assert (two["gpus"], two["gpu"], two["tensor_parallel"]) == (16, "h200-141gb", 2)
    assert two["hours"] < one["hours"] and two["money"] == pytest.approx(two["hours"] * 16)
    half = as_json(capsys, DATA, "plan.work.rewrite={requests=20000,prompt_tokens=5200,completion_tokens=4800}")
    fewer = as_json(capsys, DATA, "plan.work.rewrite.requests=20000")
    assert half == fewer and fewer["hours"] < one["hours"]
    busy = as_json(capsys, DATA, "generate.in_flight=64")
    assert {stage["name"]: stage.get("batch") for stage in busy["stages"]}["generate"] == 32


def test_an_evaluation_asks_its_problems_and_samples(capsys):
    found = {stage["name"]: stage for stage in as_json(capsys, EVALUATION)["stages"]}
    asked = {name: stage["requests"] for name, stage in found.items()}
    assert asked == {"math500": 4000, "aime24": 240, "gpqa_diamond": 1584, "livecodebench": 8 * 511}
    for stage in found.values():
        assert stage["requests"] in (stage["answers"], stage["program_runs"] / 20)


def test_tables_are_told_on_a_console(capsys):
    plan(DATA)
    told = capsys.readouterr().out
    for part in ("2 replica(s) of 4", "ASSUMED, not measured", "40,791", "277,320 runs", "small", "all"):
        assert part in told
    assert "answers at a time" in told and all(len(line) <= 170 for line in told.splitlines())


@pytest.mark.parametrize("recipe", [DATA, EVALUATION])
def test_torch_is_not_imported_for_it(recipe):
    code = "import sys; from skytrain.cli import parse; args = parse(sys.argv[1:]); args.run(args)"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, "plan", recipe], check=True, timeout=60, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("text, words, told", [
    (STAGES, [], "plan.work.generate: is missing"),
    (STAGES + PLAN.replace("gpus", "gpu_count"), [], "unknown field `gpu_count`"),
    (STAGES + PLAN.replace("gpus = 2", "gpus = 0"), [], "plan.gpus: Expected `int` >= 1"),
    (STAGES + PLAN.replace("work.grade", "work.grading"), [], "plan.work.grading: the recipe has no such stage"),
    (STAGES + PLAN.replace("work.grade", "work.import"), [], "neither asks a model nor grades"),
    (STAGES + PLAN.replace("requests = 1000", ""), [], "needs requests and completion_tokens"),
    (STAGES + PLAN.replace('"qwen2.5-7b"', '"gpt-5"'), [], "model 'gpt-5': unknown"),
    (STAGES + PLAN.replace('model = "qwen2.5-7b"', ""), [], "plan.model is missing"),
    (STAGES.replace("in_flight = 64", "in_flight = 'x'") + PLAN, [], "in_flight must be a whole number"),
    (STAGES.replace('do = "grade"', 'do = "grades"'), [], "do must be one of label"),
    ("plan = 3\n" + STAGES, [], "plan: Expected `object`"),
    ("plan = 3\n" + STAGES, ["plan.gpus=4"], "plan.gpus=4: no table"),
    (STAGES + PLAN, ["plan.work.generate.requests.x=4"], "no table of .* is named so"),
    (STAGES + PLAN, ["filter.x=1"], "no stage of .* is named 'filter'"),
    (STAGES + PLAN, ["generate.samples=4"], "changes how much is asked; give plan.work.generate.requests too"),
    (STAGES + PLAN, ["generate.max_tokens=4"], "no answer of stage 'generate' has more than its max_tokens, 4"),
    (STAGES + PLAN, ["plan.work.generate.prompt_tokens=40000"], "and qwen2.5-7b holds 32,768; give fewer tokens"),
    (STAGES + PLAN, ["--gpus", "0"], "--gpus 0: must be at least 1"),
    (STAGES + PLAN, ["--price", "-1"], "--price -1.0: must be a finite number"),
    (STAGES + PLAN, ["--data", "x"], "--data: is of a recipe of training"),
    (STAGES + PLAN, ["--trace"], "--trace: is of a recipe of training"),
    (STAGES + PLAN, ["--gpu", "x"], "gpu 'x': not in the hardware table"),
    ("model = 'm'\n[[task]]\nname = 'aime24'", [], "plan.work.aime24: is missing"),
    ("model = 'm'\n[[task]]\nname = 'aime24'\n[plan.work.amc]\nrequests = 1", [], "plan.work.amc: the recipe has no"),
    ("model = 'm'\n[[task]]\nname = 'aime24'\n[plan]\ncores = 'x'", [], "plan.cores: Expected `int`"),
    ("model = 'm'\n[[task]]\nname = 'mine'\n[plan.work.mine]\ncompletion_tokens = 9", [], "needs requests and"),
    ("model = 'm'\n[[task]]\nname = 'aime24'", ["samples=4"], "takes no settings here"),
])  # fmt: skip
def test_what_cannot_be_planned_is_told_in_one_line(tmp_path, text, words, told):
    with pytest.raises(UserError, match=told) as error:
        plan(write(tmp_path, text), *words)
    assert "\n" not in str(error.value)


def test_more_samples_are_planned_with_their_requests(tmp_path, capsys):
    plan(write(tmp_path, STAGES + PLAN), "generate.samples=4", "plan.work.generate.requests=4000")
    assert "4,000" in capsys.readouterr().out


def test_grading_rates_are_the_measured_ones():
    with (ROOT / "bench" / "results" / "grading.csv").open(newline="", encoding="utf-8") as file:
        medians = {row["metric"]: row for row in csv.DictReader(file) if row["metric"].endswith(", median")}
    cores = {int(row["machine"].split(", ")[1].split()[0]) for row in medians.values()}
    rates = [float(medians[f"{name} a second, median"]["value"]) for name in ("math verdicts", "sandboxed programs")]
    assert cores == {2}
    assert [rate / 2 for rate in rates] == [stages.ANSWERS_A_CORE_S, stages.PROGRAMS_A_CORE_S]


def test_a_run_checks_the_plan_and_reads_none_of_it(tmp_path):
    from skytrain.prep.recipe import read_stages

    assert read_stages(write(tmp_path, STAGES + PLAN), [])[2].gpus == 2
    with pytest.raises(UserError, match="unknown field `x`"):
        read_stages(write(tmp_path, STAGES + PLAN + "x = 1"), [])

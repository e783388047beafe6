"""Asking servers that fail in every way that they do: each sample is answered, logged and asked for once."""

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import commands
import pytest
from ranks import free_port
from teacher import Teacher, until

from skytrain.errors import UserError
from skytrain.prep import asking, client
from skytrain.prep.asking import Model, Sampling
from skytrain.prep.client import Asking
from skytrain.prep.generate import generate
from skytrain.prep.prompts import Prompts
from skytrain.prep.stage import read_finished


def problems(folder, count, **more):
    path = folder / "problems.jsonl"
    rows = [
        {"id": f"p{i}", "source": "s", "domain": "math", "prompt": f"What is {i}+1?", "gold": f"{i + 1}", **more}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def model(*urls, temperature=0.7, prompts=None, **asking):
    on_unanswered, seed, prices = (
        asking.pop(name, default) for name, default in (("on_unanswered", "error"), ("seed", 0), ("prices", None))
    )
    return Model(
        "m",
        Sampling(temperature, 1.0, 100, {}),
        Asking(list(urls), **asking),
        Prompts(prompts),
        seed,
        prices,
        on_unanswered,
    )


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def account(path):
    return read_finished(path).account


def command(*words):
    # A shell's background jobs ignore the signal, and so would what they start.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom skytrain.cli import main; main()"
    )
    return [sys.executable, "-P", "-c", code, "prep", *map(str, words)]


def test_a_server_that_fails_in_every_way_is_asked_until_it_answers(tmp_path):
    faults = {"500": 0.06, "503": 0.02, "429": 0.02, "429-after": 0.03, "408": 0.02}
    faults |= {"reset": 0.06, "malformed": 0.04, "no-choices": 0.02, "abort": 0.02}
    with Teacher(faults=faults, retry_after=0.05) as teacher:
        generate(
            [problems(tmp_path, 300)], tmp_path / "out.jsonl", model(teacher.url, tries=30, in_flight=64), samples=2
        )
        counts = teacher.counts()
    found = rows(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == [f"p{i}#{sample}" for i in range(300) for sample in range(2)]
    # Every answer is one that the server gave as such; nothing of its faults became a row.
    assert all(row["answer"].startswith("I think about ") and row["answer"].endswith("}") for row in found)
    assert counts["different"] == 600 and counts["answered"] == 600 and counts["twice"] == 0
    assert counts["asked"] > 700
    assert account(tmp_path / "out.jsonl").kept == 600


@pytest.mark.parametrize("kind", ["500", "503", "429", "429-after", "408", "reset", "malformed", "no-choices", "abort"])
def test_each_fault_alone_is_asked_again(tmp_path, kind):
    with Teacher(faults={kind: 1.0}, only_first=True, retry_after=0.3) as teacher:
        since = time.monotonic()
        generate([problems(tmp_path, 3)], tmp_path / "out.jsonl", model(teacher.url))
        assert teacher.counts()["asked"] == 6
    assert len(rows(tmp_path / "out.jsonl")) == 3
    assert kind != "429-after" or time.monotonic() - since >= 0.3


def test_what_the_server_refuses_is_asked_once_and_counted(tmp_path):
    with Teacher(faults={"400": 0.3}) as teacher:
        generate([problems(tmp_path, 40)], tmp_path / "out.jsonl", model(teacher.url))
        assert teacher.counts()["asked"] == 40
    found = account(tmp_path / "out.jsonl")
    assert found.kept + found.dropped["refused"] == 40 and 0 < found.dropped["refused"] < 40
    dropped = rows(tmp_path / "out.dropped.jsonl")
    assert all("told to say 400" in row["detail"] for row in dropped)


@pytest.mark.parametrize("kind, words", [("400", "so were the first 20"), ("401", "look at an API key")])
def test_what_would_fail_for_every_request_ends_the_stage(tmp_path, kind, words):
    with Teacher(faults={kind: 1.0}) as teacher:
        with pytest.raises(UserError, match=words):
            generate([problems(tmp_path, 400)], tmp_path / "out.jsonl", model(teacher.url, in_flight=10))
        assert teacher.counts()["asked"] <= 40
    assert not (tmp_path / "out.jsonl").exists()


def test_requests_that_stay_unanswered_end_the_stage_or_are_dropped(tmp_path, capsys):
    path = problems(tmp_path, 20)
    with Teacher(faults={"500": 0.5}) as teacher:
        with pytest.raises(UserError, match=r"requests stayed unanswered .*told to say 500.*run again"):
            generate([path], tmp_path / "out.jsonl", model(teacher.url, tries=1))
        answered = teacher.counts()["answered"]
        assert 0 < answered < 20
        generate([path], tmp_path / "other.jsonl", model(teacher.url, tries=1, on_unanswered="drop"))
        found = account(tmp_path / "other.jsonl")
        assert found.dropped["unanswered"] == 20 - found.kept > 0
    with Teacher() as teacher:
        generate([path], tmp_path / "out.jsonl", model(teacher.url))
        assert teacher.counts()["asked"] == 20 - answered
    assert account(tmp_path / "out.jsonl").kept == 20


def test_a_server_that_dies_is_left_out_and_taken_back(tmp_path, capfd):
    port = free_port()
    with Teacher(delay=0.05) as steady:
        short_lived = Teacher(port=port, delay=0.05)
        short_lived.__enter__()
        worker = threading.Thread(
            target=generate,
            args=([problems(tmp_path, 1500)], tmp_path / "out.jsonl", model(steady.url, short_lived.url, in_flight=16)),
        )
        worker.start()
        until(lambda: short_lived.counts()["answered"] > 50)
        short_lived.kill()
        until(lambda: "left out" in capfd.readouterr().err)
        with Teacher(port=port, delay=0.05) as again:
            until(lambda: again.counts()["answered"] > 50)
            worker.join(60)
        assert not worker.is_alive()
    assert "taken back" in capfd.readouterr().err
    assert account(tmp_path / "out.jsonl").kept == 1500


def test_servers_that_are_all_gone_end_the_stage_with_what_was_answered(tmp_path):
    path = problems(tmp_path, 500)
    with Teacher(delay=0.05) as teacher:
        ask = model(teacher.url, in_flight=8, patience=1.0)
        killer = threading.Thread(target=lambda: (until(lambda: teacher.counts()["answered"] > 30), teacher.kill()))
        killer.start()
        with pytest.raises(UserError, match=r"no server has answered for 1 s .*127.0.0.1"):
            generate([path], tmp_path / "out.jsonl", ask)
        killer.join()
    saved = len(rows(tmp_path / "out.answers.jsonl"))
    assert saved > 30
    with Teacher() as teacher:
        generate([path], tmp_path / "out.jsonl", model(teacher.url))
        assert teacher.counts()["asked"] == 500 - saved


def test_a_slow_answer_is_waited_for_and_asked_for_once(tmp_path, monkeypatch):
    """D53: no limit but for the connection, which must not be taken for one."""
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.5)
    with Teacher(delay=3.0) as teacher:
        generate([problems(tmp_path, 3)], tmp_path / "out.jsonl", model(teacher.url))
        assert teacher.counts()["asked"] == 3
    assert len(rows(tmp_path / "out.jsonl")) == 3


def test_a_request_that_is_given_up_is_cancelled(tmp_path):
    with Teacher(delay=30.0) as teacher:
        with pytest.raises(UserError, match=r"no answer in 0.3 s"):
            generate([problems(tmp_path, 4)], tmp_path / "out.jsonl", model(teacher.url, timeout=0.3, tries=2))
        until(lambda: teacher.counts()["cancelled"] == 8)


def test_256_are_in_flight(tmp_path):
    with Teacher(delay=0.3) as teacher:
        generate([problems(tmp_path, 600)], tmp_path / "out.jsonl", model(teacher.url))
        assert teacher.counts()["most"] == 256


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_next_run_asks_for_the_rest(tmp_path, number):
    """D47."""
    path, out = problems(tmp_path, 400), tmp_path / "out.jsonl"
    with Teacher(delay=0.1) as teacher:
        words = command("generate", path, "--out", out, "--server", teacher.url, "--model", "m", "--in-flight", 20)
        process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        until(lambda: teacher.counts()["answered"] >= 200)
        process.send_signal(number)
        _, told = process.communicate(timeout=30)
        assert process.returncode == 130, told
        assert "answers are saved in" in told and "Traceback" not in told
        assert not out.exists() and not list(tmp_path.glob("*.partial"))
        saved = rows(tmp_path / "out.answers.jsonl")
        # Up to all 20 that were in flight may have been answered and not yet read.
        assert len(saved) >= 200 - 20
        # The server works on none of those that were given up.
        until(lambda: teacher.counts()["answered"] + teacher.counts()["cancelled"] == teacher.counts()["asked"])
    with Teacher(delay=0.1) as teacher:
        words[words.index("--server") + 1] = teacher.url
        subprocess.run(words, check=True, capture_output=True, timeout=60)
        counts = teacher.counts()
        assert counts["asked"] == 400 - len(saved)
        assert counts["most"] == 20, "full concurrency from the start"
    assert len(rows(out)) == 400


def test_two_writers_are_refused(tmp_path):
    path, out = problems(tmp_path, 50), tmp_path / "out.jsonl"
    with Teacher(delay=0.5) as teacher:
        words = ["prep", "generate", path, "--out", out, "--server", teacher.url, "--model", "m", "--in-flight", 10]
        first = commands.start(*words)
        until(lambda: teacher.counts()["answered"] > 0)
        second = commands.run(*words)
        assert second.returncode == 2 and "another process writes it" in second.stderr
        first.join(30)
        assert first.exitcode == 0
        assert teacher.counts()["asked"] == 50


def test_kill_9_at_20_moments_of_2000_samples(tmp_path):
    """After the last resume there are exactly 2,000 samples, and none was asked for again once it was logged."""
    path, out, log = problems(tmp_path, 1000), tmp_path / "out.jsonl", tmp_path / "out.answers.jsonl"
    choose = random.Random(0)
    lines = 0
    with Teacher(delay=0.03, faults={"500": 0.02, "reset": 0.02}) as teacher:
        words = ["prep", "generate", path, "--out", out, "--samples", 2, "--in-flight", 32]
        words += ["--server", teacher.url, "--model", "m"]
        for _ in range(20):
            process = commands.start(*words)
            asked = teacher.counts()["asked"]
            until(lambda: teacher.counts()["asked"] > asked or process.exitcode is not None)
            time.sleep(choose.uniform(0.0, 0.12))
            process.kill()
            process.join()
            kept = log.read_bytes().count(b"\n")
            assert kept >= lines
            lines = kept
        assert 0 < lines < 2000, "the kills came while there was work"
        logged = {
            json.loads(line)["key"] for line in log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")
        }
        before = teacher.counts()
        assert commands.run(*words).returncode == 0
        after = teacher.counts()
    found = rows(out)
    assert len(found) == 2000
    assert len({(row["problem"], row["sample"]) for row in found}) == 2000
    keys = Counter(json.loads(line)["key"] for line in log.read_bytes().splitlines())
    assert len(keys) == 2000 and set(keys.values()) == {1}, "none was asked for that had been answered and logged"
    assert logged < set(keys)
    assert after["answered"] - before["answered"] == 2000 - len(logged)
    assert account(out).kept == 2000


def test_half_a_line_is_cut_off_and_a_spoilt_one_is_told(tmp_path):
    path, out, log = problems(tmp_path, 5), tmp_path / "out.jsonl", tmp_path / "out.answers.jsonl"
    with Teacher() as teacher:
        generate([path], out, model(teacher.url))
        whole = log.read_bytes()
        (tmp_path / "out.ledger.json").unlink()
        log.write_bytes(whole[:-30])
        generate([path], out, model(teacher.url))
        assert teacher.counts()["asked"] == 6
        assert len(rows(log)) == 5
        (tmp_path / "out.ledger.json").unlink()
        log.write_bytes(b"nonsense\n" + whole)
        with pytest.raises(UserError, match=r"out.answers.jsonl:1: no answer can be read"):
            generate([path], out, model(teacher.url))


def test_a_finished_stage_is_not_run_again_and_other_settings_are_refused(tmp_path, capsys):
    path, out = problems(tmp_path, 5), tmp_path / "out.jsonl"
    with Teacher() as teacher:
        generate([path], out, model(teacher.url))
        content = out.read_bytes()
        generate([path], out, model("http://127.0.0.1:1/v1"))
        assert "(done before)" in capsys.readouterr().out
        with pytest.raises(UserError, match=r"other settings \(seed\)"):
            generate([path], out, model(teacher.url, seed=1))
        generate([path], out, model(teacher.url, seed=1), overwrite=True)
        assert out.read_bytes() != content
        assert teacher.counts()["different"] == 10


def test_seeds_differ_and_equal_samples_are_told(tmp_path, capsys):
    """D51."""
    with Teacher() as teacher:
        generate([problems(tmp_path, 3)], tmp_path / "out.jsonl", model(teacher.url), samples=4)
    found = rows(tmp_path / "out.jsonl")
    assert len({row["provenance"]["generate"]["seed"] for row in found}) == 12
    assert "warning" not in capsys.readouterr().err
    with Teacher(same=True) as teacher:
        generate([problems(tmp_path, 3)], tmp_path / "same.jsonl", model(teacher.url), samples=4)
        assert "9 samples equal another of the same problem" in capsys.readouterr().err
        assert account(tmp_path / "same.jsonl").notes["identical samples"] == 9
        generate([problems(tmp_path, 3)], tmp_path / "greedy.jsonl", model(teacher.url, temperature=0.0), samples=2)
        assert "warning" not in capsys.readouterr().err


THOUGHTS = [
    ({"content": "<think>r</think>\n\nAns"}, "r", "Ans"),
    ({"content": "r</think>\n\nAns"}, "r", "Ans"),
    ({"content": "<think>\nr\n</think>\nAns"}, "r", "Ans"),
    ({"content": "Ans", "reasoning_content": "r"}, "r", "Ans"),
    ({"content": "Ans", "reasoning": "r"}, "r", "Ans"),
    ({"content": "</think>\n\nAns", "reasoning": "r"}, "r", "Ans"),
    ({"content": "\n\nAns", "reasoning": "r", "reasoning_content": "r"}, "r", "Ans"),
    ({"content": "Ans", "reasoning": None}, None, "Ans"),
    ({"content": "<think>\n\n</think>\n\nAns"}, None, "Ans"),
    ({"content": "Ans"}, None, "Ans"),
]


@pytest.mark.parametrize("message, reasoning, answer", THOUGHTS)
def test_thoughts_are_told_from_the_answer(tmp_path, message, reasoning, answer):
    """D55."""
    with Teacher(book={"What": message}) as teacher:
        generate([problems(tmp_path, 1)], tmp_path / "out.jsonl", model(teacher.url))
    (row,) = rows(tmp_path / "out.jsonl")
    assert (row["reasoning"], row["answer"]) == (reasoning, answer)


LOST = [
    ({"content": None, "reasoning": "so it is \\boxed{1}", "finish_reason": "length"}, "unfinished"),
    ({"content": "half of \\boxed{1}", "finish_reason": "length"}, "unfinished"),
    ({"content": None, "reasoning": "so it is \\boxed{1}"}, "empty"),
    ({"content": None}, "empty"),
    ({"content": "<think>so it is \\boxed{1}"}, "empty"),
    ({"content": "Ans", "finish_reason": "content_filter"}, "filtered"),
    ({"content": "Ans", "finish_reason": None}, "unfinished"),
    ({"content": None, "tool_calls": [{}], "finish_reason": "tool_calls"}, "unfinished"),
]


@pytest.mark.parametrize("message, reason", LOST)
def test_what_has_no_whole_answer_is_dropped_under_its_name(tmp_path, message, reason):
    """D49: thoughts are never an answer, and a cut one is none. It was paid for, so that it is not asked for again."""
    with Teacher(book={"What": message}) as teacher:
        generate([problems(tmp_path, 1)], tmp_path / "out.jsonl", model(teacher.url))
        assert teacher.counts()["asked"] == 1
    assert rows(tmp_path / "out.jsonl") == []
    assert account(tmp_path / "out.jsonl").dropped == {reason: 1}
    assert len(rows(tmp_path / "out.answers.jsonl")) == 1


def test_tokens_and_money_are_counted_over_all_runs(tmp_path):
    path, out = problems(tmp_path, 10), tmp_path / "out.jsonl"
    with Teacher(faults={"500": 0.4}) as teacher, pytest.raises(UserError):
        generate([path], out, model(teacher.url, tries=1, prices=(1.0, 10.0)))
    with Teacher() as teacher:
        generate([path], out, model(teacher.url, prices=(1.0, 10.0)))
    notes = account(out).notes
    assert notes["completion tokens"] == 100 and notes["prompt tokens"] > 0
    assert notes["USD"] == pytest.approx((notes["prompt tokens"] + 10 * 100) / 1e6)


def test_a_row_tells_how_it_was_made(tmp_path):
    with Teacher() as teacher:
        generate([problems(tmp_path, 1, provenance={"file": "x"})], tmp_path / "out.jsonl", model(teacher.url))
        body = teacher.counts()["last"]["body"]
    (row,) = rows(tmp_path / "out.jsonl")
    made = row["provenance"]["generate"]
    assert row["provenance"]["file"] == "x"
    assert made["model"] == "m" and made["sampling"] == {"temperature": 0.7, "top_p": 1.0, "max_tokens": 100}
    assert made["prompt"].startswith("teacher.math@") and made["engine"] == "teacher-1"
    assert body["seed"] == made["seed"] and body["temperature"] == 0.7
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert row["asked"] == body["messages"][1]["content"] and "What is 0+1?" in row["asked"]


def test_the_key_is_sent_and_written_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    with Teacher() as teacher:
        generate([problems(tmp_path, 1)], tmp_path / "out.jsonl", model(teacher.url))
        assert teacher.counts()["last"]["authorization"] == "Bearer sk-secret-1"
    assert not any(b"sk-secret" in path.read_bytes() for path in tmp_path.iterdir() if path.is_file())


def test_prompts_are_replaced_by_a_folder(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "teacher.math.txt").write_text("Mine: {prompt} {starter}", encoding="utf-8")
    with Teacher() as teacher:
        generate([problems(tmp_path, 1)], tmp_path / "a.jsonl", model(teacher.url))
        path = tmp_path / "braces.jsonl"
        path.write_text(
            json.dumps({"id": "1", "source": "s", "domain": "math", "prompt": "x {prompt} {trace} {", "gold": "1"})
            + "\n"
        )
        generate([path], tmp_path / "b.jsonl", model(teacher.url, prompts=folder))
    (ours,), (mine,) = rows(tmp_path / "a.jsonl"), rows(tmp_path / "b.jsonl")
    assert mine["asked"] == "Mine: x {prompt} {trace} { "
    assert ours["provenance"]["generate"]["prompt"] != mine["provenance"]["generate"]["prompt"]
    (folder / "teacher.math.txt").write_text("no field", encoding="utf-8")
    with pytest.raises(UserError, match=r"the field \{prompt\} is missing"):
        Prompts(folder)
    (folder / "techer.math.txt").write_text("{prompt}", encoding="utf-8")
    (folder / "teacher.math.txt").unlink()
    with pytest.raises(UserError, match="no prompt has this name"):
        Prompts(folder)


BAD = [
    (["--server", "127.0.0.1:8000"], "must be an address"),
    ([], "name at least one"),
    (["--server", "http://h/v1", "--in-flight", "0"], "--in-flight 0: must be above 0"),
    (["--server", "http://h/v1", "--top-p", "0"], "--top-p 0.0"),
    (["--server", "http://h/v1", "--samples", "0"], "--samples 0"),
    (["--server", "http://h/v1", "--extra", "seed=1"], "is not set here"),
    (["--server", "http://h/v1", "--extra", "top_k"], "must be KEY=JSON"),
    (["--server", "http://h/v1", "--max-tokens", "0"], "--max-tokens 0"),
    (["--server", "http://h/v1", "--extra", "a=NaN"], "--model and --extra: cannot be sent"),
    (["--server", "http://h/v1", "--extra", 'a="\\ud800"'], "--model and --extra: cannot be sent"),
    (["--server", "http://h/v1", "--price", "nan", "2"], "--price nan 2.0: must be 0 or more"),
    (["--server", "http://h/v1", "--price", "-1", "2"], "--price -1.0 2.0: must be 0 or more"),
    (["--server", "http://h/v1", "--prompts", "nowhere"], "cannot be read"),
    (["--server", "http://h/v1", "--timeout", "-1"], "--timeout -1.0"),
]


@pytest.mark.parametrize("words, message", BAD)
def test_bad_settings_are_one_line(tmp_path, words, message):
    from skytrain import cli

    args = cli.parse(
        ["prep", "generate", str(problems(tmp_path, 1)), "--out", str(tmp_path / "o.jsonl"), "--model", "m", *words]
    )
    with pytest.raises(UserError) as error:
        args.run(args)
    assert message in str(error.value)


def test_rows_that_are_no_problems_are_told_or_dropped(tmp_path):
    path = tmp_path / "problems.jsonl"
    good = {"id": "1", "source": "s", "domain": "math", "prompt": "p", "gold": "1"}
    bad = [
        {**good, "domain": "maths"},
        {**good, "prompt": " "},
        {**good, "id": 7},
        {**good, "gold": 4},
        [1],
        {**good, "difficulty": "9"},
    ]
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [good, *bad]) + '{"id": "\\ud800"}\nnonsense\n', encoding="utf-8"
    )
    with Teacher() as teacher:
        with pytest.raises(UserError, match=r"problems.jsonl:2: 'domain' must be one of"):
            generate([path], tmp_path / "out.jsonl", model(teacher.url))
        generate([path], tmp_path / "out.jsonl", model(teacher.url), samples=3, on_error="drop")
    found = account(tmp_path / "out.jsonl")
    assert (found.read, found.kept, found.dropped) == (9, 3, {"malformed": 24})


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    with Teacher(book={"What": "bad \ud800 answer"}) as teacher:
        generate([problems(tmp_path, 2)], tmp_path / "out.jsonl", model(teacher.url))
    assert [row["answer"] for row in rows(tmp_path / "out.jsonl")] == ["bad \ufffd answer"] * 2


def test_lines_tell_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(asking, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(asking, "LINE_SECONDS", 0.05)
    with Teacher(delay=0.2) as teacher:
        generate([problems(tmp_path, 20)], tmp_path / "out.jsonl", model(teacher.url, in_flight=5, prices=(1.0, 1.0)))
    told = capsys.readouterr().err.splitlines()
    assert any(
        re.match(r"generate: \d+ answered, 5 in flight, .* 1 of 1 servers, 0.00 USD by this run", line) for line in told
    )


def test_two_rows_of_one_id_are_one(tmp_path):
    path = problems(tmp_path, 3)
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    with Teacher() as teacher:
        generate([path], tmp_path / "out.jsonl", model(teacher.url), samples=2)
        assert teacher.counts()["asked"] == 6
    found = account(tmp_path / "out.jsonl")
    assert (found.read, found.kept, found.dropped) == (4, 6, {"duplicate_id": 2})


def test_a_line_of_the_log_without_an_answer_is_told(tmp_path):
    (tmp_path / "out.answers.jsonl").write_text('{"key": "a", "status": "finished"}\n')
    with pytest.raises(UserError, match=r"out.answers.jsonl:1: no answer can be read here"):
        generate([problems(tmp_path, 1)], tmp_path / "out.jsonl", model("http://127.0.0.1:1/v1"))


def test_a_key_that_is_none_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1\nHost: x")
    with pytest.raises(UserError, match="OPENAI_API_KEY: holds more than"):
        generate([problems(tmp_path, 1)], tmp_path / "out.jsonl", model("http://127.0.0.1:1/v1"))

"""The grade stage: one verdict keeps a row, and every other one is a reason of its own."""

import json
import signal
import subprocess
import sys
import time

import pytest
from teacher import until

from skytrain.errors import UserError
from skytrain.prep import grading
from skytrain.prep.grading import grade
from skytrain.prep.sections import tagged, think
from skytrain.prep.stage import read_finished


def write(path, *found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def reply(end, **more):
    row = {"id": "1", "source": "s", "domain": "math", "prompt": "12+30?", "gold": "42", "form": "tags"}
    talk = [{"role": "user", "content": "12+30?"}, {"role": "assistant", "content": tagged("I think of 42.", end)}]
    return {**row, "messages": talk, "provenance": {"a": 1}, **more}


def said(text, **more):
    return {
        **reply("x", **more),
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}],
    }


def program(code, tests, **more):
    return reply(f"Adding.\n```python3 \n{code}\n```\n", domain="code", gold=None, tests=tests, **more)


ADD = {"inputs": ["3 4\n", "5 6\n"], "outputs": ["7\n", "11\n"], "fn_name": None}
RIGHT = "print(sum(map(int, input().split())))"
CHECK = {"check": "def check(candidate):\n    assert candidate(2) == 4\n", "entry_point": "double"}

VERDICTS = [
    (reply("So it is \\boxed{42}."), "correct"),
    (reply("So it is \\boxed{42.0}."), "correct"),
    (reply("So it is \\boxed{41}."), "wrong"),
    (reply("So it is \\boxed{4200}."), "wrong"),
    (reply("So it is 42."), "no_answer"),
    (reply("So it is \\boxed{42"), "no_answer"),
    (reply("\\boxed{42}", gold=""), "gold_unparseable"),
    (reply("\\boxed{B}", domain="choice", gold="B"), "correct"),
    (reply("A good start is \\boxed{C}", domain="choice", gold="A"), "wrong"),
    (reply("a dog \\boxed{a dog}", domain="other", gold="A dog"), "correct"),
    (reply("\\boxed{1 2\n3 4}", domain="other", gold="1 2\n3 4"), "correct"),
    (reply("\\boxed{1 2\n34}", domain="other", gold="1 2\n3 4"), "wrong"),
    (reply("\\boxed{12}", domain="other", gold="1 2"), "wrong"),
    (reply("\\boxed{b a}", domain="other", gold="a b"), "wrong"),
    (reply("\\boxed{pots}", domain="other", gold="stop"), "wrong"),
    (reply("\\boxed{A red  ball.}", domain="other", gold="the red ball"), "correct"),
    (reply("\\boxed{42.0}", domain="other", gold="42"), "correct"),
    (reply("It is 42.", domain="other", gold="42"), "no_answer"),
    (reply("\\boxed{42}", gold=None), "ungraded"),
    (reply("\\boxed{42}", solution="so \\boxed{42}"), "correct"),
    (reply("\\boxed{42}", solution="so \\boxed{43}"), "bad_reference"),
    (reply("\\boxed{41}", solution="so \\boxed{43}"), "wrong"),
    # Only the solution is graded: not the thoughts, and not a reply that lost its tags.
    (said("I think \\boxed{42}"), "no_tags"),
    (said(tagged("It is \\boxed{42}", "It is \\boxed{41}")), "wrong"),
    (said(tagged("It is \\boxed{41}", "It is \\boxed{42}")), "correct"),
    (said(tagged("a", "It is \\boxed{42}").removesuffix("<|end_of_solution|>")), "no_tags"),
    (said(think("It is \\boxed{41}", "It is \\boxed{42}"), form="think"), "correct"),
    (said("It is \\boxed{42}", form="think"), "no_tags"),
    (said(tagged("It is", "It is \\boxed{42}"), form="think"), "no_tags"),
    (program(RIGHT, ADD), "correct"),
    (program("print(7)", ADD), "wrong"),
    (program("def f(:\n  pass", ADD), "crash"),
    (program("raise ValueError", ADD), "crash"),
    (program("import sys; sys.exit(-2)", ADD), "crash"),
    (program(RIGHT, ADD, solution=RIGHT), "correct"),
    (program(RIGHT, ADD, solution="print(7)"), "bad_reference"),
    (program(RIGHT, ADD, solution=f"```python\n{RIGHT}\n```"), "correct"),
    (program(RIGHT, None), "ungraded"),
    (program(RIGHT, {"inputs": [], "outputs": [], "fn_name": None}), "no_tests"),
    (program(RIGHT, {"inputs": [["3 4"]], "outputs": ["7"], "fn_name": None}), "bad_tests"),
    (program(RIGHT, {"inputs": ["[1"], "outputs": ["7"], "fn_name": "f"}), "bad_tests"),
    (program(RIGHT, {"file": "nowhere.jsonl", "count": 1, "fn_name": None}), "bad_tests"),
    (program("def double(x): return 2 * x", CHECK), "correct"),
    (program("def double(x): return 3 * x", CHECK), "wrong"),
    (reply("It needs no code: \\boxed{42}", domain="code", gold=None, tests=ADD), "no_answer"),
    (reply(f"```cpp\n{RIGHT}\n```", domain="code", gold=None, tests=ADD), "no_answer"),
]


def test_every_verdict_has_its_row(tmp_path):
    numbered = [{**row, "id": f"{i}"} for i, (row, _) in enumerate(VERDICTS)]
    grade([write(tmp_path / "in.jsonl", *numbered)], tmp_path / "out.jsonl")
    kept = {row["id"]: row["verdict"] for row in rows(tmp_path / "out.jsonl")}
    dropped = {row["id"]: row["reason"] for row in rows(tmp_path / "out.dropped.jsonl")}
    found = {**kept, **dropped}
    assert found == {f"{i}": verdict for i, (_, verdict) in enumerate(VERDICTS)}
    # The weaker check decides nothing: right or wrong, its rows are kept, and say so.
    weak = {f"{i}" for i, (row, _) in enumerate(VERDICTS) if row.get("tests") is CHECK}
    assert {name for name, verdict in kept.items() if verdict != "correct"} <= weak <= kept.keys()
    strengths = {row["id"]: row["provenance"]["grade"]["strength"] for row in rows(tmp_path / "out.jsonl")}
    assert {name for name, strength in strengths.items() if strength == "weak"} == weak
    account = read_finished(tmp_path / "out.jsonl").account
    assert account.kept == len(kept) and account.read == len(VERDICTS)
    assert account.notes["wrong by the weaker check"] == 1
    assert all(row["provenance"]["a"] == 1 for row in rows(tmp_path / "out.jsonl"))


def test_what_was_dropped_says_which_answer_was_found(tmp_path):
    grade([write(tmp_path / "in.jsonl", reply("It is \\boxed{41}."))], tmp_path / "out.jsonl")
    assert rows(tmp_path / "out.dropped.jsonl")[0]["detail"] == "answer '41', gold '42'"


def test_rows_without_gold_are_kept_on_request(tmp_path):
    path = write(tmp_path / "in.jsonl", reply("\\boxed{42}", gold=None), reply("\\boxed{41}", id="2"))
    grade([path], tmp_path / "out.jsonl", ungraded="keep")
    assert [row["verdict"] for row in rows(tmp_path / "out.jsonl")] == ["ungraded"]


def test_each_row_is_graded_on_its_own_tests(tmp_path):
    """D43."""
    other = {"inputs": ["3 4\n"], "outputs": ["12\n"], "fn_name": None}
    product = "a, b = map(int, input().split())\nprint(a * b)"
    found = [
        program(RIGHT, ADD, id="a"),
        program(RIGHT, other, id="b"),
        program(product, other, id="c"),
        program(product, ADD, id="d"),
    ]
    grade([write(tmp_path / "in.jsonl", *found)], tmp_path / "out.jsonl", workers=4)
    assert [row["id"] for row in rows(tmp_path / "out.jsonl")] == ["a", "c"]


def test_tests_in_a_file_are_read_from_there(tmp_path):
    (tmp_path / "tests").mkdir()
    lines = "".join(json.dumps([text, out]) + "\n" for text, out in zip(ADD["inputs"], ADD["outputs"]))
    (tmp_path / "tests" / "a.jsonl").write_text(lines, encoding="utf-8")
    tests = {"file": "tests/a.jsonl", "count": 2, "fn_name": None}
    path = write(tmp_path / "in.jsonl", program(RIGHT, tests, id="a"), program("print(7)", tests, id="b"))
    (tmp_path / "made").mkdir()
    grade([path], tmp_path / "made" / "out.jsonl")
    (row,) = rows(tmp_path / "made" / "out.jsonl")
    assert row["id"] == "a" and row["tests"]["file"] == "../tests/a.jsonl"


def test_workers_work_at_the_same_time(tmp_path):
    """D45: programs that sleep take the wall time of one where there are as many workers as programs."""
    tests = {"inputs": ["3 4"], "outputs": ["7"], "fn_name": None}
    sleepy = [program(f"import time; time.sleep(0.7)  # {i}\n{RIGHT}", tests, id=f"{i}") for i in range(8)]
    path = write(tmp_path / "in.jsonl", *sleepy)
    seconds = []
    for workers in (1, 8):
        since = time.monotonic()
        grade([path], tmp_path / f"{workers}.jsonl", workers=workers)
        seconds.append(time.monotonic() - since)
        assert len(rows(tmp_path / f"{workers}.jsonl")) == 8
    assert seconds[0] > 8 * 0.7 and seconds[1] < seconds[0] / 2


def test_a_killed_run_goes_on_with_the_verdicts_it_had(tmp_path):
    slow = [program(f"import time; time.sleep(0.2)  # {i}\n{RIGHT}", ADD, id=f"{i}") for i in range(30)]
    path, out = write(tmp_path / "in.jsonl", *slow), tmp_path / "out.jsonl"
    code = "from skytrain.cli import main; main()"
    words = [sys.executable, "-P", "-c", code, "prep", "grade", str(path), "--out", str(out), "--workers", "1"]
    process = subprocess.Popen(words)
    log = tmp_path / "out.verdicts.jsonl"
    until(lambda: log.exists() and log.read_bytes().count(b"\n") >= 5)
    process.kill()
    process.wait()
    assert not out.exists()
    before = log.read_bytes()
    subprocess.run(words, check=True, timeout=120)
    assert log.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert log.read_bytes().count(b"\n") == 30 and len(rows(out)) == 30


def test_verdicts_are_asked_for_once_and_anew_where_the_grader_changed(tmp_path, monkeypatch):
    asked = []
    own = grading.grade_math
    monkeypatch.setattr(grading, "grade_math", lambda *args: asked.append(args) or own(*args))
    path = write(tmp_path / "in.jsonl", reply("\\boxed{42}"))
    grade([path], tmp_path / "out.jsonl")
    (tmp_path / "out.ledger.json").unlink()
    grade([path], tmp_path / "out.jsonl")
    assert len(asked) == 1
    monkeypatch.setattr(grading, "VERSION", grading.VERSION + 1)
    grade([path], tmp_path / "out.jsonl", overwrite=True)
    assert len(asked) == 2


def test_rows_that_cannot_be_graded_are_told(tmp_path):
    for broken, words in (
        ({**reply("x"), "messages": []}, "'messages' must be a list"),
        ({**reply("x"), "messages": [{"role": "user", "content": "x"}]}, "must be the assistant's"),
        ({**reply("x"), "form": None}, "'form' must be tags or think"),
        ({**reply("x"), "domain": "code", "tests": {"inputs": [1], "outputs": []}}, "two lists of one length"),
    ):
        with pytest.raises(UserError, match=words):
            grade([write(tmp_path / "in.jsonl", broken)], tmp_path / "out.jsonl")
    with pytest.raises(UserError, match="--workers 0"):
        grade([write(tmp_path / "in.jsonl", reply("x"))], tmp_path / "out.jsonl", workers=0)


def test_ctrl_c_does_not_wait_for_programs_that_never_end(tmp_path):
    found = [program(f"while True: pass  # {i}", ADD, id=f"{i}") for i in range(8)]
    path = write(tmp_path / "in.jsonl", *found)
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom skytrain.cli import main; main()"
    )
    words = [sys.executable, "-P", "-c", code, "prep", "grade", str(path), "--out", str(tmp_path / "out.jsonl")]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    until(lambda: (tmp_path / "out.verdicts.jsonl").exists())
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    since = time.monotonic()
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in told
    assert time.monotonic() - since < 5, "a program's deadline is 10 s"
    assert not (tmp_path / "out.jsonl").exists()

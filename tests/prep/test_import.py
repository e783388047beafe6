"""Published forms to problems. The fixtures have the fields and the encodings of the published files."""

import base64
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import types
import zlib
from datetime import datetime
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from skytrain import cli
from skytrain.errors import UserError
from skytrain.prep import encoded_tests, formats, stage
from skytrain.prep.formats import choice_gold
from skytrain.prep.importing import import_problems
from skytrain.prep.problems import Malformed

NUMINA = {
    "source": "amc_aime",
    "problem": "What is $1+1$?",
    "solution": "First \\boxed{3}, no: \\boxed{\\frac{4}{2}}.",
    "messages": [{"role": "user", "content": "What is $1+1$?"}],
}
MATH = {
    "problem": "Solve $x=1$.",
    "level": "Level 5",
    "type": "Algebra",
    "solution": "So $\\boxed{1}$.",
}
APPS = {
    "problem_id": 4424,
    "question": "Add two numbers.",
    "solutions": json.dumps(["print(sum(map(int, input().split())))", "other"]),
    "input_output": json.dumps({"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}),
    "difficulty": "interview",
    "url": "https://example.org/4424",
    "starter_code": "",
}
TACO = {
    "question": "Double a number.",
    "solutions": json.dumps([]),
    "starter_code": "def double(n):\n\t",
    "input_output": json.dumps({"fn_name": "double", "inputs": [[1], [2]], "outputs": [[2], [4]]}),
    "difficulty": "MEDIUM",
    "raw_tags": "['Math']",
    "name": None,
    "source": "codewars",
    "tags": "['Mathematics']",
    "skill_types": "[]",
    "url": None,
    "Expected Auxiliary Space": None,
    "time_limit": None,
    "date": None,
    "picture_num": None,
    "memory_limit": None,
    "Expected Time Complexity": None,
}
STILL2 = {
    "question": "What boils at 100 degrees?",
    "combined_text": "<|begin_of_thought|>\n\nIs it \\boxed{oil}?\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\nIt is \\boxed{water}.\n\n<|end_of_solution|>",
    "domain": "chemistry",
}
HUMANEVAL = {
    "task_id": "HumanEval/53",
    "prompt": "def add(x, y):\n",
    "canonical_solution": "    return x + y\n",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
    "entry_point": "add",
}


def encoded(tests, protocol=4):
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests), protocol))).decode()


def live(public, private, **other):
    return {
        "question_title": "Title",
        "question_content": "Read and print.",
        "platform": "atcoder",
        "question_id": "abc301_a",
        "contest_id": "abc301",
        "contest_date": "2023-05-13T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(public),
        "private_test_cases": private,
        "metadata": "{}",
        **other,
    }


def stdin(given, output):
    return {"input": given, "output": output, "testtype": "stdin"}


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def imported(tmp_path, *rows, name="in.jsonl", **arguments):
    """(problems, drops) of rows that are imported from one file of JSON lines."""
    path, out = written(tmp_path / name, rows), tmp_path / "problems.jsonl"
    account = import_problems([path], out, **{"overwrite": True, **arguments})
    assert account.problem() is None and account.read == len(rows)
    return lines(out), lines(tmp_path / "problems.dropped.jsonl")


def lines(path):
    with open(path, "rb") as file:  # a line ends at \n alone
        return [json.loads(line) for line in file]


def one(tmp_path, row, **arguments):
    """The only problem."""
    problems, drops = imported(tmp_path, row, **arguments)
    assert drops == [] and len(problems) == 1
    return problems[0]


def why(tmp_path, row, **arguments):
    """(reason, detail) of the only drop."""
    problems, drops = imported(tmp_path, row, **arguments)
    assert problems == [] and len(drops) == 1
    return drops[0]["reason"], drops[0]["detail"]


# What each form becomes.


def test_numina(tmp_path):
    assert one(tmp_path, NUMINA) == {
        "id": "in.jsonl:1",
        "source": "numina_amc_aime",
        "domain": "math",
        "difficulty": None,
        "prompt": "What is $1+1$?",
        "gold": "\\frac{4}{2}",
        "tests": None,
        "starter": None,
        "solution": NUMINA["solution"],
        "provenance": {"file": "in.jsonl", "line": 1, "row_of_source": 1},
    }


@pytest.mark.parametrize("solution", ["No box.", "\\boxed{}", "\\boxed{1", "It is: 3"])
def test_numina_without_a_box_is_dropped(tmp_path, solution):
    assert why(tmp_path, {**NUMINA, "solution": solution})[0] == "no_answer"


def test_numina_takes_the_last_box_that_is_closed(tmp_path):
    assert one(tmp_path, {**NUMINA, "solution": "\\boxed{7} and \\boxed{8"})["gold"] == "7"


@pytest.mark.parametrize(
    "prompt, gold, letter",
    [
        ("Which? $\\textbf{(A)}\\ 1 \\qquad \\textbf{(B)}\\ 2 \\qquad \\textbf{(C)}\\ 3$", "\\textbf{(C)}", "C"),
        ("Which? $\\mathrm{(A)}\\ 1 \\qquad \\mathrm{(B)}\\ 2$", "\\text{B}", "B"),
        ("Which?\nA. 1\nB. 2\nC. 3", "B", "B"),
        ("Which? A: $4$ B: $5$", "(A)", "A"),
        ("Which? (A) 1 (B) 2", "\\textbf{(B)}\\ 2", "B"),
        ("Which? (A) 1 (B) 2", "C", None),
        ("Which? (A) 1 (B) 2", "2", None),
        ("Which? (A) 1 (B) 2", "AB", None),
        ("Name the point A. Which is it?", "A", None),
        ("Let A and B be points.", "B", None),
    ],
)
def test_a_letter_is_a_choice_where_the_problem_lists_it(tmp_path, prompt, gold, letter):
    assert choice_gold(prompt, gold) == letter
    found = one(tmp_path, {**NUMINA, "problem": prompt, "solution": f"\\boxed{{{gold}}}"})
    assert (found["domain"], found["gold"]) == (("choice", letter) if letter else ("math", gold))


def test_math_keeps_its_level_beside_the_difficulty(tmp_path):
    problems, drops = imported(
        tmp_path,
        MATH,
        {**MATH, "level": "Level ?", "unique_id": "test/algebra/1.json"},
        {**MATH, "answer": "33", "subject": "Algebra"},
        {**MATH, "solution": "none"},
    )
    assert [row["provenance"]["level"] for row in problems] == [5, "Level ?", 5]
    assert [row["gold"] for row in problems] == ["1", "1", "33"]
    assert [row["id"] for row in problems] == ["in.jsonl:1", "test/algebra/1.json", "in.jsonl:3"]
    assert {row["difficulty"] for row in problems} == {None} and {row["source"] for row in problems} == {"math"}
    assert all(row["provenance"]["subject"] == "Algebra" for row in problems)
    assert [drop["reason"] for drop in drops] == ["no_answer"]


def test_apps(tmp_path):
    found = one(tmp_path, APPS)
    assert (found["id"], found["source"], found["domain"], found["gold"]) == ("4424", "apps", "code", None)
    assert found["tests"] == {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"], "fn_name": None}
    assert found["solution"] == "print(sum(map(int, input().split())))" and found["starter"] is None
    assert found["provenance"]["level"] == "interview" and found["provenance"]["url"] == APPS["url"]


@pytest.mark.parametrize(
    "outputs, expected",
    [
        ([[2], [4]], [2, 4]),
        ([2, 4], [2, 4]),
        ([[2], 4], [2, 4]),
        ([[[2]], [[4, 5]]], [[2], [4, 5]]),  # once
        ([[1, 2], [3]], [[1, 2], [3]]),  # the function returns lists, and this one has one element
        ([[], [3]], [[], [3]]),
        ([["a"], [None]], ["a", None]),
    ],
)
def test_one_list_around_outputs_is_unwrapped_once(tmp_path, outputs, expected):
    tests = {"fn_name": "f", "inputs": [[1], [2]], "outputs": outputs}
    found = one(tmp_path, {**APPS, "input_output": json.dumps(tests)})
    assert found["tests"] == {"inputs": [[1], [2]], "outputs": expected, "fn_name": "f"}


def test_lines_of_stdin_are_joined(tmp_path):
    tests = {"inputs": [["3", "1 2"], "4", 5], "outputs": [["1", "2"], ["x"], 6]}
    found = one(tmp_path, {**APPS, "input_output": json.dumps(tests)})
    assert found["tests"]["inputs"] == ["3\n1 2", "4", "5"] and found["tests"]["outputs"] == ["1\n2", "x", "6"]


@pytest.mark.parametrize("tests", ["", " ", None, "{}", '{"inputs": [], "outputs": []}', "null", "[]"])
def test_apps_without_tests_is_dropped(tmp_path, tests):
    assert why(tmp_path, {**APPS, "input_output": tests})[0] == "no_tests"


@pytest.mark.parametrize("solutions", ["", "[]", None, '[""]', []])
def test_no_reference_solution_is_null(tmp_path, solutions):
    assert one(tmp_path, {**APPS, "solutions": solutions})["solution"] is None


def test_whole_numbers_of_many_digits(tmp_path):
    huge = "7" * 6000
    tests = f'{{"fn_name": "f", "inputs": [[{huge}]], "outputs": [[{huge}1]]}}'
    path = written(tmp_path / "in.jsonl", [{**APPS, "input_output": tests}])
    import_problems([path], tmp_path / "a.jsonl")
    assert f'"inputs":[[{huge}]],"outputs":[{huge}1]' in (tmp_path / "a.jsonl").read_text()
    # The next stage reads the row, and leaves the limit as it was.
    before = sys.get_int_max_str_digits()
    with stage.Stage("next", [tmp_path / "a.jsonl"], tmp_path / "b.jsonl", {}) as following:
        for _, row in following.rows():
            following.keep(row)
    assert (tmp_path / "b.jsonl").read_text() == (tmp_path / "a.jsonl").read_text()
    assert sys.get_int_max_str_digits() == before


def test_taco(tmp_path):
    found = one(tmp_path, TACO)
    assert found["source"] == "taco" and found["id"] == "in.jsonl:1" and found["starter"] == "def double(n):\n\t"
    assert found["tests"] == {"inputs": [[1], [2]], "outputs": [2, 4], "fn_name": "double"}
    assert found["provenance"]["level"] == "MEDIUM" and found["provenance"]["platform"] == "codewars"
    assert found["solution"] is None


def test_still2(tmp_path):
    riddle = {**STILL2, "question": "What flies?\nA. bird\nB. stone", "domain": "puzzle"}
    riddle["combined_text"] = STILL2["combined_text"].replace("\\boxed{water}", "\\boxed{A}")
    problems, drops = imported(
        tmp_path,
        STILL2,
        riddle,
        {**STILL2, "domain": "math"},
        {**STILL2, "domain": "code"},
        {**STILL2, "combined_text": "nothing"},
        {**STILL2, "domain": "cooking"},
    )
    assert [(row["source"], row["domain"], row["gold"]) for row in problems] == [
        ("still2_chemistry", "other", "water"),
        ("still2_puzzle", "choice", "A"),
        ("still2_math", "math", "water"),
    ]
    assert problems[0]["solution"] == "It is \\boxed{water}."
    assert problems[0]["provenance"]["response"] == STILL2["combined_text"]
    assert [drop["reason"] for drop in drops] == ["no_tests", "no_answer", "malformed"]


def test_humaneval(tmp_path):
    found = one(tmp_path, HUMANEVAL)
    assert found["id"] == "HumanEval/53" and found["source"] == "humaneval" and found["starter"] == HUMANEVAL["prompt"]
    assert found["tests"] == {"check": HUMANEVAL["test"], "entry_point": "add"}
    assert found["solution"] == "def add(x, y):\n    return x + y\n"


def test_gsm8k(tmp_path):
    found = one(tmp_path, {"question": "How many?", "answer": "2 + 3 = <<2+3=5>>5\n#### 1,005"})
    assert (found["source"], found["domain"], found["gold"]) == ("gsm8k", "math", "1,005")
    assert found["solution"].endswith("\\boxed{1,005}")


# LiveCodeBench.


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("size", [1, 300, 90_000])
def test_livecodebench_reads_every_protocol_of_pickle_without_loading_any(tmp_path, monkeypatch, protocol, size):
    private = [stdin("é\\\n" * size, "2\n"), stdin("5\n", "6\n")]
    # Published files have escapes; this text has letters themselves, and line ends between the tests.
    text = json.dumps(private, ensure_ascii=False, indent=1)
    data = base64.b64encode(zlib.compress(pickle.dumps(text, protocol))).decode()
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("loaded a pickle"))
    monkeypatch.setattr(pickle, "Unpickler", lambda *_: pytest.fail("loaded a pickle"))
    found = one(tmp_path, live([stdin("1\n", "1\n")], data))
    pairs = [["1\n", "1\n"], ["é\\\n" * size, "2\n"], ["5\n", "6\n"]]
    if size < 90_000:
        assert found["tests"] == {"inputs": [i for i, _ in pairs], "outputs": [o for _, o in pairs], "fn_name": None}
    else:
        assert lines(tmp_path / found["tests"]["file"]) == pairs and found["tests"]["count"] == 3
    assert found["id"] == "abc301_a" and found["provenance"]["level"] == "easy"


def test_livecodebench_functions(tmp_path):
    tests = [{"input": '[1, 2]\n"x"', "output": "[[1], null]", "testtype": "functional"}]
    row = live(tests, encoded(tests), metadata='{"func_name": "solve"}', starter_code="class Solution:\n")
    found = one(tmp_path, row)
    assert found["tests"] == {"inputs": ['[1, 2]\n"x"'] * 2, "outputs": [[[1], None]] * 2, "fn_name": "solve"}
    assert found["starter"] == "class Solution:\n"


@pytest.mark.parametrize("private", ["[]", "", None, [], encoded([]), json.dumps([stdin("1", "2")])])
def test_livecodebench_private_tests_as_plain_json_or_none(tmp_path, private):
    found = one(tmp_path, live([stdin("0", "1")], private))
    assert len(found["tests"]["inputs"]) == (2 if private and "stdin" in private else 1)
    assert why(tmp_path, live([], "[]"))[0] == "no_tests"


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("pickle_was_loaded",)


def squeezed(data):
    return base64.b64encode(zlib.compress(data)).decode()


TEXT = json.dumps([stdin("1", "2")])
BROKEN = {
    "code": squeezed(pickle.dumps(Exploit())),
    "code behind the string": squeezed(pickle.dumps(TEXT)[:-1] + pickle.dumps(Exploit(), 0)),
    "bytes": squeezed(pickle.dumps(TEXT.encode())),
    "list": squeezed(pickle.dumps([TEXT])),
    "two strings": squeezed(pickle.dumps((TEXT, TEXT))),
    "no pickle": squeezed(TEXT.encode()),
    "empty": squeezed(b""),
    "protocol 6": squeezed(b"\x80\x06" + pickle.dumps(TEXT)[2:]),
    "string cut off": squeezed(pickle.dumps(TEXT)[:40]),
    "no end": squeezed(pickle.dumps(TEXT)[:-1]),
    "behind the pickle": squeezed(pickle.dumps(TEXT) + b"x"),
    "length of 2**64 - 1": squeezed(b"\x80\x04\x8d" + b"\xff" * 8 + b"["),
    "deflate cut off": base64.b64encode(zlib.compress(pickle.dumps(TEXT))[:-9]).decode(),
    "behind deflate": base64.b64encode(zlib.compress(pickle.dumps(TEXT)) + b"more").decode(),
    "base64 cut off": squeezed(pickle.dumps(TEXT))[:-3],
    "no base64": "?" + squeezed(pickle.dumps(TEXT)),
    "no ASCII": "é",
    "an object": squeezed(pickle.dumps('{"input": "1", "output": "2"}')),
    "JSON cut off": squeezed(pickle.dumps(TEXT[:-2])),
    "half a surrogate pair": encoded([stdin("\ud800", "2")]),
    "NaN": squeezed(pickle.dumps('[{"input": NaN, "output": "2"}]')),
    "numbers": encoded([{"input": 1, "output": 2}]),
    "a functional one": encoded([{"input": "1", "output": "2", "testtype": "functional"}]),
    "no objects": encoded([1]),
    "a number": 5,
}


@pytest.mark.parametrize("what", BROKEN)
def test_private_tests_that_are_broken_or_run_code_are_malformed(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    problems, drops = imported(tmp_path, live([], BROKEN[what]), live([], encoded([stdin("1", "2")])))
    assert [drop["reason"] for drop in drops] == ["malformed"] and drops[0]["detail"]
    assert len(problems) == 1, "the row behind it"
    assert not Path("pickle_was_loaded").exists() and not (tmp_path / "problems.tests").exists()


def test_what_decompresses_without_end_is_malformed(tmp_path, monkeypatch):
    monkeypatch.setattr(encoded_tests, "LARGEST", 1 << 20)
    many = [stdin("0" * 1000, "1")] * 2000
    reason, detail = why(tmp_path, live([], encoded(many)))
    assert reason == "malformed" and "1,048,576" in detail
    assert list(tmp_path.glob("problems.tests/*")) == [], "a part of the tests"


def bulky_row(path, size):
    """A LiveCodeBench row with tests of `size` characters that compress to about a tenth."""
    rng, deflate, left = random.Random(5), zlib.compressobj(1), size
    parts = [b"\x80\x04\x8d" + size.to_bytes(8, "little") + b"["]
    left -= 2
    out = []
    while left:
        noise = (rng.randbytes(8000).hex() * 60)[: max(0, min(900_000, left - 60))]
        test = json.dumps(stdin(noise, "1"))
        test += " " * (left - len(test)) if left - len(test) < 200 else ","
        parts.append(test.encode())
        left -= len(test)
        out.append(deflate.compress(b"".join(parts)))
        parts = []
    out.append(deflate.compress(b"]\x94.") + deflate.flush())
    written(path, [live([stdin("1", "1")], base64.b64encode(b"".join(out)).decode())])


# Not ru_maxrss of getrusage: a new process begins there with what its parent had.
MEASURED = """
import sys
from skytrain.prep.importing import import_problems
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
before = peak()
import_problems([sys.argv[1]], sys.argv[2])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_200_megabytes_of_tests_load_in_bounded_memory(tmp_path):
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bulky_row(path, 200 << 20)
    row = path.stat().st_size
    assert row < 40 << 20, "else the test measures the row and not its tests"
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path), str(out)], capture_output=True, text=True, check=True
    )
    grown = int(done.stdout.split()[-1]) << 10
    tests = lines(out)[0]["tests"]
    assert (tmp_path / tests["file"]).stat().st_size > 190 << 20
    with open(tmp_path / tests["file"], "rb") as file:
        assert tests["count"] == sum(1 for _ in file) > 200
    assert grown < (150 << 20) + row, f"{grown >> 20} MiB for a row of {row >> 20} MiB"


# Large tests.


def big(letter="a", **other):
    tests = {"inputs": [letter * 40_000, "1", letter * 40_000], "outputs": ["x", "y", "z"]}
    return {**APPS, "input_output": json.dumps(tests), **other}


def test_large_tests_go_to_a_file_named_by_its_content(tmp_path):
    problems, _ = imported(tmp_path, big(), APPS, big(), big("b"))
    assert "inputs" in problems[1]["tests"]
    files = [problems[i]["tests"]["file"] for i in (0, 2, 3)]
    assert files[0] == files[1] != files[2] and all(name.startswith("problems.tests/") for name in files)
    assert lines(tmp_path / files[0]) == [["a" * 40_000, "x"], ["1", "y"], ["a" * 40_000, "z"]]
    assert problems[0]["tests"] == {"file": files[0], "count": 3, "fn_name": None}
    assert len(list((tmp_path / "problems.tests").iterdir())) == 2


def test_64_kib_of_tests_stay_in_the_row(tmp_path):
    def tests(size):
        return {**APPS, "input_output": json.dumps({"inputs": ["a" * size], "outputs": [""]})}

    room = (64 << 10) - len('["",""]\n')
    assert "inputs" in one(tmp_path, tests(room))["tests"] and "file" in one(tmp_path, tests(room + 1))["tests"]


def test_tests_in_a_file_are_found_from_another_folder(tmp_path):
    imported(tmp_path, big())
    (tmp_path / "deeper").mkdir()
    import_problems([tmp_path / "problems.jsonl"], tmp_path / "deeper" / "again.jsonl", source="mine")
    (again,) = lines(tmp_path / "deeper" / "again.jsonl")
    assert (tmp_path / "deeper" / again["tests"]["file"]).resolve().is_file() and again["source"] == "mine"
    next((tmp_path / "problems.tests").iterdir()).unlink()
    account = import_problems([tmp_path / "problems.jsonl"], tmp_path / "third.jsonl")
    assert account.dropped == {"malformed": 1}


# Plain rows.


def test_plain_columns(tmp_path):
    problems, drops = imported(
        tmp_path,
        {
            "id": "a",
            "prompt": "1+1?",
            "gold": "2",
            "source": "mine",
            "domain": "math",
            "difficulty": 3,
            "topic": "sums",
        },
        {"question": "1+2?", "answer": 3, "difficulty": "4"},
        {"problem": "1+3?", "solution": "It is \\boxed{4}.", "difficulty": "hard"},
        {"problem": "Print 1.", "tests": {"inputs": [""], "outputs": ["1"], "fn_name": None}, "answer": "ignored"},
        {"problem": "Print 1.", "tests": json.dumps({"check": "def check(f): pass", "entry_point": "f"})},
        {"problem": "1+4?", "answer": None, "difficulty": 11},
        {"problem": "1+5?", "answer": True, "domain": "physics", "difficulty": 11},
    )
    assert [(row["id"], row["source"], row["domain"], row["gold"], row["difficulty"]) for row in problems] == [
        ("a", "mine", "math", "2", 3),
        ("in.jsonl:2", "plain", "other", "3", 4),
        ("in.jsonl:3", "plain", "other", "4", None),
        ("in.jsonl:4", "plain", "code", None, None),
        ("in.jsonl:5", "plain", "code", None, None),
        ("in.jsonl:7", "plain", "other", "True", None),
    ]
    assert problems[0]["provenance"] == {"file": "in.jsonl", "line": 1, "row_of_source": 1, "topic": "sums"}
    assert problems[2]["provenance"]["level"] == "hard" and problems[5]["provenance"]["level"] == 11
    assert [drop["reason"] for drop in drops] == ["no_answer"]


def test_problems_import_as_they_are(tmp_path):
    first, _ = imported(tmp_path, APPS, name="a.jsonl")
    assert one(tmp_path, first[0], name="b.jsonl") == first[0]
    first, _ = imported(tmp_path, MATH, name="a.jsonl")
    assert one(tmp_path, first[0], name="b.jsonl") == first[0]


@pytest.mark.parametrize("gold", ["C", "(c)", 2, "green"])
def test_choices_become_lines_of_the_prompt(tmp_path, gold):
    found = one(tmp_path, {"question": "Which?", "choices": ["red", "blue", "green"], "answer": gold})
    assert found["prompt"] == "Which?\n\n(A) red\n(B) blue\n(C) green"
    assert (found["domain"], found["gold"]) == ("choice", "C")


@pytest.mark.parametrize(
    "row", [{"answer": "D"}, {"answer": 3}, {"answer": "A", "choices": []}, {"answer": "A", "choices": [[1], 2]}]
)
def test_choices_that_do_not_hold_the_gold_are_malformed(tmp_path, row):
    assert why(tmp_path, {"question": "Which?", "choices": ["red", "blue", "green"], **row})[0] == "malformed"


def test_map_names_other_fields(tmp_path):
    row = {"text": "1+1?", "deep": {"final": "2", "from": "web"}, "prompt": "not this"}
    found = one(tmp_path, row, fields={"prompt": "text", "gold": "deep.final", "source": "deep.from"}, domain="math")
    assert (found["prompt"], found["gold"], found["source"], found["domain"]) == ("1+1?", "2", "web", "math")
    for fields in ({"prompt": "txet"}, {"question": "text"}):
        with pytest.raises(UserError, match="--map"):
            imported(tmp_path, row, fields=fields)


def test_reasoning_gym_items(tmp_path):
    reasoning_gym = pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    names = ("basic_arithmetic", "knights_knaves", "syllogism")
    items = [item for name in names for item in reasoning_gym.create_dataset(name, size=2, seed=3)]
    rows = json.loads(json.dumps(items, default=str))
    problems, drops = imported(tmp_path, *rows)
    assert drops == [] and [row["source"] for row in problems] == [name for name in names for _ in range(2)]
    assert [row["prompt"] for row in problems] == [item["question"] for item in items]
    assert [row["gold"] for row in problems] == [str(item["answer"]) for item in items]
    assert {row["domain"] for row in problems} == {"other"}
    assert problems[0]["provenance"]["metadata"] == rows[0]["metadata"]
    assert [row["provenance"]["row_of_source"] for row in problems] == [1, 2] * 3
    assert {row["domain"] for row in imported(tmp_path, *rows, domain="math")[0]} == {"math"}


# Ids, containers, telling the form.


def test_ids_are_made_unique_and_counted(tmp_path, capsys):
    rows = [{"id": id, "prompt": "?", "gold": "1"} for id in ("a", "a", "a#2", "a", 7, "7", "", None)]
    problems, _ = imported(tmp_path, *rows)
    assert [row["id"] for row in problems] == ["a", "a#2", "a#2#2", "a#3", "7", "7#2", "in.jsonl:7", "in.jsonl:8"]
    assert "kept 8 + dropped 0; ids made unique 4" in capsys.readouterr().out


@pytest.mark.parametrize("row", [NUMINA, MATH, APPS, TACO, STILL2, HUMANEVAL, live([stdin("1", "2")], "[]")])
def test_lines_arrays_and_parquet_give_the_same_problems(tmp_path, row):
    rows = [row, row]
    lines_file = written(tmp_path / "in.jsonl", rows)
    array = tmp_path / "in.json"
    array.write_text(json.dumps(rows, indent=1))
    dated = [{**row, "contest_date": datetime(2023, 5, 13)} if "contest_date" in row else row] * 2
    parquet = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(dated), parquet)
    found = []
    for path in (lines_file, array, parquet):
        import_problems([path], tmp_path / "out.jsonl", overwrite=True)
        found.append(lines(tmp_path / "out.jsonl"))
        assert [problem.pop("provenance")["row_of_source"] for problem in found[-1]] == [1, 2]
        assert len({problem["id"] for problem in found[-1]}) == 2
        for problem in found[-1]:
            problem["id"] = problem["id"].replace("in.jsonl", "in").replace("in.json", "in").replace("in.parquet", "in")
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    "form, row",
    [
        ("numina", NUMINA),
        ("numina", {key: value for key, value in NUMINA.items() if key != "messages"}),
        ("math", MATH),
        ("math", {**MATH, "answer": "1", "subject": "Algebra", "unique_id": "x"}),
        ("apps", APPS),
        ("taco", TACO),
        ("still2", STILL2),
        ("humaneval", HUMANEVAL),
        ("livecodebench", live([], "[]")),
        ("gsm8k", {"question": "?", "answer": "so\n#### 5"}),
        ("plain", {"question": "?", "answer": "5"}),
        ("plain", {"question": "?", "answer": "5", "metadata": {"source_dataset": "x"}}),
        ("plain", {"problem": "?", "solution": "\\boxed{1}", "answer": "1", "source": "aops"}),
    ],
)
def test_the_form_is_told_by_fields_and_printed(tmp_path, capsys, form, row):
    imported(tmp_path, row)
    assert f"form: {form} " in capsys.readouterr().out
    assert formats.told_by(row) == [form]


@pytest.mark.parametrize(
    "rows", [[{"a": 1, "b": 2}], [{**STILL2, **HUMANEVAL}], [{**NUMINA, **APPS}], [{"prompt": "x"}]]
)
def test_unknown_and_mixed_fields_are_a_mistake(tmp_path, rows):
    with pytest.raises(UserError, match="--format") as told:
        imported(tmp_path, *rows)
    assert str(next(iter(rows[0]))) in str(told.value) and "livecodebench" in str(told.value)
    assert not (tmp_path / "problems.jsonl").exists()


def test_files_of_two_forms_are_a_mistake(tmp_path):
    paths = [written(tmp_path / "a.jsonl", [NUMINA]), written(tmp_path / "b.jsonl", [APPS])]
    with pytest.raises(UserError, match=r"a.jsonl is numina, b.jsonl is apps"):
        import_problems(paths, tmp_path / "out.jsonl")


@pytest.mark.parametrize("data", ["", "\n\n", "[]", "not JSON\n"])
def test_a_file_without_rows_tells_no_form(tmp_path, data):
    (tmp_path / "in.jsonl").write_text(data)
    with pytest.raises(UserError, match="--format"):
        import_problems([tmp_path / "in.jsonl"], tmp_path / "out.jsonl")


def test_first_rows_of_a_source_count_those_that_were_dropped(tmp_path):
    other = {**NUMINA, "source": "olympiads"}
    problems, _ = imported(tmp_path, NUMINA, other, {**other, "solution": "no box"}, NUMINA, other)
    assert [row["provenance"]["row_of_source"] for row in problems] == [1, 1, 2, 3]


# Odd and broken rows.

ODD = (
    None,
    0,
    -1,
    1.5,
    True,
    "",
    " ",
    "x",
    "[1]",
    '{"a": 1}',
    "[" * 3000,
    [],
    [None],
    {},
    {"a": 1},
    "\x00",
    "\u2028",
    1e300,
)
ODD_JSON = ("NaN", '{"inputs": [NaN], "outputs": [1], "fn_name": "f"}', '{"inputs": ["\\ud800"], "outputs": ["1"]}')
FORM_ROWS = {
    "numina": NUMINA,
    "math": {**MATH, "answer": "1"},
    "apps": APPS,
    "taco": TACO,
    "still2": STILL2,
    "humaneval": HUMANEVAL,
    "livecodebench": live([stdin("1", "2")], encoded([stdin("1", "2")])),
    "gsm8k": {"question": "?", "answer": "#### 5"},
    "plain": {
        "id": "a",
        "prompt": "?",
        "gold": "A",
        "choices": ["x", "y"],
        "domain": "choice",
        "source": "s",
        "difficulty": 3,
        "provenance": {},
        "solution": "x",
        "starter": "x",
    },
}


@pytest.mark.parametrize("form", FORM_ROWS)
def test_odd_values_spoil_their_row_alone(tmp_path, form):
    good = FORM_ROWS[form]
    odd = [{**good, key: value} for key in good for value in (*ODD, *ODD_JSON)]
    odd += [{other: value for other, value in good.items() if other != key} for key in good] + [{}]
    rows = [good, *odd, good]
    problems, drops = imported(tmp_path, *rows, form=form)
    assert len(problems) + len(drops) == len(rows) and len(problems) >= 2 and drops
    assert {drop["reason"] for drop in drops} <= {"malformed", "no_answer", "no_tests"}
    assert all(drop["detail"] for drop in drops)
    assert len({row["id"] for row in problems}) == len(problems)


def test_a_fuzz_of_broken_rows(tmp_path):
    rng = random.Random(11)
    pool = [*ODD, *ODD_JSON, *(value for row in FORM_ROWS.values() for value in row.values())]
    for form, good in FORM_ROWS.items():
        rows = [good]
        for _ in range(150):
            row = dict(good)
            for key in rng.sample(sorted(row), rng.randint(1, min(4, len(row)))):
                row[key] = rng.choice(pool)
                if isinstance(row[key], str) and row[key] and rng.random() < 0.5:
                    at = rng.randrange(len(row[key]))
                    row[key] = row[key][:at] + rng.choice(['"', "\\", "{", "é", ""]) + row[key][at + 1 :]
            rows.append(row)
        problems, drops = imported(tmp_path, *rows, form=form)
        assert len(problems) + len(drops) == len(rows)
        assert {drop["reason"] for drop in drops} <= {"malformed", "no_answer", "no_tests"}


def test_unreadable_rows_end_the_stage_or_are_dropped(tmp_path):
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = json.dumps(NUMINA)
    bad = ['{"source": NaN}', '{"source": "\\ud800"}', '{"source": 1, "source": 2}', '{"sour', "[1]", "7", "caf\u00e9"]
    path.write_bytes("\n".join([good, *bad, good]).encode() + b"\n\xff\n")
    with pytest.raises(UserError, match=r"in.jsonl:2: .*--on-error drop"):
        import_problems([path], out)
    assert not out.exists()
    account = import_problems([path], out, on_error="drop")
    assert (account.kept, account.dropped) == (2, {"malformed": 8})
    assert [row["id"] for row in lines(out)] == ["in.jsonl:1", "in.jsonl:9"]


# Stops and starts.


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_ctrl_c_leaves_all_as_it_was(tmp_path, monkeypatch, capsys):
    imported(tmp_path, big())
    path = written(tmp_path / "new.jsonl", [big("b"), big("c"), APPS])
    before = snapshot(tmp_path)
    form = formats.FORMS["apps"]

    def interrupted(row):
        if row["input_output"] == APPS["input_output"]:
            raise KeyboardInterrupt
        return form.read(row)

    monkeypatch.setitem(formats.FORMS, "apps", form._replace(read=interrupted))
    words = ["prep", "import", str(path), "--out", str(tmp_path / "problems.jsonl"), "--overwrite"]
    arguments = cli.parse(words)
    assert arguments.run(arguments) == 130
    assert "as it was before" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


KILLED = """
import os, signal, sys
from skytrain.prep import tests_folder
from skytrain.prep.importing import import_problems
name = sys.argv[3]
real = getattr(os, name)
def kill(*arguments):
    if name == "fsync" or "tests" in str(arguments[-1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(os, name, kill)
import_problems([sys.argv[1]], sys.argv[2], overwrite=True)
"""


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_killed_import_leaves_no_part_that_is_taken_for_the_whole(tmp_path, moment):
    imported(tmp_path, big())
    out = tmp_path / "problems.jsonl"
    before = {name: data for name, data in snapshot(tmp_path).items()}
    path = written(tmp_path / "new.jsonl", [APPS, big("b")])
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(out), moment])
    assert done.returncode == -signal.SIGKILL
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before} == before
    assert all(name.endswith(".partial") for name in after.keys() - before.keys() - {"new.jsonl"})
    import_problems([path], out, overwrite=True)
    assert lines(tmp_path / lines(out)[1]["tests"]["file"])[0] == ["b" * 40_000, "x"]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_finished_import_is_not_run_again_unless_its_settings_change(tmp_path, capsys):
    path, out = written(tmp_path / "in.jsonl", [NUMINA]), tmp_path / "out.jsonl"
    import_problems([path], out)
    import_problems([path], out)
    assert "(done before)" in capsys.readouterr().out
    with pytest.raises(UserError, match="source"):
        import_problems([path], out, source="mine")


# The command.


def run_command(*words):
    arguments = cli.parse(["prep", "import", *map(str, words)])
    return arguments.run(arguments)


def test_the_command(tmp_path, capsys):
    path = written(tmp_path / "in.jsonl", [{"q": "1+1?", "a": "2"}, {"q": "1+2?", "a": None}])
    out = tmp_path / "out.jsonl"
    assert run_command(path, "--out", out, "--map", "prompt=q", "gold=a", "--source", "mine", "--domain", "math") == 0
    assert "import: read 2 = kept 1 + dropped 1 (no_answer 1)" in capsys.readouterr().out
    assert [(row["prompt"], row["source"], row["domain"]) for row in lines(out)] == [("1+1?", "mine", "math")]
    for words in ([path, "--map", "prompt"], [], [path, "--hub", "x"], [tmp_path / "absent.jsonl"], [tmp_path]):
        with pytest.raises(UserError):
            run_command(*words, "--out", tmp_path / "other.jsonl")


def test_the_hub_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        run_command("--hub", "a/b", "--out", tmp_path / "out.jsonl")


def test_the_hub_gives_the_same_rows_as_a_file(tmp_path, monkeypatch, capsys):
    rows = [live([stdin("1", "2")], encoded([stdin("1", "2")]), contest_date=datetime(2023, 5, 13)), live([], "[]")]
    asked = []

    def load_dataset(name, config, *, split, streaming):
        asked.append((name, config, split, streaming))
        if name == "gone":
            raise ConnectionError("no\nnetwork")
        return iter(rows)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    for words in (["--hub", "x/lcb"], ["--hub", "x/lcb"], ["--hub", "x/lcb:all:test"], ["--hub", "x/lcb::test"]):
        assert run_command(*words, "--out", tmp_path / "hub.jsonl", "--overwrite") == 0
    assert asked == [
        ("x/lcb", None, "train", True),
        ("x/lcb", None, "train", True),
        ("x/lcb", "all", "test", True),
        ("x/lcb", None, "test", True),
    ]
    path = written(tmp_path / "in.jsonl", [{**row, "contest_date": "2023-05-13T00:00:00"} for row in rows])
    import_problems([path], tmp_path / "file.jsonl")
    found = [lines(tmp_path / f"{name}.jsonl") for name in ("hub", "file")]
    for problem in (*found[0], *found[1]):
        problem["provenance"].pop("file")
    assert found[0] == found[1] and len(found[0]) == 1
    for spec in ("gone", ":x", "a:b:c:d"):
        with pytest.raises(UserError, match="--hub"):
            run_command("--hub", spec, "--out", tmp_path / "hub.jsonl")
    assert not list(tmp_path.glob("*.partial"))


def test_malformed_is_a_value_error_with_one_line():
    with pytest.raises(Malformed) as told:
        formats.numina({**NUMINA, "problem": 5})
    assert "\n" not in str(told.value) and "problem" in str(told.value)

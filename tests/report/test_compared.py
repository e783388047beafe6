"""Two models compared by `skytrain report`: on which problems, with which numbers, and what is told beside them."""

import evaluations
import pytest
from evaluations import Problem, changed, read

from skytrain.prep.stage import long_integers
from skytrain.report import markdown, tables

RIGHT, WRONG = ["correct"] * 4, ["wrong"] * 4


def compared(tmp_path, a: list[Problem], b: list[Problem]) -> tables.Comparison:
    folders = [evaluations.write(tmp_path / name, name, {"aime24": given}) for name, given in (("a", a), ("b", b))]
    _, evaluated, counts = read(*folders)
    (found,) = tables.comparisons(evaluated, counts)
    return found


def test_two_models_on_the_same_problems(tmp_path):
    a = [Problem("better", WRONG), Problem("worse", RIGHT), Problem("same", RIGHT), Problem("half", WRONG)]
    b = [
        Problem("same", RIGHT),
        Problem("half", ["correct", "wrong"] * 2),
        Problem("better", RIGHT),
        Problem("worse", WRONG),
    ]
    found = compared(tmp_path, a, b)
    # Differences 1, -1, 0 and 0.5: mean 0.125, standard error 0.8539 / 2, Student's t of 3 degrees 3.182.
    assert (found.problems, found.better, found.worse) == (4, 2, 1)
    assert found.score.mean == pytest.approx(0.125)
    assert found.score.high == pytest.approx(min(1, 0.125 + 3.182 * 0.85391 / 2), abs=0.01)
    assert found.verdict == "no difference shown"
    assert (found.left_out, found.changed, found.differs) == (0, 0, [])


def test_a_clear_gain_is_called_better(tmp_path):
    found = compared(tmp_path, [Problem(f"{i}", WRONG) for i in range(9)], [Problem(f"{i}", RIGHT) for i in range(9)])
    assert (found.verdict, found.score.mean) == ("better", 1.0)


def test_problems_that_are_not_the_same_are_left_out_and_told(tmp_path):
    a = [Problem("same", WRONG), Problem("changed", WRONG, question="old"), Problem("only a", RIGHT)]
    b = [Problem("same", RIGHT), Problem("changed", RIGHT, question="new"), Problem("only b", RIGHT)]
    found = compared(tmp_path, a, b)
    assert (found.problems, found.better, found.left_out, found.changed) == (1, 1, 2, 1)
    text = "; ".join(markdown.comparison_notes(found))
    assert "2 problems of one of them alone left out" in text and "1 problems of one id" in text


def test_no_problem_in_common(tmp_path):
    found = compared(tmp_path, [Problem("a", RIGHT)], [Problem("b", RIGHT)])
    assert (found.score, found.verdict, markdown.difference(found)) == (None, "no common problem", "–")


TESTS = {"inputs": ["1\n"], "outputs": ["1\n"]}


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ({"gold": "2"}, {"gold": "3"}, False),
        ({"gold": "2"}, {"gold": "2"}, True),
        ({"tests": TESTS}, {"tests": {**TESTS, "outputs": ["2\n"]}}, False),
        ({"tests": TESTS}, {"tests": dict(reversed(TESTS.items()))}, True),
        ({"tests": {"file": "tests/one.jsonl"}}, {"tests": {"file": "tests/two.jsonl"}}, False),
        ({"tests": {"file": "a.tests/one.jsonl"}}, {"tests": {"file": "b.tests/one.jsonl"}}, True),
        ({"domain": "math"}, {"domain": "other"}, False),
        ({"starter": "def f():"}, {"starter": "def g():"}, False),
        ({"tests": {"inputs": [10**5000]}}, {"tests": {"inputs": [10**5000 + 1]}}, False),
    ],
    ids=["gold", "same gold", "tests", "same tests", "file", "same file", "domain", "starter", "long integers"],
)
def test_a_problem_with_another_gold_or_other_tests_is_left_out(tmp_path, a, b, same):
    other = Problem("other", WRONG)
    with long_integers():
        found = compared(tmp_path, [Problem("p", WRONG, item=a), other], [Problem("p", RIGHT, item=b), other])
    assert (found.problems, found.changed) == ((2, 0) if same else (1, 1))
    if not same:
        (note,) = markdown.comparison_notes(found)
        assert note == "1 problems of one id, but with another question, gold or tests, left out"


def of_two(tmp_path, task: dict, results: dict) -> list[str]:
    a = evaluations.write(tmp_path / "a", "a", {"t": [Problem("p", RIGHT)]})
    b = evaluations.write(tmp_path / "b", "b", {"t": [Problem("p", RIGHT)]}, t=task)
    _, evaluated, counts = read(a, changed(b, **results))
    (found,) = tables.comparisons(evaluated, counts)
    return markdown.comparison_notes(found)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prompt", ["math.plain@0123456789ab"]),
        ("system", "none"),
        ("sampling", {"temperature": 0.0, "max_tokens": 32768}),
        ("seed", 1),
        ("version", "release_v2"),
        ("since", "2024-01-01"),
        ("until", "2024-01-01"),
    ],
)
def test_other_settings_are_told(tmp_path, key, value):
    assert of_two(tmp_path, {key: value}, {}) == [f"asked differently: {key}"]


def test_other_data_are_told_by_content_and_not_by_name(tmp_path):
    assert of_two(tmp_path / "1", {"data": [("test.jsonl", 1234, "cd" * 32)]}, {}) == ["asked differently: data"]
    assert of_two(tmp_path / "2", {"data": [("other.jsonl", 1234, "ab" * 32)]}, {}) == []


def test_another_sandbox_and_other_servers_are_told(tmp_path):
    assert of_two(tmp_path / "1", {}, {"sandbox": "none"}) == ["asked differently: sandbox"]
    server = {"url": "http://gpu:8000/v1", "engine": "sglang", "version": "0.5", "dtype": "float16"}
    differs = "asked differently: engine of the servers, version of the servers, dtype of the servers"
    assert of_two(tmp_path / "2", {}, {"servers": [server]}) == [differs]
    untold = [{"url": "http://other:8000/v1", "engine": "vllm", "version": None}]
    assert of_two(tmp_path / "3", {}, {"servers": untold}) == []

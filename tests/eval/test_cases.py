"""The handed faults of evaluations (tests/cases/data_eval_checks.md) that concern tasks and their judges, a test each,
under its number."""

import pytest
from benchmarks import I_12, aime, boxed, choices, gpqa, item, loaded

from skytrain.eval.tasks import TASKS


def verdict(tmp_path, task, row, response):
    return TASKS[task].judge(item(tmp_path, task, row), response, "bubblewrap").verdict


def letter(tmp_path, other=False):
    """The gold of a question, or another."""
    gold = item(tmp_path, "gpqa_diamond", gpqa())["gold"]
    return next(each for each in "BCDA" if each != gold) if other else gold


def test_d17_a_right_choice_that_is_missing_is_no_a(tmp_path):
    found = loaded(tmp_path, "gpqa_diamond", gpqa(), choices("yellow"))
    assert len(found.items) == 1 and found.skipped == {"answer_not_among_choices": 1}
    assert any("answer_not_among_choices: 1" in note for note in found.notes)


def test_d17_an_answer_that_ends_in_a_bare_root(tmp_path):
    assert verdict(tmp_path, "aime24", aime(), boxed("\\sqrt")) == "wrong"


def test_d19_leading_zeros(tmp_path):
    for gold in ("033", "33", 33):
        for answer in ("33", "033"):
            assert verdict(tmp_path, "aime24", aime(answer=gold), boxed(answer)) == "correct"


def test_d19_the_answer_of_2024_i_12(tmp_path):
    row = aime(11, problem=I_12, answer="384")
    assert verdict(tmp_path, "aime24", row, boxed(385)) == "correct"
    assert verdict(tmp_path, "aime24", row, boxed(384)) == "wrong"


def test_d27_loading_again_gives_the_same_letters_and_verdicts(tmp_path):
    rows = [gpqa(i) for i in range(40)]
    answers = [boxed("ABCD"[i % 4]) for i in range(40)]

    def scored(rows):
        found = {row["id"]: row for row in loaded(tmp_path, "gpqa_diamond", *rows).items}
        judged = [TASKS["gpqa_diamond"].judge(found[f"rec{i}"], text, "bubblewrap") for i, text in enumerate(answers)]
        return found, judged

    assert scored(rows) == scored(rows) == scored(rows[::-1])


def test_d29_an_article_is_no_choice(tmp_path):
    right = letter(tmp_path)
    assert verdict(tmp_path, "gpqa_diamond", gpqa(), f"\\boxed{{{right}}} ... this excludes A") == "correct"
    for text in ("I would exclude A", f"It can only be {right}", f"({right})"):
        assert verdict(tmp_path, "gpqa_diamond", gpqa(), text) == "no_answer"


def test_d31_an_answer_line_behind_a_box_that_is_no_choice(tmp_path):
    text = "\\boxed{\\langle H\\rangle \\ll \\Delta E}\n...\n**Answer: %s**"
    assert verdict(tmp_path, "gpqa_diamond", gpqa(), text % letter(tmp_path)) == "correct"
    assert verdict(tmp_path, "gpqa_diamond", gpqa(), text % letter(tmp_path, other=True)) == "wrong"


@pytest.mark.parametrize("text", ["Actually I am unsure", "Error: rate limited", ""])
def test_d33_no_answer_is_none(tmp_path, text):
    for task, row in (("gpqa_diamond", gpqa()), ("aime24", aime())):
        assert verdict(tmp_path, task, row, text) == "no_answer"

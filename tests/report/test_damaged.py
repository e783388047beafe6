"""Folders that do not hold what their scores are of, and numbers that nothing expects."""

import json
import math
import re
from itertools import product

import evaluations
import pytest
from evaluations import Problem, changed, read, report

from skytrain.errors import UserError
from skytrain.prep.stage import long_integers
from skytrain.report import page, samples, tables
from skytrain.report.curves import Series, plot

PROBLEMS = [Problem(f"p{i}", ["correct", "wrong"]) for i in range(3)]


def written(tmp_path, problems=PROBLEMS):
    return evaluations.write(tmp_path / "e", "m", {"t": problems})


def edit(path, change) -> None:
    """change: of the list of its lines."""
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def again(lines: list[str]) -> list[str]:
    return [*lines[:-1], lines[0]]


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("samples", lambda lines: [], "holds 0 samples of 0 problems, and results.json tells of 2 of each of 3"),
        ("samples", lambda lines: lines[:-1], "holds 5 samples of 3 problems, and results.json tells of 2 of each"),
        ("samples", again, "holds 6 samples of 3 problems, and results.json tells of 2 of each of 3"),
        (
            "samples",
            lambda lines: [*lines[:-1], lines[-1][:20]],
            "t.jsonl:6: cannot be read (Input data was truncated); run the evaluation again, or --rescore it",
        ),
        (
            "samples",
            lambda lines: [line.replace('"wrong"', '"correct"') for line in lines],
            "holds 6 correct, and results.json tells of 3 correct, 3 wrong",
        ),
        (
            "samples",
            lambda lines: [line.replace('"p2"', '"q"') for line in lines],
            "1 problems that are not in items/t.jsonl, as 'q'; run the evaluation again, or --rescore it",
        ),
        ("items", lambda lines: [], "holds 0 problems, and results.json tells of 3; run the evaluation again"),
        ("items", lambda lines: lines[1:], "holds 2 problems, and results.json tells of 3"),
        ("items", lambda lines: [lines[0], lines[0], lines[0]], "holds 1 problems, and results.json tells of 3"),
        ("items", lambda lines: [*lines[:2], "[1]\n"], "t.jsonl:3: holds list, and a line is an object"),
        ("items", lambda lines: [*lines[:2], '"p2"\n'], "t.jsonl:3: holds str"),
        ("items", lambda lines: [*lines[:2], '{"id": 2, "prompt": ""}\n'], "t.jsonl:3: is no problem"),
        ("items", lambda lines: [*lines[:2], '{"id": "p2", "prompt": "", "messages": [1]}\n'], "t.jsonl:3: is no pro"),
        (
            "items",
            lambda lines: [*lines[:2], r'{"id": "p2", "prompt": "", "\ud800": 1}' + "\n"],
            "t.jsonl:3: is no prob",
        ),
        ("items", lambda lines: ["[" * 100_000 + "\n"], "t.jsonl:1: cannot be read"),
    ],
)
def test_files_that_are_not_those_of_the_scores_are_refused(tmp_path, kind, change, says):
    folder = written(tmp_path)
    edit(folder / kind / "t.jsonl", change)
    with pytest.raises(UserError, match=re.escape(says)) as refused:
        report(folder, out=tmp_path / "r.html")
    assert str(refused.value).startswith(str(folder / kind / "t.jsonl"))
    assert "; run the evaluation again" in str(refused.value)
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("kind", ["items", "samples"])
def test_a_file_that_is_not_there_is_named(tmp_path, kind):
    folder = written(tmp_path)
    (folder / kind / "t.jsonl").unlink()
    with pytest.raises(UserError, match=rf"{kind}/t.jsonl: cannot be read .*; run the evaluation again"):
        report(folder, out=tmp_path / "r.html")


def test_scores_of_nothing_are_refused(tmp_path):
    folder = written(tmp_path)
    for kind in ("items", "samples"):
        (folder / kind / "t.jsonl").write_text("")
    tasks = json.loads((folder / "results.json").read_text())["tasks"]
    changed(folder, tasks=[{**tasks[0], "problems": 0, "verdicts": {}}])
    with pytest.raises(UserError, match="holds 0 samples of 0 problems"):
        report(folder, out=tmp_path / "r.html")


def test_answers_that_are_not_there_are_told(tmp_path, capsys):
    folder = written(tmp_path, [*PROBLEMS, Problem("none", ["missing", "missing"])])
    edit(folder / "answers.jsonl", lambda lines: lines[2:])
    report(folder, out=tmp_path / "r.html")
    told = "the texts of 2 samples are not shown: they are not in the folder's answers.jsonl"
    assert f"- Warning: m, t: {told}" in capsys.readouterr().out
    for name in ("r.html", "r.md"):
        assert told.replace("'", "&#39;" if name == "r.html" else "'") in (tmp_path / name).read_text()


def test_a_folder_without_its_answers_is_reported_on(tmp_path, capsys):
    folder = written(tmp_path)
    (folder / "answers.jsonl").unlink()
    report(folder, out=tmp_path / "r.html")
    assert "the texts of 6 samples are not shown" in capsys.readouterr().out


def test_no_warning_where_all_answers_are_there(tmp_path):
    _, evaluated, counts = read(written(tmp_path, [*PROBLEMS, Problem("none", ["missing", "missing"])]))
    assert tables.warnings(evaluated, counts) == []


def test_half_a_surrogate_pair_in_an_answer_is_replaced(tmp_path):
    folder = written(tmp_path, [Problem("p", ["correct"], thoughts="a\udc00", answer=lambda _: "b\ud800c")])
    assert "\\ud800" in (folder / "answers.jsonl").read_text()
    report(folder, out=tmp_path / "r.html")
    _, evaluated, _ = read(folder)
    packed = page.Packed(evaluated)
    assert len(list(packed.chunks())) == 1
    ((*_, text),) = samples.texts(evaluated)
    assert (samples.whole(text["thoughts"]), samples.whole(text["answer"])) == ("a\ufffd", "b\ufffdc")


def test_whole_numbers_of_many_digits_in_tests(tmp_path):
    with long_integers():
        folder = written(tmp_path, [Problem("p", ["correct"], item={"tests": {"inputs": [10**6000]}})])
    assert report(folder, out=tmp_path / "r.html") == 0


HUGE = int("9" * 400)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        *product(("loss", "lr", "tokens_per_s", "step_s", "eta_s"), [(HUGE,), (-HUGE, 1.0), (1.7e308, -1.7e308)]),
        ("loss", (5e-324, 1e-323)),
        ("loss", (5e-324, 1.0)),
        ("loss", (5e-324, 1e300)),
        ("loss", (1.0, 1.0 + 2e-16)),
        ("lr", (-1.0, -2.0)),
        ("lr", (5e-324, 1e-323)),
        ("step_s", (-1.7e308,)),
        ("step", (HUGE,)),
        ("step", (-1,)),
    ],
)
def test_numbers_of_any_size_in_a_log(tmp_path, key, values):
    changes = {key: lambda step: values[step % len(values)]}
    folder = evaluations.write_training(tmp_path / "run", 20, 20, **changes)
    assert report(folder, out=tmp_path / "r.html") == 0
    text = (tmp_path / "r.html").read_text()
    for path in re.findall(r'<path d="([^"]*)"', text):
        assert not re.search("nan|inf", path)
    (run,) = read(folder)[0]
    if key == "step":
        assert run.unread == 20
    elif HUGE in values:
        assert run.values(key) == []


@pytest.mark.parametrize("ends", [(5e-324, 1e300), (1e-200, 1e200), (1e-7, 1.0), (0.5, 20.0)])
def test_a_logarithmic_axis_has_few_ticks(ends):
    drawn = plot("t", [Series("s", list(enumerate(ends)), 0)], "x", "y")
    assert "logarithmic" in drawn
    assert 2 <= drawn.count('text-anchor="end"') <= 12


def test_ticks_of_tiny_values_are_told_apart():
    drawn = plot("t", [Series("s", [(1, 0.0), (2, 5e-14)], 0)], "x", "y")
    ticks = re.findall(r'text-anchor="end">([^<]*)<', drawn)
    assert len(set(ticks)) == len(ticks) and "5e-14" in ticks


def test_a_clock_of_no_time():
    assert [tables.clock(value) for value in (math.inf, -math.inf, math.nan)] == [tables.NONE] * 3


def test_scores_of_another_number_of_samples_are_refused(tmp_path):
    folder = written(tmp_path)
    tasks = json.loads((folder / "results.json").read_text())["tasks"]
    changed(folder, tasks=[{**tasks[0], "samples": 4}])
    with pytest.raises(UserError, match=r"6 samples of 3 problems, and results.json tells of 4 of each of 3"):
        report(folder, out=tmp_path / "r.html")

"""`skytrain report` without a browser: which folders it reads, the numbers of its tables, and what it writes."""

import base64
import gzip
import json
import math
import random
import re
import subprocess
import sys

import evaluations
import pytest
from evaluations import Problem, changed, read, report

from skytrain import cli
from skytrain.errors import UserError
from skytrain.report import markdown, page, runs, samples, tables
from skytrain.report.curves import MOST_POINTS, Series, plot, thinned

RIGHT, WRONG = ["correct"] * 4, ["wrong"] * 4


def refused(*folders, out, says: str, **options) -> None:
    with pytest.raises(UserError, match=says):
        report(*folders, out=out, **options)
    assert not out.is_file() or not out.read_text().startswith("<!doctype"), "written, although it was refused"


# Scores


def test_scores_stand_beside_the_published_ones(tmp_path, capsys):
    problems = [Problem(f"p{i}", RIGHT if i < 12 else ["wrong", "wrong", "truncated", "missing"]) for i in range(30)]
    folder = evaluations.write(
        tmp_path / "e", "ours", {"aime24": problems},
        aime24={"title": "AIME 2024", "expected": {"": (43.9, 50.0)}, "warnings": ["no thoughts found"]},
    )  # fmt: skip
    assert report(folder, out=tmp_path / "r.html") == 0
    printed = capsys.readouterr().out
    # 12 of 30 right; the interval reaches 44.0, and the score does not. Of 120 samples 18 were cut off, 18 are missing.
    ours = "40.0 (36.0 to 44.0); 30 x 4; 15.0% cut; 15.0% missing; 112 tokens; expected 43.9 to 50: NOT met"
    assert f"| AIME 2024 | {ours} | 43.3 | 16.7 | 50.0 | 40.0 |" in printed
    assert "| MATH500 | – | 82.4 | 76.2 | 85.4 | 81.4 |" in printed
    assert "| LiveCodeBench hard | – | 17.9 | 9.8 | 17.1 | 16.3 |" in printed
    assert "13 of 30 problems in one run" in printed
    assert "Warning: ours, AIME 2024: no thoughts found" in printed
    assert printed.split("\nwritten")[0].strip() in (tmp_path / "r.md").read_text()
    html = (tmp_path / "r.html").read_text()
    for text in (
        '<strong class="score">40.0</strong>',
        "36.0 to 44.0",
        "15.0% cut off · 15.0% missing",
        "no thoughts found",
        ": not met",
    ):
        assert text in html


@pytest.mark.parametrize(
    ("expected", "whole", "told"),
    [
        ((40, 50), True, "expected 40 to 50: met"),
        ((40.1, 50), True, "expected 40.1 to 50: NOT met"),
        ((30, 39.9), True, "expected 30 to 39.9: NOT met"),
        ((40, 50), False, "expected 40 to 50 (of the whole set)"),
    ],
)
def test_an_expected_range_is_met_by_a_score_of_the_whole_set_alone(tmp_path, expected, whole, told):
    problems = [Problem(f"p{i}", ["correct"] * 2 + ["wrong"] * 3) for i in range(4)]
    folder = evaluations.write(tmp_path / "e", "m", {"aime24": problems},
                               aime24={"expected": {"": expected}, "whole": whole})  # fmt: skip
    (one,) = read(folder)[1]
    assert told in markdown.cell_text(tables._cell(one.tasks["aime24"], ""))


def test_parts_stand_beneath_their_benchmark(tmp_path):
    verdicts = {"easy": RIGHT, "hard": WRONG}
    problems = [Problem(f"p{i}", verdicts[part], part) for i, part in enumerate(["easy", "hard"] * 3)]
    folder = evaluations.write(tmp_path / "e", "ours", {"livecodebench": problems})
    _, evaluated, _ = read(folder)
    rows = {(row.title, row.part): row for row in tables.score_rows(evaluated)}
    mean = lambda part: rows["livecodebench", part].ours[0].score.mean  # noqa: E731
    assert (mean(""), mean("easy"), mean("hard")) == (0.5, 1.0, 0.0)
    assert rows["livecodebench", "easy"].published == [86.3, 84.6, 90.7, 92.9]
    assert rows["livecodebench", ""].published == [None] * 4
    assert rows["livecodebench", "medium"].ours == [None]
    assert any("asked 6 problems; the published set has 511" in note for note in tables.score_notes(evaluated))


def test_an_own_benchmark_has_no_published_columns(tmp_path, capsys):
    report(evaluations.write(tmp_path / "e", "ours", {"sums": [Problem("p", RIGHT)]}), out=tmp_path / "r.html")
    assert "| benchmark | ours |\n" in capsys.readouterr().out
    assert ">published</th>" not in (tmp_path / "r.html").read_text()


def test_pass_at_k_leaves_out_what_a_model_has_not(tmp_path):
    score = evaluations.Score(0.5, None, 0.4, 0.6)
    a = evaluations.write(tmp_path / "a", "a", {"t": [Problem("p", RIGHT)]}, t={"pass_at": {1: score, 4: score}})
    b = evaluations.write(tmp_path / "b", "b", {"t": [Problem("p", RIGHT)]}, t={"pass_at": {1: score}})
    _, evaluated, _ = read(a, b)
    assert tables.pass_rows(evaluated) == ([1, 4], [("t", "a", [score, score]), ("t", "b", [score, None])])
    report(a, b, out=tmp_path / "r.html")
    assert (
        "| t | a | 50.0 (40.0 to 60.0) | 50.0 (40.0 to 60.0) |\n| t | b | 50.0 (40.0 to 60.0) | – |"
        in (tmp_path / "r.md").read_text()
    )


def test_pass_at_k_stands_in_the_order_of_the_scores(tmp_path):
    tasks = {name: [Problem("p", RIGHT)] for name in ("zeta", "alpha", "aime24", "math500")}
    _, evaluated, _ = read(evaluations.write(tmp_path / "e", "m", tasks))
    scored = [row.title for row in tables.score_rows(evaluated) if row.ours != [None]]
    assert [title for title, *_ in tables.pass_rows(evaluated)[1]] == scored == ["math500", "aime24", "zeta", "alpha"]


def test_what_a_server_does_not_tell_is_not_told(tmp_path):
    folder = evaluations.write(tmp_path / "e", "m", {"t": [Problem("p", RIGHT)]})
    changed(folder, servers=[{"server": "http://gpu:8000/v1", "engine": "vllm", "dtype": None}])
    report(folder, out=tmp_path / "r.html")
    assert "server http://gpu:8000/v1, engine vllm, dtype not told" in (tmp_path / "r.html").read_text()


# Length and accuracy


def test_bins_are_of_about_one_size_and_hold_every_sample():
    found = samples.bins([(i, int(i < 50)) for i in range(100)])
    assert [(low, high, count) for low, high, count, _ in found] == [(20 * i, 20 * i + 19, 20) for i in range(5)]
    assert [share for *_, share in found] == [1, 1, 0.5, 0, 0]


def test_samples_of_one_length_are_in_one_bin():
    found = samples.bins([(32768, 0)] * 60 + [(i, 1) for i in range(40)])
    assert found[-1] == (32768, 32768, 60, 0.0)
    assert sum(count for _, _, count, _ in found) == 100
    assert samples.bins([(5, 1)]) == [(5, 5, 1, 1.0)]
    assert samples.bins([]) == []


def test_missing_samples_have_no_length(tmp_path):
    folder = evaluations.write(tmp_path / "e", "m", {"t": [Problem("p", ["correct", "missing", "missing"])]})
    _, evaluated, counts = read(folder)
    assert (counts["m", "t"].lengths, counts["m", "t"].missing) == ([(100, 1)], 2)
    assert page.lengths(evaluated, counts)[0]["rows"] == [("m", 100, 100, 1, 1.0)]


# Training runs


def test_a_finished_run(tmp_path):
    (run,) = read(evaluations.write_training(tmp_path / "run", 20, 20))[0]
    facts = {name: values[0] for name, values in tables.training_facts([run])}
    assert facts["state"] == "finished, 20 steps"
    assert (facts["tokens"], facts["trained tokens"]) == ("8,000,000", "7,600,000")
    assert (facts["time"], facts["money"], facts["MFU (median)"]) == ("3 min 20 s", "1.40", "45.0%")
    assert facts["last validation loss"] == "0.6"
    assert tables.planned_rows(run) == [
        ("GiB at the peak", "69", "70.5", "1.02"),
        ("s a step", "9.5", "10", "1.05"),
        ("tokens/s", "42,000", "40,500", "0.96"),
    ]
    curves = page.training_curves([run])
    assert len(curves) == 4
    assert all(curve.count("<path") == lines for curve, lines in zip(curves, (2, 1, 1, 1)))


def test_an_unfinished_run_is_told_as_unfinished(tmp_path):
    (run,) = read(evaluations.write_training(tmp_path / "run", 8, 20))[0]
    assert tables.state(run) == "unfinished: step 8, with 2 min 00 s left by its own forecast"
    assert tables.planned_rows(run)[1] == ("s a step", "–", "10", "–")


def test_lines_of_ten_steps_count_ten_times(tmp_path):
    folder = evaluations.write_training(tmp_path / "run", 20, 20)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["step"] % 10 == 0]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    (run,) = read(folder)[0]
    assert run.hours == pytest.approx(200 / 3600)


def test_a_run_without_validation_has_no_such_curve(tmp_path):
    (run,) = read(evaluations.write_training(tmp_path / "run", 4, 20))[0]
    assert dict(tables.training_facts([run]))["last validation loss"] == ["–"]
    assert "validation" not in page.training_curves([run])[0]


@pytest.mark.parametrize("value", [None, math.nan], ids=["null", "NaN"])
def test_a_loss_that_is_not_finite_breaks_the_curve(tmp_path, value):
    loss = lambda step: value if step in (10, 20) else 1 / step  # noqa: E731
    (run,) = read(evaluations.write_training(tmp_path / "run", 20, 20, loss=loss))[0]
    assert run.curve("loss")[9] == (10, None)
    assert dict(tables.training_facts([run]))["last loss"] == ["not finite"]
    path = re.search(r'<path d="([^"]*)"', page.training_curves([run])[0])[1]
    assert path.count("M") == 2 and "nan" not in path


def test_a_half_written_line_is_passed_over_and_counted(tmp_path):
    folder = evaluations.write_training(tmp_path / "run", 8, 20)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"step": "9"}\n{"step": 9, "lo')
    (run,) = read(folder)[0]
    assert (run.steps, run.unread) == (8, 3)
    assert report(folder, out=tmp_path / "r.html") == 0


def test_a_run_that_has_not_logged_yet(tmp_path):
    folder = evaluations.write_training(tmp_path / "run", 0, 20)
    assert report(folder, out=tmp_path / "r.html") == 0
    assert "No step has been logged" in (tmp_path / "r.html").read_text()


def test_a_real_run_of_the_trainer(tmp_path):
    # Not at the top: these import torch, and a report needs none.
    from runs import random_documents, settings, write_data
    from tiny_models import VOCAB_SIZE, write_tiny_model

    from skytrain.trainer import train

    model = write_tiny_model(tmp_path / "model")
    data = write_data(tmp_path / "data", random_documents(24, vocab=VOCAB_SIZE), model)
    options = {"train__validate_every": 2, "data__validation": str(data), "log__price_per_gpu_hour": 2.0}
    train(settings(model, data, tmp_path / "run", **options))
    assert report(tmp_path / "run", out=tmp_path / "r.html") == 0
    text = (tmp_path / "r.md").read_text()
    assert "| state | finished, 6 steps |" in text
    # The plan is of tensors, and a CPU's process holds more than these.
    measured = re.search(r"\| run \| GiB at the peak \| – \| (\S+) \| – \|", text)
    assert float(measured[1]) > 0
    assert (tmp_path / "r.html").read_text().count("<figure") == 4


def test_long_curves_keep_their_peaks_and_gaps():
    points = [(i, float(i % 7)) for i in range(50_000)]
    points[12_345] = (12_345, 99.0)
    points[30_000] = (30_000, None)
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS + 2
    assert points[12_345] in kept and points[30_000] in kept
    assert kept == sorted(kept, key=lambda point: point[0])


@pytest.mark.parametrize("value", [0.0, 5.0, -1.0, 1e-12, 1e300])
def test_a_curve_of_one_value(value):
    drawn = plot("t", [Series("s", [(1, value)], 0)], "x", "y")
    assert "<circle" in drawn and "nan" not in drawn
    assert plot("t", [Series("s", [(1, None)], 0)], "x", "y") == ""


# Names and faults


def test_names_tell_runs_apart(tmp_path):
    a = evaluations.write_training(tmp_path / "a" / "run")
    b = evaluations.write_training(tmp_path / "b" / "run")
    one = evaluations.write(tmp_path / "a" / "eval", "model", {"t": [Problem("p", RIGHT)]})
    two = evaluations.write(tmp_path / "b" / "eval", "model", {"t": [Problem("p", WRONG)]})
    training, evaluated, counts = read(a, one, b, two)
    assert [run.name for run in training] == ["a/run", "b/run"]
    assert [one.name for one in evaluated] == ["model (a/eval)", "model (b/eval)"]
    assert [c.score.mean for c in tables.comparisons(evaluated, counts)] == [-1.0]


def test_no_runs(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.parse(["report"])
    assert ended.value.code == 2
    with pytest.raises(UserError, match="give the folder"):
        runs.read([])


def test_folders_that_cannot_be_reported_on(tmp_path):
    out = tmp_path / "r.html"
    refused(tmp_path / "none", out=out, says="none: no such folder")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", out=out, says="file: is a file; give the folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", out=out, says="holds neither metrics.jsonl")
    folder = evaluations.write(tmp_path / "e", "m", {"t": [Problem("p", RIGHT)]})
    refused(folder, folder / ".", out=out, says="given more than once")
    (folder / "results.json").rename(tmp_path / "kept")
    refused(folder, out=out, says="this evaluation is unfinished")
    (folder / "results.json").write_text('{"format": 1')
    refused(folder, out=out, says="results.json: cannot be read")
    run = evaluations.write_training(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    refused(run, out=out, says="has logged nothing yet")
    (run / "config.toml").unlink()
    (run / "metrics.jsonl").mkdir()
    refused(run, out=out, says="config.toml")


def test_a_damaged_line_of_samples_is_named_and_leaves_the_old_page(tmp_path):
    folder = evaluations.write(tmp_path / "e", "m", {"t": [Problem("p", RIGHT)]})
    report(folder, out=tmp_path / "r.html")
    before = (tmp_path / "r.html").read_bytes()
    (folder / "answers.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(UserError, match=r"answers.jsonl:1"):
        report(folder, out=tmp_path / "r.html")
    assert (tmp_path / "r.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "r.html", "r.md"]


def test_only_our_own_files_are_written_over(tmp_path):
    folder = evaluations.write_training(tmp_path / "run")
    out = tmp_path / "r.html"
    report(folder, out=out)
    report(folder, out=out)
    (tmp_path / "r.md").write_text("notes")
    with pytest.raises(UserError, match=r"r.md: is there, and no report"):
        report(folder, out=out)
    assert (tmp_path / "r.md").read_text() == "notes"
    report(folder, out=out, overwrite=True)
    assert (tmp_path / "r.md").read_text().startswith("<!-- skytrain report -->")
    refused(folder, out=tmp_path / "r.pdf", says="must end in .html")
    refused(folder, out=tmp_path / "nowhere" / "r.html", says="no folder")
    (tmp_path / "d.html").mkdir()
    refused(folder, out=tmp_path / "d.html", says="not a regular file", overwrite=True)


# Texts


HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>\u202e\0 $\\frac{1}{2}$ \u2028"


def test_no_text_gets_out_of_its_place(tmp_path):
    problem = Problem(HOSTILE, RIGHT, HOSTILE, question=HOSTILE + "\ud800", gold=HOSTILE, answer=lambda i: HOSTILE)
    changed = {"title": HOSTILE, "warnings": [HOSTILE], "system": HOSTILE, "sampling": {HOSTILE: HOSTILE}}
    folder = evaluations.write(tmp_path / "e", HOSTILE, {"t": [problem]}, t=changed)
    report(folder, out=tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    assert "<img" not in html and "alert(1)</script>" not in html and "\0" not in html
    assert html.count("<!--") == 1
    # One chunk, the index and the page's own.
    assert html.count("</script>") == 3
    text = re.search(r'class="chunk">([^<]*)<', html)[1]
    (first, *_) = json.loads(gzip.decompress(base64.b64decode(text)))
    assert first["messages"] == [["system", evaluations.SYSTEM], ["user", HOSTILE + "\ufffd"]]
    assert (first["answer"], first["gold"]) == (HOSTILE, HOSTILE)
    assert json.loads(re.search(r'id="index">([^<]*)<', html)[1])["problems"] == [HOSTILE]
    assert "<" not in (tmp_path / "r.md").read_text().replace("\\<", "").replace("<!-- skytrain report -->", "")


def test_the_policy_names_the_script_and_the_style(tmp_path):
    folder = evaluations.write(tmp_path / "e", "m", {"t": [Problem("p", RIGHT)]})
    report(folder, out=tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    for tag in ("style", "script"):
        (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert f"{tag}-src '{page.digest(inner)}'" in html
    assert "default-src 'none'" in html
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", html)


def test_thoughts_in_tags_are_told_from_the_answer(tmp_path):
    tagged = "<|begin_of_thought|>\nhm\n<|end_of_thought|>\n\\boxed{2}"
    problem = Problem("p", ["correct", "missing"], thoughts=None, answer=lambda i: tagged)
    _, evaluated, _ = read(evaluations.write(tmp_path / "e", "m", {"t": [problem]}))
    (_, _, _, first), (_, _, _, missing) = samples.texts(evaluated)
    assert first["thoughts"] + first["answer"] == tagged
    assert first["answer"] == "\n\\boxed{2}"
    assert (missing["thoughts"], missing["answer"]) == (None, None)


def test_a_large_evaluation_is_written_in_bounded_memory(tmp_path):
    """3,000 samples of 20 kB; the process may hold a small part of these 60 MB."""
    draw = random.Random(0)
    problems = (Problem(f"{i}", RIGHT, answer=lambda _: draw.randbytes(10_000).hex()) for i in range(750))
    folder = evaluations.write(tmp_path / "e", "m", {"t": problems})
    code = (
        "import resource, sys; from skytrain import cli\n"
        "def report(folder, out):\n    a = cli.parse(['report', folder, '--out', out]); a.run(a)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "report(sys.argv[1], sys.argv[3]); before = peak()\n"
        "report(sys.argv[2], sys.argv[3]); print('MiB', peak() - before)"
    )
    small = evaluations.write(tmp_path / "s", "m", {"t": [Problem("p", RIGHT)]})
    words = [sys.executable, "-P", "-c", code, str(small), str(folder), str(tmp_path / "r.html")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert float(done.stdout.rsplit("MiB", 1)[1]) < 30

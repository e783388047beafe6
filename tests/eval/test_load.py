"""Loading a task: which files and problems are taken, what is told of them, and what is refused."""

import gzip
import hashlib
import json
import sys
import types
from dataclasses import replace

import pytest
from benchmarks import aime, choices, gpqa, item, livecodebench, loaded, math500, olympiad, written
from published import encoded, stdin

from skytrain.errors import UserError
from skytrain.eval.load import load
from skytrain.eval.task import Version
from skytrain.eval.tasks import TASKS, task_of

LIVE = TASKS["livecodebench"]


@pytest.fixture
def small():
    """A LiveCodeBench of 2, 5 and 6 problems."""
    files = {name: version.files for name, version in LIVE.versions.items()}
    versions = {f"release_v{n}": Version(files[f"release_v{n}"], problems) for n, problems in ((1, 2), (2, 5), (3, 6))}
    return replace(LIVE, versions=versions)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "published"
    path.mkdir()
    for name, numbers in (("test.jsonl", (0, 1)), ("test2.jsonl", (2, 3, 4)), ("test3.jsonl", (5,))):
        written(path / name, [livecodebench(i) for i in numbers])
    return path


def ids(found):
    return [row["id"] for row in found.items]


# Versions.


def test_the_versions_of_livecodebench():
    versions = LIVE.versions
    assert [version.problems for version in versions.values()] == [400, 511, 612, 713, 880, 1055]
    assert (
        versions["release_v2"].files == ("test.jsonl", "test2.jsonl")
        and versions["release_v6"].files[-1] == "test6.jsonl"
    )


def test_a_version_chooses_files_of_a_folder(tmp_path, folder, small):
    found = load(small, [folder], tmp_path / "items.jsonl", version="release_v2")
    assert ids(found) == ["q0", "q1", "q2", "q3", "q4"] and found.notes == []
    raw = (folder / "test.jsonl").read_bytes()
    assert found.data[0] == ("test.jsonl", len(raw), hashlib.sha256(raw).hexdigest()) and len(found.data) == 2


def test_a_version_agrees_with_the_files(tmp_path, folder, small):
    files = [folder / "test.jsonl", folder / "test2.jsonl"]
    assert len(load(small, files, tmp_path / "items.jsonl", version="release_v2").items) == 5
    assert len(load(small, files, tmp_path / "items.jsonl").items) == 5
    for version, wanted in (("release_v1", "has 2 problems"), ("release_v3", "has 6 problems.*test3.jsonl")):
        with pytest.raises(UserError, match=f"{wanted}"):
            load(small, files, tmp_path / "items.jsonl", version=version)
    # The window leaves fewer, of the same files.
    assert len(load(small, files, tmp_path / "items.jsonl", version="release_v2", since="2023-04-01").items) == 2


def test_a_folder_needs_a_version_and_its_files(tmp_path, folder, small):
    out = tmp_path / "items.jsonl"
    with pytest.raises(UserError, match="name a version"):
        load(small, [folder], out)
    (folder / "test2.jsonl").unlink()
    with pytest.raises(UserError, match=r"has no test2\.jsonl, which release_v2 needs"):
        load(small, [folder], out, version="release_v2")
    with pytest.raises(UserError, match="is a folder; name its files"):
        load(TASKS["aime24"], [folder], out)
    with pytest.raises(UserError, match="no data are named"):
        load(TASKS["aime24"], [], out)


@pytest.mark.parametrize("task, message", [("aime24", "has no versions"), ("livecodebench", "release_v1, release_v2")])
def test_unknown_versions_are_refused(tmp_path, task, message):
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, task, aime(), version="release_v9")


# Windows and limits.


def test_a_window_takes_the_days_at_both_ends(tmp_path):
    rows = [livecodebench(i, contest_date=f"2024-01-{i + 1:02}T23:59:59") for i in range(9)]
    found = loaded(tmp_path, "livecodebench", *rows, since="2024-01-03", until="2024-01-05")
    assert ids(found) == ["q2", "q3", "q4"] and found.notes == []
    assert ids(loaded(tmp_path, "livecodebench", *rows, since="2024-01-08")) == ["q7", "q8"]
    assert ids(loaded(tmp_path, "livecodebench", *rows, until="2024-01-02")) == ["q0", "q1"]
    assert ids(loaded(tmp_path, "livecodebench", *rows, since="2024-01-02", limit=3)) == ["q1", "q2", "q3"]
    with pytest.raises(UserError, match="no problem is of these days"):
        loaded(tmp_path, "livecodebench", *rows, since="2024-02-01")


@pytest.mark.parametrize(
    "task, settings, message",
    [
        ("aime24", {"since": "2024-01-01"}, "no dates"),
        ("livecodebench", {"since": "2024-13-01"}, "since '2024-13-01': must be a day"),
        ("livecodebench", {"until": "20240101"}, "until '20240101': must be a day"),
        ("livecodebench", {"since": "2024-01-02", "until": "2024-01-01"}, "is later than"),
        ("livecodebench", {"limit": 0}, "limit 0"),
    ],
)
def test_settings_that_a_task_does_not_take(tmp_path, task, settings, message):
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, task, livecodebench(), **settings)


def test_a_row_without_a_date_is_refused(tmp_path):
    for date in ("soon", None, 20240101):
        with pytest.raises(UserError, match=r"rows\.jsonl:1: .*'contest_date'"):
            loaded(tmp_path, "livecodebench", livecodebench(contest_date=date))


def test_the_tests_of_problems_outside_of_the_window_are_not_read(tmp_path):
    broken = livecodebench(0, private_test_cases="!", contest_date="2020-01-01")
    assert ids(loaded(tmp_path, "livecodebench", broken, livecodebench(1), since="2023-01-01")) == ["q1"]
    with pytest.raises(UserError, match=r"rows\.jsonl:1: "):
        loaded(tmp_path, "livecodebench", broken)


# What is told.


def test_a_set_of_another_size_is_told_but_not_with_a_limit(tmp_path):
    rows = [aime(i) for i in range(26)]
    assert loaded(tmp_path, "aime24", *rows).notes == ["26 problems, and the published set has 30"]
    found = loaded(tmp_path, "aime24", *rows, limit=5)
    assert found.notes == [] and [row["gold"] for row in found.items] == ["3", "10", "17", "24", "31"]
    assert loaded(tmp_path, "aime24", *(aime(i) for i in range(30))).notes == []


def test_repeated_problems_are_told_and_have_ids_of_their_own(tmp_path):
    rows = [math500(0), math500(1), math500(0, problem="What  is\nnumber 0?"), math500(0)]
    found = loaded(tmp_path, "math500", *rows)
    assert ids(found) == [f"test/algebra/{end}" for end in ("0.json", "1.json", "0.json#2", "0.json#3")]
    assert (
        found.notes[1]
        == "problems with the text of another: 2, the first: test/algebra/0.json#2 as test/algebra/0.json"
    )


def test_problems_without_ids_are_numbered_over_all_files(tmp_path):
    files = [
        written(tmp_path / f"{name}.jsonl", [{"question": f"{name}{i}?", "answer": i} for i in range(2)])
        for name in ("I", "II")
    ]
    found = load(TASKS["aime25"], files, tmp_path / "items.jsonl")
    assert ids(found) == ["aime25-1", "aime25-2", "aime25-3", "aime25-4"]
    assert [name for name, _, _ in found.data] == ["I.jsonl", "II.jsonl"]


def test_skipped_rows_are_counted_by_reason_with_the_first(tmp_path):
    rows = [gpqa(0), choices("pink"), choices("pink"), choices("A", ("x", "", "y"))]
    found = loaded(tmp_path, "gpqa_diamond", *rows)
    assert found.skipped == {"answer_not_among_choices": 2, "empty_choice": 1}
    assert found.notes[0].startswith("rows left out, answer_not_among_choices: 2, the first: ")
    assert "rows.jsonl:2: " in found.notes[0]


def test_no_problem_at_all_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match=r"none of its rows can be asked.*other_language: 1"):
        loaded(tmp_path, "olympiadbench", olympiad(language="Chinese"))
    with pytest.raises(UserError, match="its files hold no rows"):
        loaded(tmp_path, "olympiadbench")


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"problem": ', "not JSON"),
        (b'{"problem": "\xff"}', "not UTF-8"),
        (b"[1, 2]", "not list"),
        (b'{"problem": "x", "answer": 1, "id": NaN}', "is no row of AIME 2024"),
        (b'{"problem": "x", "answer": 1, "id": [1]}', "'id' must be text"),
        (b'{"problem": "\\ud800", "answer": 1}', "is no row of AIME 2024"),
        (b'{"problem": " ", "answer": 1}', "'problem' or 'Problem' or 'question' must be text"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(aime()).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: .*{message}"):
        load(TASKS["aime24"], [path], tmp_path / "items.jsonl")


def test_a_file_packed_by_gzip(tmp_path):
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(json.dumps(aime()).encode()))
    assert len(load(TASKS["aime24"], [tmp_path / "rows.jsonl.gz"], tmp_path / "items.jsonl").items) == 1


# Tests of programs.


def large(i=0, **other):
    tests = [stdin("1\n", f"{1 + i}\n"), stdin("2\n", "x" * 70_000)]
    return livecodebench(i, private_test_cases=encoded(tests), **other)


def test_large_tests_go_to_files_beside_out(tmp_path):
    found = item(tmp_path, "livecodebench", large())
    path = tmp_path / "items.tests"
    assert found["tests"]["file"].startswith(f"{path}/") and found["tests"]["count"] == 3
    judge = TASKS["livecodebench"].judge
    answer = "```python\nn = int(input())\nprint(n if n == 1 else 'x' * 70000)\n```"
    assert judge(found, answer, "bubblewrap").verdict == "correct"
    assert judge(found, answer.replace("70000", "69999"), "bubblewrap").verdict == "wrong"


def test_files_of_tests_do_not_stay_where_loading_fails(tmp_path):
    with pytest.raises(UserError, match=r"rows\.jsonl:2"):
        loaded(tmp_path, "livecodebench", large(), {"a": 1})
    assert not (tmp_path / "items.tests").exists()


def test_tests_of_plain_problems_are_found_from_the_folder_of_their_file(tmp_path, monkeypatch):
    (tmp_path / "set.tests").mkdir()
    (tmp_path / "set.tests/a.jsonl").write_text('["1\\n", "2\\n"]\n')
    row = {"question": "Double.", "tests": {"file": "set.tests/a.jsonl", "count": 1, "fn_name": None}}
    (found,) = loaded(tmp_path, task_of("mine"), row).items
    assert found["tests"]["file"] == str(tmp_path / "set.tests/a.jsonl")


def test_whole_numbers_of_many_digits(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"question": "f", "tests": {"inputs": [[1]], "outputs": [%s], "fn_name": "f"}}\n' % ("7" * 9000)
    )
    limit = sys.get_int_max_str_digits()
    (found,) = load(task_of("mine"), [tmp_path / "rows.jsonl"], tmp_path / "items.jsonl").items
    assert found["tests"]["outputs"][0] % 10 == 7 and sys.get_int_max_str_digits() == limit


# The hub.


@pytest.mark.parametrize(
    "task, version, parts",
    [
        ("math500", None, ("the split test", "HuggingFaceH4/MATH-500", "pip install datasets")),
        ("gpqa_diamond", None, ("Idavidrein/gpqa (gpqa_diamond)",)),
        ("livecodebench", "release_v2", ("test.jsonl and test2.jsonl of livecodebench/code_generation_lite",)),
        ("livecodebench", None, ("name a version",)),
    ],
)
def test_without_data_and_without_the_library_of_the_hub(tmp_path, monkeypatch, task, version, parts):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError) as told:
        load(TASKS[task], None, tmp_path / "items.jsonl", version=version)
    assert all(part in str(told.value) for part in parts) and "\n" not in str(told.value)


def test_a_set_of_the_hub_is_fetched_beside_out(tmp_path, monkeypatch):
    asked = []

    def load_dataset(*names, split, streaming):
        asked.append((*names, split))
        return iter([livecodebench(i) for i in range(2)])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    task = replace(LIVE, versions={"release_v1": Version((), 2)})
    for _ in range(2):
        found = load(task, None, tmp_path / "items.jsonl", version="release_v1")
    assert ids(found) == ["q0", "q1"] and asked == [("livecodebench/code_generation_lite", "release_v1", "test")]
    assert (tmp_path / found.data[0][0]).name.startswith("items.hub-")


def test_plain_problems_have_no_hub(tmp_path):
    with pytest.raises(UserError, match=r"mine: is none of the benchmarks .* name it: mine=FILE"):
        load(task_of("mine"), None, tmp_path / "items.jsonl")

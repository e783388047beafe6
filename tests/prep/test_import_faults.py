"""Importing of odd and broken rows, stops in the middle, and the command."""

import json
import random
import signal
import subprocess
import sys
import types
from datetime import datetime

import pytest
from published import APPS, HUMANEVAL, MATH, NUMINA, STILL2, TACO, big, encoded, imported, lines, live, stdin, written

from skytrain import cli
from skytrain.errors import UserError
from skytrain.prep import formats
from skytrain.prep.importing import import_problems
from skytrain.prep.problems import Malformed

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
        with pytest.raises(UserError, match=r"--hub|from the hub"):
            run_command("--hub", spec, "--out", tmp_path / "hub.jsonl")
    assert not list(tmp_path.glob("*.partial"))


def test_malformed_is_a_value_error_with_one_line():
    with pytest.raises(Malformed) as told:
        formats.numina({**NUMINA, "problem": 5})
    assert "\n" not in str(told.value) and "problem" in str(told.value)

"""The loop's own parts. The whole of it is `make loop`; vLLM and the stages have tests of their own."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import loop
import msgspec
import pytest
from loop_folder import MARKER, LoopFolder
from loop_problems import FAMILIES, boxed, family_of, make_parts, worked
from loop_scores import ALL, STAGES, larger_than_its_interval, summary, told
from loop_serve import program, served
from steps import LAUNCH
from teacher import until

from skytrain.errors import UserError
from skytrain.prep.grade import grade_math
from skytrain.prep.sections import split
from skytrain.prep.stage import FORMAT, Account, Finished

COUNTS = {"held_out": 20, "asked": 30, "taught": 40}
SETTINGS = {"form": "short", "seed": 0}


@pytest.fixture(scope="module")
def parts():
    return make_parts(FAMILIES, COUNTS, seed=3)


def test_no_problem_is_in_two_parts(parts):
    keys = [(family_of(item).name, family_of(item).key(item)) for items in parts.values() for item in items]
    assert len(keys) == len(set(keys)) == len(FAMILIES) * sum(COUNTS.values())
    assert {part: len(items) for part, items in parts.items()} == {name: 3 * count for name, count in COUNTS.items()}


def test_no_worked_solution_is_in_two_parts():
    """Other animals with as many legs are the same sum: models would be asked what they have learned by heart."""
    parts = make_parts(loop.SHORT.families, loop.SHORT.counts, seed=0)
    solutions = {part: {worked(item) for item in items} for part, items in parts.items()}
    assert {part: len(found) for part, found in solutions.items()} == loop.SHORT.counts
    assert len(set().union(*solutions.values())) == sum(loop.SHORT.counts.values())


def test_a_sum_in_another_order_is_the_same_problem():
    one, other, third = (
        {"metadata": {"expression": text}} for text in ("4 + 5 - 2", "5 - 2 + 4", "4 + 5 + 2")
    )  # fmt: skip
    key = FAMILIES["chain_sum"].key
    assert key(one) == key(other) != key(third)


def test_an_equation_in_another_letter_is_the_same_problem():
    items = FAMILIES["simple_equations"].items(300, seed=0)
    equations = [item["metadata"]["equation"].replace(item["metadata"]["variable"], "?") for item in items]
    assert len(set(equations)) == 300


def test_problems_are_the_seeds():
    assert make_parts(["chain_sum"], COUNTS, 1) == make_parts(["chain_sum"], COUNTS, 1)
    assert make_parts(["chain_sum"], COUNTS, 1) != make_parts(["chain_sum"], COUNTS, 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_line_of_a_worked_solution_is_true_and_the_last_has_the_answer(name):
    for item in FAMILIES[name].items(300, seed=5):
        lines = FAMILIES[name].work(item)
        for line in lines:
            left, right = line.split("=")
            assert eval(left) == int(right), (item["question"], line)
        assert lines[-1].split("=")[1] == item["answer"]


def test_worked_solutions_are_what_the_stages_take(parts):
    for item in parts["asked"]:
        thoughts, solution = split(None, worked(item), "math")
        assert thoughts.splitlines() == family_of(item).work(item)
        assert grade_math(solution, item["answer"]) == grade_math(boxed(item), item["answer"]) == "correct"


def test_a_folder_goes_on_and_is_never_another_ones(tmp_path):
    out = tmp_path / "loop"
    with LoopFolder.claimed(out, SETTINGS, overwrite=False) as folder, folder.stage("one"):
        folder.made("made.txt", lambda place: place.write_text("1"))
    with LoopFolder.claimed(out, SETTINGS, overwrite=False) as folder:
        assert folder.done("one") and not folder.done("one", "two")
        folder.made("made.txt", lambda place: pytest.fail("made before"))
    with pytest.raises(UserError, match="begun with"), LoopFolder.claimed(out, {"seed": 1}, overwrite=False):
        pass
    with LoopFolder.claimed(out, {"seed": 1}, overwrite=True) as folder:
        assert not folder.done("one") and not (out / "made.txt").exists() and (out / "recipes" / "data.toml").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with (
        pytest.raises(UserError, match="not a loop's"),
        LoopFolder.claimed(tmp_path / "mine", SETTINGS, overwrite=True),
    ):
        pass
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"settings": {}}', '{"settings": {}, "seconds": []}'])
def test_a_marker_that_the_loop_did_not_write(tmp_path, content):
    (tmp_path / MARKER).write_text(content)
    with pytest.raises(UserError, match="begin anew"), LoopFolder.claimed(tmp_path, SETTINGS, overwrite=False):
        pass
    with LoopFolder.claimed(tmp_path, SETTINGS, overwrite=True) as folder:
        assert folder.seconds == {}


def test_a_loop_begun_before_a_change_of_its_form_does_not_go_on():
    assert loop.digest(loop.SHORT) == loop.digest(loop.SHORT) != loop.digest(replace(loop.SHORT, samples=3))


@pytest.mark.parametrize("word", ["-1", "x", "1.5", str(2**31)])
def test_a_seed_is_one_that_all_take(word, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["loop.py", "--vllm", "x", "--seed", word])
    with pytest.raises(SystemExit):
        loop.main()
    assert f"{word!r} is no whole number from 0 to" in capsys.readouterr().err


def test_a_stage_that_fails_is_not_done(tmp_path):
    claimed = LoopFolder.claimed(tmp_path / "loop", SETTINGS, overwrite=False)
    with pytest.raises(RuntimeError), claimed as folder, folder.stage("one"):
        raise RuntimeError
    assert json.loads((tmp_path / "loop" / MARKER).read_text())["seconds"] == {}


def test_half_made_is_not_made(tmp_path):
    def fail(place):
        place.mkdir()
        (place / "half").touch()
        raise RuntimeError

    with LoopFolder.claimed(tmp_path / "loop", SETTINGS, overwrite=False) as folder:
        with pytest.raises(RuntimeError):
            folder.made("models/one", fail)
        assert not (folder.path / "models" / "one").exists()
        folder.made("models/one", lambda place: place.mkdir())
        assert list((folder.path / "models" / "one").iterdir()) == []


def alive(pid):
    """Not for what has ended and nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


STARTS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import steps
from loop_folder import LoopFolder
with LoopFolder.claimed(Path(sys.argv[2]), {}, overwrite=False) as folder:
    import subprocess
    words = [sys.executable, "-c", "import time; print('started', flush=True); time.sleep(600)"]
    subprocess.run(words, pass_fds=[folder.taken], preexec_fn=steps.end_with_parent)
"""


def test_what_a_killed_loop_started_ends_and_the_next_one_waits_for_it(tmp_path):
    words = [sys.executable, "-P", "-c", STARTS, str(LAUNCH.absolute()), str(tmp_path / "loop")]
    loop = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert loop.stdout.readline() == "started\n"
    children = Path(f"/proc/{loop.pid}/task/{loop.pid}/children").read_text().split()
    assert len(children) == 1
    loop.kill()
    loop.wait()
    started = time.monotonic()
    with LoopFolder.claimed(tmp_path / "loop", {}, overwrite=False):
        assert time.monotonic() - started < 30 and not alive(children[0])


def test_a_server_that_ends_is_told(tmp_path):
    with pytest.raises(UserError, match="make vllm"):
        program(tmp_path)
    (tmp_path / "bin").mkdir()
    vllm = tmp_path / "bin" / "vllm"
    vllm.write_text("#!/bin/sh\necho no such option\nexit 3\n")
    vllm.chmod(0o755)
    told = pytest.raises(UserError, match=r"status 3 .* one; see .*vllm-one.log")
    with told, served(program(tmp_path), {"one": "model"}, tmp_path, 64):
        pass
    assert "no such option" in (tmp_path / "vllm-one.log").read_text()


SERVER = """#!{python}
import http.server, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""


def test_servers_are_ended_on_leaving(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # which is not asked for what is on this host
    (tmp_path / "bin").mkdir()
    vllm = tmp_path / "bin" / "vllm"
    vllm.write_text(SERVER.format(python=sys.executable))
    vllm.chmod(0o755)
    with served(program(tmp_path), {"one": "model", "two": "model"}, tmp_path, 64) as servers:
        assert set(servers) == {"one", "two"} and len(set(servers.values())) == 2
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        running = [pid for pid in children if str(vllm).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(running) == 2
    until(lambda: not any(map(alive, running)))


def test_a_gain_is_held_against_the_whole_width_of_its_interval():
    assert larger_than_its_interval({"mean": 0.3, "low": 0.2, "high": 0.4})
    assert not larger_than_its_interval({"mean": 0.15, "low": 0.05, "high": 0.25})
    assert not larger_than_its_interval({"mean": -0.5, "low": -0.6, "high": -0.4})
    value = {"mean": 0.25, "stderr": None, "low": 0.2, "high": 0.3}
    lines = told(
        {
            "accounts": [{"stage": "filter", "read": 2, "kept": 2}] * len(STAGES),
            "scores": {"m": {"all": value}},
            "gains": {"m -> n": {"all": value}},
        }
    ).splitlines()
    assert lines[-2].split() == ["m", "25.0", "(20.0", "to", "30.0)"] and "+25.0 (+20.0 to +30.0)" in lines[-1]


def test_a_summary_has_scores_gains_and_what_became_of_the_rows(tmp_path):
    for stage in STAGES:
        (tmp_path / f"{stage}.jsonl").touch()
        done = Finished(FORMAT, Account(stage, read=3, kept=2, dropped={"wrong": 1}), {}, [], "")
        (tmp_path / f"{stage}.ledger.json").write_bytes(msgspec.json.encode(done))
    before = {ALL: {"a": [0.0, 0.0], "b": [0.0, 1.0]}}
    after = {ALL: {"a": [1.0, 1.0], "b": [0.0, 1.0]}}
    found = summary({"old": before, "new": after}, [("old", "new")], tmp_path)
    assert found["scores"]["old"][ALL]["mean"] == 0.25 and found["scores"]["new"][ALL]["mean"] == 0.75
    assert found["gains"]["old -> new"][ALL]["mean"] == 0.5
    assert "grade: read 3 = kept 2 + dropped 1 (wrong 1)" in told(json.loads(json.dumps(found)))


def test_the_forms_are_what_the_recipes_know():
    for form in (loop.FULL, loop.SHORT):
        assert (
            set(form.families) <= set(FAMILIES)
            and loop.VERIFIED in form.students
            and set(form.steps) == {loop.TEACHER, loop.BEFORE}
        )
        recipe = (LAUNCH / "recipes" / "loop" / "eval.toml").read_text()
        assert all(f'name = "{name}"' in recipe for name in form.families)

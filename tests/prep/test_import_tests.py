"""The tests of programs: those of LiveCodeBench, which are encoded, and those too large for a row."""

import base64
import json
import os
import pickle
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from published import (
    APPS,
    big,
    encoded,
    imported,
    lines,
    live,
    one,
    stdin,
    why,
    written,
)

from skytrain.prep import encoded_tests
from skytrain.prep.importing import import_problems

# LiveCodeBench.


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("size", [1, 300, 90_000])
def test_livecodebench_reads_every_protocol_of_pickle_without_loading_any(tmp_path, monkeypatch, protocol, size):
    private = [stdin("é\\\n" * size, "2\n"), stdin("5\n", "6\n")]
    # Published files have escapes; this text has letters themselves, and line ends between the tests.
    text = json.dumps(private, ensure_ascii=False, indent=1)
    data = base64.b64encode(zlib.compress(pickle.dumps(text, protocol))).decode()
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("loaded a pickle"))
    monkeypatch.setattr(pickle, "Unpickler", lambda *_: pytest.fail("loaded a pickle"))
    found = one(tmp_path, live([stdin("1\n", "1\n")], data))
    pairs = [["1\n", "1\n"], ["é\\\n" * size, "2\n"], ["5\n", "6\n"]]
    if size < 90_000:
        assert found["tests"] == {"inputs": [i for i, _ in pairs], "outputs": [o for _, o in pairs], "fn_name": None}
    else:
        assert lines(tmp_path / found["tests"]["file"]) == pairs and found["tests"]["count"] == 3
    assert found["id"] == "abc301_a" and found["provenance"]["level"] == "easy"


def test_livecodebench_functions(tmp_path):
    tests = [{"input": '[1, 2]\n"x"', "output": "[[1], null]", "testtype": "functional"}]
    row = live(tests, encoded(tests), metadata='{"func_name": "solve"}', starter_code="class Solution:\n")
    found = one(tmp_path, row)
    assert found["tests"] == {"inputs": ['[1, 2]\n"x"'] * 2, "outputs": ["[[1], null]"] * 2, "fn_name": "solve"}
    assert found["starter"] == "class Solution:\n"


@pytest.mark.parametrize("private", ["[]", "", None, [], encoded([]), json.dumps([stdin("1", "2")])])
def test_livecodebench_private_tests_as_plain_json_or_none(tmp_path, private):
    found = one(tmp_path, live([stdin("0", "1")], private))
    assert len(found["tests"]["inputs"]) == (2 if private and "stdin" in private else 1)
    assert why(tmp_path, live([], "[]"))[0] == "no_tests"


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("pickle_was_loaded",)


def squeezed(data):
    return base64.b64encode(zlib.compress(data)).decode()


TEXT = json.dumps([stdin("1", "2")])
BROKEN = {
    "code": squeezed(pickle.dumps(Exploit())),
    "code behind the string": squeezed(pickle.dumps(TEXT)[:-1] + pickle.dumps(Exploit(), 0)),
    "bytes": squeezed(pickle.dumps(TEXT.encode())),
    "list": squeezed(pickle.dumps([TEXT])),
    "two strings": squeezed(pickle.dumps((TEXT, TEXT))),
    "no pickle": squeezed(TEXT.encode()),
    "empty": squeezed(b""),
    "protocol 6": squeezed(b"\x80\x06" + pickle.dumps(TEXT)[2:]),
    "string cut off": squeezed(pickle.dumps(TEXT)[:40]),
    "no end": squeezed(pickle.dumps(TEXT)[:-1]),
    "behind the pickle": squeezed(pickle.dumps(TEXT) + b"x"),
    "length of 2**64 - 1": squeezed(b"\x80\x04\x8d" + b"\xff" * 8 + b"["),
    "deflate cut off": base64.b64encode(zlib.compress(pickle.dumps(TEXT))[:-9]).decode(),
    "behind deflate": base64.b64encode(zlib.compress(pickle.dumps(TEXT)) + b"more").decode(),
    "base64 cut off": squeezed(pickle.dumps(TEXT))[:-3],
    "no base64": "?" + squeezed(pickle.dumps(TEXT)),
    "no ASCII": "é",
    "an object": squeezed(pickle.dumps('{"input": "1", "output": "2"}')),
    "JSON cut off": squeezed(pickle.dumps(TEXT[:-2])),
    "half a surrogate pair": encoded([stdin("\ud800", "2")]),
    "NaN": squeezed(pickle.dumps('[{"input": NaN, "output": "2"}]')),
    "numbers": encoded([{"input": 1, "output": 2}]),
    "a functional one": encoded([{"input": "1", "output": "2", "testtype": "functional"}]),
    "no objects": encoded([1]),
    "a number": 5,
}


@pytest.mark.parametrize("what", BROKEN)
def test_private_tests_that_are_broken_or_run_code_are_malformed(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    problems, drops = imported(tmp_path, live([], BROKEN[what]), live([], encoded([stdin("1", "2")])))
    assert [drop["reason"] for drop in drops] == ["malformed"] and drops[0]["detail"]
    assert len(problems) == 1, "the row behind it"
    assert not Path("pickle_was_loaded").exists() and not (tmp_path / "problems.tests").exists()


def test_what_decompresses_without_end_is_malformed(tmp_path, monkeypatch):
    monkeypatch.setattr(encoded_tests, "LARGEST", 1 << 20)
    many = [stdin("0" * 1000, "1")] * 2000
    reason, detail = why(tmp_path, live([], encoded(many)))
    assert reason == "malformed" and "1,048,576" in detail
    assert list(tmp_path.glob("problems.tests/*")) == [], "a part of the tests"


def bulky_row(path, size):
    """A LiveCodeBench row with tests of `size` characters that compress to about a tenth."""
    rng, deflate, left = random.Random(5), zlib.compressobj(1), size
    parts = [b"\x80\x04\x8d" + size.to_bytes(8, "little") + b"["]
    left -= 2
    out = []
    while left:
        noise = (rng.randbytes(8000).hex() * 60)[: max(0, min(900_000, left - 60))]
        test = json.dumps(stdin(noise, "1"))
        test += " " * (left - len(test)) if left - len(test) < 200 else ","
        parts.append(test.encode())
        left -= len(test)
        out.append(deflate.compress(b"".join(parts)))
        parts = []
    out.append(deflate.compress(b"]\x94.") + deflate.flush())
    written(path, [live([stdin("1", "1")], base64.b64encode(b"".join(out)).decode())])


# Not ru_maxrss of getrusage: a new process begins there with what its parent had.
MEASURED = """
import sys
from skytrain.prep.importing import import_problems
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
before = peak()
import_problems([sys.argv[1]], sys.argv[2])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_200_megabytes_of_tests_load_in_bounded_memory(tmp_path):
    """D63."""
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bulky_row(path, 200 << 20)
    row = path.stat().st_size
    assert row < 40 << 20, "else the test measures the row and not its tests"
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path), str(out)], capture_output=True, text=True, check=True
    )
    grown = int(done.stdout.split()[-1]) << 10
    tests = lines(out)[0]["tests"]
    assert (tmp_path / tests["file"]).stat().st_size > 190 << 20
    with open(tmp_path / tests["file"], "rb") as file:
        assert tests["count"] == sum(1 for _ in file) > 200
    assert grown < (150 << 20) + row, f"{grown >> 20} MiB for a row of {row >> 20} MiB"


# Large tests.


def test_large_tests_go_to_a_file_named_by_its_content(tmp_path):
    problems, _ = imported(tmp_path, big(), APPS, big(), big("b"))
    assert "inputs" in problems[1]["tests"]
    files = [problems[i]["tests"]["file"] for i in (0, 2, 3)]
    assert files[0] == files[1] != files[2] and all(name.startswith("problems.tests/") for name in files)
    assert lines(tmp_path / files[0]) == [["a" * 40_000, "x"], ["1", "y"], ["a" * 40_000, "z"]]
    assert problems[0]["tests"] == {"file": files[0], "count": 3, "fn_name": None}
    assert len(list((tmp_path / "problems.tests").iterdir())) == 2


def test_64_kib_of_tests_stay_in_the_row(tmp_path):
    def tests(size):
        return {**APPS, "input_output": json.dumps({"inputs": ["a" * size], "outputs": [""]})}

    room = (64 << 10) - len('["",""]\n')
    assert "inputs" in one(tmp_path, tests(room))["tests"] and "file" in one(tmp_path, tests(room + 1))["tests"]


def test_tests_in_a_file_are_found_from_another_folder(tmp_path):
    imported(tmp_path, big())
    (tmp_path / "deeper").mkdir()
    import_problems([tmp_path / "problems.jsonl"], tmp_path / "deeper" / "again.jsonl", source="mine")
    (again,) = lines(tmp_path / "deeper" / "again.jsonl")
    assert (tmp_path / "deeper" / again["tests"]["file"]).resolve().is_file() and again["source"] == "mine"
    next((tmp_path / "problems.tests").iterdir()).unlink()
    account = import_problems([tmp_path / "problems.jsonl"], tmp_path / "third.jsonl")
    assert account.dropped == {"malformed": 1}


def test_a_fuzz_of_encoded_tests(tmp_path):
    rng, rows = random.Random(4), []
    tests = json.dumps([stdin(f"{i}\n", "é" * i) for i in range(8)], ensure_ascii=False)
    for i in range(600):
        data = bytearray(pickle.dumps(tests, i % 6))
        packed = i % 3 == 0
        data = bytearray(zlib.compress(data)) if packed else data
        for _ in range(rng.randint(1, 3)):
            at = rng.choice((rng.randrange(12), rng.randrange(len(data))))
            data[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
        rows.append(live([], base64.b64encode(bytes(data) if packed else zlib.compress(data)).decode()))
    problems, drops = imported(tmp_path, live([stdin("1", "2")], ""), *rows)
    assert len(problems) + len(drops) == 601 and len(drops) > 300
    assert {drop["reason"] for drop in drops} <= {"malformed", "no_tests"}

"""Processes of prep tokenize: the same output for any number, bounded memory, and a clean end however it comes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
from chat_models import write_llama3
from chat_samples import chat, write_jsonl
from transformers import AutoTokenizer

from skytrain.data.dataset import TokenDataset
from skytrain.errors import UserError
from skytrain.prep import tokenize as stage
from skytrain.prep.rows import RawRow
from skytrain.prep.tokenize import tokenize


def test_output_is_the_same_bytes_for_any_number_of_workers(tmp_path, model):
    rows = [chat(f"What is {i % 900}?", "So. " * (i % 50) + str(i % 900)) for i in range(1000)]
    rows[7] = {"messages": []}
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    for workers in (1, 2, 3):
        tokenize([path], model, tmp_path / f"{workers}", workers=workers, max_length=120)
    names = sorted(os.listdir(tmp_path / "1"))
    assert len(names) == 3
    for workers in ("2", "3"):
        assert sorted(os.listdir(tmp_path / workers)) == names
        assert all((tmp_path / workers / n).read_bytes() == (tmp_path / "1" / n).read_bytes() for n in names)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak is read from Linux's /proc")
def test_peak_memory_for_200k_rows_is_bounded(tmp_path):
    """B39: from 20,000 to 200,000 rows the reading, counting and writing process grows by less than 40 MiB.

    Ids of 64 tokens a row would be 44 MiB as bare uint32 arrays, 111 MiB as numpy objects with their marks, more as
    lists. (B39's other half, a tokeniser slower than a collective's time limit: tokenising is a command of its own,
    over before any process group is made.)
    """
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    result = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    small, large = map(int, result.stdout.splitlines()[-1].split())
    assert large - small < 40 << 10, f"{small} KiB at 20,000 rows, {large} KiB at 200,000"


MEASURE = """
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from skytrain.prep import tokenize as stage

marks = np.ones(64, np.uint8)
marks[0] = 0

class Encoder:
    def __init__(self, tokenizer, max_length):
        pass
    def __call__(self, chunk):
        ids = [np.arange(raw.number, raw.number + 64, dtype=np.uint32) for raw in chunk]
        return [stage.Outcome(raw.where, {"id": raw.number}, i, marks, None, 64) for raw, i in zip(chunk, ids)]

stage.Encoder = Encoder
stage.ChatTokenizer = SimpleNamespace(
    load=lambda folder, now: SimpleNamespace(tokenizer_sha256="", chat_template_sha256="")
)
folder = Path(sys.argv[1])
peaks = []
for n in (20_000, 200_000):
    path = folder / f"{n}.jsonl"
    path.write_text("{}\\n" * n)
    info = stage.tokenize([path], "model", folder / f"set-{n}", workers=1)
    assert info.n_docs == n
    # Not ru_maxrss: that begins at what the parent held when it forked, which hides everything below.
    status = Path("/proc/self/status").read_text()
    peaks.append(status.split("VmHWM:")[1].split()[0])
print(*peaks)
"""


def test_workers_are_never_far_ahead_of_the_writer(model):
    """B39, the half with processes: at most 4 chunks a worker are read and not yet written."""
    taken, given = 0, 0

    def chunks():
        nonlocal taken
        for i in range(40):
            taken += 1
            assert taken - given <= 4 * 2
            yield [RawRow("f", i, i, 5, json.dumps(chat(f"q{i}", "a")).encode())]

    recipe = (model, 16384, stage.datetime.now())
    for size, outcomes in stage._in_order(chunks(), None, 2, recipe):
        assert size == 5 and outcomes[0].where == f"f:{given}" and outcomes[0].reason is None
        given += 1
    assert given == taken == 40


@pytest.fixture
def running(tmp_path, model):
    """A run with two workers that has begun to write, in a process group of its own as under a terminal."""
    path = write_jsonl(tmp_path / "a.jsonl", (chat(f"What is {i}?", "So. " * 200 + str(i)) for i in range(20_000)))
    arguments = ["prep", "tokenize", path, "--model", model, "--out", tmp_path / "set", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from skytrain.cli import main; main()", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever starts the tests in the background may have them ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    spilled = tmp_path / "set.unfinished" / "tokens.part"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (spilled.exists() and spilled.stat().st_size):
        time.sleep(0.02)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def group_ends(process):
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_ctrl_c_leaves_nothing_that_looks_finished(tmp_path, running):
    os.killpg(running.pid, signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in stderr and "interrupted" in stderr
    assert os.listdir(tmp_path) == ["a.jsonl"] and group_ends(running)


def test_a_killed_run_takes_its_workers_along(tmp_path, running):
    running.kill()
    running.communicate(timeout=60)
    assert group_ends(running) and not (tmp_path / "set").exists()
    with pytest.raises(UserError, match="unfinished"):
        TokenDataset.open(tmp_path / "set.unfinished")


def test_workers_leave_ctrl_c_to_their_parent(model):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, stage._start_worker, (model, 100, stage.datetime.now())) as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


def test_one_date_for_all_rows_and_workers(tmp_path):
    """A template that prints the date, tokenised around midnight, is the same text in every row."""
    template = (
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ strftime_now('%H%M%S%f') }}\n"
        "{{ m.content }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ strftime_now('%H%M%S%f') }}\n"
        "{% endif %}"
    )
    model = write_llama3(tmp_path / "model", template=template)
    path = write_jsonl(tmp_path / "a.jsonl", (chat(f"{i:04}", "a") for i in range(600)))
    tokenize([path], model, tmp_path / "set", workers=2)
    data = TokenDataset.open(tmp_path / "set")
    hf = AutoTokenizer.from_pretrained(model)
    dates = {hf.decode(data.document(i)[0]).split("assistant<|end_header_id|>")[1] for i in (0, 300, 599)}
    assert len(dates) == 1


def test_a_worker_that_dies_is_one_line(tmp_path, model, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", [chat("a", "b")])
    monkeypatch.setattr(stage, "_in_worker", os._exit)
    monkeypatch.setattr(stage, "_chunks", lambda inputs, ledger: iter([1]))
    monkeypatch.setattr(stage, "_bytes", lambda chunk: 1)
    with pytest.raises(UserError, match="worker process died"):
        tokenize([path], model, tmp_path / "set", workers=2)
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_more_workers_only_for_more_input(tmp_path, model, monkeypatch):
    """A small file is not worth the start of a process."""
    seen = []
    in_order = stage._in_order
    monkeypatch.setattr(stage, "_in_order", lambda c, e, workers, r: seen.append(workers) or in_order(c, e, 1, r))
    monkeypatch.setattr(stage.os, "sched_getaffinity", lambda pid: range(8), raising=False)
    path = write_jsonl(tmp_path / "a.jsonl", [chat("a", "b")])
    tokenize([path], model, tmp_path / "set")
    monkeypatch.setattr(stage, "_size", lambda path: 3 * stage.BYTES_A_WORKER)
    tokenize([path], model, tmp_path / "set", overwrite=True)
    assert seen == [1, 3]

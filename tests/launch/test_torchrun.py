"""What torchrun does to a run: it starts ranks again, passes signals on, and may be killed itself."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs
from tiny_models import VOCAB_SIZE, write_tiny_model

from skytrain import checkpoint, config
from skytrain.locks import lock

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Writes a recipe of runs of six steps an epoch."""
    folder = tmp_path_factory.mktemp("inputs")
    model = write_tiny_model(folder / "model", "qwen2")
    data = runs.write_data(folder / "data", runs.random_documents(24, vocab=VOCAB_SIZE), model)

    def write(run: Path, **more) -> Path:
        settings = runs.settings(model, data, run, export__at_end=False, **more)
        file = run.parent / "recipe.toml"
        file.write_text(config.dumps(settings))
        return file

    return write


@pytest.fixture
def torchrun():
    """Starts a script on two ranks. What still runs when the test has ended is ended: ranks of a test that failed
    would take the machine from all that follow, which then fail as well."""
    started: list[subprocess.Popen] = []

    def start(script: Path, *words: object, **options) -> subprocess.Popen:
        launcher = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        launcher += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen([*launcher, str(script), *map(str, words)], env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.terminate()  # torchrun ends its ranks, by kill -9 after 30 seconds; nothing where it has ended
        process.stdout.close()
        process.wait(120)


def newest(run: Path) -> int:
    found, _ = checkpoint.find(run / "checkpoints")
    return -1 if found is None else int(found.name.removeprefix("step-"))


def wait_for(what, seconds: float = 240.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


def test_a_run_whose_rank_dies_is_started_again_and_goes_on(torchrun, recipe, tmp_path):
    run = tmp_path / "run"
    file = recipe(run, checkpoint__every=1, checkpoint__asynchronous=False)
    process = torchrun(ROOT / "tests" / "support" / "dies_once.py", file, "--resume", "auto", max_restarts=1)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "resume: from" in said
    assert newest(run) == 6
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_launcher_that_is_ended_leaves_a_checkpoint_and_no_rank(number, torchrun, recipe, tmp_path):
    """SIGTERM, which torchrun passes on to its ranks; SIGKILL, of which they hear nothing; Ctrl-C, which a terminal
    sends to all of them, and torchrun to its ranks once more."""
    run = tmp_path / "run"
    process = torchrun(ROOT / "launch" / "train.py", recipe(run, train__epochs=9000))
    metrics = run / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.wait(60)
    wait_for(lambda: newest(run) > 0)
    done = newest(run)
    # The first rank holds the folder as long as it lives.
    wait_for(lambda: (held := lock(run)) is not None and os.close(held) is None)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, done + 1))


def test_a_mistake_is_the_last_thing_that_torchrun_writes_and_stands_there_once(torchrun, tmp_path):
    """What ranks write themselves would stand above forty lines of torchrun's own. The first rank tells it, and comes
    late, as on a busy machine: torchrun prints what the earliest has told."""
    late = tmp_path / "late.py"
    late.write_text(
        "import os, runpy, time\n"
        "time.sleep(3.0 * (os.environ['RANK'] == '0'))\n"
        f"runpy.run_path({str(ROOT / 'launch' / 'train.py')!r}, run_name='__main__')\n"
    )
    process = torchrun(late, "nowhere.toml")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    line = f"error: recipe nowhere.toml: No such file or directory in {Path.cwd()}; give the path of a TOML recipe"
    assert said.count(line) == 1, said
    assert line in said.splitlines()[-2], said


def test_an_environment_without_skytrain_is_told(tmp_path):
    """As the torchrun of another one is."""
    other = tmp_path / "launch"
    other.mkdir()
    (tmp_path / "skytrain").symlink_to(ROOT / "skytrain")
    (other / "train.py").write_bytes((ROOT / "launch" / "train.py").read_bytes())
    command = [sys.executable, "-S", "-P", str(other / "train.py"), "recipe.toml"]  # -S: without what is installed
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: skytrain is not installed for {sys.executable}: ")
    assert done.stderr.count("\n") == 1

"""launch/slurm.sh, with commands in Slurm's place: what it starts, and what it does when its time is nearly over."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from torch.distributed.run import get_args_parser

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "slurm.sh"
SRUN = """
import os, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
open(os.environ["FAKES"] + "/step", "w").write(str(os.getpid()))
os.execvp(words[0], words)
"""
SCANCEL = """
import os, signal, sys
assert sys.argv[1:] == ["--signal=USR1", "42"], sys.argv
os.kill(int(open(os.environ["FAKES"] + "/step").read()), signal.SIGUSR1)
"""
SCONTROL = """
import os, sys
if sys.argv[1] == "show":
    print("localhost\\nsecond")
else:
    open(os.environ["FAKES"] + "/asked", "a").write(" ".join(sys.argv[1:]) + "\\n")
"""
SHOWN = "import json, sys; print(json.dumps(sys.argv[1:]))"
TORCHRUN = """
import os, sys
os.execv(sys.executable, [sys.executable, "-P", "-m", "torch.distributed.run", *sys.argv[1:]])
"""
RANK = """
import os, time
from pathlib import Path
from skytrain import signals
signals.listen()
file = Path(__file__).with_name("listens-" + os.environ["RANK"])
file.touch()
until = time.monotonic() + 60
while signals.asked() is None and time.monotonic() < until:
    time.sleep(0.05)
time.sleep(1.0)  # as if it saved
file.write_text(str(signals.asked()))
"""


def started(folder: Path, torchrun: str, *words: object, nodes: int = 1, clone: Path = ROOT) -> subprocess.Popen:
    """The script as sbatch would start it in `clone`, on `nodes` of 2 GPUs."""
    bin = folder / "bin"
    bin.mkdir()
    for name, text in {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL, "torchrun": torchrun}.items():
        (bin / name).write_text(f"#!{sys.executable} -P\n{text}")
        (bin / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    slurm = {"JOB_ID": "42", "JOB_NODELIST": "n[1-2]", "JOB_NUM_NODES": str(nodes), "GPUS_ON_NODE": "2"}
    environment = os.environ | {f"SLURM_{name}": value for name, value in slurm.items()}
    environment |= {"PATH": f"{bin}:{os.environ['PATH']}", "FAKES": str(folder), "PORT": str(port)}
    command = ["bash", "launch/slurm.sh", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=clone, env=environment | {"OMP_NUM_THREADS": "1"}, **pipes)


def test_it_is_a_script_that_bash_can_read():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert os.access(SCRIPT, os.X_OK)


def test_torchrun_understands_its_line(tmp_path):
    process = started(tmp_path, SHOWN, "recipe.toml", "parallel.nodes=2", "run.dir=a b", nodes=2)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    found = get_args_parser().parse_args(json.loads(said))
    assert (found.nnodes, found.nproc_per_node, found.max_restarts, found.rdzv_backend) == ("2", "2", 3, "c10d")
    assert found.rdzv_id == "42-0" and found.rdzv_endpoint.startswith("localhost:")
    assert found.training_script == "launch/train.py"
    assert found.training_script_args == ["recipe.toml", "parallel.nodes=2", "run.dir=a b", "--resume", "auto"]
    assert not (tmp_path / "asked").exists()


def test_without_a_recipe_it_says_what_to_give(tmp_path):
    process = started(tmp_path, SHOWN)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "usage: sbatch launch/slurm.sh RECIPE.toml" in said


def test_a_run_that_fails_is_not_queued_again(tmp_path):
    process = started(tmp_path, "import sys; sys.exit(3)", "recipe.toml")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert not (tmp_path / "asked").exists()


def test_before_its_end_the_ranks_are_asked_to_stop_and_the_job_is_queued_again(tmp_path):
    """With torchrun itself. Slurm signals the process that it has started, not its children. What ranks do that are
    asked is in test_watch.py; these wait for it, and load nothing."""
    clone = tmp_path / "clone" / "launch"
    clone.mkdir(parents=True)
    (clone / "slurm.sh").symlink_to(SCRIPT)
    (clone / "train.py").write_text(RANK)
    process = started(tmp_path, TORCHRUN, "recipe.toml", clone=clone.parent)
    until = time.monotonic() + 120
    while len(list(clone.glob("listens-*"))) < 2:
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert (tmp_path / "asked").read_text() == "requeue 42\n"
    assert {path.name: path.read_text() for path in clone.glob("listens-*")} == {
        "listens-0": "SIGUSR1", "listens-1": "SIGUSR1",
    }  # fmt: skip


def test_its_pages_name_the_words_that_it_takes():
    page = (SCRIPT.parent / "multi_node.md").read_text(encoding="utf-8")
    lines = [shlex.split(line) for line in page.splitlines() if line.startswith("sbatch ")]
    assert len(lines) == 2
    for words in lines:
        assert words[words.index("launch/slurm.sh") + 1 :][0] == "launch/recipes/sky_t1_32b.toml"

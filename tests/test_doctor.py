"""`skytrain doctor` on machines that are not this one: what is missing or broken is told, and nothing is made up."""

import copy
import json
import os
import subprocess
import sys
import time

import commands
import pytest

from skytrain import cli, doctor_command
from skytrain.doctor import judged, trains
from skytrain.doctor_facts import CORE, OWN_PROCESSES, find_vllm, gather, nvidia_smi, tried

GIB = 2**30
H100 = {"name": "NVIDIA H100 80GB HBM3", "memory": 85_017_755_648, "capability": [9, 0], "problem": None}


def machine(gpus=(), **changes) -> dict:
    """The facts of a machine where all is well."""
    names = [name for names in OWN_PROCESSES for name in names]
    tries = {name: {"version": "1.2"} for name in names}
    build = {"version": "2.13.0+cu130", "cuda": "13.0", "hip": None, "nccl": True}
    tries["torch"] = build | {"gpus": [dict(gpu) for gpu in gpus]}
    if gpus:
        tries["kernel"] = {"version": ""}
    facts = {
        "tries": tries,
        "smi": {"gpus": [gpu["name"] for gpu in gpus], "driver": "580.1"} if gpus else None,
        "compiler": {"path": "/usr/bin/c++", "version": "12", "cpp20": True},
        "vllm": {"path": "/env/bin/vllm", "version": "0.32.0"},
        "python": [3, 12, 1],
        "executable": "/env/bin/python",
        "cores": 32,
        "memory": 512 * GIB,
        "disk": 900 * GIB,
        "shm": 64 * GIB,
        "files": 65536,
    }
    return facts | changes


def with_tries(facts: dict, **changes) -> dict:
    """`__` stands for a dot."""
    facts = copy.deepcopy(facts)
    facts["tries"] |= {name.replace("__", "."): told for name, told in changes.items()}
    return facts


def finding(facts: dict, name: str, group: str = "train"):
    (found,) = [each for each in judged(facts)[group] if each.name == name]
    return found


def not_ok(facts: dict) -> set[str]:
    return {each.name for group in judged(facts).values() for each in group if each.state != "ok"}


def test_a_node_of_8_gpus_where_all_is_well():
    facts = machine([H100] * 8)
    assert not_ok(facts) == set()
    assert trains(judged(facts))
    gpu = finding(facts, "GPU")
    for word in ("8 x NVIDIA H100 80GB HBM3, 79.2 GiB", "capability 9.0", "bf16", "driver 580.1", "h100-80gb"):
        assert word in gpu.what


def test_a_machine_without_a_gpu_trains_on_the_cpu():
    facts = machine()
    assert not_ok(facts) == {"GPU"}
    assert "trains tiny models on the CPU" in finding(facts, "GPU").what
    assert trains(judged(facts))


MISSING = {"missing": True}


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"torch": MISSING}, "torch", "nothing trains here"),
        ({"torch": {"error": "OSError: libcudart.so.13: no such file"}}, "torch", "libcudart.so.13"),
        ({"skytrain___pack": MISSING}, "skytrain._pack", "not built"),
        ({"numpy": {"error": "ImportError: bad numpy"}}, "libraries", "numpy: ImportError: bad numpy"),
        ({"kernel": {"error": "RuntimeError: no C compiler"}}, "triton", "no C compiler"),
        ({"triton": MISSING}, "triton", "not installed"),
    ],
)
def test_what_no_gpu_trains_without(changes, name, words):
    facts = with_tries(machine([H100] * 8), **changes)
    found = finding(facts, name)
    assert found.state != "ok" and words in found.what and found.remedy
    assert not trains(judged(facts))


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"flash_attn": MISSING, "flash_attn__cute": MISSING}, "flash-attn", "torch's own kernels"),
        ({"flash_attn": {"error": "ImportError: undefined symbol"}, "flash_attn__cute": MISSING}, "flash-attn", "symb"),
        ({"flash_attn__cute": {"error": "ImportError: cutlass"}, "flash_attn": MISSING}, "flash-attn 4", "cutlass"),
        ({"liger_kernel": MISSING}, "liger-kernel", "not installed"),
        ({"torchao": {"error": "AttributeError: x"}}, "torchao", "AttributeError: x: no train.float8"),
        ({"tensorboard": MISSING}, "tensorboard", "log.tensorboard=false"),
        ({"transformers": MISSING}, "transformers", "verify export"),
        ({"skytrain___C": {"error": "ImportError: undefined symbol"}}, "skytrain._C", "undefined symbol"),
    ],
)
def test_what_training_can_do_without(changes, name, words):
    facts = with_tries(machine([H100] * 8), **changes)
    found = finding(facts, name)
    broken = any("error" in told for told in changes.values())
    assert found.state == ("limited" if broken else "missing")
    assert words in found.what and found.remedy
    assert trains(judged(facts))


def test_gpus_that_torch_does_not_use():
    smi = {"gpus": [H100["name"]] * 8, "driver": "580.1"}
    cpu = machine(smi=smi)
    cpu["tries"]["torch"]["cuda"] = None
    old, without = machine(smi=smi), with_tries(machine(smi=smi), torch=MISSING)
    for facts, words in [(cpu, "built without CUDA"), (old, "finds none of them"), (without, "no torch")]:
        found = finding(facts, "GPU")
        assert words in found.what and "8 x NVIDIA H100" in found.what and found.remedy
        assert not trains(judged(facts))
    broken = machine(smi={"error": "does not answer"})
    assert "driver does not work" in finding(broken, "GPU").what
    assert not trains(judged(broken))


def test_gpus_that_are_odd():
    old = machine([H100 | {"name": "Tesla V100-SXM2-16GB", "capability": [7, 0]}])
    assert "no bf16" in finding(old, "GPU").what
    unknown = machine([H100 | {"name": "NVIDIA H9000"}])
    assert "not in the hardware table" in finding(unknown, "GPU").what
    assert "--calibrate" in finding(unknown, "GPU").remedy
    busy = machine([H100] * 7 + [H100 | {"problem": "RuntimeError: out of memory"}])
    states = [(each.state, each.what[:3]) for each in judged(busy)["train"] if each.name == "GPU"]
    assert states == [("ok", "7 x"), ("limited", "1 x")]
    assert not trains(judged(busy))
    lonely = machine([H100] * 2)
    lonely["tries"]["torch"]["nccl"] = False
    assert not trains(judged(lonely))
    assert "NCCL" not in {each.name for each in judged(machine([H100]))["train"]}


def test_the_machine_s_own_figures():
    small = machine([H100] * 2, disk=3 * GIB, shm=64 << 20, files=256, compiler=None, python=[3, 10, 2])
    assert not_ok(small) == {"disk", "/dev/shm", "open files", "C++ compiler", "Python"}
    assert not trains(judged(small)), "Python 3.10"
    assert trains(judged(small | {"python": [3, 13, 0]}))
    old = machine(compiler={"path": "/usr/bin/c++", "version": "7", "cpp20": False})
    assert "C++20" in finding(old, "C++ compiler").what


def test_older_torch():
    facts = machine()
    facts["tries"]["torch"]["version"] = "2.9.1"
    assert "older than 2.11" in finding(facts, "torch").what
    assert not trains(judged(facts))


def test_programs_that_cannot_be_graded_or_only_with_less():
    no_bwrap = {"error": "sandbox 'bubblewrap': there is no bwrap on the PATH"}
    less = with_tries(machine(), **{"programs:bubblewrap": no_bwrap})
    found = finding(less, "programs", "grade")
    assert (found.state, found.remedy) == ("limited", "apt-get install bubblewrap")
    assert "process" in found.what and "hides neither files" in found.what
    assert finding(less, "programs", "evaluate").state == "missing"
    assert finding(less, "mathematics", "evaluate").state == "ok"
    spaces = {"error": "sandbox 'bubblewrap' does not start: bwrap: setting up uid map: Permission denied"}
    assert "sysctl" in finding(with_tries(less, **{"programs:bubblewrap": spaces}), "programs", "grade").remedy
    none = with_tries(less, **{"programs:process": {"error": "no pipes"}})
    assert "programs cannot be graded" in finding(none, "programs", "grade").what


def test_what_asks_and_reads():
    facts = with_tries(
        machine(), aiohttp=MISSING, latex2sympy2_extended=MISSING, answers={"error": "a"}, pyarrow=MISSING
    )
    assert {"servers", "Parquet", "answers", "mathematics", "programs"} < not_ok(facts)
    assert "aiohttp" in finding(facts, "mathematics", "evaluate").what
    assert trains(judged(facts))


def package(folder, name, code):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder whose packages stand before those that are installed."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
    return folder


def test_packages_that_are_missing_broken_or_fatal(packages):
    package(packages, "breaks", "raise RuntimeError('first line\\nsecond')")
    package(packages, "talks", "import os\nprint('{}')\nos.write(1, b'noise')\n__version__ = '7'")
    package(packages, "dies", "import os\nos.kill(os.getpid(), 11)")
    package(packages, "leaves", "import sys\nsys.exit(3)")
    package(packages, "ends", "import os\nos._exit(4)")
    package(packages, "lacks", "import what_it_needs_is_absent")
    names = ["breaks", "dies", "talks", "leaves", "ends", "lacks", "is_not_there", "is_not.there", "json"]
    found = tried(names)
    assert list(found) == names
    assert found["breaks"] == {"error": "RuntimeError: first line"}
    assert found["dies"] == {"error": "ends the process with signal 11"}
    assert found["talks"] == {"version": "7"}
    assert found["leaves"] == {"error": "SystemExit: 3"}
    assert found["ends"] == {"error": "ends the process with status 4"}
    assert found["lacks"] == {"error": "ModuleNotFoundError: No module named 'what_it_needs_is_absent'"}
    assert found["is_not_there"] == found["is_not.there"] == {"missing": True}
    assert "version" in found["json"]


def test_an_import_that_never_returns_holds_nothing_up(packages):
    package(packages, "hangs", "import time\ntime.sleep(600)")
    began = time.monotonic()
    found = tried(["json", "hangs", "string"], seconds=4)
    assert time.monotonic() - began < 60
    assert found["hangs"] == {"error": "no answer within 4 s"}
    assert "version" in found["json"] and "version" in found["string"]


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_nvidia_s_own_tool(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_smi() is None
    program(tmp_path / "nvidia-smi", "echo 'NVIDIA H100 80GB HBM3, 580.1'; echo 'NVIDIA H100 80GB HBM3, 580.1'")
    assert nvidia_smi() == {"gpus": ["NVIDIA H100 80GB HBM3"] * 2, "driver": "580.1"}
    program(tmp_path / "nvidia-smi", "echo 'failed, it says'; exit 9")
    assert nvidia_smi() == {"error": "ends with status 9"}


def test_where_vllm_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "own" / "python"))
    monkeypatch.delenv("SKYTRAIN_VLLM", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert find_vllm() is None
    for place in ("cache/skytrain/vllm/bin", "own", "bin"):  # the later, the sooner it is found
        program(tmp_path / place / "vllm", "exit 1")
        assert find_vllm() == {"path": str(tmp_path / place / "vllm"), "version": ""}
    program(tmp_path / "bin" / "python", "echo 0.32.0")
    assert find_vllm()["version"] == "0.32.0"
    for place in ("own", "bin"):
        (tmp_path / place / "vllm").unlink()
    monkeypatch.setenv("SKYTRAIN_VLLM", str(tmp_path / "elsewhere"))
    assert find_vllm() is None, "it says where, and there is none"


def test_the_command_without_torch_and_with_a_broken_core(packages):
    """As a machine where [prep] alone is installed, and one of its packages is not whole."""
    for name in ("torch", "skytrain._C", "triton", "torchao", "tensorboard", "transformers"):
        if "." not in name:
            package(packages, name, f"raise ModuleNotFoundError('No module named {name}', name='{name}')")
    package(packages, "aiohttp", "raise ImportError('a symbol is undefined')")
    code = "from skytrain.cli import main; main()"
    command = [sys.executable, "-P", "-c", code, "doctor"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["trains"] is False
    states = {(group, each["name"]): each["state"] for group, all_ in told["groups"].items() for each in all_}
    assert states["train", "torch"] == "missing"
    assert states["train", "libraries"] == states["train", "skytrain._pack"] == "ok"
    assert states["prepare data", "servers"] == "limited"
    assert states["grade", "answers"] == "ok"


def test_this_machine(monkeypatch, capsys):
    """All that is told of it is so: the tests around this one could not run else."""
    found = {}
    monkeypatch.setattr("skytrain.doctor_facts.gather", lambda: found.setdefault("facts", gather()))
    done = commands.run("doctor")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[0] == "train"
    assert done.stdout.splitlines()[-1] == "this machine trains"
    tries = found["facts"]["tries"]
    assert all("version" in tries[name] for name in (*CORE, "torch", "skytrain._pack", "skytrain._C", "answers"))
    for line in done.stdout.splitlines():
        assert len(line) < 250 and "Traceback" not in line


def test_other_commands_are_there_beside_it(capsys):
    with pytest.raises(SystemExit):
        cli.parse(["--help"])
    told = capsys.readouterr().out
    assert all(f"    {name} " in told for name in ("prep", "plan", "export", "eval", "verify", "report", "doctor"))
    assert cli.parse(["doctor", "--json"]).run is doctor_command.run

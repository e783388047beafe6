"""What there is on this machine, looked at from outside of the packages: nothing here imports one, or waits for
ever."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from skytrain.host import host_memory, vllm_program

SECONDS = 60.0
"""For one process of tries."""
CORE = ("numpy", "safetensors", "tokenizers", "jinja2", "rich", "msgspec")
GPU_ONLY = ("flash_attn", "flash_attn.cute", "liger_kernel")
OWN_PROCESSES = (
    # torch first: of those that import it, it is then the one that is told to be broken.
    (*CORE, "skytrain._pack", "torch", "skytrain._C", "triton", *GPU_ONLY, "torchao", "tensorboard", "transformers"),
    ("pyarrow", "aiohttp", "latex2sympy2_extended", "answers", "programs:bubblewrap", "programs:process"),
)
"""Tries, in processes that run beside each other. Each name follows those that it needs."""

Facts = dict[str, Any]


def gather() -> Facts:
    """Everything that is told, as JSON holds it: `tries` by name, and the machine's own figures."""
    with ThreadPoolExecutor() as threads:
        tries = [threads.submit(tried, names) for names in OWN_PROCESSES]
        drivers, compiler, vllm = (threads.submit(look) for look in (nvidia_smi, compiles, find_vllm))
        found: Facts = {"tries": {name: told for each in tries for name, told in each.result().items()}}
        found |= {"smi": drivers.result(), "compiler": compiler.result(), "vllm": vllm.result()}
    if found["tries"]["torch"].get("gpus") and "version" in found["tries"]["triton"]:
        found["tries"] |= tried(["kernel"])
    return found | {
        "python": list(sys.version_info[:3]),
        "executable": sys.executable,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory": host_memory(),
        "disk": free(Path()),
        "shm": free(Path("/dev/shm")),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def tried(names: Sequence[str], seconds: float = SECONDS) -> dict[str, dict[str, Any]]:
    """What `doctor_probe` tells of each name. One that ends or holds up its process has an `error`, and the others are
    tried without it."""
    found: dict[str, dict[str, Any]] = {}
    waiting = list(names)
    while waiting:
        command = [sys.executable, "-P", "-m", "skytrain.doctor_probe", *waiting]
        status, text = output(command, seconds)
        for line in text.splitlines():
            with contextlib.suppress(ValueError):  # cut off, where the process was ended
                told = json.loads(line)
                found[told.pop("name")] = told
        waiting = [name for name in waiting if name not in found]
        if waiting:
            found[waiting.pop(0)] = {"error": ended(status, seconds)}
    return found


def ended(status: int | None, seconds: float) -> str:
    if status is None:
        return f"no answer within {seconds:g} s"
    return f"ends the process with signal {-status}" if status < 0 else f"ends the process with status {status}"


def output(command: Sequence[str], seconds: float, given: bytes = b"") -> tuple[int | None, str]:
    """(exit status, standard output) of a command; status None where it took longer, or could not be started."""
    try:
        done = subprocess.run(
            command, input=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as late:
        return None, (late.output or b"").decode(errors="replace")
    except OSError:
        return None, ""
    return done.returncode, done.stdout.decode(errors="replace")


def nvidia_smi() -> dict[str, Any] | None:
    """`gpus`, by name, and `driver`, as NVIDIA's own tool tells them, `error` where it fails; None where it is not
    there."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    status, text = output(query, 15.0)
    rows = [line.rsplit(",", 1) for line in text.splitlines() if "," in line]
    if status != 0 or not rows:
        return {"error": "does not answer" if status is None else f"ends with status {status}"}
    return {"gpus": [name.strip() for name, _ in rows], "driver": rows[0][1].strip()}


def compiles() -> dict[str, Any] | None:
    """The C++ compiler that the extensions would be built with, and whether it takes C++20; None where there is
    none."""
    path = shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")
    if path is None:
        return None
    status, _ = output([path, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"], 15.0, b"#include <span>\nint main() {}")
    _, version = output([path, "-dumpversion"], 15.0)
    return {"path": path, "version": version.strip(), "cpp20": status == 0}


def find_vllm() -> dict[str, str] | None:
    """Its command and version. It is not started, which takes longer than all of the rest."""
    path = vllm_program()
    if path is None:
        return None
    code = "from importlib.metadata import version; print(version('vllm'))"
    status, version = output([str(Path(os.path.realpath(path)).parent / "python"), "-c", code], 15.0)
    return {"path": path, "version": version.strip() if status == 0 else ""}


def free(folder: Path) -> int | None:
    """Bytes that a file could take there, None where there is no such folder."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None

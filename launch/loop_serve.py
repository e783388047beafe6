"""vLLM servers of the loop: each serves one small model on a CPU, and none outlives the process that started it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from steps import end_with_parent

from skytrain.errors import UserError

START_SECONDS = 600
"""Most of a start is importing: one to two minutes on two cores, more where they are shared."""

OPTIONS = [
    "--enforce-eager", "--dtype", "float32",
    # On a CPU vLLM 0.32 dies of a seeded request whose prompt comes in parts: its generators have no offset.
    "--max-num-batched-tokens", "65536",
]  # fmt: skip
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy that the environment names has another 127.0.0.1."""
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # so that it tells its dtype and parallelism
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def program(folder: Path) -> Path:
    """`vllm` in an environment that `make vllm` made. UserError where there is none."""
    found = (folder / "bin" / "vllm").absolute()
    if not found.exists():
        raise UserError(f"--vllm {folder}: holds no bin/vllm, which serves the loop's models; make vllm installs it")
    return found


@contextmanager
def served(
    vllm: Path, models: dict[str, str], folder: Path, max_model_len: int, held: Sequence[int] = ()
) -> Iterator[dict[str, str]]:
    """Name to address of a server for each of `models`, started side by side; ended on leaving.

    folder: where the commands are given, that models' paths are from; vllm-NAME.log is written there. held: as in
    `steps.command`. Raises `UserError` for a server that ends, or is not ready in `START_SECONDS`.
    """
    with ExitStack() as stack:
        started = {}
        for name, model in models.items():
            log = folder / f"vllm-{name}.log"
            port = _free_port()
            command = [vllm, "serve", model, "--served-model-name", name, "--host", "127.0.0.1", "--port", port]
            command += ["--max-model-len", max_model_len, *OPTIONS]
            words = [str(word) for word in command]
            print("$", *words, flush=True)
            started[name] = stack.enter_context(_process(words, folder, log, held)), log, port
        deadline = time.monotonic() + START_SECONDS
        for name, (process, log, port) in started.items():
            _wait(name, process, log, port, deadline)
        yield {name: f"http://127.0.0.1:{port}/v1" for name, (_, _, port) in started.items()}


@contextmanager
def _process(words: list[str], folder: Path, log: Path, held: Sequence[int]) -> Iterator[subprocess.Popen]:
    with log.open("ab") as file:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C is the loop's to answer, and comes to the server as its end.
            pass_fds=held,
            preexec_fn=end_with_parent,
        )
    try:
        yield process
    finally:
        if process.poll() is not None:
            print(f"vLLM has ended by itself, with status {process.returncode}; see {log}", flush=True)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(name: str, process: subprocess.Popen, log: Path, port: int, deadline: float) -> None:
    while True:
        if process.poll() is not None:
            raise UserError(f"vLLM ended with status {process.returncode} while it began to serve {name}; see {log}")
        try:
            with DIRECT.open(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise UserError(f"vLLM does not serve {name} after {START_SECONDS} s; see {log}")
        time.sleep(0.25)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]

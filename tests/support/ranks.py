"""Runs a function on N ranks, each a process with a gloo process group, and returns what each returned.

The ranks are forked from a server that has imported what they need (forked.py). The function travels as (file, name),
since pytest's importlib mode gives test modules names that no other process can import; arguments and results are
pickled.
"""

from __future__ import annotations

import gc
import importlib.util
import inspect
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import forked


def run_ranks(
    world: int, function: Callable[..., Any], *args: Any, timeout: float = 120.0, process_group: bool = True
) -> list[Any]:
    """`function(*args)` on ranks 0 .. world - 1; returns the results in the order of the ranks.

    `function` is at the top level of its file. RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT are set as torchrun would set them; `process_group=False` leaves the initialisation to the function.
    The environment is this process's at the time of the call. A rank that raises, dies or runs past `timeout`
    seconds ends all of them, and the AssertionError holds the tracebacks.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        processes = start_ranks(world, function, *args, folder=folder, timeout=timeout, process_group=process_group)
        try:
            trouble = _wait(processes, time.monotonic() + timeout, timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()
        texts = [path.read_text() for path in sorted(Path(folder).glob("error-*"))]
        if trouble or texts:
            raise AssertionError("\n".join([trouble or "a rank failed", *texts]))
        return [pickle.loads((Path(folder) / f"result-{rank}").read_bytes()) for rank in range(world)]


def start_ranks(
    world: int,
    function: Callable[..., Any],
    *args: Any,
    folder: str | Path,
    timeout: float = 120.0,
    process_group: bool = False,
) -> list[multiprocessing.Process]:
    """Ranks as `run_ranks` has them, for whoever ends them himself. In `folder` are then `result-N` or `error-N`."""
    context = forked.context()
    environment = os.environ | {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    where = (str(Path(inspect.getfile(function)).resolve()), function.__qualname__)
    processes = [
        context.Process(
            target=_rank_main,
            args=(rank, where, args, environment, list(sys.path), str(folder), timeout, process_group),
            daemon=True,
        )
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _wait(processes: list, deadline: float, timeout: float) -> str | None:
    """None when every rank ended well, else what went wrong first."""
    while any(process.exitcode is None for process in processes):
        failed = [rank for rank, process in enumerate(processes) if process.exitcode not in (None, 0)]
        if failed:
            # The others wait in a collective for a rank that is gone.
            return f"rank {failed[0]} ended with status {processes[failed[0]].exitcode}"
        if time.monotonic() > deadline:
            alive = [rank for rank, process in enumerate(processes) if process.exitcode is None]
            return f"ranks {alive} still ran after {timeout} s"
        time.sleep(0.01)
    failed = [rank for rank, process in enumerate(processes) if process.exitcode != 0]
    return f"rank {failed[0]} ended with status {processes[failed[0]].exitcode}" if failed else None


def _rank_main(
    rank: int,
    where: tuple[str, str],
    args: tuple,
    environment: dict[str, str],
    path: list[str],
    folder: str,
    timeout: float,
    process_group: bool,
) -> None:
    try:
        gc.freeze()  # What was imported is no garbage to look for, nor memory to copy for the looking.
        os.environ.clear()
        os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
        sys.path[:] = path
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        if process_group:
            # A file instead of a port: nothing to clash with another test.
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/store",
                rank=rank,
                world_size=int(environment["WORLD_SIZE"]),
                timeout=timedelta(seconds=timeout),
            )
        result = _load(*where)(*args)
        (Path(folder) / f"result-{rank}").write_bytes(pickle.dumps(result))
        if process_group:
            dist.destroy_process_group()
    except BaseException:
        (Path(folder) / f"error-{rank}").write_text(f"--- rank {rank} ---\n{traceback.format_exc()}")
        # Not sys.exit: threads of a half-finished collective would keep the process alive.
        os._exit(1)


def _load(file: str, name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(f"rank_module_{Path(file).stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up
    spec.loader.exec_module(module)
    return getattr(module, name)

"""The only store of measured numbers: append-only CSV files in bench/results, one measured value a line."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def append(name: str, rows: list[dict[str, object]]) -> Path:
    """Adds rows to results/<name>.csv, with date, commit, machine and versions; returns its path.

    All rows of a file have the same keys, in the same order; ValueError where they would not.
    """
    rows = [_circumstances() | row for row in rows]
    columns = list(rows[0])
    path = RESULTS / f"{name}.csv"
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            there = next(csv.reader(file))
        if there != columns:
            raise ValueError(f"{path} has the columns {there}, not {columns}")
    if any(list(row) != columns for row in rows):
        raise ValueError("the rows differ in their keys")
    path.parent.mkdir(exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)
    return path


def _circumstances() -> dict[str, object]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": f"{_cpu()}, {os.cpu_count()} cores",
        "versions": " ".join([f"python {platform.python_version()}", *map(_version, ("numpy", "torch"))]),
    }


def _commit() -> str:
    """Short hash of HEAD, marked where a file other than the results differs from it."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(RESULTS.parent.parent), *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
        return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} none"

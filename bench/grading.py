"""Verdicts a second: python bench/grading.py [--times 20] [--rounds 5] [--only math | programs]

Mathematics: the handed cases of tests/cases/math_verdicts.jsonl, without those that run into their deadline, many times
over and asked from more threads than there are worker processes (one a core). The workers are started beforehand.

Programs: the handed ones of tests/cases/programs.jsonl that read their input and pass, many times over, each in its own
sandbox, from two threads a core: a start waits for the kernel to make its network namespace.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import record
from timing import summary

from skytrain.prep.grade import grade_code, grade_math

CASES = Path(__file__).resolve().parents[1] / "tests" / "cases"
THREADS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="each case is judged in a round (20)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is told (5)")
    parser.add_argument("--only", choices=("math", "programs"), help="one of the two alone")
    arguments = parser.parse_args()
    rows = []
    for name, measure in (("math", math_rates), ("programs", program_rates)):
        if arguments.only in (None, name):
            parts = vars(summary(measure(arguments.times, arguments.rounds)))
            metric = {"math": "math verdicts a second", "programs": "sandboxed programs a second"}[name]
            rows += [
                {"metric": f"{metric}, {part}", "value": f"{value:.4g}", "unit": "1/s"} for part, value in parts.items()
            ]
    for row in rows:
        print(f"{row['metric']}: {row['value']} {row['unit']}")
    print(record.append("grading", rows))


def math_rates(times: int, rounds: int) -> list[float]:
    cases = read("math_verdicts.jsonl")

    def grade(case: dict[str, Any]) -> str:
        return grade_math(case["response"], case["gold"])

    with ThreadPoolExecutor(THREADS) as pool:
        cases = [case for case, verdict in zip(cases, pool.map(grade, cases)) if verdict != "timeout"]
        return [rate(pool, grade, cases * times)[0] for _ in range(rounds)]


def program_rates(times: int, rounds: int) -> list[float]:
    """Raises RuntimeError where a program that passes is graded otherwise."""
    cases = [case for case in read("programs.jsonl") if case["passes"] and case["tests"]["fn_name"] is None]

    def grade(case: dict[str, Any]) -> str:
        return grade_code(case["program"], case["tests"])

    with ThreadPoolExecutor(2 * len(os.sched_getaffinity(0))) as pool:
        measured = [rate(pool, grade, cases * times) for _ in range(rounds)]
    if any(set(verdicts) != {"correct"} for _, verdicts in measured):
        raise RuntimeError("a program that passes was graded otherwise")
    return [found for found, _ in measured]


def rate(pool: ThreadPoolExecutor, grade: Callable[[dict[str, Any]], str], cases: list[Any]) -> tuple[float, list[str]]:
    """Verdicts a second, and the verdicts."""
    since = time.perf_counter()
    verdicts = list(pool.map(grade, cases))
    return len(verdicts) / (time.perf_counter() - since), verdicts


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CASES / name).read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()

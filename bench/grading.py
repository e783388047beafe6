"""Verdicts a second: python bench/grading.py [--times 20] [--rounds 5]

The handed cases of tests/cases/math_verdicts.jsonl, without those that run into their deadline, many times over and
asked from more threads than there are worker processes (one a core). The workers are started beforehand.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import record
from timing import summary

from skytrain.prep.grade import grade_math

CASES = Path(__file__).resolve().parents[1] / "tests" / "cases" / "math_verdicts.jsonl"
THREADS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cases = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]

    def grade(case: dict[str, str]) -> str:
        return grade_math(case["response"], case["gold"])

    with ThreadPoolExecutor(THREADS) as pool:
        cases = [case for case, verdict in zip(cases, pool.map(grade, cases)) if verdict != "timeout"]
        rates = []
        for _ in range(arguments.rounds):
            since = time.perf_counter()
            verdicts = list(pool.map(grade, cases * arguments.times))
            rates.append(len(verdicts) / (time.perf_counter() - since))
    rows = [
        {"metric": f"math verdicts a second, {part}", "value": f"{value:.4g}", "unit": "1/s"}
        for part, value in vars(summary(rates)).items()
    ]
    for row in rows:
        print(f"{row['metric']}: {row['value']} {row['unit']}")
    print(record.append("grading", rows))


if __name__ == "__main__":
    main()

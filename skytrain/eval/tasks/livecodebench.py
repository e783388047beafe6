r"""LiveCodeBench, which grows: programs that read and print, or a function of a class. A row of
livecodebench/code_generation_lite, whose files are test.jsonl, test2.jsonl and so on:

    {"question_title": "Short Sort", "question_content": "There are three cards ...", "platform": "codeforces",
     "question_id": "1873_A", "contest_id": "1873", "contest_date": "2023-08-21T00:00:00", "starter_code": "",
     "difficulty": "easy", "public_test_cases": "[{\"input\": \"1\\nabc\\n\", \"output\": \"YES\\n\",
     \"testtype\": \"stdin\"}]", "private_test_cases": "eJxrYJmayM...", "metadata": "{}"}

The private tests are base64 of zlib of a pickle, or JSON as the public ones; the pickle is never loaded. `metadata` has
`func_name` where a function is wanted, whose tests have one JSON value a line.
"""

from __future__ import annotations

from skytrain.eval.judge import Judgement, run
from skytrain.eval.task import Task, Version
from skytrain.eval.tasks.published import want
from skytrain.prep import code_formats
from skytrain.prep.grade.extract import solution_of
from skytrain.prep.grade.fences import program_of
from skytrain.prep.problems import Malformed
from skytrain.prep.stage import Row

PARTS = ("easy", "medium", "hard")
_FILES = ("test.jsonl", *(f"test{number}.jsonl" for number in range(2, 7)))
_PROBLEMS = (400, 511, 612, 713, 880, 1055)
VERSIONS = {
    f"release_v{number}": Version(_FILES[:number], problems) for number, problems in enumerate(_PROBLEMS, start=1)
}


def read(row: Row) -> Row:
    want(row, "question_content", "public_test_cases", "private_test_cases", "difficulty", "contest_date")
    found = code_formats.livecodebench(row)
    if row["difficulty"] not in PARTS:
        raise Malformed(f"'difficulty' must be one of {', '.join(PARTS)}, not {row['difficulty']!r}")
    return {**found, "part": row["difficulty"]}


def judge(row: Row, response: str, sandbox: str) -> Judgement:
    """The published harness puts the usual imports before every program, and scores are compared with its own."""
    return run(program_of(solution_of(response) or ""), row, sandbox, imports=True)


TASK = Task(
    "livecodebench",
    "LiveCodeBench",
    read,
    "livecodebench/code_generation_lite:{version}:test",
    parts=PARTS,
    versions=VERSIONS,
    dated=True,
    judge=judge,
)

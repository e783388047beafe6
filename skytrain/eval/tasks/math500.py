r"""MATH500: 500 problems of MATH's test part, of five levels. A row of HuggingFaceH4/MATH-500:

{"problem": "Compute $\\dbinom{8}{4}$.", "solution": "... $= \\boxed{70}$.", "answer": "70",
 "subject": "Counting & Probability", "level": 1, "unique_id": "test/counting_and_probability/1.json"}
"""

from __future__ import annotations

from skytrain.eval.task import Task
from skytrain.eval.tasks.published import want
from skytrain.prep import formats
from skytrain.prep.problems import Malformed
from skytrain.prep.stage import Row

PARTS = tuple(f"level {level}" for level in range(1, 6))


def read(row: Row) -> Row:
    want(row, "problem", "solution", "answer", "level")
    found = formats.math(row)
    part = f"level {found['provenance'].get('level')}"
    if part not in PARTS:
        raise Malformed(f"'level' must be 1 to 5, not {row['level']!r}")
    return {**found, "source": "math500", "part": part}


TASK = Task("math500", "MATH500", read, "HuggingFaceH4/MATH-500::test", 500, PARTS)

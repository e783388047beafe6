r"""A user's own problems, under a name of their own. Rows as `skytrain prep import` reads them in its plain form:

    {"question": "What is $1+1$?", "answer": "2", "domain": "math"}
    {"prompt": "Which is a metal?", "choices": ["neon", "iron"], "answer": "B"}
    {"problem": "Double a number.", "tests": {"inputs": ["1\n"], "outputs": ["2\n"], "fn_name": null}}

The text is `prompt`, `problem` or `question`; the answer `gold`, `answer`, the last box of `solution`, or `tests`.
Without a domain, an answer is compared as text.
"""

from __future__ import annotations

from skytrain.eval.tasks.published import want
from skytrain.prep import formats
from skytrain.prep.stage import Row


def read(row: Row) -> Row:
    want(row, ("prompt", "problem", "question"), ("gold", "answer", "solution", "tests"))
    return {**formats.plain(row), "part": None}

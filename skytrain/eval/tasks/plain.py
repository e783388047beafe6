r"""A user's own problems, under a name of their own. Rows as `skytrain prep import` reads them in its plain form:

    {"question": "What is $1+1$?", "answer": "2", "domain": "math"}
    {"prompt": "Which is a metal?", "choices": ["neon", "iron"], "answer": "B"}
    {"question": "Tom has 3 ...", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}
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
    form = "gsm8k" if "gsm8k" in formats.told_by(row) else "plain"
    return {**formats.FORMS[form].read(row), "part": None}

r'''HumanEval: 164 functions of Python to complete. A row of openai/openai_humaneval, or of HumanEval.jsonl.gz:

    {"task_id": "HumanEval/23", "entry_point": "strlen",
     "prompt": "\n\ndef strlen(string: str) -> int:\n    """ Return length of given string\n ... """\n",
     "canonical_solution": "    return len(string)\n",
     "test": "\n\nMETADATA = {...}\n\n\ndef check(candidate):\n    assert candidate('') == 0\n ..."}

Models answer with the whole function, often without what stands around it in the prompt, or with its body alone; both
are run with what the prompt gives.
'''

from __future__ import annotations

import re
import textwrap

from skytrain.eval.judge import Judgement, run
from skytrain.eval.task import Task
from skytrain.eval.tasks.published import want
from skytrain.prep import code_formats
from skytrain.prep.grade.extract import solution_of
from skytrain.prep.grade.fences import program_of
from skytrain.prep.problems import Malformed
from skytrain.prep.stage import Row

_FUTURE = re.compile(r"(?m)^from[ \t]+__future__[ \t]+import[ \t].*\n?")
_IMPORT = re.compile(r"(?m)^[ \t]+((?:import|from[ \t]+[\w.]+[ \t]+import)[ \t]+\w[\w., \t]*)$")


def read(row: Row) -> Row:
    want(row, "task_id", "prompt", "canonical_solution", "test", "entry_point")
    found = code_formats.humaneval(row)
    if _start(row["prompt"], row["entry_point"]) is None:
        raise Malformed(f"'prompt' must begin the function {row['entry_point']!r}")
    return {**found, "part": None}


def judge(row: Row, response: str, sandbox: str) -> Judgement:
    answer = program_of(solution_of(response) or "")
    return run(answer and completed(answer, row["starter"], row["tests"]["entry_point"]), row, sandbox)


def completed(answer: str, prompt: str, name: str) -> str:
    """The program to be checked: what stands around the function in the prompt, and then the answer; or the prompt with
    the answer for the function's body, where the answer has no function of this name."""
    if _start(answer, name) is None and not re.search(rf"(?m)^{re.escape(name)}[ \t]*[:=]", answer):
        return prompt.rstrip("\n") + "\n" + textwrap.indent(answer, "    ")
    start = _start(prompt, name)
    # An import within the function serves its body, which a whole function may have left out.
    imports = _IMPORT.findall(prompt[start:].partition('"""')[0])
    # These come first, or nowhere.
    future = "".join(line.rstrip("\n") + "\n" for line in _FUTURE.findall(answer))
    return "\n".join([future + prompt[:start], *imports, _FUTURE.sub("", answer)])


def _start(source: str, name: str) -> int | None:
    """Where the function of this name begins; None where there is none."""
    found = list(re.finditer(rf"(?m)^def[ \t]+{re.escape(name)}[ \t]*\(", source))
    return found[-1].start() if found else None


TASK = Task("humaneval", "HumanEval", read, "openai/openai_humaneval::test", 164, judge=judge)

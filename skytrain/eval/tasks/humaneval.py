r'''HumanEval: 164 functions of Python to complete. A row of openai/openai_humaneval, or of HumanEval.jsonl.gz:

    {"task_id": "HumanEval/23", "entry_point": "strlen",
     "prompt": "\n\ndef strlen(string: str) -> int:\n    """ Return length of given string\n ... """\n",
     "canonical_solution": "    return len(string)\n",
     "test": "\n\nMETADATA = {...}\n\n\ndef check(candidate):\n    assert candidate('') == 0\n ..."}

Models answer with the whole function, often without what stands around it in the prompt, or with its body alone; both
are run with what the prompt gives. Blocks that show how the function is used, or what it imports, may stand around it.
'''

from __future__ import annotations

import re
import textwrap

from skytrain.eval.judge import Judgement, run
from skytrain.eval.task import Task
from skytrain.eval.tasks.published import want
from skytrain.prep import code_formats
from skytrain.prep.grade.extract import solution_of
from skytrain.prep.grade.fences import blocks, programs_of
from skytrain.prep.problems import Malformed
from skytrain.prep.stage import Row

_FUTURE = re.compile(r"(?m)^from[ \t]+__future__[ \t]+import[ \t].*\n?")
_IMPORT = re.compile(r"(?m)^[ \t]+((?:import|from[ \t]+[\w.]+[ \t]+import)[ \t]+\w[\w., \t]*)$")

_BEGINS = re.compile(r"\s*(?:import|from[ \t]+[\w.]+[ \t]+import)[ \t]+\w")


def read(row: Row) -> Row:
    want(row, "task_id", "prompt", "canonical_solution", "test", "entry_point")
    found = code_formats.humaneval(row)
    if _start(row["prompt"], row["entry_point"]) is None:
        raise Malformed(f"'prompt' must begin the function {row['entry_point']!r}")
    return {**found, "part": None}


def judge(row: Row, response: str, sandbox: str) -> Judgement:
    name = row["tests"]["entry_point"]
    answer = answered(solution_of(response) or "", name)
    return run(answer and completed(answer, row["starter"], name), row, sandbox)


def answered(solution: str, name: str) -> str | None:
    """The last block that defines the function, else the last one. Without any fence, the text itself where it begins
    as a program and defines the function; None where there is nothing of the kind."""
    found = programs_of(solution)
    defining = [code for code in found if _defines(code, name)]
    if found:
        return (defining or found)[-1]
    begins = _BEGINS.match(solution) or re.match(rf"\s*def[ \t]+{re.escape(name)}[ \t]*\(", solution)
    bare = begins and _defines(solution, name) and not blocks(solution)
    return solution.strip("\n") + "\n" if bare else None


def _defines(source: str, name: str) -> bool:
    return _start(source, name) is not None or re.search(rf"(?m)^{re.escape(name)}[ \t]*[:=]", source) is not None


def completed(answer: str, prompt: str, name: str) -> str:
    """The program to be checked: what stands around the function in the prompt, and then the answer; or the prompt with
    the answer for the function's body, where the answer has no function of this name."""
    if not _defines(answer, name):
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

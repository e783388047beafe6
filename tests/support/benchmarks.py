"""Rows of benchmarks in their published fields, with made-up content, and how tests load and answer them."""

import json
import random

from published import encoded, live, stdin

from skytrain.eval.load import load
from skytrain.eval.task import Task
from skytrain.eval.tasks import TASKS

WIKI = "https://artofproblemsolving.com/wiki/index.php/"
I_12 = (
    "Let $f(x)=|| x|-\\tfrac{1}{2}|$ and $g(x)=|| x|-\\tfrac{1}{4}|$. How many intersections have the graphs of "
    "\\[y=4 g(f(\\sin (2 \\pi x))) \\quad\\text{ and }\\quad x=4 g(f(\\cos (3 \\pi y))).\\]"
)


def math500(i=0, **other):
    golds = ("70", r"\frac{3}{56}", r"\left( 3, \frac{\pi}{2} \right)", "p - q", r"\text{Evelyn}", "11\\sqrt2", "[2,5)")
    gold = golds[i % len(golds)]
    return {
        "problem": f"What is number {i}?",
        "solution": f"It is $\\boxed{{{gold}}}$.",
        "answer": gold,
        "subject": "Algebra",
        "level": 1 + i % 5,
        "unique_id": f"test/algebra/{i}.json",
    } | other


def aime(i=0, year=2024, **other):
    return {
        "id": 60 + i,
        "problem": f"How many are there of kind {i}?",
        "solution": f"Count. $\\boxed{{{7 * i + 3:03}}}$",
        "answer": f"{7 * i + 3:03}",
        "url": f"{WIKI}{year}_AIME_I_Problems/Problem_{i + 1}",
        "year": str(year),
    } | other


def amc(i=0, year=2022, **other):
    url = f"{WIKI}{year}_AMC_12A_Problems/Problem_{i + 1}"
    return {"id": i, "problem": f"What is value {i}?", "answer": 100.0 + i, "url": url} | other


def gpqa(i=0, **other):
    row = {
        "Pre-Revision Question": "old",
        "Question": f"Which is the energy of state {i}?\n",
        "Correct Answer": f"{i} eV\n",
    }
    row |= {f"Incorrect Answer {n}": f" {i + n}.5 keV" for n in (1, 2, 3)}
    domain = ("Biology", "Chemistry", "Physics")[i % 3]
    return row | {"Record ID": f"rec{i}", "High-level domain": domain, "Subdomain": "General", "Feedback": ""} | other


def choices(answer, texts=("red", "green", "blue", "grey"), **other):
    return {"question": "Which colour?", "choices": list(texts), "answer": answer} | other


def livecodebench(i=0, **other):
    """Programs that add i, every third one as a function."""
    pairs = [(n, n + i) for n in (1, 5, 20)]
    if i % 3 == 2:
        tests = [
            {"input": json.dumps([n, n]), "output": json.dumps([m, m]), "testtype": "functional"} for n, m in pairs
        ]
        other = {
            "metadata": '{"func_name": "addTo"}',
            "starter_code": "class Solution:\n    def addTo(self, nums: List[int]) -> List[int]:\n        ",
        } | other
    else:
        tests = [stdin(f"{n}\n", f"{m}\n") for n, m in pairs]
    level = ("easy", "medium", "hard")[i % 3]
    date = f"2023-{1 + i % 12:02}-15T00:00:00"
    fields = {
        "question_id": f"q{i}",
        "question_content": f"Add the {i}th number.",
        "difficulty": level,
        "contest_date": date,
    }
    return live(tests[:1], encoded(tests[1:]), **(fields | other))


def livecodebench_program(i):
    if i % 3 == 2:  # as models write it: without the import of List, and of more
        return (
            "class Solution:\n    def addTo(self, nums: List[int]) -> List[int]:\n        found = defaultdict(int)\n"
            f"        return [found[0] + n + {i} for n in nums]\n"
        )
    return f"print(int(input()) + {i})\n"


def olympiad(i=0, **other):
    golds = ("$\\frac{5}{36}$", "$2 \\sqrt{5}$", "$(-\\infty, 3]$", "$(1,2)$", "$y = 2x+1$", "$1024$", "$3 n^{2}$")
    return {
        "id": 1606 + i,
        "question": f"Let $T={i}$. Compute it.",
        "solution": ["Compute."],
        "final_answer": [golds[i % len(golds)]],
        "context": None,
        **{f"image_{n}": None for n in range(1, 6)},
        "modality": "Text-only",
        "difficulty": "Competition",
        "is_multiple_answer": False,
        "unit": None,
        "answer_type": "Numerical",
        "error": None,
        "question_type": "Open-ended",
        "subfield": "Algebra",
        "subject": "Math",
        "language": "English",
    } | other


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(tmp_path, task, *rows, **options):
    """What a file of these rows holds. task: of TASKS, or its name."""
    path = written(tmp_path / "rows.jsonl", rows)
    return load(_task(task), [path], tmp_path / "items.jsonl", **options)


def _task(task):
    return task if isinstance(task, Task) else TASKS[task]


def item(tmp_path, task, row):
    """The only problem."""
    (found,) = loaded(tmp_path, task, row).items
    return found


def boxed(text):
    return f"<think>Is it \\boxed{{0}}?</think>\nIt is \\boxed{{{text}}}."


def block(program):
    return f"Here:\n```python\n{program}\n```\n"


def share(task, items, responses):
    """Of the responses that are right."""
    verdicts = [_task(task).judge(row, text, "bubblewrap").verdict for row, text in zip(items, responses)]
    return verdicts.count("correct") / len(verdicts)


def moved(values):
    """Shuffled, none in its place."""
    order = list(range(len(values)))
    random.Random(0).shuffle(order)
    found = [None] * len(values)
    for here, there in zip(order, order[1:] + order[:1]):
        found[here] = values[there]
    return found

"""The handed faults of graders (tests/cases/data_eval_checks.md), a line each, under its number.

D41 and D43 are in test_grade_code.py, D45 in test_grading.py, D47 to D55 in test_generate.py and test_rewrite.py, D63
in test_import_tests.py and test_grade_code_forms.py, D65 in test_filter.py.
"""

import asyncio

import pytest
from aiohttp import ClientSession, web

from skytrain.prep.grade import grade_code, grade_math

MATH = [
    ("D1", r"\boxed{1/2^{98}}", r"1/2^{99}", "wrong"),
    ("D3", r"\boxed{4\sqrt(2)}", "4", "wrong"),
    ("D5", r"\boxed{\frac{1}{\sqrt n}}", r"\sqrt{1/n}", "correct"),
    ("D7", r"\boxed{(3,\frac{\pi}{2})}", r"\left(3,\frac{\pi}{2}\right)", "correct"),
    ("D7, another angle", r"\boxed{(3,\frac{2\pi}{3})}", r"\left(3,\frac{\pi}{2}\right)", "wrong"),
    ("D9", r"\boxed{y=-\frac12x+\frac34}", "2x+4y-3=0", "correct"),
    ("D13", r"The domain is \boxed{[2,5)}", "[2,5)", "correct"),
    ("D15", r"\fbox{12}", "12", "correct"),
    ("D19", r"\boxed{33}", "033", "correct"),
    ("D29", r"\boxed{B} ... this excludes A", "B", "correct"),
    ("D29, no box", "I would exclude A", "A", "no_answer"),
    ("D31", "\\boxed{\\langle H\\rangle \\ll \\Delta E}\n...\n**Answer: D**", "D", "correct"),
    ("D33", "Actually I am unsure", "A", "no_answer"),
    ("D33, an error", "Error: rate limited", "A", "no_answer"),
]


@pytest.mark.parametrize("response, gold, verdict", [case[1:] for case in MATH], ids=[case[0] for case in MATH])
def test_answers(response, gold, verdict):
    assert grade_math(response, gold) == verdict


def test_d11_the_same_verdicts_within_a_web_handler():
    """In the thread of an event loop's executor, and in the loop itself."""

    async def handler(request):
        body = await request.json()
        loop = asyncio.get_running_loop()
        found = [await loop.run_in_executor(None, grade_math, *body), grade_math(*body)]
        return web.json_response(found)

    async def ask():
        app = web.Application()
        app.add_routes([web.post("/", handler)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with ClientSession() as session:
                bodies = [[r"\boxed{2}", "2"], [r"\boxed{\frac{2x}{x}}", "2"], [r"\boxed{3}", "2"]]
                url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
                return [await (await session.post(url, json=body)).json() for body in bodies]
        finally:
            await runner.cleanup()

    assert asyncio.run(ask()) == [["correct"] * 2, ["correct"] * 2, ["wrong"] * 2]


SUM = {"inputs": ["3 4\n"], "outputs": ["7\n"], "fn_name": None}


def printed(output):
    return {"inputs": [""], "outputs": [output], "fn_name": None}


CODE = [
    ("D35", "import sys\ndata = sys.stdin.buffer.read()\nprint(sum(map(int, data.split())))", SUM, "correct"),
    ("D37, fewer digits", "print('0.333333')", printed("0.333333333333"), "correct"),
    ("D37, integers", "print(50000000000000000)", printed("50000000000000001"), "wrong"),
    ("D39, syntax", "def f(:\n    pass", SUM, "crash"),
    ("D39, memory", "a = [0] * (1 << 28)\nprint(7)", SUM, "crash"),
]


@pytest.mark.parametrize("program, tests, verdict", [case[1:] for case in CODE], ids=[case[0] for case in CODE])
def test_programs(program, tests, verdict):
    assert grade_code(program, tests) == verdict
    assert grade_code("print(sum(map(int, input().split())))", SUM) == "correct", "the grader lives on"

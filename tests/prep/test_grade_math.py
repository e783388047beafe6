"""Verdicts on answers: the handed cases, and more of each kind."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest

from skytrain.prep.grade import grade_math, workers
from skytrain.prep.grade.extract import answer_of, choice_of
from skytrain.prep.grade.numbers import number

CASES = [
    json.loads(line)
    for line in (Path(__file__).resolve().parents[1] / "cases" / "math_verdicts.jsonl").read_text().splitlines()
]


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_handed_cases(case):
    verdict = grade_math(case["response"], case["gold"])
    assert (verdict == "correct") == case["correct"], verdict


EQUAL = [
    line.split(" || ")
    for line in r"""
101_2 || (101)_2
-2 || \sqrt[3]{-8}
\text{5 apples} || 5
5 || 5\\
5 || \mathtt{5}
5 || 5\label{a}
\frac12 || \text{$\frac12$}
x=6 || x=2+4=6
x=y=2 || x=2,y=2
x<-1 \text{ or } x>2 || (-\infty,-1)\cup(2,\infty)
2 1/2 || 2.5
7/3 || 2 1/3
-1<x<2 || x>-1\text{ and }x<2
x=1,y=2 || 1,2
0 || \cos\frac{\pi}{2}
0 || 1-1
0 || \sin^2x+\cos^2x-1
\frac12 || \cos60^\circ
2-\sqrt3 || \tan15^\circ
\sqrt2:1 || \sqrt2
\pi:4 || \frac{\pi}4
a:b || \frac ab
6 || S=\frac12\cdot3\cdot4=6
6 || 6=x
5 || f(2)=5
5 || |AB|=5
5 || m\angle A=5
5 || 5\ 
5 || \textcolor{red}{5}
5 || \large 5
5 || 5\tag{1}
5 || \text{$5$}
1000 || 1\,000
1000 || 1 000
3:4 || 6:8
3:4 || 0.75
55 || \sum_{i=1}^{10}i
1,2 || 1 \text{ or } 2
1,2 || 1 \text{ and } 2
x=1,x=2 || x=1\text{ or }x=2
60^\circ || 60
12:30 || 12:30
\text{4:40 p.m.} || 4:40 PM
\begin{pmatrix}1\\2\end{pmatrix} || \begin{pmatrix}1\\[4pt]2\end{pmatrix}
101_2 || 101_{2}
90\text{ degrees} || 90^\circ
-5 || x = -5
Friday || friday.
stop || the stops
xyz || zyx
\frac12 || 1/2
0.5 || \frac{1}{2}
1,000,000 || 1000000
1000 || 1,000
50\% || 50
50\% || 50\%
0.5 || 50\%
204 || 204.00
6.02\times 10^{23} || 6.02 \cdot 10^{23}
5 || x = 5
x=5 || 5
2x+4y=3 || 4x+8y=6
(1,2) || \left( 1, 2 \right)
\langle 1,2\rangle || (1,2)
1,2,3 || 3, 1, 2
\{1,2,3\} || \{3,2,1\}
3:4 || 3/4
3:4 || \frac34
10_2 || 10_{2}
12\text{ cm} || 12
12 || 12\text{ cm}
12\text{ cm} || 12\text{ centimeters}
\text{6:30 PM} || 6:30 p.m.
\text{Evelyn} || \text{evelyn}
\text{the cat} || cat
\text{cats} || cat
[0,1)\cup(2,3] || (2,3] \cup [0,1)
x\in(0,1) || (0,1)
(3,\infty) || x>3
x>3 || 3<x
-1<x<1 || (-1,1)
x\le 2 || (-\infty,2]
\sqrt{2} || 2^{\frac12}
\frac{\sqrt2}{2} || \frac{1}{\sqrt2}
5\frac12 || 5.5
5\frac12 || \frac{11}{2}
0.\overline{142857} || \frac17
0.1\overline{6} || \frac16
\pi/2 || \frac{\pi}{2}
2\pi || \pi\cdot 2
x^2+2x+1 || (x+1)^2
y=x^2 || y = x^{2}
f(x)=x+1 || x+1
\begin{bmatrix}1\\2\end{bmatrix} || \begin{pmatrix}1\\2\end{pmatrix}
$5$ || \$5
\$5 || 5\text{ dollars}
90^\circ || 90
90^\circ || 90\text{ degrees}
30\text{ m/s} || 30
e^{i\pi} || -1
10! || 3628800
2^{10} || 1024
-\frac{1}{2} || \frac{1}{-2}
\{(1,2),(3,4)\} || \{(3,4),(1,2)\}
(1,2),(3,4) || (3,4),(1,2)
1\pm\sqrt2 || 1+\sqrt2, 1-\sqrt2
x=1\text{ or }x=2 || 1,2
2\text{ and }3 || 2,3
\emptyset || \varnothing
No solution || \text{no solution}
3.0 || 3
+5 || 5
007 || 7
.5 || 0.5
1e3 || 1000
10^{-3} || 0.001
a+b || b+a
\frac{a+b}{2} || \frac{b+a}{2}
2x || x\cdot2
k\pi || \pi k
\sqrt{x} || x^{1/2}
\tfrac{3}{4} || 0.75
\text{A and B} || \text{A and B}
20\% || \frac15
\boxed{7} || 7
7 || 7.
7 || \text{7}
7 || \mathbf{7}
12\,\text{cm}^2 || 12\text{ cm}^{2}
4\sqrt{3} || \sqrt{48}
\frac{1}{2}\pi || \frac{\pi}{2}
i || \sqrt{-1}
2+3i || 3i+2
\left\{x\mid x>3\right\} || x>3
\mathbb{R} || \mathbb{R}
2,-2 || \pm 2
y=-2x+1 || 2x+y-1=0
x^2+y^2=4 || 4=x^2+y^2
x \ge 0 || [0,\infty)
$\dfrac{7}{9}$ || 7/9
36\text{ inches} || 36
2\text{ hours} || 2
3\sqrt{5}\text{ units} || 3\sqrt5
\text{Tuesday} || Tuesday
25\text{ square units} || 25
1{,}000 || 1000
1000 || 1{,}000
1\,000 || 1000
10\ 000 || 10000
\$1,000 || 1000
1,000\text{ dollars} || \$1000
\frac{3}{4}\text{ cup} || 0.75
x = 5 \text{ cm} || 5
(x,y)=(1,2) || (1,2)
a_n = 2n+1 || 2n+1
a_{n}=2n+1 || a_n=1+2n
AB=5 || 5
\angle A = 30^\circ || 30
\binom{n}{2} || \frac{n(n-1)}{2}
0.\dot{3} || \frac13
0.\dot{2}\dot{7} || \frac{3}{11}
0.\overline{27} || \frac{3}{11}
-\infty || -\infty
10\% || \frac{1}{10}
10\% || 10\text{ percent}
10 || 10
\frac{\sqrt{3}}{3} || \frac{1}{\sqrt{3}}
2\sqrt{2} || \sqrt{8}
\left(-\infty, 3\right] || x\leq 3
\left(\frac{1}{2}, 3\right) || (0.5,3)
x_1=1, x_2=2 || 1,2
x=1, y=2 || x=1,y=2
x=1, y=2 || y=2, x=1
\{1\}\cup[2,3] || [2,3]\cup\{1\}
\sin x\cos x || \frac12\sin 2x
\tan x || \frac{\sin x}{\cos x}
e^{2x} || (e^x)^2
\log_2 8 || 3
\frac{x^2-1}{x-1} || x+1
n^2+n || n(n+1)
3\cdot 4 || 12
3 \times 4 || 12
2^{3} || 8
5! || 120
\lfloor 3.7\rfloor || 3
|{-3}| || 3
\sqrt{16} || 4
\frac{6}{4} || \frac{3}{2}
6/4 || 1.5
-0 || 0
0 || 0.0
{5} || 5
5 \text{ cm} || 5cm
5\text{ cm} || 5 cm
5 || 5\mathrm{cm}
5\mathrm{~cm} || 5\text{ cm}
60\text{ km/h} || 60\,\mathrm{km/h}
60\text{ mph} || 60\text{ miles per hour}
3\text{ m}^2 || 3\text{ m}^2
12\text{ square feet} || 12
\text{Monday} || monday
\text{no} || No.
\text{True} || true
\text{even} || Even
\text{an apple} || apple
\text{Alice, Bob} || Bob, Alice
f(x)=2x || f(x) = 2x
y=2x || 2x
y = 3x + 2 || 3x - y + 2 = 0
x+y=1 || 2x+2y=2
\frac{x}{2}+\frac{y}{3}=1 || 3x+2y=6
x>2\text{ or }x<-2 || (-\infty,-2)\cup(2,\infty)
x < -2 \text{ or } x > 2 || x>2\text{ or }x<-2
2<x<3 || 3>x>2
1\le x || x\ge 1
\{x\mid 1<x<2\} || (1,2)
x\ne 2 || x\neq 2
x\in\{1,2\} || 1,2
\pm\sqrt{3} || \sqrt3,-\sqrt3
x=\pm\frac12 || \frac12, -\frac12
1+2i || 1 + 2i
\frac{1}{2}+\frac{\sqrt{3}}{2}i || \frac{1+i\sqrt{3}}{2}
\begin{pmatrix} 1/2 & 0 \\ 0 & 1 \end{pmatrix} || \begin{bmatrix} 0.5 & 0 \\ 0 & 1 \end{bmatrix}
\left(\begin{array}{c}1\\2\end{array}\right) || \begin{pmatrix}1\\2\end{pmatrix}
11_{2} || 11_2
\text{ABC}_{16} || ABC_{16}
1:2:3 || 1:2:3
1:2 || 2:4
1:2 || 0.5
7:30 || 7:30
\text{7:30 a.m.} || 7:30 AM
\text{7:30 a.m.} || 7:30\text{ a.m.}
9^{20} || 12157665459056928801
\frac{10}{3} || 3\frac{1}{3}
3 \frac{1}{3} || \frac{10}{3}
(2,3),(4,5) || (4,5) \text{ and } (2,3)
\left[-1,1\right] || -1\le y\le 1
2\text{ and }-3 || -3,2
144\pi\text{ cm}^3 || 144\pi
\frac{4}{3}\pi r^3 || \frac{4\pi r^3}{3}
x^3-3x+C || x^3-3x+C
\sqrt[4]{16} || 2
1.5 \times 10^{-4} || 0.00015
3e5 || 300000
5\% || 0.05
$12 || 12
S = \{1,2\} || \{1,2\}
\text{Yes, it is} || yes it is
\text{neither} || Neither
k=\frac{3}{2} || \frac{3}{2}
-\frac{3}{2} || -1\frac{1}{2}
1 \text{ or } 2 || 2 \text{ or } 1
1~\text{or}~2 || 1,2
\frac{a}{b} || a/b
ab || ba
2 \text{ m/s} || 2
\displaystyle\frac{1}{2} || \frac{1}{2}
\textbf{7} || 7
\underline{7} || 7
7 || 7
""".strip().splitlines()
]
DIFFERENT = [
    line.split(" || ")
    for line in r"""
a=b=c || b=c
1:30 || 2:60
6:30 || 13:65
0 || e^{-1000}
\Gamma || \gamma
x=y=2 || y=2
a=b=2 || c=b=2
x\land y || \{x,y\}
\pi(R^2-r^2) || 0
\frac{R}{r} || 1
2a || 2A
2^{140} || 2^{140}-1
6:30 || 3:15
2:30 || 1:15
\text{4:40 p.m.} || \text{2:20 p.m.}
0:30 || 0:45
7 || 2 1/3
56 || 5 6
12 || 1\quad 2
1,2,3 || 1,2,3,...
3.14 || 3.14\ldots
0.3 || 0.3...
x>-1\text{ and }x<2 || x>-1\text{ or }x<2
p\land q || p\lor q
x=1\text{ and }y=2 || x=1\text{ or }y=2
x=1,y=2 || 2,1
a=3,b=5 || 5,3
\sqrt{x^2} || x
|x-50| || 50-x
\max(x,100) || 100
\lfloor x/100\rfloor || 0
f'(x) || f(x)
y''=2 || y'=2
A' || A
5 || 5\text{ or more}
5 || 5\text{ at least}
5 || 5\text{ factorial}
2n+1 || 2n+1\text{ assuming n is odd}
n || n\text{ is odd}
5 || 5\text{ million}
\begin{vmatrix}1&2\\3&4\end{vmatrix} || \begin{pmatrix}1&2\\3&4\end{pmatrix}
\cos 20^\circ || \cos 20
\text{Team A} || \text{Team}
15.5 || 3 1/2
5 || 6\pmod 7
\log_2 5 || \log_1 5
stop || pots
ainomma || ainomma1
Friday || Friday 1
north east || north seat
\frac13 || 0.33
3.142 || 3.14
\pi || 3.14
3.14159 || \pi
0.5 || 50
50 || 50\%
5 || 500
50\% || 5
50\% || 5000
(1,2) || (2,1)
(1,2) || \{1,2\}
[0,1] || [0,1)
(0,1) || \{0,1\}
4210_5 || 4210
1010 || 1010_2
10_2 || 2
x=5 || y=5
5 || x=5, n\in\mathbb{Z}
x=2 || x=2\text{ for all }n
12\text{ cm} || 12\text{ m}
12\text{ cm} || 12\text{ cm}^2
\text{6:30 a.m.} || \text{6:30 p.m.}
3 || 3,4
3,4 || 3
1,5 || 1.5
1.5 || 1,5
x>3 || x<3
x\ge3 || x>3
-1<x<1 || -1<x\le1
\begin{pmatrix}1\\2\end{pmatrix} || \begin{pmatrix}1&2\end{pmatrix}
2x+4y=3 || 2x+4y=6
x^2 || x^3
5 || -5
\sqrt2 || \sqrt3
\frac{1}{2^{99}} || \frac{1}{2^{98}}
\text{Evelyn} || \text{Eva}
1,2,3 || 1,2
1,2,2 || 1,2,3
|x| || x
4 || 4\sqrt{2}
3:4 || 4:3
12:00 || 1:00
2^{1000} || 2^{1001}
10^{20} || 10^{20}+1
x || y
2x || 2y
\pm2 || 2
\text{yes} || \text{no}
(-\infty,2) || (-\infty,2]
\{2,3\} || 2
100 || 1
1 || 100
0.333333 || \frac13
1.0001 || 1
5\text{ apples} || 6\text{ apples}
2\frac13 || \frac23
50000000000000001 || 50000000000000000
\frac{x}{2} || \frac{2}{x}
x+1 || x-1
5 || \text{five}
5\text{ km/h} || 5\text{ m/s}
5\text{ dollars} || 5\text{ cents}
5 || 6
(1,2) || (1,2,3)
\{1,2\} || \{1,2,3\}
\{1,2\} || (1,2)
0.27 || 0.\overline{27}
\text{7:30 a.m.} || 7:30 PM
2:30 || 14:30
\frac{4}{3}\pi r^3 || \frac{4}{3}\pi r^2
\log_2 8 || 2
x+1 || \frac{x^2-1}{x+1}
x>2 || x>2\text{ or }x<-2
\pm2 || -2
x=1, y=2 || x=2, y=1
y=2x || y=2x+1
y=2x || x=2y
x^2+y^2=4 || x^2+y^2=2
11_2 || 11_3
11_2 || 3
1:2 || 2:1
1:2:3 || 3:2:1
ABC || CBA
\begin{cases}1&x>0\\0&x\le0\end{cases} || \begin{cases}1&x\ge0\\0&x<0\end{cases}
\begin{pmatrix}1&2\end{pmatrix} || \begin{pmatrix}2&1\end{pmatrix}
10\% || 1000
0.1 || 10
2 || 3
10 || 10\%
2\sqrt{2} || 2\sqrt{3}
\text{Monday} || Tuesday
\text{no} || yes
-5 || 5
\infty || -\infty
(0,1] || [0,1)
[0,1]\cup[2,3] || [0,1]
\emptyset || 0
\text{no solution} || 0
5 || 5+C
x^2 || x^2+C
1+2i || 1-2i
6.02\times10^{23} || 6.02\times10^{22}
1234 || 1,2,3,4
1.234 || 1,234
3 || \text{3 or 4}
12\text{ cm} || 12\text{ cm}^3
1/3 || 0.3333333333
2^{100} || 1267650600228229401496703205375
x\ge 1 || x>1
\{x\mid x>3\} || x\ge3
1\text{ or }2 || 1
\sqrt{2} || 1.41421356
e || 2.71828
7 || 7\text{ for }x>0
n\in\mathbb{Z} || n\in\mathbb{N}
2k\pi || 2k\pi, k\in\mathbb{Z}
\frac{1}{2} || \frac{1}{2}\text{ if }x>0
\text{6 pm} || \text{6 am}
\triangle ABC || \triangle ABD
AB || BC
\sin x || \cos x
a+b || a-b
\frac12 || 12
2\frac13 || \frac{2}{3}
4\frac12 || 2
\left(3,\frac{\pi}{2}\right) || (3,\frac{2\pi}{3})
""".strip().splitlines()
]


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal_answers(gold, answer):
    assert grade_math(f"So it is $\\boxed{{{answer}}}$.", gold) == "correct"


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different_answers(gold, answer):
    assert grade_math(f"So it is $\\boxed{{{answer}}}$.", gold) == "wrong"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("", None),
        ("It is 5, or 7.", None),
        (r"\boxed{5} and then \boxed{7}", "7"),
        (r"\boxed{5} and then \boxed{}", "5"),
        (r"\boxed{5} and then \boxed{7", None),
        (r"\boxed{}", None),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed {42}", "42"),
        (r"\boxed 5", "5"),
        (r"\fbox{12}", "12"),
        (r"\boxedtext{12}", None),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"<think>\boxed{3}</think> Answer: 8", "8"),
        (r"<think>\boxed{3}", None),
        (r"a</think>b<think>\boxed{3}", None),
        (r"<|begin_of_thought|>\boxed{3}<|end_of_thought|>", None),
        (r"<|begin_of_thought|>\boxed{3}", None),
        (
            r"<|begin_of_thought|>x<|end_of_thought|><|begin_of_solution|>\boxed{4}<|end_of_solution|>\boxed{5}",
            "4",
        ),
        ("Answer: 5\nAnswer: 6", "6"),
        ("**Final Answer:** 73.", "73"),
        ("### Answer\nit is 5", None),
        ("Answer:\n\n$5$", "$5$"),
        ("so the final answer is 12.", "12"),
        ("The answer is: `x+1`", "x+1"),
        ("my answers: 5", None),
    ],
)
def test_what_a_response_gives_as_its_answer(response, answer):
    assert answer_of(response) == answer


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        (r"\boxed{B} ... this excludes A", "B"),
        (r"\boxed{\langle H\rangle \ll \Delta E} so **Answer: D**", "D"),
        ("Actually I am unsure", None),
        ("Error: rate limited", None),
        ("Answer: B. 12 metres", "B"),
        ("Answer: (c)", "C"),
        ("The answer is A.", "A"),
        ("The answer is a dog", None),
        ("The answer is I think B", None),
        (r"\boxed{\text{(C)}}", "C"),
        (r"\boxed{\textbf{D) } 5}", "D"),
        (r"\boxed{A: yes}", "A"),
        (r"\boxed{12}", None),
        (r"\boxed{AB}", None),
        ("A B C D", None),
    ],
)
def test_what_a_response_chooses(response, letter):
    assert choice_of(response) == letter
    verdict = grade_math(response, "B")
    assert verdict == ("no_answer" if letter is None else "correct" if letter == "B" else "wrong")


@pytest.mark.parametrize("gold", ["", "  ", r"\frac{", "((", r"x^^2+"])
def test_a_gold_that_cannot_be_read_is_told_apart(gold):
    assert grade_math(r"\boxed{5}", gold) == "gold_unparseable"


@pytest.mark.parametrize(
    "answer", [r"\frac{", "((", "x^^2", "{" * 3000 + "}" * 3000, "9" * 20_000, "\0", "\ud800", "x+" * 3000]
)
def test_an_answer_that_cannot_be_read_is_wrong_and_the_next_one_unharmed(answer):
    assert grade_math(f"Answer: {answer}", r"\sqrt{2}") in ("wrong", "crash", "timeout")
    assert grade_math(r"\boxed{2^{1/2}}", r"\sqrt{2}") == "correct"


def test_a_comparison_without_end_is_killed():
    began = time.monotonic()
    assert grade_math(r"\boxed{9^{9^{9^{9}}}+x}", "x+1", seconds=1.0) == "timeout"
    assert time.monotonic() - began < 30
    assert grade_math(r"\boxed{1+x}", "x+1") == "correct"


def test_a_worker_that_is_killed_is_replaced():
    pool = workers.Pool(1)
    assert pool.ask(["x+1", "1+x"], 10.0) == "correct"
    worker = pool.idle.get()
    pool.idle.put(worker)
    os.kill(worker.process.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        pool.ask(["x+1", "1+x"], 0.2)
    assert pool.ask(["x+1", "1+x"], 10.0) == "correct"
    worker = pool.idle.get()
    pool.idle.put(worker)
    os.kill(worker.process.pid, signal.SIGKILL)
    with pytest.raises(workers.Died):
        worker.ask(["x+1", "1+x"], 10.0)
    assert pool.ask(["x+1", "1+x"], 10.0) == "correct"
    pool.close()
    assert pool.ask(["x+1", "2+x"], 10.0) == "wrong"
    pool.close()


def test_verdicts_are_the_same_in_threads_and_there_is_no_torch():
    """As in a web server's handler, where no alarm can be set."""
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from skytrain.prep.grade import grade_math
def one(i):
    return grade_math("\\\\boxed{\\\\sqrt{%d}}" % (i + 2), "2^{1/2}")
with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(one, range(16)))
assert found == ["correct"] + ["wrong"] * 15, found
assert "torch" not in sys.modules and "sympy" not in sys.modules
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=120)


def test_many_threads_wait_for_few_workers():
    pool = workers.Pool(2)
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda i: pool.ask([f"x+{i}", f"{i}+x"], 20.0), range(64)))
    assert found == ["correct"] * 64
    assert pool.idle.qsize() == 2
    pool.close()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-.5", -0.5),
        ("5.", 5),
        (r"\frac{-3}{4}", -0.75),
        (r"1\frac{1}{2}", 1.5),
        (r"2\times10^{3}", 2000),
        ("1e-2", Fraction(1, 100)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        ("10^9", 10**9),
        ("10^{999999}", None),
        ("3/0", None),
        ("", None),
        ("x", None),
        ("--5", 5),
    ],
)
def test_numbers_are_exact(text, value):
    assert number(text) == value


@pytest.mark.parametrize("answer", ["C or D", "A,B", "(A) and (C)", r"A \text{ or } B", "A/B", "A & C"])
def test_two_letters_are_no_choice(answer):
    assert grade_math(rf"\boxed{{{answer}}}", "A") == "no_answer"


@pytest.mark.parametrize(
    "answer", ["C", r"\text{C.}\ 12", r"\textrm{C}", r"\textit{C}", r"\left(C\right)", "C, because", "C and so on"]
)
def test_ways_to_write_a_choice(answer):
    assert grade_math(rf"\boxed{{{answer}}}", "C") == "correct"


LINES = [
    ("Answer: >5", ">5"), ("Answer: 2*3", "2*3"), ("Answer: 2**9", "2**9"), ("Answer: x>5", "x>5"),
    ("Answer: $x_{10}$", "$x_{10}$"), ("Answer: $101_{2}$", "$101_{2}$"), ("**Answer:** 5", "5"),
    ("Answer: *5*", "5"), ("> Answer: 5", "5"), ("### Answer: `5`", "5"), ("Answer:\n$$\n5\n$$", "5"),
    ("Answer:\n\\[\n5\n\\]", "5"), ("Final Answer: The final answer is $73$. I hope it is correct.", "$73$"),
]  # fmt: skip


@pytest.mark.parametrize("text, answer", LINES)
def test_answer_lines_lose_marks_and_nothing_else(text, answer):
    assert answer_of(text) == answer


@pytest.mark.parametrize(
    "gold, answer", [(r"\frac{dy}{dx}", r"\frac{dx}{dy}"), (r"x\equiv5\pmod7", r"x\equiv5\pmod8"), ("10.1_2", "10.1_3")]
)
def test_what_is_not_read_is_correct_only_letter_for_letter(gold, answer):
    assert grade_math(rf"\boxed{{{answer}}}", gold) in ("wrong", "gold_unparseable")
    assert grade_math(rf"\boxed{{{gold}}}", gold) == "correct"


@pytest.mark.parametrize("end, same", [("7", True), ("8", False)])
def test_integers_of_thousands_of_digits_are_compared_whole(end, same):
    gold = "3" * 5000 + "7"
    assert (grade_math(rf"\boxed{{{gold[:-1]}{end}}}", gold) == "correct") == same

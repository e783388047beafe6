"""Verdicts on answers in the ways in which models and published golds write them, each with what must stay wrong."""

import pytest

from skytrain.prep.grade import grade_math
from skytrain.prep.grade.extract import choice, choice_of

EQUAL = r"""
32,\!348 || 32348
\$32,\!348 || 32348
32,\!348 || 32,348
32348 || 32,\!348
58500 || 58,\!500
11,\! 111,\! 111,\! 100 || 11111111100
11111111100 || 11,\! 111,\! 111,\! 100
10080 || 10\,080
10\,080\pi || 10080\pi
32348 || 32{,}348
32{,}348 || 32,\!348
1,\!2 || 2,1
1,\!2345 || 2345,1
(1,\!234,5) || (1234,5)
(1,\,234) || (1,234)
5 || \frac{10}{2}=5
5 || 2+3=5
70 || \dbinom{8}{4} = 70
12 || 3\cdot4 = 6\cdot 2 = 12
x=5 || \frac{10}{2}=5
5 || x=\frac{10}{2}=5\text{ cm}
50\% || \frac12=50\%
\frac12 || \cos60^\circ=\frac12
33 || \textbf{(B) } 33
33 || \text{(B)} 33
33 || (B) 33
\textbf{(B) } 33 || 33
B+2 || (B)+2
42 || **42**
42 || *42*
4210_5 || 4210_{\text{five}}
4210_{\text{five}} || 4210_5
AB_{16} || AB_{\text{sixteen}}
"""
DIFFERENT = r"""
32,\!348 || 348,32
32,\!348 || 32,348,1
32{,}348 || 348,32
1,\!2 || 12
12 || 1,\!2
5 || 2+4=5
5 || 2x=5
5 || x+2=5
5 || 2x=10
5 || 5=2+4
70 || \dbinom{8}{3} = 70
6 || x=2+5=6
12 || 3\cdot5 = 6\cdot 2 = 12
1.414 || \sqrt2=1.414
34 || \textbf{(B) } 33
33B || (C) 33
33 || \text{B} 34
\textbf{(B) } 33 || \textbf{(C) } 33
2^9 || **2**9
42 || **43**
4210_5 || 4210_{\text{six}}
4210 || 4210_{\text{five}}
"""


def pairs(table):
    return [line.split(" || ") for line in table.strip().splitlines()]


@pytest.mark.parametrize(("gold", "answer"), pairs(EQUAL))
def test_equal_answers(gold, answer):
    assert grade_math(rf"\boxed{{{answer}}}", gold) == "correct"


@pytest.mark.parametrize(("gold", "answer"), pairs(DIFFERENT))
def test_different_answers(gold, answer):
    assert grade_math(rf"\boxed{{{answer}}}", gold) == "wrong"


@pytest.mark.parametrize("answer", ["9^{9^{9^{9}}}", "(10^9)!", "2^{1000000000}", "-2^{20!}", "10^{10^{10}}"])
def test_what_is_larger_than_every_number_is_wrong_at_once(answer):
    assert grade_math(rf"\boxed{{{answer}}}", "5") == "wrong"


@pytest.mark.parametrize(
    "gold, answer", [("1", "1^{10^{9}}"), ("256", "2^{2^{3}}"), ("720", "(3!)!"), ("512", "2^{3^2}")]
)
def test_towers_that_are_small_are_numbers(gold, answer):
    assert grade_math(rf"\boxed{{{answer}}}", gold) == "correct"


@pytest.mark.parametrize(
    "held",
    [
        "Option B", r"\text{Choice (B)}", "The correct option is (B).", "option b", r"\texttt{B}", r"\boldsymbol{B}",
        r"\bm{B}", r"\boxed{B}", r"\displaystyle B", r"\large B", r"\underline{B}", r"\textcolor{red}{B}", "**B**",
        "*B*", "[B]", "B~", r"\textbf{(B)}~5", "B - 10 eV", "B: 10 eV", "B, since A is wrong", "B and so on",
        "B, a metal", "Option B is right", r"\(B\)",
    ],
)  # fmt: skip
def test_boxes_that_hold_one_letter(held):
    assert choice(held) == "B"


@pytest.mark.parametrize("held", ["A - 10 eV", r"\text{A} – 10", "A: 10 eV", "Option A is right"])
def test_an_a_before_a_dash_or_behind_its_name_is_no_article(held):
    assert choice(held) == "A"


@pytest.mark.parametrize(
    "held",
    [
        "(B) vs (C)", "B vs. C", "B or C", "Option B or C", "Option B or Option C", "B or C are both right",
        "B and C are both right", r"\textbf{B} \text{ or } \textbf{C}", r"A \text{ and } \text{Option }B", "A - B",
        "(B), (C)", "B | C", "B versus C", "A dog", "A-level", "Option", "Options", "[0, B]", "BC",
    ],
)  # fmt: skip
def test_boxes_that_choose_nothing(held):
    assert choice(held) is None
    assert grade_math(rf"\boxed{{{held}}}", "B") == "no_answer"


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("The correct answer is **B**.", "B"),
        ("Answer: Option B", "B"),
        (r"Answer: \(B\)", "B"),
        ("**Answer: Option (C)**", "C"),
        ("The correct answer is not B", None),
        ("The correct answer is (B) vs (C)", None),
        ("The correct answers are many: B", None),
    ],
)
def test_lines_that_say_one_letter(response, letter):
    assert choice_of(response) == letter

"""Verdicts on answers and on programs."""

from skytrain.prep.grade.answers import grade_math, grade_near, grade_text
from skytrain.prep.grade.code import grade_code

__all__ = ["grade_code", "grade_math", "grade_near", "grade_text"]

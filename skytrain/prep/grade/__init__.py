"""Verdicts on answers."""

from skytrain.prep.grade.answers import grade_math

__all__ = ["grade_math"]

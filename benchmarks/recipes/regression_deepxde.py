"""Regression from many points as in DeepXDE's example of a data set; single precision."""

from __future__ import annotations

from recipes.deepxde_fit import fit
from recipes.given import Given
from recipes.stopwatch import Report


def run(seconds: float, report: Report, given: Given) -> int:
    return fit([2] + [64] * 3 + [1], "float32", 1000, seconds, report, given)

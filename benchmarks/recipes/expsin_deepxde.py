"""Regression from few points as in DeepXDE's example of a data set."""

from __future__ import annotations

from recipes.deepxde_fit import fit
from recipes.given import Given
from recipes.stopwatch import Report


def run(seconds: float, report: Report, given: Given) -> int:
    return fit([2] + [50] * 3 + [1], "float64", 4000, seconds, report, given)

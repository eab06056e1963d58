"""Regression from few points as in pykan's first example, with five hidden channels."""

from __future__ import annotations

from recipes.given import Given
from recipes.pykan_training import fit_on_grids
from recipes.stopwatch import Report


def run(seconds: float, report: Report, given: Given) -> int:
    return fit_on_grids((3, 5, 10, 20, 50), 50, seconds, report, given)

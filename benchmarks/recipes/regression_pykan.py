"""Regression from many points as in pykan's first example: cubic splines, finer and finer."""

from __future__ import annotations

from recipes.given import Given
from recipes.pykan_training import fit_on_grids
from recipes.stopwatch import Report


def run(seconds: float, report: Report, given: Given) -> int:
    return fit_on_grids((3, 5, 10, 20), 20, seconds, report, given)

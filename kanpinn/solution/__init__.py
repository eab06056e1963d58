"""Trained solutions: evaluated on a user's points, and looked into."""

from kanpinn.solution.evaluator import Evaluator
from kanpinn.solution.history import history_columns
from kanpinn.solution.solution import CHECKPOINT_NAME, Solution

__all__ = ["CHECKPOINT_NAME", "Evaluator", "Solution", "history_columns"]

"""What judges a level's networks from outside: the reference, and the networks before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from kanpinn.geometry import Points
from kanpinn.problem import Problem
from kanpinn.residuals import System
from kanpinn.training.block_data import UNBOUNDED
from kanpinn.training.evaluation import (
    ReferenceErrors,
    RefinementChange,
    SolutionChange,
    reference_values,
)
from kanpinn.training.h1_error import H1Error, ReferenceGradient
from kanpinn.training.memory import Memory
from kanpinn.training.state import LevelState
from kanpinn.training.windows import evaluation_points


class Measures:
    """Of a time window: errors and changes at all times up to its end.

    The reference is asked for its values once, when they are needed.

    Args:
        problem: on the whole time interval.
        window: the problem on the window.
        gradient: of the problem's reference.
        memory: what an evaluation may take.
    """

    def __init__(
        self,
        problem: Problem,
        window: Problem,
        gradient: ReferenceGradient,
        memory: Memory = UNBOUNDED,
    ) -> None:
        self.problem, self.window, self.gradient = problem, window, gradient
        self.memory = memory

    @cached_property
    def x(self) -> Tensor:
        """Evaluation points ``(n, d)`` up to the window's end."""
        return evaluation_points(self.problem, self.window)

    @cached_property
    def exact(self) -> Tensor | None:
        """The reference there."""
        return reference_values(self.problem, self.x)

    def errors(self, trained: Sequence[Points], like: Tensor) -> ReferenceErrors:
        """Of values, at points that are not trained on."""
        return ReferenceErrors(self.problem, trained, like, self.x, self.exact, self.memory)

    def h1(self, trained: Sequence[Points], like: Tensor) -> H1Error:
        """Of the gradient, likewise."""
        whole = self.window is self.problem
        end = None if whole else self.window.domain.upper[-1]
        return H1Error(self.gradient, trained, like, end, self.memory)

    def since(self, before: System | None, like: Tensor) -> SolutionChange | None:
        """The change since other networks, if there are any."""
        if before is None:
            return None
        return SolutionChange(self.problem.fields, before, self.x.to(like), self.memory)

    def refinement(self, before: LevelState | None, like: Tensor) -> RefinementChange | None:
        """The change since the best networks of a level, if there is one."""
        if before is None:
            return None
        best, score = before.best_system(), before.best_score
        return RefinementChange(self.problem, best, score, like, self.memory)

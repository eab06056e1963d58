"""The linear model ``r + J d`` of residuals, and its damped minimisers.

All solve ``min |J d + r|^2 + lambda |D d|^2`` for as many ``lambda`` as a step tries. What they
hold differs: squares of ``n^2`` numbers (:mod:`~kanpinn.optimisers.dense_model`), the ``N`` rows of
the Jacobian (:mod:`~kanpinn.optimisers.dual_model`), or nothing but what its products take
(:mod:`~kanpinn.optimisers.iterative_model`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from kanpinn.optimisers.numbers import Numbers
from kanpinn.optimisers.operations import Meter, substitution, triangle
from kanpinn.optimisers.solver_choice import Solver

MOST_RANKED = 1000  # columns whose rank is found: it costs their third power, and is but told


@dataclass(frozen=True)
class DampedSystem:
    """``min |J d + r|^2 + lambda |D d|^2``, from the triangle of ``[J | r]``.

    Attributes:
        factor: triangle of ``[[J, r], [sqrt(lambda) D, 0]]``, ``(n + 1, n + 1)``.
        meter: counts what is done with it.
    """

    factor: Tensor
    meter: Meter

    @classmethod
    def of(
        cls, upper: Tensor, damping: float, scale: Tensor, meter: Meter | None = None
    ) -> DampedSystem:
        """From the triangle ``(any, n + 1)``, ``lambda`` and the diagonal ``D`` ``(n,)``."""
        below = torch.diag(scale * math.sqrt(damping))
        below = torch.cat([below, below.new_zeros(len(scale), 1)], 1)
        stacked, meter = torch.cat([upper, below]), meter or Meter()
        meter.add(triangle(*stacked.shape))
        return cls(torch.linalg.qr(stacked, mode="r").R, meter)

    def step(self) -> Tensor:
        """The minimiser ``d`` ``(n,)``."""
        n = self.factor.shape[1] - 1
        self.meter.add(substitution(n))
        square, right = self.factor[:n, :n], self.factor[:n, n:]
        return -torch.linalg.solve_triangular(square, right, upper=True)[:, 0]

    def newton(self, gradient: Tensor) -> Tensor:
        """``-(J^T J + lambda D^2)^-1 gradient``, ``(n,)``."""
        n = self.factor.shape[1] - 1
        self.meter.add(2 * substitution(n))
        square = self.factor[:n, :n]
        half = torch.linalg.solve_triangular(square.mT, gradient[:, None], upper=False)
        return -torch.linalg.solve_triangular(square, half, upper=True)[:, 0]


class DampedModel(ABC):
    """The model with one damping.

    Attributes:
        damping: ``lambda``, which may be larger than what was asked for.
    """

    damping: float

    @property
    def evaluations(self) -> int:
        """Evaluations of the objective that a correction takes."""
        return 0

    @abstractmethod
    def step(self) -> Tensor:
        """``argmin |J d + r|^2 + lambda |D d|^2``, ``(n,)``."""

    @abstractmethod
    def correction(self, second: Tensor) -> Tensor:
        """The same with ``second`` ``(N,)`` in the place of ``r``: the geodesic acceleration."""


class LinearModel(ABC):
    """``r + J d`` at one ``theta``.

    Attributes:
        loss: ``|r|^2``, 0-d.
        gradient: of the loss, ``2 J^T r`` ``(n,)``.
        scale: the diagonal ``D`` ``(n,)``.
        meter: of the model's own algebra, beside what the objective was asked for.
        numbers: what is read together.
    """

    solver: ClassVar[Solver]
    loss: Tensor
    gradient: Tensor
    scale: Tensor

    def __init__(self) -> None:
        self.meter, self.numbers = Meter(), Numbers()

    def prepare(self, damping: float) -> None:  # noqa: B027 - most models read nothing there
        """Begin what :meth:`damped` will want to read, so that it is read with other numbers."""

    @abstractmethod
    def damped(self, damping: float) -> DampedModel:
        """The model with a damping ``lambda``."""

    @abstractmethod
    def remaining(self, step: Tensor) -> Tensor:
        """``|J d + r|^2`` of a step ``d`` ``(n,)``, 0-d."""

    @abstractmethod
    def product(self, step: Tensor) -> Tensor | None:
        """``J d`` ``(N,)`` of a step ``d`` ``(n,)``; ``None`` where that is not at hand."""

    def rank(self) -> int | None:
        """Numerical rank of ``J``; ``None`` where no triangle tells it, or a large one would."""
        return None


ScaleOf = Callable[[Tensor], Tensor]  # squares of the columns' norms (n,) to the diagonal D (n,)


def numerical_rank(matrix: Tensor, meter: Meter | None = None) -> int:
    """Rank up to round-off, by QR with column pivoting of a matrix ``(any, n)``."""
    if meter is not None:
        meter.add(triangle(*matrix.shape))
    values = matrix.detach().cpu().numpy()
    from scipy.linalg import qr  # when needed: validating a config should not wait for it

    (upper,) = qr(values, mode="r", pivoting=True, check_finite=False)[:1]
    return pivoted_rank(upper, torch.finfo(matrix.dtype).eps)


def pivoted_rank(upper: NDArray[Any], epsilon: float) -> int:
    """Rank up to round-off ``epsilon``, from the triangle of a QR with column pivoting."""
    sizes = abs(upper.diagonal())
    return int((sizes > max(upper.shape) * epsilon * sizes[:1].max(initial=0)).sum())

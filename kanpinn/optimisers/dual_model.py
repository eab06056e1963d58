"""The linear model by the rows of the Jacobian, where they are fewer than the parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kanpinn.optimisers.base import LeastSquaresObjective
from kanpinn.optimisers.linear_models import (
    MOST_RANKED,
    DampedModel,
    DampedSystem,
    LinearModel,
    ScaleOf,
    numerical_rank,
)
from kanpinn.optimisers.operations import orthogonal, product, triangle


class DualModel(LinearModel):
    """From the ``N`` rows of ``J``, for ``N < n``: ``O(N n)`` numbers and ``O(N^2 n)`` work.

    The minimiser of ``|J D^-1 y + r|^2 + lambda |y|^2`` lies in the span of the rows. With
    ``(J D^-1)^T = Q R`` it is ``Q w``, ``w`` the minimiser of ``|R^T w + r|^2 + lambda |w|^2``: a
    system of N unknowns, solved by QR like the dense one. That is the Woodbury form without
    ``J J^T``, which would square the condition number and lose half the digits.
    """

    solver = "dual"

    def __init__(
        self, objective: LeastSquaresObjective, theta: Tensor, residuals: Tensor, scale_of: ScaleOf
    ) -> None:
        jacobian = torch.cat([piece[:, :-1] for piece in objective.jacobian_rows(theta)])
        super().__init__()
        self.meter.add(product(*jacobian.shape))
        self.meter.add(triangle(*jacobian.shape) + orthogonal(*jacobian.shape))
        self.residuals, self.loss = residuals, residuals.square().sum()
        self.gradient = 2 * (jacobian.mT @ residuals)
        self.scale = scale_of(jacobian.square().sum(0))
        self.basis, upper = torch.linalg.qr((jacobian / self.scale).mT)  # (n, N), (N, N)
        self.rows = upper.mT

    def damped(self, damping: float) -> DampedModel:
        """See the base class."""
        joined = torch.cat([self.rows, self.residuals[:, None]], 1)
        units = self.scale.new_ones(self.rows.shape[1])
        return _DualDamped(damping, self, DampedSystem.of(joined, damping, units, self.meter))

    def remaining(self, step: Tensor) -> Tensor:
        """See the base class."""
        return (self.product(step) + self.residuals).square().sum()

    def product(self, step: Tensor) -> Tensor:
        """See the base class."""
        self.meter.add(product(*self.rows.shape) + product(*self.basis.shape))
        return self.rows @ (self.basis.mT @ (self.scale * step))

    def rank(self) -> int | None:
        """See the base class."""
        return numerical_rank(self.rows, self.meter) if len(self.rows) <= MOST_RANKED else None


@dataclass(frozen=True)
class _DualDamped(DampedModel):
    damping: float
    model: DualModel
    system: DampedSystem

    def step(self) -> Tensor:
        return self._back(self.system.step())

    def correction(self, second: Tensor) -> Tensor:
        self.model.meter.add(product(*self.model.rows.shape))
        return self._back(self.system.newton(self.model.rows.mT @ second))

    def _back(self, w: Tensor) -> Tensor:
        """The step ``(n,)`` that combines the rows by ``w`` ``(N,)``."""
        self.model.meter.add(product(*self.model.basis.shape))
        return (self.model.basis @ w) / self.model.scale

"""The linear model by ``J^T J``, or by the triangle of ``[J | r]`` where that is too coarse."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kanpinn.optimisers.base import LeastSquaresObjective, SquaredJacobian
from kanpinn.optimisers.linear_models import (
    MOST_RANKED,
    DampedModel,
    DampedSystem,
    LinearModel,
    ScaleOf,
    numerical_rank,
)
from kanpinn.optimisers.operations import Meter, cholesky, product, substitution
from kanpinn.optimisers.solver_choice import MIB

REFINEMENTS = 2  # of a step that squares gave
LAST_REFINEMENT = 0.1  # of the step: the most that the last of them may change
RAISED = (1 / 16, 1 / 2, 4.0)  # of the damping covered by squares: taken instead of a smaller one
SQUARED_FLOOR = 4.0  # times eps |J^T J|: the least damping under which J^T J stands for J


class DenseModel(LinearModel):
    """From ``G = [J | r]^T [J | r]``, or the triangle of ``[J | r]`` where that is too coarse.

    Both take ``O(n^2)`` numbers, and ``O(n^3)`` work a damping. ``G`` costs a fraction of the
    triangle, and has half its digits: it stands for ``J^T J`` up to about ``eps |J^T J|``. Products
    with ``J`` itself give the rest back: steps by the Cholesky factor of ``J^T J + lambda D^2`` are
    refined by their defect (corrected semi-normal equations: Bjorck,
    doi:10.1016/0024-3795(87)90101-7), and accepted if the last refinement is small. If it is not,
    a damping of the size of what squaring loses takes the place of a smaller one: such steps are
    somewhat shorter, and several times cheaper than those by the triangle. Without products, steps
    are accepted while the smallest ``lambda D^2`` is ``SQUARED_FLOOR eps |J^T J|`` at least. Where
    they are not accepted, the triangle is made.
    """

    solver = "dense"

    def __init__(
        self,
        objective: LeastSquaresObjective,
        theta: Tensor,
        residuals: Tensor,
        scale_of: ScaleOf,
        memory_mib: float = 0.0,
    ) -> None:
        self.objective, self.theta, self.residuals = objective, theta, residuals
        self.meter = Meter()
        self.squared = objective.squares(theta, memory_mib * MIB)
        self.upper = self.squared.upper
        sizes = self.upper.diagonal()  # (n + 1,)
        self.loss = sizes[-1]
        self.gradient = 2 * self.upper[:-1, -1]
        self.scale = scale_of(sizes[:-1])

    @cached_property
    def triangle(self) -> Tensor:
        """``R`` of a QR decomposition of ``[J | r]``, ``(n + 1, n + 1)``."""
        return self.objective.triangle(self.theta)

    @cached_property
    def least(self) -> float:
        """The damping above which a step from ``G`` alone is accepted."""
        half = self.upper[:-1, :-1]
        once, twice = half.diagonal().square().sum(), torch.linalg.matrix_norm(half).square()
        norm = (2 * twice - once).sqrt()  # of both halves
        size = float(norm / self.scale.min().square())
        return SQUARED_FLOOR * torch.finfo(half.dtype).eps * size

    def damped(self, damping: float) -> DampedModel:
        """See the base class; what squaring loses may take a somewhat larger damping."""
        if self.squared.evaluations:  # no products to refine by
            found = self._squared_damped(damping) if damping >= self.least else None
        else:
            larger = [share * self.least for share in RAISED if share * self.least > damping]
            tried = (self._squared_damped(each) for each in (damping, *larger))
            found = next((each for each in tried if each and each.change <= LAST_REFINEMENT), None)
        if found is not None:
            return found
        system = DampedSystem.of(self.triangle, damping, self.scale, self.meter)
        return _DenseDamped(damping, self.squared, system)

    def _squared_damped(self, damping: float) -> _SquaredDamped | None:
        """By the Cholesky factor, where there is one."""
        added = damping * self.scale.square()
        self.meter.add(cholesky(len(added)))
        damped = self.upper[:-1, :-1].clone()
        damped.diagonal().add_(added)
        # Reads what lies below the diagonal: the transpose of what there is.
        factor, failed = torch.linalg.cholesky_ex(damped.mT)
        if int(failed):
            return None
        return _SquaredDamped(damping, self.squared, factor, added, self.residuals, self.meter)

    def remaining(self, step: Tensor) -> Tensor:
        """See the base class."""
        along = self.product(step)
        if along is not None:
            return (along + self.residuals).square().sum()
        self.meter.add(product(*self.upper.shape))
        if "triangle" in self.__dict__:
            return (self.triangle[:, :-1] @ step + self.triangle[:, -1]).square().sum()
        extended = torch.cat([step, step.new_ones(1)])
        half = self.upper @ extended
        return extended @ (2 * half - self.upper.diagonal() * extended)

    def product(self, step: Tensor) -> Tensor | None:
        """See the base class."""
        return self.squared.product(step)

    def rank(self) -> int | None:
        """See the base class."""
        small = len(self.upper) <= MOST_RANKED
        return numerical_rank(self.triangle[:, :-1], self.meter) if small else None


class _SquaredDamped(DampedModel):
    """From the Cholesky factor of ``J^T J + lambda D^2`` ``(n, n)``, refined.

    Attributes:
        change: size of the step's last refinement, relative to the step; 0 without any.
    """

    def __init__(
        self,
        damping: float,
        squared: SquaredJacobian,
        factor: Tensor,
        added: Tensor,
        residuals: Tensor,
        meter: Meter,
    ) -> None:
        self.damping, self.meter = damping, meter
        self.squared, self.factor, self.added = squared, factor, added
        self._step, self.change = self._solved(residuals, squared.upper[:-1, -1])

    @property
    def evaluations(self) -> int:
        return self.squared.evaluations

    def step(self) -> Tensor:
        return self._step

    def correction(self, second: Tensor) -> Tensor:
        return self._solved(second, self.squared.transposed(second))[0]

    def _solved(self, u: Tensor, gradient: Tensor) -> tuple[Tensor, float]:
        """``argmin |J d + u|^2 + lambda |D d|^2``, with ``J^T u``; how much it changed at last."""
        d, change = -self._inverse(gradient), 0.0
        for _ in range(REFINEMENTS):
            defect = self.squared.normal(d, u)
            if defect is None:
                break
            refinement = self._inverse(defect + self.added * d)
            change = float(refinement.norm() / d.norm()) if bool(d.any()) else 0.0
            d = d - refinement
        return d, change

    def _inverse(self, vector: Tensor) -> Tensor:
        self.meter.add(2 * substitution(len(vector)))
        half = torch.linalg.solve_triangular(self.factor, vector[:, None], upper=False)
        return torch.linalg.solve_triangular(self.factor.mT, half, upper=True)[:, 0]


@dataclass(frozen=True)
class _DenseDamped(DampedModel):
    damping: float
    squared: SquaredJacobian
    system: DampedSystem

    @property
    def evaluations(self) -> int:
        return self.squared.evaluations

    def step(self) -> Tensor:
        return self.system.step()

    def correction(self, second: Tensor) -> Tensor:
        return self.system.newton(self.squared.transposed(second))

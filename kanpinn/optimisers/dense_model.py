"""The linear model by ``J^T J``, or by the triangle of ``[J | r]`` where that is too coarse."""

from __future__ import annotations

from collections.abc import Iterator
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
from kanpinn.optimisers.numbers import Number, reads_freely
from kanpinn.optimisers.operations import cholesky, product, substitution
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
        super().__init__()
        self.squared = objective.squares(theta, memory_mib * MIB)
        self.upper = self.squared.upper
        sizes = self.upper.diagonal()  # (n + 1,)
        self.loss = sizes[-1]
        self.gradient = 2 * self.upper[:-1, -1]
        self.scale = scale_of(sizes[:-1])
        self._prepared: _SquaredDamped | None = None

    @cached_property
    def triangle(self) -> Tensor:
        """``R`` of a QR decomposition of ``[J | r]``, ``(n + 1, n + 1)``."""
        return self.objective.triangle(self.theta)

    @cached_property
    def least(self) -> Number:
        """The damping above which a step from ``G`` alone is accepted."""
        half = self.upper[:-1, :-1]
        once, twice = half.diagonal().square().sum(), torch.linalg.matrix_norm(half).square()
        norm = (2 * twice - once).sqrt()  # of both halves
        floor = SQUARED_FLOOR * torch.finfo(half.dtype).eps
        return self.numbers.later(floor * norm / self.scale.min().square())

    def prepare(self, damping: float) -> None:
        """See the base class."""
        if reads_freely(self.loss):
            return
        if self.squared.evaluations:
            _ = self.least  # is then read with the rest
        self._prepared = self._squared_damped(damping)

    def damped(self, damping: float) -> DampedModel:
        """See the base class; what squaring loses may take a somewhat larger damping."""
        prepared, self._prepared = self._prepared, None
        for each in self._dampings(damping):
            found = prepared if prepared and prepared.damping == each else None
            found = found or self._squared_damped(each)
            if found.holds:
                return found
        system = DampedSystem.of(self.triangle, damping, self.scale, self.meter)
        return _DenseDamped(damping, self.squared, system)

    def _dampings(self, damping: float) -> Iterator[float]:
        """Those to try the Cholesky factor with, in turn."""
        if self.squared.evaluations:  # no products to refine by
            if damping >= float(self.least):
                yield damping
            return
        yield damping
        larger = (share * float(self.least) for share in RAISED)
        yield from (each for each in larger if each > damping)

    def _squared_damped(self, damping: float) -> _SquaredDamped:
        """By the Cholesky factor, whether there is one or not."""
        added = damping * self.scale.square()
        self.meter.add(cholesky(len(added)))
        damped = self.upper[:-1, :-1].clone()
        damped.diagonal().add_(added)
        # Reads what lies below the diagonal: the transpose of what there is.
        factor, failed = torch.linalg.cholesky_ex(damped.mT)
        found = _SquaredDamped(damping, self, factor, self.numbers.later(failed), added)
        if not reads_freely(factor):
            _ = found.change  # is then read with the rest
        return found

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
        failed: other than 0 where there is no such factor, and nothing else means anything.
    """

    def __init__(
        self, damping: float, model: DenseModel, factor: Tensor, failed: Number, added: Tensor
    ) -> None:
        self.damping, self.meter, self.squared = damping, model.meter, model.squared
        self.factor, self.failed, self.added = factor, failed, added
        self._model = model

    @property
    def evaluations(self) -> int:
        return self.squared.evaluations

    @property
    def holds(self) -> bool:
        """Whether the step is as good as one by the triangle."""
        return not float(self.failed) and float(self.change) <= LAST_REFINEMENT

    @cached_property
    def change(self) -> Number:
        """Size of the step's last refinement, relative to the step; 0 without any."""
        return self._model.numbers.later(self._first[1])

    @cached_property
    def _first(self) -> tuple[Tensor, Tensor]:
        """The step, and its change."""
        return self._solved(self._model.residuals, self.squared.upper[:-1, -1])

    def step(self) -> Tensor:
        return self._first[0]

    def correction(self, second: Tensor) -> Tensor:
        return self._solved(second, self.squared.transposed(second))[0]

    def _solved(self, u: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """``argmin |J d + u|^2 + lambda |D d|^2``, with ``J^T u``; how much it changed at last."""
        d, change = -self._inverse(gradient), gradient.new_zeros(())
        for _ in range(REFINEMENTS):
            defect = self.squared.normal(d, u)
            if defect is None:
                break
            refinement, size = self._inverse(defect + self.added * d), d.norm()
            change = torch.where(size == 0, 0.0, refinement.norm() / size)  # not for a NaN
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

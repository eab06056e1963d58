"""The linear model ``r + J d`` of residuals, and its damped minimisers by three linear solvers.

All solve ``min |J d + r|^2 + lambda |D d|^2`` for as many ``lambda`` as a step tries. What they
hold differs: squares of ``n^2`` numbers (dense), the ``N`` rows of the Jacobian (dual), or
nothing but what its products take (iterative).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from kanpinn.optimisers.base import LeastSquaresObjective, SquaredJacobian
from kanpinn.optimisers.lsqr import lsqr
from kanpinn.optimisers.operations import (
    Meter,
    cholesky,
    orthogonal,
    product,
    substitution,
    triangle,
)

Solver = Literal["dense", "dual", "iterative"]

MIB = 2.0**20
MOST_RANKED = 1000  # columns whose rank is found: it costs their third power, and is but told
SLAB = 4  # rows of a slab per column: stacking triangles then costs little beside the slabs
# Measured, as far as they are not plain: peaks beside those of a small run.
SLAB_COPIES = 1.5  # of a slab: its pieces, the slab, its factorisation
TRIANGLES = 6  # of n^2 numbers: the factor, those it is reduced from, the step's
DUAL_COPIES = 4  # of the Jacobian: its pieces, the whole, the orthogonal factor, its workspace
DUAL_TRIANGLES = 8  # of N^2 numbers
BLOCK = 64  # most columns that are orthogonalised against each other in front of the iteration
BLOCK_COPIES = 4  # of the blocks' squares: their sums, the factor, its inverse
ITERATION_VECTORS = 8  # of N + n numbers
JITTER = 1e-14  # of a block's diagonal
REFINEMENTS = 2  # of a step that squares gave
LAST_REFINEMENT = 0.1  # of the step: the most that the last of them may change
RAISED = (1 / 16, 1 / 2, 4.0)  # of the damping covered by squares: taken instead of a smaller one
SQUARED_FLOOR = 4.0  # times eps |J^T J|: the least damping under which J^T J stands for J


def dense_numbers(rows: int, columns: int, workers: int = 1) -> float:
    """Numbers that the dense solver holds at most."""
    slab = min(SLAB * columns, rows) * columns
    return SLAB_COPIES * slab * workers + TRIANGLES * float(columns) ** 2


def dual_numbers(rows: int, columns: int) -> float:
    """Numbers that the dual solver holds at most."""
    return DUAL_COPIES * float(rows) * columns + DUAL_TRIANGLES * float(rows) ** 2


def iterative_numbers(rows: int, columns: int) -> float:
    """Numbers that the iterative solver holds beside what the linearisation keeps."""
    return BLOCK_COPIES * BLOCK * float(columns) + ITERATION_VECTORS * float(rows + columns)


@dataclass(frozen=True)
class SolverChoice:
    """A linear solver, and what the direct one of these sizes would hold.

    Attributes:
        solver: the choice.
        direct: the direct solver of the smaller system, ``dense`` or ``dual``.
        direct_mib: what that one takes.
    """

    solver: Solver
    direct: Solver
    direct_mib: float


def choose_solver(
    wanted: Literal["auto", "dense", "dual", "iterative"],
    memory_mib: float,
    rows: int,
    columns: int,
    itemsize: int,
) -> SolverChoice:
    """The solver of ``rows`` residuals in ``columns`` parameters, by sizes and options alone.

    ``auto``: the dual one for fewer rows than columns and the dense one otherwise, where that fits
    into ``memory_mib`` (with one worker); the iterative one where it does not.
    """
    direct: Solver = "dual" if rows < columns else "dense"
    if wanted in ("dense", "dual"):
        direct = wanted
    numbers = (dual_numbers if direct == "dual" else dense_numbers)(rows, columns)
    mib = numbers * itemsize / MIB
    chosen: Solver = direct
    if wanted == "iterative" or (wanted == "auto" and mib > memory_mib):
        chosen = "iterative"
    return SolverChoice(chosen, direct, mib)


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
    """

    solver: ClassVar[Solver]
    loss: Tensor
    gradient: Tensor
    scale: Tensor
    meter: Meter

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
        self.meter = Meter()
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


class IterativeModel(LinearModel):
    """From products with ``J`` and ``J^T``: LSQR on blocks of columns made orthogonal.

    In front of the iteration stands ``P``, the inverse triangles of the blocks
    ``J_b^T J_b + lambda D_b^2`` on the diagonal: ``d = P z``. Steps are inexact, so they predict a
    smaller fall than the exact ones, yet never a rise.

    Args:
        objective: gives the linearisation.
        theta: where.
        residuals: there.
        scale_of: the diagonal ``D`` from the columns' squares.
        iterations: of LSQR, at most.
        tolerance: of LSQR.
        memory_mib: what the linearisation may keep from product to product.
    """

    solver = "iterative"

    def __init__(
        self,
        objective: LeastSquaresObjective,
        theta: Tensor,
        residuals: Tensor,
        scale_of: ScaleOf,
        iterations: int,
        tolerance: float,
        memory_mib: float,
    ) -> None:
        self.meter = Meter()
        self.linear = objective.linearise(theta, memory_mib * MIB)
        self.residuals, self.loss = residuals, residuals.square().sum()
        self.gradient = 2 * self.linear.transposed(residuals)
        self.squares = self.linear.block_squares(BLOCK)
        diagonals = [block.diagonal(dim1=1, dim2=2).reshape(-1) for block in self.squares]
        self.scale = scale_of(torch.cat(diagonals))
        self.iterations, self.tolerance = iterations, tolerance

    def damped(self, damping: float) -> DampedModel:
        """See the base class."""
        front = Preconditioner.of(self.squares, damping, self.scale, self.meter)
        return _IterativeDamped(damping, self, front)

    def remaining(self, step: Tensor) -> Tensor:
        """See the base class."""
        return (self.product(step) + self.residuals).square().sum()

    def product(self, step: Tensor) -> Tensor:
        """See the base class."""
        return self.linear.product(step)


@dataclass(frozen=True)
class _IterativeDamped(DampedModel):
    damping: float
    model: IterativeModel
    front: Preconditioner

    def step(self) -> Tensor:
        return self.correction(self.model.residuals)

    def correction(self, second: Tensor) -> Tensor:
        model, count = self.model, len(second)
        below = model.scale * math.sqrt(self.damping)

        def product(z: Tensor) -> Tensor:
            d = self.front.apply(z)
            return torch.cat([model.linear.product(d), below * d])

        def transposed(u: Tensor) -> Tensor:
            return self.front.transposed(model.linear.transposed(u[:count]) + below * u[count:])

        right = torch.cat([-second, torch.zeros_like(below)])
        found = lsqr(product, transposed, right, model.iterations, model.tolerance)
        return self.front.apply(found.x)


@dataclass(frozen=True)
class Preconditioner:
    """``P``, block diagonal: inverse triangles ``L^-T`` of ``J_b^T J_b + lambda D_b^2 = L L^T``.

    Attributes:
        inverses: ``L^-1`` of neighbouring blocks of one size, ``(count, size, size)``, in the order
            of the parameters.
        meter: counts what is done with them.
    """

    inverses: tuple[Tensor, ...]
    meter: Meter

    @classmethod
    def of(
        cls, squares: Sequence[Tensor], damping: float, scale: Tensor, meter: Meter
    ) -> Preconditioner:
        """From ``J_b^T J_b`` of all blocks, ``lambda`` and the diagonal ``D`` ``(n,)``."""
        inverses, start = [], 0
        for square in squares:
            count, size, _ = square.shape
            own = scale[start : start + count * size].view(count, size)
            start += count * size
            diagonal = square.diagonal(dim1=1, dim2=2)
            added = damping * own.square() + JITTER * diagonal
            meter.add(count * (cholesky(size) + size * substitution(size)))
            factor = torch.linalg.cholesky_ex(square + torch.diag_embed(added)).L
            units = torch.eye(size, dtype=square.dtype, device=square.device).expand_as(square)
            inverse = torch.linalg.solve_triangular(factor, units, upper=False)
            broken = ~torch.isfinite(inverse).all(-1).all(-1)[:, None, None]
            plain = torch.diag_embed((diagonal + added).clamp_min(JITTER).rsqrt())
            inverses.append(torch.where(broken, plain, inverse))
        return cls(tuple(inverses), meter)

    def apply(self, z: Tensor) -> Tensor:
        """``P z`` ``(n,)``."""
        return self._each(z, [inverse.mT for inverse in self.inverses])

    def transposed(self, d: Tensor) -> Tensor:
        """``P^T d`` ``(n,)``."""
        return self._each(d, self.inverses)

    def _each(self, vector: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        sizes = [matrix.shape[0] * matrix.shape[1] for matrix in matrices]
        self.meter.add(sum(len(matrix) * product(*matrix.shape[1:]) for matrix in matrices))
        parts = zip(matrices, vector.split(sizes), strict=True)
        return torch.cat([(m @ v.view(len(m), -1, 1)).reshape(-1) for m, v in parts])


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

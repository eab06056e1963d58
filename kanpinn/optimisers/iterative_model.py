"""The linear model by products with the Jacobian alone, which is never held."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kanpinn.optimisers.base import LeastSquaresObjective
from kanpinn.optimisers.linear_models import DampedModel, LinearModel, ScaleOf
from kanpinn.optimisers.lsqr import lsqr
from kanpinn.optimisers.operations import Meter, cholesky, product, substitution
from kanpinn.optimisers.solver_choice import BLOCK, MIB

JITTER = 1e-14  # of a block's diagonal


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
        super().__init__()
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

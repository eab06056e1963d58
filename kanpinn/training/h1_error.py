"""The error of the gradient: the H1 seminorm of a solution's difference from the reference.

References are functions of points, so that their gradient comes from differences. With the step
``h = 2^-14 L`` on a coordinate of extent ``L`` the fourth-order formulas are off by about

    (k h)^4 / 30 (central),  (k h)^4 / 5 (one-sided),  and by round-off  3 eps |u| / h

relative to the gradient of a wave ``exp(i k x)``: 1e-12 for a few periods over the extent, 3e-10
for the front of Burgers' equation with ``nu = 0.01``, 5e-8 for ``nu = 0.01/pi`` (measured against
half the step). A smaller error than that is the differences' own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from kanpinn.errors import KanpinnError
from kanpinn.geometry import Box, Domain, Points
from kanpinn.problem import Problem
from kanpinn.residuals import System
from kanpinn.sampling import seen
from kanpinn.training.block_data import UNBOUNDED
from kanpinn.training.derivatives import predict_gradient
from kanpinn.training.evaluation import reference_values, relative_l2
from kanpinn.training.memory import Memory

STEP = 2.0**-14  # of a coordinate's extent
ROUND_OFF = 8 * torch.finfo(torch.float64).eps  # of values, times the sum of the weights
POINTS = 5000  # about: the differences then ask for as many values as the errors do
# Offsets in steps, and their weights divided by the step.
CENTRAL = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
FORWARD = {0: -25 / 12, 1: 48 / 12, 2: -36 / 12, 3: 16 / 12, 4: -3 / 12}
BACKWARD = {-k: -weight for k, weight in FORWARD.items()}


def reference_gradient(problem: Problem, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """The reference's first derivatives by differences of fourth order.

    Central ones, and one-sided ones where those would leave the domain or reach across one of its
    interfaces; a point on an interface belongs to the plus side. Points where neither fits are
    left out, and so is the initial time: initial values that do not fit the equation (a kink of
    their periodic continuation, say) have no derivative in time there. A kink that the domain has
    no interface for is not known of.

    Args:
        problem: with the reference.
        x: points ``(n, d)``, float64.

    Returns:
        The derivatives ``(n, n_fields, d)``, and at which points ``(n,)`` they are known; ``None``
        without a reference, or where it fails or is not finite at the points of the differences
        (one that is known at given points alone has none), or is constant up to round-off.
    """
    (count, dimension), noise = x.shape, 0.0
    gradient = x.new_zeros(count, len(problem.fields), dimension)
    known = torch.ones(count, dtype=torch.bool)
    for axis in range(dimension):
        step = STEP * (problem.domain.upper[axis] - problem.domain.lower[axis])
        open_rows = torch.ones(count, dtype=torch.bool)
        for stencil in (CENTRAL, FORWARD, BACKWARD):
            fits = open_rows & _fits(problem.domain, x, axis, [k * step for k in stencil])
            if bool(fits.any()):
                shifted = torch.cat([_shifted(x[fits], axis, k * step) for k in stencil])
                values = _values(problem, shifted)
                if values is None:
                    return None
                noise = max(noise, ROUND_OFF * float(values.abs().max()) / step)
                weights = x.new_tensor(list(stencil.values())) / step
                parts = values.view(len(stencil), -1, values.shape[1])
                gradient[fits, :, axis] = torch.einsum("k,knf->nf", weights, parts)
            open_rows &= ~fits
        known &= ~open_rows
    return (gradient, known) if bool((gradient.abs() > noise).any()) else None


def _values(problem: Problem, x: Tensor) -> Tensor | None:
    try:
        return reference_values(problem, x)
    except KanpinnError:
        return None


def _shifted(x: Tensor, axis: int, by: float) -> Tensor:
    moved = x.clone()
    moved[:, axis] += by
    return moved


def _fits(domain: Domain, x: Tensor, axis: int, offsets: Iterable[float]) -> Tensor:
    """Whether ``x`` ``(n, d)``, moved by each offset, stays inside and on its side, ``(n,)``."""
    side, fits = _side(domain, x, axis), torch.ones(len(x), dtype=torch.bool)
    for offset in offsets:
        moved = _shifted(x, axis, offset)
        fits &= domain.contains(moved) & (_side(domain, moved, axis) == side)
        if domain.time is not None:
            time = domain.names.index(domain.time)
            fits &= moved[:, time] > domain.lower[time]
    return fits


def _side(domain: Domain, x: Tensor, axis: int) -> Tensor:
    """How many interfaces across the axis lie at or before each point, ``(n,)``."""
    cuts = domain.interfaces.get(domain.names[axis], ()) if isinstance(domain, Box) else ()
    return torch.bucketize(x[:, axis].contiguous(), x.new_tensor(cuts), right=True)


class ReferenceGradient:
    """A problem's reference gradient at about ``POINTS`` of its evaluation points.

    Every k-th of them is taken, on a grid a lattice that lies askew to the axes. Nothing is
    computed before it is asked for, and that once.

    Args:
        problem: on its whole time interval.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @cached_property
    def known(self) -> tuple[Tensor, Tensor] | None:
        """Points ``(m, d)`` and derivatives there ``(m, n_fields, d)``, ``None`` if unknown."""
        x = self.problem.evaluation_points()
        x = x[:: max(1, len(x) // POINTS)]
        found = reference_gradient(self.problem, x)
        return None if found is None else (x[found[1]], found[0][found[1]])


class H1Error:
    """``|grad(u - v)| / |grad v|`` with the reference ``v``, all fields together.

    The norms are sums over points that are not trained on: see :class:`ReferenceGradient`.

    Args:
        reference: its gradient.
        trained: points of the current level.
        like: type and device to evaluate in.
        end: last time that counts, for time windows.
        memory: what an evaluation may take.
    """

    def __init__(
        self,
        reference: ReferenceGradient,
        trained: Sequence[Points],
        like: Tensor,
        end: float | None = None,
        memory: Memory = UNBOUNDED,
    ) -> None:
        self.reference, self.trained, self.like, self.end = reference, tuple(trained), like, end
        self.memory = memory

    def evaluate(self, system: System) -> float | None:
        """The error; ``None`` without a reference gradient, or where that is zero."""
        if self.reference.known is None:
            return None
        x, exact = self.reference.known
        used = torch.ones(len(x), dtype=torch.bool)
        if self.trained:
            used &= ~seen(x, torch.cat([p.x.double().cpu() for p in self.trained]))
        if self.end is not None:
            used &= x[:, -1] <= self.end
        fields = self.reference.problem.fields
        at = x[used].to(self.like)
        found = predict_gradient(system, at, fields, self.memory).double().cpu()
        return relative_l2(found - exact[used], exact[used])

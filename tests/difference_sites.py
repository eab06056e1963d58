"""Sites whose fields are given functions, derivatives by finite differences: for references."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kanpinn.geometry import Box, Points
from kanpinn.problem import Problem
from kanpinn.residuals import Field, Site
from kanpinn.sampling import sample, stream

Floats = NDArray[np.float64]
Function = Callable[[Floats], Floats]

WIDTH = 11  # points of a stencil: order 10 for first, 7 or more for fourth derivatives


def scaled(function: Function, factor: float | Floats) -> Function:
    """A function times a factor, for what must not pass as a solution."""
    return lambda x: factor * function(x)


def weights(offsets: Floats, order: int) -> Floats:
    """Weights of a derivative at 0 that are exact for polynomials up to the number of offsets."""
    moments = np.zeros(len(offsets))
    moments[order] = math.factorial(order)
    return np.asarray(np.linalg.solve(np.vander(offsets, increasing=True).T, moments))


def derivative(
    function: Function, box: Box, x: Floats, index: tuple[int, ...], step: float
) -> Floats:
    """The derivative of a function at points ``(n, d)``, ``(n, m)``; no stencil leaves the box.

    ``step`` is a share of the box's width.
    """
    axis = next((a for a, order in enumerate(index) if order), None)
    if axis is None:
        return function(x).reshape(len(x), -1)
    rest = tuple(0 if a == axis else order for a, order in enumerate(index))
    lower, upper = box.lower[axis], box.upper[axis]
    h = step * (upper - lower)
    low = np.ceil((lower - x[:, axis]) / h - 1e-9)
    high = np.floor((upper - x[:, axis]) / h + 1e-9) - (WIDTH - 1)
    first = np.clip(-(WIDTH // 2), low, high)
    factors = np.empty((len(x), WIDTH))
    for start in np.unique(first):
        factors[first == start] = weights(start + np.arange(WIDTH), index[axis])
    total: Floats | float = 0.0
    for k in range(WIDTH):
        moved = x.copy()
        moved[:, axis] = np.clip(moved[:, axis] + (first + k) * h, lower, upper)
        total = total + factors[:, k, None] * derivative(function, box, moved, rest, step)
    return np.asarray(total / h ** index[axis])


def site_of(
    function: Function,
    problem: Problem,
    at: Points,
    step: float,
    scalars: Mapping[str, float] | None = None,
) -> Site:
    """A site whose fields are the columns of the function."""
    x, box = at.x.numpy(), problem.domain
    assert isinstance(box, Box)
    n = len(box.names)

    def component(which: tuple[int, ...] | str, column: int) -> Tensor:
        squares = [tuple(2 * (a == b) for b in range(n)) for a in problem.coordinates.spatial]
        indices = squares if isinstance(which, str) else [which]
        parts = [derivative(function, box, x, index, step)[:, column] for index in indices]
        return torch.from_numpy(np.sum(parts, axis=0))

    def field(name: str, column: int) -> Field:
        return Field(name, lambda which: component(which, column), problem.coordinates, at.normal)

    fields = {name: field(name, column) for column, name in enumerate(problem.fields)}
    named = {name: torch.tensor(value) for name, value in (scalars or {}).items()}
    return Site(at, fields, problem.coordinates, SimpleNamespace(**named))


def largest_residuals(
    problem: Problem,
    function: Function,
    step: float,
    n: int = 128,
    scalars: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Largest residual of the function in every block (of a mean: that of the mean)."""
    result = {}
    for block in problem.blocks():
        count = max(n, block.group)
        sites = sample(block.region, count, "sobol", stream(7, block.name))
        rows = block.residual(*(site_of(function, problem, at, step, scalars) for at in sites))
        if block.group > 1:
            rows = rows.reshape(-1, block.group).mean(1)
        result[block.name] = float(rows.abs().max())
    return result


def reference_of(problem: Problem) -> Function:
    """The reference of a problem that has one."""

    def reference(x: Floats) -> Floats:
        values = problem.reference(x)
        assert values is not None
        return values

    return reference

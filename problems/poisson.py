"""Poisson's equation with a smooth manufactured solution, in one, two or three dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt
from numpy.typing import NDArray
from torch import Tensor

from kanpinn import Box, Dirichlet, Problem, Site


@dataclass
class Poisson(Problem):
    """``laplace(u) = f`` on ``[-1, 1]^d``, ``u`` given on the boundary.

    The solution is ``u = prod_a sin(k pi (x_a - s))``, so that ``f = -d (k pi)^2 u``. For a whole
    number k and s = 0 it vanishes on the boundary.
    """

    dimension: Annotated[Literal[1, 2, 3], "number of coordinates d"] = 2
    frequency: Annotated[float, Gt(0), "k, half-waves per unit length"] = 1.0
    shift: Annotated[float, "s, place of a zero along every coordinate"] = 0.0
    exact_boundary: Annotated[bool, "build the boundary values in, or penalise them"] = True
    boundary_weight: Annotated[float, Gt(0), "weight of a penalised boundary"] = 100.0

    summary = "laplace(u) = f on [-1, 1]^d with a smooth solution"

    def __post_init__(self) -> None:
        d, wave = self.dimension, math.pi * self.frequency
        self.domain = Box((-1.0,) * d, (1.0,) * d, names=("x", "y", "z")[:d])
        vanishes = self.shift == 0 and float(self.frequency).is_integer()
        solution = " * ".join(f"sin({wave!r} * ({a} - {self.shift!r}))" for a in self.domain.names)
        self.conditions = (
            Dirichlet(
                value=0.0 if vanishes else solution,
                exact=self.exact_boundary,
                weight=self.boundary_weight,
            ),
        )
        self.residual_weight = 1.0 / (d * wave**2) ** 2  # so that the source is of size one

    def residual(self, p: Site) -> Tensor:
        """``laplace(u) - f``."""
        wave = math.pi * self.frequency
        solution = torch.sin(wave * (p.points.x - self.shift)).prod(-1)
        return p.u.laplacian + self.dimension * wave**2 * solution

    def reference(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The exact solution."""
        return np.sin(math.pi * self.frequency * (x - self.shift)).prod(-1)

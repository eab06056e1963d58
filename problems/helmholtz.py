"""The Helmholtz equation on a square, with a manufactured solution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt
from numpy.typing import NDArray
from torch import Tensor

from kanpinn import Box, Dirichlet, Problem, Site


@dataclass
class Helmholtz(Problem):
    """``laplace(u) + k^2 u = q`` on ``[-1, 1]^2``, ``u`` given on the boundary.

    The solution is ``u = sin(a1 pi (x - s)) sin(a2 pi (y - s))``, so that
    ``q = (k^2 - (a1^2 + a2^2) pi^2) u``. With the defaults it is the benchmark of Wang, Teng and
    Perdikaris (arXiv 2001.04536, section 2.2). Where ``k^2`` is an eigenvalue
    ``(m^2 + n^2) pi^2 / 4``, m and n from 1, the solution is not unique.
    """

    wavenumber: Annotated[float, Ge(0), "k"] = 1.0
    frequency_x: Annotated[float, Gt(0), "a1, half-waves per unit length along x"] = 1.0
    frequency_y: Annotated[float, Gt(0), "a2, half-waves per unit length along y"] = 4.0
    shift: Annotated[float, "s, place of a zero along both coordinates"] = 0.0
    exact_boundary: Annotated[bool, "build the boundary values in, or penalise them"] = True
    boundary_weight: Annotated[float, Gt(0), "weight of a penalised boundary"] = 100.0

    summary = "laplace(u) + k^2 u = q on [-1, 1]^2, waves of different length along x and y"

    def __post_init__(self) -> None:
        self.domain = Box((-1.0, -1.0), (1.0, 1.0), names=("x", "y"))
        frequencies = (self.frequency_x, self.frequency_y)
        self._waves = [math.pi * frequency for frequency in frequencies]
        vanishes = self.shift == 0 and all(float(a).is_integer() for a in frequencies)
        solution = " * ".join(
            f"sin({wave!r} * ({name} - {self.shift!r}))"
            for name, wave in zip(self.domain.names, self._waves, strict=True)
        )
        self.conditions = (
            Dirichlet(
                value=0.0 if vanishes else solution,
                exact=self.exact_boundary,
                weight=self.boundary_weight,
            ),
        )
        self._laplacian = -sum(wave**2 for wave in self._waves)  # of u, as a multiple of u
        # So that the source is of size one, whatever cancels in it.
        self.residual_weight = 1.0 / (self.wavenumber**2 - self._laplacian) ** 2

    def residual(self, p: Site) -> Tensor:
        """``laplace(u) + k^2 u - q``."""
        first, second = self._waves
        solution = torch.sin(first * (p.x - self.shift)) * torch.sin(second * (p.y - self.shift))
        square = self.wavenumber**2
        rate: Tensor = p.u.laplacian + square * p.u - (square + self._laplacian) * solution
        return rate

    def reference(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The exact solution."""
        return np.sin(np.array(self._waves) * (x - self.shift)).prod(-1)

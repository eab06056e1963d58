"""Poisson's equation with a coefficient that jumps across a line (arXiv 2603.04827, eq. 27-28)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt
from numpy.typing import NDArray
from torch import Tensor

from kanpinn import Abs, Box, Dirichlet, FluxJump, Problem, Site

EPS_LEFT, EPS_RIGHT = 1.0, 0.5


@dataclass
class PoissonInterface(Problem):
    """``div(eps grad u) = f`` on ``[-1, 1]^2``, ``u = 0`` on the boundary.

    ``eps = 1`` for ``x < 0`` and ``1/2`` for ``x >= 0``; the solution is
    ``sin(pi x) sin(3 pi y)`` on the left and ``sin(2 pi x) sin(3 pi y)`` on the right, so that
    ``f = -10 pi^2 u`` on the left and ``-6.5 pi^2 u`` on the right. Across the line ``x = 0``

    * u is continuous, because the network is: its third input ``|x|`` (a level set) gives it a
      kink there, and no jump;
    * the flux ``eps u_x = pi sin(3 pi y)`` is continuous, which must be imposed: without it
      ``sinh(3 pi (1 - |x|)) sin(3 pi y)`` could be added to u at no cost.

    The default weights are the paper's: 1e-2 on the equation, 1 on the boundary, 1e-1 on the flux.
    An error of size e that varies like the solution gives residuals of about ``10 pi^2 e`` in the
    equation and ``(1 + 1/2) 3 pi e`` in the flux, hence 97 e^2 and 20 e^2 in the loss: of one
    size. A penalised boundary has e^2 only, so a weight of 100 would be its equal; built in
    exactly, as by default, it needs none.
    """

    exact_boundary: Annotated[bool, "build the zero boundary in, or penalise it"] = True
    equation_weight: Annotated[float, Gt(0), "weight of the equation"] = 1e-2
    boundary_weight: Annotated[float, Gt(0), "weight of a penalised boundary"] = 1.0
    flux_weight: Annotated[float, Gt(0), "weight of the flux condition at x = 0"] = 1e-1

    summary = "div(eps grad u) = f on [-1, 1]^2, eps jumps from 1 to 1/2 at x = 0"

    def __post_init__(self) -> None:
        self.domain = Box((-1.0, -1.0), (1.0, 1.0), interfaces={"x": (0.0,)})
        self.inputs = ("x", "y", Abs(of="x"))
        self.conditions = (
            Dirichlet(value=0.0, exact=self.exact_boundary, weight=self.boundary_weight),
            FluxJump(
                on="x=0",
                coefficient=f"where(side < 0, {EPS_LEFT}, {EPS_RIGHT})",
                weight=self.flux_weight,
            ),
        )
        self.residual_weight = self.equation_weight

    def residual(self, p: Site) -> Tensor:
        """``eps laplace(u) - f``: eps is constant on either side, and no point lies between."""
        left, one = p.x < 0, torch.ones_like(p.x)  # in the points' dtype, as pi m x must be
        eps = torch.where(left, EPS_LEFT * one, EPS_RIGHT * one)
        # f = -eps (m^2 + 3^2) pi^2 u, where u = sin(m pi x) sin(3 pi y), m = 1 or 2.
        half_waves = torch.where(left, one, 2 * one)
        solution = torch.sin(half_waves * math.pi * p.x) * torch.sin(3 * math.pi * p.y)
        return eps * (p.u.laplacian + (half_waves**2 + 9) * math.pi**2 * solution)

    def reference(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The exact solution."""
        half_waves = np.where(x[:, 0] < 0, 1.0, 2.0)
        return np.sin(half_waves * math.pi * x[:, 0]) * np.sin(3 * math.pi * x[:, 1])

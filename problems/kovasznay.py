"""Kovasznay flow: a steady solution of the incompressible Navier-Stokes equations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt
from numpy.typing import NDArray
from torch import Tensor

from kanpinn import Box, Dirichlet, Mean, Problem, Site

Floats = NDArray[np.float64]

LOWER, UPPER = (-0.5, -0.5), (1.0, 1.5)


@dataclass
class Kovasznay(Problem):
    """Laminar flow behind a grid: velocity ``(u, v)`` and pressure ``p``.

    The equations on ``[-1/2, 1] x [-1/2, 3/2]``, with the velocity given on the boundary:

    - ``u u_x + v u_y + p_x = (u_xx + u_yy) / Re``,
    - ``u v_x + v v_y + p_y = (v_xx + v_yy) / Re``,
    - ``u_x + v_y = 0``.

    The solution (Kovasznay, doi:10.1017/S0305004100023999), with
    ``s = Re/2 - sqrt(Re^2/4 + 4 pi^2)``, is ``u = 1 - exp(s x) cos(2 pi y)``,
    ``v = s / (2 pi) exp(s x) sin(2 pi y)``, ``p = (1 - exp(2 s x)) / 2``. ``Re = 40`` is the usual
    benchmark.

    The equations leave the pressure free by a constant. ``"outlet"`` gives its value, which is the
    same everywhere on ``x = 1``, and builds it in; ``"mean"`` penalises its mean over the domain,
    which adds the error of the mean over the points sampled, up to 1e-5, to the pressure.
    """

    reynolds: Annotated[float, Gt(0), "Re, Reynolds number"] = 40.0
    pressure: Annotated[
        Literal["outlet", "mean"], "what fixes the pressure: its value on x = 1, or its mean"
    ] = "outlet"
    exact_boundary: Annotated[bool, "build the boundary values in, or penalise them"] = True
    boundary_weight: Annotated[float, Gt(0), "weight of penalised boundary values"] = 100.0
    pressure_weight: Annotated[float, Gt(0), "weight of a penalised pressure"] = 100.0

    summary = "steady Navier-Stokes equations, velocity and pressure of Kovasznay's flow"

    def __post_init__(self) -> None:
        self.domain = Box(LOWER, UPPER, names=("x", "y"))
        self.fields = ("u", "v", "p")
        half = self.reynolds / 2
        self.rate = -4 * math.pi**2 / (half + math.sqrt(half**2 + 4 * math.pi**2))  # s
        decay = f"exp({self.rate!r} * x)"
        velocity = {
            "u": f"1 - {decay} * cos(2*pi*y)",
            "v": f"{self.rate / (2 * math.pi)!r} * {decay} * sin(2*pi*y)",
        }
        given = [
            Dirichlet(
                field=name, value=value, exact=self.exact_boundary, weight=self.boundary_weight
            )
            for name, value in velocity.items()
        ]
        self.conditions = (*given, self._pressure_condition())
        # The viscous term, -s exp(s x) cos(2 pi y) for u, is to be of size one.
        self.residual_weight = (self.rate * math.exp(self.rate * LOWER[0])) ** -2

    def residual(self, p: Site) -> Tensor:
        """Momentum along x and y, and continuity, ``(n, 3)``."""
        u, v, pressure = p.u, p.v, p.p
        along_x = u * u.x + v * u.y + pressure.x - u.laplacian / self.reynolds
        along_y = u * v.x + v * v.y + pressure.y - v.laplacian / self.reynolds
        return torch.stack([along_x, along_y, u.x + v.y], -1)

    def reference(self, x: Floats) -> Floats:
        """The exact solution ``(u, v, p)``, (n, 3)."""
        decay, angle = np.exp(self.rate * x[:, 0]), 2 * math.pi * x[:, 1]
        u = 1 - decay * np.cos(angle)
        v = self.rate / (2 * math.pi) * decay * np.sin(angle)
        return np.stack([u, v, (1 - decay**2) / 2], -1)

    def _pressure_condition(self) -> Dirichlet | Mean:
        s, weight = self.rate, self.pressure_weight
        if self.pressure == "outlet":
            value = (1 - math.exp(2 * s * UPPER[0])) / 2
            exact = self.exact_boundary
            return Dirichlet(field="p", on="x.upper", value=value, exact=exact, weight=weight)
        ends = [math.exp(2 * s * LOWER[0]), math.exp(2 * s * UPPER[0])]
        mean = 0.5 - (ends[1] - ends[0]) / (4 * s * (UPPER[0] - LOWER[0]))
        return Mean(field="p", value=mean, weight=weight)

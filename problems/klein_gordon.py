"""A Klein-Gordon equation with a cubic term and a manufactured solution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt
from numpy.typing import NDArray
from torch import Tensor

from kanpinn import Box, Dirichlet, Initial, Problem, Site


@dataclass
class KleinGordon(Problem):
    """``u_tt - u_xx + gamma u^3 = f`` on ``[0, 1] x [0, T]``, ``u`` and ``u_t`` given at the start.

    The solution is ``u = x cos(w t) + (x t)^3``, so that
    ``f = -w^2 x cos(w t) + 6 x t (x^2 - t^2) + gamma u^3``. With the defaults, ``w = 5 pi``, it is
    the benchmark of Wang, Teng and Perdikaris (arXiv 2001.04536, section 4.3). The initial rate,
    which is zero, cannot be built in and is penalised.
    """

    coefficient: Annotated[float, "gamma, coefficient of the cubic term"] = 1.0
    frequency: Annotated[float, Gt(0), "w/pi, half-waves per unit time"] = 5.0
    final_time: Annotated[float, Gt(0), "T, end of the time interval"] = 1.0
    exact_conditions: Annotated[
        bool, "build the initial and boundary values in, or penalise them"
    ] = True
    initial_weight: Annotated[float, Gt(0), "weight of penalised initial values"] = 100.0
    rate_weight: Annotated[
        float, Gt(0), "weight of the initial rate, which is measured in units of w"
    ] = 10.0
    boundary_weight: Annotated[float, Gt(0), "weight of penalised boundary values"] = 100.0

    summary = "u_tt - u_xx + gamma u^3 = f on [0, 1] x [0, T], a wave equation"

    def __post_init__(self) -> None:
        self.domain = Box((0.0, 0.0), (1.0, self.final_time), names=("x", "t"), time="t")
        wave, exact = math.pi * self.frequency, self.exact_conditions
        self.conditions = (
            Initial(value="x", exact=exact, weight=self.initial_weight),
            Initial(value=0.0, derivative=1, weight=self.rate_weight / wave**2),
            Dirichlet(
                value=f"x * (cos({wave!r} * t) + t**3)", exact=exact, weight=self.boundary_weight
            ),
        )
        self.residual_weight = 1.0 / wave**4  # so that the source is of size one

    def residual(self, p: Site) -> Tensor:
        """``u_tt - u_xx + gamma u^3 - f``."""
        wave = math.pi * self.frequency
        swing = p.x * torch.cos(wave * p.t)
        solution = swing + (p.x * p.t) ** 3
        source = -(wave**2) * swing + 6 * p.x * p.t * (p.x**2 - p.t**2)
        rate: Tensor = p.u.tt - p.u.xx + self.coefficient * (p.u**3 - solution**3) - source
        return rate

    def reference(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The exact solution at ``(n, 2)`` points ``(x, t)``."""
        place, time = x[:, 0], x[:, 1]
        values: NDArray[np.float64] = (
            place * np.cos(math.pi * self.frequency * time) + (place * time) ** 3
        )
        return values

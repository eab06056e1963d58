"""Diffusion with logistic growth (Fisher's equation), periodic, with a spectral reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt
from numpy.typing import NDArray
from torch import Tensor

from kanpinn import Box, Initial, Periodic, Problem, Site

from ._spectral import PeriodicInitial, PeriodicSolution, resolving_modes

Floats = NDArray[np.float64]

STEP = 2.5e-3  # of the reference, in units of 5 / growth
LENGTH = 2 * math.pi


@dataclass
class ReactionDiffusion(Problem):
    """``u_t = nu u_xx + rho u (1 - u)`` on ``[0, 2 pi] x [0, T]``, periodic, ``u(x, 0) = u0(x)``.

    The benchmark of Krishnapriyan et al. (arXiv 2109.01050, section 3.3), who vary nu from 2 to 6
    at ``rho = 5``; the default is ``nu = 3``, ``rho = 5`` and their Gaussian bump as u0. The
    periodicity is built in.

    As a periodic function that u0 has a slight kink at the ends, with a jump of 3.4e-3 in the
    slope. Initial values that are built in, ``u = u0 + (t / T) N``, carry it to all times, as the
    network N is smooth; penalised ones, the default, are fitted but for the kink.

    The reference, a :class:`~._spectral.PeriodicSolution`, is computed when it is first asked for.
    For the defaults its error is below 1e-9 from ``t = 0.01`` on.

    Raises:
        ProblemError: if u0 is not finite, or not the same at both ends, or if the reference would
            take more than a GB.
    """

    diffusion: Annotated[float, Ge(1e-4), "nu; the reference resolves no thinner fronts"] = 3.0
    growth: Annotated[float, Ge(0), "rho"] = 5.0
    initial: Annotated[str, "u0, an expression in x that is the same at 0 and 2 pi"] = (
        "exp(-(x - pi)**2 / (2*(pi/4)**2))"
    )
    final_time: Annotated[float, Gt(0), "T, end of the time interval"] = 1.0
    exact_initial: Annotated[bool, "build the initial values in, or penalise them"] = False
    initial_weight: Annotated[float, Gt(0), "weight of penalised initial values"] = 100.0

    summary = "u_t = nu u_xx + rho u (1 - u), periodic on [0, 2 pi] x [0, T]"

    def __post_init__(self) -> None:
        self.domain = Box((0.0, 0.0), (LENGTH, self.final_time), names=("x", "t"), time="t")
        self.conditions = (
            Periodic(on="x.periodic", exact=True),
            Initial(value=self.initial, exact=self.exact_initial, weight=self.initial_weight),
        )
        # So that diffusion and growth are of size one.
        self.residual_weight = 1.0 / max(self.diffusion, self.growth / 4, 1.0) ** 2
        self.solution = PeriodicSolution(
            PeriodicInitial(self.initial, 0.0, LENGTH),
            0.0,
            LENGTH,
            symbol=self._symbol,
            nonlinear=self._growth,
            final_time=self.final_time,
            modes=resolving_modes(LENGTH, self.diffusion, self.growth),
            steps=max(100, round(self.final_time * self.growth / (5 * STEP))),
        )

    def residual(self, p: Site) -> Tensor:
        """``u_t - nu u_xx - rho u (1 - u)``."""
        rate: Tensor = p.u.t - self.diffusion * p.u.xx - self.growth * p.u * (1 - p.u)
        return rate

    def reference(self, x: Floats) -> Floats:
        """The spectral solution at ``(n, 2)`` points ``(x, t)``."""
        return self.solution.at(x)

    def _symbol(self, k: Floats) -> Floats:
        return -self.diffusion * k**2

    def _growth(self, u: Floats) -> Floats:
        return self.growth * u * (1 - u)

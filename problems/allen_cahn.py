"""The Allen-Cahn equation, periodic, with a Fourier spectral reference solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt
from numpy.typing import NDArray
from torch import Tensor

from kanpinn import Box, Initial, Periodic, Problem, Site

from ._spectral import PeriodicInitial, PeriodicSolution, resolving_modes

Floats = NDArray[np.float64]

STEP = 2e-3  # of the reference, in units of 5 / reaction


@dataclass
class AllenCahn(Problem):
    """``u_t = d u_xx + r (u - u^3)`` on ``[-1, 1] x [0, T]``, periodic, ``u(x, 0) = u0(x)``.

    With ``d = 1e-4``, ``r = 5`` and ``u0 = x^2 cos(pi x)``, the defaults, it is the standard
    benchmark (Raissi, Perdikaris and Karniadakis, doi:10.1016/j.jcp.2018.10.045). Fronts of width
    ``sqrt(d / r)`` form between the phases -1 and 1. The periodicity is built in.

    That u0 has a kink as a periodic function, at ``x = -1 = 1``, which diffuses at once. Initial
    values that are built in, ``u = u0 + (t / T) N``, carry it to all times, as the network N is
    smooth; penalised ones, the default, are fitted but for the kink.

    The reference, a :class:`~._spectral.PeriodicSolution`, is computed when it is first asked for.
    For the defaults its error is below 1e-9 from ``t = 0.01`` on.

    Raises:
        ProblemError: if u0 is not finite, or not the same at both ends, or if the reference would
            take more than a GB.
    """

    diffusion: Annotated[float, Ge(1e-5), "d; the reference resolves no thinner fronts"] = 1e-4
    reaction: Annotated[float, Gt(0), "r"] = 5.0
    initial: Annotated[str, "u0, an expression in x that is the same at -1 and 1"] = (
        "x**2*cos(pi*x)"
    )
    final_time: Annotated[float, Gt(0), "T, end of the time interval"] = 1.0
    exact_initial: Annotated[bool, "build the initial values in, or penalise them"] = False
    initial_weight: Annotated[float, Gt(0), "weight of penalised initial values"] = 100.0

    summary = "u_t = d u_xx + r (u - u^3), periodic on [-1, 1] x [0, T]"

    def __post_init__(self) -> None:
        self.domain = Box((-1.0, 0.0), (1.0, self.final_time), names=("x", "t"), time="t")
        self.conditions = (
            Periodic(on="x.periodic", exact=True),
            Initial(value=self.initial, exact=self.exact_initial, weight=self.initial_weight),
        )
        self.residual_weight = (5.0 / self.reaction) ** 2  # so that r (u - u^3) is of size one
        self.solution = PeriodicSolution(
            PeriodicInitial(self.initial, -1.0, 1.0),
            -1.0,
            1.0,
            symbol=self._symbol,
            nonlinear=self._growth,
            degree=3,
            final_time=self.final_time,
            modes=resolving_modes(2.0, self.diffusion, self.reaction),
            steps=max(100, round(self.final_time * self.reaction / (5 * STEP))),
        )

    def residual(self, p: Site) -> Tensor:
        """``u_t - d u_xx - r (u - u^3)``."""
        growth = self.reaction * (p.u - p.u**3)
        rate: Tensor = p.u.t - self.diffusion * p.u.xx - growth
        return rate

    def reference(self, x: Floats) -> Floats:
        """The spectral solution at ``(n, 2)`` points ``(x, t)``."""
        return self.solution.at(x)

    def _symbol(self, k: Floats) -> Floats:
        return -self.diffusion * k**2

    def _growth(self, u: Floats) -> Floats:
        return self.reaction * (u - u**3)

"""The Kuramoto-Sivashinsky equation, periodic, with a Fourier spectral reference solution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Gt
from numpy.typing import NDArray
from torch import Tensor

from kanpinn import Box, Initial, Periodic, Problem, ProblemError, Site

from ._spectral import PeriodicInitial, PeriodicSolution

Floats = NDArray[np.float64]

STEP = 1.25e-3  # of the reference, in units of the inverse of the fastest rate
MODES = 10  # of the reference, in units of the highest unstable mode; more decay very fast
LEAST_MODES = 48


@dataclass
class KuramotoSivashinsky(Problem):
    """``u_t + alpha u u_x + beta u_xx + gamma u_xxxx = 0``, ``u(x, 0) = u0(x)``, ``x`` periodic.

    The domain is ``[0, L] x [0, T]``. Waves with ``k^2 < beta / gamma`` grow, by
    ``beta k^2 - gamma k^4``, at most ``beta^2 / (4 gamma)``; shorter ones are damped, and the
    nonlinear term feeds them. The defaults are the regular case of Wang, Sankaran and Perdikaris
    (arXiv 2203.07404), up to a quarter of their final time: a front forms. Their chaotic case is
    ``alpha = 100/16``, ``beta = 100/16^2``, ``gamma = 100/16^4``, ``L = 2 pi``,
    ``u0 = cos(x) (1 + sin(x))``. Errors grow with the unstable waves, so that on a long time
    interval, from ``T = 0.5`` on for the defaults, training as one piece ends in wrong solutions of
    small residual. The periodicity is built in.

    The reference, a :class:`~._spectral.PeriodicSolution`, is computed when it is first asked for.
    For the defaults its error is below 1e-9.

    Raises:
        ProblemError: if u0 is not finite, or not the same at both ends, or a coefficient is not
            positive.
    """

    alpha: Annotated[float, Gt(0), "coefficient of u u_x"] = 5.0
    beta: Annotated[float, Gt(0), "coefficient of u_xx, which makes long waves grow"] = 0.5
    gamma: Annotated[float, Gt(0), "coefficient of u_xxxx, which damps short waves"] = 0.005
    initial: Annotated[str, "u0, an expression in x that is the same at 0 and L"] = "-sin(pi*x)"
    length: Annotated[float, Gt(0), "L, the period"] = 2.0
    final_time: Annotated[float, Gt(0), "T, end of the time interval"] = 0.25
    exact_initial: Annotated[bool, "build the initial values in, or penalise them"] = True
    initial_weight: Annotated[float, Gt(0), "weight of penalised initial values"] = 100.0

    summary = "u_t + alpha u u_x + beta u_xx + gamma u_xxxx = 0, periodic on [0, L] x [0, T]"

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            if not 0 < getattr(self, name) < math.inf:
                raise ProblemError(f"{name}: found {getattr(self, name)}, allowed: above 0")
        self.domain = Box((0.0, 0.0), (self.length, self.final_time), names=("x", "t"), time="t")
        self.conditions = (
            Periodic(on="x.periodic", exact=True),
            Initial(value=self.initial, exact=self.exact_initial, weight=self.initial_weight),
        )
        rate = self.beta**2 / (4 * self.gamma)  # of the fastest wave
        self.residual_weight = rate**-2  # so that the terms are of size one, like u
        highest = math.sqrt(self.beta / self.gamma) * self.length / (2 * math.pi)
        self.solution = PeriodicSolution(
            PeriodicInitial(self.initial, 0.0, self.length),
            0.0,
            self.length,
            symbol=self._symbol,
            nonlinear=self._flux_density,
            flux=_minus_derivative,
            final_time=self.final_time,
            modes=max(LEAST_MODES, math.ceil(MODES * highest)),
            steps=max(100, math.ceil(self.final_time * rate / STEP)),
        )

    def residual(self, p: Site) -> Tensor:
        """``u_t + alpha u u_x + beta u_xx + gamma u_xxxx``."""
        rate: Tensor = p.u.t + self.alpha * p.u * p.u.x + self.beta * p.u.xx + self.gamma * p.u.xxxx
        return rate

    def reference(self, x: Floats) -> Floats:
        """The spectral solution at ``(n, 2)`` points ``(x, t)``."""
        return self.solution.at(x)

    def _symbol(self, k: Floats) -> Floats:
        return self.beta * k**2 - self.gamma * k**4

    def _flux_density(self, u: Floats) -> Floats:
        return self.alpha / 2 * u**2


def _minus_derivative(k: Floats) -> NDArray[np.complex128]:
    return np.asarray(-1j * k, dtype=np.complex128)

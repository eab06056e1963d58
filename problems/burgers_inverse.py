"""An inverse problem: the viscosity of Burgers' equation from noisy values of its solution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt
from numpy.typing import NDArray
from torch import Tensor

from kanpinn import Box, Dirichlet, FixedPoints, Initial, Problem, ProblemError, ResidualBlock, Site

from ._measurements import simulate_measurements
from .burgers import ColeHopf

Floats = NDArray[np.float64]


@dataclass
class BurgersInverse(Problem):
    """``u_t + u u_x = nu u_xx`` on ``[-1, 1] x [0, T]`` with nu unknown, ``u(-1) = u(1) = 0``.

    Trained are the network for u and the scalar ``log_nu``, whose exponential is nu, so that nu
    stays positive. The data are values of the Cole-Hopf solution for the true nu
    (:class:`~.burgers.ColeHopf`) at random places and times, with Gaussian noise. What is
    minimised is ``mean(r^2) + data_weight mean((u - data)^2)``, r the equation's residual. The
    setting is that of Raissi, Perdikaris and Karniadakis (doi:10.1016/j.jcp.2018.10.045), who leave
    initial and boundary values to the data too (``known_conditions: false``).

    Raises:
        ProblemError: if there are no data, or nu or its start are not positive.
    """

    nu: Annotated[float, Gt(0), "the true viscosity, which makes the data"] = 0.05
    start: Annotated[float, Gt(0), "value of nu that training starts from"] = 0.2
    n_data: Annotated[int, Ge(0), "number of measurements"] = 200
    noise: Annotated[
        float, Ge(0), "standard deviation of the noise, in units of the data's own"
    ] = 0.01
    seed: Annotated[int, Ge(0), "of places and noise of the measurements"] = 0
    initial: Annotated[str, "u0, a smooth expression in x that is zero at -1 and 1"] = "-sin(pi*x)"
    final_time: Annotated[float, Gt(0), "T, end of the time interval"] = 1.0
    known_conditions: Annotated[
        bool, "initial and boundary values are known and built in, or not known at all"
    ] = True
    data_weight: Annotated[float, Gt(0), "weight of the measurements"] = 1.0

    summary = "the viscosity of Burgers' equation from noisy values of u"

    def __post_init__(self) -> None:
        for name in ("nu", "start"):
            if not 0 < getattr(self, name) < math.inf:
                raise ProblemError(f"{name}: found {getattr(self, name)}, allowed: above 0")
        self.domain = Box((-1.0, 0.0), (1.0, self.final_time), names=("x", "t"), time="t")
        self.scalars = {"log_nu": math.log(self.start)}
        if self.known_conditions:
            self.conditions = (
                Initial(value=self.initial, exact=True),
                Dirichlet(value=0.0, exact=True),
            )
        self.solution = ColeHopf(self.initial, self.nu)
        self.measurements = simulate_measurements(
            self._solution_at, self.domain, self.n_data, self.noise, self.seed
        )

    def residual(self, p: Site) -> Tensor:
        """``u_t + u u_x - exp(log_nu) u_xx``."""
        rate: Tensor = p.u.t + p.u * p.u.x - torch.exp(p.scalars.log_nu) * p.u.xx
        return rate

    def misfit(self, p: Site) -> Tensor:
        """``u - data``."""
        difference: Tensor = p.u - p.data["u"]
        return difference

    def blocks(self) -> tuple[ResidualBlock, ...]:
        """The equation and the measurements."""
        data = ResidualBlock(
            "data", FixedPoints(self.measurements), self.misfit, weight=self.data_weight
        )
        return (*super().blocks(), data)

    def reference(self, x: Floats) -> Floats:
        """The Cole-Hopf solution for the true nu at ``(n, 2)`` points ``(x, t)``."""
        return self._solution_at(x)

    def metrics(self, predict: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """``nu`` and its relative error ``nu_error``, where ``predict.scalars`` has ``log_nu``."""
        return self.parameter_metrics(getattr(predict, "scalars", {}))

    def parameter_metrics(self, scalars: Mapping[str, float]) -> dict[str, float]:
        """``nu`` and its relative error ``nu_error`` for given scalars, none without ``log_nu``."""
        if "log_nu" not in scalars:
            return {}
        nu = math.exp(float(scalars["log_nu"]))
        return {"nu": nu, "nu_error": abs(nu / self.nu - 1)}

    def _solution_at(self, x: Floats) -> Floats:
        return self.solution(x[:, 0], x[:, 1])

"""An inverse problem: the coefficient of a diffusion equation from noisy values of its solution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from numpy.typing import NDArray
from torch import Tensor

from kanpinn import (
    Box,
    Dirichlet,
    FixedPoints,
    Problem,
    ProblemError,
    ResidualBlock,
    Scaling,
    Site,
)

from ._measurements import simulate_measurements

Floats = NDArray[np.float64]


@dataclass
class DiffusionInverse(Problem):
    """``-div(a grad u) = f`` on ``[-1, 1]^d`` with a unknown, ``u = 0`` on the boundary.

    Two networks give ``u`` and ``a``. The manufactured solution is ``u = prod_i cos(pi x_i / 2)``,
    ``a = 1 + c prod_i sin(pi x_i)``, which fix f. The data are values of u at random places, with
    Gaussian noise. What is minimised is ``w mean(r^2) + data_weight mean((u - data)^2) +
    smoothing mean(|grad a|^2)``, r the equation's residual and w one over the square of the size of
    f. The smoothing (Tikhonov's) keeps a from fitting the noise, and so do coarse knots; without
    noise it is better left out.

    Without noise the data determine a: along the lines of ``grad u`` the equation is an ordinary
    differential equation for a, with its initial value where ``grad u = 0``, at the centre
    (Richter, SIAM J. Appl. Math. 41, 1981). The noise counts by its second derivatives, so a is
    found far less accurately than u, worst near the corners, where ``grad u`` vanishes too.

    Raises:
        ProblemError: if there are no data, or a is not positive.
    """

    dimension: Annotated[Literal[1, 2], "number of coordinates d"] = 2
    contrast: Annotated[float, Ge(0), Lt(1), "c, relative variation of a"] = 0.5
    n_data: Annotated[int, Ge(0), "number of measurements"] = 400
    noise: Annotated[
        float, Ge(0), "standard deviation of the noise, in units of the data's own"
    ] = 0.01
    seed: Annotated[int, Ge(0), "of places and noise of the measurements"] = 0
    data_weight: Annotated[float, Gt(0), "weight of the measurements"] = 1.0
    smoothing: Annotated[
        float, Ge(0), "weight of the mean square of grad a, against fitting the noise; 0 for none"
    ] = 1e-5

    summary = "the coefficient a of -div(a grad u) = f from noisy values of u"

    def __post_init__(self) -> None:
        if not 0 <= self.contrast < 1:
            raise ProblemError(f"contrast: found {self.contrast}, allowed: from 0 to below 1")
        d = self.dimension
        self.domain = Box((-1.0,) * d, (1.0,) * d, names=("x", "y")[:d])
        self.fields = ("u", "a")
        self.networks = {"u": ("u",), "a": ("a",)}
        self.scales = {"a": Scaling(shift=1.0, scale=0.5)}
        self.conditions = (Dirichlet(value=0.0, exact=True),)
        self.residual_weight = (4 / (d * math.pi**2)) ** 2  # so that f is of size one
        self.measurements = simulate_measurements(
            lambda x: self.reference(x)[:, 0], self.domain, self.n_data, self.noise, self.seed
        )

    def residual(self, p: Site) -> Tensor:
        """``a laplace(u) + grad a . grad u + f``."""
        slopes = [p.a.d(name) * p.u.d(name) for name in self.domain.names]
        balance: Tensor = p.a * p.u.laplacian + sum(slopes) + self._source(p.points.x)
        return balance

    def misfit(self, p: Site) -> Tensor:
        """``u - data``."""
        difference: Tensor = p.u - p.data["u"]
        return difference

    def roughness(self, p: Site) -> Tensor:
        """``grad a``, ``(n, d)``."""
        return torch.stack([p.a.d(name) for name in self.domain.names], -1)

    def blocks(self) -> tuple[ResidualBlock, ...]:
        """The equation, the measurements, and the smoothing of a if there is any."""
        data = ResidualBlock(
            "data", FixedPoints(self.measurements), self.misfit, weight=self.data_weight
        )
        inside = self.domain.interior()
        smooth = ResidualBlock("smoothing", inside, self.roughness, weight=self.smoothing)
        return (*super().blocks(), data, *([smooth] if self.smoothing else []))

    def reference(self, x: Floats) -> Floats:
        """The exact u and a, (n, 2)."""
        u = np.cos(math.pi / 2 * x).prod(-1)
        a = 1 + self.contrast * np.sin(math.pi * x).prod(-1)
        return np.stack([u, a], -1)

    def metrics(self, predict: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Relative L2 errors ``rel_l2_u`` and ``rel_l2_a`` on the evaluation points."""
        x = self.evaluation_points()
        exact = self.reference(x.numpy())
        error = predict(x).detach().double().cpu().numpy() - exact
        ratio = np.linalg.norm(error, axis=0) / np.linalg.norm(exact, axis=0)
        return {f"rel_l2_{name}": float(ratio[k]) for k, name in enumerate(self.fields)}

    def _source(self, x: Tensor) -> Tensor:
        """The source f at points ``(n, d)``, (n,)."""
        half, whole = math.pi / 2 * x, math.pi * x
        u, wave = torch.cos(half).prod(-1), torch.sin(whole).prod(-1)
        result = self.dimension * (math.pi / 2) ** 2 * (1 + self.contrast * wave) * u
        for axis in range(self.dimension):
            others = [k for k in range(self.dimension) if k != axis]
            rest = (torch.cos(half[:, others]) * torch.sin(whole[:, others])).prod(-1)
            own = torch.cos(whole[:, axis]) * torch.sin(half[:, axis])
            result = result + self.contrast * math.pi**2 / 2 * own * rest
        return result

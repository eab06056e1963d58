"""Regression of a function given in the config, from random points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor

from kanpinn import AffineScaling, Box, Expression, ProblemError, Scaling, stream

from .data_fit import DataFit, Rows

X = "(cos(0.175)*x - sin(0.175)*y)"
Y = "(sin(0.175)*x + cos(0.175)*y)"
EQUATION_26 = f"cos(4*pi*{X}) + sin(pi*{Y}) + sin(2*pi*{Y}) + abs(sin(3*pi*{Y}**2))"
"""Equation 26 of arXiv 2603.04827: its coordinates are rotated by 0.175 about the origin."""

GRID_VARIABLES = 4  # with more variables errors are measured at random points, not on a grid
RANDOM_EVALUATION = 40_000


@dataclass
class Regression(DataFit):
    """Fit of ``u = f(x)`` from independent uniform points in a box.

    ``f`` is a safe expression. With two variables it can be rotated by an angle a about the origin:
    ``u(x, y) = f(c x - s y, s x + c y)``, c and s the cosine and sine of a. The defaults are the
    regression of arXiv 2603.04827, table 2, with validation and test points beside its 20,000.

    Training and validation outputs carry Gaussian noise, if any is asked for; test outputs and the
    reference do not. Outputs are scaled to [0, 1] by the training outputs' least and greatest
    values.

    Raises:
        ExpressionError: if the expression cannot be read.
        ProblemError: if it is not finite somewhere in the box or constant, or if a rotation is
            asked for with another number of variables than two.
    """

    expression: Annotated[str, "f, an expression in the variables"] = EQUATION_26
    variables: Annotated[tuple[str, ...], "names of the variables"] = ("x", "y")
    lower: Annotated[tuple[float, ...], "lower end of every variable"] = (1e-4, 1e-4)
    upper: Annotated[tuple[float, ...], "upper end of every variable"] = (0.9999, 0.9999)
    rotation: Annotated[float, "angle a in radians, for two variables"] = 0.0
    points: Annotated[int, Ge(2), "training points"] = 20_000
    validation_points: Annotated[int, Ge(1), "points that choose the best iterate"] = 5_000
    test_points: Annotated[int, Ge(1), "points for the metrics, never seen before"] = 20_000
    noise: Annotated[
        float, Ge(0), "standard deviation of the noise, as a share of the outputs' range"
    ] = 0.0
    scale_outputs: Annotated[bool, "train on outputs scaled to [0, 1], or as they are"] = True
    seed: Annotated[int, Ge(0), "of the points and the noise"] = 0

    summary = "u = f(x) from random points, f an expression"

    def __post_init__(self) -> None:
        self.domain = Box(self.lower, self.upper, names=self.variables)
        if self.rotation and len(self.variables) != 2:
            raise ProblemError(
                f"rotation: found {self.rotation:g} with {len(self.variables)} variables, "
                "allowed: a rotation of two variables, or 0"
            )
        self.function = Expression.parse(self.expression, self.variables)
        exact = self._rows("training", self.points)
        span = float(np.ptp(exact.outputs))
        if span == 0.0:
            raise ProblemError(
                f"expression {self.expression!r}: is constant, allowed: a function that varies"
            )
        self.training = self._noisy(exact, span, "training")
        self.validation = self._noisy(
            self._rows("validation", self.validation_points), span, "validation"
        )
        self.test = self._rows("test", self.test_points)
        if self.scale_outputs:
            fit = AffineScaling.fit_minmax(self.training.outputs, 0.0, 1.0)
            self.scales = {"u": Scaling(shift=float(fit.shift[0]), scale=float(fit.scale[0]))}

    def reference(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The function itself at points ``(n, d)``."""
        columns = list(x.T)
        if self.rotation:
            c, s = math.cos(self.rotation), math.sin(self.rotation)
            columns = [c * columns[0] - s * columns[1], s * columns[0] + c * columns[1]]
        values = self.function(**dict(zip(self.variables, columns, strict=True)))
        return np.broadcast_to(np.asarray(values, dtype=np.float64), len(x)).copy()

    def evaluation_points(self) -> Tensor:
        """A grid over the box, or random points where a grid would be too coarse."""
        if len(self.variables) <= GRID_VARIABLES:
            return super().evaluation_points()
        return torch.tensor(self._rows("evaluation", RANDOM_EVALUATION).inputs)

    def _rows(self, purpose: str, count: int) -> Rows:
        """Uniform points of a stream of their own, with exact outputs."""
        generator = np.random.Generator(np.random.PCG64(stream(self.seed, "regression", purpose)))
        lower, upper = np.array(self.domain.lower), np.array(self.domain.upper)
        x = lower + (upper - lower) * generator.random((count, len(lower)))
        values = self.reference(x)
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            pairs = zip(self.variables, x[wrong[0]], strict=True)
            place = ", ".join(f"{name} = {value:g}" for name, value in pairs)
            raise ProblemError(
                f"expression {self.expression!r}: is {values[wrong[0]]} at {place}, "
                "allowed: finite values everywhere in the domain"
            )
        return Rows(x, values[:, None])

    def _noisy(self, rows: Rows, span: float, purpose: str) -> Rows:
        if not self.noise:
            return rows
        seed = stream(self.seed, "regression", purpose, "noise")
        generator = np.random.Generator(np.random.PCG64(seed))
        noise = self.noise * span * generator.standard_normal(rows.outputs.shape)
        return Rows(rows.inputs, rows.outputs + noise)

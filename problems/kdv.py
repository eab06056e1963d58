"""The Korteweg-de Vries equation: one soliton, or two that overtake one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt
from numpy.typing import NDArray
from torch import Tensor

from kanpinn import Box, Dirichlet, Expression, Initial, Neumann, Problem, ProblemError, Site

Floats = NDArray[np.float64]


@dataclass
class KdV(Problem):
    """``u_t + 6 u u_x + u_xxx = 0`` on ``[-L, L] x [0, T]``; the solution gives all data.

    Two solitons of heights ``k^2 / 2`` and speeds ``k^2``, for ``k = k1`` and ``k = k2``, meet at
    ``x = 0`` and ``t = T / 2``, the taller one from behind (Hirota,
    doi:10.1103/PhysRevLett.27.1192). With ``h_i = k_i (x - k_i^2 (t - T/2))`` and
    ``q = (k1 - k2) / (k1 + k2)``,

        ``u = (q (k1^2 cosh h2 + k2^2 cosh h1) + (k1 - k2)^2)
        / (cosh((h1 - h2)/2) + q cosh((h1 + h2)/2))^2``.

    For ``k2 = 0`` it is a single soliton, ``k1^2 / 2 sech(h1 / 2)^2``. The initial values, and u at
    both ends, are built in or penalised; the third condition that the third derivative asks for,
    ``u_x`` at the right end, is penalised.

    Raises:
        ProblemError: if not ``0 <= k2 < k1``, or if the box is so large that cosh overflows.
    """

    k1: Annotated[float, Gt(0), "k of the fast soliton, twice the inverse of its width"] = 2.0
    k2: Annotated[float, Ge(0), "k of the slow soliton, below k1; 0 for none"] = 1.0
    half_length: Annotated[float, Gt(0), "L, half the length of the space interval"] = 6.0
    final_time: Annotated[float, Gt(0), "T, end of the time interval"] = 1.5
    exact_conditions: Annotated[
        bool, "build the initial and boundary values in, or penalise them"
    ] = True
    initial_weight: Annotated[float, Gt(0), "weight of penalised initial values"] = 100.0
    boundary_weight: Annotated[float, Gt(0), "weight of penalised boundary values"] = 100.0
    slope_weight: Annotated[float, Gt(0), "weight of the slope at the right end"] = 10.0

    summary = "u_t + 6 u u_x + u_xxx = 0, two solitons on [-L, L] x [0, T]"

    def __post_init__(self) -> None:
        if not 0 <= self.k2 < self.k1:
            raise ProblemError(f"k2: found {self.k2}, allowed: from 0 to below k1 = {self.k1}")
        if self.k1 * (self.half_length + self.k1**2 * self.final_time / 2) > 300:
            raise ProblemError(
                f"half_length: found {self.half_length}, allowed: k1 (L + k1^2 T / 2) up to 300"
            )
        end, exact = self.half_length, self.exact_conditions
        self.domain = Box((-end, 0.0), (end, self.final_time), names=("x", "t"), time="t")
        self.formula, slope = self._formulas()
        self.conditions = (
            Initial(value=self.formula, exact=exact, weight=self.initial_weight),
            Dirichlet(value=self.formula, exact=exact, weight=self.boundary_weight),
            Neumann(on="x.upper", value=slope, weight=self.slope_weight),
        )
        self.residual_weight = (4 / self.k1**5) ** 2  # so that u_xxx is of size one

    def residual(self, p: Site) -> Tensor:
        """``u_t + 6 u u_x + u_xxx``."""
        rate: Tensor = p.u.t + 6 * p.u * p.u.x + p.u.xxx
        return rate

    def reference(self, x: Floats) -> Floats:
        """The solitons at ``(n, 2)`` points ``(x, t)``."""
        solution = Expression.parse(self.formula, ("x", "t"))
        return np.asarray(solution(x=x[:, 0], t=x[:, 1]), dtype=np.float64)

    def _formulas(self) -> tuple[str, str]:
        """``u`` and ``u_x`` as expressions in x and t."""
        a, b = self.k1, self.k2
        q, middle = (a - b) / (a + b), self.final_time / 2
        h1, h2 = (f"{k!r} * (x - {k**2!r} * (t - {middle!r}))" for k in (a, b))
        minus, plus = f"({h1} - {h2}) / 2", f"({h1} + {h2}) / 2"
        top = f"({q * a**2!r} * cosh({h2}) + {q * b**2!r} * cosh({h1}) + {(a - b) ** 2!r})"
        root = f"(cosh({minus}) + {q!r} * cosh({plus}))"
        top_x = f"({q * a**2 * b!r} * sinh({h2}) + {q * b**2 * a!r} * sinh({h1}))"
        root_x = f"({(a - b) / 2!r} * sinh({minus}) + {q * (a + b) / 2!r} * sinh({plus}))"
        u = f"{top} / {root}**2"
        return u, f"{top_x} / {root}**2 - 2 * {top} * {root_x} / {root}**3"

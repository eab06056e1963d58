"""Burgers' equation, any viscosity and smooth initial condition, with its Cole-Hopf solution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, final

import numpy as np
from annotated_types import Gt
from numpy.polynomial.chebyshev import Chebyshev
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.special import roots_legendre
from torch import Tensor

from kanpinn import Box, Dirichlet, Expression, Initial, Problem, ProblemError, Site

Floats = NDArray[np.float64]

MARGIN = 6.5  # exp(-MARGIN^2) is far below round-off
EARLIEST = 1e-200  # earlier times, 0 among them, are taken for this one
CHUNK = 2**14  # points times nodes evaluated at once: temporary arrays that stay in a core's cache
MAX_TERMS = 1024  # of the Chebyshev series of the initial condition


@dataclass
class Burgers(Problem):
    """``u_t + u u_x = nu u_xx`` on ``[-1, 1] x [0, T]``, ``u(x, 0) = u0(x)``, ``u(-1) = u(1) = 0``.

    With ``u0 = -sin(pi x)`` and ``nu = 0.01/pi``, the defaults, it is the standard benchmark
    (Basdevant et al., doi:10.1016/0045-7930(86)90036-8); arXiv 2603.04827 takes ``nu = 0.01``.
    The reference is :class:`ColeHopf`.

    Raises:
        ProblemError: if ``u0`` does not vanish at both ends, or is not smooth.
    """

    nu: Annotated[float, Gt(0), "viscosity"] = 0.01 / math.pi
    initial: Annotated[str, "u0, a smooth expression in x that is zero at -1 and 1"] = "-sin(pi*x)"
    final_time: Annotated[float, Gt(0), "T, end of the time interval"] = 1.0
    exact_conditions: Annotated[
        bool, "build the initial and boundary values in, or penalise them"
    ] = True
    initial_weight: Annotated[float, Gt(0), "weight of a penalised initial condition"] = 100.0
    boundary_weight: Annotated[float, Gt(0), "weight of penalised boundary values"] = 100.0

    summary = "u_t + u u_x = nu u_xx on [-1, 1] x [0, T], zero at both ends"

    def __post_init__(self) -> None:
        self.domain = Box((-1.0, 0.0), (1.0, self.final_time), names=("x", "t"), time="t")
        exact = self.exact_conditions
        self.conditions = (
            Initial(value=self.initial, exact=exact, weight=self.initial_weight),
            Dirichlet(value=0.0, exact=exact, weight=self.boundary_weight),
        )
        self.solution = ColeHopf(self.initial, self.nu)
        self._known: tuple[Floats, Floats] | None = None

    def residual(self, p: Site) -> Tensor:
        """``u_t + u u_x - nu u_xx``."""
        rate: Tensor = p.u.t + p.u * p.u.x - self.nu * p.u.xx
        return rate

    def reference(self, x: Floats) -> Floats:
        """The Cole-Hopf solution at ``(n, 2)`` points ``(x, t)``."""
        if self._known is None or not np.array_equal(self._known[0], x):
            # Every level asks for the same points, and 40,000 of them take seconds.
            self._known = x.copy(), self.solution(x[:, 0], x[:, 1])
        return self._known[1].copy()


@final
class ColeHopf:
    """The solution of Burgers' equation on ``[-1, 1]`` with zero ends, to round-off.

    ``u = int u0(y) phi(y) dy / int phi(y) dy`` over the real line, with
    ``phi(y) = exp(-(x - y)^2 / (4 nu t) - U(y) / (2 nu))`` and U an antiderivative of u0 (Hopf,
    doi:10.1002/cpa.3160030302; Cole, doi:10.1090/qam/42889). Past the ends u0 is continued as odd
    and U as even about -1 and 1, which keeps the ends at zero. The exponent is shifted by its
    largest value at every point, so that nothing over- or underflows.

    The quadrature is Gauss and Legendre's between the ends and their mirror images, where the
    continuation may have kinks, with as many nodes as nu and u0 need. Gauss and Hermite's, the
    usual choice, agrees with it to 3e-14 for ``-sin(pi x)`` and nu from 0.001 to 0.1, but its nodes
    do not reach far enough for smaller nu, converge slowly for larger ones, and give only four to
    six digits where u0'' is not zero at the ends.

    Args:
        initial: u0, an expression in x.
        nu: viscosity.

    Raises:
        ProblemError: if u0 does not vanish at both ends, or its Chebyshev series does not converge.
    """

    def __init__(self, initial: str, nu: float) -> None:
        self.nu, self._expression = nu, Expression.parse(initial, ("x",))
        series = _chebyshev_series(self._initial, initial)
        self._antiderivative = series.integ()
        fine = np.linspace(-1.0, 1.0, 4 * MAX_TERMS + 1)
        self._largest = float(np.abs(series(fine)).max())
        self._steepest = float(np.abs(series.deriv()(fine)).max())

    def __call__(self, x: Floats, t: Floats, refine: float = 1.0) -> Floats:
        """Values at places ``x`` (n,) in [-1, 1] and times ``t`` (n,), ``t >= 0``, (n,).

        ``refine`` multiplies the number of nodes, to show that there are enough.
        """
        t = np.maximum(t, EARLIEST)
        reach = self._reach(t)
        node, weight = roots_legendre(math.ceil(refine * self._nodes(t, reach)))
        last = math.ceil(float(reach.max(initial=0.0)) / 2)
        piece = np.arange(-last, last + 1.0)  # the intervals [2k - 1, 2k + 1]
        result = np.empty_like(x)
        rows = max(1, CHUNK // (len(piece) * len(node)))
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            result[part] = self._ratio(x[part], t[part], reach[part], piece, node, weight)
        return result

    def _ratio(
        self, x: Floats, t: Floats, reach: Floats, piece: Floats, node: Floats, weight: Floats
    ) -> Floats:
        """The ratio of the integrals: points (n,), pieces (p,) and nodes (m,) as (n, p, m)."""
        x, t, reach = x[:, None], t[:, None, None], reach[:, None]
        lower = np.clip(2 * piece - 1 - x, -reach, reach)  # of y - x, cut off beyond the reach
        half = ((np.clip(2 * piece + 1 - x, -reach, reach) - lower) / 2)[..., None]
        offset = lower[..., None] + half * (node + 1)
        mirror = np.where(piece % 2 == 0, 1.0, -1.0)[:, None]
        y = np.clip(mirror * (x[..., None] + offset - 2 * piece[:, None]), -1.0, 1.0)
        exponent = offset**2 / (-4 * self.nu * t) - self._antiderivative(y) / (2 * self.nu)
        exponent[np.broadcast_to(half <= 0, exponent.shape)] = -math.inf  # intervals out of reach
        exponent -= exponent.max(axis=(1, 2), keepdims=True)
        phi = np.exp(exponent) * (half * weight)
        ratio: Floats = (mirror * self._initial(y) * phi).sum((1, 2)) / phi.sum((1, 2))
        return ratio

    def _initial(self, y: Floats) -> Floats:
        return np.broadcast_to(self._expression(x=y), y.shape)

    def _reach(self, t: Floats) -> Floats:
        """Largest ``|x - y|`` that counts, (n,).

        The exponent is largest within ``max|u0| t`` (characteristics are no faster), and falls by
        more than ``MARGIN^2`` in another ``2 MARGIN sqrt(nu t)``.
        """
        return self._largest * t + 2 * MARGIN * np.sqrt(self.nu * t)

    def _nodes(self, t: Floats, reach: Floats) -> float:
        """Nodes per interval that integrate phi at all the points to round-off.

        The second derivative of the exponent is at least ``-(1 + t max|u0'|) / (2 nu t)``, so phi
        has peaks no narrower than a Gaussian of standard deviation ``sigma``. An m-point rule
        integrates that on an interval of half-length ``a sigma`` to about ``exp(-2 m^2 / a^2)``.
        """
        sigma = np.sqrt(2 * self.nu * t / (1 + t * self._steepest))
        a = float((np.minimum(reach, 1.0) / sigma).max(initial=0.0))
        return max(5 * a, self._antiderivative.degree()) + 16


def _chebyshev_series(function: Callable[[Floats], Floats], name: str) -> Chebyshev:
    """The Chebyshev series of a function on [-1, 1], to round-off."""
    count = 16
    while count <= MAX_TERMS:
        size = np.abs(_chebyshev_coefficients(function, count))
        largest = float(size.max())
        if not math.isfinite(largest):
            break
        if size[-4:].max() <= 1e-12 * largest:
            ends = function(np.array([-1.0, 1.0]))
            if np.abs(ends).max() > 1e-12 * max(1.0, largest):
                raise ProblemError(
                    f"initial: {name!r} is {ends[0]:g} at x = -1 and {ends[1]:g} at x = 1, "
                    "allowed: zero at both"
                )
            return Chebyshev(_chebyshev_coefficients(function, 2 * count)).trim(3e-16 * largest)
        count *= 2
    raise ProblemError(f"initial: {name!r} is not smooth, allowed: a smooth function on [-1, 1]")


def _chebyshev_coefficients(function: Callable[[Floats], Floats], count: int) -> Floats:
    """Coefficients (count,) of the interpolant at the zeros of the Chebyshev polynomial."""
    angles = (np.arange(count) + 0.5) * (math.pi / count)
    coefficients: Floats = dct(function(np.cos(angles))) / count
    coefficients[0] /= 2
    return coefficients

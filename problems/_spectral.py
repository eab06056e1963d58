"""Fourier spectral solutions of semilinear periodic equations, for reference values."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.fft import fft, irfft, next_fast_len, rfft
from scipy.special import roots_legendre

from kanpinn import Expression, ProblemError

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Multiplier = Callable[[Floats], Floats | Complexes]

PANEL_NODES = 24  # Gauss nodes per wavelength of the highest mode
POINTS = 1024  # evaluated at once
GRID_VALUES = 2**18  # on all the grids of one batch of steps
LARGEST = 2**30  # bytes of all the coefficients that are kept
EARLIEST = 0.01  # time at which the modes left out are to have decayed


@final
class PeriodicSolution:
    """The solution of ``u_t = L u + B g(u)``, ``u(x, 0) = u0(x)``, periodic on ``[a, b]``.

    L and B are Fourier multipliers, ``L exp(i k x) = symbol(k) exp(i k x)``. Examples:

    - ``u_t = d u_xx + 5 (u - u^3)``: symbol ``-d k^2``, ``g(u) = 5 (u - u^3)`` of degree 3, no B;
    - ``u_t + u u_x + c u_xxx = 0``: symbol ``i c k^3``, ``g(u) = u^2 / 2``, flux ``-i k``.

    Space: a Galerkin method with the modes ``|j| <= modes``, ``k = 2 pi j / (b - a)``. The initial
    coefficients are integrals (Gauss and Legendre's rule), not sums over the grid, so that a kink
    at the ends costs no accuracy once the missing modes have decayed. g, a polynomial of the given
    degree, is evaluated on as many points as it takes to be free of aliasing. Time: ETDRK4 (Cox and
    Matthews, doi:10.1006/jcph.2002.6995), of order four, exact for ``g = 0``. Between the steps a
    value is that of a shorter step of the same method. Nothing is computed before the first call.

    Args:
        initial: u0, from places ``(n,)`` to values ``(n,)``; continuous as a periodic function.
        lower: a.
        upper: b.
        symbol: of L, real or complex, from wavenumbers ``k >= 0`` ``(m,)`` to ``(m,)``; symbols of
            real operators at ``-k`` are the conjugates.
        nonlinear: g, from values to values of the same shape.
        final_time: end of the time interval.
        modes: highest mode.
        steps: number of time steps, all of the same size.
        degree: degree of g.
        flux: of B, like ``symbol``; without it ``B = 1``.

    Raises:
        ProblemError: if it takes more than a GB; on first use, if the solution is not finite.
    """

    def __init__(
        self,
        initial: Callable[[Floats], Floats],
        lower: float,
        upper: float,
        *,
        symbol: Multiplier,
        nonlinear: Callable[[Floats], Floats],
        final_time: float,
        modes: int,
        steps: int,
        degree: int = 2,
        flux: Multiplier | None = None,
    ) -> None:
        if 16 * (steps + 1) * (modes + 1) > LARGEST:
            raise ProblemError(
                f"the reference solution would take {modes} modes and {steps} time steps, allowed: "
                "those that fit in a GB (a shorter time, larger scales)"
            )
        self.initial, self.lower, self.length = initial, lower, upper - lower
        self.wavenumbers: Floats = np.arange(modes + 1.0) * (2 * math.pi / self.length)
        self.times: Floats = final_time * np.linspace(0.0, 1.0, steps + 1)
        self._symbol, self._nonlinear, self._flux = symbol, nonlinear, flux
        self._points = next_fast_len((degree + 1) * modes + 1, real=True)
        self._known: tuple[Floats, Floats] | None = None

    def __call__(self, x: Floats, t: Floats) -> Floats:
        """Values at places ``x`` (n,) and times ``t`` (n,), ``t >= 0``, (n,)."""
        result = np.empty(len(x))
        starts = t <= 0
        result[starts] = self.initial(x[starts])
        later = np.flatnonzero(~starts)
        order = later[np.argsort(t[later], kind="stable")]
        for first in range(0, len(order), POINTS):
            part = order[first : first + POINTS]
            times, at_time = np.unique(t[part], return_inverse=True)
            places, at_place = np.unique(x[part], return_inverse=True)
            coefficients = self.coefficients(times)
            coefficients[:, 1:] *= 2  # for the negative modes
            waves = np.exp(1j * np.outer(places - self.lower, self.wavenumbers))
            result[part] = np.einsum("nk,nk->n", coefficients[at_time], waves[at_place]).real
        return result

    def at(self, points: Floats) -> Floats:
        """Values at points ``(x, t)`` (n, 2), (n,); kept until others are asked for.

        Every level of a run asks for the same points, and 40,000 of them take seconds.
        """
        if self._known is None or not np.array_equal(self._known[0], points):
            self._known = points.copy(), self(points[:, 0], points[:, 1])
        return self._known[1].copy()

    def coefficients(self, t: Floats) -> Complexes:
        """Fourier coefficients ``c_j`` at times ``t`` (m,), modes 0 to ``modes``, (m, modes + 1).

        ``u = sum over all j of c_j exp(i k_j (x - a))``, ``c_-j`` the conjugate of ``c_j``.
        """
        before = np.clip(np.searchsorted(self.times, t, side="right") - 1, 0, len(self.times) - 1)
        result = np.empty((len(t), len(self.wavenumbers)), np.complex128)
        rows = max(1, GRID_VALUES // self._points)
        for start in range(0, len(t), rows):
            part = slice(start, start + rows)
            sizes = np.maximum(t[part] - self.times[before[part]], 0.0)
            result[part] = self._step(self._states[before[part]], sizes)
        return result

    @functools.cached_property
    def _states(self) -> Complexes:
        """Coefficients at the ends of all steps, (steps + 1, modes + 1)."""
        states = np.empty((len(self.times), len(self.wavenumbers)), np.complex128)
        states[0] = self._project(self.initial)
        sizes = np.diff(self.times)
        with np.errstate(over="ignore", invalid="ignore"):  # reported below
            for n, size in enumerate(sizes):
                states[n + 1] = self._step(states[n : n + 1], np.array([size]))[0]
        if not np.isfinite(states).all():
            raise ProblemError(
                f"the reference solution is not finite with {len(sizes)} time steps; "
                "allowed: a problem whose solution exists up to the final time"
            )
        return states

    def _project(self, function: Callable[[Floats], Floats]) -> Complexes:
        """Fourier coefficients of a function, (modes + 1,), by Gauss's rule on equal panels.

        The sums over the panels are discrete Fourier transforms, one for each node of the rule.
        """
        modes = np.arange(len(self.wavenumbers))
        panels = 2 * max(32, math.ceil(modes[-1] / 2))
        node, weight = roots_legendre(PANEL_NODES)
        place = (node + 1) / 2  # within the panel
        x = self.lower + (np.arange(panels)[:, None] + place) * (self.length / panels)
        sums = fft(function(x.ravel()).reshape(x.shape), axis=0)[modes % panels] / panels
        phases = np.exp(-2j * math.pi / panels * np.outer(modes, place))
        coefficients: Complexes = (sums * phases) @ (weight / 2)
        return coefficients

    def _step(self, u: Complexes, size: Floats) -> Complexes:
        """One step of ETDRK4 from ``u`` (m, modes + 1), of its own size (m,) for every row."""
        h, linear = size[:, None], self._symbol(self.wavenumbers)
        half, whole = _Exponential.of(h / 2 * linear), _Exponential.of(h * linear)
        phi_1 = h / 2 * half.phi_1
        at_start = self._rate(u)
        base = half.exp * u
        a = base + phi_1 * at_start
        at_a = self._rate(a)
        b = base + phi_1 * at_a
        at_b = self._rate(b)
        c = half.exp * a + phi_1 * (2 * at_b - at_start)
        at_c = self._rate(c)
        first = whole.phi_1 - 3 * whole.phi_2 + 4 * whole.phi_3
        middle = 2 * whole.phi_2 - 4 * whole.phi_3
        last = 4 * whole.phi_3 - whole.phi_2
        change = first * at_start + middle * (at_a + at_b) + last * at_c
        result: Complexes = whole.exp * u + h * change
        return result

    def _rate(self, u: Complexes) -> Complexes:
        """Coefficients of ``B g(u)``."""
        count, n = u.shape[1], self._points
        values = irfft(u, n, norm="forward")
        rate: Complexes = rfft(self._nonlinear(values), norm="forward")[:, :count]
        return rate if self._flux is None else self._flux(self.wavenumbers) * rate


@dataclass(frozen=True)
class _Exponential:
    """``exp(z)`` and ``phi_n(z) = (phi_{n-1}(z) - 1/(n-1)!) / z``, ``phi_0 = exp``."""

    exp: Floats | Complexes
    phi_1: Floats | Complexes
    phi_2: Floats | Complexes
    phi_3: Floats | Complexes

    @classmethod
    def of(cls, z: Floats | Complexes) -> _Exponential:
        """By the definition for ``|z| >= 1``; by the series for smaller z, where it cancels."""
        exp, small = np.exp(z), np.abs(z) < 1.0
        far = np.where(small, 1.0, z)
        near = np.where(small, z, 0.0)
        series = np.zeros_like(near)
        for n in range(20, 2, -1):
            series = series * near + 1 / math.factorial(n)
        phi_1 = np.where(small, 1.0 + near * (0.5 + near * series), (exp - 1.0) / far)
        phi_2 = np.where(small, 0.5 + near * series, (phi_1 - 1.0) / far)
        phi_3 = np.where(small, series, (phi_2 - 0.5) / far)
        return cls(exp, phi_1, phi_2, phi_3)


def resolving_modes(length: float, diffusion: float, reaction: float) -> int:
    """Modes for ``u_t = d u_xx + r f(u)``, f of size one, for errors below 1e-9 from t = 0.01 on.

    A kink in u0 leaves coefficients of size ``exp(-d k^2 t) / k^2``, a front of the thinnest form
    ``tanh(x sqrt(r / (2 d)))`` those of size ``exp(-pi k sqrt(d / (2 r)))``.
    """
    kink = math.sqrt(11.0 / (diffusion * EARLIEST))
    front = 25.0 / math.pi * math.sqrt(2 * reaction / diffusion)
    return max(128, math.ceil(max(kink, front) * length / (2 * math.pi)))


@final
class PeriodicInitial:
    """An initial condition as an expression in one coordinate, continuous as a periodic function.

    Args:
        text: the expression.
        lower: lower end of the period.
        upper: upper end of the period.
        name: of the coordinate.

    Raises:
        ProblemError: if it is not finite everywhere, or not the same at both ends.
        ExpressionError: if it is no expression in the coordinate.
    """

    def __init__(self, text: str, lower: float, upper: float, name: str = "x") -> None:
        self.name, self.expression = name, Expression.parse(text, (name,))
        values = self(np.linspace(lower, upper, 1001))
        if not np.isfinite(values).all():
            raise ProblemError(f"initial: {text!r} is not finite on [{lower:g}, {upper:g}]")
        if abs(values[-1] - values[0]) > 1e-9 * max(1.0, float(np.abs(values).max())):
            raise ProblemError(
                f"initial: {text!r} is {values[0]:g} at {name} = {lower:g} and {values[-1]:g} at "
                f"{name} = {upper:g}, allowed: the same at both, as it is to be periodic"
            )

    def __call__(self, x: Floats) -> Floats:
        """Values at ``x`` (n,), (n,)."""
        return np.array(np.broadcast_to(self.expression(**{self.name: x}), x.shape), np.float64)

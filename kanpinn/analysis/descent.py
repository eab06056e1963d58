"""Gradient descent on the coefficients of one spline layer, in both bases.

Table 1 of arXiv 2603.04827. The same function has spline coefficients ``u`` and power-ReLU
coefficients ``w = A^T u``, and a loss the gradients ``grad_u = A grad_w``. Descent on ``u`` seen in
``w`` is preconditioned by ``A^T A``, descent on ``w`` seen in ``u`` by ``(A A^T)^-1``:

========  =========================================  ========================================
written   descent on ``u``                           descent on ``w``
========  =========================================  ========================================
in ``u``  ``u - s grad_u``                           ``u - s (A A^T)^-1 grad_u``
in ``w``  ``w - s A^T A grad_w``                     ``w - s grad_w``
========  =========================================  ========================================

The two of a column are the same iteration; the columns are not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Le, MinLen
from numpy.typing import NDArray
from scipy.fft import dct

from kanpinn.analysis.finding import Finding
from kanpinn.errors import ConfigError
from kanpinn.expressions import Expression
from kanpinn.splines import Knots, SplineBasis, change_of_basis, inverse_change_of_basis

Floats = NDArray[np.float64]
Basis = Literal["u", "w"]
BASES: tuple[Basis, Basis] = ("u", "w")

POINTS_PER_INTERVAL = 20
RECORDED = 40  # iterations of a curve, spread logarithmically
NEGLIGIBLE = 1e-3  # share of the best fit below which a band says nothing


@dataclass(frozen=True, kw_only=True)
class PreconditionedDescent:
    """Gradient descent in both bases, written in both: error against iterations and frequency."""

    name: Annotated[Literal["preconditioned_descent"], "gradient descent in both bases"] = (
        "preconditioned_descent"
    )
    n: Annotated[int, Ge(4), Le(500), "knot intervals on [-1, 1]"] = 50
    order: Annotated[int, Ge(2), Le(8), "spline order"] = 4
    function: Annotated[str, "what is fitted, an expression in x on [-1, 1]"] = (
        "sin(pi*x) + sin(4*pi*x) + sin(12*pi*x)"
    )
    iterations: Annotated[int, Ge(1), Le(1_000_000), "steps of gradient descent"] = 10_000
    bands: Annotated[
        Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)],
        "upper ends of the frequency bands, increasing, in half-waves over [-1, 1]",
    ] = (4, 16, 32)

    def __post_init__(self) -> None:
        if any(low >= high for low, high in pairwise(self.bands)):
            raise ConfigError(f"bands: found {list(self.bands)}, allowed: increasing numbers")
        try:
            Expression.parse(self.function, ("x",))
        except ConfigError as error:
            raise ConfigError(f"function: {error}") from error


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """``|B u - y|^2 / (2 N)`` for one layer with one input.

    Attributes:
        features: B-splines ``B`` at equally spaced points, ``(N, m)``.
        target: ``y``, ``(N,)``.
        matrix: ``A`` with ``b = A psi``, ``(m, m)``.
        inverse: ``A^-1``, every entry right to round-off.
    """

    features: Floats
    target: Floats
    matrix: Floats
    inverse: Floats

    @property
    def hessian(self) -> Floats:
        """``B^T B / N``, in ``u``, ``(m, m)``."""
        return np.asarray(self.features.T @ self.features / len(self.target))

    def hessian_of(self, gradient: Basis) -> Floats:
        """Of the loss as a function of ``u``, or of ``w``: ``A^-1 H A^-T``."""
        if gradient == "u":
            return self.hessian
        return np.asarray(self.inverse @ self.hessian @ self.inverse.T)

    def best(self) -> Floats:
        """The spline coefficients of the best fit, ``(m,)``."""
        return np.asarray(np.linalg.lstsq(self.features, self.target)[0])


def least_squares(options: PreconditionedDescent) -> LeastSquares:
    """The fit at the middles of ``20 n`` equal parts of [-1, 1].

    Raises:
        ConfigError: if the function is zero or not finite somewhere.
    """
    knots = Knots.uniform_grid(options.order, options.n, 1)
    count = POINTS_PER_INTERVAL * options.n
    x = (2 * np.arange(count) + 1) / count - 1
    values = Expression.parse(options.function, ("x",))(x=x)
    y = np.broadcast_to(np.asarray(values, dtype=np.float64), count)
    if not np.isfinite(y).all() or not y.any():
        raise ConfigError(
            f"function: {options.function!r} is zero, or not finite everywhere on [-1, 1]; "
            "allowed: finite values"
        )
    features = SplineBasis(knots).dense(torch.from_numpy(x)[:, None], 0)[0].numpy()
    both = (change(knots, 0).numpy() for change in (change_of_basis, inverse_change_of_basis))
    return LeastSquares(features, y, *both)


def steps(
    fit: LeastSquares, geometry: Basis, gradient: Basis, size: float
) -> Callable[[Floats], Floats]:
    """One step of descent on ``gradient``'s coefficients, written in those of ``geometry``.

    Truncated powers are never evaluated: ``grad_w = A^-1 grad_u`` and ``u = A^-T w`` by the
    inverse of ``A``, whose entries are all positive.
    """
    hessian, rhs = fit.hessian, fit.features.T @ fit.target / len(fit.target)
    matrix, inverse = fit.matrix, fit.inverse

    def grad_u(u: Floats) -> Floats:
        return np.asarray(hessian @ u - rhs)

    maps: dict[tuple[Basis, Basis], Callable[[Floats], Floats]] = {
        ("u", "u"): lambda u: u - size * grad_u(u),
        ("u", "w"): lambda u: u - size * (inverse.T @ (inverse @ grad_u(u))),
        ("w", "u"): lambda w: w - size * (matrix.T @ grad_u(inverse.T @ w)),
        ("w", "w"): lambda w: w - size * (inverse @ grad_u(inverse.T @ w)),
    }
    return maps[geometry, gradient]


def iterate(
    step: Callable[[Floats], Floats], start: Floats, wanted: Sequence[int]
) -> Iterator[Floats]:
    """The iterates of some numbers, ascending."""
    state, done = start, 0
    for number in wanted:
        for _ in range(number - done):
            state = step(state)
        done = number
        yield state


def preconditioned_descent(options: PreconditionedDescent) -> Finding:
    """Errors of the four iterations, all from zero, each with the step ``1 / L``.

    ``L`` is the largest eigenvalue of the Hessian in the coefficients that are descended on. The
    error is that to the best fit, relative to it, in the mean square over the points; its share in
    a band of frequencies (of a cosine transform, since it is not periodic) is relative to that
    band's error at the start. Bands that the best fit has next to nothing in are left out.
    ``difference`` is the largest between the functions of the two iterations of a column of
    Table 1, relative to the best fit's largest value: round-off, magnified by the conditioning.
    """
    fit = least_squares(options)
    best = fit.features @ fit.best()
    wanted = recorded(options.iterations)
    sizes = {gradient: 1 / largest(fit.hessian_of(gradient)) for gradient in BASES}
    functions = {
        pair: _functions(fit, *pair, sizes[pair[1]], wanted)
        for pair in itertools.product(BASES, BASES)
    }
    bands = _bands(best, options.bands)
    curves = [
        {
            "geometry": geometry,
            "gradient": gradient,
            "iteration": number,
            **_errors(values, best, bands),
            "difference": float(
                np.abs(values - functions["u", gradient][at]).max() / np.abs(best).max()
            ),
        }
        for (geometry, gradient), found in functions.items()
        for at, (number, values) in enumerate(zip(wanted, found, strict=True))
    ]
    decades = {0, *(10**k for k in range(7) if 10**k <= options.iterations), options.iterations}
    rows = [row for row in curves if row["iteration"] in decades]
    title = f"Gradient descent in both bases, order {options.order}, {options.n} intervals"
    return Finding(
        "preconditioned_descent", title, _text(fit, best, sizes, options), rows, tuple(curves)
    )


def recorded(iterations: int) -> list[int]:
    """Numbers of iterations from 0 on, whole powers of ten among them."""
    spread = np.geomspace(1, iterations, RECORDED).round().astype(int).tolist()
    tens = [10**k for k in range(7) if 10**k <= iterations]
    return sorted({0, *spread, *tens, iterations})


def largest(hessian: Floats) -> float:
    """The largest eigenvalue of a symmetric matrix."""
    return float(np.linalg.eigvalsh(hessian)[-1])


def _functions(
    fit: LeastSquares, geometry: Basis, gradient: Basis, size: float, wanted: Sequence[int]
) -> list[Floats]:
    """Values ``(N,)`` of the iterates."""
    start = np.zeros(len(fit.matrix))
    found = iterate(steps(fit, geometry, gradient, size), start, wanted)
    if geometry == "w":
        found = (fit.inverse.T @ w for w in found)
    return [np.asarray(fit.features @ u) for u in found]


def _bands(best: Floats, ends: Sequence[int]) -> dict[str, slice]:
    """The bands the best fit has something in, by name; the last reaches to the finest waves."""
    edges = [-1, *(end for end in ends if end < len(best) - 1), len(best) - 1]
    bands = {
        f"{low + 1}-{high}" if high < len(best) - 1 else f"above {low}": slice(low + 1, high + 1)
        for low, high in pairwise(edges)
    }
    energy = dct(best, norm="ortho") ** 2
    return {k: s for k, s in bands.items() if energy[s].sum() > NEGLIGIBLE**2 * energy.sum()}


def _errors(values: Floats, best: Floats, bands: Mapping[str, slice]) -> dict[str, float]:
    whole, error = (dct(v, norm="ortho") ** 2 for v in (best, values - best))
    found = {"error": float(np.sqrt(error.sum() / whole.sum()))}
    for name, band in bands.items():
        found[f"band {name}"] = float(np.sqrt(error[band].sum() / whole[band].sum()))
    return found


def _text(
    fit: LeastSquares, best: Floats, sizes: Mapping[Basis, float], options: PreconditionedDescent
) -> str:
    # Of the factors, before they are squared, where twice the digits are left.
    factor = np.linalg.qr(fit.features, mode="r")
    in_w = factor @ fit.inverse.T
    conditions = {"u": np.linalg.cond(factor) ** 2, "w": np.linalg.cond(in_w) ** 2}
    parts = [
        f"on {basis} 1/L = {sizes[basis]:.2e}, condition number {conditions[basis]:.1e}"
        for basis in BASES
    ]
    off = np.linalg.norm(best - fit.target) / np.linalg.norm(fit.target)
    return (
        f"Least-squares fit of {options.function} by one layer, {len(best)} points, from zero, "
        f"steps 1/L with the largest eigenvalue L of the Hessian: {'; '.join(parts)}. Written in "
        "the other basis both are the same iterations, preconditioned by A^T A and (A A^T)^-1. "
        f"Errors are those to the best fit, whose own relative error is {off:.1e}; bands are in "
        "half-waves over [-1, 1], relative to their start."
    )

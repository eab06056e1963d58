"""Orders of convergence: observed, fitted, and what they say of the error without a reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SAFETY = 1.25  # of the grid convergence index, on three levels or more

Number = float | None


@dataclass(frozen=True)
class FittedOrder:
    """The slope of ``log e`` against ``log h`` by least squares, and of how many levels."""

    order: float
    levels: int


@dataclass(frozen=True)
class Extrapolation:
    """What the changes between three levels say of the finest one's error.

    Attributes:
        error: estimated.
        gci: the grid convergence index, :data:`SAFETY` times that.
    """

    error: float
    gci: float


def observed_order(errors: tuple[Number, Number], widths: tuple[Number, Number]) -> Number:
    """``log(e1 / e2) / log(h1 / h2)``; ``None`` where errors or widths are missing or equal."""
    (e1, e2), (h1, h2) = errors, widths
    if not (e1 and e2 and h1 and h2) or h1 == h2:
        return None
    return math.log(e1 / e2) / math.log(h1 / h2)


def fitted_order(errors: Sequence[Number], widths: Sequence[Number]) -> FittedOrder | None:
    """The order ``p`` of ``e = C h^p`` by least squares in the logarithms, over all levels.

    ``None`` for fewer than two levels with an error and different widths.
    """
    pairs = [
        (math.log(h), math.log(e)) for e, h in zip(errors, widths, strict=True) if e and h and e > 0
    ]
    if len({x for x, _ in pairs}) < 2:
        return None
    n = len(pairs)
    x0, y0 = sum(x for x, _ in pairs) / n, sum(y for _, y in pairs) / n
    covariance = sum((x - x0) * (y - y0) for x, y in pairs)
    return FittedOrder(covariance / sum((x - x0) ** 2 for x, _ in pairs), n)


def extrapolate(
    change: Number, order: Number, widths: tuple[Number, Number]
) -> Extrapolation | None:
    """Richardson's estimate of the error after a refinement, and the grid convergence index.

    With ``c = |u_k - u_{k-1}|`` and errors ``e = C h^p``, ``e_{k-1} - e_k = (q^p - 1) e_k``,
    ``q = h_{k-1} / h_k``: the error is about ``c / (q^p - 1)``. The index (Roache, J. Fluids Eng.
    116, 1994, 405-413) is 1.25 times that. ``None`` unless the order is positive and ``q > 1``.

    Args:
        change: ``c``, absolute or relative, as is the estimate then.
        order: ``p``.
        widths: ``h_{k-1}`` and ``h_k``.
    """
    coarse, fine = widths
    if change is None or not order or order <= 0 or not (coarse and fine and coarse > fine):
        return None
    try:
        error = change / math.expm1(order * math.log(coarse / fine))
    except OverflowError:  # of an order that no sequence of three levels can show
        return None
    return Extrapolation(error, SAFETY * error)

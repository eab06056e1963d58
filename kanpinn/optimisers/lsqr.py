"""LSQR: least squares from products with the matrix and its transpose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LSQRResult:
    """What ``lsqr`` found.

    Attributes:
        x: the approximate minimiser ``(n,)``.
        iterations: done; each took one product with ``A`` and one with ``A^T``.
        reduction: of ``|A^T (A x - b)|``, relative to its value at ``x = 0``.
    """

    x: Tensor
    iterations: int
    reduction: float


def lsqr(
    product: Product, transposed: Product, b: Tensor, iterations: int, tolerance: float
) -> LSQRResult:
    """Minimise ``|A x - b|^2`` by Golub-Kahan bidiagonalisation, from ``x = 0``.

    Iterate k is the minimiser over the Krylov space of dimension k, so that stopping early still
    lowers ``|A x - b|``. Every number is a function of the arguments alone.

    Args:
        product: ``A v`` ``(m,)`` of ``v`` ``(n,)``.
        transposed: ``A^T u`` ``(n,)`` of ``u`` ``(m,)``.
        b: the right-hand side ``(m,)``.
        iterations: at most.
        tolerance: fall of ``|A^T (A x - b)|`` at which to stop.

    Source: C. Paige and M. Saunders, doi:10.1145/355984.355989.
    """
    u, beta = _unit(b)
    v, alpha = _unit(transposed(u))
    x, w = v * 0, v
    rho_bar, phi_bar, start = alpha, beta, alpha * beta
    reduction, done = (1.0, 0) if start > 0 else (0.0, 0)
    while done < iterations and reduction > tolerance:
        u, beta = _unit(product(v) - alpha * u)
        v, alpha = _unit(transposed(u) - beta * v)
        rho = math.hypot(rho_bar, beta)
        cosine, sine = rho_bar / rho, beta / rho
        x = x + (cosine * phi_bar / rho) * w
        w = v - (sine * alpha / rho) * w
        rho_bar, phi_bar = -cosine * alpha, sine * phi_bar
        reduction, done = abs(phi_bar * alpha * cosine) / start, done + 1
    return LSQRResult(x, done, reduction)


def _unit(vector: Tensor) -> tuple[Tensor, float]:
    """The vector of length one in the same direction, and the length it had (0: unchanged)."""
    size = float(vector.norm())
    return (vector / size if size > 0 else vector), size

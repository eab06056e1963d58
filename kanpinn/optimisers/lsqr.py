"""LSQR: least squares from products with the matrix and its transpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOOK = 16  # iterations between two looks at whether it is done, which a GPU makes the host wait for

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LSQRResult:
    """What ``lsqr`` found.

    Attributes:
        x: the approximate minimiser ``(n,)``.
        iterations: that it took, 0-d; each needs one product with ``A`` and one with ``A^T``.
        reduction: of ``|A^T (A x - b)|``, relative to its value at ``x = 0``, 0-d.
    """

    x: Tensor
    iterations: Tensor
    reduction: Tensor


def lsqr(
    product: Product, transposed: Product, b: Tensor, iterations: int, tolerance: float
) -> LSQRResult:
    """Minimise ``|A x - b|^2`` by Golub-Kahan bidiagonalisation, from ``x = 0``.

    Iterate k is the minimiser over the Krylov space of dimension k, so that stopping early still
    lowers ``|A x - b|``. Every number is a function of the arguments alone: away from the CPU the
    host looks but every ``LOOK`` iterations whether it is done, and ``x`` does not change after it.

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
    going = start > 0
    reduction, count = going.to(start.dtype), torch.zeros_like(going, dtype=torch.int64)
    look = 1 if b.device.type == "cpu" else LOOK
    for number in range(iterations):
        if number % look == 0 and not bool(going):
            break
        u, beta = _unit(product(v) - alpha * u)
        v, alpha = _unit(transposed(u) - beta * v)
        rho = torch.hypot(rho_bar, beta)
        cosine, sine = rho_bar / rho, beta / rho
        x = torch.where(going, x + (cosine * phi_bar / rho) * w, x)
        w = v - (sine * alpha / rho) * w
        rho_bar, phi_bar = -cosine * alpha, sine * phi_bar
        reduction = torch.where(going, (phi_bar * alpha * cosine).abs() / start, reduction)
        count = count + going
        going = going & (reduction > tolerance)
    return LSQRResult(x, count, reduction)


def _unit(vector: Tensor) -> tuple[Tensor, Tensor]:
    """The vector of length one in the same direction, and its length (0: unchanged), 0-d."""
    size = vector.norm().to(torch.float64)
    return vector / torch.where(size > 0, size, 1.0), size

"""LSQR: least squares from products with the matrix and its transpose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kanpinn.optimisers.numbers import reads_freely

LOOK = 16  # iterations between two looks at whether it is done, which a GPU makes the host wait for

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LSQRResult:
    """What ``lsqr`` found.

    Attributes:
        x: the approximate minimiser ``(n,)``.
        iterations: that it took; each needs one product with ``A`` and one with ``A^T``.
        reduction: of ``|A^T (A x - b)|``, relative to its value at ``x = 0``.

    The last two are 0-d tensors where reading them would be a wait.
    """

    x: Tensor
    iterations: int | Tensor
    reduction: float | Tensor


def lsqr(
    product: Product, transposed: Product, b: Tensor, iterations: int, tolerance: float
) -> LSQRResult:
    """Minimise ``|A x - b|^2`` by Golub-Kahan bidiagonalisation, from ``x = 0``.

    Iterate k is the minimiser over the Krylov space of dimension k, so that stopping early still
    lowers ``|A x - b|``. Every number is a function of the arguments alone. On a GPU the host looks
    every ``LOOK`` iterations whether it is done: ``x`` does not change in those behind the last.

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
    going, look = start > 0, 1 if reads_freely(b) else LOOK
    count, reduction = 0 * going, 1.0 * going
    for number in range(iterations):
        if number % look == 0 and not bool(going):
            break
        u, beta = _unit(product(v) - alpha * u)
        v, alpha = _unit(transposed(u) - beta * v)
        rho = _hypot(rho_bar, beta)
        cosine, sine = rho_bar / rho, beta / rho
        x = _pick(going, x + (cosine * phi_bar / rho) * w, x)
        w = v - (sine * alpha / rho) * w
        rho_bar, phi_bar = -cosine * alpha, sine * phi_bar
        reduction = _pick(going, abs(phi_bar * alpha * cosine) / start, reduction)
        count, going = count + going, _pick(going, reduction > tolerance, going)
    return LSQRResult(x, count, reduction)


def _unit(vector: Tensor) -> tuple[Tensor, Any]:
    """The vector of length one in the same direction, and its length (0: unchanged).

    The length is a number, or a 0-d tensor where reading it would be a wait.
    """
    size = vector.norm().to(torch.float64)
    if not reads_freely(vector):
        return vector / torch.where(size > 0, size, 1.0), size
    length = float(size)
    return (vector / length if length > 0 else vector), length


def _hypot(a: Any, b: Any) -> Any:
    return torch.hypot(a, b) if isinstance(a, Tensor) else math.hypot(a, b)


def _pick(mask: Any, new: Any, old: Any) -> Any:
    """``new`` where the mask, a truth value or a 0-d tensor, holds."""
    return torch.where(mask, new, old) if isinstance(mask, Tensor) else new if mask else old

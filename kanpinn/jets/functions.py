"""Univariate functions with their derivatives in closed form, to take part in jets.

Each function maps a tensor ``z`` and a highest order ``m <= 4`` to the list
``[f(z), f'(z), ..., f^(m)(z)]``, built from smooth torch operations, so that one more derivative
(the gradient of a residual) comes from ordinary reverse mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Derivatives = Callable[[Tensor, int], list[Tensor]]

FUNCTIONS: dict[str, Derivatives] = {}


def _register(function: Derivatives) -> Derivatives:
    FUNCTIONS[function.__name__.rstrip("_")] = function
    return function


def _polynomials(value: Tensor, rows: Sequence[Sequence[float]], order: int) -> list[Tensor]:
    """Derivatives that are polynomials in ``value``; each row lists rising powers."""
    result = []
    for row in rows[: order + 1]:
        total = torch.full_like(value, row[-1])
        for coefficient in reversed(row[:-1]):
            total = total * value + coefficient
        result.append(total)
    return result


@_register
def sin(z: Tensor, order: int) -> list[Tensor]:
    """Sine."""
    s, c = torch.sin(z), torch.cos(z)
    return [s, c, -s, -c, s][: order + 1]


@_register
def cos(z: Tensor, order: int) -> list[Tensor]:
    """Cosine."""
    s, c = torch.sin(z), torch.cos(z)
    return [c, -s, -c, s, c][: order + 1]


@_register
def tan(z: Tensor, order: int) -> list[Tensor]:
    """Tangent; derivatives are polynomials in tan."""
    rows = [[0, 1], [1, 0, 1], [0, 2, 0, 2], [2, 0, 8, 0, 6], [0, 16, 0, 40, 0, 24]]
    return _polynomials(torch.tan(z), rows, order)


@_register
def tanh(z: Tensor, order: int) -> list[Tensor]:
    """Hyperbolic tangent; derivatives are polynomials in tanh."""
    rows = [[0, 1], [1, 0, -1], [0, -2, 0, 2], [-2, 0, 8, 0, -6], [0, 16, 0, -40, 0, 24]]
    return _polynomials(torch.tanh(z), rows, order)


@_register
def sigmoid(z: Tensor, order: int) -> list[Tensor]:
    """Logistic function; derivatives are polynomials in it."""
    rows = [
        [0, 1],
        [0, 1, -1],
        [0, 1, -3, 2],
        [0, 1, -7, 12, -6],
        [0, 1, -15, 50, -60, 24],
    ]
    return _polynomials(torch.sigmoid(z), rows, order)


@_register
def sinh(z: Tensor, order: int) -> list[Tensor]:
    """Hyperbolic sine."""
    s, c = torch.sinh(z), torch.cosh(z)
    return [s, c, s, c, s][: order + 1]


@_register
def cosh(z: Tensor, order: int) -> list[Tensor]:
    """Hyperbolic cosine."""
    s, c = torch.sinh(z), torch.cosh(z)
    return [c, s, c, s, c][: order + 1]


@_register
def exp(z: Tensor, order: int) -> list[Tensor]:
    """Exponential."""
    return [torch.exp(z)] * (order + 1)


@_register
def log(z: Tensor, order: int) -> list[Tensor]:
    """Natural logarithm."""
    w = 1 / z
    return [torch.log(z), w, -(w**2), 2 * w**3, -6 * w**4][: order + 1]


@_register
def sqrt(z: Tensor, order: int) -> list[Tensor]:
    """Square root."""
    return power(z, 0.5, order)


@_register
def asin(z: Tensor, order: int) -> list[Tensor]:
    """Inverse sine."""
    w = (1 - z**2).rsqrt()
    rows = [torch.asin(z), w, z * w**3, w**5 * (1 + 2 * z**2), w**7 * (9 * z + 6 * z**3)]
    return rows[: order + 1]


@_register
def acos(z: Tensor, order: int) -> list[Tensor]:
    """Inverse cosine."""
    first, *rest = asin(z, order)
    return [math.pi / 2 - first, *(-d for d in rest)]


@_register
def atan(z: Tensor, order: int) -> list[Tensor]:
    """Inverse tangent."""
    w = 1 / (1 + z**2)
    rows = [
        torch.atan(z),
        w,
        -2 * z * w**2,
        (6 * z**2 - 2) * w**3,
        24 * z * (1 - z**2) * w**4,
    ]
    return rows[: order + 1]


@_register
def asinh(z: Tensor, order: int) -> list[Tensor]:
    """Inverse hyperbolic sine."""
    w = (1 + z**2).rsqrt()
    rows = [torch.asinh(z), w, -z * w**3, (2 * z**2 - 1) * w**5, (9 * z - 6 * z**3) * w**7]
    return rows[: order + 1]


@_register
def erf(z: Tensor, order: int) -> list[Tensor]:
    """Error function."""
    return [torch.erf(z), *_gaussian(z * math.sqrt(2), order - 1, 2 / math.sqrt(math.pi))]


def _gaussian(z: Tensor, order: int, scale: float) -> list[Tensor]:
    """``scale * exp(-z^2/2)`` and derivatives with respect to ``z / sqrt(2)``."""
    g = scale * torch.exp(-(z**2) / 2)
    hermite = [torch.ones_like(z), -z, z**2 - 1, 3 * z - z**3, z**4 - 6 * z**2 + 3]
    return [g * h * math.sqrt(2) ** m for m, h in enumerate(hermite[: order + 1])]


@_register
def abs_(z: Tensor, order: int) -> list[Tensor]:
    """Absolute value (away from zero)."""
    return _piecewise_linear(torch.abs(z), torch.sign(z), order)


@_register
def sign(z: Tensor, order: int) -> list[Tensor]:
    """Sign (away from zero)."""
    return [torch.sign(z)] + [torch.zeros_like(z)] * order


@_register
def relu(z: Tensor, order: int) -> list[Tensor]:
    """Rectified linear unit (away from zero)."""
    return _piecewise_linear(torch.relu(z), (z > 0).to(z.dtype), order)


def _piecewise_linear(value: Tensor, slope: Tensor, order: int) -> list[Tensor]:
    return [value, slope, *[torch.zeros_like(value)] * (order - 1)][: order + 1]


@_register
def silu(z: Tensor, order: int) -> list[Tensor]:
    """``z sigmoid(z)``."""
    return _times_identity(z, sigmoid(z, order))


@_register
def gelu(z: Tensor, order: int) -> list[Tensor]:
    """``z Phi(z)`` with the normal distribution function (no tanh approximation)."""
    phi = 1 / math.sqrt(2 * math.pi) * torch.exp(-(z**2) / 2)
    hermite = [torch.ones_like(z), -z, z**2 - 1, 3 * z - z**3]
    normal = [0.5 * (1 + torch.erf(z / math.sqrt(2))), *(phi * h for h in hermite[:order])]
    return _times_identity(z, normal)


def _times_identity(z: Tensor, derivatives: list[Tensor]) -> list[Tensor]:
    """Derivatives of ``z g(z)``: ``z g^(m) + m g^(m-1)``."""
    rows = [z * derivatives[0]]
    for m in range(1, len(derivatives)):
        rows.append(z * derivatives[m] + m * derivatives[m - 1])
    return rows


def power(z: Tensor, exponent: float, order: int) -> list[Tensor]:
    """``z ** exponent`` for a constant exponent; a whole exponent stays exact at ``z = 0``."""
    rows, factor, left = [], 1.0, exponent
    for _ in range(order + 1):
        if factor == 0.0:
            rows.append(torch.zeros_like(z))
            continue
        rows.append(factor * (z**left if left != 0 else torch.ones_like(z)))
        factor, left = factor * left, left - 1
    return rows

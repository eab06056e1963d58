"""Piecewise polynomials point by point: tables of the B-spline pieces and their evaluation.

On an interval ``[t_j, t_{j+1}]`` the ``r`` B-splines that are not zero there are polynomials of
degree ``r - 1``. Their monomial coefficients about the midpoint are tabulated once per interval;
a point then costs one look-up and one Horner scheme for the values and all derivatives.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def piece_tables(order: int, extended: Tensor) -> Tensor:
    """Monomial coefficients of the B-spline pieces, by the Cox-de Boor recursion on polynomials.

    With ``u = (x - mid) / (h / 2)`` in [-1, 1], the recursion's weight
    ``(x - t_l) / (t_{l+k-1} - t_l)`` is ``alpha + beta u`` and lies in [0, 1] on the interval, as
    does its complement, so that no step of the recursion amplifies rounding errors.

    Args:
        order: ``r``.
        extended: knots with exterior ones, ``(channels, n + 2r - 1)``, increasing.

    Returns:
        ``(channels, n, r, r)``: coefficient of ``u^k`` of function ``j - r + 1 + l`` on interval
        ``j`` at ``[:, j, l, k]``. Differentiable with respect to the knots.
    """
    window = extended[:, 1:-1].unfold(1, 2 * order - 2, 1)  # (channels, n, 2r-2): t_{j-r+2} ..
    half = 0.5 * (window[..., order - 1] - window[..., order - 2])[..., None]  # (channels, n, 1)
    # Distances to the midpoint, as sums of positive terms so that they keep all digits.
    below = half + (window[..., order - 2, None] - window[..., : order - 1])
    above = half + (window[..., order - 1 :] - window[..., order - 1, None])
    pieces = torch.ones_like(half)[..., None]  # (channels, n, 1 function, 1 power)
    for k in range(2, order + 1):
        to_left = below[..., order - k :]  # mid - t_l of the k-1 functions of order k-1
        to_right = above[..., : k - 1]  # t_{l+k-1} - mid
        scaled = pieces / (to_left + to_right)[..., None]
        ramp = half[..., None] * scaled
        zero = torch.zeros_like(scaled[..., :1])
        shifted = torch.cat([zero, ramp], -1)  # the part with one more power of u
        rising = torch.cat([to_left[..., None] * scaled, zero], -1) + shifted
        falling = torch.cat([to_right[..., None] * scaled, zero], -1) - shifted
        none = torch.zeros_like(rising[..., :1, :])
        pieces = torch.cat([falling, none], -2) + torch.cat([none, rising], -2)
    return pieces


@cache
def uniform_table(order: int) -> Tensor:
    """The table ``(r, r)``, ``[l, k]``, of every interval of equally spaced knots, float64.

    It is one tensor for all who ask: not to be written to.
    """
    with torch.inference_mode(False):  # or training could not use it later
        knots = torch.arange(2.0 * order, dtype=torch.float64, device="cpu")[None]
        return piece_tables(order, knots)[0, 0]


def differentiate(coefficients: Tensor, times: int) -> Tensor:
    """Coefficients of the ``times``-th derivative of polynomials, powers along the last axis."""
    n = coefficients.shape[-1]
    result = torch.zeros_like(coefficients)
    for k in range(times, n):
        result[..., k - times] = math.perm(k, times) * coefficients[..., k]
    return result


class PolynomialJets(torch.autograd.Function):
    """Values and derivatives of one set of polynomials at each point, by one Horner scheme.

    ``V[m, l, x] = d^m/dv^m sum_k c[k, l, x] v^k`` at ``v = v[x]``. The backward pass is written
    out: the derivative of ``V[m]`` is ``V[m + 1]``, which is at hand, and plain autograd would
    record every step of the scheme instead (three times slower). It is itself differentiable.
    """

    @staticmethod
    def forward(v: Tensor, c: Tensor, derivatives: int) -> Tensor:
        """Evaluate.

        Args:
            v: points in local coordinates, ``(points,)``.
            c: coefficients ``(powers, functions, points)``.
            derivatives: highest derivative ``D``.

        Returns:
            ``(D + 1, functions, points)``.
        """
        powers = c.shape[0]
        values = c.new_zeros(derivatives + 1, *c.shape[1:])
        values[0] = c[-1]
        for k in range(powers - 2, -1, -1):
            for m in range(min(derivatives, powers - 1 - k), 0, -1):
                torch.addcmul(values[m - 1], values[m], v, out=values[m])
            torch.addcmul(c[k], values[0], v, out=values[0])
        for m in range(2, min(derivatives, powers - 1) + 1):
            values[m] *= math.factorial(m)
        return values

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the backward pass needs."""
        v, c, derivatives = inputs
        ctx.save_for_backward(v, c, output)
        ctx.derivatives = derivatives  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients with respect to ``v`` and ``c``, differentiable when a graph is asked for."""
        v, c, values = ctx.saved_tensors
        g = grads[0].contiguous()  # it often comes in another layout, which would slow all below
        grad_v = grad_c = None
        if ctx.needs_input_grad[0]:
            if torch.is_grad_enabled():
                higher = PolynomialJets.apply(v, c, ctx.derivatives + 1)
                grad_v = (g * higher[1:]).sum((0, 1))
            else:
                grad_v = (g[-1] * _single_derivative(v, c, ctx.derivatives + 1)).sum(0)
                if ctx.derivatives:
                    grad_v = grad_v + (g[:-1] * values[1:]).sum((0, 1))
        if ctx.needs_input_grad[1]:
            grad_c = _transposed_horner(v, g, c.shape[0])
        return grad_v, grad_c, None


def _single_derivative(v: Tensor, c: Tensor, m: int) -> Tensor:
    """``d^m/dv^m sum_k c[k] v^k``, ``(functions, points)``, for one ``m``."""
    powers = c.shape[0]
    if m >= powers:
        return torch.zeros_like(c[0])
    value = math.perm(powers - 1, m) * c[-1]
    for k in range(powers - 2, m - 1, -1):
        value = torch.addcmul(math.perm(k, m) * c[k], value, v)
    return value


def _transposed_horner(v: Tensor, g: Tensor, powers: int) -> Tensor:
    """Gradient ``(powers, functions, points)`` with respect to the coefficients.

    ``sum_m g[m] d^m/dv^m v^k`` for each ``k``: the steps of the Horner scheme, transposed.
    """
    weights = [math.factorial(m) * g[m] for m in range(min(len(g), powers))]
    if torch.is_grad_enabled():
        rows = [weights[0]]
        for _ in range(1, powers):
            following = [*weights[1:], torch.zeros_like(v)]
            weights = [w * v + w_next for w, w_next in zip(weights, following, strict=True)]
            rows.append(weights[0])
        return torch.stack(rows)
    # The same in place: without a graph to keep, memory traffic is what it costs.
    gradient = g.new_empty(powers, *g.shape[1:])
    gradient[0] = weights[0]
    for k in range(1, powers):
        for w, w_next in pairwise(weights):
            w.mul_(v).add_(w_next)
        weights[-1].mul_(v)
        gradient[k] = weights[0]
    return gradient

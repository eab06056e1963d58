"""Feature jets of a spline layer with their reverse pass in closed form.

The features of component ``k`` are ``F_k = sum_m b^(m)(z_0) g_{k,m}(z)``, with the chain rule's
polynomials ``g``. Their adjoint needs one more derivative of the basis and no intermediate result
but the basis itself, which saves most of the memory traffic of recorded elementary operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kanpinn.jets import JetSpec, chain_polynomials
from kanpinn.splines import SplineBasis


class SplineFeatures(torch.autograd.Function):
    """``(K, n, n_features)`` feature jets of ``z``, ``(K, n, channels)``, on fixed knots.

    Once differentiable: jets replace derivatives of derivatives.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, basis: SplineBasis, spec: JetSpec, n_features: int) -> Tensor:
        """Evaluate the features; the basis is kept to one order more than they need."""
        first, values = basis.local(z[0], spec.order + 1)  # (n, P), (D+2, n, P, r)
        index = _flat_index(first, values.shape[-1])
        local = combine(values, z[..., None], spec)  # (K, n, P, r)
        ctx.save_for_backward(z, values, index)
        ctx.spec = spec
        dense = local.new_zeros(len(local), len(first), n_features)
        return dense.scatter_(2, index.expand(len(local), -1, -1), local.flatten(2))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor, None, None, None]:
        """Adjoint of ``z`` from that of the features."""
        z, values, index = ctx.saved_tensors
        k, n, channels = z.shape
        local = adjoint.gather(2, index.expand(k, -1, -1)).view(k, n, channels, -1)
        return _adjoint(local, z, values, ctx.spec), None, None, None


def combine(values: Tensor, z: Tensor, spec: JetSpec) -> Tensor:
    """Feature jets from basis derivatives and the chain rule's factors.

    Args:
        values: ``b^(m)(z_0)``, ``(at least D+1, ...)``.
        z: input jets ``(K, ...)``, broadcasting against ``values[0]``.
        spec: names the components.

    Returns:
        ``(K, ...)``.
    """
    derivatives = values.unbind(0)
    rows = [derivatives[0]]
    for factors in chain_polynomials(z, spec)[1:]:
        parts = [derivatives[m] * factor for m, factor in factors.items()]
        rows.append(sum(parts[1:], parts[0]))
    return torch.stack(rows)


def _flat_index(first: Tensor, r: int) -> Tensor:
    """Feature numbers ``(1, n, channels * r)`` of all non-zero features."""
    return (first[..., None] + torch.arange(r, device=first.device)).flatten(1)[None]


def _adjoint(local: Tensor, z: Tensor, values: Tensor, spec: JetSpec) -> Tensor:
    """Adjoint ``(K, n, P)`` of ``z`` from the features' local adjoint ``(K, n, P, r)``.

    With ``T_{k,m} = sum_s local_k b^(m)``: the value's is ``sum_{k,m} T_{k,m+1} g_{k,m}``, that of
    component ``j`` is ``sum_{k,m} T_{k,m} dg_{k,m}/dz_j``.
    """
    result = torch.zeros_like(z)
    derivatives = values.unbind(0)
    result[0] = _dot(local[0], derivatives[1])
    polynomials = chain_polynomials(z, spec)
    for k, terms in enumerate(spec.chain_terms[1:], start=1):
        orders = sorted(polynomials[k])
        t = {m: _dot(local[k], derivatives[m]) for m in (*orders, orders[-1] + 1)}
        for m, g in polynomials[k].items():
            result[0].addcmul_(t[m + 1], g)
        for count, m, factors in terms:
            for position, j in enumerate(factors):
                slope = t[m]
                for other in factors[:position] + factors[position + 1 :]:
                    slope = slope * z[other]
                result[j].add_(slope, alpha=count)
    return result


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the last axis of a product, ``(n, P, r)`` to ``(n, P)``."""
    return (a * b).sum(-1)

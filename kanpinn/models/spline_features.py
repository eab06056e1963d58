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
    """The ``r`` feature jets of each channel that are not zero, of ``z`` on fixed knots.

    From ``z`` ``(K, n, channels)`` to features ``(K, n, channels, r)`` and the flat index of the
    first of them, ``(n, channels)``. Differentiable once more by :func:`local_features`.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, basis: SplineBasis, spec: JetSpec) -> tuple[Tensor, Tensor]:
        """Evaluate the features; the basis is kept to one order more than they need."""
        first, values = basis.local(z[0], spec.order + 1)  # (n, P), (D+2, n, P, r)
        ctx.save_for_backward(z, values)
        ctx.mark_non_differentiable(first)
        ctx.basis, ctx.spec = basis, spec
        return combine(values, z[..., None], spec), first

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor, _: None) -> tuple[Tensor, None, None]:
        """Adjoint of ``z`` from that of the features."""
        z, values = ctx.saved_tensors
        if torch.is_grad_enabled():
            again, _first = local_features(z, ctx.spec, ctx.basis)
            return *torch.autograd.grad(again, z, adjoint, create_graph=True), None, None
        return _adjoint(adjoint, z, values, ctx.spec), None, None


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


def local_features(z: Tensor, spec: JetSpec, basis: SplineBasis) -> tuple[Tensor, Tensor]:
    """What :class:`SplineFeatures` gives, by recorded operations, for any knots."""
    first, values = basis.local(z[0], spec.order)  # (n, P), (D+1, n, P, r)
    return combine(values, z[..., None], spec), first


def scatter_features(local: Tensor, first: Tensor, n_features: int) -> Tensor:
    """Spread the ``r`` non-zero features of each channel over the flat feature axis.

    Args:
        local: ``(K, n, channels, r)``.
        first: flat index of each channel's first non-zero feature, ``(n, channels)``.
        n_features: length of the flat feature axis.

    Returns:
        ``(K, n, n_features)``.
    """
    k, n = local.shape[:2]
    index = _flat_index(first, local.shape[-1]).expand(k, -1, -1)
    return local.new_zeros(k, n, n_features).scatter_(2, index, local.flatten(2))


def contract_locally(local: Tensor, first: Tensor, coefficients: Tensor) -> Tensor:
    """Output jets of a layer with one output from its non-zero features alone.

    Args:
        local: ``(K, n, channels, r)``.
        first: flat index of each channel's first non-zero feature, ``(n, channels)``.
        coefficients: ``(1, n_features)``.

    Returns:
        ``(K, n, 1)``.
    """
    index = _flat_index(first, local.shape[-1])
    chosen = coefficients.gather(1, index.view(1, -1)).view(index.shape)  # (1, n, P r)
    return (local.flatten(2) * chosen).sum(-1, keepdim=True)


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

"""How rough the functions of a layer on knots are: integrals of a derivative's square.

Penalised splines (Eilers and Marx, doi:10.1214/ss/1038425655) weigh differences of neighbouring
coefficients, which estimate the integral taken here exactly (O'Sullivan,
doi:10.1214/ss/1177013525). The integral is one of the function alone: it needs no equal spacing, is
the same in either basis, and does not change under a prolongation.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kanpinn.models.knot_layer import KnotLayer
from kanpinn.splines import extend_padded, pad_breakpoints


class LayerRoughness:
    """``sum_qp int (d^k g_qp / ds^k)^2 ds`` over a layer's functions, as a sum of squares of rows.

    ``g_qp`` is the spline of output q and channel p, the integral is over its knots ``[a, b]``. On
    each of their intervals, Gauss's rule with ``r - k`` nodes is exact. A base branch is left out.

    Args:
        layer: of order ``r``, with fixed or free knots.
        derivative: ``k``, below ``r``.
    """

    def __init__(self, layer: KnotLayer, derivative: int) -> None:
        self.layer, self.derivative = layer, derivative
        nodes, weights = np.polynomial.legendre.leggauss(layer.order - derivative)
        widest, like = max(layer.n_intervals), layer.coefficients.detach()
        self._interval = torch.arange(widest, device=like.device).repeat_interleave(len(nodes))
        self._node = like.new_tensor(nodes).repeat(widest)[:, None]  # (N, 1) on [-1, 1]
        self._weight = like.new_tensor(weights).repeat(widest)[:, None]
        counts = torch.tensor(layer.n_intervals, device=like.device)
        self._inside = self._interval[:, None] < counts  # (N, channels): channels may have fewer
        sizes = [n + layer.order - 1 for n in layer.n_intervals]
        self._channels = torch.arange(len(sizes), device=like.device).repeat_interleave(
            torch.tensor(sizes, device=like.device)
        )  # (n_spline_features,)
        self._fixed = None if layer.settings.free else self._triangles()

    def rows(self) -> Tensor:
        """The rows ``(m,)``, differentiable: linear in the coefficients."""
        coefficients = self.layer.coefficients
        if self._fixed is not None:
            return (coefficients @ self._fixed.mT).flatten()
        padded = self.layer.padded_breakpoints()
        extended = extend_padded(self.layer.order, padded, self.layer.n_intervals)
        features = self._features(self.layer.basis, extended[None])
        return self._contracted(features).flatten()

    def jacobian(self) -> dict[str, Tensor]:
        """Derivatives of the rows with respect to each parameter, ``(m, numel)`` by name."""
        out, like = self.layer.out_width, self.layer.coefficients
        identity = torch.eye(out, dtype=like.dtype, device=like.device)
        if self._fixed is not None:
            return {"coefficients": torch.kron(identity, self._fixed)}
        # One copy of the knots for every node: one reverse pass an output then does for all rows.
        padded = self.layer.padded_breakpoints().detach()
        extended = extend_padded(self.layer.order, padded, self.layer.n_intervals)
        copies = extended.expand(len(self._node), -1, -1).clone().requires_grad_()
        features = self._features(self.layer.copied_basis(padded, copies), copies)
        rows = self._contracted(features)
        slopes = self.layer.knot_slopes().view(*extended.shape, -1)  # (channels, knots, logits)
        knots = []
        for number in range(out):
            (found,) = torch.autograd.grad(rows[number].sum(), copies, retain_graph=True)
            knots.append(torch.einsum("npk,pkl->npl", found, slopes).flatten(0, 1))
        spread = features.detach()[:, None] * self._one_hot()  # (N, channels, n_spline_features)
        columns = torch.kron(identity, spread.flatten(0, 1).contiguous())
        return {"coefficients": columns, "knots_free": torch.cat(knots)}

    def _features(self, basis: object, extended: Tensor) -> Tensor:
        """Weighted derivatives at the nodes, ``(N, n_spline_features)``.

        ``extended`` are the extended knots ``(1 or N, channels, n_max + 2r - 1)``.
        """
        r = self.layer.order
        index = (self._interval + r - 1)[:, None, None].expand(-1, extended.shape[1], 1)
        knots = extended.expand(len(index), -1, -1)
        left, right = (knots.gather(2, index + k)[..., 0] for k in (0, 1))  # (N, channels)
        half = 0.5 * (right - left)
        values = basis.dense(left + half * (1 + self._node), self.derivative)  # type: ignore[attr-defined]
        scale = (half * self._weight).sqrt() * self._inside
        weighted: Tensor = values[self.derivative] * scale[:, self._channels]
        return weighted

    def _contracted(self, features: Tensor) -> Tensor:
        """Rows ``(out, N, channels)`` of features ``(N, n_spline_features)``."""
        terms = self.layer.coefficients[:, None] * features
        return torch.einsum("onf,pf->onp", terms, self._one_hot())

    def _one_hot(self) -> Tensor:
        """Which features belong to a channel, ``(channels, n_spline_features)``."""
        channels = torch.arange(self.layer.in_width, device=self._channels.device)
        return (channels[:, None] == self._channels).to(self.layer.coefficients.dtype)

    def _triangles(self) -> Tensor:
        """The rows of one output as a matrix, reduced to one triangle for every channel."""
        padded = pad_breakpoints(self.layer.knots)
        extended = extend_padded(self.layer.order, padded, self.layer.n_intervals)
        with torch.no_grad():
            features = self._features(self.layer.basis, extended[None])
        parts = [features[:, self._channels == p] for p in range(self.layer.in_width)]
        return torch.block_diag(*(torch.linalg.qr(part, mode="r").R for part in parts))

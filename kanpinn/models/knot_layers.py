"""Layers on knots: B-splines (KAN) and power-ReLU channels (multichannel MLP), of one space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kanpinn.jets import JetSpec
from kanpinn.kernels import LocalFeatures
from kanpinn.models.features import DenseFeatures, Features
from kanpinn.models.knot_layer import KnotLayer
from kanpinn.models.spline_features import (
    SplineFeatures,
    combine,
    contract_locally,
    local_features,
    scatter_features,
)
from kanpinn.splines import (
    Knots,
    PowerReluBasis,
    SplineBasis,
    integers,
    project,
    prolongation,
    relu_prolongation,
    relu_to_spline,
    spline_to_relu,
)


class SplineLayer(KnotLayer):
    """KAN layer: B-splines, at most ``r`` of them non-zero at a point."""

    @property
    def numbers_per_point(self) -> int:
        """The features, and the ``r`` polynomials of degree ``r - 1`` they come from."""
        return self.n_features + self.in_width * self.order * (self.order + 3)

    def _make_basis(self, knots: Knots) -> SplineBasis:
        return SplineBasis(knots)

    def _make_free_basis(self, padded: Tensor) -> SplineBasis:
        return SplineBasis.from_padded(self.order, padded, self.n_intervals)

    def copied_basis(self, padded: Tensor, copies: Tensor) -> SplineBasis:
        """See :meth:`KnotLayer.copied_basis`."""
        return SplineBasis.from_copies(self.order, padded, self.n_intervals, copies)

    def suits_kernel(self, for_jacobian: bool = False) -> bool:
        """A Jacobian with respect to free knots is made from features."""
        return super().suits_kernel() and not (for_jacobian and self.settings.free)

    def recorded(
        self, z: Tensor, spec: JetSpec, features: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Features], dict[str, Tensor]]:
        """See :meth:`Layer.recorded`; the compiled kernel makes no features."""
        if self.needs_features(z, for_jacobian=True):
            return super().recorded(z, spec, features)
        # Nobody asks for the derivatives of a sum over points.
        y = self._by_kernel(z, spec, self.basis, self.coefficients.detach())
        squash = self.settings.squash is not None
        packed = self._packed_pieces(self.basis)
        local = LocalFeatures(z.detach(), squash, packed, spec, self.n_spline_features)
        found: dict[str, Features] = {"coefficients": local}
        if self.settings.base:
            base = self._base_features(self._squashed(z, spec), spec)
            found["base_weights"] = DenseFeatures(base.detach())
            y = y + base @ self.base_weights.mT
        return (y if y.requires_grad else y.requires_grad_()), found, {}

    def forward(self, z: Tensor, spec: JetSpec) -> Tensor:
        """Output jets; one output needs no functions that are zero.

        On a GPU it is made from all of them all the same: the sums of a gradient with respect to
        chosen coefficients have no fixed order there.
        """
        if self.out_width > 1 or z.is_cuda or not self.needs_features(z):
            return super().forward(z, spec)
        z = self._squashed(z, spec)
        y = contract_locally(*self._local_features(z, spec, self.basis), self.coefficients)
        if self.settings.base:
            y = y + self._base_features(z, spec) @ self.base_weights.mT
        return y

    def _basis_features(self, z: Tensor, spec: JetSpec, basis: SplineBasis) -> Tensor:
        return scatter_features(*self._local_features(z, spec, basis), self.n_spline_features)

    def _local_features(
        self, z: Tensor, spec: JetSpec, basis: SplineBasis
    ) -> tuple[Tensor, Tensor]:
        """Feature jets ``(K, n, channels, r)`` that are not zero, and the first one's number."""
        if not self.settings.free and spec.n_components > 1:
            local, first = SplineFeatures.apply(z, basis, spec)
            return local, first
        return local_features(z, spec, basis)

    def _as_splines(self) -> tuple[SplineBasis, Tensor]:
        return self.basis, self.coefficients

    def _transfer(self, fine: Knots) -> Callable[[Tensor], Tensor]:
        exact = prolongation(self.knots, fine)
        return lambda c: exact.apply(c.double())

    def _projection(self, target: Knots) -> Callable[[Tensor], Tensor]:
        return lambda c: project(self.knots, target, c)[0]

    def to_power_relu(self) -> PowerReluLayer:
        """The same layer in the power-ReLU basis, ``W = C A``."""
        layer = PowerReluLayer(self.knots, self.out_width, self.settings)
        return _convert(self, layer, spline_to_relu)


class PowerReluLayer(KnotLayer):
    """Multichannel MLP layer: powers of ReLUs whose biases are the knots."""

    def suits_kernel(self, for_jacobian: bool = False) -> bool:
        """On fixed knots, whose change of basis is a matrix, in double precision.

        Second derivatives of splines lose digits like ``1 / h^2``, those of powers none: in single
        precision that would be seen.
        """
        fixed = not (for_jacobian or self.settings.free)
        return fixed and self.coefficients.dtype is torch.float64 and super().suits_kernel()

    def needs_features(self, z: Tensor, for_jacobian: bool = False) -> bool:
        """Outside the knots, too: powers grow there by their degree, splines by ``1 / h`` to it."""
        return super().needs_features(z, for_jacobian) or self._leaves_knots(z)

    def _leaves_knots(self, z: Tensor) -> bool:
        """Whether any input lies outside; without a squash in front of the basis they may."""
        if self.settings.squash or not z.numel():
            return False
        lower, upper = z[0].detach().aminmax(dim=0)
        ends = [torch.stack([t[k] for t in self._fixed_knots.breakpoints]) for k in (0, -1)]
        return bool(((lower < ends[0]) | (upper > ends[1])).any())

    def _make_basis(self, knots: Knots) -> PowerReluBasis:
        return PowerReluBasis(knots)

    def _make_free_basis(self, padded: Tensor) -> PowerReluBasis:
        return PowerReluBasis.from_padded(self.order, padded, self.n_intervals)

    def copied_basis(self, padded: Tensor, copies: Tensor) -> PowerReluBasis:
        """See :meth:`KnotLayer.copied_basis`."""
        return PowerReluBasis.from_copies(self.order, padded, self.n_intervals, copies)

    def _basis_features(self, z: Tensor, spec: JetSpec, basis: PowerReluBasis) -> Tensor:
        values = basis.dense(z[0], spec.order)  # (D+1, n, n_features)
        counts = tuple(n + self.order - 1 for n in self.n_intervals)
        if len(set(counts)) == 1:
            each = z[..., None].expand(*z.shape, counts[0]).flatten(-2)
        else:
            repeats = integers(counts, z.device)
            each = z.repeat_interleave(repeats, -1, output_size=sum(counts))
        return combine(values, each, spec)

    def _as_splines(self) -> tuple[SplineBasis, Tensor]:
        basis: PowerReluBasis = self.basis
        return basis.splines, basis.spline_coefficients(self.coefficients)

    def _transfer(self, fine: Knots) -> Callable[[Tensor], Tensor]:
        exact = relu_prolongation(self.knots, fine)
        return lambda w: exact.apply(w.double())

    def _projection(self, target: Knots) -> Callable[[Tensor], Tensor]:
        def refit(w: Tensor) -> Tensor:
            spline, _ = project(self.knots, target, relu_to_spline(self.knots, w))
            return spline_to_relu(target, spline)

        return refit

    def to_spline(self) -> SplineLayer:
        """The same layer in the B-spline basis, ``C = W A^-1``.

        Raises:
            ConditioningError: if the change of basis would leave no digits.
        """
        layer = SplineLayer(self.knots, self.out_width, self.settings)
        return _convert(self, layer, relu_to_spline)


def _convert(source: KnotLayer, target: Any, change: Callable[[Knots, Tensor], Tensor]) -> Any:
    with torch.no_grad():
        target.coefficients.copy_(change(source.knots, source.coefficients))
        if source.settings.base:
            target.base_weights.copy_(source.base_weights)
        if source.settings.free:
            target.knots_free.copy_(source.knots_free)
            target.knot_offsets.copy_(source.knot_offsets)
    return target

"""A layer on knots, whatever the basis: its knots, coefficients, base branch and evaluation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from kanpinn.jets import JetSpec
from kanpinn.kernels import KERNEL_SQUASHES, PackedPieces, SplineProduct
from kanpinn.models.layer import Layer, apply_elementwise
from kanpinn.models.spline_features import local_features, scatter_features
from kanpinn.splines import (
    Knots,
    SplineBasis,
    check_points,
    extend_padded,
    integers,
    knots_from_logits,
    logits_from_breakpoints,
    pad_breakpoints,
)


@dataclass(frozen=True)
class KnotLayerSettings:
    """What a layer on knots is made of beside its knots and coefficients.

    Attributes:
        free: whether the interior knots are trained.
        floor: least share of the mean spacing a free interval keeps.
        squash: elementwise map in front of the basis (``"tanh"``), or ``None``.
        base: elementwise function of the base branch (``"silu"``), or ``None``.
    """

    free: bool = False
    floor: float = 0.05
    squash: str | None = None
    base: str | None = None


class KnotLayer(Layer):
    """``y_q = sum_p sum_i C[q,p,i] b_i(s(z_p)) [+ sum_p V[q,p] base(s(z_p))]``, ``s`` the squash.

    Outside its knots every basis continues the end polynomial. The flat feature axis runs over
    channels, and in a channel over ``i = 1-r .. n-1``; with equal counts the coefficients are the
    canonical ``(out, in, i)`` array, flattened. The features of the base branch, one per channel,
    stand behind those of the basis; its weights ``V`` are ``base_weights``, ``(out, in)``.

    Args:
        knots: one breakpoint vector per input channel.
        out_width: number of outputs.
        settings: free knots, squash, base branch.
    """

    def __init__(
        self, knots: Knots, out_width: int, settings: KnotLayerSettings | None = None
    ) -> None:
        super().__init__()
        self.settings = settings or KnotLayerSettings()
        self.in_width, self.out_width = knots.channels, out_width
        self.order, self.n_intervals = knots.order, knots.n_intervals
        self.n_spline_features = knots.n_features
        reference = knots.breakpoints[0]
        self.coefficients = nn.Parameter(reference.new_zeros(out_width, self.n_spline_features))
        if self.settings.base:
            self.base_weights = nn.Parameter(reference.new_zeros(out_width, self.in_width))
        self._fixed_knots = knots
        self._fixed_basis = None if self.settings.free else self._make_basis(knots)
        self._packed: PackedPieces | None = None  # of fixed knots, once the kernel has been asked
        if self.settings.free:
            logits = logits_from_breakpoints(knots, self.settings.floor)
            self.knots_free = nn.Parameter(logits[torch.isfinite(logits)])
            self.knot_offsets: Tensor
            self.register_buffer("knot_offsets", self._rounding_of(knots))

    @abstractmethod
    def _make_basis(self, knots: Knots) -> Any:
        """The basis on fixed knots."""

    @abstractmethod
    def _make_free_basis(self, padded: Tensor) -> Any:
        """The basis on padded breakpoints that carry gradients."""

    @abstractmethod
    def copied_basis(self, padded: Tensor, copies: Tensor) -> Any:
        """The basis with a copy ``(n, channels, n_max + 2r - 1)`` of the extended knots a point."""

    @abstractmethod
    def _basis_features(self, z: Tensor, spec: JetSpec, basis: Any) -> Tensor:
        """Feature jets ``(K, n, n_spline_features)``."""

    @abstractmethod
    def _as_splines(self) -> tuple[SplineBasis, Tensor]:
        """A basis and coefficients ``(out, features)`` of the same functions, for the kernel."""

    @abstractmethod
    def _transfer(self, fine: Knots) -> Callable[[Tensor], Tensor]:
        """Exact map of coefficients to those on finer knots, which may be of another type."""

    @abstractmethod
    def _projection(self, target: Knots) -> Callable[[Tensor], Tensor]:
        """Least-squares map of spline coefficients to those on any knots."""

    @property
    def knots(self) -> Knots:
        """The knots as they stand, without gradient."""
        if not self.settings.free:
            return self._fixed_knots
        padded = self.padded_breakpoints().detach()
        rows = [row[: n + 1].clone() for row, n in zip(padded, self.n_intervals, strict=True)]
        return Knots.from_breakpoints(self.order, rows)

    @property
    def basis(self) -> Any:
        """The basis on the current knots; for free knots it carries their gradient."""
        if not self.settings.free:
            return self._fixed_basis
        return self._make_free_basis(self.padded_breakpoints())

    @property
    def weights(self) -> Tensor:
        """See :attr:`Layer.weights`: coefficients, and behind them the base weights."""
        if not self.settings.base:
            return self.coefficients
        return torch.cat([self.coefficients, self.base_weights], -1)

    @property
    def n_features(self) -> int:
        """Functions of all channels, and the base branch."""
        return self.n_spline_features + (self.in_width if self.settings.base else 0)

    @property
    def fixed_features(self) -> bool:
        """False for free knots: the features then depend on them."""
        return not self.settings.free

    def suits_kernel(self, for_jacobian: bool = False) -> bool:
        """It knows some squashes alone."""
        return self.settings.squash in KERNEL_SQUASHES

    def forward(self, z: Tensor, spec: JetSpec) -> Tensor:
        """Output jets, by the compiled kernel where there is one."""
        if self.needs_features(z):
            return super().forward(z, spec)
        y = self._by_kernel(z, spec, *self._as_splines())
        if self.settings.base:
            y = y + self._base_features(self._squashed(z, spec), spec) @ self.base_weights.mT
        return y

    def _by_kernel(
        self, z: Tensor, spec: JetSpec, basis: SplineBasis, coefficients: Tensor
    ) -> Tensor:
        """Output jets of a spline layer with these coefficients, ``(out, features)``."""
        check_points(z[0], self.in_width, basis.dtype)
        packed = self._packed_pieces(basis)
        y: Tensor = SplineProduct.apply(
            z,
            coefficients,
            packed.pieces.left,
            packed.pieces.shift,
            packed.pieces.tables,
            packed,
            spec,
            self.settings.squash is not None,
            lambda z, weights: recorded_features(self._squashed(z, spec), spec, basis) @ weights.mT,
        )
        return y

    def _packed_pieces(self, basis: SplineBasis) -> PackedPieces:
        """The basis as the kernel takes it, made once where the knots are fixed."""
        if self.settings.free:
            return PackedPieces(basis.pieces(), self.order)
        if self._packed is None:
            with torch.inference_mode(False):  # or training could not use it later
                self._packed = PackedPieces(basis.pieces(), self.order)
        return self._packed

    def features(self, z: Tensor, spec: JetSpec) -> Tensor:
        """Feature jets ``(K, n, n_features)`` of ``z``, ``(K, n, in_width)``."""
        return self._features(z, spec, self.basis)

    def _features(self, z: Tensor, spec: JetSpec, basis: Any) -> Tensor:
        z = self._squashed(z, spec)
        features = self._basis_features(z, spec, basis)
        if self.settings.base:
            features = torch.cat([features, self._base_features(z, spec)], -1)
        return features

    def _squashed(self, z: Tensor, spec: JetSpec) -> Tensor:
        """Input jets as the basis takes them."""
        squash = self.settings.squash
        return apply_elementwise(squash, z, spec) if squash else z

    def _base_features(self, z: Tensor, spec: JetSpec) -> Tensor:
        """Feature jets of the base branch ``(K, n, in_width)`` of squashed inputs."""
        assert self.settings.base
        return apply_elementwise(self.settings.base, z, spec)

    def features_of_copies(self, z: Tensor, spec: JetSpec) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`Layer.features_of_copies`; free knots are copied as extended knots."""
        if not self.settings.free:
            return super().features_of_copies(z, spec)
        padded = self.padded_breakpoints().detach()
        extended = extend_padded(self.order, padded, self.n_intervals)
        copies = extended.expand(z.shape[1], -1, -1).clone().requires_grad_()
        features = self._features(z, spec, self.copied_basis(padded, copies))
        return features, {"knots_free": copies}

    def contracted(self, features: Tensor) -> dict[str, Tensor]:
        """See :meth:`Layer.contracted`."""
        if not self.settings.base:
            return super().contracted(features)
        return {
            "coefficients": features[..., : self.n_spline_features],
            "base_weights": features[..., self.n_spline_features :],
        }

    def columns(self, adjoint: Tensor, copies: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Layer.columns`."""
        if not self.settings.free:
            return {}
        return {"knots_free": copies["knots_free"].flatten(1) @ self.knot_slopes()}

    def knot_slopes(self) -> Tensor:
        """Derivatives of all extended knots with respect to the logits, ``(knots, logits)``."""
        with torch.enable_grad():
            padded = self.padded_breakpoints()
            flat = extend_padded(self.order, padded, self.n_intervals).flatten()
            units = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
            return torch.autograd.grad(flat, self.knots_free, units, is_grads_batched=True)[0]

    def refined(self, fine: Knots) -> Self:
        """The same function on finer, nested knots, whose type the layer takes.

        Coefficients are computed in float64 and rounded last.

        Raises:
            NestingError: if the knots do not nest.
        """
        return self._on_knots(fine, self._transfer(fine))

    def refitted(self, knots: Knots) -> Self:
        """The least-squares fit to this layer's functions on any knots over the same intervals."""
        return self._on_knots(knots, self._projection(knots))

    def _on_knots(self, knots: Knots, transfer: Callable[[Tensor], Tensor]) -> Self:
        layer = type(self)(knots, self.out_width, self.settings)
        with torch.no_grad():
            layer.coefficients.copy_(transfer(self.coefficients))
            if self.settings.base:
                layer.base_weights.copy_(self.base_weights)
        return layer

    def padded_breakpoints(self) -> Tensor:
        """Free breakpoints ``(channels, n_max + 1)``, ``+inf`` behind each channel's last."""
        return self._knots_of_logits() + self.knot_offsets

    def _rounding_of(self, knots: Knots) -> Tensor:
        """What the knots are off those of their logits, ``(channels, n_max + 1)``, by round-off.

        Added to them, it gives the knots bit for bit: fine ones then hold the coarse ones exactly,
        where a kink moved by round-off would be magnified from layer to layer.
        """
        given, found = pad_breakpoints(knots), self._knots_of_logits().detach()
        return torch.where(torch.isfinite(given), given - found, 0.0)

    def _logit_places(self) -> tuple[int, ...]:
        """Where the logits of all channels' intervals are, and the padding where there is none."""
        counts, end, start = self.n_intervals, sum(self.n_intervals), 0
        places: list[int] = []
        for count in counts:
            places += [*range(start, start + count), *[end] * (max(counts) - count)]
            start += count
        return tuple(places)

    def _knots_of_logits(self) -> Tensor:
        # A padding of -inf stands behind the last logit: no mask, whose ones a GPU would count.
        padded = torch.cat([self.knots_free, self.knots_free.new_full((1,), -torch.inf)])
        index = integers(self._logit_places(), self.knots_free.device)
        logits = padded[index].view(self.in_width, -1)
        ends = [(t[0], t[-1]) for t in self._fixed_knots.breakpoints]
        lower, upper = (torch.stack(side)[:, None] for side in zip(*ends, strict=True))
        return knots_from_logits(logits, lower, upper, self.settings.floor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        like = self.coefficients
        knots = self._fixed_knots
        knots = knots.widened() if like.dtype is torch.float64 else knots.to(dtype=like.dtype)
        self._fixed_knots = knots.to(device=like.device)
        if not self.settings.free:
            self._fixed_basis = self._make_basis(self._fixed_knots)
        self._packed = None
        return self

    def extra_repr(self) -> str:
        """Widths, order and intervals."""
        counts = sorted(set(self.n_intervals))
        kind = "free" if self.settings.free else "fixed"
        return (
            f"{self.in_width} -> {self.out_width}, order={self.order}, "
            f"intervals={counts[0] if len(counts) == 1 else self.n_intervals}, {kind} knots"
        )


def recorded_features(z: Tensor, spec: JetSpec, basis: SplineBasis) -> Tensor:
    """Feature jets ``(K, n, n_features)`` of squashed inputs, by recorded operations."""
    return scatter_features(*local_features(z, spec, basis), basis.n_features)

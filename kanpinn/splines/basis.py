"""B-spline bases by local evaluation: at each point only the ``r`` functions that are not zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kanpinn.errors import DomainError
from kanpinn.splines.knots import Knots, check_padded, extend_padded, integers, pad_breakpoints
from kanpinn.splines.local_polynomials import (
    PolynomialJets,
    differentiate,
    piece_tables,
    uniform_table,
)


@dataclass(frozen=True)
class Pieces:
    """The basis as polynomials, for whoever evaluates it point by point.

    On interval ``j`` of channel ``p`` the local coordinate is
    ``v = (x - left[p, j]) * scale[p] - shift[p, j]``, and function ``l`` of those not zero there
    is ``sum_k tables[k, l, p, j] v^k``.

    Attributes:
        uniform: whether all intervals of a channel are alike; ``shift`` and ``tables`` then hold
            one interval of one channel, and the interval is ``floor((x - left[p, 0]) scale / 2)``.
        left: ``(channels, n_max)``, ``+inf`` behind each channel's last.
        scale: ``(channels,)``.
        shift: ``(channels, n_max)`` or ``(1, 1)``.
        tables: ``(r, r, channels, n_max)`` or ``(r, r, 1, 1)``.
        last: number of each channel's last interval, ``(channels,)``.
        first: flat number of each channel's first function, ``(channels,)``.
    """

    uniform: bool
    left: Tensor
    scale: Tensor
    shift: Tensor
    tables: Tensor
    last: Tensor
    first: Tensor


class SplineBasis:
    """B-splines ``b_i``, ``i = 1-r .. n-1``, of every channel of a layer, with derivatives.

    Outside ``[a, b]`` the polynomial of the end interval is continued; this is the rule
    everywhere, and the one that a refinement of the knots leaves unchanged. The right end belongs
    to the last interval. At an interior knot the piece to the right counts, up to round-off.
    Derivatives of order ``r`` and above are exactly zero.

    Results are differentiable by autograd in ``x``, to any order, and, for a basis made by
    :meth:`from_padded`, in the breakpoints (the interval of a point is held fixed).

    Args:
        knots: the knots; tables are computed once and carry no gradient.
    """

    def __init__(self, knots: Knots) -> None:
        self._knots: Knots | None = knots
        self._set_up(knots.order, knots.n_intervals)
        self._pieces: _UniformPieces | _GeneralPieces | _CopiedPieces
        if knots.uniform:
            self._pieces = _UniformPieces(knots)
        else:
            self._pieces = _GeneralPieces(knots.order, pad_breakpoints(knots), knots.n_intervals)
        self._features = integers(tuple(knots.offsets), knots.device)

    @classmethod
    def from_padded(
        cls, order: int, breakpoints: Tensor, n_intervals: tuple[int, ...]
    ) -> SplineBasis:
        """A basis that is differentiable in its breakpoints (free knots).

        Args:
            order: ``r``.
            breakpoints: ``(channels, n_max + 1)``, increasing, ``+inf`` behind each channel's last.
            n_intervals: ``n`` of each channel.

        Raises:
            KnotError: if order, shape and counts do not fit together.
        """
        check_padded(order, breakpoints, n_intervals)
        basis = cls.__new__(cls)
        basis._knots = None
        basis._set_up(order, n_intervals)
        basis._pieces = _GeneralPieces(order, breakpoints, n_intervals)
        starts = [sum(n + order - 1 for n in n_intervals[:p]) for p in range(len(n_intervals))]
        basis._features = integers(tuple(starts), breakpoints.device)
        return basis

    @classmethod
    def from_copies(
        cls, order: int, breakpoints: Tensor, n_intervals: tuple[int, ...], copies: Tensor
    ) -> SplineBasis:
        """A basis with its own copy of the extended knots at each of ``N`` points.

        One reverse pass then gives every point's own derivatives with respect to the knots.

        Args:
            order: ``r``.
            breakpoints: as in :meth:`from_padded`; they decide on the intervals.
            n_intervals: ``n`` of each channel.
            copies: extended knots ``(N, channels, n_max + 2r - 1)``, see :func:`extend_padded`.
        """
        basis = cls.from_padded(order, breakpoints.detach(), n_intervals)
        assert isinstance(basis._pieces, _GeneralPieces)
        basis._pieces = _CopiedPieces(basis._pieces, copies)
        return basis

    def _set_up(self, order: int, n_intervals: Sequence[int]) -> None:
        self.order = order
        self.n_intervals = tuple(n_intervals)
        self.n_features = sum(n + order - 1 for n in n_intervals)

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return len(self.n_intervals)

    def pieces(self) -> Pieces:
        """The basis as polynomials on its intervals; not for copies of the knots."""
        assert not isinstance(self._pieces, _CopiedPieces)
        return self._pieces.pieces(self._features, self.n_intervals)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the tables."""
        return self._pieces.dtype

    @property
    def device(self) -> torch.device:
        """Device of the tables."""
        return self._features.device

    def local(self, x: Tensor, derivatives: int) -> tuple[Tensor, Tensor]:
        """The ``r`` functions of each point and channel that are not zero, with derivatives.

        Args:
            x: points ``(N, channels)``.
            derivatives: highest derivative ``D >= 0``.

        Returns:
            The flat index of the first of the functions, ``(N, channels)``, and the values
            ``d^m b / dx^m``, ``(D + 1, N, channels, r)``. In memory the ``r`` axis of the values
            lies before the points, which keeps every operation on them contiguous.

        Raises:
            DomainError: if ``x`` has another shape or floating-point type than the basis.
        """
        check_points(x, self.channels, self.dtype)
        interval, values = self._pieces.evaluate(x, derivatives)
        return interval + self._features, values.permute(0, 2, 3, 1)

    def dense(self, x: Tensor, derivatives: int) -> Tensor:
        """All functions, ``(D + 1, N, n_features)``: for design matrices, tests and plots.

        Args:
            x: points ``(N, channels)``.
            derivatives: highest derivative ``D >= 0``.
        """
        first, values = self.local(x, derivatives)
        steps = torch.arange(self.order, device=first.device)
        index = (first[..., None] + steps).reshape(1, len(x), -1)  # (1, N, channels * r)
        zeros = values.new_zeros(derivatives + 1, len(x), self.n_features)
        return zeros.scatter(2, index.expand(derivatives + 1, -1, -1), values.flatten(2))

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> SplineBasis:
        """The same basis in another floating-point type or on another device."""
        if self._knots is not None:
            return SplineBasis(self._knots.to(dtype=dtype, device=device))
        assert isinstance(self._pieces, _GeneralPieces)
        moved = self._pieces.breakpoints.to(dtype=dtype or self.dtype, device=device or self.device)
        return SplineBasis.from_padded(self.order, moved, self.n_intervals)

    def __repr__(self) -> str:
        kind = "free or padded knots" if self._knots is None else repr(self._knots)
        return f"SplineBasis({kind}, n_features={self.n_features})"


def check_points(x: Tensor, channels: int, dtype: torch.dtype) -> None:
    """Check shape and type of points ``(N, channels)``.

    Raises:
        DomainError: if they do not fit the basis.
    """
    if x.dim() != 2 or x.shape[1] != channels or x.dtype != dtype:
        raise DomainError(
            f"points have shape {tuple(x.shape)} and type {x.dtype}, the basis needs "
            f"(N, {channels}) and {dtype}"
        )


class _UniformPieces:
    """Equally spaced knots: one table for all intervals and channels, and no search.

    The interval is ``j = floor((x - a) / h)``; all functions and derivatives are then one matrix
    product with the powers of ``u = 2 (x - t_j) / h - 1``. Round-off may put a point beside a knot
    on the other side of it, where the neighbour's polynomial is as good.
    """

    def __init__(self, knots: Knots) -> None:
        ends = [(t[0].item(), t[-1].item(), len(t) - 1) for t in knots.breakpoints]
        # Where all channels agree, one number does for all: no broadcasting along the channels.
        ends = ends[:1] if len(set(ends)) == 1 else ends
        like = knots.breakpoints[0]
        self.lower = like.new_tensor([a for a, _, _ in ends])
        self.scale = like.new_tensor([2 * n / (b - a) for a, b, n in ends])  # 2 / h
        self.last = like.new_tensor([n - 1.0 for _, _, n in ends])
        self.breakpoints = pad_breakpoints(knots)
        self.left = self.breakpoints[: len(self.scale)].flatten()
        self.rows = torch.arange(len(self.scale), device=like.device) * (max(knots.n_intervals) + 1)
        self.order, self.dtype = knots.order, like.dtype
        self.table = uniform_table(knots.order)
        self._products: dict[int, Tensor] = {}

    def pieces(self, first: Tensor, n_intervals: Sequence[int]) -> Pieces:
        """See :meth:`SplineBasis.pieces`."""
        return Pieces(
            uniform=True,
            left=self.breakpoints[:, :-1],
            scale=self.scale.expand(len(first)),
            shift=self.scale.new_ones(1, 1),
            tables=self.table.T.to(self.scale)[..., None, None],
            last=integers(tuple(n_intervals), first.device) - 1,
            first=first,
        )

    def _product(self, derivatives: int) -> Tensor:
        """Matrix ``((D + 1) r, r)`` from powers of ``u`` to all functions and derivatives."""
        if derivatives not in self._products:
            with torch.inference_mode(False):  # or training could not use it later
                rows = [differentiate(self.table, m) for m in range(derivatives + 1)]
                if len(self.scale) == 1:
                    rows = [row * self.scale.item() ** m for m, row in enumerate(rows)]
                self._products[derivatives] = torch.cat(rows).to(self.scale)
        return self._products[derivatives]

    def evaluate(self, x: Tensor, derivatives: int) -> tuple[Tensor, Tensor]:
        """Interval of each point ``(N, channels)``, values ``(D + 1, r, N, channels)``."""
        steps = (x.detach() - self.lower).mul_(0.5 * self.scale).floor_()
        # Clamped before the conversion, where large numbers overflow, and after it, where NaN does.
        j = steps.clamp_(min=0.0).minimum(self.last).long().clamp_(min=0)
        # The difference to the nearby knot is exact; one to a far end would lose digits.
        u = (x - self.left[j + self.rows]) * self.scale - 1.0
        powers = [torch.ones_like(u), u]
        for _ in range(2, self.order):
            powers.append(powers[-1] * u)
        stacked = torch.stack(powers).flatten(1)  # (r, N * channels)
        values = (self._product(derivatives) @ stacked).view(derivatives + 1, self.order, *x.shape)
        if derivatives and len(self.scale) > 1:
            scales = torch.stack([self.scale**m for m in range(derivatives + 1)])
            values = values * scales[:, None, None, :]
        return j, values


class _GeneralPieces:
    """Any knots: a search for the interval, a look-up of its table, a Horner scheme."""

    def __init__(self, order: int, breakpoints: Tensor, n_intervals: Sequence[int]) -> None:
        self.order, self.dtype, self.breakpoints = order, breakpoints.dtype, breakpoints
        device = breakpoints.device
        extended = extend_padded(order, breakpoints, n_intervals)
        n_max = breakpoints.shape[1] - 1
        start, stop = extended[:, order - 1 : -order], extended[:, order : 1 - order]
        # (channels, n_max) each; none is made from another, so that a point's value has partial
        # derivatives with respect to them and the tables.
        self.left, self.half = start.clone(), 0.5 * (stop - start)
        # Coefficients in powers of x - mid, so that derivatives need no scaling afterwards.
        exponents = torch.arange(order, device=device, dtype=self.dtype)
        width = 0.5 * (stop - start)[..., None, None]
        tables = piece_tables(order, extended) / width**exponents
        # (powers, functions, channels, n_max): a look-up then leaves points along the last axis.
        self.tables = tables.permute(3, 2, 0, 1).contiguous()
        self.last = integers(tuple(n_intervals), device) - 1  # (channels,)
        self.rows = torch.arange(len(n_intervals), device=device) * n_max
        # Interior knots only: the count of those not above x is the interval, clamped by itself.
        ends = torch.arange(1, n_max, device=device) > self.last[:, None]
        self.interior = breakpoints.detach()[:, 1:-1].masked_fill(ends, torch.inf).contiguous()

    def pieces(self, first: Tensor, n_intervals: Sequence[int]) -> Pieces:
        """See :meth:`SplineBasis.pieces`."""
        return Pieces(
            uniform=False,
            left=self.left,
            scale=self.left.new_ones(len(first)),
            shift=self.half,
            tables=self.tables,
            last=self.last,
            first=first,
        )

    def evaluate(self, x: Tensor, derivatives: int) -> tuple[Tensor, Tensor]:
        """Interval of each point ``(N, channels)``, values ``(D + 1, r, N, channels)``."""
        j = self.interval(x)
        row = (j + self.rows).flatten()  # (N * channels,)
        # First the nearby knot, exactly; a rounded midpoint would cost digits where h is small.
        v = (x.flatten() - self.left.flatten()[row]) - self.half.flatten()[row]
        r = self.order
        tables = self.tables.view(r * r, -1)
        c = tables.gather(1, row.expand(r * r, -1)).view(r, r, -1)
        values: Tensor = PolynomialJets.apply(v, c, derivatives)  # (D + 1, r, N * channels)
        return j, values.view(derivatives + 1, r, *x.shape)

    def interval(self, x: Tensor) -> Tensor:
        """Interval of each point ``(N, channels)``."""
        across = x.detach().T.contiguous()  # (channels, N)
        j = torch.searchsorted(self.interior, across, right=True).T
        return torch.minimum(j, self.last)  # NaN is sorted behind everything


class _CopiedPieces:
    """Knots of which every point has its own copy: its interval's table is made point by point."""

    def __init__(self, shared: _GeneralPieces, copies: Tensor) -> None:
        self.order, self.dtype = shared.order, shared.dtype
        self.shared, self.copies = shared, copies

    def evaluate(self, x: Tensor, derivatives: int) -> tuple[Tensor, Tensor]:
        """Interval of each point ``(N, channels)``, values ``(D + 1, r, N, channels)``."""
        j, r = self.shared.interval(x), self.order
        index = j[..., None] + torch.arange(2 * r, device=x.device)  # knots t_{j-r+1} .. t_{j+r}
        window = self.copies.gather(2, index).flatten(0, 1)  # (N * channels, 2r)
        half = 0.5 * (window[:, r] - window[:, r - 1])
        exponents = torch.arange(r, device=x.device, dtype=self.dtype)
        tables = piece_tables(r, window)[:, 0] / half[:, None, None] ** exponents
        v = (x.flatten() - window[:, r - 1]) - half
        c = tables.permute(2, 1, 0).contiguous()  # (powers, functions, N * channels)
        values: Tensor = PolynomialJets.apply(v, c, derivatives)
        return j, values.view(derivatives + 1, r, *x.shape)

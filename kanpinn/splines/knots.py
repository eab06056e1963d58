"""Knots of a layer: one breakpoint vector per input channel, extended beyond the ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kanpinn.errors import KnotError

MIN_ORDER, MAX_ORDER = 2, 8

# Spacings that differ by no more than this many rounding errors of the ends count as equal.
# Midpoint refinement adds half a rounding error a level, so equal spacing survives it.
_UNIFORM_ROUNDING_ERRORS = 16


@dataclass(frozen=True, eq=False)
class Knots:
    """Knots of one layer: one breakpoint vector per input channel.

    Channel ``p`` has breakpoints ``t_0 = a < ... < t_n = b``, extended by ``r - 1`` exterior knots
    on each side, and ``n + r - 1`` B-splines of order ``r`` (degree ``r - 1``), with indices
    ``i = 1-r .. n-1`` and supports ``[t_i, t_{i+r}]``. Counts may differ between channels. The flat
    feature axis runs over the channels, and in a channel over ``i``.

    Args:
        order: ``r``, 2 to 8.
        breakpoints: per channel ``(n + 1,)``, finite and strictly increasing.
        uniform: whether every channel is equally spaced, which enables the shared table.

    Raises:
        KnotError: if the order or the breakpoints are not admissible.
    """

    order: int
    breakpoints: tuple[Tensor, ...]
    uniform: bool

    def __post_init__(self) -> None:
        owned = tuple(t.detach().clone() for t in self.breakpoints)
        object.__setattr__(self, "breakpoints", owned)
        _check_order(self.order)
        object.__setattr__(self, "order", int(self.order))
        if not owned:
            raise KnotError("knots need at least one channel, found none")
        for channel, t in enumerate(owned):
            _check_breakpoints(t, channel)
            if (t.dtype, t.device) != (owned[0].dtype, owned[0].device):
                raise KnotError(
                    f"breakpoints of channel {channel} are {t.dtype} on {t.device}, those of "
                    f"channel 0 are {owned[0].dtype} on {owned[0].device}; they must agree"
                )
            if self.uniform and not _is_uniform(t):
                raise KnotError(f"breakpoints of channel {channel} are not equally spaced")

    @classmethod
    def uniform_grid(
        cls,
        order: int,
        intervals: int | Sequence[int],
        channels: int,
        lower: float = -1.0,
        upper: float = 1.0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> Knots:
        """Equally spaced knots ``t_j = a + (b - a) j / n``.

        Args:
            order: ``r``, 2 to 8.
            intervals: ``n``, for all channels or one for each.
            channels: number of input channels.
            lower: ``a``.
            upper: ``b``.
            dtype: floating-point type of the breakpoints.
            device: where they live.

        Raises:
            KnotError: if a count is below 1, counts and channels disagree, or ``a >= b``.
        """
        counts: list[Any] = (
            list(intervals) if isinstance(intervals, Sequence) else [intervals] * channels
        )
        if len(counts) != channels:
            raise KnotError(f"{len(counts)} interval counts were given for {channels} channels")
        for channel, n in enumerate(counts):
            if not isinstance(n, Integral) or n < 1:
                raise KnotError(f"channel {channel} has {n} intervals, an integer >= 1 is needed")
        if not (np.isfinite(lower) and np.isfinite(upper) and lower < upper):
            raise KnotError(f"knots need finite ends a < b, found a = {lower}, b = {upper}")
        grids = [torch.from_numpy(np.linspace(lower, upper, n + 1)) for n in counts]
        return cls(order, tuple(t.to(dtype=dtype, device=device) for t in grids), uniform=True)

    @classmethod
    def from_breakpoints(cls, order: int, breakpoints: Sequence[Any]) -> Knots:
        """Knots from one array of breakpoints per channel, each ``(n + 1,)``.

        Floating-point tensors keep their type and device; everything else becomes float64. Equal
        spacing is detected to round-off.

        Raises:
            KnotError: if breakpoints are unsorted, repeated, not finite, or fewer than two.
        """
        tensors = tuple(_as_floating(t, channel) for channel, t in enumerate(breakpoints))
        for channel, t in enumerate(tensors):
            _check_breakpoints(t, channel)
        return cls(order, tensors, uniform=all(_is_uniform(t) for t in tensors))

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return len(self.breakpoints)

    @property
    def n_intervals(self) -> tuple[int, ...]:
        """Intervals ``n`` of each channel."""
        return tuple(len(t) - 1 for t in self.breakpoints)

    @property
    def n_functions(self) -> tuple[int, ...]:
        """Functions ``n + r - 1`` of each channel."""
        return tuple(n + self.order - 1 for n in self.n_intervals)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Start of each channel in the flat feature axis."""
        return tuple(int(k) for k in np.cumsum([0, *self.n_functions[:-1]]))

    @property
    def n_features(self) -> int:
        """Length of the flat feature axis: the functions of all channels."""
        return sum(self.n_functions)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the breakpoints."""
        return self.breakpoints[0].dtype

    @property
    def device(self) -> torch.device:
        """Device of the breakpoints."""
        return self.breakpoints[0].device

    def channel(self, channel: int) -> Knots:
        """The knots of one channel, as knots with a single channel."""
        return Knots(
            self.order, (self.breakpoints[channel],), _is_uniform(self.breakpoints[channel])
        )

    def extended(self, channel: int) -> Tensor:
        """All knots ``t_{1-r} .. t_{n+r-1}`` of a channel, ``(n + 2r - 1,)``.

        The ``r - 1`` exterior knots on each side continue the end spacing.
        """
        t = self.breakpoints[channel]
        if not self.uniform:
            return extend_padded(self.order, t[None], (len(t) - 1,))[0]
        # The mean spacing is exact where the difference of two rounded knots is not.
        steps = torch.arange(1, self.order, dtype=t.dtype, device=t.device)
        steps = steps * ((t[-1] - t[0]) / (len(t) - 1))
        return torch.cat([t[0] - steps.flip(0), t, t[-1] + steps])

    def greville(self) -> Tensor:
        """Greville abscissae ``(t_{i+1} + ... + t_{i+r-1}) / (r - 1)``, ``(n_features,)``.

        Coefficients equal to them reproduce ``x``. The outer ones lie outside ``[a, b]``.
        """
        windows = [
            self.extended(channel)[1:-1].unfold(0, self.order - 1, 1).mean(-1)
            for channel in range(self.channels)
        ]
        return torch.cat(windows)

    def refined(self, channels: Sequence[bool] | None = None) -> Knots:
        """Dyadic refinement: the midpoint of every interval, of all or the marked channels.

        Coarse breakpoints are kept bit for bit, and equal spacing stays equal.

        Raises:
            KnotError: if the marks do not match the channels, or an interval is too short.
        """
        marks = [True] * self.channels if channels is None else list(channels)
        if len(marks) != self.channels:
            raise KnotError(f"{len(marks)} marks were given for {self.channels} channels")
        fine = [
            _with_midpoints(t) if m else t for t, m in zip(self.breakpoints, marks, strict=True)
        ]
        return Knots(self.order, tuple(fine), self.uniform)

    def bisected(self, intervals: Sequence[Sequence[int]]) -> Knots:
        """The midpoints of some intervals as further knots, one sequence of numbers per channel.

        Raises:
            KnotError: if the sequences do not match the channels, or an interval is too short.
        """
        pairs = zip(self.breakpoints, intervals, strict=False)
        return self.inserted(
            [[float(t[j] + 0.5 * (t[j + 1] - t[j])) for j in row] for t, row in pairs]
        )

    def inserted(self, points: Sequence[Sequence[float]]) -> Knots:
        """Knots with further interior knots, one sequence of points per channel.

        Raises:
            KnotError: if the sequences do not match the channels, or a point lies outside
                ``(a, b)``, is not finite, or coincides with a knot or with another point.
        """
        if len(points) != self.channels:
            raise KnotError(f"points of {len(points)} channels were given for {self.channels}")
        fine = []
        for channel, (t, new) in enumerate(zip(self.breakpoints, points, strict=True)):
            extra = torch.as_tensor(new, dtype=t.dtype, device=t.device).reshape(-1)
            for value in extra.tolist():
                if not t[0].item() < value < t[-1].item():
                    raise KnotError(
                        f"new knot {value!r} of channel {channel} is not inside the interval "
                        f"({t[0].item()}, {t[-1].item()})"
                    )
            fine.append(torch.cat([t, extra]).sort().values)
        return Knots.from_breakpoints(self.order, fine)

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Knots:
        """The same knots in another floating-point type or on another device.

        Knots that were equally spaced to round-off of a coarser type need not be so to that of a
        finer one: they are then knots as any others.

        Raises:
            KnotError: if knots coincide in the new type.
        """
        moved = tuple(t.to(dtype=dtype or t.dtype, device=device) for t in self.breakpoints)
        finer = dtype is not None and torch.finfo(dtype).eps < torch.finfo(self.dtype).eps
        uniform = self.uniform and (not finer or all(_is_uniform(t) for t in moved))
        return Knots(self.order, moved, uniform)

    def widened(self) -> Knots:
        """The knots in float64 that these are the rounding of.

        Equal spacing where that, rounded, is the same bit for bit: float32 has no thirds. Other
        breakpoints keep their values.
        """
        if self.dtype is torch.float64:
            return self
        return Knots.from_breakpoints(self.order, [_widened(t) for t in self.breakpoints])

    def __repr__(self) -> str:
        counts = sorted(set(self.n_intervals))
        shown = str(counts[0]) if len(counts) == 1 else f"{counts[0]}..{counts[-1]}"
        ends = {(t[0].item(), t[-1].item()) for t in self.breakpoints}
        where = "on [{:g}, {:g}]".format(*ends.pop()) if len(ends) == 1 else "on several intervals"
        kind = "uniform" if self.uniform else "non-uniform"
        return (
            f"Knots(order={self.order}, intervals={shown}, channels={self.channels}, {where}, "
            f"{kind})"
        )


@cache
def integers(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Whole numbers as a tensor, made once: a copy to a GPU is one more that the host waits for.

    It stays for good, since recordings of evaluations may read it, and must not be written to.
    """
    with torch.inference_mode(False):  # or training could not use it later
        return torch.tensor(values, device=device)


def pad_breakpoints(knots: Knots) -> Tensor:
    """Breakpoints as one array ``(channels, n_max + 1)``, ``+inf`` behind each channel's last."""
    padded = knots.breakpoints[0].new_full((knots.channels, max(knots.n_intervals) + 1), np.inf)
    for row, t in zip(padded, knots.breakpoints, strict=True):
        row[: len(t)] = t
    return padded


def extend_padded(order: int, breakpoints: Tensor, n_intervals: Sequence[int]) -> Tensor:
    """Extend padded breakpoints on both sides with the spacings at the ends; differentiable.

    Args:
        order: ``r``.
        breakpoints: ``(channels, n_max + 1)``; what stands behind a channel's last is not read.
        n_intervals: ``n`` of each channel.

    Returns:
        ``(channels, n_max + 2r - 1)``, knot ``t_i`` at column ``i + r - 1``. Columns behind
        ``t_{n+r-1}`` go on with the end spacing, so that padding yields finite numbers.
    """
    device = breakpoints.device
    last = integers(tuple(n_intervals), device)[:, None]  # (channels, 1)
    index = torch.arange(1 - order, breakpoints.shape[1] + order - 1, device=device)[None]
    inside = torch.minimum(index.clamp(min=0), last)  # (channels, n_max + 2r - 1)
    first_step = breakpoints[:, 1:2] - breakpoints[:, :1]
    last_step = breakpoints.gather(1, last) - breakpoints.gather(1, last - 1)
    step = torch.where(index < 0, first_step, last_step)
    return breakpoints.gather(1, inside) + (index - inside) * step


def check_padded(order: int, breakpoints: Tensor, n_intervals: Sequence[int]) -> None:
    """Check the shape of padded breakpoints; their values stay on the device, unread.

    Raises:
        KnotError: if order, shape and counts do not fit together.
    """
    _check_order(order)
    expected = (len(n_intervals), max(n_intervals, default=0) + 1)
    if tuple(breakpoints.shape) != expected or min(n_intervals, default=0) < 1:
        raise KnotError(
            f"padded breakpoints have shape {tuple(breakpoints.shape)}, interval counts "
            f"{tuple(n_intervals)} need {expected} and at least 1 interval a channel"
        )


def _check_order(order: int) -> None:
    if isinstance(order, bool) or not isinstance(order, Integral):
        raise KnotError(f"spline order must be an integer, found {order!r}")
    if not MIN_ORDER <= order <= MAX_ORDER:
        raise KnotError(f"spline order {order} is not allowed: {MIN_ORDER} to {MAX_ORDER}")


def _as_floating(values: Any, channel: int) -> Tensor:
    if isinstance(values, Tensor) and values.is_floating_point():
        return values.detach()
    try:
        return torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise KnotError(f"breakpoints of channel {channel} are not numbers: {error}") from error


def _check_breakpoints(t: Tensor, channel: int) -> None:
    where = f"breakpoints of channel {channel}"
    if not t.is_floating_point():
        raise KnotError(f"{where} have type {t.dtype}, a floating-point type is needed")
    if t.dim() != 1 or len(t) < 2:
        raise KnotError(f"{where} have shape {tuple(t.shape)}, (n + 1,) with n >= 1 is needed")
    values = t.double().cpu().numpy()
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise KnotError(f"{where} are not finite: {values[at]} at position {at}")
    steps = np.diff(values)
    if not (steps > 0).all():
        at = int(np.flatnonzero(~(steps > 0))[0])
        what = "repeated" if steps[at] == 0 else "not increasing"
        raise KnotError(
            f"{where} are {what}: {float(values[at])!r}, {float(values[at + 1])!r} "
            f"at positions {at}, {at + 1}"
        )


def _is_uniform(t: Tensor) -> bool:
    values = t.double().cpu().numpy()
    even = np.linspace(values[0], values[-1], len(values))
    scale = max(abs(values[0]), abs(values[-1]))
    tolerance = _UNIFORM_ROUNDING_ERRORS * torch.finfo(t.dtype).eps * scale
    # A tolerance near the spacing itself would call anything equally spaced.
    spacing = (values[-1] - values[0]) / (len(values) - 1)
    return bool(np.abs(values - even).max() <= min(tolerance, 1e-3 * spacing))


def _widened(t: Tensor) -> Tensor:
    even = torch.from_numpy(np.linspace(float(t[0]), float(t[-1]), len(t))).to(t.device)
    return even if torch.equal(even.to(t.dtype), t) else t.double()


def _with_midpoints(t: Tensor) -> Tensor:
    fine = t.new_empty(2 * len(t) - 1)
    fine[::2] = t
    fine[1::2] = t[:-1] + 0.5 * (t[1:] - t[:-1])
    return fine

"""Exact transfer of spline coefficients to nested knots, and projection where knots do not nest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kanpinn.errors import KnotError, NestingError
from kanpinn.splines.basis import SplineBasis
from kanpinn.splines.knots import Knots

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Prolongation:
    """Exact map of coefficients on coarse knots to those of the same function on fine knots.

    ``u_f[j] = sum_s weights[j, s] u_c[start[j] + s]``, ``s = 0 .. r-1``: the banded form of
    ``u_f = u_c P``, where a row of ``P`` expands a coarse function in fine ones, ``b_c = P b_f``.

    Attributes:
        start: flat coarse feature of each fine feature's first weight, ``(n_fine_features,)``.
        weights: ``(n_fine_features, r)``, float64.
        n_coarse_features: length of the coarse flat feature axis.
    """

    start: Tensor
    weights: Tensor
    n_coarse_features: int

    @property
    def n_fine_features(self) -> int:
        """Length of the fine flat feature axis."""
        return len(self.start)

    def apply(self, coefficients: Tensor) -> Tensor:
        """Fine coefficients ``(..., n_fine_features)`` of coarse ``(..., n_coarse_features)``.

        Runs on the device and in the type of the coefficients; differentiable.

        Raises:
            NestingError: if the coefficients do not belong to the coarse knots.
        """
        _check_length(coefficients, self.n_coarse_features, "coarse")
        index, weights = self._bands(coefficients)
        return (coefficients[..., index] * weights).sum(-1)

    def restrict(self, gradients: Tensor) -> Tensor:
        """Gradients ``P g_f``, ``(..., n_coarse_features)``, of ``(..., n_fine_features)``.

        The transpose of :meth:`apply`: the gradient a loss of the fine coefficients has with
        respect to the coarse ones.
        """
        _check_length(gradients, self.n_fine_features, "fine")
        index, weights = self._bands(gradients)
        coarse = gradients.new_zeros(*gradients.shape[:-1], self.n_coarse_features)
        return coarse.index_add(-1, index.flatten(), (gradients[..., None] * weights).flatten(-2))

    def dense(self) -> Tensor:
        """``P`` as a matrix ``(n_coarse_features, n_fine_features)``, float64."""
        identity = torch.eye(self.n_fine_features, dtype=self.weights.dtype)
        return self.restrict(identity.to(self.weights.device)).T

    def to(self, device: torch.device | str) -> Prolongation:
        """The same map held on another device."""
        return Prolongation(self.start.to(device), self.weights.to(device), self.n_coarse_features)

    def _bands(self, like: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.arange(self.weights.shape[1], device=like.device)
        return self.start.to(like.device)[:, None] + steps, self.weights.to(like)


def prolongation(coarse: Knots, fine: Knots, tolerance: float | None = None) -> Prolongation:
    """The exact map of spline coefficients from coarse knots to fine ones that contain them.

    The coefficient of a fine function is the blossom (polar form) of the coarse spline, taken on
    one of its pieces inside ``[a, b]``, at the function's ``r - 1`` inner knots, in float64.
    Exterior knots are only arguments: they need not nest, and under refinement they do not. So the
    result is the same function on ``[a, b]``, and outside, where the end polynomials are continued.
    (Goldman, "Blossoming and knot insertion algorithms for B-spline curves", CAGD 7, 1990.)

    Args:
        coarse: knots of the given coefficients.
        fine: knots of the result.
        tolerance: distance, relative to ``b - a``, below which two breakpoints count as the same;
            by default 1e-12, or what round-off needs in types below float64.

    Raises:
        NestingError: if orders, channels or ends differ, or a coarse breakpoint is missing.
    """
    matches = match_knots(coarse, fine, tolerance)
    uniform = coarse.uniform and fine.uniform
    coarse, fine = coarse.widened(), fine.widened()
    starts, weights = [], []
    known: dict[tuple[bytes, bytes], tuple[Integers, Floats]] = {}
    for channel, (match, offset) in enumerate(zip(matches, coarse.offsets, strict=True)):
        t_coarse, t_fine = _numpy(coarse.extended(channel)), _numpy(fine.extended(channel))
        key = (t_coarse.tobytes(), t_fine.tobytes())
        if key not in known:
            if uniform:
                # Weights do not change under affine maps. In steps of the coarse grid the knots
                # are numbers without rounding errors, and so are the weights of midpoints.
                t_coarse, t_fine = _unit_grids(coarse.order, len(match) - 1, int(match[-1]))
            known[key] = _blossom_rows(coarse.order, t_coarse, t_fine, match)
        first, rows = known[key]
        starts.append(first + offset)
        weights.append(rows)
    return Prolongation(
        torch.from_numpy(np.concatenate(starts)).to(coarse.device),
        torch.from_numpy(np.concatenate(weights)).to(coarse.device),
        coarse.n_features,
    )


def project(source: Knots, target: Knots, coefficients: Tensor) -> tuple[Tensor, float]:
    """Least-squares fit, in ``L2`` of the target's ``[a, b]``, of splines on other knots.

    For knots that do not nest; where they do, it finds the same function as
    :func:`prolongation`, at the price of a fit. Orders and ends may differ. Integrals are exact:
    Gauss-Legendre on the union of both partitions.

    Args:
        source: knots of the given coefficients.
        target: knots of the result.
        coefficients: ``(..., n_source_features)``.

    Returns:
        Coefficients ``(..., n_target_features)``, and the residual
        ``sqrt(mean (1 / (b - a)) int_a^b (g_target - g_source)^2 dx)``, where the mean is over the
        univariate functions of all channels and leading indices.

    Raises:
        NestingError: if channels or the number of coefficients do not fit.
    """
    if source.channels != target.channels:
        raise NestingError(f"{source.channels} channels cannot be fitted by {target.channels}")
    _check_length(coefficients, source.n_features, "source")
    parts, squares = [], 0.0
    given = coefficients.to(torch.float64).split(list(source.n_functions), -1)
    for channel, u in enumerate(given):
        fit, defect = _fit_matrices(source.channel(channel), target.channel(channel))
        fit, defect = fit.to(u.device), defect.to(u.device)
        parts.append(u @ fit.T)
        squares += float((u.detach() @ defect.T).square().sum())
    n_functions = max(1, coefficients[..., 0].numel()) * source.channels
    return torch.cat(parts, -1).to(coefficients.dtype), (squares / n_functions) ** 0.5


def match_knots(coarse: Knots, fine: Knots, tolerance: float | None = None) -> list[Integers]:
    """For each channel, the index of every coarse breakpoint among the fine ones.

    Args:
        coarse: knots that should be contained.
        fine: knots that should contain them.
        tolerance: see :func:`prolongation`.

    Raises:
        NestingError: if orders, channels or ends differ, or a coarse breakpoint is missing.
    """
    if coarse.order != fine.order:
        raise NestingError(f"spline orders differ: coarse {coarse.order}, fine {fine.order}")
    if coarse.channels != fine.channels:
        raise NestingError(f"channels differ: coarse {coarse.channels}, fine {fine.channels}")
    if tolerance is None:
        eps = max(torch.finfo(knots.dtype).eps for knots in (coarse, fine))
        tolerance = max(1e-12, 64 * eps)
    pairs = zip(coarse.breakpoints, fine.breakpoints, strict=True)
    return [_match(_numpy(c), _numpy(f), k, tolerance) for k, (c, f) in enumerate(pairs)]


def _match(coarse: Floats, fine: Floats, channel: int, tolerance: float) -> Integers:
    reach = tolerance * (coarse[-1] - coarse[0])
    for end in (0, -1):
        if abs(coarse[end] - fine[end]) > reach:
            raise NestingError(
                f"ends of channel {channel} differ: coarse [{coarse[0]}, {coarse[-1]}], "
                f"fine [{fine[0]}, {fine[-1]}]"
            )
    right = np.searchsorted(fine, coarse).clip(1, len(fine) - 1)
    nearest = np.where(coarse - fine[right - 1] <= fine[right] - coarse, right - 1, right)
    missing = np.abs(fine[nearest] - coarse) > reach
    missing[1:] |= np.diff(nearest) <= 0  # two coarse knots closer than the tolerance
    if missing.any():
        at = int(np.flatnonzero(missing)[0])
        raise NestingError(
            f"knots of channel {channel} do not nest: coarse knot {at} at {float(coarse[at])!r} "
            f"is not among the fine knots (nearest {float(fine[nearest[at]])!r})"
        )
    return nearest.astype(np.int64)


def _blossom_rows(
    order: int, coarse: Floats, fine: Floats, match: Integers
) -> tuple[Integers, Floats]:
    """Start and weights of each fine function of one channel.

    Args:
        order: ``r``.
        coarse: extended coarse knots, ``(n_c + 2r - 1,)``.
        fine: extended fine knots, ``(n_f + 2r - 1,)``.
        match: fine index of each coarse breakpoint, ``(n_c + 1,)``.

    Returns:
        Index of the first coarse function, ``(n_f + r - 1,)``, and weights ``(n_f + r - 1, r)``.
    """
    r = order
    fine = fine.copy()
    fine[match + r - 1] = coarse[r - 1 : len(coarse) - r + 1]  # what matches coincides
    n_functions = len(fine) - r
    # Arguments of the blossom: the r - 1 inner knots of each fine function.
    arguments = np.lib.stride_tricks.sliding_window_view(fine, r - 1)[1 : n_functions + 1]
    # Any piece inside [a, b] that the function's support meets gives the same weights.
    parent = np.repeat(np.arange(len(match) - 1), np.diff(match))  # coarse of each fine interval
    piece = parent[(np.arange(n_functions) - r // 2).clip(0, len(parent) - 1)]  # (n_functions,)
    unit_vectors = np.broadcast_to(np.eye(r), (n_functions, r, r))
    return piece, _de_boor(coarse, piece, arguments, unit_vectors)


def _de_boor(coarse: Floats, piece: Integers, arguments: Floats, rows: Floats) -> Floats:
    """De Boor's scheme with another argument at each level: the blossom of one piece.

    A blossom is symmetric in its arguments. Those farthest from the piece come first: then the
    weights are right to the last digits on any piece, and exactly 0 and 1 where the arguments are
    consecutive coarse knots.

    Args:
        coarse: extended coarse knots.
        piece: coarse interval of each evaluation, ``(evaluations,)``.
        arguments: ``(evaluations, r - 1)``.
        rows: coefficients of the ``r`` functions of the piece, ``(evaluations, r, components)``.

    Returns:
        ``(evaluations, components)``.
    """
    r = arguments.shape[1] + 1
    middle = 0.5 * (coarse[piece + r - 1] + coarse[piece + r])
    nearness = -np.abs(arguments - middle[:, None])
    arguments = np.take_along_axis(arguments, nearness.argsort(1, kind="stable"), 1)
    rows = rows.copy()
    for k in range(1, r):
        argument = arguments[:, k - 1, None]
        level = np.arange(k, r)
        left = coarse[piece[:, None] + level]
        right = coarse[piece[:, None] + level + r - k]
        up = ((argument - left) / (right - left))[..., None]
        down = ((right - argument) / (right - left))[..., None]
        rows[:, k:] = down * rows[:, k - 1 : -1] + up * rows[:, k:]
    return rows[:, -1]


def _unit_grids(order: int, n_coarse: int, n_fine: int) -> tuple[Floats, Floats]:
    """Extended coarse and fine grids of equal spacing in units of the coarse spacing."""
    coarse = np.arange(1.0 - order, n_coarse + order)
    fine = np.arange(1.0 - order, n_fine + order) * (n_coarse / n_fine)
    return coarse, fine


def _fit_matrices(source: Knots, target: Knots) -> tuple[Tensor, Tensor]:
    """Fit ``(n_target, n_source)`` of one channel, and its defect in weighted nodal values."""
    t_source = _numpy(source.breakpoints[0])
    t_target = _numpy(target.breakpoints[0])
    a, b = t_target[0], t_target[-1]
    cells = np.union1d(t_target, t_source[(t_source > a) & (t_source < b)])
    nodes, node_weights = np.polynomial.legendre.leggauss(max(source.order, target.order))
    half = 0.5 * np.diff(cells)[:, None]
    x = (cells[:-1, None] + half + half * nodes).ravel()
    root = np.sqrt((half * node_weights).ravel() / (b - a))
    points = torch.from_numpy(x)[:, None]
    scale = torch.from_numpy(root)[:, None]
    old = scale * SplineBasis(source.to(torch.float64, "cpu")).dense(points, 0)[0]
    new = scale * SplineBasis(target.to(torch.float64, "cpu")).dense(points, 0)[0]
    # Orthogonal factors keep twice the digits of the normal equations; equal column norms, since
    # the functions that reach in from outside [a, b] are much smaller than the others there.
    norms = torch.linalg.vector_norm(new, dim=0)
    q, upper = torch.linalg.qr(new / norms)
    fit = torch.linalg.solve_triangular(upper, q.T @ old, upper=True) / norms[:, None]
    if not torch.isfinite(fit).all():
        raise KnotError("the target knots are too close together for a least-squares fit")
    return fit, new @ fit - old


def _check_length(values: Tensor, expected: int, which: str) -> None:
    if values.shape[-1] != expected:
        raise NestingError(
            f"last axis has length {values.shape[-1]}, the {which} knots have {expected} functions"
        )


def _numpy(t: Tensor) -> Floats:
    return np.asarray(t.detach().double().cpu().numpy())

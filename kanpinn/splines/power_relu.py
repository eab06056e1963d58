"""The power-ReLU (truncated power) basis of the spline space, and its relation to B-splines.

Multichannel multilayer perceptrons with fixed biases are splines in this basis (arXiv:2505.18131,
arXiv:2603.04827). Far from their knots its functions are large and nearly dependent, so B-splines
are never evaluated through it; it is a model of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from kanpinn.errors import ConditioningError, NestingError
from kanpinn.splines.basis import SplineBasis, check_points
from kanpinn.splines.knots import Knots, check_padded, extend_padded, pad_breakpoints
from kanpinn.splines.transfer import match_knots

# Largest loss ``100 eps cond`` a change of basis may have unless told otherwise: two sure digits.
DEFAULT_LIMIT = 1e-2


class PowerReluBasis:
    """``psi_i(x) = relu(x - t_i)^(r-1)``, ``i = 1-r .. n-1``, of every channel, with derivatives.

    For ``i <= 0`` the knot is not above ``a``, and ``psi_i`` is the plain power
    ``(x - t_i)^(r-1)``: the same function on ``[a, b]``, and outside it every combination then
    continues its end polynomials, the rule for splines too. Derivatives of order ``r - 1`` are
    continuous from the right, those of order ``r`` and above zero.

    Args:
        knots: the knots; the basis carries no gradient to them.
    """

    _knots: Knots | None = None  # where they are fixed

    def __init__(self, knots: Knots) -> None:
        self._set_up(knots.order, pad_breakpoints(knots), knots.n_intervals)
        self._knots = knots

    @classmethod
    def from_padded(
        cls, order: int, breakpoints: Tensor, n_intervals: tuple[int, ...]
    ) -> PowerReluBasis:
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
        basis._set_up(order, breakpoints, n_intervals)
        return basis

    @classmethod
    def from_copies(
        cls, order: int, breakpoints: Tensor, n_intervals: tuple[int, ...], copies: Tensor
    ) -> PowerReluBasis:
        """A basis with its own copy of the extended knots at each of ``N`` points.

        One reverse pass then gives every point's own derivatives with respect to the knots.

        Args:
            order: ``r``.
            breakpoints: as in :meth:`from_padded`.
            n_intervals: ``n`` of each channel.
            copies: extended knots ``(N, channels, n_max + 2r - 1)``, see :func:`extend_padded`.
        """
        basis = cls.from_padded(order, breakpoints.detach(), n_intervals)
        basis._knot = copies.flatten(1)[:, basis._flat]  # (N, n_features)
        return basis

    def _set_up(self, order: int, breakpoints: Tensor, n_intervals: Sequence[int]) -> None:
        self.order, self.n_intervals = order, tuple(n_intervals)
        self.dtype, self.device = breakpoints.dtype, breakpoints.device
        self._breakpoints = breakpoints
        extended = extend_padded(order, breakpoints, n_intervals)
        counts = [n + order - 1 for n in n_intervals]
        self.n_features = sum(counts)
        columns = [np.arange(count) for count in counts]
        channel = np.repeat(np.arange(len(counts)), counts)
        flat = channel * extended.shape[1] + np.concatenate(columns)
        self._channel = torch.from_numpy(channel).to(self.device)  # (n_features,)
        self._flat = torch.from_numpy(flat).to(self.device)  # (n_features,)
        self._knot = extended.flatten()[self._flat]  # (n_features,)
        plain = torch.from_numpy(np.concatenate(columns) < order)
        self._plain_power = plain.to(self.device)  # i <= 0

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return len(self.n_intervals)

    def dense(self, x: Tensor, derivatives: int) -> Tensor:
        """All functions and derivatives ``d^m psi / dx^m``, ``(D + 1, N, n_features)``.

        Args:
            x: points ``(N, channels)``.
            derivatives: highest derivative ``D >= 0``.

        Raises:
            DomainError: if ``x`` has another shape or floating-point type than the basis.
        """
        check_points(x, self.channels, self.dtype)
        z = x[:, self._channel] - self._knot  # (N, n_features)
        active = self._plain_power | (z.detach() >= 0)
        z = torch.where(active, z, 0.0)
        powers = [active.to(z.dtype), z]
        for _ in range(2, self.order):
            powers.append(powers[-1] * z)
        degree = self.order - 1
        rows = [powers[degree]]
        for m in range(1, derivatives + 1):
            rows.append(
                math.perm(degree, m) * powers[degree - m] if m <= degree else torch.zeros_like(z)
            )
        return torch.stack(rows)

    @cached_property
    def splines(self) -> SplineBasis:
        """The B-splines ``b`` on the same fixed knots; ``psi = A^-1 b`` on the whole line."""
        assert self._knots is not None, "of fixed knots only"
        return SplineBasis(self._knots)

    def spline_coefficients(self, weights: Tensor) -> Tensor:
        """Coefficients ``w A^-1`` in :attr:`splines` of the functions with coefficients ``w``.

        Between the ends values lose no digit that the sum of powers would keep: ``A^-1`` and ``b``
        are positive there, so that ``sum |w| A^-1 b`` is ``sum |w| psi``. Derivatives lose digits
        like those of splines, and outside the knots values do, too.

        Args:
            weights: ``w``, ``(..., n_features)``, of the type of the basis.
        """
        counts = [n + self.order - 1 for n in self.n_intervals]
        if len(set(counts)) == 1:
            blocks = weights.unflatten(-1, (self.channels, -1))
            return torch.einsum("...pi,pij->...pj", blocks, self._inverses).flatten(-2)
        parts = zip(weights.split(counts, -1), self._inverses, counts, strict=True)
        return torch.cat([part @ inverse[:k, :k] for part, inverse, k in parts], -1)

    @cached_property
    def _inverses(self) -> Tensor:
        """``A^-1`` of every channel, filled up with zeros to the largest, ``(channels, m, m)``."""
        assert self._knots is not None, "of fixed knots only"
        knots, size = self._knots, max(self.n_intervals) + self.order - 1
        padded = []
        for channel in range(self.channels):
            inverse = inverse_change_of_basis(knots, channel)
            missing = size - len(inverse)
            padded.append(pad(inverse, (0, missing, 0, missing)))
        return torch.stack(padded).to(dtype=self.dtype, device=self.device)

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> PowerReluBasis:
        """The same basis in another floating-point type or on another device."""
        moved = self._breakpoints.to(dtype=dtype or self.dtype, device=device or self.device)
        return PowerReluBasis.from_padded(self.order, moved, self.n_intervals)

    def __repr__(self) -> str:
        return (
            f"PowerReluBasis(order={self.order}, channels={self.channels}, "
            f"n_features={self.n_features})"
        )


def change_of_basis(knots: Knots, channel: int) -> Tensor:
    """The matrix ``A`` of one channel with ``b = A psi`` on ``[a, b]``, ``(n+r-1, n+r-1)``.

    ``A^[1]`` is 1 on the diagonal and -1 on the first superdiagonal;
    ``A^[k]_ij = A^[k-1]_ij / (t_{i+k-1} - t_i) - A^[k-1]_{i+1,j} / (t_{i+k} - t_{i+1})``, with
    indices ``1-r .. n-1`` at every level and a last row of zeros behind them (arXiv:2603.04827).
    Upper triangular with ``r`` superdiagonals; float64.
    """
    t = knots.extended(channel).double()
    size = knots.n_functions[channel]
    row = torch.arange(size, device=t.device)
    identity = torch.eye(size, dtype=t.dtype, device=t.device)
    matrix = identity - identity.roll(1, 1).triu()
    for k in range(2, knots.order + 1):
        below = torch.cat([matrix[1:], torch.zeros_like(matrix[:1])])
        here, there = t[row + k - 1] - t[row], t[row + k] - t[row + 1]
        matrix = matrix / here[:, None] - below / there[:, None]
    return matrix


def inverse_change_of_basis(knots: Knots, channel: int) -> Tensor:
    """``A^-1`` of one channel, ``psi = A^-1 b`` on ``[a, b]``, ``(n+r-1, n+r-1)``.

    ``A^[k] = (I - N) S_k A^[k-1]`` with the shift ``N`` and ``S_k = diag(1 / (t_{i+k-1} - t_i))``:
    the inverse is a product of running sums and lengths, all of them positive, so that every entry
    is right to round-off, whatever the condition of ``A``. Float64.
    """
    t = knots.extended(channel).double()
    size = knots.n_functions[channel]
    row = torch.arange(size, device=t.device)
    inverse = torch.ones(size, size, dtype=t.dtype, device=t.device).triu()
    for k in range(2, knots.order + 1):
        inverse = (inverse * (t[row + k - 1] - t[row])).cumsum(1)
    return inverse


def condition_number(knots: Knots) -> float:
    """Largest 2-norm condition number of the channels' changes of basis ``A``."""
    known: dict[tuple[float, ...], float] = {}
    for channel, t in enumerate(knots.breakpoints):
        key = tuple(t.tolist())
        if key not in known:
            known[key] = float(torch.linalg.cond(change_of_basis(knots, channel)))
    return max(known.values())


def spline_to_relu(knots: Knots, coefficients: Tensor) -> Tensor:
    """ReLU coefficients ``w = A^T u`` of the function with spline coefficients ``u``.

    Args:
        knots: knots of both.
        coefficients: ``u``, ``(..., n_features)``.

    Returns:
        ``w``, ``(..., n_features)``.

    Raises:
        NestingError: if the number of coefficients does not fit the knots.
    """
    return _by_channel(knots, coefficients, lambda u, matrix: u @ matrix)


def relu_to_spline(knots: Knots, coefficients: Tensor, limit: float = DEFAULT_LIMIT) -> Tensor:
    """Spline coefficients ``u`` of the function with ReLU coefficients ``w = A^T u``.

    Args:
        knots: knots of both.
        coefficients: ``w``, ``(..., n_features)``.
        limit: largest admissible loss ``100 eps cond(A)``, ``eps`` that of the coefficients' type.

    Returns:
        ``u``, ``(..., n_features)``.

    Raises:
        ConditioningError: if ``100 eps cond(A)`` exceeds the limit.
        NestingError: if the number of coefficients does not fit the knots.
    """
    _check_loss("the change of basis", condition_number(knots), coefficients.dtype, limit)

    def solve(w: Tensor, matrix: Tensor) -> Tensor:
        rows = w.reshape(-1, w.shape[-1])
        return torch.linalg.solve_triangular(matrix, rows, upper=True, left=False).view(w.shape)

    return _by_channel(knots, coefficients, solve)


@dataclass(frozen=True, eq=False)
class ReluProlongation:
    """Exact map of ReLU coefficients on coarse knots to those of the same function on fine knots.

    Attributes:
        copied: flat coarse features of the interior knots, ``i >= 1``.
        kept: flat fine features they are copied to.
        polynomial: flat coarse features ``i = 1-r .. 0``, ``(channels, r)``.
        moved: flat fine features ``1-r .. 0``, ``(channels, r)``.
        matrices: ``w_f[moved] = matrices @ w_c[polynomial]``, ``(channels, r, r)``, float64.
        n_coarse_features: length of the coarse flat feature axis.
        n_fine_features: length of the fine one.
        condition: largest growth of coefficients in it, the maximal 1-norm of the matrices.
        limit: largest admissible loss ``100 eps condition``.
    """

    copied: Tensor
    kept: Tensor
    polynomial: Tensor
    moved: Tensor
    matrices: Tensor
    n_coarse_features: int
    n_fine_features: int
    condition: float
    limit: float

    def apply(self, coefficients: Tensor) -> Tensor:
        """Fine coefficients ``(..., n_fine_features)`` of coarse ``(..., n_coarse_features)``.

        Runs on the device of the coefficients, in float64 inside; differentiable.

        Raises:
            ConditioningError: if the coefficients' type cannot carry the result.
            NestingError: if the coefficients do not belong to the coarse knots.
        """
        if coefficients.shape[-1] != self.n_coarse_features:
            raise NestingError(
                f"{coefficients.shape[-1]} coefficients do not fit coarse knots with "
                f"{self.n_coarse_features} functions"
            )
        _check_loss("the prolongation", self.condition, coefficients.dtype, self.limit)
        device = coefficients.device
        given = coefficients[..., self.polynomial.to(device)].double()  # (..., channels, r)
        ends = torch.einsum("pkm,...pm->...pk", self.matrices.to(device), given)
        fine = coefficients.new_zeros(*coefficients.shape[:-1], self.n_fine_features)
        fine = fine.index_copy(-1, self.kept.to(device), coefficients[..., self.copied.to(device)])
        return fine.index_copy(
            -1, self.moved.to(device).flatten(), ends.flatten(-2).to(coefficients.dtype)
        )


def relu_prolongation(
    coarse: Knots, fine: Knots, limit: float = DEFAULT_LIMIT, tolerance: float | None = None
) -> ReluProlongation:
    """The exact map of ReLU coefficients from coarse knots to fine ones that contain them.

    Interior functions ``i >= 1`` keep their knot and are copied, new ones start at zero. The
    functions ``1-r .. 0`` span the polynomials on ``[a, b]`` with other exterior knots: with
    ``y = (x - a) / h_c`` and ``rho = h_f / h_c`` (end spacings),
    ``(y + m)^(r-1) = sum_k l_k(m) (y + k rho)^(r-1)``, where ``l_k`` are the Lagrange polynomials
    of the nodes ``k rho``, ``k = 0 .. r-1``. Their product form gives every entry to round-off,
    which neither a solve nor the way through B-splines does.

    Args:
        coarse: knots of the given coefficients.
        fine: knots of the result.
        limit: largest admissible loss ``100 eps cond``, where ``cond`` is the largest growth of the
            coefficients and ``eps`` that of their type.
        tolerance: see :func:`kanpinn.splines.prolongation`.

    Raises:
        NestingError: if orders, channels or ends differ, or a coarse breakpoint is missing.
        ConditioningError: if the type of the fine knots cannot carry the result within the limit.
    """
    matches = match_knots(coarse, fine, tolerance)
    r, device, dtype = coarse.order, coarse.device, fine.dtype
    coarse, fine = coarse.widened(), fine.widened()
    ends = np.arange(r)
    copied, kept, polynomial, moved, matrices = [], [], [], [], []
    for channel, match in enumerate(matches):
        start, fine_start = coarse.offsets[channel], fine.offsets[channel]
        copied.append(start + r - 1 + np.arange(1, len(match) - 1))
        kept.append(fine_start + r - 1 + match[1:-1])
        polynomial.append(start + ends)
        moved.append(fine_start + ends)
        spacings = [(t[1] - t[0]).item() for t in (_ends(coarse, channel), _ends(fine, channel))]
        matrices.append(_moved_powers(r, spacings[1] / spacings[0]))
    condition = float(np.abs(matrices).sum(1).max())
    _check_loss("the prolongation", condition, dtype, limit)
    return ReluProlongation(
        copied=torch.from_numpy(np.concatenate(copied)).to(device),
        kept=torch.from_numpy(np.concatenate(kept)).to(device),
        polynomial=torch.from_numpy(np.stack(polynomial)).to(device),
        moved=torch.from_numpy(np.stack(moved)).to(device),
        matrices=torch.from_numpy(np.stack(matrices)).to(device),
        n_coarse_features=coarse.n_features,
        n_fine_features=fine.n_features,
        condition=condition,
        limit=limit,
    )


def _ends(knots: Knots, channel: int) -> Tensor:
    return knots.breakpoints[channel][:2].double()


def _moved_powers(order: int, ratio: float) -> np.ndarray:
    """``l_k(m)`` for the functions ``1-r .. 0``, which have ``k, m = r-1 .. 0``, ``(r, r)``."""
    nodes = np.arange(order - 1.0, -1.0, -1.0)
    matrix = np.ones((order, order))
    for k in range(order):
        for other in range(order):
            if other != k:
                matrix[k] *= (nodes - nodes[other] * ratio) / ((nodes[k] - nodes[other]) * ratio)
    return matrix


def _by_channel(
    knots: Knots, coefficients: Tensor, change: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    if coefficients.shape[-1] != knots.n_features:
        raise NestingError(
            f"{coefficients.shape[-1]} coefficients do not fit knots with {knots.n_features} "
            "functions"
        )
    parts = coefficients.double().split(list(knots.n_functions), -1)
    matrices = [change_of_basis(knots, p).to(coefficients.device) for p in range(knots.channels)]
    changed = [change(part, matrix) for part, matrix in zip(parts, matrices, strict=True)]
    return torch.cat(changed, -1).to(coefficients.dtype)


def _check_loss(what: str, condition: float, dtype: torch.dtype, limit: float) -> None:
    loss = 100 * torch.finfo(dtype).eps * condition
    if not loss <= limit:
        raise ConditioningError(
            f"{what} has condition number {condition:.2e}: 100 eps cond = {loss:.1e} in {dtype} "
            f"exceeds the limit {limit:.1e}"
        )

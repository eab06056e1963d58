"""The limited memory of L-BFGS: pairs of differences, and the product of their inverse Hessian."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from kanpinn.optimisers.base import State
from kanpinn.optimisers.operations import product, substitution
from kanpinn.optimisers.quasi_newton_memory import Curvature, Notes, Pair


@final
@dataclass(frozen=True)
class CurvatureHistory(Curvature):
    """Pairs ``s = theta' - theta``, ``y = g' - g`` in the first ``count`` rows, oldest first.

    ``products[i, j] = s_i . y_j`` is kept for ``i <= j < count``. A full history drops its oldest
    pair. Rows are shifted rather than used as a ring: an append that leaves its input unchanged
    copies the history anyway, and sorted rows need no permutation afterwards.
    """

    s: Tensor  # (m, n)
    y: Tensor  # (m, n)
    products: Tensor  # (m, m)
    count: int

    @property
    def direction_operations(self) -> int:
        """See ``Curvature.direction_operations``: four products, two triangular systems."""
        k, n = self.count, self.s.shape[1]
        return 4 * product(k, n) + 2 * substitution(k)

    @property
    def learning_operations(self) -> int:
        """See ``Curvature.learning_operations``: one column of products."""
        size, n = self.s.shape
        return product(min(self.count + 1, size), n)

    @staticmethod
    def empty(size: int, theta: Tensor) -> CurvatureHistory:
        """Room for ``size`` pairs like ``theta`` (n,)."""
        n = theta.numel()
        return CurvatureHistory(
            theta.new_zeros(size, n), theta.new_zeros(size, n), theta.new_zeros(size, size), 0
        )

    @staticmethod
    def read(state: Mapping[str, Tensor], count: int) -> CurvatureHistory:
        """What ``write`` gave, with ``count`` rows in use."""
        return CurvatureHistory(state["s_history"], state["y_history"], state["products"], count)

    def write(self) -> State:
        """See ``Curvature.write``."""
        return {"s_history": self.s, "y_history": self.y, "products": self.products}

    def cleared(self) -> CurvatureHistory:
        """See ``Curvature.cleared``."""
        return replace(self, count=0)

    def learn(self, pair: Pair) -> tuple[CurvatureHistory, Notes]:
        """See ``Curvature.learn``; only the differences are used."""
        return self.append(pair.s, pair.y), ()

    def append(self, s: Tensor, y: Tensor) -> CurvatureHistory:
        """The history with one more pair (each (n,))."""
        size = self.s.shape[0]
        full = self.count == size
        row = size - 1 if full else self.count
        new_s = _with_row(self.s, row, s, shift=full)
        new_y = _with_row(self.y, row, y, shift=full)
        products = self.products.roll((-1, -1), (0, 1)) if full else self.products.clone()
        products[: row + 1, row] = new_s[: row + 1] @ y
        return CurvatureHistory(new_s, new_y, products, row + 1)

    def direction(self, gradient: Tensor) -> Tensor:
        """``d = -H g`` (n,) with H the L-BFGS matrix, started from ``(s.y / y.y) I`` of the newest.

        The two loops of Nocedal and Wright, algorithm 7.4, written as triangular systems: with
        ``R = triu(S Y^T)`` and its diagonal D, ``R a = S g``, ``q = g - Y^T a``,
        ``R^T c = D a - gamma Y q``, ``d = -(gamma q + S^T c)``. Cf. R. Byrd, J. Nocedal and
        R. Schnabel, Math. Prog. 63 (1994), doi:10.1007/BF01582063, section 2.
        """
        k = self.count
        if k == 0:
            return -gradient
        s, y = self.s[:k], self.y[:k]  # (k, n)
        r = self.products[:k, :k].triu()  # (k, k)
        newest = y[-1]
        gamma = r[-1, -1] / (newest @ newest)
        a = torch.linalg.solve_triangular(r, (s @ gradient)[:, None], upper=True)[:, 0]  # (k,)
        q = gradient - a @ y  # (n,)
        right = r.diagonal() * a - gamma * (y @ q)  # (k,)
        c = torch.linalg.solve_triangular(r.T, right[:, None], upper=False)[:, 0]  # (k,)
        return -(gamma * q + c @ s)


def _with_row(rows: Tensor, row: int, values: Tensor, shift: bool) -> Tensor:
    """A copy of ``rows`` (m, n), moved up by one if ``shift``, with ``values`` (n,) in ``row``."""
    result = torch.empty_like(rows)
    if shift:
        result[:-1] = rows[1:]
    else:
        result.copy_(rows)
    result[row] = values
    return result

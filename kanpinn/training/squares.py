"""The square of the Jacobian, from blocks of rows in which few columns are not zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from kanpinn.optimisers.operations import Meter, product
from kanpinn.training.parallel import ordered_map

SIDE = 256  # of the blocks that a symmetric product is made in

P = TypeVar("P")
Rows = tuple[Tensor, Tensor]
"""Some rows: the numbers ``(c,)`` of the columns that are not zero, and these ``(m, c)``."""


@dataclass(frozen=True)
class Squares:
    """``A^T A`` of ``A = [J | r]``, and products with ``J`` from the blocks where they are kept.

    Attributes:
        upper: on and above the diagonal, zero below, ``(n + 1, n + 1)``.
        kept: all blocks of rows, in order, or none.
        otherwise: ``J^T u`` without them.
        meter: counts the products from them.
    """

    upper: Tensor
    kept: tuple[Rows, ...]
    otherwise: Callable[[Tensor], Tensor]
    meter: Meter = field(default_factory=Meter)

    @property
    def evaluations(self) -> int:
        """Evaluations of the residuals that a product with ``J^T`` takes."""
        return 0 if self.kept else 1

    def product(self, v: Tensor) -> Tensor | None:
        """``J v`` ``(N,)`` of ``v`` ``(n,)``; ``None`` without the blocks."""
        if not self.kept:
            return None
        self._count()
        extended = torch.cat([v, v.new_zeros(1)])
        return torch.cat([rows @ extended[index] for index, rows in self.kept])

    def normal(self, d: Tensor, u: Tensor) -> Tensor | None:
        """``J^T (J d + u)`` ``(n,)`` of ``d`` ``(n,)``, ``u`` ``(N,)``; None without the blocks."""
        product = self.product(d)
        return None if product is None else self.transposed(product + u)

    def transposed(self, u: Tensor) -> Tensor:
        """``J^T u`` ``(n,)`` of ``u`` ``(N,)``."""
        if not self.kept:
            return self.otherwise(u)
        self._count()
        total, start = u.new_zeros(len(self.upper)), 0
        for index, rows in self.kept:
            total[index] += rows.mT @ u[start : start + len(rows)]
            start += len(rows)
        return total[:-1]

    def _count(self) -> None:
        """One product from the blocks, as if no column were left out."""
        self.meter.add(product(sum(len(rows) for _, rows in self.kept), len(self.upper) - 1))


def squares(
    pieces: Iterable[P],
    blocks: Callable[[P], Iterable[Rows]],
    like: Tensor,
    otherwise: Callable[[Tensor], Tensor],
    memory: float = 0.0,
    workers: int = 1,
    meter: Meter | None = None,
) -> Squares:
    """The square of a tall matrix made in pieces, which is never held as a whole.

    It has half the digits of the triangle of ``triangular_factor``, for a fraction of its cost:
    columns that are zero in a block of rows cost nothing there.

    Args:
        pieces: what ``[J | r]`` is made from, in order.
        blocks: makes a piece's blocks of rows, their columns ascending and different from each
            other; called from several threads.
        like: as long as the matrix is wide, of its type and on its device.
        otherwise: ``J^T u`` by other means.
        memory: bytes that all blocks together may take to be kept.
        workers: pieces worked on at a time; the result does not depend on it.
        meter: counts products from the blocks.
    """

    def squared(piece: P) -> list[tuple[Rows, Tensor]]:
        return [((index, rows), _upper_square(rows)) for index, rows in blocks(piece)]

    columns = len(like)
    upper, left = like.new_zeros(columns, columns), memory
    kept: list[Rows] = []
    for found in ordered_map(squared, pieces, workers):
        for (index, rows), square in found:
            if len(index) == columns:
                upper += square
            else:
                places = (index[:, None] * columns + index).flatten()
                upper.view(-1).index_add_(0, places, square.flatten())
            left -= rows.numel() * rows.element_size()
            kept.append((index, rows))
            if left < 0:
                kept.clear()
    return Squares(upper, tuple(kept), otherwise, meter or Meter())


def _upper_square(rows: Tensor) -> Tensor:
    """``A^T A`` of ``A`` ``(m, n)`` on and above the diagonal, zero below."""
    n = rows.shape[1]
    square = rows.new_zeros(n, n)
    for start in range(0, n, SIDE):
        stop = min(start + SIDE, n)
        torch.mm(rows[:, :stop].mT, rows[:, start:stop], out=square[:stop, start:stop])
        square[start:stop, start:stop].triu_()
    return square

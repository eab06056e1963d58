"""Sums and triangular factors over fixed chunks in a fixed tree.

The order of the operations depends on the number of chunks alone: not on threads, nor on how many
processes share the chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from kanpinn.optimisers.solver_choice import SLAB
from kanpinn.training.parallel import ordered_map

S = TypeVar("S")
T = TypeVar("T")


def tree_sum(items: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Sum of lists of tensors over a binary tree, in the order given.

    Raises:
        ValueError: if there is no item.
    """
    return _reduce((list(item) for item in items), _add)


def triangular_factor(
    pieces: Sequence[S],
    rows: Callable[[S], Tensor],
    sizes: Sequence[int],
    columns: int,
    workers: int = 1,
) -> Tensor:
    """``R`` with ``R^T R = A^T A``, ``(columns, columns)``, of a tall matrix made in pieces.

    Householder QR of slabs of rows, then of stacked pairs of triangles (TSQR: Demmel et al.,
    doi:10.1137/080731992). ``A`` is never held as a whole: ``workers`` slabs of ``SLAB * columns``
    of its rows are. The result does not depend on the number of workers.

    Args:
        pieces: what ``A`` is made from, in order.
        rows: makes a piece's rows ``(size, columns)``; called from several threads.
        sizes: number of rows of each piece.
        columns: their width.
        workers: slabs worked on at a time.

    Raises:
        ValueError: if there is no piece.
    """

    def triangle(slab: Sequence[S]) -> Tensor:
        return torch.linalg.qr(torch.cat([rows(piece) for piece in slab]), mode="r").R

    slabs = _slabs(pieces, sizes, SLAB * columns)
    triangles = ordered_map(triangle, slabs, workers)
    r = _reduce(triangles, lambda a, b: torch.linalg.qr(torch.cat([a, b]), mode="r").R)
    if len(r) < columns:  # fewer rows than columns
        r = torch.cat([r, r.new_zeros(columns - len(r), columns)])
    return r


def _slabs(pieces: Sequence[S], sizes: Sequence[int], least: int) -> Iterator[list[S]]:
    """The same pieces in groups of at least ``least`` rows, but for the last."""
    held: list[S] = []
    count = 0
    for piece, size in zip(pieces, sizes, strict=True):
        held.append(piece)
        count += size
        if count >= least:
            yield held
            held, count = [], 0
    if held:
        yield held


def _reduce(items: Iterable[T], combine: Callable[[T, T], T]) -> T:
    """Combine all items over a binary tree, holding ``log2(number of items)`` at a time."""
    stack: list[tuple[int, T]] = []
    for item in items:
        entry = (0, item)
        while stack and stack[-1][0] == entry[0]:
            size, left = stack.pop()
            entry = (size + 1, combine(left, entry[1]))
        stack.append(entry)
    if not stack:
        raise ValueError("a sum over no chunks")
    total = stack.pop()[1]
    while stack:
        total = combine(stack.pop()[1], total)
    return total


def _add(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(left, right, strict=True)]

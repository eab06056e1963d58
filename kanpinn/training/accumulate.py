"""Sums and triangular factors over fixed chunks in a fixed tree.

The order of the operations depends on the number of chunks alone: not on threads, nor on how many
processes share the chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

SLAB = 4  # rows of a slab per column: stacking triangles then costs little beside the slabs


def tree_sum(items: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Sum of lists of tensors over a binary tree, in the order given.

    Raises:
        ValueError: if there is no item.
    """
    return _reduce((list(item) for item in items), _add)


def triangular_factor(rows: Iterable[Tensor], columns: int) -> Tensor:
    """``R`` with ``R^T R = A^T A``, ``(columns, columns)``, of a tall matrix given in pieces.

    Householder QR of slabs of rows, then of stacked pairs of triangles (TSQR: Demmel et al.,
    doi:10.1137/080731992). ``A`` is never held as a whole: ``SLAB * columns`` of its rows are.

    Args:
        rows: pieces ``(any, columns)`` of ``A``, in order.
        columns: their width.

    Raises:
        ValueError: if there is no piece.
    """
    triangles = (torch.linalg.qr(slab, mode="r").R for slab in _slabs(rows, SLAB * columns))
    r = _reduce(triangles, lambda a, b: torch.linalg.qr(torch.cat([a, b]), mode="r").R)
    if len(r) < columns:  # fewer rows than columns
        r = torch.cat([r, r.new_zeros(columns - len(r), columns)])
    return r


def _slabs(rows: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same rows in pieces of at least ``size`` rows, but for the last."""
    held: list[Tensor] = []
    count = 0
    for piece in rows:
        held.append(piece)
        count += len(piece)
        if count >= size:
            yield torch.cat(held)
            held, count = [], 0
    if held:
        yield torch.cat(held)


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

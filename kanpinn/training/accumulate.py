"""Sums over fixed chunks in a fixed tree.

The order of the additions depends on the number of chunks alone: not on threads, nor on how many
processes share the chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor


def tree_sum(items: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Sum of lists of tensors over a binary tree, in the order given.

    Holds ``log2(number of items)`` partial sums at a time.

    Raises:
        ValueError: if there is no item.
    """
    stack: list[tuple[int, list[Tensor]]] = []
    for item in items:
        entry = (0, list(item))
        while stack and stack[-1][0] == entry[0]:
            size, left = stack.pop()
            entry = (size + 1, _add(left, entry[1]))
        stack.append(entry)
    if not stack:
        raise ValueError("a sum over no chunks")
    total = stack.pop()[1]
    while stack:
        total = _add(stack.pop()[1], total)
    return total


def _add(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(left, right, strict=True)]

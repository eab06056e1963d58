"""Products with the Jacobian of all chunks, which is never held as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

import torch
from torch import Tensor

from kanpinn.optimisers.operations import Meter, square
from kanpinn.training.accumulate import tree_sum
from kanpinn.training.jacobian import ChunkJacobian
from kanpinn.training.parallel import ordered_map
from kanpinn.training.work import Evaluation

SLICE_BYTES = 2**22  # of the rows whose columns are made at once: they stay in a core's cache
LEAST_SLICE = 16  # rows: the sums of a slice should not cost more than its products

P = TypeVar("P")
T = TypeVar("T")


class ChunkedJacobian(Generic[P]):
    """``J`` at one ``theta``: features and adjoints of every chunk, weighed like the residuals.

    The first chunks are kept, as many as fit into the memory given; the others are made anew for
    every product, by one evaluation and its reverse passes. No result depends on which are kept,
    nor on the number of workers: chunks are summed in a fixed tree.

    Args:
        chunks: in the order of the residuals.
        sizes: number of residuals of each.
        linearise: of a chunk, the factors ``(rows, m)`` of its residuals and their Jacobian; called
            from several threads.
        move: sets the parameters to ``theta``.
        shapes: of the parameters, in order; rows of a matrix are blocks of their own.
        memory: bytes that may be kept.
        workers: chunks worked on at a time.
        costs: of each chunk; nothing is counted without them.
        meter: counts what is made, and products.
    """

    def __init__(
        self,
        chunks: Sequence[P],
        sizes: Sequence[int],
        linearise: Callable[[P], tuple[Tensor, ChunkJacobian]],
        move: Callable[[], None],
        shapes: Sequence[tuple[int, ...]],
        memory: float,
        workers: int = 1,
        costs: Sequence[Evaluation] | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.chunks, self.ends = tuple(chunks), tuple(accumulate(sizes))
        self.linearise, self.move, self.shapes = linearise, move, tuple(shapes)
        self.workers, self.meter = workers, meter or Meter()
        self.costs = tuple(costs or [Evaluation(0, 1)] * len(self.chunks))
        self.kept: list[tuple[Tensor, ChunkJacobian]] = []
        move()
        left = memory
        made = ordered_map(self._made, self.chunks, workers)
        for (scale, jacobian), cost in zip(made, self.costs, strict=True):
            self.meter.add(cost.linearised)
            left -= (jacobian.numbers + scale.numel()) * scale.element_size()
            if left < 0:
                break
            self.kept.append((scale, jacobian))

    def product(self, v: Tensor) -> Tensor:
        """``J v`` ``(N,)`` of ``v`` ``(n,)``."""
        self.meter.add(sum(cost.residual for cost in self.costs))

        def one(number: int) -> Tensor:
            scale, jacobian = self._at(number)
            return (scale * jacobian.product(v)).flatten()

        return torch.cat(list(self._map(one)))

    def transposed(self, u: Tensor) -> Tensor:
        """``J^T u`` ``(n,)`` of ``u`` ``(N,)``."""
        self.meter.add(sum(cost.residual for cost in self.costs))

        def one(number: int) -> list[Tensor]:
            scale, jacobian = self._at(number)
            end = self.ends[number]
            part = u[end - scale.numel() : end].view_as(scale)
            return [jacobian.transposed(scale * part)]

        return tree_sum(self._map(one))[0]

    def block_squares(self, size: int) -> list[Tensor]:
        """``J_b^T J_b`` of blocks of at most ``size`` columns; see ``Linearisation``."""
        blocks = [block for shape in self.shapes for block in _blocks(shape, size)]
        squares = sum(count * square(self.ends[-1], width) for count, width in blocks)
        self.meter.add(sum(cost.outer for cost in self.costs) + squares)

        def one(number: int) -> list[Tensor]:
            scale, jacobian = self._at(number)
            size = _slice_rows(jacobian, scale) if scale.device.type == "cpu" else len(scale)
            total = _block_squares(jacobian.at(slice(0, size)), scale[:size], blocks)
            for start in range(size, len(scale), size):
                some = slice(start, start + size)
                found = _block_squares(jacobian.at(some), scale[some], blocks)
                for sum_, part in zip(total, found, strict=True):
                    sum_ += part
            return total

        return tree_sum(self._map(one))

    def _map(self, function: Callable[[int], T]) -> Iterator[T]:
        """``function`` of the number of every chunk, in order."""
        if len(self.kept) < len(self.chunks):
            self.move()
            self.meter.add(sum(cost.linearised for cost in self.costs[len(self.kept) :]))
        return ordered_map(function, range(len(self.chunks)), self.workers)

    def _at(self, number: int) -> tuple[Tensor, ChunkJacobian]:
        """Factors and Jacobian of a chunk, kept or made anew."""
        return self.kept[number] if number < len(self.kept) else self._made(self.chunks[number])

    def _made(self, chunk: P) -> tuple[Tensor, ChunkJacobian]:
        scale, jacobian = self.linearise(chunk)
        return scale, jacobian.expanded().compact()


def _slice_rows(jacobian: ChunkJacobian, like: Tensor) -> int:
    """Rows whose columns, all of them, fill ``SLICE_BYTES`` or less."""
    row = like.element_size() * jacobian.n_equations * jacobian.n_parameters
    return max(LEAST_SLICE, SLICE_BYTES // row)


def _block_squares(
    jacobian: ChunkJacobian, scale: Tensor, blocks: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Of some rows with the factors ``scale`` ``(n, m)``, for every group of equal blocks."""
    rows = (jacobian.dense(scale) * scale[..., None]).flatten(0, 1)
    found, start = [], 0
    for count, width in blocks:
        columns = rows[:, start : start + count * width]
        start += count * width
        each = columns.reshape(len(rows), count, width).transpose(0, 1)
        found.append(each.mT @ each)
    return found


def _blocks(shape: tuple[int, ...], size: int) -> Iterator[tuple[int, int]]:
    """Number and width of the blocks of a parameter, batch by batch, in order."""
    rows, width = shape if len(shape) == 2 else (1, math.prod(shape))
    if width <= size:
        yield rows, width
        return
    for _ in range(rows):
        yield width // size, size
        if width % size:
            yield 1, width % size

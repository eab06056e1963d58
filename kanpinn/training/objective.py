"""The objective of a level: weighted mean squares of residual rows, and their gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from kanpinn.optimisers.operations import Meter, square, triangle
from kanpinn.residuals import ResidualBlock, System, evaluate_rows
from kanpinn.sampling import QUADRATURE
from kanpinn.training.accumulate import tree_sum, triangular_factor
from kanpinn.training.block_data import BlockData, Chunk
from kanpinn.training.jacobian import ChunkJacobian, Columns, linearise_rows
from kanpinn.training.linearisation import ChunkedJacobian
from kanpinn.training.parallel import ordered_map
from kanpinn.training.parameters import ParameterPack
from kanpinn.training.smoothing import Penalty
from kanpinn.training.squares import Rows, Squares, squares
from kanpinn.training.work import Evaluation

BLOCK_ROWS = 256  # of the Jacobian, whose columns that are zero there are left out of its square


class SystemObjective:
    """``sum_b weight_b mean(q_i f_i (w_i r_i)^2)`` over all rows of every block, and a penalty.

    ``q`` are the quadrature weights of unequally spread points, 1 for others. ``w`` are factors of
    the residuals, ``f`` of what the block's loss makes of them. The penalty on rough splines, if
    there is one, has rows of its own, behind those of the blocks.

    Implements the optimisers' objective over one pack of parameters.

    Args:
        system: the networks and scalars.
        pack: which parameters ``theta`` stands for.
        data: blocks with their points.
        attention: row weights ``w`` per block name, ``(n_rows,)``; ones where missing.
        chosen: rows of a block that are a mini-batch ``(any,)``, by its name; all where missing.
        workers: threads that share the chunks; with operators of one thread no result depends on
            them.
        factors: ``f`` per block name, ``(n_rows,)``; ones where missing.
        penalty: on rough splines.

    Attributes:
        meter: counts what the methods cost, see :mod:`kanpinn.training.work`.
    """

    def __init__(
        self,
        system: System,
        pack: ParameterPack,
        data: Sequence[BlockData],
        attention: Mapping[str, Tensor] | None = None,
        chosen: Mapping[str, Tensor] | None = None,
        workers: int = 1,
        factors: Mapping[str, Tensor] | None = None,
        penalty: Penalty | None = None,
    ) -> None:
        self.system, self.pack, self.data = system, pack, tuple(data)
        self.workers, self.penalty = workers, penalty
        self.attention, self.factors = dict(attention or {}), dict(factors or {})
        self.chosen, self.meter = dict(chosen or {}), Meter()
        self.rows: dict[str, list[tuple[slice | Tensor, Tensor]]] = {}

    def loss(self, theta: Tensor) -> Tensor:
        """The loss at ``theta`` ``(n,)``, 0-d."""
        self.pack.write(theta)

        return tree_sum(self._shares(lambda share: [share], gradient=False))[0]

    def loss_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its gradient ``(n,)`` at ``theta`` ``(n,)``."""
        self.pack.write(theta)
        loss, gradient = tree_sum(self._with_gradient())
        return loss, gradient

    def residuals(self, theta: Tensor) -> Tensor:
        """The residuals ``(N,)`` at ``theta`` whose sum of squares is the loss."""
        self.pack.write(theta)
        return torch.cat(list(self._residual_parts()))

    def jacobian_rows(self, theta: Tensor) -> Iterator[Tensor]:
        """Pieces ``(any, n + 1)`` of ``[J | r]``, the Jacobian beside the residuals."""
        self.pack.write(theta)
        self.meter.add(sum(data.cost().jacobian for data in self.data))
        yield from ordered_map(self._jacobian_piece, self._chunks(), self.workers)
        if self.penalty is not None:
            yield self.penalty.jacobian_piece(self.pack.layout)

    def linearise(
        self, theta: Tensor, memory: float
    ) -> ChunkedJacobian[tuple[BlockData, Chunk] | Penalty]:
        """``J`` at ``theta`` by its products, keeping at most ``memory`` bytes for them."""
        theta = theta.detach().clone()

        def one(piece: tuple[BlockData, Chunk] | Penalty) -> tuple[Tensor, ChunkJacobian]:
            if isinstance(piece, Penalty):
                return self._linearised_penalty(piece)
            _, scale, jacobian = self._linearised(piece)
            return scale, jacobian

        self.pack.write(theta)
        sizes = [len(part) for part in self._residual_parts()]
        penalty = [] if self.penalty is None else [self.penalty]
        costs = [data.cost(chunk) for data, chunk in self._chunks()]
        return ChunkedJacobian(
            chunks=[*self._chunks(), *penalty],
            costs=[*costs, *(Evaluation(0, 1) for _ in penalty)],
            meter=self.meter,
            sizes=sizes,
            linearise=one,
            move=lambda: self.pack.write(theta),
            shapes=[tuple(p.shape) for p in self.pack.parameters.values()],
            memory=memory,
            workers=self.workers,
        )

    def transposed_product(self, theta: Tensor, u: Tensor) -> Tensor:
        """``J^T u`` ``(n,)`` for ``u`` of the shape of the residuals, ``(N,)``."""
        self.pack.write(theta)
        self.meter.add(sum(data.cost().gradient for data in self.data))
        parameters = tuple(self.pack.parameters.values())

        @torch.enable_grad()
        def one(piece: tuple[BlockData, Chunk], part: Tensor) -> list[Tensor]:
            data, chunk = piece
            rows = evaluate_rows(data.block, self.system, chunk.points, chunk.prepared)
            weighted = self._scale(data, chunk, rows) * part.view_as(rows) * rows
            return [flat_gradient(weighted.sum(), parameters)]

        chunks = list(self._chunks())
        sizes = [len(chunk.points[0]) // d.block.group * d.n_equations for d, chunk in chunks]
        own = sum(sizes)
        given = zip(chunks, u[:own].split(sizes), strict=True)
        pieces = ordered_map(lambda pair: one(*pair), given, self.workers)
        if self.penalty is None:
            return tree_sum(pieces)[0]
        rows = self.penalty.rows()
        below = flat_gradient((u[own:] * rows).sum(), parameters)
        return tree_sum(chain([[below]], pieces))[0]

    def squares(self, theta: Tensor, memory: float) -> Squares:
        """The square of ``[J | r]`` at ``theta``, its blocks kept if ``memory`` bytes hold them."""
        theta = theta.detach().clone()
        self.pack.write(theta)
        self._count_factor(square)
        pieces: list[tuple[BlockData, Chunk] | Penalty] = [*self._chunks()]
        if self.penalty is not None:
            pieces.append(self.penalty)
        return squares(
            pieces=pieces,
            blocks=self._jacobian_blocks,
            like=theta.new_empty(self.pack.layout.total + 1),
            otherwise=lambda u: self.transposed_product(theta, u),
            memory=memory,
            workers=self.workers,
            meter=self.meter,
        )

    def triangle(self, theta: Tensor) -> Tensor:
        """``R`` of a QR decomposition of ``[J | r]`` at ``theta``, ``(n + 1, n + 1)``."""
        self.pack.write(theta)
        self._count_factor(triangle)
        chunks = list(self._chunks())
        sizes = [len(chunk.points[0]) // data.block.group for data, chunk in chunks]
        columns = self.pack.layout.total + 1
        factor = triangular_factor(chunks, self._jacobian_piece, sizes, columns, self.workers)
        if self.penalty is None:
            return factor
        below = self.penalty.jacobian_piece(self.pack.layout)
        return torch.linalg.qr(torch.cat([factor, below]), mode="r").R

    def single_gains(self, theta: Tensor) -> Tensor:
        """By how much changing one parameter alone lowers the loss, for each of them, ``(n,)``.

        ``(J^T r)_i^2 / (J^T J)_ii``, right for residuals that are linear in it; zero where they
        do not depend on it.
        """
        self.pack.write(theta)
        products, norms = torch.zeros_like(theta), torch.zeros_like(theta)
        for chunk in self._chunks():
            for index, rows in self._jacobian_blocks(chunk):
                columns, residuals = rows[:, :-1], rows[:, -1]
                products[index[:-1]] += columns.mT @ residuals
                norms[index[:-1]] += columns.square().sum(0)
        return torch.where(norms > 0, products.square() / norms, 0.0)

    def _count_factor(self, operations: Callable[[int, int], int]) -> None:
        """Count the rows of ``[J | r]`` and what is made of them."""
        rows = sum(data.n_residuals for data in self.data)
        rows += 0 if self.penalty is None else len(self.penalty.rows())
        self.meter.add(sum(data.cost().jacobian for data in self.data))
        self.meter.add(operations(rows, self.pack.layout.total + 1))

    def _jacobian_piece(self, piece: tuple[BlockData, Chunk]) -> Tensor:
        """``[J | r]`` of one chunk, ``(any, n + 1)``, at the parameters as they stand."""
        rows, scale, jacobian = self._linearised(piece)
        return _weighed(jacobian.dense(rows), rows, scale)

    def _jacobian_blocks(self, piece: tuple[BlockData, Chunk] | Penalty) -> Iterator[Rows]:
        """``[J | r]`` of one chunk or of the penalty, in blocks of rows.

        On a GPU, where finding columns that are zero would take longer than they do, in one block
        with all columns.
        """
        total = self.pack.layout.total
        if isinstance(piece, Penalty):
            rows = piece.jacobian_piece(self.pack.layout)
            yield torch.arange(total + 1, device=rows.device), rows
            return
        rows, scale, jacobian = self._linearised(piece)
        if rows.device.type != "cpu":
            every = torch.arange(total + 1, device=rows.device)
            yield every, _weighed(jacobian.dense(rows), rows, scale)
            return
        for start in range(0, len(rows), BLOCK_ROWS):
            some = slice(start, start + BLOCK_ROWS)
            index, columns = jacobian.at(some).gathered(rows)
            last = index.new_full((1,), total)
            yield torch.cat([index, last]), _weighed(columns, rows[some], scale[some])

    def _linearised(self, piece: tuple[BlockData, Chunk]) -> tuple[Tensor, Tensor, ChunkJacobian]:
        """Rows of one chunk, the factors that weigh them, and their Jacobian without these."""
        data, chunk = piece
        rows, jacobian = linearise_rows(
            data.block, self.system, chunk.points, chunk.prepared, self.pack.layout
        )
        return rows, self._scale(data, chunk, rows), jacobian

    def _linearised_penalty(self, penalty: Penalty) -> tuple[Tensor, ChunkJacobian]:
        """Factors of one ``(rows, 1)``, and the Jacobian of the penalty's rows."""
        columns = penalty.jacobian_piece(self.pack.layout)[:, :-1]
        count, total = columns.shape
        parts = (Columns(slice(0, total), (columns,)),)
        return columns.new_ones(count, 1), ChunkJacobian(parts, count, 1, 1, total)

    def _residual_parts(self) -> Iterator[Tensor]:
        """The residuals of every chunk ``(any,)`` and of the penalty, at the parameters now."""

        @torch.no_grad()
        def one(piece: tuple[BlockData, Chunk]) -> Tensor:
            data, chunk = piece
            rows = evaluate_rows(data.block, self.system, chunk.points, chunk.prepared)
            return (self._scale(data, chunk, rows) * rows).reshape(-1)

        self.meter.add(sum(data.cost().residual for data in self.data))
        yield from ordered_map(one, self._chunks(), self.workers)
        if self.penalty is not None:
            with torch.no_grad():
                yield self.penalty.rows()

    def _chunks(self) -> Iterator[tuple[BlockData, Chunk]]:
        """All chunks of the full batch."""
        return ((data, chunk) for data in self.data for chunk in data.chunks)

    def _scale(self, data: BlockData, chunk: Chunk, rows: Tensor) -> Tensor:
        """Factors ``(n, m)`` that make the loss the sum of squares of the rows ``(n, m)``."""
        block = data.block
        scale = rows.new_full(rows.shape, math.sqrt(block.weight / (data.n_rows * rows.shape[1])))
        where = slice(chunk.rows.start // block.group, chunk.rows.stop // block.group)
        weights = self.attention.get(block.name)
        if weights is not None:
            scale = scale * weights[where, None]
        factors = self._factors(block, chunk, where)
        if factors is not None:
            scale = scale * factors[:, None].sqrt()
        return scale

    def _factors(self, block: ResidualBlock, chunk: Chunk, where: slice | Tensor) -> Tensor | None:
        """``q f`` ``(n,)`` of the rows ``where`` of a block, which are those of the chunk."""
        quadrature, factors = chunk.points[0].data.get(QUADRATURE), self.factors.get(block.name)
        if factors is None:
            return quadrature
        return factors[where] if quadrature is None else quadrature * factors[where]

    def _with_gradient(self) -> Iterator[list[Tensor]]:
        """Every share of the loss with its gradient."""
        parameters = tuple(self.pack.parameters.values())

        def one(share: Tensor) -> list[Tensor]:
            return [share.detach(), flat_gradient(share, parameters)]

        return self._shares(one, gradient=True)

    def _shares(
        self, function: Callable[[Tensor], list[Tensor]], gradient: bool
    ) -> Iterator[list[Tensor]]:
        """A function of every share of the loss: each chunk's, and the penalty's.

        The rows' sizes are kept for the attention weights.
        """
        self.rows = {}
        pieces = list(self._batch())
        costs = [piece.data.cost(piece.chunk) for piece in pieces]
        self.meter.add(sum(cost.gradient if gradient else cost.residual for cost in costs))

        def one(piece: _Piece) -> tuple[list[Tensor], Tensor | None]:
            with torch.set_grad_enabled(gradient):  # threads have modes of their own
                share, sizes = self._share(piece)
                return function(share), sizes

        results = ordered_map(one, pieces, self.workers)
        for piece, (found, sizes) in zip(pieces, results, strict=True):
            if sizes is not None:
                self.rows.setdefault(piece.data.block.name, []).append((piece.where, sizes))
            yield found
        if self.penalty is not None:
            with torch.set_grad_enabled(gradient):
                penalty = function(self.penalty.rows().square().sum())
            yield penalty

    def _batch(self) -> Iterator[_Piece]:
        """The chunks of the full batch, or of a mini-batch."""
        for data in self.data:
            group, chosen = data.block.group, self.chosen.get(data.block.name)
            if chosen is not None:
                for some in chosen.split(data.size):
                    chunk = data.select(some, self.system)
                    yield _Piece(data, chunk, some, len(chosen) // group)
                continue
            for chunk in data.chunks:
                rows = slice(chunk.rows.start // group, chunk.rows.stop // group)
                yield _Piece(data, chunk, rows, data.n_rows)

    def _share(self, piece: _Piece) -> tuple[Tensor, Tensor | None]:
        """A chunk's share of the loss, 0-d, and with attention the sizes of its rows ``(n,)``."""
        block, chunk = piece.data.block, piece.chunk
        rows = evaluate_rows(block, self.system, chunk.points, chunk.prepared)
        weights, sizes = self.attention.get(block.name), None
        if weights is not None:
            sizes = rows.detach().square().sum(-1).sqrt()
            rows = rows * weights[piece.where][:, None]
        values = rows.square() if block.loss is None else block.loss(rows)
        factors = self._factors(block, chunk, piece.where)
        if factors is not None:
            values = values * (factors[:, None] if values.ndim > 1 else factors)
        width = values.shape[-1] if values.ndim > 1 else 1
        return values.sum() * (block.weight / (piece.count * width)), sizes


@dataclass(frozen=True)
class _Piece:
    """Some rows of a block: which they are, and how many are averaged over in all."""

    data: BlockData
    chunk: Chunk
    where: slice | Tensor
    count: int


def _weighed(columns: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    """``[J | r]`` ``(n m, c + 1)`` of ``J`` ``(n, m, c)``, ``r`` and their factors ``(n, m)``."""
    return (torch.cat([columns, rows[..., None]], -1) * scale[..., None]).flatten(0, 1)


def flat_gradient(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The gradient of a number as one vector; zero for parameters it does not depend on."""
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    pieces = [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)
    ]
    return torch.cat([piece.reshape(-1) for piece in pieces])

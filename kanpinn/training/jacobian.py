"""The exact Jacobian of residual rows, chunk by chunk, from one reverse pass per equation.

Points do not interact. With a layer's features ``F`` and the derivatives ``G`` of a point's
residual with respect to the layer's outputs, the derivatives with respect to the coefficients are
the outer product ``sum_k G[k, i, o] F[k, i, f]`` at every point ``i``. What joins several points
(periodicity, jumps, mean values) adds their rows. Products with the Jacobian contract ``F`` and
``G`` with a vector instead, and never make the outer product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kanpinn.geometry import Points
from kanpinn.kernels import LocalFeatures
from kanpinn.models import Prepared
from kanpinn.models.features import DenseFeatures, Features
from kanpinn.models.tape import LayerRecord, Tape
from kanpinn.optimisers import ParameterLayout
from kanpinn.residuals import ResidualBlock, System, evaluate_rows

# Features for every one that is not zero, times outputs, up to which products with held features
# are taken to be faster than those by the kernel, which makes them anew: that is a cost beside the
# products themselves, and the less the more outputs share it. From benchmarks/products.py on a
# machine with AVX2 alone; with AVX-512 matrix products are faster, and the kernel is not measured.
MOST_SPARSE = 12.0


@dataclass(frozen=True)
class Outer:
    """Columns of a parameter ``(out, f)`` that is contracted with features.

    Attributes:
        where: its place in the flat vector.
        features: ``F``, of ``n`` points.
        adjoints: ``G`` ``(K, n, out)``, one for every equation.
    """

    where: slice
    features: Features
    adjoints: tuple[Tensor, ...]

    @property
    def numbers(self) -> int:
        """How many it holds."""
        return self.features.numbers + sum(adjoint.numel() for adjoint in self.adjoints)

    @property
    def used(self) -> Tensor:
        """Numbers of the columns that may be other than zero, in the flat vector."""
        used, size = self.features.used, self.where.stop - self.where.start
        firsts = torch.arange(0, size, self.features.n_features, device=used.device)
        return self.where.start + (firsts[:, None] + used).flatten()

    def at(self, points: slice) -> Outer:
        """Of some of the points."""
        adjoints = tuple(adjoint[:, points] for adjoint in self.adjoints)
        return Outer(self.where, self.features.at(points), adjoints)

    def add_to(self, whole: Tensor, places: Tensor) -> None:
        """Add the columns to ``whole`` ``(n, m, any)``, at the ``places`` of all parameters."""
        for equation, adjoint in enumerate(self.adjoints):
            self.features.add_outer(adjoint, places[self.where], whole[:, equation])

    def dense(self) -> list[Tensor]:
        """The columns ``(n, out * f)``, for every equation."""
        return [self.features.outer(adjoint) for adjoint in self.adjoints]

    def product(self, v: Tensor) -> Tensor:
        """Of the columns with ``v`` ``(out * f,)``, ``(n, m)``."""
        out = self.features.contract(v.view(-1, self.features.n_features))
        return torch.stack([(g * out).sum((0, 2)) for g in self.adjoints], -1)

    def transposed(self, u: Tensor) -> Tensor:
        """Of the columns with ``u`` ``(n, m)``, ``(out * f,)``."""
        parts = [u[:, e, None] * g for e, g in enumerate(self.adjoints)]
        return self.features.transposed(sum(parts[1:], parts[0])).flatten()

    def expanded(self) -> Outer:
        """The same with features that are held, where products are then faster."""
        local, outputs = self.features, self.adjoints[0].shape[-1]
        if isinstance(local, LocalFeatures) and local.sparsity * outputs < MOST_SPARSE:
            return Outer(self.where, DenseFeatures(local.dense()), self.adjoints)
        return self

    def compact(self) -> Part:
        """The same, as columns where these are fewer numbers."""
        equations, points = len(self.adjoints), self.adjoints[0].shape[1]
        if equations * points * (self.where.stop - self.where.start) > self.numbers:
            return self
        return Columns(self.where, tuple(self.dense()))


@dataclass(frozen=True)
class Columns:
    """Columns that are held as they are.

    Attributes:
        where: the parameter's place in the flat vector.
        values: ``(n, size)``, one for every equation.
    """

    where: slice
    values: tuple[Tensor, ...]

    @property
    def numbers(self) -> int:
        """How many it holds."""
        return sum(values.numel() for values in self.values)

    def dense(self) -> Sequence[Tensor]:
        """The columns, for every equation."""
        return self.values

    @property
    def used(self) -> Tensor:
        """Numbers of the columns in the flat vector."""
        return torch.arange(self.where.start, self.where.stop, device=self.values[0].device)

    def at(self, points: slice) -> Columns:
        """Of some of the points."""
        return Columns(self.where, tuple(values[points] for values in self.values))

    def add_to(self, whole: Tensor, places: Tensor) -> None:
        """Add the columns to ``whole`` ``(n, m, any)``, at the ``places`` of all parameters."""
        for equation, values in enumerate(self.values):
            whole[:, equation].index_add_(1, places[self.where], values)

    def product(self, v: Tensor) -> Tensor:
        """Of the columns with ``v`` ``(size,)``, ``(n, m)``."""
        return torch.stack([values @ v for values in self.values], -1)

    def transposed(self, u: Tensor) -> Tensor:
        """Of the columns with ``u`` ``(n, m)``, ``(size,)``."""
        parts = [values.mT @ u[:, e] for e, values in enumerate(self.values)]
        return sum(parts[1:], parts[0])

    def expanded(self) -> Columns:
        """Itself."""
        return self

    def compact(self) -> Part:
        """Itself."""
        return self


Part = Outer | Columns


@dataclass(frozen=True)
class ChunkJacobian:
    """The Jacobian of a chunk's rows, by the parameters it consists of.

    Attributes:
        parts: by parameter; several of one parameter, at several sites, add up.
        n_points: of the chunk.
        n_equations: m.
        group: points whose derivatives add up to one row.
        n_parameters: length of the flat vector.
    """

    parts: tuple[Part, ...]
    n_points: int
    n_equations: int
    group: int
    n_parameters: int

    @property
    def numbers(self) -> int:
        """How many are held."""
        return sum(part.numbers for part in self.parts)

    def compact(self) -> ChunkJacobian:
        """The same in as few numbers as may be."""
        parts = tuple(part.compact() for part in self.parts)
        sizes = (self.n_points, self.n_equations, self.group, self.n_parameters)
        return ChunkJacobian(parts, *sizes)

    def expanded(self) -> ChunkJacobian:
        """The same with features that are held, where many products are then faster."""
        parts = tuple(part.expanded() for part in self.parts)
        sizes = (self.n_points, self.n_equations, self.group, self.n_parameters)
        return ChunkJacobian(parts, *sizes)

    def at(self, rows: slice) -> ChunkJacobian:
        """Of some of the rows."""
        points = slice(rows.start * self.group, min(rows.stop * self.group, self.n_points))
        sizes = (points.stop - points.start, self.n_equations, self.group, self.n_parameters)
        return ChunkJacobian(tuple(part.at(points) for part in self.parts), *sizes)

    def dense(self, like: Tensor) -> Tensor:
        """The whole, ``(rows, m, n)``, of the type of ``like``."""
        whole = like.new_zeros(self.n_points, self.n_equations, self.n_parameters)
        for part in self.parts:
            for equation, columns in enumerate(part.dense()):
                whole[:, equation, part.where] += columns
        return self._grouped(whole)

    def gathered(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Columns that are not zero in all rows: their numbers ``(c,)``, ascending, and values.

        The values are ``(rows, m, c)``, of the type of ``like``.
        """
        used = torch.zeros(self.n_parameters, dtype=torch.bool, device=like.device)
        for part in self.parts:
            used[part.used] = True
        # Columns that are not used have no place, and are never read.
        places, count = (used.cumsum(0) - 1).clamp(min=0), int(used.sum())
        whole = like.new_zeros(self.n_points, self.n_equations, count)
        for part in self.parts:
            part.add_to(whole, places)
        return used.nonzero()[:, 0], self._grouped(whole)

    def _grouped(self, whole: Tensor) -> Tensor:
        """Points' derivatives ``(n, m, any)`` added up to rows': a mean's have its 1 / group."""
        if self.group == 1:
            return whole
        return whole.reshape(-1, self.group, *whole.shape[1:]).sum(1)

    def product(self, v: Tensor) -> Tensor:
        """With ``v`` ``(n,)``, ``(rows, m)``."""
        whole = v.new_zeros(self.n_points, self.n_equations)
        for part in self.parts:
            whole += part.product(v[part.where])
        if self.group > 1:
            whole = whole.reshape(-1, self.group, self.n_equations).sum(1)
        return whole

    def transposed(self, u: Tensor) -> Tensor:
        """Of the transpose with ``u`` ``(rows, m)``, ``(n,)``."""
        u = u.repeat_interleave(self.group, 0) if self.group > 1 else u
        result = u.new_zeros(self.n_parameters)
        for part in self.parts:
            result[part.where] += part.transposed(u)
        return result


def linearise_rows(
    block: ResidualBlock,
    system: System,
    points: Sequence[Points],
    prepared: Sequence[Mapping[str, Prepared]],
    layout: ParameterLayout,
) -> tuple[Tensor, ChunkJacobian]:
    """Residual rows ``(n, m)`` and their derivatives.

    Args:
        block: the residual, with ``m`` equations.
        system: networks and scalars.
        points: per joined site.
        prepared: per joined site and network.
        layout: the parameters, by the names of their groups.
    """
    tape = Tape()
    rows = evaluate_rows(block, system, points, prepared, tape)
    adjoints = list(_adjoints(rows, tape))
    parts = tuple(_parts(tape, adjoints, system, layout.slices()))
    sizes = (len(points[0]), rows.shape[1], block.group, layout.total)
    return rows.detach(), ChunkJacobian(parts, *sizes)


def _adjoints(rows: Tensor, tape: Tape) -> Iterator[list[Tensor]]:
    """Derivatives with respect to all leaves of the tape, for every equation."""
    leaves = [leaf for record in tape.layers for leaf in _leaves(record)]
    leaves += tape.scalars.values()
    for equation in range(rows.shape[1]):
        total, last = rows[:, equation].sum(), equation == rows.shape[1] - 1
        found = torch.autograd.grad(total, leaves, retain_graph=not last, allow_unused=True)
        pairs = zip(leaves, found, strict=True)
        yield [torch.zeros_like(leaf) if g is None else g for leaf, g in pairs]


def _parts(
    tape: Tape, adjoints: Sequence[Sequence[Tensor]], system: System, where: Mapping[str, slice]
) -> Iterator[Part]:
    """What the parameters in ``where`` have to do with the rows."""
    by_leaf = iter(zip(*adjoints, strict=True))
    for record in tape.layers:
        outputs = next(by_leaf)
        copies = {name: next(by_leaf) for name in record.copies}
        layer = system.parts[record.part].network.chain[record.number]
        group = f"{record.part}.layer{record.number}"
        for name, features in record.features.items():
            if f"{group}.{name}" in where:
                yield Outer(where[f"{group}.{name}"], features, outputs)
        each = [
            layer.columns(output, {name: copies[name][e] for name in copies})
            for e, output in enumerate(outputs)
        ]
        for name in each[0]:
            if f"{group}.{name}" in where:
                yield Columns(where[f"{group}.{name}"], tuple(found[name] for found in each))
    for name in tape.scalars:
        values = tuple(adjoint[:, None] for adjoint in next(by_leaf))
        if f"scalars.{name}" in where:
            yield Columns(where[f"scalars.{name}"], values)


def _leaves(record: LayerRecord) -> list[Tensor]:
    return [record.output, *record.copies.values()]

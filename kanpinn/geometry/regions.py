"""Regions: where residual blocks live. The interface, given points, and unions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from kanpinn.errors import DomainError, ProblemError
from kanpinn.geometry.points import Points

Kind = Literal["interior", "boundary", "interface", "initial", "data"]


class Region(ABC):
    """Where a residual block lives: a map from the unit cube to sites of equal density.

    Attributes:
        name: How problems and configs refer to it.
        kind: Which of the sampling counts applies to it.
        unit_dimension: Dimension m of the unit cube that is mapped.
        measure: Volume, area or length; the number of points for a region of finitely many points.
        n_sites: Points joined by one row of a residual: 1, or 2 for pairs (periodicity, jumps).
        n_distinct: Number of points if there are finitely many, else None. Such a region is never
            sampled but given whole, and `place` maps the i-th of N equal parts of [0, 1] to the
            i-th point.
        acceptance: Share of the unit cube that `accepts` keeps.
    """

    name: str
    kind: Kind
    unit_dimension: int
    measure: float
    n_sites: int = 1
    n_distinct: int | None = None
    acceptance: float = 1.0

    @abstractmethod
    def place(self, unit: Tensor) -> tuple[Points, ...]:
        """Map unit (n, m) in [0, 1] to `n_sites` times n points (float64, on the CPU)."""

    def accepts(self, unit: Tensor) -> Tensor:
        """Return the mask (n,) of the rows of unit (n, m) that land in the region.

        Shapes without a map of their own sample a larger shape and reject the rest here; sampling
        drops the other rows before it calls `place`.
        """
        return torch.ones(len(unit), dtype=torch.bool)

    @property
    def parts(self) -> tuple[Region, ...]:
        """The pieces it is made of, each of which a grid covers on its own."""
        return (self,)

    def __repr__(self) -> str:
        """Show the name and the measure."""
        return f"{type(self).__name__}({self.name!r}, measure={self.measure:g})"


@final
class FixedPoints(Region):
    """Given points, such as measurements with their values in the data columns: never sampled.

    Raises:
        DomainError: If there are no points.
    """

    def __init__(self, points: Points, name: str = "data", kind: Kind = "data") -> None:
        if not len(points):
            raise DomainError(f"region {name!r}: no points given, allowed: at least one")
        self.points = points
        self.name = name
        self.kind = kind
        self.unit_dimension = 1
        self.n_distinct = len(points)
        self.measure = float(len(points))

    def place(self, unit: Tensor) -> tuple[Points, ...]:
        """Map unit (n, 1) to the given points, in their order."""
        n = len(self.points)
        index = (unit[:, 0] * n).long().clamp_(0, n - 1).to(self.points.x.device)
        return (self.points.rows(index),)


@final
class RegionUnion(Region):
    """Several regions that do not overlap as one, covered in proportion to their measures.

    The first coordinate of the unit cube is cut into one piece per member, as long as its share
    of the measure; stretched to [0, 1], the piece is the member's own first coordinate. So a
    low-discrepancy sequence stays one on every member, and counts are proportional.

    Raises:
        ProblemError: If there are no members, or of different dimensions or numbers of sites.
    """

    def __init__(self, name: str, kind: Kind, members: Sequence[Region]) -> None:
        signatures = sorted({(part.unit_dimension, part.n_sites) for part in members})
        if len(signatures) != 1:
            raise ProblemError(
                f"region {name!r}: members of (dimension, sites) {signatures}, "
                "allowed: at least one member, all of one dimension and number of sites"
            )
        self.name = name
        self.kind = kind
        self.members = tuple(members)
        self.unit_dimension = max(1, signatures[0][0])  # one coordinate to choose the member
        self.n_sites = signatures[0][1]
        self.measure = math.fsum(part.measure for part in members)
        counts = [part.n_distinct for part in members if part.n_distinct is not None]
        self.n_distinct = sum(counts) if len(counts) == len(members) else None
        # A member that rejects needs a larger share of the cube than it has of the measure.
        shares = [part.measure / part.acceptance for part in members]
        self.acceptance = self.measure / math.fsum(shares)  # exactly 1 if no member rejects
        ends = np.cumsum([0.0, *shares])
        self._edges = torch.from_numpy(ends / ends[-1])

    @property
    def parts(self) -> tuple[Region, ...]:
        """The members' own parts."""
        return tuple(piece for part in self.members for piece in part.parts)

    def accepts(self, unit: Tensor) -> Tensor:
        """Return the mask (n,) of the rows of unit (n, m) that the members keep."""
        member, own = self._split(unit)
        masks = [part.accepts(u) for part, u in zip(self.members, own, strict=True)]
        return torch.cat(masks)[_rank(member)]

    def place(self, unit: Tensor) -> tuple[Points, ...]:
        """Map unit (n, m) to the members, in the order of the rows."""
        member, own = self._split(unit)
        placed = [part.place(u) for part, u in zip(self.members, own, strict=True)]
        rank = _rank(member)
        return tuple(Points.cat(site).rows(rank) for site in zip(*placed, strict=True))

    def _split(self, unit: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the number of each row's member (n,), and the unit points of every member."""
        member = torch.bucketize(unit[:, 0].contiguous(), self._edges[1:-1], right=True)
        pieces = []
        for number, part in enumerate(self.members):
            start, end = self._edges[number], self._edges[number + 1]
            own = unit[member == number].clone()
            own[:, 0] = ((own[:, 0] - start) / (end - start)).clamp_(0.0, 1.0)
            pieces.append(own[:, : part.unit_dimension])
        return member, pieces


def _rank(member: Tensor) -> Tensor:
    """Return where each row (n,) stands once the rows are sorted by member."""
    return torch.argsort(torch.argsort(member, stable=True))

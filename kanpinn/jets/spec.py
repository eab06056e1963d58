"""What a jet carries: a closed set of multi-indices over directions, maybe a summed Laplacian.

A jet is the stack of a function's value and of the derivatives a differential equation needs.
The derivatives are taken along *directions*; by default these are the coordinate axes, but any
fixed vectors will do, since derivatives along constant directions commute.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from kanpinn.errors import ProblemError

MultiIndex = tuple[int, ...]
MAX_ORDER = 4

# One term of the chain rule: (count, m, components) stands for count * f^(m) * prod(z[components]).
Term = tuple[int, int, tuple[int, ...]]


@dataclass(frozen=True)
class JetSpec:
    """The components of a jet, in the order in which they are stacked.

    Attributes:
        n_directions: number of directions the derivatives are taken along.
        indices: multi-indices, one entry per direction; downward closed, the value first.
        laplacian: directions ``a`` of an extra last component ``sum_a d^2/da^2``, carried as one
            sum (forward Laplacian); ``None`` if there is none. Needs the first derivatives.

    Raises:
        ProblemError: for an index of order above 4, or a set that is not downward closed.
    """

    n_directions: int
    indices: tuple[MultiIndex, ...]
    laplacian: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        known = set(self.indices)
        if any(len(index) != self.n_directions for index in known):
            raise ProblemError(
                f"jet indices {self.indices} do not fit {self.n_directions} directions"
            )
        if len(known) < len(self.indices):
            raise ProblemError(f"jet indices {self.indices} are repeated")
        if not self.indices or any(self.indices[0]):
            raise ProblemError("a jet's first component must be the value")
        for index in self.indices:
            if sum(index) > MAX_ORDER:
                raise ProblemError(
                    f"derivative {index} has order {sum(index)}; jets carry orders up to "
                    f"{MAX_ORDER}"
                )
            if any(lower not in known for lower in _predecessors(index)):
                raise ProblemError(f"jet indices are not downward closed below {index}")
        for a in self.laplacian or ():
            if _unit(self.n_directions, a) not in known:
                raise ProblemError("a summed Laplacian needs the first derivatives")

    @classmethod
    def closure(
        cls,
        n_directions: int,
        wanted: Iterable[Sequence[int]],
        laplacian: Sequence[int] | None = None,
    ) -> JetSpec:
        """The smallest specification that carries the ``wanted`` multi-indices."""
        todo = {tuple(int(k) for k in index) for index in wanted}
        todo |= {_unit(n_directions, a) for a in laplacian or ()}
        todo.add((0,) * n_directions)
        closed: set[MultiIndex] = set()
        while todo:
            index = todo.pop()
            closed.add(index)
            todo |= _predecessors(index) - closed
        ordered = sorted(closed, key=lambda index: (sum(index), tuple(-k for k in index)))
        return cls(n_directions, tuple(ordered), tuple(laplacian) if laplacian else None)

    @classmethod
    def value_only(cls, n_directions: int) -> JetSpec:
        """The specification that carries no derivative."""
        return cls(n_directions, ((0,) * n_directions,))

    @property
    def n_components(self) -> int:
        """Number of stacked components."""
        return len(self.indices) + (self.laplacian is not None)

    @property
    def order(self) -> int:
        """Highest order of derivative carried."""
        pure = max(sum(index) for index in self.indices)
        return max(pure, 2 if self.laplacian else 0)

    @cached_property
    def position(self) -> dict[MultiIndex, int]:
        """Component number of each multi-index."""
        return {index: k for k, index in enumerate(self.indices)}

    @cached_property
    def first(self) -> tuple[int | None, ...]:
        """Component number of each direction's first derivative, ``None`` where not carried."""
        units = (_unit(self.n_directions, a) for a in range(self.n_directions))
        return tuple(self.position.get(unit) for unit in units)

    @cached_property
    def chain_terms(self) -> tuple[tuple[Term, ...], ...]:
        """Terms of the multivariate Faa di Bruno formula, for every component.

        ``D^alpha f(z) = sum over partitions pi of alpha: f^(|pi|)(z) prod_{B in pi} D^B z``
        (Constantine and Savits, doi:10.1090/S0002-9947-96-01501-2).
        """
        rows = [self._partitions(index) for index in self.indices]
        if self.laplacian is not None:
            squares = [(1, 2, (self._first(a), self._first(a))) for a in self.laplacian]
            rows.append((*squares, (1, 1, (self.n_components - 1,))))
        return tuple(rows)

    @cached_property
    def product_terms(self) -> tuple[tuple[tuple[int, int, int], ...], ...]:
        """Terms ``(count, i, j)`` of the Leibniz rule: component of ``f g`` = sum count f_i g_j."""
        rows = []
        for index in self.indices:
            lower = itertools.product(*(range(k + 1) for k in index))
            rows.append(tuple(self._leibniz(index, beta) for beta in lower))
        if self.laplacian is not None:
            last = self.n_components - 1
            cross = [(2, self._first(a), self._first(a)) for a in self.laplacian]
            rows.append(((1, 0, last), (1, last, 0), *cross))
        return tuple(rows)

    def _first(self, direction: int) -> int:
        return self.position[_unit(self.n_directions, direction)]

    def _leibniz(self, index: MultiIndex, beta: MultiIndex) -> tuple[int, int, int]:
        count = math.prod(math.comb(k, b) for k, b in zip(index, beta, strict=True))
        rest = tuple(k - b for k, b in zip(index, beta, strict=True))
        return count, self.position[beta], self.position[rest]

    def _partitions(self, index: MultiIndex) -> tuple[Term, ...]:
        letters = [a for a, k in enumerate(index) for _ in range(k)]
        counts: Counter[tuple[int, ...]] = Counter()
        for partition in _set_partitions(len(letters)):
            blocks = []
            for block in partition:
                alpha = [0] * self.n_directions
                for element in block:
                    alpha[letters[element]] += 1
                blocks.append(self.position[tuple(alpha)])
            counts[tuple(sorted(blocks))] += 1
        terms = sorted(counts.items(), key=lambda item: (len(item[0]), item[0]))
        return tuple((count, len(blocks), blocks) for blocks, count in terms)


def _unit(n: int, a: int) -> MultiIndex:
    return tuple(int(b == a) for b in range(n))


def _predecessors(index: MultiIndex) -> set[MultiIndex]:
    return {
        tuple(k - (b == a) for b, k in enumerate(index)) for a in range(len(index)) if index[a] > 0
    }


@cache
def _set_partitions(n: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """All partitions of ``0 .. n-1`` into non-empty blocks (1, 1, 2, 5, 15 of them)."""
    if n == 0:
        return ((),)
    result = []
    for smaller in _set_partitions(n - 1):
        result.append((*smaller, (n - 1,)))
        for k, block in enumerate(smaller):
            result.append((*smaller[:k], (*block, n - 1), *smaller[k + 1 :]))
    return tuple(result)

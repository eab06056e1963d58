"""Boxes in space and time, with their faces, periodic pairs and plane interfaces.

Coordinates come from separately rounded additions and multiplications (no fused operations), so
that they do not depend on how many threads share the work.
"""

from __future__ import annotations

import difflib
import keyword
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from torch import Tensor

from kanpinn.errors import ProblemError
from kanpinn.geometry.domain import Domain
from kanpinn.geometry.points import Points
from kanpinn.geometry.regions import Region, RegionUnion

INTERFACE_GAP = 1e-6
"""Points of other regions keep this distance from an interface, relative to the larger of the
domain's width and the interface's coordinate: far above round-off in float32, far below any
feature of a solution."""


@final
@dataclass(frozen=True)
class Box(Domain):
    """Product of intervals, `lower[i] <= x[i] <= upper[i]`, in space or in space and time.

    Regions by name: "interior"; "boundary", all faces but those of time; "initial" and "final",
    time at its lower and upper end; single faces such as "x.lower"; pairs of opposite faces
    such as "x.periodic"; interfaces such as "x=0", and "interfaces", all of them.

    Args:
        lower, upper: Ends of the intervals.
        names: Names of the coordinates; by default x, y, z (x1, x2, ... above three), and time's
            last.
        time: Name of the time coordinate, which must be the last, or None.
        interfaces: Coordinate name to the places where planes across it cut the domain, e.g.
            ``{"x": (0.0,)}``. Other regions keep clear of them by `INTERFACE_GAP` (a point that
            falls on the plane moves to the plus side), so that every point has a side.

    Raises:
        ProblemError: If the ends, names or interfaces contradict each other.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    names: tuple[str, ...] = ()
    time: str | None = None
    interfaces: Mapping[str, tuple[float, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check the parts against each other and make them tuples."""
        lower, upper = _numbers("lower", self.lower), _numbers("upper", self.upper)
        if not lower or len(lower) != len(upper):
            raise ProblemError(
                f"box: lower has {len(lower)} and upper {len(upper)} numbers, "
                "allowed: the same number, at least 1"
            )
        names = _coordinate_names(self.names, len(lower), self.time)
        for name, low, high in zip(names, lower, upper, strict=True):
            # An infinite difference catches infinite ends and ends too far apart for float64.
            if not (low < high and math.isfinite(high - low)):
                raise ProblemError(
                    f"box: {name} in [{_short(low)}, {_short(high)}], "
                    "allowed: finite ends with lower < upper"
                )
        for key, value in (("lower", lower), ("upper", upper), ("names", names)):
            object.__setattr__(self, key, value)
        if not isinstance(self.interfaces, Mapping):
            raise ProblemError(
                f"box: interfaces is {self.interfaces!r}, "
                "allowed: coordinate names with their places, e.g. {'x': (0.0,)}"
            )
        interfaces = {name: self._cuts(name, at) for name, at in self.interfaces.items()}
        object.__setattr__(self, "interfaces", interfaces)

    def _cuts(self, name: str, places: Iterable[float]) -> tuple[float, ...]:
        """Check the places of the interfaces across one coordinate, and sort them."""
        spatial = [self.names[axis] for axis in self.spatial_axes]
        if name not in spatial:
            raise ProblemError(
                f"box: interfaces: coordinate {name!r}, allowed: {', '.join(spatial) or 'none'}"
            )
        axis = self.names.index(name)
        cuts = tuple(sorted(_numbers(f"interfaces of {name}", places)))
        low, high = self.lower[axis], self.upper[axis]
        if not cuts or len(set(cuts)) < len(cuts) or not all(low < cut < high for cut in cuts):
            raise ProblemError(
                f"box: interfaces of {name} at {list(cuts)}, "
                f"allowed: different numbers inside ({_short(low)}, {_short(high)})"
            )
        return cuts

    def contains(self, x: Tensor, tolerance: float | None = None) -> Tensor:
        """Return the mask (n,) of the rows of x (n, d) that lie in the closed box.

        By default a coordinate may leave its range by 4 eps of x's dtype times the larger end.
        """
        low, high = (x.new_tensor(ends) for ends in (self.lower, self.upper))
        slack = 4 * torch.finfo(x.dtype).eps * torch.maximum(low.abs(), high.abs())
        if tolerance is not None:
            slack = torch.full_like(low, tolerance)
        return ((x >= low - slack) & (x <= high + slack)).all(dim=1)

    def outside(self, site: Sequence[float]) -> str:
        """Name the coordinate that is farthest outside, and its allowed range."""
        ends = list(zip(self.lower, self.upper, strict=True))
        excess = [
            max(low - value, value - high) / (high - low)
            for value, (low, high) in zip(site, ends, strict=True)
        ]
        axis = int(np.argmax(excess))
        low, high = ends[axis]
        return (
            f"{self.names[axis]} = {_short(site[axis])} is outside the domain, "
            f"allowed: [{_short(low)}, {_short(high)}]"
        )

    def region_names(self) -> tuple[str, ...]:
        """Names that `region` knows."""
        return tuple(self._regions())

    def region(self, name: str) -> Region:
        """Return the region of that name; "x=0.0" and "t.lower" find "x=0" and "initial".

        Raises:
            ProblemError: If there is no such region; the message offers the nearest name.
        """
        known = self._regions()
        key = self._canonical(name)
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ProblemError(f"unknown region {name!r}, {hint}allowed: {', '.join(known)}")
        return known[key]

    def _canonical(self, name: str) -> str:
        coordinate, equals, number = name.partition("=")
        if equals:
            try:
                return _interface_name(coordinate.strip(), float(number) + 0.0)
            except ValueError:
                return name
        if self.time is not None:
            ends = {f"{self.time}.lower": "initial", f"{self.time}.upper": "final"}
            return ends.get(name, name)
        return name

    def _regions(self) -> dict[str, Region]:
        """All regions by name."""
        faces = [Face(self, axis, side) for axis in self.spatial_axes for side in (-1, 1)]
        regions: list[Region] = [Interior(self)]
        if faces:
            regions.append(RegionUnion("boundary", "boundary", faces))
        if self.time is not None:
            regions += [Face(self, self.dimension - 1, side) for side in (-1, 1)]
        regions += faces
        regions += [PeriodicPair(self, axis) for axis in range(self.dimension)]
        planes = [
            Interface(self, self.names.index(name), at)
            for name, cuts in self.interfaces.items()
            for at in cuts
        ]
        if planes:
            regions += [*planes, RegionUnion("interfaces", "interface", planes)]
        return {region.name: region for region in regions}

    def stretch(self, unit: Tensor, axes: Sequence[int]) -> dict[int, Tensor]:
        """Map unit (n, len(axes)) to the coordinates `axes`, each (n,), clear of interfaces."""
        columns = {}
        for column, axis in enumerate(axes):
            low, high, u = self.lower[axis], self.upper[axis], unit[:, column]
            # Only u = 1 can miss the end: below it, (high - low) u rounds to at most high - low.
            value = torch.where(u >= 1.0, high, low + (high - low) * u)
            cuts = self.interfaces.get(self.names[axis], ())
            for at in cuts:
                value = _keep_clear(value, at, (low, *cuts, high))
            columns[axis] = value
        return columns


def _keep_clear(value: Tensor, at: float, marks: Sequence[float]) -> Tensor:
    """Move values (n,) closer than the gap to `at` onto the gap's end, on their own side."""
    room = min(abs(mark - at) for mark in marks if mark != at)
    gap = min(INTERFACE_GAP * max(marks[-1] - marks[0], abs(at)), room / 4)
    near = (value - at).abs() < gap
    return torch.where(near, torch.where(value >= at, at + gap, at - gap), value)


@final
class Interior(Region):
    """The inside of a box."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.name = "interior"
        self.kind = "interior"
        self.unit_dimension = box.dimension
        self.measure = math.prod(map(_width, box.lower, box.upper))

    def place(self, unit: Tensor) -> tuple[Points, ...]:
        """Map unit (n, d) to points (n, d)."""
        columns = self.box.stretch(unit, range(self.box.dimension))
        return (Points(torch.stack([columns[axis] for axis in sorted(columns)], dim=1)),)


class Plane(Region):
    """Part of a box on which one coordinate is fixed: faces, periodic pairs and interfaces."""

    def __init__(self, box: Box, axis: int) -> None:
        if not 0 <= axis < box.dimension:
            raise ProblemError(
                f"region: axis {axis}, allowed: 0 to {box.dimension - 1} "
                f"for the coordinates {', '.join(box.names)}"
            )
        self.box = box
        self.axis = axis
        self.others = tuple(other for other in range(box.dimension) if other != axis)
        self.unit_dimension = len(self.others)
        self.measure = math.prod(_width(box.lower[i], box.upper[i]) for i in self.others)
        self.n_distinct = None if self.others else 1  # in one dimension a point

    @abstractmethod
    def place(self, unit: Tensor) -> tuple[Points, ...]:
        """Map unit (n, d - 1) to `n_sites` times n points."""

    def _at(self, unit: Tensor, at: float, normal: float, side: int | None = None) -> Points:
        """Place unit (n, d - 1) where the coordinate `axis` equals `at`."""
        columns = self.box.stretch(unit, self.others)
        columns[self.axis] = unit.new_full((len(unit),), at)
        x = torch.stack([columns[axis] for axis in range(self.box.dimension)], dim=1)
        normals = torch.zeros_like(x)
        normals[:, self.axis] = normal
        sides = None if side is None else torch.full((len(unit),), side, dtype=torch.int8)
        return Points(x, normals, sides)


@final
class Face(Plane):
    """One face of a box, `side` -1 for the lower and +1 for the upper, with outward normals.

    Named such as "x.lower"; in time "initial" and "final".
    """

    def __init__(self, box: Box, axis: int, side: int) -> None:
        super().__init__(box, axis)
        if side not in (-1, 1):
            raise ProblemError(f"face: side {side}, allowed: -1 (lower), 1 (upper)")
        self.side = side
        coordinate = box.names[axis]
        if coordinate == box.time:
            self.kind = "initial"
            self.name = "initial" if side < 0 else "final"
        else:
            self.kind = "boundary"
            self.name = f"{coordinate}.{'lower' if side < 0 else 'upper'}"

    def place(self, unit: Tensor) -> tuple[Points, ...]:
        """Map unit (n, d - 1) to points (n, d) of the face."""
        ends = self.box.lower if self.side < 0 else self.box.upper
        return (self._at(unit, ends[self.axis], float(self.side)),)


@final
class PeriodicPair(Plane):
    """Two sites per row: a point of the lower face, and the one opposite on the upper face.

    Named such as "x.periodic". Both normals point outwards, so they are opposite.
    """

    n_sites = 2

    def __init__(self, box: Box, axis: int) -> None:
        super().__init__(box, axis)
        self.kind = "boundary"
        self.name = f"{box.names[axis]}.periodic"

    def place(self, unit: Tensor) -> tuple[Points, ...]:
        """Map unit (n, d - 1) to points on the lower and on the upper face."""
        low, high = self.box.lower[self.axis], self.box.upper[self.axis]
        return self._at(unit, low, -1.0), self._at(unit, high, 1.0)


@final
class Interface(Plane):
    """Two sites per row: the same point of a plane inside, approached from the - and the + side.

    Named such as "x=0". The normal points along the positive axis, from - to +, at both sites.
    """

    n_sites = 2

    def __init__(self, box: Box, axis: int, at: float) -> None:
        super().__init__(box, axis)
        (self.at,) = box._cuts(box.names[axis], (at,))
        self.kind = "interface"
        self.name = _interface_name(box.names[axis], self.at)

    def place(self, unit: Tensor) -> tuple[Points, ...]:
        """Map unit (n, d - 1) to points on the minus and on the plus side."""
        return self._at(unit, self.at, 1.0, -1), self._at(unit, self.at, 1.0, 1)


def _width(low: float, high: float) -> float:
    return high - low


def _short(value: float) -> str:
    """Return six digits of a number, or all of them where six are not exact."""
    text = f"{value:g}"
    return text if float(text) == value else repr(value)


def _interface_name(coordinate: str, at: float) -> str:
    return f"{coordinate}={_short(at)}"


def _numbers(what: str, values: Iterable[float]) -> tuple[float, ...]:
    try:
        if isinstance(values, str):
            raise TypeError
        return tuple(float(value) + 0.0 for value in values)  # + 0.0 turns -0.0 into 0.0
    except (TypeError, ValueError):
        raise ProblemError(f"box: {what} is {values!r}, allowed: a sequence of numbers") from None


def _coordinate_names(names: Sequence[str], dimension: int, time: str | None) -> tuple[str, ...]:
    """Check the names of the coordinates, or choose them if there are none."""
    if isinstance(names, str):
        raise ProblemError(f"box: names is {names!r}, allowed: a sequence of names")
    if not names:
        spatial = dimension - (time is not None)
        chosen = ("x", "y", "z")[:spatial]
        if spatial > 3:
            chosen = tuple(f"x{number}" for number in range(1, spatial + 1))
        names = chosen if time is None else (*chosen, time)
    found = tuple(names)
    for name in found:
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise ProblemError(f"box: coordinate name {name!r}, allowed: an identifier such as x")
    if len(found) != dimension or len(set(found)) < dimension:
        raise ProblemError(
            f"box: names {', '.join(found)}, allowed: {dimension} different names, one for each "
            "coordinate"
        )
    if time is not None and time != found[-1]:
        raise ProblemError(
            f"box: time is {time!r}, allowed: the last coordinate, {found[-1]!r}, or None"
        )
    return found

"""From a solution and its problem to the plain arrays that the figures take."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kanpinn.geometry import Box, Points
from kanpinn.jets import JetSpec
from kanpinn.plotting.fields import FieldSection
from kanpinn.plotting.style import Floats
from kanpinn.problem import Problem
from kanpinn.residuals import ResidualBlock, System, evaluate_rows, required_jets
from kanpinn.training.block_data import UNBOUNDED
from kanpinn.training.derivatives import map_slices
from kanpinn.training.memory import Memory

LINE_POINTS, PLANE_POINTS, COARSE_POINTS = 1001, 201, 33
BESIDE = 0.375  # unit coordinate of the planes taken where nothing happens on the mid planes
MOST_PLANES = 3

Predict = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Extent:
    """The bounding box fields are drawn in.

    Attributes:
        names: coordinates.
        lower, upper: its corners.
        time: name of the time coordinate, or ``None``.
    """

    names: tuple[str, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    time: str | None

    @classmethod
    def of(cls, system: System, problem: Problem | None) -> Extent:
        """The problem's domain, or what the networks' inputs know of it."""
        if problem is not None:
            domain = problem.domain
            return cls(tuple(domain.names), tuple(domain.lower), tuple(domain.upper), domain.time)
        names, time = system.coordinates.names, system.coordinates.time
        lower, upper = zip(*system.bounds, strict=True)
        return cls(names, lower, upper, None if time is None else names[time])


@dataclass(frozen=True)
class Slice:
    """Where a section lies: the axes it runs along, and unit coordinates of the others."""

    along: tuple[int, ...]
    fixed: tuple[tuple[int, float], ...]


def slices(extent: Extent, depth: float = 0.5) -> list[Slice]:
    """The sections that show a domain.

    A line in one dimension, the whole domain in two; over a plane and time three instants; in
    three dimensions and more planes of the first space coordinates, at the final time.

    Args:
        extent: the domain's.
        depth: unit coordinate of the planes; the mid planes by default.
    """
    axes = range(len(extent.names))
    time = None if extent.time is None else extent.names.index(extent.time)
    space = [axis for axis in axes if axis != time]
    if len(extent.names) <= 2:
        return [Slice(tuple(axes), ())]
    if time is not None and len(space) == 2:
        return [Slice(tuple(space), ((time, at),)) for at in (0.0, 0.5, 1.0)]
    planes = itertools.islice(itertools.combinations(space, 2), MOST_PLANES)
    return [
        Slice(pair, tuple((a, 1.0 if a == time else depth) for a in axes if a not in pair))
        for pair in planes
    ]


def _telling_slices(
    extent: Extent, predict: Predict, problem: Problem | None, n_fields: int
) -> list[Slice]:
    """Mid planes, or planes beside them if the fields hardly vary on the mid planes.

    Many a symmetric field is zero on all mid planes.
    """
    middle = slices(extent)
    beside = slices(extent, BESIDE)
    if middle == beside:
        return middle
    spread = []
    for sections in (middle, beside):
        grids = [_Grid.on(where, extent, problem, COARSE_POINTS) for where in sections]
        x = np.concatenate([grid.x for grid in grids])
        exact = None if problem is None else problem.reference(x)
        values = np.asarray(predict(x) if exact is None else exact).reshape(-1, n_fields)
        spread.append(float(np.nan_to_num(values.std(0)).max()))
    return middle if spread[0] >= 0.3 * spread[1] else beside


def field_sections(
    predict: Predict,
    system: System,
    problem: Problem | None,
    fields: Sequence[str] | None = None,
    with_residuals: bool = True,
    memory: Memory = UNBOUNDED,
) -> list[FieldSection]:
    """The sections of a solution, with reference and residuals where the problem gives them.

    Args:
        predict: maps points ``(n, d)`` to fields ``(n, n_fields)``.
        system: the networks, for the residuals.
        problem: ``None`` if it is not known; reference and residuals are then left out.
        fields: names of the columns that ``predict`` returns; the system's by default.
        with_residuals: whether to evaluate residuals.
        memory: what that may take.
    """
    extent = Extent.of(system, problem)
    names = tuple(system.field_names if fields is None else fields)
    sections = []
    for where in _telling_slices(extent, predict, problem, len(names)):
        count = LINE_POINTS if len(where.along) == 1 else PLANE_POINTS
        grid = _Grid.on(where, extent, problem, count)
        reference = {} if problem is None else _reference(problem, grid)
        residuals = {}
        if problem is not None and with_residuals:
            points = _residual_points(problem, grid)
            columns = residual_columns(problem, system, points, memory)
            residuals = {name: grid.full(column) for name, column in columns}
        values = np.asarray(predict(grid.x), dtype=np.float64).reshape(-1, len(names))
        sections.append(
            FieldSection(
                axes=grid.axes,
                values={name: grid.full(values[:, k]) for k, name in enumerate(names)},
                reference={name: reference[name] for name in names if name in reference},
                residuals=residuals,
                fixed=grid.fixed,
                time=extent.time,
                inside=grid.inside.reshape(grid.shape),
            )
        )
    return sections


@dataclass(frozen=True, eq=False)
class _Grid:
    """Points of a section.

    Attributes:
        axes: the coordinates that vary, ``(k,)`` each.
        fixed: the others.
        shape: of the arrays over the section.
        inside: which points lie in the domain ``(n,)``.
        unit: these in the unit cube ``(m, d)``.
        x: these in the domain ``(m, d)``.
    """

    axes: dict[str, Floats]
    fixed: dict[str, float]
    shape: tuple[int, ...]
    inside: NDArray[np.bool_]
    unit: Floats
    x: Floats

    @classmethod
    def on(cls, where: Slice, extent: Extent, problem: Problem | None, count: int) -> _Grid:
        """The grid of a section, ``count`` points along every axis, ends included."""
        unit = _unit_points(where, len(extent.names), count)
        low, high = np.array(extent.lower), np.array(extent.upper)
        # low + (high - low) can round to beyond high.
        x = np.where(unit == 1.0, high, low + (high - low) * unit)
        inside = np.ones(len(x), dtype=bool)
        if problem is not None:
            inside = problem.domain.contains(torch.from_numpy(x)).numpy()
        at = {extent.names[a]: float(x[0, a]) for a, _ in where.fixed}
        axes = {extent.names[a]: np.linspace(low[a], high[a], count) for a in where.along}
        return cls(axes, at, (count,) * len(where.along), inside, unit[inside], x[inside])

    def full(self, rows: Floats) -> Floats:
        """Values on the whole grid from those in the domain ``(m,)``; elsewhere not a number."""
        values = np.full(len(self.inside), np.nan)
        values[self.inside] = rows
        return values.reshape(self.shape)


def _reference(problem: Problem, grid: _Grid) -> dict[str, Floats]:
    exact = problem.reference(grid.x)
    if exact is None:
        return {}
    columns = np.asarray(exact, dtype=np.float64).reshape(-1, len(problem.fields))
    return {name: grid.full(columns[:, k]) for k, name in enumerate(problem.fields)}


def _unit_points(where: Slice, dimension: int, count: int) -> Floats:
    """Points ``(n, d)`` of the unit cube on the section, its last coordinate fastest."""
    line = np.linspace(0.0, 1.0, count)
    grid = np.meshgrid(*[line] * len(where.along), indexing="ij")
    unit = np.empty((grid[0].size, dimension))
    for axis, column in zip(where.along, grid, strict=True):
        unit[:, axis] = column.ravel()
    for axis, at in where.fixed:
        unit[:, axis] = at
    return unit


def _residual_points(problem: Problem, grid: _Grid) -> Points:
    """Interior points as training has them: on a box, clear of its interfaces."""
    if isinstance(problem.domain, Box):
        return problem.domain.interior().place(torch.from_numpy(grid.unit))[0]
    return Points(torch.from_numpy(grid.x))


def residual_columns(
    problem: Problem, system: System, points: Points, memory: Memory = UNBOUNDED
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Names and residuals ``(n,)`` of the problem's differential equations at interior points.

    Blocks that hold elsewhere, that join points, or that take no derivative (data to fit, whose
    residual is the error) are left out.
    """
    like = next(iter(system.parameters()))
    points = points.to(like.dtype, like.device)
    for block in problem.blocks():
        region = block.region
        local = region.n_sites == 1 and block.group == 1 and region.n_distinct is None
        if not (block.equation and local and region.kind == "interior"):
            continue
        specs = required_jets(block, system)
        if max((spec.order for spec in specs.values()), default=0) == 0:
            continue
        rows = _rows(block, system, specs, points, memory)
        for k in range(rows.shape[1]):
            yield (block.name if rows.shape[1] == 1 else f"{block.name} {k + 1}"), rows[:, k]


def _rows(
    block: ResidualBlock,
    system: System,
    specs: Mapping[str, JetSpec],
    points: Points,
    memory: Memory,
) -> NDArray[np.float64]:
    """Residual rows ``(n, m)``, in chunks, without gradient."""
    widest = max(specs.values(), key=lambda spec: spec.n_components)

    def one(piece: slice) -> Tensor:
        at = points.rows(piece)
        parts = [
            (rows, _own_rows(block, owner, specs, at.rows(rows)))
            for rows, owner in system.pieces(at.x)
        ]
        found = torch.empty(len(at), parts[0][1].shape[1], dtype=torch.float64)
        for where, values in parts:
            found[where if isinstance(where, slice) else where.cpu()] = values.double().cpu()
        return found

    pieces = map_slices(one, system, len(points), widest, memory)
    return torch.cat(list(pieces)).numpy()


def _own_rows(
    block: ResidualBlock, system: System, specs: Mapping[str, JetSpec], at: Points
) -> Tensor:
    """Residual rows ``(n, m)`` of a system's own networks, in their type."""
    at = at.to(next(system.parameters()).dtype)
    prepared = {
        name: system.parts[name].prepare(at.x, spec, at.side) for name, spec in specs.items()
    }
    return evaluate_rows(block, system, (at,), (prepared,))


def is_regression(problem: Problem, system: System) -> bool:
    """Whether no equation of the problem takes a derivative: a function or data to fit."""
    equations = [block for block in problem.blocks() if block.equation]
    orders = [spec.order for b in equations for spec in required_jets(b, system).values()]
    return bool(orders) and max(orders) == 0


@dataclass(frozen=True, eq=False)
class DataRows:
    """Rows of data of one field, with what the solution says there.

    Attributes:
        x: ``(n, d)``.
        measured, predicted: ``(n,)``.
    """

    x: Floats
    measured: Floats
    predicted: Floats


def rows_of_data(
    blocks: Sequence[ResidualBlock] | None, predict: Predict, fields: Sequence[str]
) -> dict[str, DataRows]:
    """Data by field, with what the solution says there.

    They are the columns named like fields in blocks of given points; empty without such.
    """
    found: dict[str, list[tuple[Floats, Floats, Floats]]] = {}
    for block in blocks or ():
        region = block.region
        if region.kind != "data" or region.n_distinct is None:
            continue
        # A region of given points maps the i-th of n equal parts of [0, 1] to the i-th point.
        middles = (torch.arange(region.n_distinct, dtype=torch.float64) + 0.5) / region.n_distinct
        points = region.place(middles[:, None].expand(-1, region.unit_dimension))[0]
        x = points.x.double().cpu().numpy()
        values = np.asarray(predict(x), dtype=np.float64)
        for k, name in enumerate(fields):
            if name in points.data:
                measured = points.data[name].double().cpu().numpy()
                found.setdefault(name, []).append((x, measured, values[:, k]))
    return {
        name: DataRows(*(np.concatenate(column) for column in zip(*pieces, strict=True)))
        for name, pieces in found.items()
    }

"""Fourier spectrum of what is left: the PDE's residual, or the error of a fit, level by level.

Figures 7 and 8 of arXiv 2603.04827: coarse levels leave smooth residuals small and oscillatory ones
large, which finer levels then take up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Le, MinLen
from numpy.typing import NDArray
from scipy.fft import dctn
from torch import Tensor

from kanpinn.analysis.finding import Case, Finding, labelled
from kanpinn.analysis.stages import Moment, Stage, run_stages
from kanpinn.errors import ConfigError
from kanpinn.geometry import Box
from kanpinn.problem import Problem
from kanpinn.residuals import ResidualBlock, System
from kanpinn.solution.origin import problem_of
from kanpinn.training import predict
from kanpinn.training.block_data import BlockData, residual_rows
from kanpinn.training.evaluation import reference_values

Floats = NDArray[np.float64]
Of = Literal["auto", "residual", "error"]


@dataclass(frozen=True, kw_only=True)
class ResidualSpectrum:
    """Spectrum of the residual, or of the error, at the start and the end of every level."""

    columns: ClassVar[frozenset[str]] = frozenset(  # no axis can be called like one
        {"window", "level", "intervals", "moment", "of", "rms"}
        | {"frequency", "beyond_knots", "amplitude"}
    )

    name: Annotated[Literal["residual_spectrum"], "Fourier spectra of residuals along a run"] = (
        "residual_spectrum"
    )
    of: Annotated[
        Of,
        "the equation's residual, or the error against the reference; auto: the residual where "
        "the equation holds everywhere, else (a fit of data) the error",
    ] = "auto"
    moments: Annotated[
        Annotated[tuple[Moment, ...], MinLen(1)], "when: at the start, at the end of every level"
    ] = ("start", "end")
    points: Annotated[int, Ge(16), Le(1_000_000), "points of the regular grid, about"] = 4096


def residual_spectrum(
    options: ResidualSpectrum,
    cases: Sequence[Case],
    problem: Problem | None = None,
    trust: bool = False,
) -> Finding:
    """Cosine spectra on the middles of the cells of a regular grid over the domain.

    A residual is not periodic: the cosine transform (DCT-II) continues it evenly, without the jumps
    whose spectrum would hide its own, and needs no window. Frequencies ``k`` are half-waves over
    the domain, per coordinate; they are binned by ``|k|``, rounded. ``amplitude`` of a bin is the
    root of its share of the mean square, all equations or fields together; curves end where the
    bins leave the axes for the corners. Rows have

    - ``rms``: the root of the mean square, all bins;
    - ``frequency``: the mean of ``|k|``, weighed by the squared amplitudes;
    - ``beyond_knots``: share of the mean square in frequencies above the number of knot intervals
      of the first layer, which the splines of the level can barely follow.

    Raises:
        ConfigError: if the domain is no box, or there is no reference to take an error to.
    """
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    quantities: dict[str, None] = {}
    for labels, solution in cases:
        own = problem_of(solution, problem, trust)
        of = _quantity(options, own)
        quantities[of] = None
        for stage in run_stages(solution, own):
            if stage.moment not in options.moments:
                continue
            values = grid_values(stage, of, options.points)
            amplitudes = spectrum(values)
            columns = {**stage.columns, "of": of}
            rows.append(labelled(labels, {**columns, **_summary(amplitudes, stage)}))
            points = _points(amplitudes[: len(values)])
            curves += [labelled(labels, {**columns, **point}) for point in points]
    text = (
        f"Cosine transform (even continuation, no window) of the {' or the '.join(quantities)} on "
        f"a regular grid of about {options.points} points over the domain, binned by |k|, k in "
        "half-waves over the domain per coordinate. A level's start is what the prolongation makes "
        "of the level before."
    )
    return Finding("residual_spectrum", "Spectrum of what is left", text, rows, tuple(curves))


def equations(problem: Problem) -> list[ResidualBlock]:
    """The equations that hold everywhere inside, where they can be evaluated at any point."""
    return [
        block
        for block in problem.blocks()
        if block.equation
        and (block.region.kind, block.group, block.region.n_sites) == ("interior", 1, 1)
        and block.region.n_distinct is None
    ]


def _quantity(options: ResidualSpectrum, problem: Problem) -> Literal["residual", "error"]:
    if not isinstance(problem.domain, Box):
        found = type(problem.domain).__name__
        raise ConfigError(f"{options.name}: found the domain {found}, allowed: a Box")
    if options.of != "error" and equations(problem):
        return "residual"
    fitted = reference_values(problem, problem.evaluation_points()[:1]) is not None
    if options.of != "residual" and fitted:
        return "error"
    reasons = []
    if not equations(problem):
        reasons.append("no equation of the problem holds everywhere inside")
    if not fitted:
        reasons.append("the problem has no reference to take an error to")
    others = {"residual": bool(equations(problem)), "error": fitted}
    possible = [name for name, can in others.items() if can]
    raise ConfigError(
        f"{options.name}.of: found {options.of!r}, allowed: {' or '.join(possible) or 'none'}, "
        f"because {' and '.join(reasons)}"
    )


def grid_values(stage: Stage, of: Literal["residual", "error"], points: int) -> Floats:
    """Residuals or errors ``(n, ..., n, m)`` at the middles of the cells of a grid."""
    dimension = stage.problem.domain.dimension
    count = max(2, round(points ** (1 / dimension)))
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    axes = torch.meshgrid(*dimension * [middles], indexing="ij")
    unit = torch.stack([axis.reshape(-1) for axis in axes], 1)
    function = _residuals if of == "residual" else _errors
    found = function(stage.system, stage.problem, unit).double().cpu().numpy()
    return np.asarray(found.reshape(*dimension * (count,), -1))


def _residuals(system: System, problem: Problem, unit: Tensor) -> Tensor:
    like = next(iter(system.parameters()))
    rows = []
    for block in equations(problem):
        sites = [site.to(like.dtype, like.device) for site in block.region.place(unit)]
        rows.append(residual_rows(BlockData(block, sites, system), system))
    return torch.cat(rows, -1)


def _errors(system: System, problem: Problem, unit: Tensor) -> Tensor:
    like = next(iter(system.parameters()))
    (points,) = problem.domain.interior().place(unit)
    exact = reference_values(problem, points.x)
    assert exact is not None  # _quantity
    return predict(system, points.x.to(like), problem.fields).cpu() - exact


def spectrum(values: Floats) -> Floats:
    """Amplitudes by rounded ``|k|``, ``(bins,)``, of values ``(n_1, ..., n_d, m)``.

    Their squares add up to the mean over the grid of the squares, summed over the last axis.
    """
    shape = values.shape[:-1]
    axes = tuple(range(len(shape)))
    energy = (dctn(values, axes=axes, norm="ortho") ** 2).sum(-1) / np.prod(shape)
    index = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    radius = np.sqrt(sum(k.astype(float) ** 2 for k in index)).round().astype(int)
    return np.asarray(np.sqrt(np.bincount(radius.ravel(), energy.ravel())))


def _summary(amplitudes: Floats, stage: Stage) -> dict[str, Any]:
    squares, k = amplitudes**2, np.arange(len(amplitudes))
    total = float(squares.sum())
    intervals = stage.record.n_intervals
    beyond = float(squares[k > intervals[0]].sum() / total) if intervals and total else None
    return {
        "intervals": "/".join(map(str, intervals)),
        "rms": total**0.5,
        "frequency": float((k * squares).sum() / total) if total else None,
        "beyond_knots": beyond,
    }


def _points(amplitudes: Floats) -> Iterator[dict[str, Any]]:
    for k, amplitude in enumerate(amplitudes.tolist()):
        yield {"frequency": k, "amplitude": amplitude}

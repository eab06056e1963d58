"""What a study's runs say: a row per level of every case, and a row for how each ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kanpinn.study.columns import COSTS, ERRORS, FITTED, METRICS, ORDERS, SOLUTION
from kanpinn.study.design import Case
from kanpinn.study.limits import limited_by_optimiser
from kanpinn.study.orders import (
    Extrapolation,
    extrapolate,
    fitted_order,
    observed_order,
    order_of_changes,
)

Lines = Sequence[Mapping[str, Any]]
FIT = {"change": order_of_changes}  # how an order is fitted, if not to errors


@dataclass(frozen=True)
class LevelRow:
    """A level of a case.

    Attributes:
        labels: of the case.
        status: of its run.
        window: time window, 0 the first.
        level: number, 0 the coarsest.
        intervals: per layer.
        h: width of the intervals relative to the whole, the geometric mean over the layers.
        parameters: degrees of freedom.
        points: trained on.
        steps: on this level.
        evaluations: of the loss or the residuals, up to the end of this level.
        operations: the same of floating-point operations; ``None`` if they were not counted.
        seconds: up to the end of this level.
        loss_before: on this level's points, before the prolongation; ``None`` on the first level.
        loss_after: the same, after it.
        loss: at the end of the level.
        heldout_residual: root mean square on points never trained on.
        rel_l2: error against the reference, ``None`` without one.
        order: observed, from the level before to this one.
        linf: largest error; with its order.
        h1: relative error of the gradient; with its order.
        change: ``c = |u_k - u_{k-1}| / |u_k|`` from the level before.
        order_change: the order of the error that the last two changes show, from the third level
            on; see :func:`~kanpinn.study.orders.order_of_changes`.
        error_estimate: Richardson's, by that order, where it is positive.
        gci: the grid convergence index, 1.25 times the estimate.
        limited: whether the optimiser limits the level, ``None`` if that is not known; see
            :func:`~kanpinn.study.limits.limited_by_optimiser`.
        ended_by: why the level ended.
    """

    labels: Mapping[str, str]
    status: str
    window: int
    level: int
    intervals: tuple[int, ...]
    h: float | None
    parameters: int
    points: int
    steps: int
    evaluations: int
    operations: float | None
    seconds: float
    loss_before: float | None
    loss_after: float | None
    loss: float | None
    heldout_residual: float | None
    rel_l2: float | None
    order: float | None
    linf: float | None
    order_linf: float | None
    h1: float | None
    order_h1: float | None
    change: float | None
    order_change: float | None
    error_estimate: float | None
    gci: float | None
    limited: bool | None
    ended_by: str | None

    def flat(self) -> dict[str, Any]:
        """Labels and numbers in one mapping, for tables."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "labels"}
        own["intervals"] = "/".join(map(str, self.intervals))
        return {**self.labels, **own}


def level_rows(case: Case, summary: Mapping[str, Any], lines: Lines = ()) -> list[LevelRow]:
    """The levels of a case, from its run's summary; those of time windows in their order.

    Args:
        case: whose run it is.
        summary: of the run.
        lines: that the run has logged.
    """
    rows: list[LevelRow] = []
    fixed_loss = summary.get("reweighting") == []  # runs of before did not say
    for record in summary["levels"]:
        previous = rows[-1] if rows else None
        intervals = tuple(record["n_intervals"])
        h = math.prod(intervals) ** (-1 / len(intervals)) if intervals else None
        window = record.get("window") or 0
        coarser = [row for row in rows if row.window == window]
        before = coarser[-1] if coarser else None
        here = [
            line
            for line in lines
            if ((line.get("window") or 0), line["level"]) == (window, record["level"])
        ]
        rows.append(
            LevelRow(
                labels=case.labels,
                status=summary["status"],
                window=window,
                level=record["level"],
                intervals=intervals,
                h=h,
                parameters=record["n_params"],
                points=record["n_points"],
                steps=record["steps"],
                loss_before=record["loss_before_prolongation"],
                loss_after=record["loss_after_prolongation"],
                loss=record["loss"],
                heldout_residual=record["heldout_residual"],
                limited=limited_by_optimiser(record, here, fixed_loss),
                ended_by=record["stop_reason"],
                **_costs(record, previous),
                **_errors(record, before, h),
                **_estimates(record.get("change"), coarser, h),
            )
        )
    return rows


def _costs(record: Mapping[str, Any], previous: LevelRow | None) -> dict[str, Any]:
    """Sums up to the end of a level; ``None`` from the first on that was not counted."""
    keys = dict(zip(COSTS, ("wall_s", "evaluations", "operations"), strict=True))
    sums: dict[str, Any] = {}
    for name, key in keys.items():
        own, so_far = record.get(key), 0 if previous is None else getattr(previous, name)
        sums[name] = None if own is None or so_far is None else so_far + own
    return sums


def _errors(record: Mapping[str, Any], before: LevelRow | None, h: float | None) -> dict[str, Any]:
    """Errors in all norms, with their observed orders."""
    found: dict[str, Any] = {}
    for name in ERRORS:
        error = found[name] = record.get(name)
        found[ORDERS[name]] = _order(name, error, before, h)
    return found


def _order(
    name: str, value: float | None, before: LevelRow | None, h: float | None
) -> float | None:
    if before is None:
        return None
    return observed_order((getattr(before, name), value), (before.h, h))


def _estimates(
    change: float | None, coarser: Sequence[LevelRow], h: float | None
) -> dict[str, Any]:
    """What the changes say of the error, where there is no reference too."""
    order: float | None = None
    found: Extrapolation | None = None
    if len(coarser) > 1:
        two = coarser[-2:]
        fit = order_of_changes([None, two[1].change, change], [two[0].h, two[1].h, h])
        order = fit.order if fit else None
        found = extrapolate(change, order, (two[1].h, h))
    error, gci = (found.error, found.gci) if found else (None, None)
    return {"change": change, "order_change": order, "error_estimate": error, "gci": gci}


def final_row(case: Case, summary: Mapping[str, Any], rows: Sequence[LevelRow]) -> dict[str, Any]:
    """How a case ended: its solution, what it cost, and what its levels say together.

    Errors, loss, knots and points are those of the default solution, as in the run's summary, and
    so are the problem's own metrics: the best iterate by the held-out score, on whichever level.
    Orders, the last change and what follows from it, and ``limited``, are read off the levels, that
    is off their last iterates. Costs are those of all levels.

    Args:
        case: whose run it is.
        summary: of the run.
        rows: its levels, see :func:`level_rows`.
    """
    last = rows[-1]
    same = [level for level in rows if level.window == last.window]
    (solution,) = (level for level in same if level.level == summary["best_level"])
    row = last.flat()
    for name in ("window", "level", "h", "h1", "loss_before", "loss_after"):
        row.pop(name)
    row |= {name: solution.flat()[name] for name in ("intervals", "parameters", "points")}
    row |= {name: summary[name] for name in SOLUTION}
    row["levels"], row["steps"] = len(rows), sum(level.steps for level in rows)
    ended = row.pop("ended_by")
    widths = [level.h for level in same]
    fits = {
        name: FIT.get(name, fitted_order)([getattr(level, name) for level in same], widths)
        for name in FITTED
    }
    row |= {FITTED[name]: found.order if found else None for name, found in fits.items()}
    counts = [found.levels for found in fits.values() if found]
    row["fitted_levels"] = max(counts, default=None)
    row |= {f"{METRICS}{name}": value for name, value in (summary.get("metrics") or {}).items()}
    return {**case.labels, **row, "ended_by": ended}


def finals_of(found: Iterable[tuple[Case, Mapping[str, Any], Lines]]) -> list[dict[str, Any]]:
    """A final row for every case whose run has levels."""
    return [
        final_row(case, summary, level_rows(case, summary, lines))
        for case, summary, lines in found
        if summary["levels"]
    ]


def too_few_levels(rows: Iterable[LevelRow]) -> str | None:
    """What to say where there is no order at all because no case has two levels on knots."""
    counts: dict[tuple[Any, ...], int] = {}
    for row in rows:
        if row.h is not None:
            key = (*row.labels.items(), row.window)
            counts[key] = counts.get(key, 0) + 1
    if not counts or max(counts.values()) > 1:
        return None
    return "not enough levels for an order: every case has one (training.levels, training.phases)"

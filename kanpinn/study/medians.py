"""Numbers over the seeds: medians, quartiles, means, standard deviations."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kanpinn.study.columns import (
    FITTED,
    LIMITED_OF,
    MEASURES,
    METRICS,
    QUARTILES,
    SOLUTION,
    SPREAD,
    group_of,
)
from kanpinn.study.results import LevelRow

FAILED = ("diverged", "failed")

Row = Mapping[str, Any]


def medians(rows: Iterable[LevelRow]) -> list[dict[str, Any]]:
    """Medians and quartiles over the seeds, a row per level and combination of the other axes.

    Of runs in time windows a row per window and level: its error is that of all times up to there.
    Runs that diverged or failed are kept out, and counted.
    """
    groups: dict[tuple[Any, ...], list[LevelRow]] = {}
    for row in rows:
        groups.setdefault((group_of(row.labels), row.window, row.level), []).append(row)
    found = []
    for (labels, window, level), group in groups.items():
        every = [row.flat() for row in group]
        whole = [row for row in every if row["status"] not in FAILED]
        found.append(
            {
                **dict(labels),
                "window": window,
                "level": level,
                **_counted(every, whole),
                "h": _median(_values(whole or every, "h")),
                **_middle(whole, MEASURES),
            }
        )
    return found


def final_medians(finals: Sequence[Row], axes: Iterable[str]) -> list[dict[str, Any]]:
    """How the runs ended over the seeds, a row per combination of the other axes.

    Beside medians and quartiles the means and the standard deviations (of a sample, with ``n - 1``)
    of the loss, the errors and the problem's own metrics: papers give those.

    Args:
        finals: rows as of :func:`~kanpinn.study.results.final_row`.
        axes: of the study.
    """
    axes = list(axes)
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in finals:
        labels = {axis: row[axis] for axis in axes if axis in row}
        groups.setdefault(group_of(labels), []).append(row)
    metrics = [name for row in finals for name in row if name.startswith(METRICS)]
    metrics = list(dict.fromkeys(metrics))
    found = []
    for others, group in groups.items():
        whole = [row for row in group if row["status"] not in FAILED]
        row = {**dict(others), **_counted(group, whole)}
        measures = (name for name in MEASURES if name in group[0])
        row |= _middle(whole, (*measures, *FITTED.values(), *metrics))
        row |= _spread(whole, (*SOLUTION, *metrics))
        found.append(row)
    return found


def quartiles(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The first and the third one, inclusive; both the value itself where there is only one."""
    if len(values) < 2:
        return (values[0], values[0]) if values else (None, None)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _counted(every: Sequence[Row], whole: Sequence[Row]) -> dict[str, Any]:
    """How many runs there are, and how large: medians, where knots differ between seeds."""
    typical = whole or every
    limited = _values(whole, "limited")
    return {
        "runs": len(whole),
        "left_out": len(every) - len(whole),
        "limited": sum(limited) if limited else None,
        LIMITED_OF: len(limited),
        "intervals": _intervals(typical),
        "parameters": _median(_values(typical, "parameters")),
    }


def _intervals(rows: Sequence[Row]) -> str | None:
    """Medians per layer, as in the rows; ``None`` where their networks have different layers."""
    counts = [row["intervals"].split("/") for row in rows]
    if len({len(layers) for layers in counts}) > 1:
        return None
    if not all(counts[0]):
        return ""
    layers = zip(*counts, strict=True)
    return "/".join(str(_median([int(n) for n in layer])) for layer in layers)


def _median(values: Sequence[float]) -> float | None:
    """A whole number if it is one, so that it is shown with all digits."""
    if not values:
        return None
    found = statistics.median(values)
    return int(found) if found == int(found) else found


def _values(rows: Sequence[Row], name: str) -> list[float]:
    return [value for row in rows if (value := row.get(name)) is not None]


def _middle(rows: Sequence[Row], names: Iterable[str]) -> dict[str, Any]:
    """Medians, each with its quartiles."""
    found: dict[str, Any] = {}
    for name in names:
        values = _values(rows, name)
        found[name] = statistics.median(values) if values else None
        for ending, value in zip(QUARTILES, quartiles(values), strict=True):
            found[f"{name}{ending}"] = value
    return found


def _spread(rows: Sequence[Row], names: Iterable[str]) -> dict[str, Any]:
    """Means and standard deviations of a sample; the latter need two values."""
    found: dict[str, Any] = {}
    mean, deviation = SPREAD
    for name in names:
        values = _values(rows, name)
        found[f"{name}{mean}"] = statistics.fmean(values) if values else None
        found[f"{name}{deviation}"] = statistics.stdev(values) if len(values) > 1 else None
    return found

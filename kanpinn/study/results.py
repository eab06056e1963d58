"""What a study's runs say: a row per level of every case, orders, medians over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kanpinn.study.columns import SEED
from kanpinn.study.design import Case

FAILED = ("diverged", "failed")


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
        seconds: up to the end of this level.
        loss_before: on this level's points, before the prolongation; ``None`` on the first level.
        loss_after: the same, after it.
        loss: at the end of the level.
        heldout_residual: root mean square on points never trained on.
        rel_l2: error against the reference, ``None`` without one.
        order: observed, from the level before to this one.
        ended_by: why the level ended; ``optimiser`` marks one that the optimiser limits.
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
    seconds: float
    loss_before: float | None
    loss_after: float | None
    loss: float | None
    heldout_residual: float | None
    rel_l2: float | None
    order: float | None
    ended_by: str | None

    def flat(self) -> dict[str, Any]:
        """Labels and numbers in one mapping, for tables."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "labels"}
        own["intervals"] = "/".join(map(str, self.intervals))
        return {**self.labels, **own}


def observed_order(
    errors: tuple[float | None, float | None], widths: tuple[float | None, float | None]
) -> float | None:
    """``log(e1 / e2) / log(h1 / h2)``; ``None`` where errors or widths are missing or equal."""
    (e1, e2), (h1, h2) = errors, widths
    if not (e1 and e2 and h1 and h2) or h1 == h2:
        return None
    return math.log(e1 / e2) / math.log(h1 / h2)


def level_rows(case: Case, summary: Mapping[str, Any]) -> list[LevelRow]:
    """The levels of a case, from its run's summary; those of time windows in their order."""
    rows: list[LevelRow] = []
    seconds, evaluations = 0.0, 0
    for record in summary["levels"]:
        seconds, evaluations = seconds + record["wall_s"], evaluations + record["evaluations"]
        intervals = tuple(record["n_intervals"])
        h = math.prod(intervals) ** (-1 / len(intervals)) if intervals else None
        before = rows[-1] if rows and record["level"] else None
        order = None
        if before is not None:
            order = observed_order((before.rel_l2, record["rel_l2"]), (before.h, h))
        rows.append(
            LevelRow(
                labels=case.labels,
                status=summary["status"],
                window=record.get("window") or 0,
                level=record["level"],
                intervals=intervals,
                h=h,
                parameters=record["n_params"],
                points=record["n_points"],
                steps=record["steps"],
                evaluations=evaluations,
                seconds=seconds,
                loss_before=record["loss_before_prolongation"],
                loss_after=record["loss_after_prolongation"],
                loss=record["loss"],
                heldout_residual=record["heldout_residual"],
                rel_l2=record["rel_l2"],
                order=order,
                ended_by=record["stop_reason"],
            )
        )
    return rows


def medians(rows: Iterable[LevelRow]) -> list[dict[str, Any]]:
    """Medians and quartiles over the seeds, a row per level and combination of the other axes.

    Of runs in time windows a row per window and level: its error is that of all times up to there.
    Runs that diverged or failed are kept out, and counted.
    """
    groups: dict[tuple[Any, ...], list[LevelRow]] = {}
    for row in rows:
        others = tuple((axis, label) for axis, label in row.labels.items() if axis != SEED)
        groups.setdefault((others, row.window, row.level), []).append(row)
    return [_median(dict(key[0]), group) for key, group in groups.items()]


def _median(labels: Mapping[str, str], group: Sequence[LevelRow]) -> dict[str, Any]:
    whole = [row for row in group if row.status not in FAILED]
    found: dict[str, Any] = {**labels, "window": group[0].window, "level": group[0].level}
    found["runs"] = len(whole)
    found["left_out"] = len(group) - len(whole)
    found["intervals"] = "/".join(map(str, group[0].intervals))
    found["parameters"] = group[0].parameters
    for name in ("seconds", "loss", "heldout_residual", "rel_l2", "order"):
        values = [value for row in whole if (value := getattr(row, name)) is not None]
        found[name] = statistics.median(values) if values else None
        if name == "rel_l2":
            low, high = _quartiles(values)
            found["rel_l2_q1"], found["rel_l2_q3"] = low, high
    found["optimiser_limited"] = sum(row.ended_by == "optimiser" for row in whole)
    return found


def _quartiles(values: Sequence[float]) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return (values[0], values[0]) if values else (None, None)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high

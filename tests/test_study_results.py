"""What is read off a study's runs: orders, estimates without a reference, limits, medians."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import kanpinn
from kanpinn.config import parse_config
from kanpinn.study import (
    Case,
    extrapolate,
    final_medians,
    final_row,
    fitted_order,
    level_rows,
    medians,
    observed_order,
    order_of_changes,
)
from kanpinn.study.limits import limited_by_optimiser

CASE = Case({"width": "4", "seed": "1"}, {"seed": 1})


def record(level: int, **given: Any) -> dict[str, Any]:
    """A level's record in a summary; ``n_intervals`` are ``2, 4, 8, ...``."""
    found: dict[str, Any] = {
        "level": level,
        "n_intervals": [2 * 2**level],
        "n_params": 9,
        "n_points": 30,
        "steps": 5,
        "evaluations": 12,
        "wall_s": 2.0,
        "loss_before_prolongation": None,
        "loss_after_prolongation": None,
        "loss": 1e-3,
        "heldout_residual": 0.1,
        "rel_l2": None,
        "stop_reason": "no_progress",
    }
    return found | given


def summary(*levels: dict[str, Any], **given: Any) -> dict[str, Any]:
    """A run's, whose solution is the last iterate of its last level."""
    last = levels[-1]
    own = {name: last.get(name) for name in ("loss", "heldout_residual", "rel_l2", "linf")}
    own |= {"best_level": last["level"], "metrics": {}, "reweighting": []}
    return {"status": "completed", "levels": list(levels), **own, **given}


def cubic() -> dict[str, Any]:
    """Two levels whose errors fall with order 3."""
    return summary(
        record(0, n_intervals=[2, 4], rel_l2=8e-2), record(1, n_intervals=[4, 8], rel_l2=1e-2)
    )


def test_observed_orders() -> None:
    assert observed_order((8e-2, 1e-2), (0.5, 0.25)) == pytest.approx(3)
    assert observed_order((8e-2, None), (0.5, 0.25)) is None
    assert observed_order((8e-2, 1e-2), (0.5, 0.5)) is None
    coarse, fine = level_rows(CASE, cubic())
    assert coarse.order is None and fine.order == pytest.approx(3)
    assert coarse.h == pytest.approx(1 / math.sqrt(8))
    assert (fine.seconds, fine.evaluations, fine.operations) == (4.0, 24, None)


def test_every_norm_has_its_order() -> None:
    found = summary(
        record(0, rel_l2=1.0, linf=1.0, h1=1.0, operations=100),
        record(1, rel_l2=2**-4, linf=2**-3, h1=2**-2, operations=10**12),
    )
    row = level_rows(CASE, found)[-1]
    assert (row.order, row.order_linf, row.order_h1) == pytest.approx((4, 3, 2))
    assert row.operations == 100 + 10**12


def test_a_fitted_order_is_the_slope_in_the_logarithms() -> None:
    rng = np.random.default_rng(3)
    h = np.array([0.5, 0.3, 0.125, 0.05])
    e = 7 * h**4.2 * np.exp(0.3 * rng.standard_normal(4))
    fit = fitted_order([*e.tolist(), None], [*h.tolist(), 0.01])
    assert fit is not None and fit.levels == 4
    assert fit.order == pytest.approx(np.polyfit(np.log(h), np.log(e), 1)[0], rel=1e-12)
    assert fitted_order([1e-2], [0.5]) is None
    assert fitted_order([1e-2, 1e-3], [0.5, 0.5]) is None
    row = final_row(CASE, cubic(), level_rows(CASE, cubic()))
    assert (row["fitted_order"], row["fitted_levels"]) == (pytest.approx(3), 2)


# --- without a reference ---------------------------------------------------------------------
def changes(solutions: Sequence[NDArray[np.float64]]) -> list[float | None]:
    """``|u_k - u_{k-1}| / |u_k|``."""
    norm = np.linalg.norm
    pairs = pairwise(solutions)
    return [None, *(float(norm(b - a) / norm(b)) for a, b in pairs)]


@pytest.mark.parametrize("ratio", [2.0, 1.5])
@pytest.mark.parametrize("p", [1.0, 3.5])
def test_richardson_on_a_sequence_with_a_known_limit(p: float, ratio: float) -> None:
    """``u_h = u + h^p v``: change, order and error are exact."""
    u, v = np.random.default_rng(5).standard_normal((2, 40))
    h = [ratio**-k for k in range(4)]
    sequence = [u + step**p * v for step in h]
    # Not relative to |u_k|, which is not constant: so the change falls by the order exactly.
    absolute = [None, *(float(np.linalg.norm(b - a)) for a, b in pairwise(sequence))]
    for k in (2, 3):
        order = observed_order((absolute[k - 1], absolute[k]), (h[k - 1], h[k]))
        assert order == pytest.approx(p, rel=1e-10)
        found = extrapolate(absolute[k], order, (h[k - 1], h[k]))
        assert found is not None
        assert found.error == pytest.approx(float(np.linalg.norm(sequence[k] - u)), rel=1e-9)
        assert found.gci == pytest.approx(1.25 * found.error)


@pytest.mark.parametrize("p", [-0.7, 0.0, 0.4, 2.0, 5.5])
@pytest.mark.parametrize("intervals", [(4, 8, 32), (4, 16, 32), (3, 10, 11, 60), (2, 4, 8, 16)])
def test_orders_of_exact_errors_on_any_widths(intervals: tuple[int, ...], p: float) -> None:
    """``e = 3 h^p`` (``3 log h`` in the limit ``p = 0``): order, estimate and index are exact."""
    h = [1 / n for n in intervals]
    e = [3 * step**p if p else 3 * math.log(step) for step in h]
    steps = [None, *(abs(b - a) for a, b in pairwise(e))]
    found = summary(*(record(k, n_intervals=[n], change=steps[k]) for k, n in enumerate(intervals)))
    rows = level_rows(CASE, found)
    for row, error in zip(rows[2:], e[2:], strict=True):
        assert row.order_change == pytest.approx(p, rel=1e-9, abs=1e-9)
        if p > 0:
            assert row.error_estimate == pytest.approx(error, rel=1e-8)
            assert row.gci == pytest.approx(1.25 * error, rel=1e-8)
    assert final_row(CASE, found, rows)["fitted_order_change"] == pytest.approx(p, abs=1e-9)


def test_an_order_of_changes_is_a_least_squares_slope_on_equal_ratios() -> None:
    h, c = 0.5 ** np.arange(5), np.array([0.3, 0.02, 0.003, 0.0001])
    fit = order_of_changes([None, *c.tolist()], h.tolist())
    assert fit is not None and fit.levels == 4
    assert fit.order == pytest.approx(np.polyfit(np.log(h[1:]), np.log(c), 1)[0], rel=1e-12)
    gap = order_of_changes([None, 3.0, None, 3.0 * 2**-4], [1, 0.5, 0.25, 0.125])
    assert gap is not None and gap.levels == 2 and gap.order == pytest.approx(2)


@pytest.mark.parametrize(
    ("changes", "widths"),
    [
        ([None, 1e-1, 1e-2], [0.5, 0.5, 0.25]),
        ([None, 1e-1, 1e-2], [0.5, 0.25, 0.5]),
        ([None, 1e-1, 1e-2], [0.5, None, 0.25]),
        ([None, 1e-1, 0.0], [0.5, 0.25, 0.1]),
        ([None, 1e-1], [0.5, 0.25]),
        ([], []),
    ],
)
def test_changes_without_an_order(changes: list[float | None], widths: list[float | None]) -> None:
    assert order_of_changes(changes, widths) is None


def test_estimates_begin_with_the_third_level_and_need_a_positive_order() -> None:
    falling = [record(k, change=c) for k, c in enumerate((None, 1e-1, 1e-2, 1e-3))]
    rows = level_rows(CASE, summary(*falling))
    assert [row.error_estimate is None for row in rows] == [True, True, False, False]
    q = 10.0  # 2^p: the change falls tenfold
    assert rows[2].error_estimate == pytest.approx(1e-2 / (q - 1))
    assert rows[2].gci == pytest.approx(1.25e-2 / (q - 1))
    assert rows[2].order_change == pytest.approx(math.log2(10))
    rising = [record(k, change=c) for k, c in enumerate((None, 1e-3, 1e-2))]
    row = level_rows(CASE, summary(*rising))[-1]
    assert row.order_change == pytest.approx(-math.log2(10))
    assert row.error_estimate is None and row.gci is None
    assert extrapolate(1e-3, 1e6, (1.0, 0.5)) is None  # no overflow


def test_the_estimate_is_near_the_true_error_of_a_run(tmp_path: Path) -> None:
    """One layer of cubic splines for Poisson's equation, whose solution is known."""
    config = {
        "problem": {"name": "poisson", "dimension": 1},
        "model": {"widths": [1, 1], "order": 4, "intervals": 4},
        "sampling": {"method": "grid", "interior": 512},
        "training": {"levels": 4, "phases": [{"optimiser": "lm", "steps": 40}]},
        "figures": False,
        "seed": 2,
    }
    result = kanpinn.solve(config, out=tmp_path / "run")
    x = torch.linspace(-1, 1, 1001, dtype=torch.float64)[:, None]
    solutions = [result.solution.level(k, "last")(x).numpy()[:, 0] for k in range(4)]
    found = dict(result.summary)
    found["levels"] = [
        {**level, "change": c} for level, c in zip(found["levels"], changes(solutions), strict=True)
    ]
    rows = level_rows(CASE, found)
    exact = np.sin(math.pi * x.numpy()[:, 0])
    for row, u in zip(rows[2:], solutions[2:], strict=True):
        true = float(np.linalg.norm(u - exact) / np.linalg.norm(u))
        assert row.rel_l2 == pytest.approx(true, rel=0.1)
        assert row.order_change == pytest.approx(4, abs=1)
        assert row.error_estimate is not None
        assert 0.5 < row.error_estimate / true < 2


# --- what limits a level ---------------------------------------------------------------------
def lines(*losses: float | None) -> list[dict[str, Any]]:
    return [{"level": 0, "loss": loss} for loss in losses]


FALLING, LEVELLED = lines(1, 1e-1, 1e-2, 1e-3), lines(1, 1e-3, 1e-3, 0.9e-3)
SPLIT = {"optimisation_error": 1e-2, "discretisation_error": 1e-3}


@pytest.mark.parametrize(
    ("given", "logged", "limited"),
    [
        ({"stop_reason": "steps"}, FALLING, True),
        ({"stop_reason": "time"}, FALLING, True),
        ({"stop_reason": "steps"}, LEVELLED, False),
        ({"stop_reason": "steps"}, FALLING[:3], None),
        ({"stop_reason": "steps"}, lines(1, 1e-1, 1e-2, None), None),
        ({"stop_reason": "no_progress"}, FALLING, False),
        ({"stop_reason": "gradient_tolerance"}, FALLING, False),
        ({"stop_reason": "line_search_failed"}, FALLING, False),
        ({"stop_reason": "points"}, FALLING, False),
        ({"stop_reason": "optimiser"}, LEVELLED, True),
        ({"stop_reason": "knots", **SPLIT}, LEVELLED, True),
        (
            {"stop_reason": "steps", "optimisation_error": 1e-4, "discretisation_error": 1e-3},
            FALLING,
            False,
        ),
    ],
)
def test_levels_that_the_optimiser_limits(
    given: dict[str, Any], logged: list[dict[str, Any]], limited: bool | None
) -> None:
    assert limited_by_optimiser(record(0, **given), logged) is limited


@pytest.mark.parametrize("reweighting", [["attention"], None])
def test_where_losses_do_not_compare_the_held_out_score_is_judged(
    reweighting: list[str] | None,
) -> None:
    """And so where nobody has said whether they do."""
    found = summary(record(0, stop_reason="steps"))
    scores = {"rise": (1e-2, 2e-2, 2e-2, 3e-2), "fall": (1.0, 0.5, 0.5, 0.4), "few": (1.0,)}
    limited = {}
    for name, values in scores.items():
        logged = [
            {**line, "heldout_score": score} for line, score in zip(FALLING, values, strict=False)
        ]
        (row,) = level_rows(CASE, {**found, "reweighting": reweighting}, logged)
        limited[name] = row.limited
    assert limited == {"rise": False, "fall": True, "few": None}


@pytest.mark.parametrize("name", ["attention", "balance", "causal", "smoothing"])
def test_what_changes_the_loss(name: str) -> None:
    config = {"problem": "burgers", "training": {name: {}}}
    assert parse_config(config).training.reweighting == (name,)


@pytest.mark.parametrize("name", [None, "attention"])
def test_a_run_says_what_changes_its_loss(name: str | None, tmp_path: Path) -> None:
    config = {
        "problem": {"name": "burgers"},
        "model": {"width": 2, "intervals": 2},
        "sampling": {"interior": 16, "held_out": 16},
        "training": {
            "phases": [{"optimiser": "adam", "steps": 2}],
            **({name: {}} if name else {}),
        },
        "figures": False,
    }
    found = kanpinn.solve(config, out=tmp_path / "run")
    assert found.summary["reweighting"] == ([name] if name else [])


def test_a_level_is_judged_by_its_own_lines() -> None:
    found = summary(record(0, stop_reason="steps"), record(1, stop_reason="steps"))
    logged = [*LEVELLED, *({**line, "level": 1} for line in FALLING)]
    assert [row.limited for row in level_rows(CASE, found, logged)] == [False, True]
    assert final_row(CASE, found, level_rows(CASE, found, logged))["limited"] is True


# --- over the seeds --------------------------------------------------------------------------
def scaled(factor: float, seed: int, **given: Any) -> tuple[Case, dict[str, Any]]:
    """A run with the errors of :func:`cubic` times a factor."""
    found = cubic() | {"metrics": {"test_mse": factor}} | given
    for entry in (*found["levels"], found):
        entry["rel_l2"] *= factor
    return Case({"width": "4", "seed": str(seed)}, {}), found


RUNS = [scaled(factor, seed) for seed, factor in enumerate((1.0, 2.0, 4.0))]
DIVERGED = scaled(100.0, 3, status="diverged")


def test_medians_over_seeds_leave_out_what_diverged() -> None:
    coarse, fine = medians(row for run in (*RUNS, DIVERGED) for row in level_rows(*run))
    assert (fine["order"], fine["runs"], fine["left_out"]) == (pytest.approx(3), 3, 1)
    assert fine["rel_l2"] == pytest.approx(2e-2)
    assert (fine["rel_l2_q1"], fine["rel_l2_q3"]) == (pytest.approx(1.5e-2), pytest.approx(3e-2))
    assert fine["h1"] is None and fine["h1_q1"] is None
    assert coarse["level"] == 0 and "seed" not in coarse


def test_only_what_is_known_to_be_limited_is_counted() -> None:
    logged = {"0": [*FALLING], "1": [*LEVELLED], "2": [], "3": [*FALLING]}
    rows = []
    for seed, given in logged.items():
        given = [{**line, "level": k} for k in (0, 1) for line in given]
        case, found = scaled(1.0, int(seed), status="diverged" if seed == "3" else "completed")
        for level in found["levels"]:
            level["stop_reason"] = "steps"
        rows.append((case, found, given))
    for row in medians(row for run in rows for row in level_rows(*run)):
        assert (row["limited"], row["limited_of"], row["runs"]) == (1, 2, 3)
    finals = [final_row(case, found, level_rows(case, found, g)) for case, found, g in rows]
    (row,) = final_medians(finals, ["width", "seed"])
    assert (row["limited"], row["limited_of"], row["runs"]) == (1, 2, 3)
    (alone,) = final_medians(finals[2:3], ["width", "seed"])
    assert (alone["limited"], alone["limited_of"]) == (None, 0)


def test_finals_have_means_and_deviations_over_the_seeds() -> None:
    finals = [final_row(*run, level_rows(*run)) for run in (*RUNS, DIVERGED)]
    assert [row["seed"] for row in finals] == ["0", "1", "2", "3"]
    assert finals[1]["metrics.test_mse"] == 2.0 and finals[3]["status"] == "diverged"
    assert (finals[0]["levels"], finals[0]["steps"], finals[0]["rel_l2"]) == (2, 10, 1e-2)
    (row,) = final_medians(finals, ["width", "seed"])
    values = np.array([1.0, 2.0, 4.0])
    assert row["metrics.test_mse_mean"] == pytest.approx(values.mean())
    assert row["metrics.test_mse_sd"] == pytest.approx(values.std(ddof=1))
    assert row["rel_l2_sd"] == pytest.approx(statistics.stdev([1e-2, 2e-2, 4e-2]))
    assert row["metrics.test_mse_q3"] == pytest.approx(np.percentile(values, 75))
    assert (row["runs"], row["left_out"], row["width"]) == (3, 1, "4") and "seed" not in row
    (one,) = final_medians(finals[:1], ["width", "seed"])
    assert one["loss_mean"] == 1e-3 and one["loss_sd"] is None


def test_a_case_ends_with_its_solution() -> None:
    """Not with the last iterate of its last level, which the table of levels has."""
    best = {"loss": 2e-4, "heldout_residual": 0.03, "rel_l2": 4e-3, "linf": 6e-3}
    found = summary(
        record(0, n_points=10, rel_l2=8e-2, h1=1.0),
        record(1, n_points=20, n_params=11, rel_l2=1e-2, h1=0.5),
        record(2, n_points=30, n_params=13, rel_l2=2e-2, h1=0.7, stop_reason="steps"),
        **best,
        best_level=1,
        metrics={"test_mse": 7.0},
    )
    rows = level_rows(CASE, found)
    row = final_row(CASE, found, rows)
    assert {name: row[name] for name in best} == best and row["metrics.test_mse"] == 7.0
    assert (row["intervals"], row["parameters"], row["points"]) == ("4", 11, 20)
    assert "h1" not in row and (row["levels"], row["ended_by"]) == (3, "steps")
    slope = np.polyfit(np.log([1 / 2, 1 / 4, 1 / 8]), np.log([8e-2, 1e-2, 2e-2]), 1)[0]
    assert row["fitted_order"] == pytest.approx(slope)
    assert rows[-1].rel_l2 == 2e-2
    (middle,) = final_medians([row], ["width", "seed"])
    assert middle["rel_l2"] == middle["rel_l2_mean"] == 4e-3 and "h1" not in middle


LINE = {"expression": "sin(9 * x)", "variables": ["x"], "lower": [-1], "upper": [1], "points": 40}


def test_the_row_of_a_run_says_what_its_summary_says(tmp_path: Path) -> None:
    """Of penalties the best is the solution, and the last iterate has the weakest one."""
    config = {
        "problem": {"name": "regression", **LINE, "noise": 0.5},
        "model": {"widths": [1, 1], "order": 4, "intervals": 24},
        "training": {
            "phases": [{"optimiser": "lm", "steps": 5}],
            "smoothing": {"penalties": [1e-5, 1e-12]},
        },
        "figures": False,
    }
    found = kanpinn.solve(config, out=tmp_path / "run").summary
    (level,) = found["levels"]
    row = final_row(CASE, found, level_rows(CASE, found))
    for name in ("loss", "heldout_residual", "rel_l2", "linf"):
        assert row[name] == found[name]
    assert row["loss"] != level["loss"]


def test_knots_that_differ_between_seeds_are_medians() -> None:
    runs = []
    for seed, n in enumerate((4, 10, 6, 7, 99)):
        found = summary(record(0, n_intervals=[n, 2 * n], n_params=1000 * n))
        found["status"] = "diverged" if n == 99 else "completed"
        runs.append((Case({"seed": str(seed)}, {}), found))
    (row,) = medians(row for run in runs for row in level_rows(*run))
    assert (row["intervals"], row["parameters"]) == ("6.5/13", 6500)
    widths = [(2 * n * n) ** -0.5 for n in (4, 10, 6, 7)]
    assert row["h"] == pytest.approx(statistics.median(widths))
    finals = [final_row(*run, level_rows(*run)) for run in runs]
    (row,) = final_medians(finals, ["seed"])
    assert (row["intervals"], row["parameters"]) == ("6.5/13", 6500) and "h" not in row
    finals[0]["intervals"] = "3"
    assert final_medians(finals, ["seed"])[0]["intervals"] is None
    for final in finals:
        final["intervals"] = ""  # a network without knots
    assert final_medians(finals, ["seed"])[0]["intervals"] == ""


def test_time_windows_are_no_seeds() -> None:
    found = cubic()
    found["levels"] = [{**level, "window": w} for w in (0, 1) for level in found["levels"]]
    rows = level_rows(CASE, found)
    assert [(row["window"], row["level"], row["runs"]) for row in medians(rows)] == [
        (0, 0, 1),
        (0, 1, 1),
        (1, 0, 1),
        (1, 1, 1),
    ]
    assert rows[2].order is None and rows[3].order == pytest.approx(3)
    assert rows[2].seconds == 6.0  # costs go on


def test_there_is_no_order_from_a_time_window_to_the_next() -> None:
    """Nor where the coarsest level has no steps, so that a window begins with a finer one."""
    levels = [record(k, rel_l2=0.1**k, change=0.1**k, window=w) for w in (0, 1) for k in (1, 2)]
    rows = level_rows(CASE, summary(*levels))
    assert [row.order is None for row in rows] == [True, False, True, False]
    assert [row.order_change for row in rows] == [None] * 4

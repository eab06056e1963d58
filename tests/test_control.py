"""``refine: auto``: what ends a level, the estimates of its errors, and points that follow it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.interpolate import BSpline
from test_multilevel import (
    MODEL,
    SAMPLING,
    Inverse,
    Line,
    Recorder,
    StopAfter,
    adam,
    lm,
    options,
    run,
)
from tiny_runs import save
from torch import Tensor

from kanpinn.api.preparation import prepare
from kanpinn.checkpoint import read_checkpoint, restore_state
from kanpinn.cli import main
from kanpinn.cli.console import print_levels
from kanpinn.errors import ConfigError
from kanpinn.models import KANOptions, MLPOptions
from kanpinn.optimisers import StopReason
from kanpinn.problem import Problem, build_system
from kanpinn.residuals import ResidualBlock, evaluate_rows
from kanpinn.sampling import SamplingOptions, sample, stream
from kanpinn.training import (
    AttentionOptions,
    LBFGSPhase,
    MultilevelRun,
    RunOptions,
    RunState,
    SmoothingOptions,
    TargetOptions,
    TrainingOptions,
)
from kanpinn.training.block_data import BlockData
from kanpinn.training.control import ErrorSplit, is_due, judged_lines, split_errors, verdict
from kanpinn.training.evaluation import RefinementChange, predict

MANY = replace(SAMPLING, interior=200, held_out=200)
SPLINE = KANOptions(hidden_layers=0, order=4, intervals=4)  # linear in its coefficients
CURVED = KANOptions(width=4, order=6, intervals=4)


def auto(phases: Any, model: Any = MODEL, **training: Any) -> RunOptions:
    return options(phases, model, **{"refine": "auto", "log_every": 1, **training})


def reasons(state: RunState) -> list[str | None]:
    return [entry.record.stop_reason for entry in state.levels]


# --- the split of the training residual -----------------------------------------------------------
@pytest.mark.parametrize("count", [150, 24])  # about as few rows as parameters, too
@pytest.mark.parametrize("problem", [Line(), Inverse()])
def test_split_is_the_projection_on_the_jacobian(problem: Problem, count: int) -> None:
    """Against a Jacobian by autograd, row by row, and ``numpy.linalg.lstsq``."""
    system = build_system(problem, MODEL, torch.Generator().manual_seed(1))
    data = [
        BlockData(b, sample(b.region, count, "sobol", stream(0, b.name)), system)
        for b in problem.blocks()
    ]
    parameters = list(system.parameters())
    rows, residuals = [], []
    for entry in data:
        for chunk in entry.chunks:
            values = evaluate_rows(entry.block, system, chunk.points, chunk.prepared)
            scaled = values * math.sqrt(entry.block.weight / (entry.n_rows * values.shape[1]))
            for value in scaled.flatten():
                gradient = torch.autograd.grad(
                    value, parameters, retain_graph=True, materialize_grads=True, allow_unused=True
                )
                rows.append(torch.cat([g.flatten() for g in gradient]).numpy())
                residuals.append(value.item())
    jacobian, r = np.array(rows), np.array(residuals)
    step = np.linalg.lstsq(jacobian, -r, rcond=None)[0]
    left = float(np.linalg.norm(jacobian @ step + r))
    found = split_errors(system, data)
    assert np.linalg.matrix_rank(jacobian) < jacobian.shape[1]
    assert found.discretisation == pytest.approx(left, rel=1e-6)
    assert found.optimisation == pytest.approx(float(np.linalg.norm(jacobian @ step)), rel=1e-6)
    both = math.hypot(found.optimisation, found.discretisation)
    assert both == pytest.approx(float(np.linalg.norm(r)), rel=1e-12)
    assert 1e-5 < left / float(np.linalg.norm(r)) < 0.99  # both parts are there


# --- the rules ------------------------------------------------------------------------------------
def lines(training: Sequence[float], heldout: Sequence[float]) -> list[dict[str, float]]:
    pairs = zip(training, heldout, strict=True)
    return [{"loss": t**2, "heldout_score": h} for t, h in pairs]


FALLING = (8.0, 4.0, 2.0, 1.0)
FLAT = (1.0, 1.0, 0.999, 0.998)


@pytest.mark.parametrize(
    ("training", "heldout", "split", "expected"),
    [
        (FALLING, (9.0, 8.5, 8.2, 8.0), (1.0, 0.1), StopReason.POINTS),
        (FALLING, (9.0, 8.5, 8.2, 8.0), (0.1, 1.0), StopReason.POINTS),
        (FALLING, (24.0, 12.0, 6.0, 3.0), (1.0, 0.1), None),  # far above, but it follows
        (FALLING, (2.1, 2.0, 1.95, 1.9), (1.0, 0.1), None),  # does not follow, but is not above
        (FALLING, FALLING, (1.0, 0.1), None),
        (FALLING, FALLING, (0.1, 1.0), StopReason.KNOTS),
        (FALLING, FALLING, (1.0, 1.0), StopReason.KNOTS),
        (FALLING, FALLING, None, None),
        (FLAT, FLAT, (1.0, 0.1), StopReason.OPTIMISER),
        (FLAT, FLAT, (0.1, 1.0), StopReason.KNOTS),
        (FLAT, FLAT, None, StopReason.OPTIMISER),
        (FLAT, (3.0,) * 4, (0.1, 1.0), StopReason.POINTS),
        ((1.0, 0.5, 0.7, 0.6), (1.0, 0.5, 0.7, 0.6), None, StopReason.OPTIMISER),  # no new least
        ((0.0,) * 4, (0.0,) * 4, None, StopReason.OPTIMISER),
    ],
)
def test_verdict(
    training: Sequence[float],
    heldout: Sequence[float],
    split: tuple[float, float] | None,
    expected: StopReason | None,
) -> None:
    assert verdict(lines(training, heldout), lambda: split and ErrorSplit(*split)) is expected


def test_judged_at_ever_longer_intervals() -> None:
    due = [n for n in range(100) if is_due(n)]
    assert due == [4, 6, 8, 12, 16, 24, 32, 48, 64, 96]


class Judged(Recorder):
    """Keeps the steps of the lines that are judged after the last one."""

    def on_log(self, row: dict[str, Any], state: RunState) -> None:
        self.steps = [line["step"] for line in judged_lines(state)]


def test_judged_by_the_lines_of_one_phase_on_one_set_of_points() -> None:
    chosen = auto([adam(4), lm(6)], levels=2, sampling=replace(SAMPLING, interior=7))
    judged = Judged()
    state = run(Line(), chosen, judged)
    kinds = [(row["level"], row["phase"]) for row in state.history]
    last = len(kinds) - 1 - kinds[::-1].index((1, "extended"))
    expected = [row["step"] for row in state.history[last + 1 :]]
    assert judged.steps == expected and len(expected) > 1


def test_two_phases_of_one_optimiser_are_judged_apart() -> None:
    state = run(Line(), auto([adam(3), adam(5)], CURVED, log_every=1), StopAfter(5))
    assert [row["phase"] for row in state.history] == ["start"] + 5 * ["adam"]
    assert [row["step"] for row in judged_lines(state)] == [4, 5]


# --- what must limit a tiny problem, and does -----------------------------------------------------
def test_few_points() -> None:
    """Six points and twenty parameters: the equation holds at the points, and nowhere else."""
    few = replace(SAMPLING, interior=6, held_out=100)
    recorder = Recorder()
    stuck = run(Line(), auto([lm(60)], sampling=few, max_extensions=0))
    freed = run(Line(), auto([lm(60)], sampling=few, max_extensions=3), recorder)
    assert reasons(stuck) == ["points"] and stuck.total_steps < 60
    assert stuck.current.record.extensions == 0 and stuck.current.record.n_points == 6
    record = freed.current.record
    assert record.extensions > 0
    assert record.n_points == 6 * 2**record.extensions
    assert freed.current.best_score < 0.2 * stuck.current.best_score
    best = [min(row["rel_l2"] for row in state.history) for state in (stuck, freed)]
    assert best[1] < 0.2 * best[0]
    notes = [note for note in recorder.notes if "goes on with more points" in note]
    assert len(notes) == record.extensions and "extension 1 of 3" in notes[0]


def test_extended_points_are_new_and_inherited() -> None:
    chosen = auto([lm(16)], levels=2, sampling=replace(SAMPLING, interior=7))
    engine = MultilevelRun(Line(), chosen)
    state = engine.run()
    first, second = (entry.record.extensions for entry in state.levels)
    assert 0 < first <= second
    (equation,) = (block for block in engine.blocks if block.equation)
    levels = engine.hierarchy.levels
    stages = [engine._points(equation, levels[0], n)[0].x for n in range(first + 1)]
    assert [len(x) for x in stages] == [7 * 2**n for n in range(first + 1)]
    assert not np.isin(stages[1].numpy(), stages[0].numpy()).any()
    trained = torch.cat([points.x for points in engine._trained_on(levels[1])])
    assert all(np.isin(x.numpy(), trained.numpy()).all() for x in stages)
    context = engine._context(levels[1], state.levels[1].system)
    assert [d.n_points for d in context.data if d.block.equation] == [7 * 2**second]


def test_few_knots_and_many_steps() -> None:
    """A spline is linear in its coefficients: once they are right, all that is left is the space's.

    The least residual of ``u = (1 - x^2) s(x)``, ``s`` a cubic spline, by SciPy and NumPy.
    """
    state = run(Line(), auto([lm(60)], SPLINE, levels=3, sampling=MANY))
    assert reasons(state) == ["knots"] * 3
    assert all(entry.record.steps < 30 for entry in state.levels)
    for entry in state.levels:
        record = entry.record
        assert record.optimisation_error is not None and record.discretisation_error is not None
        assert record.optimisation_error <= record.discretisation_error
        assert record.discretisation_error == pytest.approx(_least(record.n_intervals[0]), rel=0.1)


def _least(n: int) -> float:
    """Least root mean square of ``(u'' + pi^2 sin(pi x)) / pi^2`` on ``n`` intervals."""
    knots, x = -1.0 + 2.0 / n * np.arange(-3, n + 4), np.linspace(-1.0, 1.0, 4001)
    splines = [BSpline.basis_element(knots[i : i + 5], extrapolate=False) for i in range(n + 3)]
    s, ds, dds = (
        np.stack([np.nan_to_num(b.derivative(k)(x) if k else b(x)) for b in splines], axis=1)
        for k in range(3)
    )
    images = -2 * s - 4 * x[:, None] * ds + (1 - x[:, None] ** 2) * dds
    wanted = -(math.pi**2) * np.sin(math.pi * x)
    left = wanted - images @ np.linalg.lstsq(images, wanted, rcond=None)[0]
    return float(np.sqrt(np.mean(left**2))) / math.pi**2


def test_few_steps() -> None:
    state = run(Line(), auto([lm(5)], CURVED, levels=2, sampling=MANY))
    assert reasons(state) == ["steps"] * 2
    for entry in state.levels:
        record = entry.record
        assert record.optimisation_error is not None and record.discretisation_error is not None
        assert record.optimisation_error > 3 * record.discretisation_error
        squares = record.optimisation_error**2 + record.discretisation_error**2
        assert squares == pytest.approx(record.loss, rel=1e-6)


def test_a_slow_optimiser() -> None:
    """Adam at a rate of 1e-7 does not move: it gives way to the next phase, then to the level."""
    slow = adam(40, learning_rate=1e-7)
    state = run(Line(), auto([slow], CURVED, levels=2, sampling=MANY))
    assert reasons(state) == ["optimiser"] * 2
    assert [entry.record.steps for entry in state.levels] == [4, 4]
    phases = [row["phase"] for row in run(Line(), auto([slow, lm(3)], CURVED)).history]
    assert phases == ["start", *["adam"] * 4, *["lm"] * 3]


def test_an_optimiser_that_stops_by_itself() -> None:
    """Its reason says nothing of the level: what limits that is judged all the same."""
    stops = LBFGSPhase(steps=500, gradient_tolerance=1e3)
    plain = run(Line(), options([stops], CURVED, sampling=MANY))
    judged = run(Line(), auto([stops], CURVED, sampling=MANY))
    assert reasons(plain) == ["gradient_tolerance"] and reasons(judged) == ["optimiser"]


def test_target_comes_first() -> None:
    state = run(
        Line(), auto([lm(60)], SPLINE, levels=3, sampling=MANY, target=TargetOptions(loss=1.0))
    )
    assert reasons(state) == ["target"]
    assert state.current.record.optimisation_error is not None


def test_dyadic_runs_are_not_judged() -> None:
    state = run(Line(), options([lm(12)], SPLINE, levels=2, sampling=MANY, log_every=1))
    assert not {"knots", "optimiser", "points"} & set(reasons(state))
    assert all(entry.record.discretisation_error is None for entry in state.levels)
    assert all("estimated_error" not in row for row in state.history)


# --- the estimated error --------------------------------------------------------------------------
def test_estimated_error_is_the_change_of_the_solution() -> None:
    chosen = auto([lm(25)], CURVED, levels=2, sampling=MANY, log_every=5)
    state = run(Line(), chosen)
    coarse, fine = state.levels
    last = state.history[-1]
    x = Line().evaluation_points()
    before, after = predict(coarse.best_system(), x), predict(fine.system, x)
    expected = float((after - before).norm() / after.norm())
    assert last["estimated_error"] == pytest.approx(expected, rel=1e-12)
    assert fine.record.estimated_error == last["estimated_error"]
    assert coarse.record.estimated_error is None
    for row in state.history:
        halved = row["level"] == 1 and row["heldout_score"] <= 0.5 * coarse.best_score
        assert (row["estimated_error"] is not None) == halved
    # It is about the error of the coarser solution, and bounds that of the finer one.
    rows = [row for row in state.history if row["level"] == 0]
    (known,) = (row["rel_l2"] for row in rows if row["step"] == coarse.best_step)
    assert 0.5 < last["estimated_error"] / known < 2.0
    assert last["rel_l2"] < last["estimated_error"]


def test_no_estimate_for_a_score_that_is_none() -> None:
    system = build_system(Line(), MODEL, torch.Generator().manual_seed(1))
    like = next(iter(system.parameters())).detach()
    change = RefinementChange(Line(), system, 1.0, like)
    assert change.evaluate(system, 0.5) == 0.0
    assert change.evaluate(system, 0.51) is None
    assert change.evaluate(system, math.nan) is None


@pytest.mark.parametrize("refine", ["dyadic", "auto"])
def test_estimated_error_as_target(refine: str) -> None:
    target = TargetOptions(estimated_error=1e-3)
    chosen = auto([lm(25)], CURVED, levels=4, sampling=MANY, target=target, refine=refine)
    state = run(Line(), chosen)
    last = state.history[-1]
    assert state.current.record.stop_reason == "target" and 1 < len(state.levels) < 4
    assert last["rel_l2"] < last["estimated_error"] <= 1e-3


# --- what is kept and shown -----------------------------------------------------------------------
def test_kept_in_the_checkpoint(tmp_path: Path) -> None:
    state = run(Line(), auto([lm(16)], levels=2, sampling=replace(SAMPLING, interior=7)))
    checkpoint = read_checkpoint(save(tmp_path / "checkpoint.h5", state))
    restored = restore_state(checkpoint)
    for one, two in zip(state.levels, restored.levels, strict=True):
        assert one.record == two.record
        assert two.record.extensions > 0 and two.record.optimisation_error is not None
    assert restored.history == state.history


CONFIG = {
    "problem": {"name": "poisson", "dimension": 1},
    "model": {"width": 3, "order": 6, "intervals": 2},
    "sampling": {"interior": 80, "held_out": 100},
    "training": {
        "levels": 2,
        "refine": "auto",
        "log_every": 1,
        "phases": [{"optimiser": "lm", "steps": 20}],
    },
}


def test_shown(tmp_path: Path) -> None:
    from kanpinn import solve

    result = solve(CONFIG, ["figures=false"], tmp_path / "run")
    assert {level["stop_reason"] for level in result.levels} <= {"knots", "steps", "points"}
    assert result.summary["estimated_error"] == result.levels[-1]["estimated_error"] is not None
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "run")])
    assert shown.exit_code == 0, shown.output
    header, *rows = shown.output.splitlines()[:3]
    assert all(name in header for name in ("opt. error", "knots error", "est. error", "ended by"))
    for row, level in zip(rows, result.levels, strict=True):
        assert f"{level['optimisation_error']:.2e}" in row
        assert f"{level['discretisation_error']:.2e}" in row
        assert row.endswith(level["stop_reason"])


def test_estimates_have_no_column_where_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    state = run(Line(), options([lm(2)]))
    print_levels([entry.record.as_dict() for entry in state.levels])
    assert "error" not in capsys.readouterr().out


# --- errors of users ------------------------------------------------------------------------------
class OwnLoss(Line):
    """Minimises an energy instead of squares."""

    def blocks(self) -> tuple[ResidualBlock, ...]:
        def energy(rows: Tensor) -> Tensor:
            return rows.abs()

        return tuple(replace(b, loss=energy) if b.equation else b for b in super().blocks())


PHASE = LBFGSPhase(steps=40)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: auto([PHASE], attention=AttentionOptions()),
            r"^training\.attention: found with refine: auto, allowed: null",
        ),
        (
            lambda: auto([PHASE], smoothing=SmoothingOptions()),
            r"^training\.smoothing: found with refine: auto, allowed: null",
        ),
        (
            lambda: auto([PHASE], windows=2),
            r"^training\.windows: found 2, allowed: 1 with refine: auto",
        ),
        (
            lambda: auto([PHASE], log_every=11),
            r"^training\.log_every: found 11, allowed: at most 10, ",
        ),
        (
            lambda: MultilevelRun(Line(), auto([PHASE], MLPOptions(width=3))),
            r"^training\.refine: found 'auto', allowed: dyadic, because the model has no knots$",
        ),
        (
            lambda: MultilevelRun(OwnLoss(), auto([PHASE])),
            r"^training\.refine: found 'auto', which compares sums of squares, and 'equation' has",
        ),
        (
            lambda: options([PHASE], target=TargetOptions(estimated_error=0.1)),
            r"^training\.target\.estimated_error: found 0\.1, allowed: null, because only one ",
        ),
        (
            lambda: options([lm((0, 4))], levels=2, target=TargetOptions(estimated_error=0.1)),
            r"^training\.target\.estimated_error: ",
        ),
    ],
)
def test_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.refine=automatic", "training.refine: found 'automatic'"),
        ("training.max_extensions=-1", "training.max_extensions: found -1"),
        ("training.max_extensions=7", "training.max_extensions: found 7"),
        ("training.log_every=6", "training.log_every: found 6, allowed: at most 5"),
        ("training.target.estimated_error=0", "training.target.estimated_error: found 0"),
    ],
)
def test_refused_in_a_config(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(CONFIG, [override])
    (line,) = str(caught.value).splitlines()
    assert message in line


def test_plans_are_those_before_any_extension() -> None:
    chosen = RunOptions(
        MODEL, TrainingOptions(refine="auto", log_every=9), SamplingOptions(interior=50)
    )
    engine = MultilevelRun(Line(), chosen)
    (equation,) = (block for block in engine.blocks if block.equation)
    level = engine.hierarchy.levels[0]
    assert engine.n_points(equation, level) == 50
    assert engine.n_points(equation, level, 2) == 200

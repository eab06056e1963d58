"""The multilevel run: hierarchy, levels, budgets, stops, and going on exactly where it stopped."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_runs import assert_same
from torch import Tensor

from kanpinn.conditions import Condition, Dirichlet, Initial
from kanpinn.errors import ConfigError, KanpinnError, NestingError, ProblemError
from kanpinn.geometry import Box
from kanpinn.models import KANOptions, KnotNetwork, MLPOptions, ModelOptions, MultichannelOptions
from kanpinn.optimisers import StopReason
from kanpinn.problem import Problem, build_system
from kanpinn.residuals import ResidualBlock, Site, System
from kanpinn.sampling import AdaptiveSampling, Grading, SamplingOptions
from kanpinn.training import (
    AdamPhase,
    AttentionOptions,
    BalanceOptions,
    CausalOptions,
    LBFGSPhase,
    LevenbergMarquardtPhase,
    MultilevelRun,
    NullObserver,
    Phase,
    RunOptions,
    RunState,
    SelfScaledBFGSPhase,
    SelfScaledBroydenPhase,
    TargetOptions,
    TrainingOptions,
    build_hierarchy,
)
from kanpinn.training.block_data import residual_rows
from kanpinn.training.checks import check_blocks
from kanpinn.training.evaluation import predict
from kanpinn.training.hierarchy import Refinement, refine_system
from kanpinn.training.objective import SystemObjective
from kanpinn.training.parameters import ParameterPack

SAMPLING = SamplingOptions(interior=24, boundary=4, held_out=20)
ADAPTIVE = replace(SAMPLING, adaptive=AdaptiveSampling())
MODEL = KANOptions(width=2, order=4, intervals=2)


class Line(Problem):
    """``u'' = -pi^2 sin(pi x)`` on [-1, 1], zero at the ends."""

    domain = Box((-1.0,), (1.0,))
    conditions: Sequence[Condition] = (Dirichlet(exact=True),)
    residual_weight = math.pi**-4

    def residual(self, p: Site) -> Tensor:
        result: Tensor = p.u.laplacian + math.pi**2 * torch.sin(math.pi * p.x)
        return result

    def reference(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sin(math.pi * x)

    def evaluation_points(self) -> Tensor:
        return self.domain.evaluation_grid((101,))[0]


class Inverse(Problem):
    """Two fields from two networks and a scalar, with soft conditions."""

    domain = Box((-1.0, 0.0), (1.0, 1.0))
    fields = ("u", "v")
    networks = {"one": ("u",), "two": ("v",)}  # noqa: RUF012 - read only
    scalars = {"k": 0.5}  # noqa: RUF012 - read only
    conditions: Sequence[Condition] = (Dirichlet(value="x", weight=3.0),)

    def residual(self, p: Site) -> Tensor:
        return torch.stack([p.u.xx + p.scalars.k * p.v, p.v.y - p.u], -1)


class Growth(Problem):
    """``u_t = u`` for t in [0, 1] at every x, penalised initial values."""

    domain = Box((-1.0, 0.0), (1.0, 1.0), names=("x", "t"), time="t")
    conditions: Sequence[Condition] = (Initial(value="x", weight=3.0),)

    def residual(self, p: Site) -> Tensor:
        return p.u.t - p.u.value


def options(
    phases: Sequence[Phase], model: ModelOptions = MODEL, seed: int = 0, **training: Any
) -> RunOptions:
    sampling = training.pop("sampling", SAMPLING)
    settings = {"log_every": 3, "checkpoint_every": 4, **training}
    return RunOptions(model, TrainingOptions(phases=tuple(phases), **settings), sampling, seed)


def lbfgs(steps: int | tuple[int, ...] = 4, **more: Any) -> Phase:
    return LBFGSPhase(steps=steps, **more)


def lm(steps: int | tuple[int, ...] = 4, **more: Any) -> Phase:
    return LevenbergMarquardtPhase(steps=steps, **more)


def adam(steps: int | tuple[int, ...] = 4, **more: Any) -> Phase:
    return AdamPhase(steps=steps, **{"learning_rate": 1e-2, **more})


def run(problem: Problem, chosen: RunOptions, observer: NullObserver | None = None) -> RunState:
    return MultilevelRun(problem, chosen, observer).run()


# --- the hierarchy, apart from running it ---------------------------------------------------------
def system_of(problem: Problem, model: ModelOptions) -> System:
    return build_system(problem, model, torch.Generator().manual_seed(0))


def test_hierarchy_table() -> None:
    training = TrainingOptions(levels=3, phases=(adam((7, 5, 0)), lbfgs((10, 20, 30))))
    hierarchy = build_hierarchy(system_of(Line(), MODEL), training)
    assert repr(hierarchy).splitlines() == [
        "level  intervals       parameters  steps",
        "    0  2/2                     20  7+10",
        "    1  4/4                     28  5+20",
        "    2  8/8                     44  0+30",
    ]


RAGGED = KANOptions(
    widths=(2, 2, 1), order=4, breakpoints=(((-1, 0.1, 1), (-1, 1)), ((-1, 1), (-1, 0, 0.3, 1)))
)
MODELS: dict[str, ModelOptions] = {
    "kan": MODEL,
    "free": replace(MODEL, knots="free"),
    "base": replace(MODEL, base="silu"),
    "ragged free": replace(RAGGED, knots="free"),
    "multichannel": MultichannelOptions(width=2, order=4, intervals=2),
    "orders": KANOptions(width=2, order=(4, 6), intervals=(2, 3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_levels_know_their_size_beforehand(name: str) -> None:
    system = system_of(Inverse(), MODELS[name])
    hierarchy = build_hierarchy(system, TrainingOptions(levels=3, phases=(lbfgs(),)))
    for level in hierarchy.levels:
        if level.refinement is not None:
            system = refine_system(system, [level.refinement], "prolongation", torch.float64)
        network = system.parts["one"].network
        assert isinstance(network, KnotNetwork)
        assert level.n_parameters == system.n_parameters
        assert level.n_intervals == tuple(round(np.mean(k.n_intervals)) for k in network.knots)
        assert float(system.scalars["k"].detach()) == 0.5


BREAKS = (-1.0, -0.7, 0.0, 0.2, 1.0)
REFINEMENTS: dict[str, tuple[dict[str, Any], list[tuple[int, ...]]]] = {
    "dyadic": ({}, [(2, 2), (4, 4), (8, 8)]),
    "one layer": ({"refine_layers": (True, False)}, [(2, 2), (4, 2), (8, 2)]),
    "number": ({"refine": (6, 12)}, [(2, 2), (6, 6), (12, 12)]),
    "numbers": ({"refine": ((2, 8), (10, 8))}, [(2, 2), (2, 8), (10, 8)]),
    "breakpoints": ({"refine": ((BREAKS, 4), (8, BREAKS))}, [(2, 2), (4, 4), (8, 4)]),
}


@pytest.mark.parametrize("name", REFINEMENTS)
def test_refinements_given_by_the_user(name: str) -> None:
    given, expected = REFINEMENTS[name]
    training = TrainingOptions(levels=3, phases=(lbfgs(),), **given)
    system = system_of(Line(), MODEL)
    hierarchy = build_hierarchy(system, training)
    assert [level.n_intervals for level in hierarchy.levels] == expected
    if name == "breakpoints":
        refinement = hierarchy.levels[1].refinement
        assert refinement is not None
        network = system.parts["main"].network
        assert isinstance(network, KnotNetwork)
        t = refinement.apply(network.knots)[0].breakpoints[0]
        assert t.tolist() == list(BREAKS)


def test_intervals_are_cut_evenly() -> None:
    network = system_of(Line(), RAGGED_LINE).parts["main"].network
    assert isinstance(network, KnotNetwork)
    (fine, _) = Refinement((6, False)).apply(network.knots)
    expected = [-1, -0.5, 0, 0.5, 2 / 3, 2.5 / 3, 1]
    np.testing.assert_allclose(fine.breakpoints[0], expected, rtol=0, atol=1e-15)


RAGGED_LINE = KANOptions(
    widths=(1, 2, 1), order=4, breakpoints=(((-1, 0.5, 1),), ((-1, 1), (-1, 0, 1)))
)

BAD_TRAINING: dict[str, tuple[ModelOptions, dict[str, Any], str]] = {
    "no knots": (MLPOptions(width=4), {"levels": 2}, "a model without knots has one level"),
    "flags": (MODEL, {"levels": 2, "refine_layers": (True,)}, "found 1 entries, the network has 2"),
    "layers": (MODEL, {"levels": 2, "refine": ((4, 4, 4),)}, "training.refine[0]: found 3 entries"),
    "refinements": (MODEL, {"levels": 2, "refine": (4, 8)}, "found 2 refinements, 2 levels need 1"),
    "steps": (MODEL, {"levels": 3, "phases": (lbfgs(()),)}, "phases.0.steps: found an empty list"),
    "nothing": (MODEL, {"levels": 2, "phases": (lbfgs((0, 0)),)}, "all steps are 0"),
    "no phase": (MODEL, {"phases": ()}, "training.phases: empty"),
    "groups": (MODEL, {"phases": (lbfgs(train=("knots",)),)}, "'knots' matches no parameter group"),
    "attention": (
        MODEL,
        {"attention": AttentionOptions(blocks=("equations",))},
        "training.attention.blocks: 'equations' matches no block; there are equation",
    ),
    "grading": (
        MODEL,
        {"sampling": replace(SAMPLING, grading=(Grading("y", 0.1),))},
        "sampling.grading: coordinate 'y' is unknown",
    ),
}


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_options_that_do_not_fit(name: str) -> None:
    model, training, message = BAD_TRAINING[name]
    with pytest.raises(ConfigError) as caught:
        run(Line(), options(**{"phases": (lbfgs(),), "model": model, **training}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_least_squares_refuse_a_general_loss() -> None:
    (block,) = (block for block in Line().blocks() if block.equation)
    general = replace(block, loss=lambda rows: rows.abs().sum(-1))
    check_blocks([general], TrainingOptions(phases=(lbfgs(),)))
    with pytest.raises(ConfigError, match=r"phases\.1\.optimiser: lm minimises sums of squares"):
        check_blocks([general], TrainingOptions(phases=(lbfgs(), LevenbergMarquardtPhase())))


# --- smoothness -----------------------------------------------------------------------------------
def problem_with(residual: Callable[[Site], Tensor], domain: Box = Line.domain) -> Problem:
    class Made(Problem):
        def residual(self, p: Site) -> Tensor:
            return residual(p)

    made = Made()
    made.domain = domain
    return made


@pytest.mark.parametrize(
    ("residual", "model", "message"),
    [
        (
            lambda p: p.u.xx,
            replace(MODEL, order=3),
            "model.order: too low for 'equation', which takes derivatives of order 2: at least 4 "
            "is needed, found 3",
        ),
        (lambda p: p.u.laplacian, replace(MODEL, order=(6, 3)), "at least 4 is needed, found 3"),
        (lambda p: p.u.xxxx, replace(MODEL, order=5), "at least 6 is needed, found 5"),
        (
            lambda p: p.u.x,
            MultichannelOptions(order=2),
            "takes derivatives of order 1: at least 3 is needed, found 2",
        ),
        (
            lambda p: p.u.x,
            MLPOptions(activation="relu"),
            "model.activation: too rough for 'equation', which takes derivatives of order 1; "
            "allowed: tanh, silu, gelu, sin",
        ),
    ],
)
def test_rough_models_are_refused(
    residual: Callable[[Site], Tensor], model: ModelOptions, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        MultilevelRun(problem_with(residual), options([lbfgs()], model))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("residual", "model"),
    [
        (lambda p: p.u.xx, MODEL),
        (lambda p: p.u.xxxx, replace(MODEL, order=6)),
        (lambda p: p.u - p.x, MLPOptions(activation="relu")),
        (lambda p: p.u - p.x, replace(MODEL, order=2)),
        (lambda p: p.u.xxxx, MLPOptions(activation="gelu")),
    ],
)
def test_smooth_enough_models(residual: Callable[[Site], Tensor], model: ModelOptions) -> None:
    state = run(problem_with(residual), options([lbfgs(2)], model))
    assert math.isfinite(state.history[-1]["loss"])


def test_blocks_have_names_of_their_own() -> None:
    problem = Line()
    problem.conditions = (Dirichlet(), Dirichlet(value=1.0))
    with pytest.raises(ProblemError, match="two residual blocks are called 'dirichlet u on bound"):
        MultilevelRun(problem, options([lbfgs()]))


# --- levels ---------------------------------------------------------------------------------------
def test_errors_fall_from_level_to_level() -> None:
    model = KANOptions(width=3, order=5, intervals=2)
    chosen = options([adam(20), lbfgs(60)], model, levels=3)
    state = run(Line(), replace(chosen, sampling=replace(SAMPLING, interior=64)))
    errors = [entry.record.rel_l2 for entry in state.levels]
    losses = [entry.record.loss for entry in state.levels]
    assert all(e is not None for e in errors + losses)
    assert state.finished
    assert errors[2] < 1e-4 and errors[2] < errors[0]  # type: ignore[operator]
    assert losses == sorted(losses, reverse=True)  # type: ignore[type-var]
    assert [entry.record.stop_reason for entry in state.levels] == ["steps"] * 3


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("problem", [Line, Inverse])
def test_prolongation_keeps_the_loss(name: str, problem: type[Problem]) -> None:
    if name == "ragged free" and problem is Line:
        pytest.skip("made for two inputs")
    chosen = options([lbfgs(3)], MODELS[name], levels=3, sampling=replace(SAMPLING, growth=1.5))
    state = run(problem(), chosen)
    assert len(state.levels) == 3
    assert state.levels[0].record.loss_before_prolongation is None
    for entry in state.levels[1:]:
        record = entry.record
        before, after = record.loss_before_prolongation, record.loss_after_prolongation
        assert before is not None and after is not None and record.max_change is not None
        assert abs(after - before) <= 1e-10 * before
        assert record.max_change <= 1e-12
        start = next(row for row in state.history if row["level"] == record.level)
        assert start["loss"] == after


def test_growing_points() -> None:
    sampling = replace(SAMPLING, growth=2.0)
    state = run(Line(), options([lbfgs(1)], levels=3, sampling=sampling))
    assert [entry.record.n_points for entry in state.levels] == [24, 48, 96]
    sampling = replace(SAMPLING, per_parameter=3.0)
    state = run(Line(), options([lbfgs(1)], levels=3, sampling=sampling))
    assert [entry.record.n_points for entry in state.levels] == [60, 84, 132]


def test_steps_per_level() -> None:
    state = run(Line(), options([adam((2, 0, 5)), lbfgs((1, 4, 0))], levels=3))
    assert [entry.record.steps for entry in state.levels] == [3, 4, 5]
    assert state.total_steps == 12
    assert [entry.record.n_intervals for entry in state.levels] == [[2, 2], [4, 4], [8, 8]]


def test_skipped_levels() -> None:
    """A run starts on the knots of its first level with steps, and passes over others."""
    steps = (0, 2, 0, 3, 0)
    state = run(Line(), options([lbfgs(steps)], levels=5))
    assert [entry.record.level for entry in state.levels] == [1, 3]
    assert [entry.record.n_intervals for entry in state.levels] == [[4, 4], [16, 16]]
    assert state.levels[0].record.loss_before_prolongation is None
    assert state.levels[1].record.max_change == pytest.approx(0.0, abs=1e-12)
    assert [entry.system.n_parameters for entry in state.levels] == [28, 76]
    assert state.finished


def test_fine_only_starts_with_fresh_coefficients() -> None:
    """The baseline on the finest level alone: new coefficients there, not a refined start."""
    state = run(Line(), options([lbfgs((0, 1))], levels=2))
    coarse = system_of(Line(), MODEL)
    fine = refine_system(coarse, [Refinement((True, True))], "prolongation", torch.float64)
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    fresh = system_of(Line(), replace(MODEL, intervals=4))
    assert (predict(fine, x) - predict(fresh, x)).abs().max() > 1e-3
    first = MultilevelRun(Line(), options([lbfgs((0, 1))], levels=2))
    started = first.initial_system(1)
    assert torch.equal(predict(started, x), predict(fresh, x))
    assert state.levels[0].record.n_intervals == [4, 4]


def test_networks_and_scalars_are_refined_together() -> None:
    state = run(Inverse(), options([lbfgs(4)], levels=2))
    coarse, fine = (entry.system for entry in state.levels)
    assert set(fine.parts) == {"one", "two"}
    assert float(coarse.scalars["k"].detach()) != 0.5
    assert state.history[-1]["scalar.k"] == float(fine.scalars["k"].detach())
    start = next(row for row in state.history if row["level"] == 1)
    assert start["scalar.k"] == float(coarse.scalars["k"].detach())


@pytest.mark.parametrize("model", [MODEL, MODELS["multichannel"]])
def test_least_squares_is_a_baseline_of_its_own(model: ModelOptions) -> None:
    given: dict[str, Any] = {"levels": 2, "refine": (5,)}
    with pytest.raises(NestingError, match="do not nest"):
        run(Line(), options([lbfgs(2)], model, **given))
    state = run(Line(), options([lbfgs(2)], model, transfer="least_squares", **given))
    record = state.levels[1].record
    assert record.n_intervals == [5, 5]
    assert record.max_change is not None and 1e-9 < record.max_change < 0.1
    nested = run(Line(), options([lbfgs(2)], model, transfer="least_squares", levels=2))
    change = nested.levels[1].record.max_change
    assert change is not None and change < 1e-9


def test_plain_network_has_one_level() -> None:
    state = run(Line(), options([adam(3), lbfgs(3)], MLPOptions(width=4)))
    (entry,) = state.levels
    assert entry.record.n_intervals == []
    assert entry.record.steps == 6


def test_single_precision() -> None:
    chosen = replace(options([adam(3), lbfgs(3)], levels=2), dtype=torch.float32)
    state = run(Line(), chosen)
    assert all(p.dtype == torch.float32 for p in state.levels[1].system.parameters())
    record = state.levels[1].record
    assert record.max_change is not None and record.max_change < 1e-5


# --- groups ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("phase", [adam, lbfgs, lm])
@pytest.mark.parametrize(
    ("train", "moves"),
    [
        (("*.coefficients",), "coefficients"),
        (("*.base_weights",), "base_weights"),
        (("*.knots_free",), "knots_free"),
        (("main.layer0.*",), "layers.0"),
    ],
)
def test_frozen_groups_stay_bitwise(
    phase: Callable[..., Phase], train: tuple[str, ...], moves: str
) -> None:
    model = replace(MODEL, knots="free", base="silu")
    state = run(Line(), options([phase(4, train=train)], model))
    before = dict(system_of(Line(), model).named_parameters())
    for name, p in state.current.system.named_parameters():
        assert torch.equal(p, before[name]) == (moves not in name), name


def test_phases_train_their_own_groups() -> None:
    """Knots first, coefficients then: each phase leaves the other's group as it is."""
    model = replace(MODEL, knots="free")
    phases = [lbfgs(2, train=("*.knots_free",)), adam(2, train=("*.coefficients",))]
    after_one = run(Line(), options(phases[:1], model)).current.system
    after_two = run(Line(), options(phases, model)).current.system
    for (name, a), b in zip(after_one.named_parameters(), after_two.parameters(), strict=True):
        assert torch.equal(a, b) == ("knots_free" in name)


# --- the same again -------------------------------------------------------------------------------
ATTENTION = AttentionOptions(blocks=("*",), rate=0.1, decay=0.9)
GRADED = replace(SAMPLING, grading=(Grading("x", 0.2, share=0.5),), growth=1.5)
FEW_POINTS = options(
    [adam(8, learning_rate=1e-3), lm(16)],
    levels=2,
    sampling=replace(ADAPTIVE, interior=7),
    refine="auto",
    log_every=1,
)
RUNS: dict[str, tuple[type[Problem], RunOptions]] = {
    "adam with batches and attention": (
        Inverse,
        options(
            [adam(4, batch=7)],
            levels=2,
            attention=ATTENTION,
            sampling=GRADED,
        ),
    ),
    "lbfgs": (Line, options([lbfgs(5)], levels=2)),
    "both, free knots": (
        Line,
        options([adam((3, 2), batch=9), lbfgs(2)], replace(MODEL, knots="free"), levels=2),
    ),
    "attention kept by lbfgs": (
        Line,
        options([adam(2), lbfgs(2), adam(1)], levels=2, attention=ATTENTION),
    ),
    "mlp": (Line, options([adam(3), lbfgs(3)], MLPOptions(width=4))),
    "least squares": (Inverse, options([lm(4)], replace(MODEL, knots="free"), levels=2)),
    "balance, causal weights and attention": (
        Growth,
        options(
            [adam(3, batch=9), lbfgs(3), lm(3)],
            levels=2,
            attention=ATTENTION,
            balance=BalanceOptions(by="gradient_norm", every=2),
            causal=CausalOptions(epsilon=(0.1, 1.0), threshold=0.5, slices=3, every=2),
        ),
    ),
    "adaptive points": (Line, options([lm(3)], levels=3, sampling=ADAPTIVE)),
    "types by level": (
        Inverse,
        options([adam(2, batch=7), lm(3)], levels=2, precision=("float32", "float64")),
    ),
    "auto, extended": (Line, FEW_POINTS),
    "auto, every second step": (
        Line,
        options([adam(10)], levels=2, refine="auto", log_every=2),
    ),
}


LONGER = {"auto, extended", "least squares"}  # to be interrupted many times
MOST_RUNS = [pytest.param(name, marks=pytest.mark.slow if name in LONGER else ()) for name in RUNS]


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, RunState]:
    return {name: run(problem(), chosen) for name, (problem, chosen) in RUNS.items()}


def test_a_run_with_every_kind_of_end_is_among_them(undisturbed: dict[str, RunState]) -> None:
    """Of ``refine: auto``: both levels extended, a phase left early, a level ended early."""
    state = undisturbed["auto, extended"]
    lines = [(row["level"], row["phase"]) for row in state.history]
    assert [entry.record.extensions for entry in state.levels] == [1, 2]
    assert lines.count((0, "extended")) == lines.count((1, "extended")) == 1
    assert lines.count((0, "adam")) == 4 and state.total_steps < 2 * 24
    assert state.current.record.stop_reason == "points"


@pytest.mark.parametrize(
    ("phase", "every"),
    [
        (adam(2000), 50),
        (lbfgs(200), 1),
        (SelfScaledBFGSPhase(steps=200), 1),
        (SelfScaledBroydenPhase(steps=200), 1),
        (lm(200), 1),
    ],
    ids=lambda value: getattr(value, "optimiser", ""),
)
def test_a_level_that_its_points_end_leaves_nothing_to_the_next(phase: Phase, every: int) -> None:
    """The next level starts like one whose coarser level used its steps up: afresh."""
    few = SamplingOptions(interior=7, held_out=200)
    auto = options(
        [phase], levels=2, sampling=few, refine="auto", log_every=every, max_extensions=0
    )
    state = run(Line(), auto)
    assert state.levels[0].record.stop_reason in ("points", "knots")
    steps = next(row["step"] for row in state.history if row["level"] == 1)
    counted = replace(phase, steps=(steps, state.total_steps - steps))
    plain = run(Line(), options([counted], levels=2, sampling=few, log_every=every))
    assert 0 < plain.levels[0].record.steps == steps < state.total_steps
    assert plain.history[-1]["loss"] == pytest.approx(state.history[-1]["loss"], rel=1e-9)


@pytest.mark.parametrize("name", RUNS)
def test_same_seed_same_numbers(name: str, undisturbed: dict[str, RunState]) -> None:
    problem, chosen = RUNS[name]
    assert_same(run(problem(), chosen), undisturbed[name])


@pytest.mark.parametrize("name", RUNS)
def test_another_seed_another_run(name: str, undisturbed: dict[str, RunState]) -> None:
    problem, chosen = RUNS[name]
    other = run(problem(), replace(chosen, seed=1))
    assert other.history[0]["loss"] != undisturbed[name].history[0]["loss"]


class StopAfter(NullObserver):
    """Asks the run to stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def stop_requested(self) -> bool:
        self.left -= 1
        return self.left <= 0


def resumed(problem: type[Problem], chosen: RunOptions, state: RunState, steps: int) -> RunState:
    saved = copy.deepcopy(state)  # as a checkpoint: nothing shared
    return MultilevelRun(problem(), chosen, StopAfter(steps), saved).run()


@pytest.mark.parametrize("name", MOST_RUNS)
def test_interrupted_at_any_step(name: str, undisturbed: dict[str, RunState]) -> None:
    problem, chosen = RUNS[name]
    whole = undisturbed[name]
    for step in range(1, whole.total_steps + 1):
        first = run(problem(), chosen, StopAfter(step))
        assert first.total_steps == step
        assert first.current.record.stop_reason == "interrupted" and not first.finished
        assert first.current.record.loss is not None
        assert_same(resumed(problem, chosen, first, 10**9), whole)


@pytest.mark.parametrize("name", RUNS)
def test_interrupted_at_every_step(name: str, undisturbed: dict[str, RunState]) -> None:
    problem, chosen = RUNS[name]
    state = run(problem(), chosen, StopAfter(1))
    for _ in range(undisturbed[name].total_steps):
        state = resumed(problem, chosen, state, 1)
    assert_same(state, undisturbed[name])


@pytest.mark.parametrize("name", MOST_RUNS)
def test_out_of_time_at_every_step(name: str, undisturbed: dict[str, RunState]) -> None:
    problem, chosen = RUNS[name]
    limited = replace(chosen, training=replace(chosen.training, time_limit=1e-9))
    state = run(problem(), limited)
    assert state.current.record.stop_reason == "time" and state.total_steps == 1
    for _ in range(undisturbed[name].total_steps):
        state = resumed(problem, limited, state, 10**9)
    assert_same(state, undisturbed[name])


@pytest.mark.parametrize(("rate", "told"), [(1e30, True), (1e-3, False)])
def test_a_level_that_never_got_better_says_so(rate: float, told: bool) -> None:
    """A rate that ruins the networks for good, and leaves the loss finite."""
    recorder = Recorder()
    chosen = options([AdamPhase(steps=6, learning_rate=rate)], log_every=2)
    state = run(Line(), chosen, recorder)
    assert all(math.isfinite(row["loss"]) for row in state.history)
    assert state.levels[0].best_step == 0 or not told
    notes = [note for note in recorder.notes if "no step improved on the start" in note]
    assert [note.split(":")[0] for note in notes] == (["level 0"] if told else [])


@pytest.mark.parametrize("reason", ["interrupted", "time", "target"])
def test_stopped_between_two_lines(reason: str) -> None:
    """The iterate of that moment is the result, if it is better; the level's best one remains."""
    chosen = options([lm(9)], log_every=100)
    training, observer = chosen.training, StopAfter(2 if reason == "interrupted" else 10**9)
    if reason != "interrupted":
        training = replace(training, time_limit=1e-9)
    if reason == "target":
        training = replace(training, target=TargetOptions(loss=1e9))
    state = run(Line(), replace(chosen, training=training), observer)
    level, iterate = state.solution
    assert (level.record.stop_reason, iterate) == (reason, "last")
    last = state.history[-1]
    assert [row["phase"] for row in state.history] == ["start", "stopped"]
    assert last["step"] == state.total_steps == (2 if reason == "interrupted" else 1)
    assert last["heldout_score"] < level.best_score == state.history[0]["heldout_score"]
    assert level.record.loss == last["loss"] and level.best_step == 0
    state.history[-1] = last | {"heldout_score": 2 * level.best_score}
    assert state.solution[1] == ("last" if reason == "target" else "best")


class Recorder(NullObserver):
    """Keeps every state that is to be made durable, and counts the rest."""

    def __init__(self) -> None:
        self.saved: list[RunState] = []
        self.levels: list[int] = []
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def on_level(self, state: RunState) -> None:
        self.levels.append(state.current.record.level)
        self.saved.append(copy.deepcopy(state))

    def on_checkpoint(self, state: RunState) -> None:
        self.saved.append(copy.deepcopy(state))

    def on_log(self, row: dict[str, Any], state: RunState) -> None:
        self.rows.append(row)

    def on_note(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.parametrize("name", MOST_RUNS)
def test_killed_after_any_checkpoint(name: str, undisturbed: dict[str, RunState]) -> None:
    """A run goes on from every state its observer was told to save."""
    problem, chosen = RUNS[name]
    recorder = Recorder()
    run(problem(), chosen, recorder)
    assert len(recorder.saved) > len(undisturbed[name].levels) + 1
    for state in recorder.saved[:-1]:
        assert_same(resumed(problem, chosen, state, 10**9), undisturbed[name])


def test_observer_is_told() -> None:
    recorder = Recorder()
    state = run(Line(), options([adam(5), lbfgs(3)], levels=2), recorder)
    assert recorder.levels == [0, 1]
    assert recorder.rows == state.history
    steps = [(row["level"], row["phase"], row["step"]) for row in state.history]
    assert steps == [
        *((0, "start", 0), (0, "adam", 3), (0, "lbfgs", 6), (0, "end", 8)),
        *((1, "start", 8), (1, "adam", 9), (1, "adam", 12), (1, "lbfgs", 15), (1, "end", 16)),
    ]
    # one at every level, one every fourth step, one at the end
    assert [s.total_steps for s in recorder.saved] == [0, 4, 8, 8, 12, 16, 16]
    assert state.current.record.evaluations >= 5 + 3
    total = sum(entry.record.evaluations for entry in state.levels)
    assert state.history[-1]["evaluations"] == total


# --- the best iterate -----------------------------------------------------------------------------
@pytest.mark.parametrize("name", RUNS)
def test_best_iterate_is_the_best_logged(name: str, undisturbed: dict[str, RunState]) -> None:
    state = undisturbed[name]
    for entry in state.levels:
        rows = [row for row in state.history if row["level"] == entry.record.level]
        best = min(rows, key=lambda row: row["heldout_score"])
        assert entry.best_score == best["heldout_score"]
        assert entry.best_step == best["step"]
    scores = [entry.best_score for entry in state.levels]
    assert state.best_level is state.levels[scores.index(min(scores))]


def test_best_system_is_no_part_of_the_run() -> None:
    chosen = options([adam(9, learning_rate=0.5)])
    state = run(Line(), chosen)
    entry = state.current
    best = entry.best_system()
    for name, p in best.named_parameters():
        assert torch.equal(p, entry.best[name])
        assert p.data_ptr() != dict(entry.system.named_parameters())[name].data_ptr()


# --- stops ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "target",
    [
        TargetOptions(loss=0.3),
        TargetOptions(rel_l2=0.4),
        TargetOptions(heldout_residual=5.0),
        TargetOptions(loss=0.3, rel_l2=0.4),
    ],
)
def test_target_ends_the_run(target: TargetOptions) -> None:
    state = run(Line(), options([lbfgs(40)], levels=3, target=target, log_every=1))
    assert state.finished
    assert state.current.record.stop_reason == "target"
    last, before = state.history[-1], state.history[-2]
    assert all(last[name] <= value for name, value in target.given.items())
    assert not all(before[name] <= value for name, value in target.given.items())
    assert len(state.levels) == 1 and 0 < state.total_steps < 40


def test_target_may_be_met_on_a_finer_level() -> None:
    target = TargetOptions(loss=1e-6)
    state = run(Line(), options([lbfgs(30)], levels=4, target=target, log_every=1))
    reasons = [entry.record.stop_reason for entry in state.levels]
    assert 1 < len(reasons) < 4
    assert reasons == ["steps"] * (len(reasons) - 1) + ["target"]


def test_target_met_by_the_last_step_of_a_level() -> None:
    """Between two logged lines, but a finer level would be for nothing."""
    first = run(Line(), options([lbfgs(7)], log_every=100))
    target = TargetOptions(loss=first.history[-1]["loss"])
    state = run(Line(), options([lbfgs(7)], levels=2, target=target, log_every=100))
    assert state.current.record.stop_reason == "target"
    assert len(state.levels) == 1 and state.total_steps == 7


def test_time_limit_ends_the_run() -> None:
    state = run(Line(), options([lbfgs(40)], levels=3, time_limit=1e-6))
    assert state.total_steps == 1
    assert state.current.record.stop_reason == "time"
    assert state.history[-1]["step"] == 1  # judged before the end
    assert state.elapsed > 0


def test_time_limit_changes_nothing_before_it_ends() -> None:
    free = run(Line(), options([lbfgs(4)]))
    limited = run(Line(), options([lbfgs(4)], time_limit=1e6))
    assert_same(free, limited)


class Poisoned(Line):
    """Not a number in some evaluations of the training residual, by their number."""

    def __init__(self, calls: Callable[[int], bool]) -> None:
        self.count, self.bad = 0, calls

    def residual(self, p: Site) -> Tensor:
        rows = super().residual(p)
        if not torch.is_grad_enabled():
            return rows
        self.count += 1  # tracing the residual counts too
        return rows * (math.nan if self.bad(self.count) else 1.0)


def test_restart_from_the_best_iterate_after_a_non_finite_loss() -> None:
    recorder = Recorder()
    # One evaluation is spoilt: a full-batch step of Adam meets it and is skipped.
    state = run(Poisoned(lambda n: n == 9), options([adam(12)], log_every=1), recorder)
    assert state.restarts == 1
    assert state.current.record.stop_reason == "steps" and state.total_steps == 12
    # What is logged is the loss of the iterate that was kept, not of the spoilt evaluation.
    assert all(math.isfinite(row["loss"]) for row in state.history)
    (note,) = [note for note in recorder.notes if "restarted" in note]
    assert "non-finite loss, restarted from the best iterate (1 of 3)" in note


def test_attention_survives_a_non_finite_residual() -> None:
    chosen = options([adam(12)], log_every=1, attention=ATTENTION)
    state = run(Poisoned(lambda n: n == 9), chosen)
    assert state.restarts == 1
    assert all(w.isfinite().all() for w in state.weights.attention.values())
    assert math.isfinite(state.history[-1]["loss"])


@pytest.mark.parametrize("phase", [adam, lbfgs])
@pytest.mark.parametrize("restarts", [0, 2])
def test_non_finite_for_good(phase: Callable[..., Phase], restarts: int) -> None:
    recorder = Recorder()
    problem = Poisoned(lambda n: n > 12)
    chosen = options([phase(40)], levels=3, log_every=1, max_restarts=restarts)
    state = run(problem, chosen, recorder)
    assert state.current.record.stop_reason == "non_finite"
    assert state.restarts == restarts
    assert len(state.levels) < 3 and state.finished
    best = state.current.best_system()
    assert all(p.isfinite().all() for p in best.parameters())
    assert math.isfinite(state.current.best_score)


def test_a_start_that_is_not_finite() -> None:
    """No iterate to go back to: the run ends at once, with the reason."""
    state = run(Poisoned(lambda n: True), options([adam(12)], log_every=1))
    assert state.current.record.stop_reason == "non_finite"
    assert state.total_steps <= 4


@pytest.mark.parametrize("phase", [adam, lbfgs, LevenbergMarquardtPhase])
def test_a_start_that_is_not_finite_names_the_block(phase: Callable[..., Phase]) -> None:
    class Holed(Line):
        def residual(self, p: Site) -> Tensor:
            return torch.where(p.x > 0.5, math.nan, super().residual(p))

    recorder = Recorder()
    state = run(Holed(), options([phase(steps=12)], log_every=1), recorder)
    assert state.current.record.stop_reason == "non_finite"
    (note,) = [note for note in recorder.notes if "starts with" in note]
    assert note.startswith("level 0 starts with a loss that is not finite: residual 'equation' ")
    first = float(note.rpartition("(")[2].rstrip(")"))
    assert 0.5 < first <= 1.0


@pytest.mark.parametrize("reason", ["gradient_tolerance", "no_progress"])
def test_a_converged_phase_gives_way_to_the_next(reason: str) -> None:
    first = lbfgs(500, gradient_tolerance=1e3) if reason == "gradient_tolerance" else lbfgs(
        500, change_tolerance=0.9, patience=2
    )  # fmt: skip
    state = run(Line(), options([first], levels=2))
    assert [entry.record.stop_reason for entry in state.levels] == [reason] * 2
    assert state.total_steps < 500
    state = run(Line(), options([first, adam(3)]))
    assert state.current.record.stop_reason == "steps"
    assert state.history[-1]["step"] == state.total_steps


# --- what the loop does with its options ----------------------------------------------------------
def test_attention_weights_follow_their_rule() -> None:
    """``w <- decay w + rate |r| / max |r|``, after one step of the full batch."""
    chosen = options([adam(1)], attention=replace(ATTENTION, initial=0.5))
    before = MultilevelRun(Line(), chosen)
    state = before.run()
    (weights,) = state.weights.attention.values()
    context = before._context(before.hierarchy.levels[0], system_of(Line(), MODEL))
    size = residual_rows(context.data[0], system_of(Line(), MODEL)).abs()[:, 0]
    torch.testing.assert_close(weights, 0.9 * 0.5 + 0.1 * size / size.max(), rtol=1e-12, atol=0)


def test_attention_acts_on_the_named_blocks() -> None:
    for pattern, expected in (("equation", ["equation"]), ("*", 2), ("dirichlet*", 1)):
        attention = AttentionOptions(blocks=(pattern,))
        state = run(Inverse(), options([adam(1)], attention=attention))
        found = list(state.weights.attention)
        assert found == expected if isinstance(expected, list) else len(found) == expected


def test_batches_leave_small_blocks_whole() -> None:
    """With a batch of 5 the equation's 24 rows are drawn, and each epoch holds every row once."""
    seen: list[int] = []

    class Watched(Inverse):
        def residual(self, p: Site) -> Tensor:
            if torch.is_grad_enabled():
                seen.append(len(p.points))
            return super().residual(p)

    run(Watched(), options([adam(3, batch=5)]))
    assert [n for n in seen if n > 3] == [5, 5, 5]


def test_sampled_points_are_those_of_the_level() -> None:
    runner = MultilevelRun(Inverse(), options([lbfgs(1)], levels=2))
    system = system_of(Inverse(), MODEL)
    contexts = [runner._context(level, system) for level in runner.hierarchy.levels]
    first, second = (context.data[0].points[0].x for context in contexts)
    assert not (first[:, None] == second[None]).all(-1).any()
    again = runner._context(runner.hierarchy.levels[0], system)
    assert torch.equal(again.data[0].points[0].x, first)


def test_given_points_of_a_block() -> None:
    class Fixed(Line):
        def blocks(self) -> tuple[ResidualBlock, ...]:
            (block,) = super().blocks()
            return (replace(block, points=10),)

    sampling = replace(SAMPLING, growth=2.0)
    state = run(Fixed(), options([lbfgs(1)], levels=2, sampling=sampling))
    assert [entry.record.n_points for entry in state.levels] == [10, 20]


def test_stop_reasons_are_those_of_the_optimisers() -> None:
    assert {"steps", "target", "time", "interrupted", "non_finite"} <= {r.value for r in StopReason}
    assert issubclass(NestingError, KanpinnError)


# --- steps, targets, definitions ---
def test_a_short_list_of_steps_goes_on_with_its_last_entry_and_a_long_one_is_cut() -> None:
    phase = lbfgs((3, 2))
    assert [phase.steps_on(level) for level in range(4)] == [3, 2, 2, 2]
    one_level = run(Line(), options([phase], levels=1))
    assert one_level.total_steps == 3


def test_the_iterate_that_meets_the_target_is_the_solution() -> None:
    target = TargetOptions(loss=1e30)  # met by the first logged line
    state = run(Line(), options([lbfgs(20)], target=target, log_every=5))
    assert state.current.record.stop_reason == "target"
    assert state.best_level is state.current and state.current.best_step == state.total_steps


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"domain": None}, "domain: found none, allowed: a Box"),
        ({"conditions": ("u = 0",)}, "conditions: found str, allowed: conditions such as"),
        ({"conditions": (Dirichlet(field="v"),)}, "unknown field, allowed: u"),
        ({"residual": lambda self, p: p.x}, "uses none of the fields u"),
        ({"conditions": (Dirichlet(value="exq(x)", exact=True),)}, "exq"),
    ],
)
def test_a_definition_that_lacks_something_is_refused(
    attributes: dict[str, Any], message: str
) -> None:
    problem = type("Lacking", (Line,), attributes)()
    with pytest.raises(ProblemError, match=re.escape(message)):
        MultilevelRun(problem, options([lbfgs()]))


def test_a_failing_residual_names_its_line() -> None:
    def residual(p: Site) -> Tensor:
        return p.u.xx + undefined  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ProblemError, match=r"undefined.*test_multilevel.py, line \d+"):
        MultilevelRun(problem_with(residual), options([lbfgs()]))


def test_the_logged_loss_is_the_whole_objective_at_the_kept_iterate() -> None:
    """Adam knows the loss at the start of its step, and of its mini-batch, only."""
    phase = AdamPhase(steps=10, batch=4)
    state = run(Line(), options([phase], log_every=5))
    system = state.current.system
    engine = MultilevelRun(Line(), options([phase], log_every=5), state=copy.deepcopy(state))
    data = engine._context(engine.hierarchy.levels[0], system).data
    pack = ParameterPack(system)
    whole = float(SystemObjective(system, pack, data).loss(pack.read()))
    assert state.history[-1]["loss"] == pytest.approx(whole, rel=1e-12)
    assert state.current.record.loss == state.history[-1]["loss"]

"""Adaptive knots: where they go, against explicit fits; nested, exact, planned, resumed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from test_checkpoint import without_clock
from test_objective import Diffusion, make
from test_smoothing import Noisy
from test_windows import SAMPLING, Swing
from tiny_runs import MODELS, Recorder, save

from kanpinn.api.preparation import prepare
from kanpinn.checkpoint import read_checkpoint, restore_state
from kanpinn.cli import main
from kanpinn.errors import ConfigError, KnotError
from kanpinn.geometry import FixedPoints, Points
from kanpinn.models import KANOptions, KnotNetwork, MultichannelOptions
from kanpinn.problem import Problem, build_system
from kanpinn.residuals import ResidualBlock, System
from kanpinn.sampling import SamplingOptions, sample, stream
from kanpinn.splines import Knots
from kanpinn.splines.transfer import match_knots
from kanpinn.training import (
    LevenbergMarquardtPhase,
    MultilevelRun,
    RunOptions,
    RunState,
    SmoothingOptions,
    TrainingOptions,
)
from kanpinn.training.block_data import BlockData
from kanpinn.training.evaluation import predict
from kanpinn.training.hierarchy import Refinement, largest, on_knots, refine_system
from kanpinn.training.knot_insertion import adaptive_knots, as_splines, interval_gains
from kanpinn.training.objective import SystemObjective
from kanpinn.training.parameters import ParameterPack

Floats = NDArray[np.float64]
KINK = 0.3
ON_KNOTS = [name for name in MODELS if not name.startswith("mlp")]


class Values(Noisy):
    """Values of a function at equally spaced points, without noise."""

    def __init__(
        self, function: Callable[[Floats], Floats], count: int = 400, end: float = 1.0
    ) -> None:
        self.function, x = function, np.linspace(-1, end, count)
        self.parts = [(x, function(x))] * 2

    def reference(self, x: Floats) -> Floats:
        return self.function(x[:, 0])

    def evaluation_points(self) -> torch.Tensor:
        return torch.linspace(-1, 1, 1003, dtype=torch.float64)[:, None]


def kink(x: Floats) -> Floats:
    return np.abs(x - KINK)


def layer(x: Floats) -> Floats:
    return np.tanh(50 * x)


ONE_LAYER = KANOptions(hidden_layers=0, order=4, intervals=4)


def options(levels: int, steps: int = 12, model: Any = ONE_LAYER, **more: Any) -> RunOptions:
    training = {"refine": "adaptive", "refine_share": 0.4, "log_every": 3, **more}
    phases = (LevenbergMarquardtPhase(steps=steps),)
    chosen = TrainingOptions(levels=levels, phases=phases, **training)
    return RunOptions(model, chosen, SAMPLING)


def run(problem: Problem, chosen: RunOptions) -> RunState:
    return MultilevelRun(problem, chosen).run()


def network_of(system: System) -> KnotNetwork:
    network = system.parts["main"].network
    assert isinstance(network, KnotNetwork)
    return network


# --- knots and choices ----------------------------------------------------------------------------
def test_bisected_intervals() -> None:
    knots = Knots.from_breakpoints(4, [[-1.0, 0.0, 1.0], [-1.0, -0.5, 1.0]])
    fine = knots.bisected([[1], [0, 1]])
    assert [t.tolist() for t in fine.breakpoints] == [
        [-1.0, 0.0, 0.5, 1.0],
        [-1.0, -0.75, -0.5, 0.25, 1.0],
    ]
    every = knots.bisected([[0, 1], [0, 1]])
    pairs = zip(every.breakpoints, knots.refined().breakpoints, strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    with pytest.raises(KnotError, match="points of 1 channels were given for 2"):
        knots.bisected([[0]])


def test_the_largest_values() -> None:
    assert largest([[1.0, 5.0, 5.0], [7.0, 0.0], []], 2) == [[1], [0], []]
    assert largest([[1.0, 2.0]], 5) == [[0, 1]]


def untrained(name: str, n: int = 50) -> tuple[System, Callable[[System], list[BlockData]]]:
    """Initial networks, and the blocks of an equation for them or others."""
    _, blocks = make(MODELS[name], Diffusion(), n)
    system = build_system(Diffusion(), MODELS[name], torch.Generator().manual_seed(4))
    return system, lambda other: [BlockData(b, points, other, 16) for b, points in blocks]


# --- the indicator --------------------------------------------------------------------------------
@pytest.mark.parametrize("order", [5, 4])
@pytest.mark.parametrize("kind", [KANOptions, MultichannelOptions])
def test_gains_are_those_of_single_splines(kind: Any, order: int) -> None:
    """One layer is linear: what one spline of scipy's on the halved knots takes off the loss."""
    problem = Values(kink)
    model = kind(hidden_layers=0, order=order, intervals=4)
    system = run(problem, options(1, 40, model)).current.system
    (block,) = problem.blocks()
    points = sample(block.region, 1, "sobol", stream(0))
    ((found,),) = interval_gains(system, lambda s: [BlockData(block, points, s)])["main"]
    x, y = problem.parts[0]
    residual = predict(system, torch.tensor(x)[:, None])[:, 0].numpy() - y
    fine, expected = np.arange(-1 - 0.25 * order, 1.3 + 0.25 * order, 0.25), []
    for middle in (-0.75, -0.25, 0.25, 0.75):
        start = int(np.argmin(abs(fine - middle))) - order // 2
        spline = BSpline.basis_element(fine[start : start + order + 1], extrapolate=False)
        a = np.nan_to_num(spline(x))
        expected.append(float((a @ residual) ** 2 / (a @ a)) / len(x))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)
    assert int(np.argmax(found)) == 2  # where the kink is


@pytest.mark.parametrize("name", ["kan orders", "kan ragged free base", "multichannel ragged"])
def test_gains_of_a_network_for_an_equation(name: str) -> None:
    """By central differences of the residuals with respect to single coefficients."""
    system, data_on = untrained(name)
    gains = interval_gains(system, data_on)["main"]
    network = network_of(as_splines(system))
    fine = refine_system(
        as_splines(system), [Refinement((True, True))], "prolongation", torch.float64
    )
    pack = ParameterPack(fine)
    objective, theta = SystemObjective(fine, pack, data_on(fine)), pack.read()
    residuals = objective.residuals(theta)
    for number, rows in enumerate(gains):
        part = network.knot_layers[number]
        assert [len(row) for row in rows] == list(part.knots.n_intervals)
        knots, where = part.knots.refined(), objective.pack.layout.slices()
        start = where[f"main.layer{number}.coefficients"].start
        channel, interval = 1, len(rows[1]) - 1
        first = knots.offsets[channel] + 2 * interval + part.order - part.order // 2
        expected = 0.0
        for out in range(part.out_width):
            unit = torch.zeros_like(theta)
            unit[start + out * knots.n_features + first] = 1e-5
            a = (objective.residuals(theta + unit) - objective.residuals(theta - unit)) / 2e-5
            expected += float((a @ residuals) ** 2 / (a @ a)) if float(a @ a) else 0.0
        assert expected > 0
        assert rows[channel][interval] == pytest.approx(expected, rel=1e-5)


# --- where knots go -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("function", "place", "factor"), [(kink, KINK, 5), (layer, 0.0, 100)], ids=["kink", "layer"]
)
def test_knots_gather_where_the_error_is(function: Any, place: float, factor: float) -> None:
    problem = Values(function)
    state = run(problem, options(7))
    assert [entry.record.n_intervals for entry in state.levels] == [
        [n] for n in (4, 6, 8, 11, 15, 21, 29)
    ]
    t = network_of(state.current.system).knots[0].breakpoints[0].numpy()
    near = (np.abs(t - place) < 0.25).mean()
    assert near > 0.6  # of the knots; equally spaced, a quarter of them
    assert np.diff(t)[np.abs(t[:-1] - place) < 0.02].max() < 0.1 * np.diff(t).max()
    dyadic = run(problem, options(4, refine="dyadic"))
    assert dyadic.current.record.n_intervals == [32]
    coarse, fine = dyadic.current.record.rel_l2, state.current.record.rel_l2
    assert coarse is not None and fine is not None and fine < coarse / factor
    assert state.current.record.n_params < dyadic.current.record.n_params


@pytest.mark.parametrize("name", ON_KNOTS)
def test_nested_and_exact_in_every_model(name: str) -> None:
    system, data_on = untrained(name, 200)
    coarse = network_of(system).knots
    flags = (True, False)[: len(coarse)]
    knots = adaptive_knots(system, data_on, Refinement(flags, 0.5))
    fine = on_knots(system, knots, "prolongation")
    for mine, theirs, flag in zip(coarse, network_of(fine).knots, flags, strict=True):
        match_knots(mine, theirs)  # refuses what does not nest
        added = sum(theirs.n_intervals) - sum(mine.n_intervals)
        assert added == (round(0.5 * sum(mine.n_intervals)) if flag else 0)
    x = 2 * torch.rand(200, 2, generator=torch.Generator().manual_seed(0)).double() - 1
    change = (predict(fine, x) - predict(system, x)).abs().max()
    assert float(change) <= 1e-11 * float(predict(system, x).abs().max())


def test_what_no_point_reaches_is_not_halved() -> None:
    state = run(Values(kink, end=0.0), options(3, refine_share=1.0))
    knots = [network_of(entry.system).knots[0].breakpoints[0].tolist() for entry in state.levels]
    assert knots[1] == [-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]  # splines reach into [0, 1]
    added = [-0.875, -0.625, -0.375, -0.125, 0.125]
    assert knots[2] == sorted([*knots[1], *added])
    assert [entry.record.n_params for entry in state.levels] == [len(t) + 2 for t in knots]


def test_free_knots_stay_above_their_floor() -> None:
    problem = Values(layer, 100)
    chosen = options(4, 8, replace(ONE_LAYER, knots="free", knot_floor=0.4), refine_share=0.9)
    state, planned = run(problem, chosen), MultilevelRun(problem, chosen).hierarchy
    for entry, level in zip(state.levels, planned.levels, strict=True):
        assert entry.record.n_params <= level.n_parameters
    assert state.current.record.n_params < planned.levels[-1].n_parameters  # some were at it


# --- in a run -------------------------------------------------------------------------------------
def test_plans_say_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = KANOptions(width=2, order=4, intervals=(3, 4))
    run_of = MultilevelRun(Values(kink), options(3, model=model, refine_layers=(False, True)))
    assert repr(run_of.hierarchy).splitlines() == [
        "level  intervals       parameters  steps",
        "    0  3/4                     26  12",
        "    1  3/6                  <= 29  12",
        "    2  3/8                  <= 33  12",
    ]
    config = {"problem": "poisson", "model": {"width": 2}, "training": {"levels": 2}}
    Path("adaptive.yaml").write_text(json.dumps(config), encoding="utf-8")
    adaptive = ["adaptive.yaml", "training.refine=adaptive"]
    for arguments, expected in (
        (["validate", *adaptive], "2 levels, at most "),
        (["solve", *adaptive, "--dry-run"], " <= "),
        (["solve", *adaptive, "--dry-run", "--json"], '"at_most": true'),
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0 and expected in result.output
        dyadic = CliRunner().invoke(main, [*arguments, "training.refine=dyadic"])
        assert dyadic.exit_code == 0 and expected not in dyadic.output


COMBINED: dict[str, tuple[Problem, RunOptions]] = {
    "uniform": (Values(kink, 60), options(3, 4, KANOptions(width=2, order=4, intervals=3))),
    "free": (
        Values(kink, 60),
        options(3, 4, KANOptions(width=2, order=4, intervals=3, knots="free")),
    ),
    "multichannel": (Values(kink, 60), options(3, 4, MultichannelOptions(width=2, order=4))),
    "smoothing": (
        Values(kink, 60),
        options(3, 4, smoothing=SmoothingOptions(penalties=(1e-3, 1e-5))),
    ),
    "windows": (Swing(), options(2, 4, KANOptions(width=2, order=4, intervals=2), windows=2)),
    "refit": (Values(kink, 60), options(3, 4, transfer="least_squares")),
}


@pytest.mark.parametrize("name", COMBINED)
def test_a_resumed_run_is_the_same(name: str, tmp_path: Path) -> None:
    problem, chosen = COMBINED[name]
    chosen = replace(chosen, training=replace(chosen.training, checkpoint_every=3))
    numbers = itertools.count()
    recorder = Recorder(lambda state: save(tmp_path / f"{next(numbers)}.h5", state, problem))
    final = without_clock(MultilevelRun(problem, chosen, recorder).run())
    assert len(recorder.kept) > 3
    for entry in final.levels:
        knots = network_of(entry.system).knots
        assert entry.record.n_params == entry.system.n_parameters
        assert entry.record.n_intervals == [round(np.mean(k.n_intervals)) for k in knots]
        change = entry.record.max_change
        assert (change is None) == (entry.record.level == 0)
        assert change is None or change < 1e-10
    assert any(not k.uniform for k in network_of(final.current.system).knots)
    for file in recorder.kept[1:-1:3]:
        state = restore_state(read_checkpoint(file))
        again = without_clock(MultilevelRun(problem, chosen, state=state).run())
        assert again.history == final.history
        for mine, theirs in zip(again.levels, final.levels, strict=True):
            assert mine.record == theirs.record
            assert all(torch.equal(mine.best[key], theirs.best[key]) for key in mine.best)


# --- what a user may get wrong --------------------------------------------------------------------
BASE = {"problem": "poisson", "model": {"width": 3, "order": 4}, "training": {"levels": 2}}
WRONG = {
    "training.refine_share=0": "training.refine_share: found 0",
    "training.refine_share=1.5": "training.refine_share: found 1.5",
    "training.phases=[{optimiser: lm, steps: [0, 3]}]": (
        "training.phases: 1 of 2 levels have no steps, allowed: some on every level with refine: a"
    ),
    "training.refine_layers=[true]": "training.refine_layers: found 1 entries",
    "model={type: mlp}": "found 2; a model without knots has one level",
    "model={type: multichannel, order: 8, intervals: 60}": (
        "training.refine: from level 0: the change of basis has condition number"
    ),
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_options(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(BASE, ["training.refine=adaptive", override])
    assert WRONG[override] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_level_without_knots() -> None:
    with pytest.raises(ConfigError, match="refine: found 'adaptive', allowed: dyadic, because"):
        prepare({"problem": "poisson", "model": {"type": "mlp"}}, ["training.refine=adaptive"])


def test_general_losses_have_no_gains() -> None:
    class General(Values):
        def _block(self, x: Floats, y: Floats) -> ResidualBlock:
            region = FixedPoints(Points(torch.tensor(x)[:, None], data={"u": torch.tensor(y)}))
            return ResidualBlock("data", region, self.residual, equation=True, loss=torch.abs)

    training = TrainingOptions(levels=2, refine="adaptive")
    with pytest.raises(ConfigError, match="found 'adaptive', which compares sums of squares, and"):
        MultilevelRun(General(kink), RunOptions(ONE_LAYER, training, SamplingOptions()))

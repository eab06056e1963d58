"""The penalty on rough splines: against scipy, in the Jacobian, chosen by held-out data."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import quad_vec
from scipy.interpolate import BSpline, make_smoothing_spline
from test_checkpoint import without_clock
from test_objective import Diffusion, make, objective_of
from tiny_runs import MODELS, Recorder, save
from torch import Tensor

import kanpinn
from kanpinn.api.preparation import prepare
from kanpinn.checkpoint import read_checkpoint, restore_state
from kanpinn.errors import ConfigError
from kanpinn.geometry import Box, FixedPoints, Points
from kanpinn.models import KAN, KANOptions, KnotLayer, MultichannelMLP
from kanpinn.models.roughness import LayerRoughness
from kanpinn.problem import Problem
from kanpinn.residuals import ResidualBlock, Site
from kanpinn.sampling import SamplingOptions
from kanpinn.training import (
    AdamPhase,
    LBFGSPhase,
    LevenbergMarquardtPhase,
    MultilevelRun,
    RunOptions,
    SmoothingOptions,
    TrainingOptions,
)
from kanpinn.training.evaluation import predict
from kanpinn.training.smoothing import Penalty, Roughness

Floats = NDArray[np.float64]
ON_KNOTS = [name for name in MODELS if not name.startswith("mlp")]


class Noisy(Problem):
    """Values of ``sin(3 x)`` at uneven points, with noise; others, without, to judge by."""

    domain = Box((-1.0,), (1.0,))

    def __init__(self, count: int = 25, noise: float = 0.2) -> None:
        self.parts = [self._draw(count, noise, 1), self._draw(count, 0.0, 2)]

    @staticmethod
    def _draw(count: int, noise: float, seed: int) -> tuple[Floats, Floats]:
        rng = np.random.default_rng(seed)
        inner = -1 + 2 * (np.arange(1, count - 1) + rng.uniform(-0.4, 0.4, count - 2)) / (count - 1)
        x = np.array([-1.0, *inner, 1.0])
        return x, np.sin(3 * x) + noise * rng.standard_normal(count)

    def residual(self, p: Site) -> Tensor:
        return p.u - p.data["u"]

    def _block(self, x: Floats, y: Floats) -> ResidualBlock:
        points = Points(torch.tensor(x)[:, None], data={"u": torch.tensor(y)})
        return ResidualBlock("data", FixedPoints(points), self.residual, equation=True)

    def blocks(self) -> tuple[ResidualBlock, ...]:
        return (self._block(*self.parts[0]),)

    def held_out_blocks(self) -> tuple[ResidualBlock, ...]:
        return (self._block(*self.parts[1]),)


def run(
    problem: Problem, model: Any, smoothing: SmoothingOptions, *phases: Any, **more: Any
) -> Any:
    training = TrainingOptions(phases=phases, smoothing=smoothing, **more)
    return MultilevelRun(problem, RunOptions(model, training, sampling=SamplingOptions())).run()


# --- what the penalty is --------------------------------------------------------------------------
@pytest.mark.parametrize("phase", [LevenbergMarquardtPhase(steps=60), LBFGSPhase(steps=400)])
@pytest.mark.parametrize("weight", [1e-2, 1e-4])
def test_one_layer_with_knots_at_the_data_is_the_smoothing_spline(
    phase: Any, weight: float
) -> None:
    problem = Noisy()
    x, y = problem.parts[0]
    model = KANOptions(hidden_layers=0, order=4, breakpoints=((tuple(x.tolist()),),))
    state = run(problem, model, SmoothingOptions(penalties=(weight,)), phase)
    expected = make_smoothing_spline(x, y, lam=len(x) * weight)
    at = np.linspace(-1, 1, 101)
    found = predict(state.current.system, torch.tensor(at)[:, None])[:, 0].numpy()
    assert np.abs(expected(at) - np.interp(at, x, y)).max() > 0.05  # it does smooth
    np.testing.assert_allclose(found, expected(at), rtol=0, atol=1e-5)


def knot_layers(name: str) -> list[KnotLayer]:
    system, _ = make(MODELS[name], Diffusion())
    return [layer for layer in system.parts["main"].network.chain if isinstance(layer, KnotLayer)]


def integral(layer: KnotLayer, k: int) -> float:
    """Of the squared derivatives of a layer of B-splines, by scipy."""
    knots, total, start = layer.knots, 0.0, 0
    for channel, t in enumerate(knots.breakpoints):
        stop = start + knots.n_functions[channel]
        c = layer.coefficients[:, start:stop].detach().numpy().T
        spline = BSpline(knots.extended(channel).numpy(), c, knots.order - 1).derivative(k)
        for a, b in itertools.pairwise(t.tolist()):
            total += quad_vec(lambda s, f=spline: f(s) ** 2, a, b, epsrel=1e-12)[0].sum()
        start = stop
    return total


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("name", ["kan", "kan ragged", "kan ragged free base"])
def test_roughness_is_the_integral_of_the_squared_derivative(name: str, k: int) -> None:
    for layer in knot_layers(name):
        found = float(LayerRoughness(layer, k).rows().detach().square().sum())
        assert found == pytest.approx(integral(layer, k), rel=1e-10)


@pytest.mark.parametrize("name", ["kan", "kan ragged", "kan free", "multichannel"])
def test_roughness_is_that_of_the_function(name: str) -> None:
    """The same after a prolongation, and in the other basis."""
    system, _ = make(MODELS[name], Diffusion())
    network = system.parts["main"].network
    assert isinstance(network, KAN | MultichannelMLP)
    other = network.to_multichannel() if isinstance(network, KAN) else network.to_kan()
    fine = network.refined([knots.refined() for knots in network.knots])
    for layer, *same in zip(*(n.knot_layers for n in (network, other, fine)), strict=True):
        size = float(LayerRoughness(layer, 2).rows().detach().square().sum())
        for twin in same:
            found = float(LayerRoughness(twin, 2).rows().detach().square().sum())
            assert found == pytest.approx(size, rel=1e-9) and size > 1e-3


# --- its rows among others ------------------------------------------------------------------------
@pytest.mark.parametrize("name", ON_KNOTS)
def test_rows_and_jacobian_against_autograd(name: str) -> None:
    system, blocks = make(MODELS[name], Diffusion(), n=20)
    penalty = Penalty(0.3, Roughness(system, SmoothingOptions()))
    bare, theta = objective_of(system, blocks, chunk=8)
    objective, _ = objective_of(system, blocks, chunk=8, penalty=penalty)
    parameters = tuple(objective.pack.parameters.values())
    rows = penalty.rows()
    jacobian = torch.cat([g.reshape(len(g), -1) for g in gradients(rows, parameters)], 1)
    matrix = torch.cat(list(objective.jacobian_rows(theta)))
    scale = float(jacobian.abs().max())
    # Rows of one integral may differ by a rotation: fixed knots have them reduced to triangles.
    np.testing.assert_allclose(matrix[-len(rows) :, :-1], jacobian, rtol=0, atol=1e-9 * scale)
    torch.testing.assert_close(matrix[-len(rows) :, -1], rows.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(objective.residuals(theta), matrix[:, -1], rtol=1e-10, atol=1e-10)

    expected = 0.3 * sum(
        float(LayerRoughness(layer, 2).rows().detach().square().sum())
        for layer in system.parts["main"].network.chain
        if isinstance(layer, KnotLayer)
    )
    loss, gradient = objective.loss_and_gradient(theta)
    assert float(loss - bare.loss(theta)) == pytest.approx(expected, rel=1e-9)
    assert float(objective.loss(theta)) == pytest.approx(float(loss), rel=1e-13)
    r = matrix[:, -1]
    size = float(gradient.abs().max())
    torch.testing.assert_close(2 * matrix[:, :-1].mT @ r, gradient, rtol=1e-8, atol=1e-8 * size)
    torch.testing.assert_close(
        2 * objective.transposed_product(theta, r), gradient, rtol=1e-8, atol=1e-8 * size
    )
    products, v = objective.linearise(theta, 0.0), torch.linspace(-1, 1, len(theta)).to(theta)
    slopes = matrix[:, :-1]
    torch.testing.assert_close(products.product(v), slopes @ v, rtol=1e-9, atol=1e-9 * scale)
    torch.testing.assert_close(2 * products.transposed(r), gradient, rtol=1e-8, atol=1e-8 * size)
    triangle, gram = objective.triangle(theta), matrix.mT @ matrix
    assert float((triangle.mT @ triangle - gram).norm() / gram.norm()) <= 1e-13


def gradients(rows: Tensor, parameters: tuple[Tensor, ...]) -> list[Tensor]:
    found = []
    for row in rows:
        graph = torch.autograd.grad(row, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(parameters, graph, strict=True)
        found.append([torch.zeros_like(p) if g is None else g for p, g in pairs])
    return [torch.stack(column) for column in zip(*found, strict=True)]


def test_layers_are_chosen_by_pattern() -> None:
    system, _ = make(MODELS["kan"], Diffusion())
    first = Roughness(system, SmoothingOptions(layers=("*.layer0",))).rows()
    both = Roughness(system, SmoothingOptions()).rows()
    assert 0 < len(first) < len(both)
    assert torch.equal(first, both[: len(first)])


# --- the choice -----------------------------------------------------------------------------------
FINE = KANOptions(hidden_layers=0, order=4, intervals=20)


@pytest.mark.parametrize("phase", [LevenbergMarquardtPhase(steps=15), AdamPhase(steps=40, batch=9)])
def test_level_and_penalty_are_those_of_the_best_held_out_score(phase: Any) -> None:
    weights = [1e-1, 1e-3, 1e-5, 0.0]
    smoothing = SmoothingOptions(penalties=tuple(weights))
    state = run(Noisy(), FINE, smoothing, phase, levels=2, log_every=5)
    used = weights
    for entry in state.levels:
        rows = [row for row in state.history if row["level"] == entry.record.level]
        assert list(dict.fromkeys(row["smoothing"] for row in rows)) == used
        best = min(rows, key=lambda row: row["heldout_score"])
        assert entry.record.smoothing == best["smoothing"]
        assert (entry.best_score, entry.best_step) == (best["heldout_score"], best["step"])
        used = used[used.index(best["smoothing"]) :]
    if isinstance(phase, LevenbergMarquardtPhase):
        scores = [
            min(r["heldout_score"] for r in state.history if r["smoothing"] == weight)
            for weight in weights
        ]
        assert state.best_level.record.smoothing == 1e-5
        assert scores[2] < 0.8 * min(scores[0], scores[1], scores[3])


def test_a_finer_level_goes_on_from_the_best_iterate() -> None:
    smoothing = SmoothingOptions(penalties=(1e-3, 0.0))
    phase = LevenbergMarquardtPhase(steps=15)
    state = run(Noisy(), FINE, smoothing, phase, levels=2, log_every=5)
    first = next(row for row in state.history if row["level"] == 1)
    assert first["heldout_score"] == pytest.approx(state.levels[0].best_score, rel=1e-12)
    last = [row for row in state.history if row["level"] == 0][-1]
    assert last["heldout_score"] > 1.01 * first["heldout_score"]


@pytest.mark.parametrize("knots", ["uniform", "free"])
def test_a_resumed_run_is_the_same(knots: Any, tmp_path: Path) -> None:
    problem = Noisy()
    training = TrainingOptions(
        levels=2,
        phases=(LevenbergMarquardtPhase(steps=3), AdamPhase(steps=2)),
        smoothing=SmoothingOptions(penalties=(1e-3, 1e-5)),
        log_every=2,
        checkpoint_every=3,
    )
    model = KANOptions(width=2, order=4, intervals=3, knots=knots)
    options = RunOptions(model, training, SamplingOptions())
    numbers = iter(range(100))
    recorder = Recorder(lambda state: save(tmp_path / f"{next(numbers)}.h5", state, problem))
    final = without_clock(MultilevelRun(problem, options, recorder).run())
    assert len(recorder.kept) >= 6  # every 3 steps, and the end
    for file in (recorder.kept[1], recorder.kept[4]):
        state = restore_state(read_checkpoint(file))
        again = without_clock(MultilevelRun(problem, options, state=state).run())
        assert again.history == final.history
        for mine, theirs in zip(again.levels, final.levels, strict=True):
            assert mine.record == theirs.record and mine.record.smoothing in (1e-3, 1e-5)
            assert all(torch.equal(mine.best[name], theirs.best[name]) for name in mine.best)


def test_the_summary_names_the_penalty(tmp_path: Path) -> None:
    config = {
        "problem": {"name": "regression", "points": 80, "validation_points": 80, "noise": 0.1},
        "model": {"width": 2, "order": 4, "intervals": 6},
        "training": {
            "phases": [{"optimiser": "lm", "steps": 4}],
            "smoothing": {"penalties": [1e-4, 1e-9]},
        },
        "figures": False,
    }
    result = kanpinn.solve(config, out=tmp_path / "run")
    assert result.summary["smoothing"] == result.levels[0]["smoothing"] in (1e-4, 1e-9)


# --- what a user may get wrong --------------------------------------------------------------------
BASE = {"problem": "poisson", "model": {"width": 3, "order": 4}}
WRONG = {
    "training.smoothing={penalties: []}": "smoothing.penalties: found [], allowed: at least one",
    "training.smoothing={penalties: [1e-5, 1e-3]}": "allowed: at least one number, strictly decr",
    "training.smoothing={penalties: [-1]}": "training.smoothing.penalties",
    "training.smoothing={penalties: some}": "training.smoothing.penalties",
    "training.smoothing={derivative: 4}": "smoothing.derivative: found 4, allowed: below 4, the",
    "training.smoothing={layers: [v.*]}": "'v.*' matches no layer; there are main.layer0, main.lay",
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_options(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(BASE, [override])
    assert WRONG[override] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_without_knots_cannot_be_smoothed() -> None:
    with pytest.raises(ConfigError, match="smoothing: the model has no knots; allowed models: kan"):
        prepare({"problem": "poisson", "model": {"type": "mlp"}}, ["training.smoothing={}"])


def test_nothing_held_out_nothing_to_choose_by() -> None:
    class Given(Noisy):
        def held_out_blocks(self) -> Any:
            return None

    training = TrainingOptions(phases=(LevenbergMarquardtPhase(),), smoothing=SmoothingOptions())
    with pytest.raises(ConfigError, match="penalties: found 7 to choose from, allowed: one,"):
        MultilevelRun(Given(), RunOptions(FINE, training, SamplingOptions()))
    one = replace(training, smoothing=SmoothingOptions(penalties=(1e-3,)))
    MultilevelRun(Given(), RunOptions(FINE, one, SamplingOptions()))

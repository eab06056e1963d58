"""Spectra along runs: the networks of every stage, Jacobians in both bases, what is read off."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from analysed_runs import VARIANTS, config_of, trained
from figure_checks import check, main_axes
from torch import Tensor

from kanpinn import api
from kanpinn.analysis import TrainingSpectra, run
from kanpinn.analysis.stages import run_stages
from kanpinn.analysis.training_spectra import (
    common_points,
    in_power_relu,
    jacobian_of,
    summary,
    values_block,
)
from kanpinn.errors import ConfigError
from kanpinn.models import KAN
from kanpinn.plotting.analysis import draw
from kanpinn.residuals import System
from kanpinn.sampling import sample, stream
from kanpinn.training.hierarchy import with_parts

FORGETFUL = {"adaptive and free": ["start", "end", "end", "end"]}


def parameters(system: System) -> Tensor:
    return torch.cat([p.detach().flatten() for p in system.parameters()])


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in FORGETFUL])
def test_stages_are_those_of_the_run(variant: str) -> None:
    """Starts, the first one's random networks too, bit for bit."""
    solution, problem, levels = trained(variant)
    stages = list(run_stages(solution, problem))
    starts = [stage for stage in stages if stage.moment == "start"]
    assert len(stages) == 2 * len(starts) == 2 * len(levels.starts)
    for stage, expected in zip(starts, levels.starts, strict=True):
        torch.testing.assert_close(parameters(stage.system), parameters(expected), rtol=0, atol=0)
    last = stages[-1]
    assert last.moment == "end" and last.system is solution.last.model
    if variant == "windows":
        assert [stage.record.window for stage in starts] == [0, 0, 1, 1]
        assert starts[2].problem.domain.lower == (-1.0, 0.5)
        assert starts[2].columns == {"window": 1, "level": 0, "moment": "start"}


@pytest.mark.parametrize("variant", FORGETFUL)
def test_a_start_that_cannot_be_found_again_is_left_out(variant: str) -> None:
    """Adaptive refinement of free knots, which have moved."""
    solution, problem, _ = trained(variant)
    moments = [stage.moment for stage in run_stages(solution, problem)]
    assert moments == FORGETFUL[variant]


def dense_jacobian(function: Callable[[], Tensor], system: System) -> Tensor:
    """By autograd, row by row, with respect to the coefficients."""
    chosen = [p for name, p in system.named_parameters() if name.endswith("coefficients")]
    rows = [torch.autograd.grad(r, chosen, retain_graph=True) for r in function()]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


@pytest.mark.parametrize("variant", ["kan", "free"])
def test_jacobian_in_the_power_relu_basis_is_that_of_the_multichannel_mlp(variant: str) -> None:
    solution, problem, _ = trained(variant)
    system = solution.last.model
    options = TrainingSpectra(points=12)
    block = values_block(problem)
    found, pack = jacobian_of(system, (block,), options, ("*.coefficients",))
    (points,) = common_points(block, options, next(system.parameters()))
    network = system.parts["main"].network
    assert isinstance(network, KAN)
    twin = with_parts(
        system, {"main": system.parts["main"].with_network(network.to_multichannel())}
    )
    for own, expected in ((system, found), (twin, in_power_relu(found, system, pack))):
        jacobian = dense_jacobian(lambda own=own: own.values(points.x)[:, 0], own)  # type: ignore[misc]
        scaled = jacobian / math.sqrt(len(points))
        error = (scaled - expected).abs().max() / scaled.abs().max()
        assert error < 1e-9


def test_finding_has_both_bases_and_a_wider_spectrum_of_splines() -> None:
    solution, problem, _ = trained("kan")
    found = run(TrainingSpectra(points=40), [({"case": "a"}, solution)], problem=problem)
    assert len(found.rows) == 3 * 2 * 2 * 2
    for row in found.rows:
        assert row["case"] == "a"
        assert row["parameters"] == solution.summary[row["level"]]["n_params"]
        assert row["condition"] == pytest.approx(row["largest"] / row["smallest"])
        assert 1 <= row["effective_rank"] <= row["rank"] < row["rows"]
    keyed = {(r["level"], r["moment"], r["of"], r["basis"]): r for r in found.rows}
    for level, moment, of, basis in keyed:
        if basis == "spline":
            spline, powers = (keyed[level, moment, of, b] for b in ("spline", "power-relu"))
            assert spline["condition"] < powers["condition"]
            assert spline["effective_rank"] > powers["effective_rank"]
    # In one dimension with one input, the first layer's functions are no redundant ones: only
    # the constants of the second layer's two channels are.
    values = keyed[0, "start", "values", "spline"]
    assert values["rank"] == values["parameters"] - 1
    (figure,) = draw(found)
    assert len(main_axes(check(figure))) == 4


def test_eigenvalues_are_those_of_the_square() -> None:
    solution, problem, _ = trained("kan")
    options = TrainingSpectra(points=40, of=("residual",), moments=("end",))
    found = run(options, [({}, solution)], problem=problem)
    jacobian, _ = jacobian_of(
        solution.level(0, "last").model, problem.blocks(), options, ("*.coefficients",)
    )
    squares = np.linalg.eigvalsh((jacobian.T @ jacobian).numpy())[::-1]
    curve = [r for r in found.curves if r["level"] == 0 and r["basis"] == "spline"]
    top = [r["value"] for r in curve[:5]]
    np.testing.assert_allclose(top, [squares[r["index"] - 1] for r in curve[:5]], rtol=1e-10)
    row = next(r for r in found.rows if r["level"] == 0 and r["basis"] == "spline")
    assert row["trace"] == pytest.approx(squares.sum())
    assert {r["moment"] for r in found.rows} == {"end"}


def test_summary_of_known_spectra() -> None:
    flat = summary(np.ones(8), 8, 16)
    assert flat["effective_rank"] == pytest.approx(8.0)
    assert (flat["condition"], flat["trace"], flat["share"]) == (1.0, 8.0, 0.5)
    steep = summary(np.array([1.0, 1e-5, 1e-7, 0.0]), 3, 4)
    assert steep["condition"] == pytest.approx(1e7)
    assert steep["share"] == 0.5
    assert steep["effective_rank"] == pytest.approx(1.0, abs=2e-4)


def test_plain_mlp_has_its_own_basis_alone() -> None:
    solution, problem, _ = trained("mlp")
    found = run(TrainingSpectra(points=20), [({}, solution)], problem=problem)
    assert {row["basis"] for row in found.rows} == {"weights"}
    assert found.rows[0]["parameters"] == solution.summary[0]["n_params"]
    (figure,) = draw(found)
    check(figure)


def test_points_of_data_are_a_choice_of_the_given_ones() -> None:
    config = config_of("kan") | {"problem": {"name": "regression", "points": 60}}
    problem = api.prepare(config).problem
    (block,) = problem.blocks()
    like = torch.zeros(1, dtype=torch.float64)
    (points,) = common_points(block, TrainingSpectra(points=25), like)
    (again,) = common_points(block, TrainingSpectra(points=25), like)
    (other,) = common_points(block, TrainingSpectra(points=25, seed=1), like)
    assert len(points) == 25
    torch.testing.assert_close(points.x, again.x, rtol=0, atol=0)
    assert not torch.equal(points.x, other.x)
    (every,) = sample(block.region, 1, "sobol", stream(0))
    given = {tuple(row) for row in every.x.tolist()}
    assert {tuple(row) for row in points.x.tolist()} <= given


def test_analyses_of_runs_need_runs() -> None:
    with pytest.raises(ConfigError, match="training_spectra: analyses runs, found none"):
        run(TrainingSpectra())

"""Spectra of residuals and changes under refinement, against known waves and known functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from analysed_runs import config_of, trained
from figure_checks import check, main_axes
from scipy.interpolate import BSpline

from kanpinn import api
from kanpinn.analysis import ProlongationChange, ResidualSpectrum, TrainingSpectra, run
from kanpinn.analysis.prolongation_change import (
    PROJECTION,
    PROLONGATION,
    SAMPLED,
    fitted_at_samples,
)
from kanpinn.analysis.residual_spectrum import grid_values, spectrum
from kanpinn.analysis.stages import run_stages
from kanpinn.errors import ConfigError
from kanpinn.geometry import Box
from kanpinn.plotting.analysis import draw
from kanpinn.problem import Problem
from kanpinn.residuals import Site
from kanpinn.training import predict
from kanpinn.training.hierarchy import knot_networks


def test_a_wave_falls_into_its_own_bin() -> None:
    n = 32
    x = (np.arange(n) + 0.5) / n
    wave = 3 * np.cos(3 * math.pi * x)[:, None] * np.cos(4 * math.pi * x)[None, :] + 0.5
    found = spectrum(np.stack([wave, 0 * wave], -1))
    expected = np.zeros(len(found))
    expected[5], expected[0] = 3 / 2, 0.5  # |(3, 4)| = 5
    np.testing.assert_allclose(found, expected, atol=1e-14)


@pytest.mark.parametrize("shape", [(40,), (12, 12), (6, 6, 6)])
def test_bins_add_up_to_the_mean_square(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).standard_normal((*shape, 2))
    found = spectrum(values)
    assert (found**2).sum() == pytest.approx((values**2).sum(-1).mean())
    assert len(found) == round(math.sqrt(len(shape)) * (shape[0] - 1)) + 1


def test_rows_are_of_the_residual_on_the_grid() -> None:
    solution, problem, _ = trained("kan")
    found = run(ResidualSpectrum(points=64), [({"case": "a"}, solution)], problem=problem)
    stages = list(run_stages(solution, problem))
    assert len(found.rows) == len(stages) == 6
    for row, stage in zip(found.rows, stages, strict=True):
        values = grid_values(stage, "residual", 64)
        assert values.shape == (64, 1)
        x = torch.linspace(-1 + 1 / 64, 1 - 1 / 64, 64, dtype=torch.float64)[:, None]
        if stage.moment == "end":
            level = solution.level(stage.record.level, "last")
            exact = -(math.pi**2) * torch.sin(math.pi * x)
            rows = level.laplacian(x) - exact
            np.testing.assert_allclose(np.abs(values), rows.abs().numpy(), atol=1e-9)
        assert row["rms"] == pytest.approx(math.sqrt((values**2).mean()))
        assert 0 <= row["beyond_knots"] <= 1
    for before, after in zip(found.rows[1::2], found.rows[2::2], strict=False):
        assert after["moment"] == "start"
        assert after["rms"] == pytest.approx(before["rms"], rel=1e-9)  # exact prolongation
        assert after["beyond_knots"] < before["beyond_knots"]
    (figure,) = draw(found)
    assert len(main_axes(check(figure))) == 1


def test_error_of_a_fit_and_of_windows() -> None:
    prepared = api.prepare(config_of("kan") | {"problem": {"name": "regression", "points": 60}})
    state = prepared.run.run()
    import kanpinn

    solution = kanpinn.Solution(state, prepared.config.to_dict(), {"fields": ["u"]})
    found = run(ResidualSpectrum(points=64), [({}, solution)], problem=prepared.problem)
    assert {row["of"] for row in found.rows} == {"error"}
    stage = list(run_stages(solution, prepared.problem))[-1]
    values = grid_values(stage, "error", 64)
    assert values.shape == (8, 8, 1)
    box = prepared.problem.domain
    ends = zip(box.lower, box.upper, strict=True)
    axes = [low + (high - low) * (np.arange(8) + 0.5) / 8 for low, high in ends]
    x = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], 1)
    reference = prepared.problem.reference(x)
    assert reference is not None
    expected = solution.last(x)[:, 0] - reference
    np.testing.assert_allclose(values.ravel(), expected, atol=1e-12)
    with pytest.raises(ConfigError, match=r"residual_spectrum\.of: found 'residual'"):
        run(ResidualSpectrum(of="residual"), [({}, solution)], problem=prepared.problem)

    windows, burgers, _ = trained("windows")
    rows = run(ResidualSpectrum(points=64), [({}, windows)], problem=burgers).rows
    assert [row.get("window", 0) for row in rows] == [0] * 4 + [1] * 4


class NoReference(Problem):
    domain = Box((-1.0,), (1.0,))

    def residual(self, p: Site) -> Any:
        return p.u.xx - 1.0


def test_an_error_needs_a_reference() -> None:
    solution, _, _ = trained("kan")
    with pytest.raises(ConfigError, match="the problem has no reference"):
        run(ResidualSpectrum(of="error"), [({}, solution)], problem=NoReference())


def test_data_alone_have_neither_residual_nor_error_everywhere() -> None:
    solution, _, _ = trained("kan")
    problem = NoReference()
    problem.blocks = lambda: ()  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"found 'auto', allowed: none, because no .* and"):
        run(ResidualSpectrum(), [({}, solution)], problem=problem)


def test_single_precision_runs() -> None:
    """Changes are those of the run's own type; spectra are taken in float64, with three intervals
    too, whose knots float32 rounds.
    """
    import kanpinn

    config = config_of("kan") | {"dtype": "float32"}
    config["model"] = {"width": 2, "order": 4, "intervals": 3}
    prepared = api.prepare(config)
    state = prepared.run.run()
    solution = kanpinn.Solution(state, prepared.config.to_dict(), {"fields": ["u"]})
    changes = run(ProlongationChange(points=100), [({}, solution)], problem=prepared.problem)
    exact = [row["relative"] for row in changes.rows if row["transfer"] == PROLONGATION]
    assert all(1e-9 < change < 1e-5 for change in exact)
    spectra = run(TrainingSpectra(points=40), [({}, solution)], problem=prepared.problem)
    assert {(row["level"], row["moment"]) for row in spectra.rows} == {
        (level, moment) for level in range(3) for moment in ("start", "end")
    }


@pytest.mark.parametrize("variant", ["kan", "free", "multichannel"])
def test_prolongation_changes_nothing(variant: str) -> None:
    solution, problem, _ = trained(variant)
    found = run(ProlongationChange(points=200), [({"case": "a"}, solution)], problem=problem)
    assert [row["transfer"] for row in found.rows] == 2 * [PROLONGATION, PROJECTION, SAMPLED]
    assert [row["level"] for row in found.rows] == 3 * [1] + 3 * [2]
    for row in found.rows:
        assert row["relative"] < 1e-10
        assert row["seconds"] > 0
        level = solution.summary[row["level"]]
        own = row["transfer"] == PROLONGATION
        assert row["recorded"] == (level["max_change"] if own else None)
        assert row["loss_after"] == (level["loss_after_prolongation"] if own else None)
    (figure,) = draw(found)
    assert len(main_axes(check(figure))) == 2


def test_changes_are_seen_where_there_are_some() -> None:
    """Fits at fewer samples than functions do not find the function; a fit to it does."""
    solution, problem, _ = trained("kan")
    few = run(ProlongationChange(points=200, samples=4), [({}, solution)], problem=problem)
    by_name = {row["transfer"]: row["relative"] for row in few.rows if row["level"] == 2}
    assert by_name[SAMPLED] > 1e-4
    assert by_name[PROLONGATION] < 1e-13


def test_fit_at_samples_is_scipys_where_knots_do_not_nest() -> None:
    """One layer, one input: the least-squares spline of SciPy through the same samples."""
    config = config_of("kan") | {"model": {"hidden_layers": 0, "order": 4, "intervals": 3}}
    prepared = api.prepare(config)
    state = prepared.run.run()
    system = state.current.system
    (network,) = knot_networks(system).values()
    fine = network.knots[0].uniform_grid(4, 5, 1)  # 12 intervals to 5
    x = torch.linspace(-1, 1, 60, dtype=torch.float64)[:, None]
    result = fitted_at_samples(system, {"main": [fine]}, x)
    (layer,) = knot_networks(result)["main"].knot_layers
    old = network.knot_layers[0]
    y = (old.basis.dense(x, 0)[0] @ old.coefficients.mT).detach().numpy()
    design = BSpline.design_matrix(x[:, 0].numpy(), fine.extended(0).numpy(), 3).toarray()
    expected = np.linalg.lstsq(design, y, rcond=None)[0]
    np.testing.assert_allclose(layer.coefficients.detach().numpy().T, expected, atol=1e-10)
    change = (predict(result, x) - predict(system, x)).abs().max()
    assert change > 1e-4

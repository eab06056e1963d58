"""Adaptive points: where they are drawn, what they are weighted with, when they stand back."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kanpinn.conditions import Dirichlet
from kanpinn.errors import ConfigError
from kanpinn.geometry import Box, Points
from kanpinn.models import KANOptions
from kanpinn.problem import Problem, build_system
from kanpinn.residuals import ResidualBlock, Site, System
from kanpinn.sampling import (
    QUADRATURE,
    AdaptiveSampling,
    Grading,
    SamplingOptions,
    sample_graded,
    stream,
)
from kanpinn.training import (
    LevenbergMarquardtPhase,
    MultilevelRun,
    NullObserver,
    RunOptions,
    TrainingOptions,
)
from kanpinn.training.adaptive import adapt_points, draw, inclusion_factor

SHARP = 0.05


class Peak(Problem):
    """``u = bump``: an untrained network's residual is all but the bump at x = 0.3."""

    domain = Box((-1.0, -1.0), (1.0, 1.0))
    conditions = (Dirichlet(value=0.0, exact=True),)

    def residual(self, p: Site) -> Tensor:
        return 1e-9 * p.u + torch.exp(-(((p.x - 0.3) / SHARP) ** 2))

    def reference(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x[:, 0]


def setting() -> tuple[ResidualBlock, System]:
    problem = Peak()
    (block,) = problem.blocks()
    return block, build_system(problem, KANOptions(width=2), torch.Generator().manual_seed(0))


def spread(block: ResidualBlock, n: int, purpose: str, grading: tuple[Grading, ...]) -> Points:
    options = SamplingOptions(grading=grading)
    (points,) = sample_graded(block.region, n, options, ("x", "y"), stream(0, purpose))
    return points


def drawn(options: AdaptiveSampling, grading: tuple[Grading, ...] = ()) -> Points:
    block, system = setting()
    base, pool = (spread(block, n, name, grading) for n, name in ((600, "base"), (8000, "pool")))
    points = adapt_points(block, base, pool, 400, system, options, stream(0, "draw"))
    assert points is not None
    return points


@pytest.mark.parametrize("grading", [(), (Grading("x", 0.1, -0.5, 0.5),)])
def test_points_gather_where_the_residual_is_and_means_remain(grading: tuple[Grading, ...]) -> None:
    points = drawn(AdaptiveSampling(), grading)
    assert abs(len(points) - 1000) <= 1
    near = (points.x[:, 0] - 0.3).abs() < 2 * SHARP
    # 400 of them are drawn, nearly all within two widths; of the others a tenth are there.
    assert 370 < int(near[600:].sum()) <= 401
    assert int(near[:600].sum()) < 100
    weights = points.data[QUADRATURE]
    x = points.x[:, 0]
    # Importance weights: weighted means are means over the square.
    assert float(weights.mean()) == pytest.approx(1.0, abs=0.05)
    assert float((weights * x**2).mean()) == pytest.approx(1 / 3, abs=0.03)
    square = torch.exp(-2 * ((x - 0.3) / SHARP) ** 2)
    exact = SHARP * math.sqrt(math.pi / 2) / 2
    assert float((weights * square).mean()) == pytest.approx(exact, rel=0.03)


def test_a_larger_exponent_gathers_more() -> None:
    spreads = []
    for exponent in (0.5, 1.0, 3.0):
        points = drawn(AdaptiveSampling(exponent=exponent))
        spreads.append(float((points.x[600:, 0] - 0.3).square().mean().sqrt()))
    assert spreads == sorted(spreads, reverse=True) and spreads[0] > 1.5 * spreads[2]


def test_no_point_is_taken_twice_and_the_seed_decides() -> None:
    first, second = drawn(AdaptiveSampling()), drawn(AdaptiveSampling())
    assert torch.equal(first.x, second.x)
    assert len(first.x.unique(dim=0)) == len(first)


def test_probabilities_add_up_and_are_kept() -> None:
    sizes = torch.tensor([5.0, 0.1, 0.2, 9.0, 0.3, 0.4, 0.0], dtype=torch.float64)
    for n in range(1, 7):
        probability = (inclusion_factor(sizes, n) * sizes).clamp(max=1.0)
        assert float(probability.sum()) == pytest.approx(n, abs=1e-12)
    chosen = (inclusion_factor(sizes, 3) * sizes).clamp(max=1.0)
    counts = torch.zeros(7, dtype=torch.float64)
    for trial in range(2000):
        index = draw(chosen, stream(0, "trial", trial))
        assert len(index) in (2, 3, 4) and len(index.unique()) == len(index)
        counts[index] += 1
    torch.testing.assert_close(counts / 2000, chosen, rtol=0, atol=0.04)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_residuals_that_say_nothing_choose_no_points(value: float) -> None:
    block, system = setting()
    blank = replace(block, residual=lambda p: 0 * p.u + value)
    base, pool = spread(block, 50, "base", ()), spread(block, 500, "pool", ())
    options = AdaptiveSampling()
    assert adapt_points(blank, base, pool, 40, system, options, stream(0, "draw")) is None


class Solved(Peak):
    """``0 = 0`` but in a corner: too few points have a residual."""

    def residual(self, p: Site) -> Tensor:
        return p.u * (p.x + p.y > 1.99)


class Told(NullObserver):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, message: str) -> None:
        self.notes.append(message)


def test_a_level_without_residuals_has_all_its_points() -> None:
    sampling = SamplingOptions(interior=100, held_out=50, adaptive=AdaptiveSampling(share=0.3))
    training = TrainingOptions(levels=2, phases=(LevenbergMarquardtPhase(steps=1),))
    options = RunOptions(KANOptions(width=2, order=4, intervals=2), training, sampling)
    told = Told()
    engine = MultilevelRun(Solved(), options, told)
    state = engine.run()
    assert [entry.record.n_points for entry in state.levels] == [100, 100]
    notes = [note for note in told.notes if "spread without regard to it" in note]
    assert notes and all(note.startswith("level 1: the residual of 'equation'") for note in notes)
    plain = replace(sampling, adaptive=None)
    other = MultilevelRun(Solved(), replace(options, sampling=plain))
    (block,), level = engine.blocks, engine.hierarchy.levels[1]
    found, expected = (run._points(block, level, 0)[0].x for run in (engine, other))
    assert torch.equal(found, expected)


def test_points_are_drawn_once_on_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(block: ResidualBlock, *arguments: Any) -> Points | None:
        calls.append(block.name)
        return adapt_points(block, *arguments)

    monkeypatch.setattr("kanpinn.training.drawing.adapt_points", counted)
    sampling = SamplingOptions(interior=60, held_out=50, adaptive=AdaptiveSampling())
    training = TrainingOptions(levels=4, phases=(LevenbergMarquardtPhase(steps=1),))
    MultilevelRun(
        Peak(), RunOptions(KANOptions(width=2, order=4, intervals=2), training, sampling)
    ).run()
    assert calls == 3 * ["equation"]


def test_a_grid_is_refused() -> None:
    for method in ("sobol", "random", "latin_hypercube"):
        SamplingOptions(method=method, adaptive=AdaptiveSampling())
    with pytest.raises(ConfigError) as caught:
        SamplingOptions(method="grid", adaptive=AdaptiveSampling())
    (line,) = str(caught.value).splitlines()
    assert line.startswith("sampling.adaptive: found with method: grid,")


def test_from_the_second_level_on() -> None:
    sampling = SamplingOptions(interior=100, held_out=50, adaptive=AdaptiveSampling(share=0.3))
    training = TrainingOptions(levels=2, phases=(LevenbergMarquardtPhase(steps=1),))
    options = RunOptions(KANOptions(width=2, order=4, intervals=2), training, sampling)
    seen: list[bool] = []

    class Watched(MultilevelRun):
        def _points(self, block, level, extensions):  # type: ignore[no-untyped-def]
            points = super()._points(block, level, extensions)
            seen.append(QUADRATURE in points[0].data)
            return points

    state = Watched(Peak(), options).run()
    assert [entry.record.n_points for entry in state.levels] == [100, 100]
    assert not seen[0] and seen[-1]

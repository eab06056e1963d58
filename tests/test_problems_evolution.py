"""Allen-Cahn and reaction-diffusion: references against the equations, ansatz, tiny solves."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_problems import site_of

import kanpinn
from kanpinn.config import parse_config
from kanpinn.errors import ConfigError, ProblemError
from kanpinn.geometry import Points
from kanpinn.models import KANOptions
from kanpinn.problem import build_system
from kanpinn.residuals import Field, Site
from kanpinn_problems._spectral import PeriodicSolution
from kanpinn_problems.allen_cahn import AllenCahn
from kanpinn_problems.reaction_diffusion import ReactionDiffusion

Floats = NDArray[np.float64]
Evolution = Any  # AllenCahn or ReactionDiffusion: installed under a name that mypy does not read
EARLIEST = 0.01  # from here on the references are as accurate as they say

shared = cache(lambda kind: kind())  # a problem with its reference, for all tests


def mesh(problem: Evolution, times: Floats, n: int = 101) -> Floats:
    lower, upper = problem.domain.lower[0], problem.domain.upper[0]
    x, t = np.meshgrid(np.linspace(lower, upper, n), times, indexing="ij")
    return np.stack([x.ravel(), t.ravel()], 1)


# --- the references -------------------------------------------------------------------------------
def largest_residual(problem: Evolution, function: Callable[[Floats], Floats]) -> float:
    """At random places and a few times, derivatives by differences that resolve the fronts."""
    rng = np.random.default_rng(11)
    lower, upper = problem.domain.lower[0], problem.domain.upper[0]
    t = np.repeat(rng.uniform(0.05, 1.0, 5) * problem.domain.upper[1], 40)
    x = rng.uniform(lower, upper, len(t))
    at = Points(torch.from_numpy(np.stack([x, t], 1)))
    step = 5e-4 if isinstance(problem, AllenCahn) else 5e-3
    coarse, fine = (site_of(function, problem, at, h) for h in (2e-3, step))
    parts: dict[Any, torch.Tensor] = {(0, 0): fine.u.value, (0, 1): coarse.u.t, (2, 0): fine.u.xx}
    fields = {"u": Field("u", parts.__getitem__, problem.coordinates, None)}
    rows = problem.residual(Site(at, fields, problem.coordinates))
    assert rows.shape == (len(t),)
    return float(rows.abs().max())


@pytest.mark.parametrize(
    "problem",
    [
        shared(AllenCahn),
        shared(ReactionDiffusion),
        AllenCahn(diffusion=1e-3, reaction=3.0, initial="0.3 + sin(pi*x)", final_time=0.6),
        ReactionDiffusion(diffusion=0.1, growth=2.0, initial="sin(x)**2/2 + 0.1", final_time=2.0),
    ],
    ids=["allen_cahn", "reaction_diffusion", "allen_cahn variant", "reaction_diffusion variant"],
)
def test_reference_satisfies_the_equation(problem: Evolution) -> None:
    assert largest_residual(problem, problem.reference) < 1e-7
    assert largest_residual(problem, lambda x: 1.001 * problem.reference(x)) > 1e-4


@pytest.mark.parametrize("kind", [AllenCahn, ReactionDiffusion])
def test_reference_begins_and_stays_periodic(kind: Evolution) -> None:
    problem = shared(kind)
    start = mesh(problem, np.zeros(1))
    initial = problem.solution.initial(start[:, 0])
    assert np.array_equal(problem.reference(start), initial)
    inside = np.abs(start[:, 0] - start[:, 0].mean()) < 0.9 * problem.solution.length / 2
    soon = problem.reference(start + np.array([0.0, 1e-6]))
    assert np.abs(soon - initial)[inside].max() < 1e-4
    values = problem.reference(mesh(problem, np.array([0.1, 0.55, 1.0]), n=65)).reshape(65, 3)
    assert np.abs(values[0] - values[-1]).max() < 1e-12
    assert np.abs(values - values[::-1]).max() < 1e-11  # both initial values are even
    assert np.abs(values[:, 2] - initial[:1]).max() > 0.5


def test_allen_cahn_of_a_constant() -> None:
    """A constant has nothing to diffuse: ``u' = r (u - u^3)``."""
    problem, t = AllenCahn(diffusion=1e-2, initial="0.3"), np.array([0.02, 0.4, 1.0])
    growth = np.exp(2 * 5 * t)
    exact = 0.3 * np.sqrt(growth / (1 - 0.09 + 0.09 * growth))
    assert np.abs(problem.reference(mesh(problem, t, 4)).reshape(4, 3) - exact).max() < 1e-9


def test_reaction_diffusion_of_a_constant_and_of_a_wave() -> None:
    t = np.array([0.02, 0.4, 1.0])
    logistic = ReactionDiffusion(initial="0.2")
    exact = 0.2 * np.exp(5 * t) / (0.8 + 0.2 * np.exp(5 * t))
    assert np.abs(logistic.reference(mesh(logistic, t, 4)).reshape(4, 3) - exact).max() < 1e-9
    heat = ReactionDiffusion(growth=0.0, initial="1 + cos(2*x)", diffusion=0.5)
    points = mesh(heat, t)
    decay = np.exp(-0.5 * 4 * points[:, 1])
    assert np.abs(heat.reference(points) - 1 - decay * np.cos(2 * points[:, 0])).max() < 1e-13


def varied(problem: Evolution, modes: float = 1.0, steps: float = 1.0) -> PeriodicSolution:
    """The reference of a problem with more or fewer modes and steps."""
    given = problem.solution
    return PeriodicSolution(
        given.initial,
        given.lower,
        given.lower + given.length,
        symbol=given._symbol,
        nonlinear=given._nonlinear,
        degree=3,
        final_time=problem.final_time,
        modes=round(modes * (len(given.wavenumbers) - 1)),
        steps=round(steps * (len(given.times) - 1)),
    )


def test_allen_cahn_reference_converges_in_space() -> None:
    """The kink needs many modes at first: half of the default's are not enough at t = 0.01."""
    problem = AllenCahn(final_time=0.04)
    points = mesh(problem, np.array([EARLIEST, 0.02, 0.04]))
    fine = varied(problem, 1.4).at(points)
    errors = [np.abs(varied(problem, m).at(points) - fine).max() for m in (0.25, 0.5, 1.0)]
    assert errors[0] > 1e-5 and errors[0] > 8 * errors[1] > 1e3 * errors[2], errors
    assert errors[2] < 1e-9
    assert np.array_equal(problem.reference(points), varied(problem).at(points))


def test_allen_cahn_reference_converges_in_time() -> None:
    problem = shared(AllenCahn)
    points = mesh(problem, np.array([EARLIEST, 0.1, 0.3, 0.6, 1.0]))
    fine = varied(problem, 0.5, 2.0).at(points)  # half of the modes, to be quick
    errors = [np.abs(varied(problem, 0.5, s).at(points) - fine).max() for s in (0.25, 0.5, 1.0)]
    assert errors[0] > 8 * errors[1] > 64 * errors[2], errors
    assert errors[2] < 1e-9


def test_reaction_diffusion_reference_converges() -> None:
    problem = shared(ReactionDiffusion)
    points = mesh(problem, np.array([EARLIEST, 0.1, 0.3, 0.6, 1.0]))
    found = problem.reference(points)
    assert np.abs(found - varied(problem, 2.0, 2.0).at(points)).max() < 1e-9
    assert np.abs(found - varied(problem, 0.1, 1.0).at(points)).max() > 1e-9
    assert np.abs(found - varied(problem, 1.0, 0.25).at(points)).max() > 1e-9


# --- conditions -----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [AllenCahn, ReactionDiffusion])
@pytest.mark.parametrize("exact", [True, False])
def test_conditions_that_are_built_in(
    kind: Evolution, exact: bool, generator: torch.Generator
) -> None:
    problem = kind(exact_initial=exact)
    network = build_system(problem, KANOptions(width=3), generator).parts["main"]
    ends = mesh(problem, np.linspace(0.0, 1.0, 9), n=2)
    left, right = network(torch.from_numpy(ends)).detach().reshape(2, 9)
    assert float((left - right).abs().max()) < 1e-14
    assert float(left.std()) > 1e-4
    start = mesh(problem, np.zeros(1))
    difference = network(torch.from_numpy(start)).detach().numpy()[:, 0] - problem.reference(start)
    assert (np.abs(difference).max() < 1e-14) == exact
    assert len(problem.blocks()) == (1 if exact else 2)


# --- solves ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("problem", "bound"),
    [
        (
            {"name": "allen_cahn", "diffusion": 1e-2, "final_time": 0.5, "initial": "cos(pi*x)"},
            1e-2,
        ),
        ({"name": "reaction_diffusion"}, 1e-2),
    ],
    ids=["allen_cahn", "reaction_diffusion"],
)
def test_tiny_solve(problem: dict[str, Any], bound: float, tmp_path: Path) -> None:
    phases = [
        {"optimiser": "adam", "steps": 150, "learning_rate": 1e-2},
        {"optimiser": "lm", "steps": 25},
    ]
    config = {
        "problem": problem,
        "model": {"width": 4, "order": 6, "intervals": 3},
        "sampling": {"interior": 400, "initial": 100, "held_out": 100},
        "training": {"levels": 1, "phases": phases},
        "figures": False,
    }
    result = kanpinn.solve(config, out=tmp_path / "run")
    assert result.rel_l2 is not None and result.rel_l2 < bound


# --- what is refused ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ({"name": "allen_cahn", "diffusion": 1e-6}, r"problem\.diffusion"),
        ({"name": "allen_cahn", "reaction": 0}, r"problem\.reaction"),
        ({"name": "allen_cahn", "final_time": -1}, r"problem\.final_time"),
        ({"name": "reaction_diffusion", "diffusion": 0}, r"problem\.diffusion"),
        ({"name": "reaction_diffusion", "growth": -1}, r"problem\.growth"),
        ({"name": "reaction_diffusion", "initial_weight": 0}, r"problem\.initial_weight"),
    ],
)
def test_configs_are_refused(problem: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config({"problem": problem})


@pytest.mark.parametrize("kind", [AllenCahn, ReactionDiffusion])
def test_initial_values_are_refused(kind: Evolution) -> None:
    with pytest.raises(ProblemError, match="the same at both"):
        kind(initial="x")
    with pytest.raises(ProblemError, match="fit in a GB"):
        kind(final_time=1e6)

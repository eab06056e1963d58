"""The Korteweg-de Vries equation: the soliton solutions, their conditions, and a small solve."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from difference_sites import largest_residuals, reference_of
from numpy.typing import NDArray

import kanpinn
from kanpinn.errors import ConfigError, ProblemError
from kanpinn.models import KANOptions
from kanpinn.problem import build_system
from kanpinn.sampling import sample, stream
from kanpinn_problems._spectral import PeriodicSolution
from kanpinn_problems.kdv import KdV

Floats = NDArray[np.float64]


def on_line(problem: KdV, x: Floats, t: float) -> Floats:
    return problem.reference(np.stack([x, np.full_like(x, t)], 1))


def soliton(x: Floats, k: float, place: float) -> Floats:
    return np.asarray(k**2 / 2 / np.cosh(k * (x - place) / 2) ** 2)


@pytest.mark.parametrize(
    "problem",
    [
        KdV(exact_conditions=False),
        KdV(k1=1.5, k2=0.0, final_time=1.0, exact_conditions=False),
        KdV(k1=1.7, k2=1.2, half_length=2.5, final_time=0.7, exact_conditions=False),
    ],
    ids=lambda problem: f"{problem.k1:g} {problem.k2:g}",
)
def test_reference_satisfies_every_block(problem: KdV) -> None:
    reference = reference_of(problem)
    found = largest_residuals(problem, reference, 5e-3)
    assert max(found.values()) < 1e-6, found
    assert len(found) == 4
    wrong = largest_residuals(problem, lambda x: 1.001 * reference(x), 5e-3)
    assert wrong["equation"] > 1e-3
    assert wrong["neumann u on x.upper"] > 1e-7


def test_one_soliton() -> None:
    problem = KdV(k1=1.5, k2=0.0, final_time=1.0)
    x = np.linspace(-6.0, 6.0, 101)
    for t in (0.0, 0.3, 1.0):
        exact = soliton(x, 1.5, 1.5**2 * (t - 0.5))
        assert np.abs(on_line(problem, x, t) - exact).max() < 1e-13


def test_solitons_far_apart() -> None:
    """Long before and after they are two single ones, ahead and behind by their phase shifts."""
    a, b, time = 2.0, 1.0, 20.0
    problem = KdV(k1=a, k2=b, half_length=60.0, final_time=time)
    x, shift = np.linspace(-60.0, 60.0, 2001), math.log((a + b) / (a - b))
    for t, side in ((0.0, -1), (time, 1)):
        fast = soliton(x, a, a**2 * (t - time / 2) + side * shift / a)
        slow = soliton(x, b, b**2 * (t - time / 2) - side * shift / b)
        assert np.abs(on_line(problem, x, t) - fast - slow).max() < 1e-8


def test_reference_agrees_with_a_spectral_solution() -> None:
    """From the same initial values on an interval so long that its ends do not matter."""
    problem, end = KdV(half_length=30.0), 30.0
    x = np.linspace(-20.0, 20.0, 401)
    errors = []
    for steps in (1000, 2000):
        numerical = PeriodicSolution(
            lambda x: on_line(problem, x, 0.0),
            -end,
            end,
            symbol=lambda k: 1j * k**3,
            nonlinear=lambda u: 3 * u**2,
            flux=lambda k: -1j * k,
            final_time=problem.final_time,
            modes=160,
            steps=steps,
        )
        found = numerical(x, np.full_like(x, problem.final_time))
        errors.append(np.abs(found - on_line(problem, x, problem.final_time)).max())
    assert errors[1] < 1e-7
    assert 3.5 < math.log2(errors[0] / errors[1]) < 4.5  # the numerical one's order


def test_any_network_satisfies_exact_conditions(generator: torch.Generator) -> None:
    problem = KdV()
    assert [block.name for block in problem.blocks()] == ["equation", "neumann u on x.upper"]
    network = build_system(problem, KANOptions(width=3), generator).parts["main"]
    for name in ("boundary", "initial"):
        (at,) = sample(problem.domain.region(name), 64, "sobol", stream(1, name))
        difference = network(at.x).detach().numpy()[:, 0] - problem.reference(at.x.numpy())
        assert np.abs(difference).max() < 1e-13
    (inside,) = sample(problem.domain.interior(), 64, "sobol", stream(2))
    difference = network(inside.x).detach().numpy()[:, 0] - problem.reference(inside.x.numpy())
    assert np.abs(difference).max() > 1e-3


def test_solve(tmp_path: Path) -> None:
    config = {
        "problem": {"name": "kdv", "k1": 1.5, "k2": 0.5, "half_length": 4, "final_time": 0.5},
        "model": {"width": 4, "order": 7, "intervals": 5},
        "sampling": {"interior": 600, "held_out": 300, "boundary": 50},
        "training": {"phases": [{"optimiser": "lm", "steps": 30}]},
        "figures": False,
        "seed": 1,
    }
    result = kanpinn.solve(config, out=tmp_path / "run")
    assert result.rel_l2 is not None and result.rel_l2 < 1e-2


@pytest.mark.parametrize("change", ["k1=0", "k2=-1", "half_length=0", "slope_weight=0"])
def test_bad_parameters_are_refused(change: str) -> None:
    with pytest.raises(ConfigError, match=change.split("=")[0]):
        kanpinn.api.prepare({"problem": "kdv"}, [f"problem.{change}"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: KdV(k1=1.0, k2=1.0), "k2: found 1.0, allowed: from 0 to below k1"),
        (lambda: KdV(k1=1.0, k2=-0.5), "k2: found -0.5"),
        (lambda: KdV(half_length=1e4), "half_length: found 10000.0"),
    ],
)
def test_impossible_solitons_are_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ProblemError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)

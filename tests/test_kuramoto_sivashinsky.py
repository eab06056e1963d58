"""The Kuramoto-Sivashinsky equation: its spectral reference, its conditions, and a small solve."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from difference_sites import largest_residuals, reference_of
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

import kanpinn
from kanpinn.errors import ConfigError, ProblemError
from kanpinn.models import KANOptions
from kanpinn.problem import build_system
from kanpinn.sampling import sample, stream
from kanpinn_problems._spectral import PeriodicSolution
from kanpinn_problems.kuramoto_sivashinsky import KuramotoSivashinsky

Floats = NDArray[np.float64]
PLACES: Floats = np.linspace(0.0, 2.0, 81)


def at_time(problem: KuramotoSivashinsky, t: float) -> Floats:
    return problem.reference(np.stack([PLACES, np.full_like(PLACES, t)], 1))


def refined(problem: KuramotoSivashinsky, modes: int, steps: int) -> Floats:
    """The reference's values at the final time with other modes and steps."""
    other = PeriodicSolution(
        lambda x: -np.sin(math.pi * x),
        0.0,
        2.0,
        symbol=lambda k: problem.beta * k**2 - problem.gamma * k**4,
        nonlinear=lambda u: problem.alpha * u**2 / 2,
        flux=lambda k: -1j * k,
        final_time=problem.final_time,
        modes=modes,
        steps=steps,
    )
    return other(PLACES, np.full_like(PLACES, problem.final_time))


def test_reference_satisfies_every_block() -> None:
    problem = KuramotoSivashinsky(exact_initial=False)
    reference = reference_of(problem)
    found = largest_residuals(problem, reference, 2.5e-3)
    assert set(found) == {"equation", "initial u on initial"}
    assert found["equation"] < 1e-3, found  # of terms of size 100
    assert found["initial u on initial"] < 1e-13
    wrong = largest_residuals(problem, lambda x: 1.001 * reference(x), 2.5e-3)
    assert wrong["equation"] > 0.03


def test_reference_is_periodic() -> None:
    problem = KuramotoSivashinsky(initial="cos(pi*x)*(1 + sin(pi*x))")
    t = np.linspace(0.0, problem.final_time, 7)
    left, right = (problem.reference(np.stack([np.full(7, x), t], 1)) for x in (0.0, 2.0))
    assert np.abs(left - right).max() < 1e-12


def test_reference_converges() -> None:
    problem = KuramotoSivashinsky()
    best = refined(problem, 32, 5000)
    assert np.abs(at_time(problem, problem.final_time) - best).max() < 1e-8
    errors = [np.abs(refined(problem, 32, n) - best).max() for n in (300, 600, 1200)]
    rates = -np.diff(np.log2(errors))
    assert rates.min() > 2.8 and rates[-1] > 3.2, errors
    coarse, fine = (
        np.abs(refined(problem, n, 1200) - refined(problem, 32, 1200)).max() for n in (8, 16)
    )
    assert coarse > 1e-5 and fine < 1e-3 * coarse


def test_reference_agrees_with_collocation() -> None:
    """Fourier collocation with differentiation matrices, and an implicit adaptive integrator."""
    problem, n = KuramotoSivashinsky(final_time=0.15), 64
    k = np.fft.fftfreq(n, 1 / n) * math.pi
    x = np.arange(n) * (2.0 / n)
    spectrum = np.fft.fft(np.eye(n), axis=0)
    odd = np.where(np.abs(k) < k.max() + 1, k, 0.0)
    first = np.fft.ifft(1j * odd[:, None] * spectrum, axis=0).real
    symbol = problem.beta * k**2 - problem.gamma * k**4
    linear = np.fft.ifft(symbol[:, None] * spectrum, axis=0).real

    def rate(_: float, u: Floats) -> Floats:
        return np.asarray(linear @ u - problem.alpha / 2 * (first @ u**2))

    def jacobian(_: float, u: Floats) -> Floats:
        return np.asarray(linear - problem.alpha * first * u)

    start = -np.sin(math.pi * x)
    run = solve_ivp(
        rate, (0.0, 0.15), start, method="Radau", jac=jacobian, t_eval=[0.15], rtol=1e-9, atol=1e-11
    )
    found = problem.reference(np.stack([x, np.full(n, 0.15)], 1))
    assert np.abs(run.y[:, 0] - found).max() < 1e-7


def test_small_waves_grow_at_their_rate() -> None:
    problem = KuramotoSivashinsky(initial="1e-7*cos(2*pi*x)", final_time=0.2)
    k = 2 * math.pi
    growth = math.exp((problem.beta * k**2 - problem.gamma * k**4) * 0.2)
    expected = 1e-7 * growth * np.cos(k * PLACES)
    assert growth > 5
    assert np.abs(at_time(problem, 0.2) - expected).max() < 1e-5 * np.abs(expected).max()


def test_any_network_satisfies_exact_conditions(generator: torch.Generator) -> None:
    problem = KuramotoSivashinsky()
    assert [block.name for block in problem.blocks()] == ["equation"]
    network = build_system(problem, KANOptions(width=3), generator).parts["main"]
    (at,) = sample(problem.domain.region("initial"), 64, "sobol", stream(1))
    difference = network(at.x).detach().numpy()[:, 0] - problem.reference(at.x.numpy())
    assert np.abs(difference).max() < 1e-14
    left, right = sample(problem.domain.region("x.periodic"), 64, "sobol", stream(1))
    assert (network(left.x) - network(right.x)).detach().abs().max() < 1e-13


def test_solve(tmp_path: Path) -> None:
    config = {
        "problem": {"name": "kuramoto_sivashinsky", "final_time": 0.05},
        "model": {"width": 4, "order": 7, "intervals": 5},
        "sampling": {"interior": 600, "held_out": 300},
        "training": {"phases": [{"optimiser": "lm", "steps": 30}]},
        "figures": False,
        "seed": 1,
    }
    result = kanpinn.solve(config, out=tmp_path / "run")
    assert result.rel_l2 is not None and result.rel_l2 < 1e-2


@pytest.mark.parametrize("change", ["alpha=0", "beta=-1", "gamma=0", "length=0", "final_time=-1"])
def test_bad_parameters_are_refused(change: str) -> None:
    with pytest.raises(ConfigError, match=change.split("=")[0]):
        kanpinn.api.prepare({"problem": "kuramoto_sivashinsky"}, [f"problem.{change}"])


def test_bad_values_are_refused_in_python() -> None:
    with pytest.raises(ProblemError, match=r"gamma: found 0\.0"):
        KuramotoSivashinsky(gamma=0.0)
    with pytest.raises(ProblemError, match="the same at both"):
        KuramotoSivashinsky(initial="x")

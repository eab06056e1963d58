"""Kovasznay flow: its reference, its conditions, and a small solve."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from difference_sites import largest_residuals, reference_of, scaled

import kanpinn
from kanpinn.errors import ConfigError
from kanpinn.models import KANOptions
from kanpinn.problem import build_system
from kanpinn.sampling import sample, stream
from kanpinn_problems.kovasznay import Kovasznay

SOFT = [
    Kovasznay(exact_boundary=False),
    Kovasznay(reynolds=5.0, exact_boundary=False),
    Kovasznay(reynolds=500.0, exact_boundary=False, pressure="mean"),
]


@pytest.mark.parametrize("problem", SOFT, ids=lambda p: f"Re {p.reynolds:g} {p.pressure}")
def test_reference_satisfies_every_block(problem: Kovasznay) -> None:
    reference = reference_of(problem)
    found = largest_residuals(problem, reference, 5e-3)
    mean = found.pop("mean p on interior", 0.0)
    assert max(found.values()) < 1e-8 / math.sqrt(problem.residual_weight), found
    assert mean < 1e-4  # of the mean over 1024 points
    assert len(found) == (4 if problem.pressure == "outlet" else 3)
    for column in range(3):  # the same harness notices an error of 0.1% in any field
        scale = np.where(np.arange(3) == column, 1.001, 1.0)
        wrong = largest_residuals(problem, scaled(reference, scale), 5e-3)
        assert wrong["equation"] > 3e-5, (column, wrong)


def test_velocity_is_the_curl_of_a_stream_function() -> None:
    """``u = psi_y``, ``v = -psi_x``, ``psi = y - exp(s x) sin(2 pi y) / (2 pi)``."""
    problem = Kovasznay()
    assert problem.rate == pytest.approx(20 - math.sqrt(400 + 4 * math.pi**2), rel=1e-13)
    x = np.random.default_rng(3).uniform(-0.5, 1.0, (50, 2))

    def psi(x: np.ndarray) -> np.ndarray:
        wave = np.sin(2 * math.pi * x[:, 1]) / (2 * math.pi)
        return np.asarray(x[:, 1] - np.exp(problem.rate * x[:, 0]) * wave)

    h = 1e-5
    slopes = [(psi(x + d) - psi(x - d)) / (2 * h) for d in h * np.eye(2)]
    velocity = problem.reference(x)[:, :2]
    assert np.abs(velocity - np.stack([slopes[1], -slopes[0]], 1)).max() < 1e-8


def test_any_network_satisfies_exact_conditions(generator: torch.Generator) -> None:
    problem = Kovasznay()
    assert [block.name for block in problem.blocks()] == ["equation"]
    network = build_system(problem, KANOptions(width=3), generator).parts["main"]
    for name, columns in (("boundary", [0, 1]), ("x.upper", [2])):
        (at,) = sample(problem.domain.region(name), 64, "sobol", stream(1, name))
        difference = network(at.x).detach().numpy() - problem.reference(at.x.numpy())
        assert np.abs(difference[:, columns]).max() < 1e-13
    (inside,) = sample(problem.domain.interior(), 64, "sobol", stream(2))
    difference = network(inside.x).detach().numpy() - problem.reference(inside.x.numpy())
    assert np.abs(difference).max(0).min() > 1e-3


@pytest.mark.parametrize("pressure", ["outlet", "mean"])
def test_solve(tmp_path: Path, pressure: str) -> None:
    config = {
        "problem": {"name": "kovasznay", "pressure": pressure},
        "model": {"width": 4, "order": 5, "intervals": 3},
        "sampling": {"interior": 300, "held_out": 300},
        "training": {"phases": [{"optimiser": "lm", "steps": 25}]},
        "figures": False,
        "seed": 1,
    }
    result = kanpinn.solve(config, out=tmp_path / "run")
    assert result.rel_l2 is not None and result.rel_l2 < 5e-3


@pytest.mark.parametrize("change", ["reynolds=0", "pressure=inlet", "boundary_weight=-1"])
def test_bad_parameters_are_refused(change: str) -> None:
    with pytest.raises(ConfigError, match=change.split("=")[0]):
        kanpinn.api.prepare({"problem": "kovasznay"}, [f"problem.{change}"])

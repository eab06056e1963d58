"""Helmholtz and Klein-Gordon: references against all residual blocks, ansatz, tiny solves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_problems import largest_residuals

import kanpinn
from kanpinn.config import parse_config
from kanpinn.errors import ConfigError
from kanpinn.models import KANOptions
from kanpinn.problem import Problem, build_system
from kanpinn.sampling import sample, stream
from kanpinn_problems.helmholtz import Helmholtz
from kanpinn_problems.klein_gordon import KleinGordon

SOFT: dict[str, Any] = {
    "helmholtz": Helmholtz(exact_boundary=False),
    "helmholtz variant": Helmholtz(
        wavenumber=3.0, frequency_x=1.5, frequency_y=2.25, shift=0.3, exact_boundary=False
    ),
    "klein_gordon": KleinGordon(exact_conditions=False),
    "klein_gordon variant": KleinGordon(
        coefficient=-0.5, frequency=2.5, final_time=1.4, exact_conditions=False
    ),
}
EXACT: list[Any] = [
    Helmholtz(),
    Helmholtz(frequency_x=1.5, shift=0.2),
    KleinGordon(),
    KleinGordon(frequency=2.5, final_time=1.4),
]


@pytest.mark.parametrize("name", SOFT)
def test_reference_satisfies_every_block(name: str) -> None:
    problem = SOFT[name]
    found = largest_residuals(problem, problem.reference, 4e-3)
    assert max(found.values()) < 1e-6, found
    assert len(found) == 1 + len(problem.conditions)
    wrong = largest_residuals(problem, lambda x: 1.001 * problem.reference(x), 4e-3)
    assert wrong["equation"] > 1e-2, wrong  # the same harness notices an error of 0.1%
    late = largest_residuals(problem, lambda x: problem.reference(x + 1e-3), 4e-3)
    assert min(late.values()) > 1e-4, late  # and every block notices a shift


@pytest.mark.parametrize("problem", EXACT, ids=lambda problem: type(problem).__name__)
def test_any_network_satisfies_exact_conditions(
    problem: Problem, generator: torch.Generator
) -> None:
    network = build_system(problem, KANOptions(width=3), generator).parts["main"]
    for name in ("boundary", *(("initial",) if problem.domain.time else ())):
        (at,) = sample(problem.domain.region(name), 64, "sobol", stream(1, name))
        values = network(at.x).detach().numpy()[:, 0]
        assert np.abs(values - problem.reference(at.x.numpy())).max() < 1e-13
    (inside,) = sample(problem.domain.interior(), 64, "sobol", stream(2))
    values = network(inside.x).detach().numpy()[:, 0]
    assert np.abs(values - problem.reference(inside.x.numpy())).max() > 1e-3


def test_klein_gordon_penalises_its_initial_rate() -> None:
    names = [block.name for block in KleinGordon().blocks()]
    assert names == ["equation", "initial d1(u) on initial"]


@pytest.mark.parametrize("problem", [SOFT[name] for name in SOFT], ids=list(SOFT))
def test_source_is_of_size_one(problem: Problem) -> None:
    """The residual of zero, as the objective weighs it."""
    zero = largest_residuals(problem, lambda x: 0 * x[:, 0], 4e-3)["equation"]
    assert 0.3 < zero * problem.residual_weight**0.5 < 3.0


@pytest.mark.parametrize(
    ("problem", "bound"),
    [
        ({"name": "helmholtz", "frequency_y": 2}, 5e-3),
        ({"name": "klein_gordon", "frequency": 2}, 5e-4),
    ],
    ids=["helmholtz", "klein_gordon"],
)
def test_tiny_solve(problem: dict[str, Any], bound: float, tmp_path: Path) -> None:
    config = {
        "problem": problem,
        "model": {"width": 4, "order": 6, "intervals": 4},
        "sampling": {"interior": 500, "initial": 100, "held_out": 100},
        "training": {"levels": 1, "phases": [{"optimiser": "lm", "steps": 40}]},
        "figures": False,
    }
    result = kanpinn.solve(config, out=tmp_path / "run")
    assert result.rel_l2 is not None and result.rel_l2 < bound


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ({"name": "helmholtz", "wavenumber": -1}, r"problem\.wavenumber"),
        ({"name": "helmholtz", "frequency_x": 0}, r"problem\.frequency_x"),
        ({"name": "helmholtz", "boundary_weight": 0}, r"problem\.boundary_weight"),
        ({"name": "klein_gordon", "frequency": 0}, r"problem\.frequency"),
        ({"name": "klein_gordon", "final_time": 0}, r"problem\.final_time"),
        ({"name": "klein_gordon", "rate_weight": -1}, r"problem\.rate_weight"),
    ],
)
def test_configs_are_refused(problem: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config({"problem": problem})

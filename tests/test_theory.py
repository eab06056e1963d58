"""What the theory says, measured: orders of approximation, conditioning, nesting, training.

arXiv 2603.04827 (conditioning of the change of basis, exact nesting, table 2) and 2505.18131
(training in the spline basis is preconditioned training in the ReLU basis).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import bernoulli
from torch import Tensor

import kanpinn
from kanpinn.analysis.basis_spectrum import condition_of
from kanpinn.models import KAN, KANOptions, KnotNetwork, MultichannelOptions
from kanpinn.models.knot_layers import SplineLayer
from kanpinn.models.options import build_network
from kanpinn.splines import Knots
from kanpinn.study.orders import exponent

COUNTS = (16, 32, 64)
WAVE = 3.0  # of the function fitted, sin(3 x + 1)


def fitted_error(order: int, n: int) -> float:
    """L2 error on [-1, 1] of the least-squares fit by one layer of splines on ``n`` intervals."""
    layer = SplineLayer(Knots.uniform_grid(order, n, 1), 1)
    nodes, weights = np.polynomial.legendre.leggauss(order + 3)
    middles = (2 * np.arange(n)[:, None] + 1) / n - 1
    x = torch.from_numpy((middles + nodes / n).ravel())[:, None]
    root = torch.from_numpy(np.tile(np.sqrt(weights / n), n))[:, None]
    y = torch.sin(WAVE * x + 1)
    features = layer.basis.dense(x, 0)[0]
    fit = torch.linalg.lstsq(root * features, root * y, driver="gelsd").solution
    with torch.no_grad():
        layer.coefficients.copy_(fit.mT)
    return float((root * (values(KAN([layer]), x) - y)).norm())


def least_error(order: int, n: int) -> float:
    """The leading term ``sqrt(|B_2r| / (2r)!) h^r |f^(r)|`` of the best splines' error.

    ``B_2r`` is a Bernoulli number: what a polynomial of degree ``r`` is off by.
    """
    x = np.linspace(-1, 1, 20_001)
    slope = WAVE**order * np.sin(WAVE * x + 1 + order * math.pi / 2)
    constant = abs(bernoulli(2 * order)[-1]) / math.factorial(2 * order)
    return float(math.sqrt(constant * np.trapezoid(slope**2, x)) * (2 / n) ** order)


@pytest.mark.parametrize("order", [2, 3, 4, 5, 6])
def test_one_layer_approximates_to_the_order_of_its_splines(order: int) -> None:
    errors = [fitted_error(order, n) for n in COUNTS]
    assert -exponent(COUNTS, errors) == pytest.approx(order, abs=0.1)
    assert errors[-1] == pytest.approx(least_error(order, COUNTS[-1]), rel=0.02)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_condition_of_the_change_of_basis_grows_like_n_to_twice_the_order(order: int) -> None:
    """Of ``A^T A``, fitted over three doublings; the limit is approached from below."""
    counts = (64, 128, 256, 512)
    fitted = exponent(counts, [condition_of(n, order) for n in counts])
    assert 2 * order - 0.35 < fitted < 2 * order + 0.01
    last = math.log2(condition_of(512, order) / condition_of(256, order))
    assert last == pytest.approx(2 * order, abs=0.15)


def moved(network: KnotNetwork, generator: torch.Generator) -> None:
    """Free knots off their initial places, as training leaves them."""
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.endswith("knots_free"):
                p.add_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


@pytest.mark.parametrize("knots", ["uniform", "free"])
@pytest.mark.parametrize("order", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", [KANOptions, MultichannelOptions])
def test_prolongation_is_exact_through_three_levels(
    kind: type[KANOptions | MultichannelOptions],
    order: int,
    knots: Any,
    generator: torch.Generator,
) -> None:
    """Of a whole network, to round-off; sums of truncated powers cancel, the more the finer."""
    options = kind(width=3, order=order, intervals=3, knots=knots)
    network = build_network(options, 2, 2, generator)
    assert isinstance(network, KnotNetwork)
    moved(network, generator)
    x = 2 * torch.rand(500, 2, generator=generator, dtype=torch.float64) - 1
    start, tolerance = values(network, x), 1e-13
    if kind is MultichannelOptions:
        tolerance = 10 ** (1.25 * order - 15)
    sizes = [parameters(network)]
    for _ in range(3):
        network = network.refined([k.refined() for k in network.knots])
        sizes.append(parameters(network))
        assert (values(network, x) - start).abs().max() < tolerance * start.abs().max()
    assert sizes == sorted(set(sizes))


def values(network: KnotNetwork, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = network(x)
    return y


def parameters(network: KnotNetwork) -> int:
    return sum(p.numel() for p in network.parameters())


# --- training: table 2 of 2603.04827, [2,5,1] on fewer points ----------------------------------
EQUATION = "cos(4*pi*x) + sin(pi*y) + sin(2*pi*y) + abs(sin(3*pi*y**2))"


def trained(
    folder: Path, basis: str, intervals: int, phase: dict[str, Any], seed: int, points: int
) -> Mapping[str, Any]:
    """The summary of a run; as many levels as the phase has numbers of steps."""
    config = {
        "problem": {
            "name": "regression",
            "expression": EQUATION,
            "rotation": 0.175,
            "points": points,
            "validation_points": 200,
            "test_points": 2000,
        },
        "model": {"type": basis, "widths": [2, 5, 1], "order": 4, "intervals": intervals},
        "training": {"levels": len(phase["steps"]), "phases": [phase]},
        "seed": seed,
        "figures": False,
    }
    name = f"{basis}_{intervals}_{seed}_{len(phase['steps'])}"
    return kanpinn.solve(config, out=folder / name).summary


def test_refinement_helps_splines_and_not_truncated_powers(tmp_path: Path) -> None:
    """The same schedule of Adam, from the same function: losses at the ends of the levels."""
    phase = {"optimiser": "adam", "steps": [150, 100, 50]}
    gains = {}
    for basis in ("kan", "multichannel"):
        levels = trained(tmp_path, basis, 5, phase, seed=1234, points=300)["levels"]
        for level in levels[1:]:  # nothing is lost, and nothing gained, by refining itself
            before, after = level["loss_before_prolongation"], level["loss_after_prolongation"]
            assert after == pytest.approx(before, rel=1e-8)
        gains[basis] = levels[0]["loss"] / levels[-1]["loss"]
    assert gains["kan"] > 10
    assert gains["multichannel"] < 3


@pytest.mark.slow
def test_table_two(tmp_path: Path) -> None:
    """Medians of the test MSE over three seeds, by L-BFGS: the order of the table's rows.

    Coarse: all steps on 5 intervals; fine: few steps on 40; multilevel: 5, 10, 20, 40 intervals.
    """
    schedules = {"coarse": (5, [512]), "fine": (40, [64]), "multilevel": (5, [128, 64, 32, 16])}
    found = {}
    for basis in ("kan", "multichannel"):
        for name, (intervals, steps) in schedules.items():
            phase = {"optimiser": "lbfgs", "steps": steps}
            runs = [
                trained(tmp_path, basis, intervals, phase, seed, points=2000)
                for seed in (1234, 1235, 1236)
            ]
            found[basis, name] = statistics.median(run["metrics"]["test_mse"] for run in runs)
    assert found["kan", "multilevel"] < found["kan", "coarse"] / 2
    assert found["kan", "coarse"] < found["kan", "fine"] / 10
    assert found["multichannel", "multilevel"] > found["multichannel", "coarse"] / 2
    assert found["multichannel", "fine"] > 10 * found["multichannel", "coarse"]
    assert found["kan", "multilevel"] < found["multichannel", "multilevel"] / 20

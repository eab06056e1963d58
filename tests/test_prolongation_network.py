"""Prolongation and change of basis through whole networks: the same function before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from derivative_oracle import full_spec
from torch import Tensor

from kanpinn.errors import ConditioningError, NestingError
from kanpinn.jets import Jet
from kanpinn.models import (
    KAN,
    KANOptions,
    KnotLayerSettings,
    KnotNetwork,
    MultichannelMLP,
    MultichannelOptions,
    build_network,
)
from kanpinn.models.networks import build_knot_network
from kanpinn.splines import Knots, condition_number

VALUE_TOLERANCE, SECOND_TOLERANCE = 1e-12, 1e-11
ORDERS, DEPTHS, KINDS = range(2, 9), range(1, 5), ("uniform", "free", "nested")
EPS = torch.finfo(torch.float64).eps


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_knots(order: int, counts: Sequence[int], generator: torch.Generator) -> Knots:
    """Breakpoints anywhere on [-1, 1], with intervals of very different lengths."""
    rows = []
    for n in counts:
        spacing = 0.1 + torch.rand(n, dtype=torch.float64, generator=generator)
        t = 2 * torch.cat([spacing.new_zeros(1), spacing.cumsum(0)]) / spacing.sum() - 1
        t[-1] = 1.0
        rows.append(t)
    return Knots.from_breakpoints(order, rows)


def random_insertion(knots: Knots, generator: torch.Generator) -> Knots:
    """A knot somewhere inside every interval, in every other channel of every other one."""
    points = []
    for channel, t in enumerate(knots.breakpoints):
        place = 0.3 + 0.4 * torch.rand(len(t) - 1, dtype=torch.float64, generator=generator)
        inside = t[:-1] + place * t.diff()
        points.append(inside[:: 1 + channel % 2].tolist())
    return knots.inserted(points)


def perturbed(network: KnotNetwork, seed: int, logits: float = 0.5) -> KnotNetwork:
    generator = seeded(seed)
    with torch.no_grad():
        for layer in network.knot_layers:
            for c in [layer.coefficients, *([layer.base_weights] if layer.settings.base else [])]:
                c.add_(0.2 * torch.randn(c.shape, generator=generator, dtype=torch.float64))
            if layer.settings.free:
                s = layer.knots_free
                s.add_(logits * torch.randn(s.shape, generator=generator, dtype=torch.float64))
    return network


def make(kind: str, order: int, depth: int, n: int, seed: int, width: int = 3, **more: Any) -> KAN:
    """A KAN with all kinds of knots, and coefficients and knots moved from their start."""
    generator = seeded(seed)
    widths = [2] + [width] * (depth - 1)
    if kind == "nested":
        counts = [[max(n - 2 * p, 1) for p in range(w)] for w in widths]
        knots = [random_knots(order, row, generator) for row in counts]
    else:
        knots = [Knots.uniform_grid(order, n, w) for w in widths]
    settings = KnotLayerSettings(free=kind == "free", squash="tanh", **more)
    network = perturbed(build_knot_network(KAN, knots, 2, settings, generator), seed + 1)
    assert isinstance(network, KAN)
    return network


def refine(network: KnotNetwork, kind: str, seed: int) -> KnotNetwork:
    generator = seeded(seed)
    if kind == "nested":
        return network.refined([random_insertion(k, generator) for k in network.knots])
    return network.refined([k.refined() for k in network.knots])


def probes(coarse: KnotNetwork, fine: KnotNetwork) -> Tensor:
    """Random points, the ends, and every knot of both first layers."""
    inside = 2 * torch.rand(150, 2, dtype=torch.float64, generator=seeded(77)) - 1
    ends = torch.cartesian_prod(*[torch.tensor([-1.0, 0.3, 1.0], dtype=torch.float64)] * 2)
    rows = [inside, ends]
    for knots in (coarse.knots[0], fine.knots[0]):
        for channel, t in enumerate(knots.breakpoints):
            x = torch.rand(len(t), 2, dtype=torch.float64, generator=seeded(78))
            x[:, channel] = t
            rows.append(x)
    return torch.cat(rows)


def second_jets(network: KnotNetwork, x: Tensor) -> tuple[Tensor, Tensor]:
    """Values ``(n, out)`` and all second derivatives ``(3, n, out)``."""
    spec = full_spec(2, 2)
    with torch.no_grad():
        data = network.jet(Jet.coordinates(x, spec).data, spec)
    return data[0], data[3:]


def changes(coarse: KnotNetwork, fine: KnotNetwork, x: Tensor) -> tuple[float, float]:
    """Largest change of values and of second derivatives, relative to their largest."""
    before, after = second_jets(coarse, x), second_jets(fine, x)
    pairs = zip(before, after, strict=True)
    first, second = (float((b - a).abs().max() / b.abs().max()) for b, a in pairs)
    return first, second


def n_parameters(network: KnotNetwork) -> int:
    return sum(p.numel() for p in network.parameters())


# --- spline basis ---------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [1, 5, 16, 32])
def test_prolongation_keeps_the_function(kind: str, depth: int, order: int, n: int) -> None:
    coarse = make(kind, order, depth, n, seed=10 * order + depth)
    fine = refine(coarse, kind, seed=order)
    assert n_parameters(fine) > n_parameters(coarse)
    value, second = changes(coarse, fine, probes(coarse, fine))
    assert value <= VALUE_TOLERANCE
    if order >= 4:
        assert second <= SECOND_TOLERANCE


@pytest.mark.parametrize("floor", [0.05, 0.9])
def test_fine_free_knots_hold_the_coarse_ones_exactly(floor: float) -> None:
    coarse = perturbed(make("free", 4, 2, 32, seed=3, floor=floor), seed=1)
    fine = refine(coarse, "free", seed=0)
    for old, new in zip(coarse.knots, fine.knots, strict=True):
        for t, finer in zip(old.breakpoints, new.breakpoints, strict=True):
            assert torch.equal(finer[::2], t)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [2, 4, 6, 8])
def test_many_levels_keep_the_function(kind: str, order: int) -> None:
    """From 1 interval to 32, and the way in one step is the same as in five."""
    coarse = make(kind, order, depth=2, n=1, seed=order)
    level: KnotNetwork = coarse
    for step in range(5):
        level = refine(level, kind, seed=step)
    value, second = changes(coarse, level, probes(coarse, level))
    assert value <= VALUE_TOLERANCE
    if order >= 4:
        assert second <= SECOND_TOLERANCE
    at_once = coarse.refined(level.knots)
    for a, b in zip(at_once.knot_layers, level.knot_layers, strict=True):
        found, expected = a.coefficients.detach(), b.coefficients.detach()
        assert float((found - expected).abs().max()) <= 1e-12 * float(expected.abs().max())


def test_outside_the_knots_too() -> None:
    coarse = make("uniform", 5, 2, 4, seed=2)
    fine = refine(coarse, "uniform", 0)
    x = 2.6 * torch.rand(100, 2, dtype=torch.float64, generator=seeded(3)) - 1.3
    value, second = changes(coarse, fine, x)
    assert value <= VALUE_TOLERANCE and second <= SECOND_TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "refined", [(True, False, False), (False, True, False), (True, False, True)]
)
def test_refinement_per_layer(kind: str, refined: tuple[bool, ...]) -> None:
    coarse = make(kind, 6, 3, 6, seed=4)
    knots = [k.refined() if r else k for k, r in zip(coarse.knots, refined, strict=True)]
    fine = coarse.refined(knots)
    for layer, old, r in zip(fine.knot_layers, coarse.knot_layers, refined, strict=True):
        assert layer.n_intervals == tuple((1 + r) * n for n in old.n_intervals)
    value, second = changes(coarse, fine, probes(coarse, fine))
    assert value <= VALUE_TOLERANCE and second <= SECOND_TOLERANCE


def test_refinement_per_channel() -> None:
    coarse = make("uniform", 5, 2, 4, seed=5)
    knots = [coarse.knots[0].refined([False, True]), coarse.knots[1].refined([True, False, True])]
    fine = coarse.refined(knots)
    assert fine.knots[0].n_intervals == (4, 8)
    value, second = changes(coarse, fine, probes(coarse, fine))
    assert value <= VALUE_TOLERANCE and second <= SECOND_TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_equal_knots_change_nothing(kind: str) -> None:
    coarse = make(kind, 6, 2, 7, seed=6)
    same = coarse.refined(coarse.knots)
    for a, b in zip(same.knot_layers, coarse.knot_layers, strict=True):
        torch.testing.assert_close(a.coefficients, b.coefficients, rtol=1e-14, atol=1e-14)


def test_base_branch_is_kept() -> None:
    coarse = make("free", 5, 2, 4, seed=7, base="silu")
    fine = refine(coarse, "free", 0)
    for a, b in zip(fine.knot_layers, coarse.knot_layers, strict=True):
        assert a.base_weights.shape == (a.out_width, a.in_width)
        assert torch.equal(a.base_weights, b.base_weights) and bool(a.base_weights.any())
    value, second = changes(coarse, fine, probes(coarse, fine))
    assert value <= VALUE_TOLERANCE and second <= SECOND_TOLERANCE


def test_refined_parameters_are_leaves() -> None:
    fine = refine(make("free", 5, 2, 4, seed=7), "free", 0)
    assert all(p.is_leaf and p.requires_grad for p in fine.parameters())


def test_prolongation_stays_on_the_device(device: torch.device) -> None:
    coarse = make("free", 5, 2, 4, seed=7).to(device)
    fine = refine(coarse, "free", 0)
    assert all(p.device.type == device.type for p in fine.parameters())
    on_device = fine(torch.full((1, 2), 0.3, dtype=torch.float64, device=device))
    before = coarse(torch.full((1, 2), 0.3, dtype=torch.float64, device=device))
    torch.testing.assert_close(on_device, before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision(kind: str) -> None:
    coarse = make(kind, 4, 2, 4, seed=8).float()
    fine = refine(coarse, kind, 0)
    x = probes(coarse, fine).float()
    with torch.no_grad():
        before, after = coarse(x), fine(x)
    assert after.dtype == torch.float32
    assert float((after - before).abs().max() / before.abs().max()) <= 2e-5


# --- knots that do not nest -----------------------------------------------------------------------
BAD_KNOTS = {
    "coarser": Knots.uniform_grid(5, 2, 2),
    "other spacing": Knots.uniform_grid(5, 6, 2),
    "other order": Knots.uniform_grid(6, 8, 2),
    "other channels": Knots.uniform_grid(5, 8, 3),
    "other ends": Knots.uniform_grid(5, 8, 2, lower=-2.0),
}


@pytest.mark.parametrize("name", BAD_KNOTS)
@pytest.mark.parametrize("basis", ["spline", "relu"])
def test_refusal_to_nest(name: str, basis: str) -> None:
    network: KnotNetwork = make("uniform", 5, 1, 4, seed=1)
    if basis == "relu":
        assert isinstance(network, KAN)
        network = network.to_multichannel()
    with pytest.raises(NestingError) as caught:
        network.refined([BAD_KNOTS[name]])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("basis", ["spline", "relu"])
def test_least_squares_takes_knots_that_do_not_nest(basis: str) -> None:
    coarse: KnotNetwork = make("uniform", 5, 2, 4, seed=1)
    if basis == "relu":
        assert isinstance(coarse, KAN)
        coarse = coarse.to_multichannel()
    finer = [Knots.uniform_grid(5, 31, k.channels) for k in coarse.knots]
    value, _ = changes(coarse, coarse.refitted(finer), probes(coarse, coarse))
    assert 1e-9 < value < 1e-2
    nested = coarse.refitted([k.refined() for k in coarse.knots])
    value, _ = changes(coarse, nested, probes(coarse, coarse))
    assert value < 1e-10


# --- power-ReLU basis -----------------------------------------------------------------------------
def largest_condition(*networks: KnotNetwork) -> float:
    return max(condition_number(k) for network in networks for k in network.knots)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("order", "n"), [(2, 8), (3, 8), (4, 4), (4, 8), (5, 4), (6, 2), (8, 1)])
def test_relu_prolongation_within_the_condition(kind: str, depth: int, order: int, n: int) -> None:
    coarse = make(kind, order, depth, n, seed=order + depth).to_multichannel()
    fine = refine(coarse, kind, seed=order)
    assert isinstance(fine, MultichannelMLP)
    bound = 10 * EPS * largest_condition(coarse, fine)
    value, second = changes(coarse, fine, probes(coarse, fine))
    assert value <= min(bound, 1e-8)
    if order >= 4:
        assert second <= min(bound, 1e-7)


def test_relu_prolongation_copies_interior_coefficients() -> None:
    coarse = make("uniform", 4, 1, 4, seed=1).to_multichannel()
    fine = refine(coarse, "uniform", 0)
    before = coarse.knot_layers[0].coefficients.view(2, 2, 7)
    after = fine.knot_layers[0].coefficients.view(2, 2, 11)
    assert torch.equal(after[..., 5::2], before[..., 4:])  # i = 2, 4, 6 were 1, 2, 3
    assert not after[..., 4::2].any()


def test_relu_prolongation_is_refused_above_its_limit() -> None:
    """In float32 at order 8 the moved powers would leave no digits."""
    coarse = make("uniform", 8, 1, 4, seed=1).to_multichannel().float()
    with pytest.raises(ConditioningError, match="prolongation has condition number") as caught:
        refine(coarse, "uniform", 0)
    assert "\n" not in str(caught.value)


# --- change of basis ------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize(("order", "n"), [(2, 16), (3, 8), (4, 6), (5, 4), (6, 3)])
@pytest.mark.parametrize("base", [None, "silu"])
def test_twins_are_the_same_function(
    kind: str, depth: int, order: int, n: int, base: str | None
) -> None:
    kan = make(kind, order, depth, n, seed=order, base=base)
    relu = kan.to_multichannel()
    back = relu.to_kan()
    assert isinstance(relu, MultichannelMLP) and isinstance(back, KAN)
    bound = 10 * EPS * largest_condition(kan)
    x = probes(kan, kan)
    for twin in (relu, back):
        value, second = changes(kan, twin, x)
        assert value <= min(bound, 1e-6)
        if order >= 4:
            assert second <= min(bound, 1e-5)
        for a, b in zip(twin.knot_layers, kan.knot_layers, strict=True):
            assert a.settings == b.settings
            for t, exact in zip(a.knots.breakpoints, b.knots.breakpoints, strict=True):
                assert torch.equal(t, exact)


def test_conversion_back_is_refused_above_its_limit() -> None:
    relu = make("uniform", 8, 1, 64, seed=1).to_multichannel()
    with pytest.raises(ConditioningError, match="change of basis has condition number"):
        relu.to_kan()


def test_conversion_of_built_networks() -> None:
    kan = build_network(KANOptions(width=4, order=5), 2, 1, seeded(0))
    relu = build_network(MultichannelOptions(width=4, order=5), 2, 1, seeded(0))
    assert isinstance(kan, KAN) and isinstance(relu, MultichannelMLP)
    for a, b in zip(kan.to_multichannel().parameters(), relu.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)

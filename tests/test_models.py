"""Models: jets against nested reverse mode, fused features, maps, initialisation, options."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from derivative_oracle import all_indices, assert_components, full_spec, nested_components
from torch import Tensor

from kanpinn.errors import ConfigError
from kanpinn.jets import FUNCTIONS, Jet, JetSpec
from kanpinn.models import (
    KAN,
    Abs,
    Asinh,
    Coordinate,
    FieldNetwork,
    Formula,
    Inputs,
    KANOptions,
    KnotLayer,
    KnotLayerSettings,
    KnotNetwork,
    MLPOptions,
    ModelOptions,
    MultichannelOptions,
    Network,
    OutputMap,
    Periodic,
    SplineLayer,
    Step,
    build_network,
)
from kanpinn.models.initialise import ACTIVATION_GAIN, UNIFORM_VARIANCE, VARIANCE_BEFORE_TANH
from kanpinn.models.inputs import AnyInputMap
from kanpinn.models.networks import ACTIVATION_SMOOTHNESS
from kanpinn.models.spline_features import SplineFeatures, combine, scatter_features
from kanpinn.splines import Knots, SplineBasis, change_of_basis, condition_number

TOLERANCE = 1e-10
RAGGED = (
    ((-1.0, -0.4, 0.1, 1.0), (-1.0, 0.3, 1.0)),
    ((-1.0, -0.2, 0.5, 0.7, 1.0), (-1.0, 1.0), (-1.0, 0.1, 1.0)),
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(options: ModelOptions, n_inputs: int = 2, n_outputs: int = 2, seed: int = 3) -> Network:
    """A network with parameters far from their smooth start, free knots moved.

    A multichannel MLP is the twin of such a KAN: random coefficients of large, nearly dependent
    functions would leave no digits to compare.
    """
    if isinstance(options, MultichannelOptions):
        twin = KANOptions(
            **{f.name: getattr(options, f.name) for f in fields(KANOptions) if f.name != "type"}
        )
        network = make(twin, n_inputs, n_outputs, seed)
        assert isinstance(network, KAN)
        return network.to_multichannel()
    network = build_network(options, n_inputs, n_outputs, seeded(seed))
    generator = seeded(seed + 1)
    with torch.no_grad():
        for p in network.parameters():
            size = 0.3 * float(p.abs().mean()) + 0.05
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return network


def points(n: int, d: int, seed: int = 0, reach: float = 1.0) -> Tensor:
    return reach * (2 * torch.rand(n, d, dtype=torch.float64, generator=seeded(seed)) - 1)


MODELS: dict[str, ModelOptions] = {
    **{f"kan order {r}": KANOptions(width=3, order=r) for r in range(2, 9)},
    **{f"kan free order {r}": KANOptions(width=3, order=r, knots="free") for r in (4, 6, 8)},
    **{
        f"kan ragged order {r}": KANOptions(widths=(2, 3, 2), order=r, breakpoints=RAGGED)
        for r in (4, 5, 7)
    },
    "kan ragged free": KANOptions(widths=(2, 3, 2), order=5, breakpoints=RAGGED, knots="free"),
    "kan orders 4 and 6": KANOptions(width=3, order=(4, 6), intervals=(5, 2)),
    "kan base": KANOptions(width=3, order=5, base="silu"),
    "kan base free": KANOptions(width=3, order=6, base="silu", knots="free"),
    "kan without squash": KANOptions(width=3, order=5, squash="none"),
    "kan deep": KANOptions(width=2, hidden_layers=3, order=6),
    "kan one layer": KANOptions(hidden_layers=0, order=6),
    **{
        f"multichannel order {r}": MultichannelOptions(width=3, order=r, intervals=3)
        for r in range(4, 9)
    },
    "multichannel free": MultichannelOptions(width=3, order=5, intervals=3, knots="free"),
    "multichannel ragged": MultichannelOptions(widths=(2, 3, 2), order=5, breakpoints=RAGGED),
    "multichannel base": MultichannelOptions(width=3, order=5, intervals=3, base="silu"),
    "mlp tanh": MLPOptions(width=6, hidden_layers=2, activation="tanh"),
    "mlp silu": MLPOptions(width=6, hidden_layers=2, activation="silu"),
    "mlp gelu": MLPOptions(width=6, hidden_layers=2, activation="gelu"),
    "mlp sin": MLPOptions(width=6, hidden_layers=2, activation="sin", frequency=2.0),
}


def jet_of(network: Network, x: Tensor, spec: JetSpec, directions: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return network.jet(Jet.coordinates(x, spec, directions).data, spec)


def test_every_smooth_activation_is_tested() -> None:
    smooth = {name for name, limit in ACTIVATION_SMOOTHNESS.items() if limit is None}
    tested = {entry.activation for entry in MODELS.values() if isinstance(entry, MLPOptions)}
    assert smooth == tested


# --- jets of networks -------------------------------------------------------------------------
@pytest.mark.parametrize("name", MODELS)
def test_every_derivative_to_order_four(name: str) -> None:
    network, x, spec = make(MODELS[name]), points(12, 2), full_spec(2, 4)
    assert_components(jet_of(network, x, spec), nested_components(network, x, spec), TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_summed_laplacian_beside_mixed_derivatives(name: str) -> None:
    network, x = make(MODELS[name], n_inputs=2), points(12, 2, 1)
    for spec in (JetSpec.closure(2, [], (0, 1)), JetSpec.closure(2, [(1, 2)], (0,))):
        exact = nested_components(network, x, spec)
        assert_components(jet_of(network, x, spec), exact, TOLERANCE)


@pytest.mark.parametrize("intervals", [8, 32, 64])
@pytest.mark.parametrize("order", [4, 6, 8])
def test_jets_in_the_power_relu_basis_are_as_good_as_its_condition(
    order: int, intervals: int
) -> None:
    """Within ``eps cond(A)``: large coefficients of powers cancel. B-splines stay within 1e-10."""
    x, spec = points(12, 2), full_spec(2, min(4, order - 2))
    for options, allowed in (
        (MultichannelOptions(width=3, order=order, intervals=intervals), None),
        (KANOptions(width=3, order=order, intervals=intervals), TOLERANCE),
    ):
        network = make(options)
        assert isinstance(network, KnotNetwork)
        condition = max(condition_number(knots) for knots in network.knots)
        tolerance = allowed or torch.finfo(torch.float64).eps * condition
        assert tolerance < 1e-2  # beyond that there are no digits, and refinement is refused
        assert_components(jet_of(network, x, spec), nested_components(network, x, spec), tolerance)


@pytest.mark.parametrize("index", all_indices(3, 4))
@pytest.mark.parametrize("kind", ["kan", "mlp"])
def test_every_index_in_three_dimensions(index: tuple[int, ...], kind: str) -> None:
    options: ModelOptions = KANOptions(width=2, order=6) if kind == "kan" else MLPOptions(width=4)
    network, x, spec = make(options, 3, 1), points(5, 3), JetSpec.closure(3, [index])
    assert_components(jet_of(network, x, spec), nested_components(network, x, spec), TOLERANCE)


@pytest.mark.parametrize("per_point", [False, True], ids=["fixed", "per point"])
@pytest.mark.parametrize("name", ["kan order 6", "kan free order 6", "multichannel order 5"])
def test_directions_through_networks(name: str, per_point: bool) -> None:
    network, x = make(MODELS[name]), points(7, 2)
    shape = (3, 7, 2) if per_point else (3, 2)
    directions = torch.randn(shape, dtype=torch.float64, generator=seeded(8))
    for spec in (full_spec(3, 2), JetSpec.closure(3, [(2, 1, 1)], (0, 1, 2))):
        found = jet_of(network, x, spec, directions)
        assert_components(found, nested_components(network, x, spec, directions), TOLERANCE)


@pytest.mark.parametrize("name", ["kan order 5", "kan free order 6", "multichannel order 5"])
def test_points_outside_the_knots(name: str) -> None:
    """The end polynomials go on, with all their derivatives."""
    network, x, spec = make(MODELS[name]), points(12, 2, 2, reach=1.6), full_spec(2, 3)
    assert (x.abs() > 1).any()
    assert_components(jet_of(network, x, spec), nested_components(network, x, spec), TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_value_does_not_depend_on_what_else_is_carried(name: str) -> None:
    network, x = make(MODELS[name]), points(12, 2)
    with torch.no_grad():
        plain = network(x)
    assert plain.shape == (12, 2)
    torch.testing.assert_close(jet_of(network, x, full_spec(2, 2))[0], plain, rtol=0, atol=1e-13)


# --- the spline layer's features, fused and not -------------------------------------------------
SPECS = {
    "value": JetSpec.value_only(2),
    "gradient": full_spec(2, 1),
    "order 2": full_spec(2, 2),
    "order 3": full_spec(2, 3),
    "order 4": full_spec(2, 4),
    "laplacian": JetSpec.closure(2, [], (0, 1)),
    "laplacian and mixed": JetSpec.closure(2, [(1, 2)], (0,)),
    "pure fourth": JetSpec.closure(2, [(4, 0)]),
}
KNOTS: dict[str, Callable[[int], Knots]] = {
    "uniform": lambda r: Knots.uniform_grid(r, 3, 2),
    "unequal counts": lambda r: Knots.uniform_grid(r, [2, 5], 2),
    "ragged": lambda r: Knots.from_breakpoints(r, [[-1, 0.2, 0.3, 1], [-1, -0.1, 1]]),
}


def unfused(z: Tensor, basis: SplineBasis, spec: JetSpec) -> Tensor:
    """The same features from differentiable elementary operations."""
    first, values = basis.local(z[0], spec.order)
    return scatter_features(combine(values, z[..., None], spec), first, basis.n_features)


def random_jet(spec: JetSpec, n: int, seed: int = 4) -> Tensor:
    z = torch.randn(spec.n_components, n, 2, dtype=torch.float64, generator=seeded(seed))
    z[0] = points(n, 2, seed, reach=1.2)
    return z


@pytest.mark.parametrize("knots", KNOTS)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("order", [2, 4, 6, 8])
def test_fused_features_equal_elementary_ones(knots: str, spec: str, order: int) -> None:
    basis, which = SplineBasis(KNOTS[knots](order)), SPECS[spec]
    z = random_jet(which, 40).requires_grad_()
    local, first = SplineFeatures.apply(z, basis, which)
    fused = scatter_features(local, first, basis.n_features)
    plain = unfused(z, basis, which)
    assert_components(fused.detach(), plain.detach(), 1e-13)
    adjoint = torch.randn(fused.shape, dtype=torch.float64, generator=seeded(9))
    (found,) = torch.autograd.grad(fused, z, adjoint)
    (expected,) = torch.autograd.grad(plain, z, adjoint)
    assert expected.abs().max() > 0
    assert_components(found, expected, 1e-12)


@pytest.mark.parametrize("knots", KNOTS)
@pytest.mark.parametrize("spec", SPECS)
def test_fused_features_by_finite_differences(knots: str, spec: str) -> None:
    basis, which = SplineBasis(KNOTS[knots](7)), SPECS[spec]
    z = random_jet(which, 2).requires_grad_()

    def features(z: Tensor) -> Tensor:
        result: Tensor = SplineFeatures.apply(z, basis, which)[0]
        return result

    assert torch.autograd.gradcheck(features, (z,), eps=1e-6, atol=1e-5, rtol=1e-5, fast_mode=True)


def test_layer_takes_the_fused_path_for_jets_alone() -> None:
    layer = SplineLayer(Knots.uniform_grid(5, 3, 2), 1)
    jet = layer.features(random_jet(SPECS["order 2"], 3).requires_grad_(), SPECS["order 2"])
    value = layer.features(random_jet(SPECS["value"], 3).requires_grad_(), SPECS["value"])
    found = ["SplineFeatures" in recorded_nodes(features) for features in (jet, value)]
    assert found == [True, False]


def recorded_nodes(tensor: Tensor) -> str:
    """The names of all that was recorded for a tensor's gradient."""
    names, left = [], [tensor.grad_fn]
    while left:
        node = left.pop()
        if node is not None:
            names.append(node.name())
            left.extend(before for before, _ in node.next_functions)
    return " ".join(names)


# --- reverse mode through whole networks --------------------------------------------------------
@pytest.mark.parametrize("name", MODELS)
def test_gradient_of_derivatives_in_all_parameters(name: str) -> None:
    """One reverse pass over second derivatives, along a random direction of the parameters."""
    if name in ("kan order 2", "kan order 3"):
        pytest.skip("second derivatives of splines of this order have no gradient")
    network, x, spec = make(MODELS[name]), points(9, 2), JetSpec.closure(2, [(1, 1)], (0, 1))
    z = Jet.coordinates(x, spec).data
    weights = torch.randn(spec.n_components, 9, 2, dtype=torch.float64, generator=seeded(5))
    parameters = list(network.parameters())
    direction = [torch.randn(p.shape, dtype=torch.float64, generator=seeded(6)) for p in parameters]
    gradients = torch.autograd.grad((network.jet(z, spec) * weights).sum(), parameters)
    found = sum(float((g * v).sum()) for g, v in zip(gradients, direction, strict=True))

    def shifted(step: float) -> float:
        other = copy.deepcopy(network)
        with torch.no_grad():
            for p, v in zip(other.parameters(), direction, strict=True):
                p.add_(step * v)
            return float((other.jet(z, spec) * weights).sum())

    # Steps of the large functions of the power-ReLU basis must be small.
    h, tolerance = (3e-9, 1e-6) if name.startswith("multichannel") else (1e-4, 1e-7)
    slope = 8 * (shifted(h) - shifted(-h)) - (shifted(2 * h) - shifted(-2 * h))
    scale = sum(float((g * v).abs().sum()) for g, v in zip(gradients, direction, strict=True))
    assert abs(slope / (12 * h) - found) <= tolerance * scale
    assert all(float(g.abs().max()) > 0 for g in gradients)


@pytest.mark.parametrize("order", [4, 6])
def test_gradients_of_twins_are_preconditioned(order: int) -> None:
    """``grad_u = A grad_w`` for spline coefficients ``u`` and ReLU coefficients ``w = A^T u``."""
    kan = make(KANOptions(width=3, order=order, intervals=3))
    assert isinstance(kan, KAN)
    spec, x = full_spec(2, 2), points(9, 2)
    z = Jet.coordinates(x, spec).data
    twin = kan.to_multichannel()
    pairs = zip(kan.knot_layers, twin.knot_layers, strict=True)
    gradients = [
        torch.autograd.grad(net.jet(z, spec).square().sum(), list(net.parameters()))
        for net in (kan, twin)
    ]
    for (layer, _), in_u, in_w in zip(pairs, *gradients, strict=True):
        knots, size = layer.knots, layer.knots.n_functions[0]
        blocks = in_w.view(layer.out_width, layer.in_width, size)
        expected = (blocks @ change_of_basis(knots, 0).T).flatten(1)
        assert_components(in_u[None], expected[None], 1e-8)


# --- input and output maps ----------------------------------------------------------------------
NAMES, BOUNDS = ("x", "t"), ((-1.0, 3.0), (0.0, 2.0))
INPUT_MAPS: dict[str, tuple[AnyInputMap, ...]] = {
    "coordinates": (Coordinate(of="x"), Coordinate(of="t")),
    "abs": (Coordinate(of="x"), Abs(of="x", at=0.5), Coordinate(of="t")),
    "step": (Coordinate(of="x"), Step(of="x", at=0.5), Coordinate(of="t")),
    "asinh": (Asinh(of="x", scale=0.1, at=0.3), Coordinate(of="t")),
    "periodic": (Periodic(of="x", harmonics=2), Coordinate(of="t")),
    "formula": (Formula(formula="x**2 * exp(-t)", range=(0.0, 9.0)), Coordinate(of="x")),
    "one coordinate": (Coordinate(of="t"),),
}


def in_domain(n: int, seed: int = 0) -> Tensor:
    lower, upper = torch.tensor(BOUNDS, dtype=torch.float64).T
    return lower + (upper - lower) * torch.rand(n, 2, dtype=torch.float64, generator=seeded(seed))


def field_network(
    maps: tuple[AnyInputMap, ...], outputs: tuple[OutputMap, ...] | None = None
) -> FieldNetwork:
    inputs = Inputs(NAMES, BOUNDS, maps)
    network = make(KANOptions(width=3, order=6), inputs.n_channels, 2)
    return FieldNetwork(("u", "v"), inputs, network, outputs)


def field_jets(part: FieldNetwork, x: Tensor, spec: JetSpec, side: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return part.jet(part.prepare(x, spec, side)).data


@pytest.mark.parametrize("name", INPUT_MAPS)
def test_input_maps_carry_jets(name: str) -> None:
    part, x = field_network(INPUT_MAPS[name]), in_domain(11)
    for spec in (full_spec(2, 4), JetSpec.closure(2, [(0, 1)], (0,))):
        assert_components(field_jets(part, x, spec), nested_components(part, x, spec), TOLERANCE)


@pytest.mark.parametrize("name", INPUT_MAPS)
def test_input_maps_span_the_knots(name: str) -> None:
    inputs = Inputs(NAMES, BOUNDS, INPUT_MAPS[name])
    x = torch.cartesian_prod(
        torch.linspace(-1, 3, 81, dtype=torch.float64), torch.linspace(0, 2, 41).double()
    )
    z = inputs(inputs.approach(Jet.coordinates(x, JetSpec.value_only(2)))).value
    assert z.shape == (len(x), inputs.n_channels)
    torch.testing.assert_close(z.amax(0), torch.ones_like(z[0]), rtol=0, atol=1e-2)
    torch.testing.assert_close(z.amin(0), -torch.ones_like(z[0]), rtol=0, atol=1e-2)


@pytest.mark.parametrize("side", [-1, 1])
def test_abs_map_takes_the_side_on_its_plane(side: int) -> None:
    part, spec = field_network(INPUT_MAPS["abs"]), full_spec(2, 3)
    x = in_domain(6)
    x[:, 0] = 0.5
    sides = torch.full((6,), side, dtype=torch.int8)

    def one_sided(z: Tensor) -> Tensor:
        return part.jet(part.prepare(z, JetSpec.value_only(2), sides)).value

    on_plane = field_jets(part, x, spec, sides)
    assert_components(on_plane, nested_components(one_sided, x, spec), TOLERANCE)
    beside = x + torch.tensor([side * 1e-9, 0.0], dtype=torch.float64)
    assert_components(on_plane, field_jets(part, beside, spec), 1e-6)
    other = field_jets(part, x, spec, -sides)
    assert (other[1] - on_plane[1]).abs().max() > 1e-2


@pytest.mark.parametrize("side", [-1, 0, None, 1])
def test_step_map_takes_the_side_on_its_plane(side: int | None) -> None:
    """The upper one where none is given, as for any point of a box on an interface."""
    inputs = Inputs(NAMES, BOUNDS, (Step(of="x", at=0.5),))
    x = torch.tensor([[0.5, 1.0], [0.4, 1.0], [0.6, 1.0]], dtype=torch.float64)
    sides = None if side is None else torch.full((3,), side, dtype=torch.int8)
    channel = inputs(inputs.approach(Jet.coordinates(x, full_spec(2, 2)), sides)).data[..., 0]
    assert channel[0].tolist() == [-1.0 if side == -1 else 1.0, -1.0, 1.0]
    assert not channel[1:].any()


# A formula, and what it is below and above x = 0.1.
PIECEWISE = {
    "abs": ("abs(x - 0.1)", "0.1 - x", "x - 0.1"),
    "abs, reversed": ("t * abs(0.1 - x)**3", "t * (0.1 - x)**3", "t * (x - 0.1)**3"),
    "abs, with rounding": ("abs(3*x - 0.3)", "0.3 - 3*x", "3*x - 0.3"),
    "sign": ("exp(t) * sign(x - 0.1)", "-exp(t)*x**0", "exp(t)*x**0"),
    "where": ("where(x < 0.1, sin(x), x**2 - t)", "sin(x)", "x**2 - t"),
    "where not": ("where(not 0.1 > x, t, 2)", "2*x**0", "t"),
    "where of numbers": ("where(x >= 0.1 and t > 0, 1, 0)", "0*x", "x**0"),
    "maximum": ("maximum(x, 0.1) / t", "0.1 / t", "x / t"),
    "minimum": ("minimum(2**x, 2**0.1) - x", "2**x - x", "2**0.1 - x"),
    "of two": ("maximum(x**t, 0.1**t)", "0.1**t", "x**t"),
    "nested": ("sqrt(1 + abs(x - 0.1))", "sqrt(1.1 - x)", "sqrt(0.9 + x)"),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("side", [-1, 0, None, 1])
@pytest.mark.parametrize("name", PIECEWISE)
def test_formulas_are_one_sided_on_an_interface(
    name: str, side: int | None, dtype: torch.dtype
) -> None:
    formula, below, above = PIECEWISE[name]
    x = in_domain(6).to(dtype)
    x[:, 0], x[5, 0] = 0.1, -0.3  # the last one is beside it, where no side counts
    x[:, 1] += 0.2
    sides = None if side is None else torch.full((6,), side, dtype=torch.int8)
    spec = full_spec(2, 2)
    expected = torch.where(
        torch.tensor([side == -1] * 5 + [True]),
        input_jets(below, x, spec),
        input_jets(above, x, spec),
    )
    found = input_jets(formula, x, spec, sides)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=1e2 * torch.finfo(dtype).eps)
    outputs = (OutputMap(formula, formula), OutputMap(1.0))
    part = field_network(INPUT_MAPS["coordinates"], outputs).to(dtype)
    prepared = part.prepare(x, spec, sides)
    for data in (prepared.lift, prepared.factor):
        assert data is not None
        torch.testing.assert_close(data[..., 0], found, rtol=0, atol=0)


def input_jets(
    formula: str, x: Tensor, spec: JetSpec, side: Tensor | None = None, normal: Tensor | None = None
) -> Tensor:
    """Jets ``(K, n)`` of one formula as an input, on the range [-1, 1]."""
    inputs = Inputs(NAMES, BOUNDS, (Formula(formula=formula, range=(-1.0, 1.0)),))
    return inputs(inputs.approach(Jet.coordinates(x, spec), side, normal)).data[..., 0]


def test_the_normal_says_where_the_plus_side_of_a_curved_interface_is() -> None:
    angle = torch.linspace(0.1, 3.0, 7, dtype=torch.float64)
    inward = -torch.stack([angle.cos(), angle.sin()], -1)
    x = torch.tensor([1.0, 0.0], dtype=torch.float64) - 0.9 * inward  # a circle around (1, 0)
    spec = full_spec(2, 1)
    ring = "sqrt((x - 1)**2 + t**2) - 0.9"
    for side in (-1, 1):
        sides = torch.full((7,), side, dtype=torch.int8)
        found = input_jets(f"abs({ring})", x, spec, sides, inward)
        expected = -side * input_jets(ring, x, spec)
        torch.testing.assert_close(found[1:], expected[1:], rtol=0, atol=1e-14)


def test_periodic_map_is_periodic_in_all_derivatives() -> None:
    part, spec, x = field_network(INPUT_MAPS["periodic"]), full_spec(2, 4), in_domain(8)
    x[:, 0] = -1.0
    opposite = x + torch.tensor([4.0, 0.0], dtype=torch.float64)
    assert_components(field_jets(part, opposite, spec), field_jets(part, x, spec), 1e-10)


@pytest.mark.parametrize(
    "outputs",
    [
        (OutputMap("sin(x) * t", "t * (x + 1)"), OutputMap("x**3", "exp(-x*t)")),
        (OutputMap(), OutputMap("t", 2.0)),
        (OutputMap(factor="x - 4"), OutputMap(factor="3.0")),
    ],
)
def test_output_maps_carry_jets(outputs: tuple[OutputMap, ...]) -> None:
    part, x = field_network(INPUT_MAPS["coordinates"], outputs), in_domain(11)
    for spec in (full_spec(2, 4), JetSpec.closure(2, [(0, 1)], (0,))):
        assert_components(field_jets(part, x, spec), nested_components(part, x, spec), TOLERANCE)


def test_output_map_is_lift_and_factor() -> None:
    plain, x = field_network(INPUT_MAPS["coordinates"]), in_domain(9)
    outputs = (OutputMap("sin(x)", "t"), OutputMap(2.0))
    mapped = FieldNetwork(plain.fields, plain.inputs, plain.network, outputs)
    with torch.no_grad():
        raw, found = plain(x), mapped(x)
    expected = torch.stack([x[:, 0].sin() + x[:, 1] * raw[:, 0], 2.0 + raw[:, 1]], -1)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("neutral", [OutputMap(), OutputMap("0.0", "1.0"), OutputMap(0, 1)])
def test_neutral_output_maps_cost_nothing(neutral: OutputMap) -> None:
    part = field_network(INPUT_MAPS["coordinates"], (neutral, neutral))
    prepared = part.prepare(in_domain(3), full_spec(2, 2))
    assert prepared.lift is None and prepared.factor is None


@pytest.mark.parametrize("name", ["kan order 6", "kan base", "multichannel order 5", "mlp tanh"])
def test_kept_features_change_nothing(name: str) -> None:
    spec, x = full_spec(2, 2), in_domain(10)
    part = FieldNetwork(("u", "v"), Inputs.coordinates(NAMES, BOUNDS), make(MODELS[name]))
    plain, kept = (part.prepare(x, spec, keep_features=keep) for keep in (False, True))
    assert plain.first_features is None and kept.first_features is not None
    jets = [part.jet(p).data for p in (plain, kept)]
    assert torch.equal(jets[0], jets[1])
    gradients = [torch.autograd.grad(jet.sum(), list(part.parameters())) for jet in jets]
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_free_knots_keep_no_features() -> None:
    network = make(MODELS["kan free order 6"])
    part = FieldNetwork(("u", "v"), Inputs.coordinates(NAMES, BOUNDS), network)
    assert part.prepare(in_domain(3), full_spec(2, 1), keep_features=True).first_features is None


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ((Coordinate(of="y"),), "coordinate 'y' is unknown; the problem has x, t"),
        ((Formula(formula="x + z", range=(0.0, 1.0)),), "unknown name 'z'"),
    ],
)
def test_bad_input_maps(maps: tuple[AnyInputMap, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Inputs(NAMES, BOUNDS, maps)
    assert "\n" not in str(caught.value)


def test_formula_without_coordinates_is_refused() -> None:
    inputs = Inputs(NAMES, BOUNDS, (Formula(formula="2 + pi", range=(0.0, 9.0)),))
    with pytest.raises(ConfigError, match="does not use a coordinate"):
        inputs(inputs.approach(Jet.coordinates(in_domain(3), full_spec(2, 1))))


# --- layers on knots ----------------------------------------------------------------------------
@pytest.mark.parametrize("free", [False, True])
def test_feature_order_is_out_in_function(free: bool) -> None:
    """With equal counts the coefficients are the ``(out, in, i)`` array, flattened."""
    knots = Knots.uniform_grid(4, 3, 2)
    layer = SplineLayer(knots, 3, KnotLayerSettings(free=free))
    c = torch.randn(3, 2, 6, dtype=torch.float64, generator=seeded(1))
    with torch.no_grad():
        layer.coefficients.copy_(c.flatten(1))
    x = points(9, 2)
    one = Knots.uniform_grid(4, 3, 1)
    expected = sum(SplineBasis(one).dense(x[:, p : p + 1], 0)[0] @ c[:, p].T for p in range(2))
    with torch.no_grad():
        found = layer(x[None], JetSpec.value_only(2))[0]
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("options", [MODELS["kan free order 6"], MODELS["kan ragged free"]])
def test_free_knots_start_where_they_were_put(options: KANOptions) -> None:
    network = build_network(options, 2, 2, seeded(0))
    assert isinstance(network, KnotNetwork)
    given = options.coarse_knots(network.widths, torch.float64, torch.device("cpu"))
    for layer, knots in zip(network.knot_layers, given, strict=True):
        assert layer.knots.n_intervals == knots.n_intervals
        for t, exact in zip(layer.knots.breakpoints, knots.breakpoints, strict=True):
            assert torch.equal(t, exact)
            assert not t.requires_grad
        assert layer.knots_free.shape == (sum(knots.n_intervals),)


def test_moving_one_logit_moves_one_channel() -> None:
    network = build_network(MODELS["kan ragged free"], 2, 2, seeded(0))
    assert isinstance(network, KnotNetwork)
    layer = network.knot_layers[0]
    before = layer.knots
    with torch.no_grad():
        layer.knots_free[3] += 0.7  # the first interval of the second channel
    after = layer.knots
    assert torch.equal(before.breakpoints[0], after.breakpoints[0])
    assert after.breakpoints[1][1] > before.breakpoints[1][1] + 0.05
    assert torch.equal(after.breakpoints[1][[0, -1]], before.breakpoints[1][[0, -1]])


@pytest.mark.parametrize(
    "name", ["kan order 5", "kan free order 6", "multichannel base", "mlp sin"]
)
def test_single_precision(name: str) -> None:
    double = make(MODELS[name])
    single = copy.deepcopy(double).float()
    x, spec = points(20, 2), full_spec(2, 2)
    found = jet_of(single, x.float(), spec)
    assert found.dtype == torch.float32
    assert_components(found.double(), jet_of(double, x, spec), 2e-3)


@pytest.mark.parametrize("name", MODELS)
def test_smoothness_leaves_one_derivative_for_the_gradient(name: str) -> None:
    options = MODELS[name]
    network = build_network(options, 2, 2, seeded(0))
    if isinstance(options, MLPOptions):
        assert network.smoothness is None
    else:
        orders = [options.order] if isinstance(options.order, int) else options.order
        assert network.smoothness == min(orders) - 2


# --- initialisation -----------------------------------------------------------------------------
def test_variance_before_tanh() -> None:
    """``E tanh(sqrt(v) g)^2 = 1/3`` for a normal ``g``, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = weights / weights.sum()
    found = weights @ np.tanh(math.sqrt(VARIANCE_BEFORE_TANH) * nodes) ** 2
    assert found == pytest.approx(UNIFORM_VARIANCE, abs=2e-5)


def mean_squares(network: Network, x: Tensor) -> list[float]:
    """Mean square of every layer's outputs: their variance over random weights and inputs."""
    spec, z, found = JetSpec.value_only(1), x[None], []
    with torch.no_grad():
        for layer in network.chain:
            z = layer(z, spec)
            found.append(float(z.square().mean()))
    return found


@pytest.mark.parametrize("depth", [1, 2, 8])  # all layers of each are looked at
@pytest.mark.parametrize("squash", ["tanh", "none"])
@pytest.mark.parametrize(("order", "intervals"), [(2, 4), (4, 4), (4, 32), (6, 8), (8, 4)])
def test_variance_survives_depth(squash: str, order: int, intervals: int, depth: int) -> None:
    """Every layer's outputs are as spread as its successor expects."""
    expected = VARIANCE_BEFORE_TANH if squash == "tanh" else UNIFORM_VARIANCE
    options = KANOptions(
        width=24,
        hidden_layers=depth - 1,
        order=order,
        intervals=intervals,
        squash=squash,  # type: ignore[arg-type]
    )
    runs = [
        mean_squares(build_network(options, 24, 24, seeded(seed)), points(200, 24, seed))
        for seed in range(4)
    ]
    found = np.mean(runs, 0)
    assert len(found) == depth
    assert (found > expected / 2).all() and (found < expected * 2).all()


@pytest.mark.parametrize("width", [2, 8])
@pytest.mark.parametrize("intervals", [4, 32])
def test_start_without_squash_stays_finite(width: int, intervals: int) -> None:
    """Values leave the knots, where a random polynomial of degree 5 would explode."""
    options = KANOptions(width=width, hidden_layers=7, squash="none", intervals=intervals)
    for seed in range(10):
        network = build_network(options, 2, 1, seeded(seed))
        assert max(mean_squares(network, points(100, 2, seed))) < 100.0


@pytest.mark.parametrize("activation", ["tanh", "silu", "gelu", "relu"])
def test_activation_gain(activation: str) -> None:
    nodes, weights = np.polynomial.hermite_e.hermegauss(180)
    x = torch.from_numpy(nodes)
    sigma = FUNCTIONS[activation](x, 0)[0].numpy()
    mean_square = weights @ sigma**2 / weights.sum()
    assert 1 / math.sqrt(mean_square) == pytest.approx(ACTIVATION_GAIN[activation], abs=1e-4)


@pytest.mark.parametrize("depth", range(1, 9))
@pytest.mark.parametrize("activation", ["tanh", "silu", "gelu", "relu"])
def test_variance_of_plain_networks_survives_depth(depth: int, activation: str) -> None:
    options = MLPOptions(width=96, hidden_layers=depth - 1, activation=activation)  # type: ignore[arg-type]
    x = points(300, 96) * math.sqrt(3)  # variance one
    runs = [mean_squares(build_network(options, 96, 96, seeded(seed)), x) for seed in range(4)]
    found = np.mean(runs, 0)
    assert (found > 0.5).all() and (found < 2.0).all()


def test_sine_network_starts_as_siren() -> None:
    """``omega z`` has variance one in front of every sine but the first (arXiv 2006.09661)."""
    options = MLPOptions(width=96, hidden_layers=7, activation="sin", frequency=30.0)
    found = mean_squares(build_network(options, 96, 96, seeded(0)), points(300, 96))
    assert all(0.5 < 30.0**2 * value < 2.0 for value in found)


@pytest.mark.parametrize("knots", ["uniform", "free", "ragged"])
@pytest.mark.parametrize("base", ["none", "silu"])
def test_multichannel_starts_as_the_same_function(knots: str, base: str) -> None:
    shape: dict[str, Any] = {"width": 5}
    if knots == "ragged":
        shape = {"widths": (2, 3, 2), "breakpoints": RAGGED}
    shape |= {"knots": "free" if knots == "free" else "uniform", "base": base}
    twins = [
        build_network(options(order=5, **shape), 2, 2, seeded(4))
        for options in (KANOptions, MultichannelOptions)
    ]
    x, spec = points(30, 2), full_spec(2, 3)
    assert_components(jet_of(twins[1], x, spec), jet_of(twins[0], x, spec), 1e-9)


def test_start_depends_on_the_seed_alone() -> None:
    options = MODELS["kan base free"]
    a, b, c = (build_network(options, 2, 2, seeded(s)).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["layers.0.coefficients"], c["layers.0.coefficients"])


# --- options --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (KANOptions(widths=(3, 4, 2)), "needs 2 input channels first and 2 outputs last"),
        (KANOptions(widths=(2,)), "model.widths"),
        (KANOptions(order=(4, 5, 6)), "model.order: found 3 values, the network has 2 layers"),
        (KANOptions(intervals=(4,)), "model.intervals: found 1 values"),
        (KANOptions(width=3, breakpoints=RAGGED[:1]), r"found \[2\] channels per layer"),
        (KANOptions(width=1, breakpoints=(RAGGED[0], ((0.0, 0.0),))), "repeated"),
        (
            KANOptions(width=1, breakpoints=(RAGGED[0], ((-1.0, 2.0),))),
            r"model.breakpoints.1.0: found knots from -1 to 2, allowed: from -1 to 1",
        ),
    ],
)
def test_options_that_do_not_fit(options: ModelOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_network(options, 2, 2, seeded(0))
    assert "\n" not in str(caught.value)


def test_options_shape_the_network() -> None:
    network = build_network(
        KANOptions(width=5, hidden_layers=2, intervals=(2, 3, 4)), 3, 2, seeded(0)
    )
    assert isinstance(network, KAN)
    assert network.widths == (3, 5, 5, 2)
    assert [k.n_intervals for k in network.knots] == [(2,) * 3, (3,) * 5, (4,) * 5]
    assert [layer.settings.squash for layer in network.knot_layers] == [None, "tanh", "tanh"]
    finer = build_network(
        KANOptions(width=5), 3, 2, seeded(0), finer=lambda knots: tuple(k.refined() for k in knots)
    )
    assert isinstance(finer, KAN)
    assert finer.knots[0].n_intervals == (8,) * 3
    assert isinstance(finer.layers[0], KnotLayer)

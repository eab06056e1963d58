"""Conditions: zero for a field that satisfies them and for no other; exact variants; refusals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_domains import Disc
from torch import Tensor

from kanpinn.conditions import (
    Condition,
    Dirichlet,
    FluxJump,
    Initial,
    Jump,
    Mean,
    Neumann,
    Periodic,
    Robin,
    evaluate_value,
)
from kanpinn.errors import ConfigError, KanpinnError, ProblemError
from kanpinn.geometry import Box, Domain
from kanpinn.jets import JetSpec
from kanpinn.models import (
    KAN,
    Abs,
    Asinh,
    Coordinate,
    FieldNetwork,
    Formula,
    Inputs,
    KANOptions,
    OutputMap,
    Step,
    build_network,
)
from kanpinn.models.inputs import AnyInputMap
from kanpinn.models.inputs import Periodic as PeriodicInput
from kanpinn.problem import Problem, Scaling, build_system
from kanpinn.residuals import Coordinates, Site, System
from kanpinn.sampling import SamplingOptions, sample, stream
from kanpinn.training import LevenbergMarquardtPhase, MultilevelRun, RunOptions, TrainingOptions
from kanpinn.training.block_data import BlockData, residual_rows

LINE = Box((-1.0,), (1.0,))
SQUARE = Box((-1.0, -2.0), (1.0, 1.0))
CUT = Box((-1.0, -1.0), (1.0, 1.0), interfaces={"x": (0.0,)})
STRIP = Box((-1.0, 0.0), (1.0, 2.0), names=("x", "t"), time="t")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinates_of(domain: Domain) -> Coordinates:
    return Coordinates(tuple(domain.names), tuple(domain.spatial_axes))


def field_from(formula: str, domain: Box) -> System:
    """A system whose field ``u`` is an expression: the network's share is multiplied by zero."""
    inputs = Inputs.coordinates(domain.names, tuple(zip(domain.lower, domain.upper, strict=True)))
    network = build_network(KANOptions(width=2, order=6), domain.dimension, 1, seeded())
    part = FieldNetwork(("u",), inputs, network, (OutputMap(formula, 0.0),))
    return System({"main": part}, coordinates_of(domain))


def kinked(slope: float, kink: float, lift: str = "0.0") -> System:
    """``u = lift + slope x + kink |x|`` on CUT, the kink from an input map: sides matter."""
    bounds = tuple(zip(CUT.lower, CUT.upper, strict=True))
    inputs = Inputs(CUT.names, bounds, (Coordinate(of="x"), Abs(of="x")))
    network = build_network(KANOptions(hidden_layers=0, order=4), 2, 1, seeded())
    assert isinstance(network, KAN)
    (layer,) = network.knot_layers
    line = layer.knots.greville().view(2, -1)  # coefficients of x and of 2|x| - 1
    with torch.no_grad():
        layer.coefficients.copy_((line * torch.tensor([[slope], [kink / 2]])).view(1, -1))
    part = FieldNetwork(("u",), inputs, network, (OutputMap(f"{lift} + {kink / 2!r}"),))
    return System({"main": part}, coordinates_of(CUT))


def rows_of(condition: Condition, domain: Box, system: System) -> Tensor:
    block = condition.block(domain)
    assert block.weight == condition.weight
    points = sample(block.region, block.points or 64, "sobol", stream(3))
    data = BlockData(block, points, system, chunk=None)
    return residual_rows(data, system)


def largest(condition: Condition, domain: Box, system: System) -> float:
    return float(rows_of(condition, domain, system).abs().max())


def on_x(site: Site) -> Tensor:
    result: Tensor = torch.sin(site.x) * site.y
    return result


# condition, domain, formulas that satisfy it, formulas that do not
CASES: dict[str, tuple[Condition, Box, Sequence[str], Sequence[str]]] = {
    "dirichlet zero": (
        Dirichlet(),
        SQUARE,
        ["(x**2 - 1) * (y + 2) * (y - 1)", "0.0 * x"],
        ["(x - 1) * (y + 2) * (y - 1)", "x"],
    ),
    "dirichlet formula": (Dirichlet(value="x*y**2"), SQUARE, ["x*y**2"], ["x*y"]),
    "dirichlet function": (Dirichlet(value=on_x), SQUARE, ["sin(x)*y"], ["sin(x)"]),
    "dirichlet on a face": (
        Dirichlet(value=2.0, on="x.upper"),
        SQUARE,
        ["2*x**3", "1 + x"],
        ["2*x + y", "2*y"],
    ),
    "dirichlet ends of a line": (Dirichlet(value=1.0), LINE, ["x**2"], ["x"]),
    "neumann outward": (
        Neumann(value=2.0),
        SQUARE,
        # slopes 2 outwards at x = -1, 1 and at y = -2, 1
        ["x**2 + (y + 0.5)**2 * 2/3"],
        ["2*x + 2*y", "x**2 - y**2"],
    ),
    "neumann on lower face": (Neumann(value="-y", on="x.lower"), SQUARE, ["x*y"], ["-x*y"]),
    "neumann ends": (Neumann(value=2.0), LINE, ["x**2"], ["2*x"]),
    "robin": (
        Robin(alpha=2.0, beta="1 + y**2", value="3*y**2 + 1", on="x.upper"),
        SQUARE,
        ["y**2 + x - 1"],
        ["y**2 - x + 1", "y**2 + 2*x - 2"],
    ),
    "robin flips with the normal": (Robin(value=0.0), LINE, ["exp(-abs(x))"], ["exp(x)"]),
    "periodic": (
        Periodic(),
        LINE,
        ["sin(pi*x)", "cos(2*pi*x) + (x**2 - 1)**2"],
        ["x**2", "x", "sin(pi*x/2)"],
    ),
    "periodic values alone": (Periodic(order=0), LINE, ["x**2"], ["x**3"]),
    "periodic third order": (
        Periodic(order=3),
        LINE,
        ["sin(pi*x)", "(x**2 - 1)**4"],
        ["(x**2 - 1)**2 * x", "(x**2 - 1)**3"],
    ),
    "periodic in y": (
        Periodic(on="y.periodic"),
        SQUARE,
        ["x*sin(2*pi/3*(y + 2))"],
        ["sin(pi*x)*y"],
    ),
    "initial": (Initial(value="sin(pi*x)"), STRIP, ["sin(pi*x)*exp(t)"], ["sin(pi*x) + 1"]),
    "initial rate": (
        Initial(value="x", derivative=1),
        STRIP,
        ["x*t + cos(x)", "x*sin(t)"],
        ["x", "x*t*2"],
    ),
    "final": (Dirichlet(value="x", on="final"), STRIP, ["x*t/2"], ["x*t"]),
    "jump": (Jump(value="where(y > 0, 0, 0)", on="x=0"), CUT, ["x + y"], []),
    "mean": (Mean(value=0.25, points=4096), SQUARE, ["0.25 + 0*x", "0.25 + x"], ["0.4 + x*y"]),
    "mean on a face": (Mean(value=1.0, on="x.upper"), SQUARE, ["x**5"], ["x + 1"]),
    "mean of two ends": (Mean(value=1.0, on="boundary"), LINE, ["1 + x", "x**2"], ["x"]),
}


@pytest.mark.parametrize("name", CASES)
def test_residual_vanishes_for_the_right_fields_alone(name: str) -> None:
    condition, domain, right, wrong = CASES[name]
    # A mean over Sobol points is one over the domain up to their discrepancy.
    tolerance = 2e-3 if isinstance(condition, Mean) else 1e-12
    for formula in right:
        assert largest(condition, domain, field_from(formula, domain)) <= tolerance, formula
    for formula in wrong:
        assert largest(condition, domain, field_from(formula, domain)) > 0.1, formula


def test_mean_is_one_row() -> None:
    rows = rows_of(Mean(value=0.0, points=512), SQUARE, field_from("x + 2", SQUARE))
    assert rows.shape == (1, 1)
    assert float(rows) == pytest.approx(2.0, abs=1e-2)
    assert rows_of(Mean(on="boundary"), LINE, field_from("x", LINE)).shape == (1, 1)


def test_periodic_rows_have_a_column_per_derivative() -> None:
    assert rows_of(Periodic(order=2), LINE, field_from("x", LINE)).shape == (1, 3)


# --- interfaces -----------------------------------------------------------------------------------
@pytest.mark.parametrize("kink", [0.0, 1.5])
def test_jump_of_values(kink: float) -> None:
    """Continuous fields have none, whatever their kink."""
    system = kinked(2.0, kink)
    assert largest(Jump(on="x=0"), CUT, system) <= 1e-12
    assert largest(Jump(on="x=0", value=0.7), CUT, system) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("slope", "kink", "coefficient", "value"),
    [
        (2.0, 0.0, 1.0, 0.0),
        (0.0, 1.5, 1.0, 3.0),  # 1.5 on the right less -1.5 on the left
        (1.5, 0.5, "where(side < 0, 1.0, 0.5)", 0.0),  # slopes 1 left, 2 right
        (1.5, 0.5, lambda p: torch.where(p.side < 0, 1.0, 0.5), 0.0),
        (1.0, 0.0, "where(side < 0, 1.0, 3.0)", 2.0),
        (1.0, 0.0, "where(side < 0, y, 3*y)", "2*y"),
    ],
)
def test_flux_jump_is_one_sided(slope: float, kink: float, coefficient: Any, value: Any) -> None:
    system = kinked(slope, kink)
    right = FluxJump(on="x=0", coefficient=coefficient, value=value)
    assert largest(right, CUT, system) <= 1e-12
    assert largest(right, CUT, kinked(slope, kink + 0.4)) > 0.1


def test_flux_jump_along_the_interface_of_a_jumping_field() -> None:
    """``where(side...)`` in the value, evaluated on the plus side."""
    condition = FluxJump(on="x=0", value="where(side > 0, 3.0, 99.0)")
    assert largest(condition, CUT, kinked(0.0, 1.5)) <= 1e-12


class Stepped(Problem):
    """``u'' = 0`` on either side of ``x = 0.25``, where u and its flux jump.

    ``u = 0`` at -1 and ``u = 1 + 3/4 slope`` at 1, so that ``u = 0`` left of the interface and
    ``1 + slope (x - 1/4)`` right of it.
    """

    domain = Box((-1.0,), (1.0,), interfaces={"x": (0.25,)})

    def __init__(self, inputs: Sequence[str | AnyInputMap], slope: float) -> None:
        self.inputs, self.slope = inputs, slope
        self.conditions = (
            Dirichlet(on="x.lower"),
            Dirichlet(on="x.upper", value=1.0 + 0.75 * slope),
            Jump(on="x=0.25", value=1.0),
            FluxJump(on="x=0.25", value=slope),
        )

    def residual(self, p: Site) -> Tensor:
        return p.u.xx

    def reference(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        right = 1.0 + self.slope * (x[:, 0] - 0.25)
        return np.where(x[:, 0] < 0.25, 0.0, right)


@pytest.mark.parametrize(
    ("inputs", "slope"),
    [
        (("x", Step(of="x", at=0.25)), 0.0),
        (("x", Formula(formula="sign(x - 0.25)", range=(-1.0, 1.0))), 0.0),
        (("x", Formula(formula="where(x < 0.25, -1, 1)", range=(-1.0, 1.0))), 0.0),
        (("x", Abs(of="x", at=0.25), Step(of="x", at=0.25)), 2.0),
        (("x", Formula(formula="where(x < 0.25, 0, x)", range=(-1.0, 1.0))), 2.0),
    ],
)
def test_jumps_of_value_and_flux_are_learnt(
    inputs: Sequence[str | AnyInputMap], slope: float
) -> None:
    model = KANOptions(width=3, order=5, intervals=2)
    training = TrainingOptions(phases=(LevenbergMarquardtPhase(steps=25),), log_every=5)
    sampling = SamplingOptions(interior=100, held_out=50)
    run = MultilevelRun(Stepped(inputs, slope), RunOptions(model, training, sampling, seed=1))
    state = run.run()
    best = min(row["linf"] for row in state.history)  # on a grid with a point on the interface
    assert best <= 1e-3


# --- values ---------------------------------------------------------------------------------------
def site_of(domain: Box, region: str, n: int = 5) -> Site:
    (points,) = sample(domain.region(region), n, "sobol", stream(1))
    return Site(points, {}, coordinates_of(domain))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(2, 2.0), (-0.5, -0.5), ("3*x - y", lambda p: 3 * p.x - p.y), ("1 + 1", 2.0), (on_x, on_x)],
)
def test_values_are_numbers_expressions_or_functions(value: Any, expected: Any) -> None:
    site = site_of(SQUARE, "interior")
    found = evaluate_value(value, site)
    exact = expected(site) if callable(expected) else expected
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(exact), check_dtype=False)


def test_a_function_gives_one_number_per_point() -> None:
    with pytest.raises(ProblemError, match=r"shape \(5, 1\), allowed: one number per point"):
        evaluate_value(lambda p: p.points.x[:, :1], site_of(SQUARE, "interior"))


# --- exact variants -------------------------------------------------------------------------------
def problem(
    domain: Box,
    conditions: Sequence[Condition],
    inputs: Sequence[str | AnyInputMap] | None = None,
    scales: Mapping[str, Scaling] | None = None,
    fields: tuple[str, ...] = ("u",),
) -> Problem:
    class Made(Problem):
        def residual(self, p: Site) -> Tensor:
            return torch.stack([p.fields[name].laplacian for name in self.fields], -1)

    made = Made()
    made.domain, made.conditions, made.inputs, made.fields = domain, conditions, inputs, fields
    made.scales = scales or {}
    return made


def random_system(made: Problem, seed: int = 2) -> System:
    return build_system(made, KANOptions(width=3, order=6), seeded(seed))


@pytest.mark.parametrize(
    "conditions",
    [
        [Dirichlet(value="x**2 - y", exact=True)],
        [Dirichlet(value=-1.5, on="x.lower", exact=True)],
        [
            Dirichlet(value="y**2", on="x.lower", exact=True),
            Dirichlet(value="x**2", on="y.upper", exact=True),
        ],
        [Dirichlet(value=1.0, on="x.upper", exact=True), Neumann(value=0.0, on="y.upper")],
    ],
)
def test_exact_values_hold_before_training(conditions: list[Condition]) -> None:
    made = problem(SQUARE, conditions, scales={"u": Scaling(0.0, 5.0)})
    system = random_system(made)
    for condition in conditions:
        if condition.exact:
            assert largest(condition, SQUARE, system) <= 1e-13
        else:
            assert largest(condition, SQUARE, system) > 1e-3
    soft = [block.name for block in made.blocks()]
    assert soft == ["equation", *(c.label for c in conditions if not c.exact)]


def test_exact_initial_and_boundary_values() -> None:
    """Burgers' conditions: ``-sin(pi x)`` at first, zero at the ends."""
    conditions: list[Condition] = [
        Initial(value="-sin(pi*x)", exact=True),
        Dirichlet(value=0.0, exact=True),
    ]
    system = random_system(problem(STRIP, conditions))
    for condition in conditions:
        assert largest(condition, STRIP, system) <= 1e-14


def test_exact_conditions_of_two_fields() -> None:
    conditions: list[Condition] = [
        Dirichlet(value="x", exact=True),
        Dirichlet(field="v", value="y", on="y.lower", exact=True),
        Dirichlet(field="v", value=0.0, on="x.upper"),
    ]
    system = random_system(problem(SQUARE, conditions, fields=("u", "v")))
    assert [largest(c, SQUARE, system) <= 1e-13 for c in conditions] == [True, True, False]


def test_without_faces_the_scaling_is_the_output_map() -> None:
    made = problem(SQUARE, [], scales={"u": Scaling(3.0, 0.5)})
    assert made.output_map("u") == OutputMap("3.0", "0.5")


@pytest.mark.parametrize("harmonics", [1, 3])
def test_exact_periodicity_in_all_derivatives(harmonics: int) -> None:
    condition = Periodic(exact=True, harmonics=harmonics)
    system = random_system(problem(STRIP, [condition]))
    assert system.parts["main"].inputs.n_channels == 2 * harmonics + 1
    assert largest(Periodic(order=2), STRIP, system) <= 1e-11
    assert largest(Periodic(order=4), STRIP, system) <= 1e-8  # of derivatives of size 1e5
    assert largest(Periodic(on="t.periodic"), STRIP, system) > 1e-3


def test_exact_periodicity_replaces_the_coordinate() -> None:
    condition = Periodic(exact=True)
    channel = PeriodicInput(of="x")
    made = problem(STRIP, [condition])
    assert made.input_maps(None).maps == (channel, Coordinate(of="t"))
    graded = Asinh(of="x", scale=0.1)
    assert made.input_maps(["t", graded, "x"]).maps == (Coordinate(of="t"), channel)
    assert made.input_maps(["t"]).maps == (Coordinate(of="t"), channel)
    own = PeriodicInput(of="x", harmonics=4)
    assert made.input_maps(["x", "t", own]).maps == (own, Coordinate(of="t"))


def test_the_configs_inputs_come_before_the_problems() -> None:
    made = problem(STRIP, [], inputs=["x"])
    assert made.input_maps(None).maps == (Coordinate(of="x"),)
    assert made.input_maps(["t"]).maps == (Coordinate(of="t"),)
    with pytest.raises(ConfigError, match="coordinate 'y' is unknown; the problem has x, t"):
        made.input_maps(["y"])


# --- refusals -------------------------------------------------------------------------------------
EXACT_KINDS = "Dirichlet, Initial and Periodic ones on a box. Use exact=False with a weight"
REFUSALS: dict[str, tuple[Box, Sequence[Condition], str]] = {
    "exact neumann": (SQUARE, [Neumann(exact=True)], EXACT_KINDS),
    "exact robin": (SQUARE, [Robin(exact=True)], EXACT_KINDS),
    "exact jump": (CUT, [Jump(on="x=0", exact=True)], EXACT_KINDS),
    "exact flux jump": (CUT, [FluxJump(on="x=0", exact=True)], EXACT_KINDS),
    "exact mean": (SQUARE, [Mean(exact=True)], EXACT_KINDS),
    "exact rate": (STRIP, [Initial(derivative=1, exact=True)], EXACT_KINDS),
    "exact function": (
        SQUARE,
        [Dirichlet(value=on_x, exact=True)],
        "dirichlet u on boundary: an exact condition needs its value as a number or an expression",
    ),
    "exact inside": (
        SQUARE,
        [Dirichlet(on="interior", exact=True)],
        "dirichlet u on interior: an exact condition needs faces",
    ),
    "exact periodic on a face": (
        LINE,
        [Periodic(on="x.lower", exact=True)],
        "found region 'x.lower', allowed: a coordinate's name",
    ),
    "two exact values": (
        SQUARE,
        [Dirichlet(exact=True), Dirichlet(on="y.lower", exact=True)],
        "face y.lower has two exact conditions",
    ),
    "exact expression of the side": (
        SQUARE,
        [Dirichlet(value="side", exact=True)],
        "unknown name 'side'",
    ),
    "unknown field": (SQUARE, [Dirichlet(field="v", exact=True)], "unknown field, allowed: u"),
    "unknown soft field": (SQUARE, [Neumann(field="x")], "unknown field, allowed: u"),
    "unknown region": (SQUARE, [Dirichlet(on="left")], "unknown region 'left'"),
    "initial without time": (SQUARE, [Initial()], "unknown region 'initial'"),
    "periodic on a face": (LINE, [Periodic(on="x.lower")], "joins 1"),
    "dirichlet on a pair": (LINE, [Dirichlet(on="x.periodic")], "joins 2"),
    "jump on a face": (CUT, [Jump(on="x.lower")], "joins 1"),
    "neumann inside": (SQUARE, [Neumann(on="interior")], "this region has no normal"),
    "unknown name": (SQUARE, [Dirichlet(value="x + q")], "unknown name 'q'"),
    "wrong value": (SQUARE, [Dirichlet(value=lambda p: p.points.x)], "one number per point"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_one_line(name: str) -> None:
    domain, conditions, message = REFUSALS[name]
    made = problem(domain, conditions)

    def use() -> None:
        system = random_system(made)
        system.parts["main"](torch.zeros(1, domain.dimension, dtype=torch.float64))
        for condition in conditions:
            if not condition.exact:
                largest(condition, domain, system)

    with pytest.raises(KanpinnError) as caught:
        use()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_exact_conditions_need_a_box() -> None:
    made = problem(SQUARE, [Dirichlet(exact=True)])
    made.domain = Disc()
    with pytest.raises(ProblemError, match="exact conditions need a box"):
        made.output_map("u")


def test_labels_tell_conditions_apart() -> None:
    conditions: list[Condition] = [
        Initial(),
        Initial(derivative=1),
        Dirichlet(),
        Dirichlet(on="x.lower"),
        Robin(),
        Neumann(field="v"),
        Periodic(),
    ]
    labels = [condition.label for condition in conditions]
    assert len(set(labels)) == len(labels)
    assert labels[2] == "dirichlet u on boundary"


def test_kinked_field_is_what_it_says() -> None:
    """The oracle of the interface tests itself."""
    part = kinked(2.0, 1.5).parts["main"]
    x = torch.tensor([[-0.5, 0.2], [0.25, -0.9]], dtype=torch.float64)
    with torch.no_grad():
        values = part(x)[:, 0]
    expected = 2 * x[:, 0] + 1.5 * x[:, 0].abs()
    torch.testing.assert_close(values, expected, rtol=1e-13, atol=1e-13)
    spec = JetSpec.closure(2, [(1, 0)])
    at = torch.zeros(2, 2, dtype=torch.float64)
    with torch.no_grad():
        slopes = part.jet(part.prepare(at, spec, torch.tensor([-1, 1]))).data[1, :, 0]
    torch.testing.assert_close(slopes, torch.tensor([0.5, 3.5]).double(), rtol=1e-13, atol=1e-13)
    assert math.isclose(float(slopes[1] - slopes[0]), 3.0)

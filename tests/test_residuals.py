"""Residual blocks: fields by name, the jets a residual needs, systems, scalars, refusals."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from derivative_oracle import nested
from torch import Tensor

from kanpinn.errors import ProblemError
from kanpinn.geometry import Box, FixedPoints, Points
from kanpinn.jets import JetSpec
from kanpinn.models import KANOptions
from kanpinn.problem import Problem, build_system
from kanpinn.residuals import (
    Coordinates,
    Field,
    ResidualBlock,
    Site,
    System,
    evaluate_rows,
    required_jets,
)
from kanpinn.sampling import sample, stream

LINE = Box((0.0,), (2.0,))
SQUARE = Box((-1.0, -2.0), (1.0, 1.0))
STRIP = Box((-1.0, 0.0), (1.0, 2.0), names=("x", "t"), time="t")
PLANE_IN_TIME = Box((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), names=("x", "y", "t"), time="t")
CLOCK = Box((0.0,), (1.0,), names=("t",), time="t")
MANY = Box((0.0,) * 4, (1.0,) * 4)  # x1 .. x4


def system_on(
    domain: Box,
    fields: tuple[str, ...] = ("u",),
    networks: Mapping[str, tuple[str, ...]] | None = None,
    scalars: Mapping[str, float] | None = None,
) -> System:
    problem = Problem()
    problem.domain, problem.fields, problem.networks = domain, fields, networks
    problem.scalars = scalars or {}
    generator = torch.Generator().manual_seed(5)
    return build_system(problem, KANOptions(width=3, order=6), generator)


def block_on(
    domain: Box, residual: Callable[..., Any], region: str = "interior", **more: Any
) -> ResidualBlock:
    return ResidualBlock("equation", domain.region(region), residual, **more)


def rows_of(block: ResidualBlock, system: System, n: int = 9) -> tuple[Tensor, tuple[Points, ...]]:
    points = sample(block.region, n, "sobol", stream(1))
    specs = required_jets(block, system)
    prepared = [
        {name: system.parts[name].prepare(p.x, spec, p.side) for name, spec in specs.items()}
        for p in points
    ]
    return evaluate_rows(block, system, points, prepared), points


# --- fields by name -------------------------------------------------------------------------------
DERIVATIVES: dict[str, tuple[Box, Callable[[Site], Tensor], tuple[int, ...]]] = {
    "value": (STRIP, lambda p: p.u.value, (0, 0)),
    "u.x": (STRIP, lambda p: p.u.x, (1, 0)),
    "u.t": (STRIP, lambda p: p.u.t, (0, 1)),
    "u.xt": (STRIP, lambda p: p.u.xt, (1, 1)),
    "u.tx": (STRIP, lambda p: p.u.tx, (1, 1)),
    "u.xxt": (STRIP, lambda p: p.u.xxt, (2, 1)),
    "u.xxxx": (STRIP, lambda p: p.u.xxxx, (4, 0)),
    "u.xyt": (PLANE_IN_TIME, lambda p: p.u.xyt, (1, 1, 1)),
    "d()": (STRIP, lambda p: p.u.d(), (0, 0)),
    "d(x, t, x)": (STRIP, lambda p: p.u.d("x", "t", "x"), (2, 1)),
    "u.x3": (MANY, lambda p: p.u.x3, (0, 0, 1, 0)),
    "d(x3, x1)": (MANY, lambda p: p.u.d("x3", "x1"), (1, 0, 1, 0)),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_by_name(name: str) -> None:
    domain, residual, index = DERIVATIVES[name]
    system = system_on(domain)
    rows, (points,) = rows_of(block_on(domain, residual), system)
    exact = nested(system.parts["main"], points.x, index)
    torch.testing.assert_close(rows.detach(), exact, rtol=1e-10, atol=1e-10)
    (spec,) = required_jets(block_on(domain, residual), system).values()
    assert spec == JetSpec.closure(domain.dimension, [index])


@pytest.mark.parametrize("domain", [LINE, SQUARE, STRIP, PLANE_IN_TIME])
@pytest.mark.parametrize("beside", [None, "u.xx", "u.x"])
def test_laplacian_is_over_space(domain: Box, beside: str | None) -> None:
    def residual(p: Site) -> Tensor:
        more: Tensor = {"u.xx": p.u.xx, "u.x": p.u.x}[beside] if beside else 0.0 * p.x
        lap: Tensor = p.u.laplacian
        return torch.stack([lap, more], -1)

    def without(p: Site) -> Tensor:
        result: Tensor = p.u.laplacian
        return result

    system = system_on(domain)
    rows, (points,) = rows_of(block_on(domain, residual if beside else without), system)
    squares = [tuple(2 * (a == b) for b in range(domain.dimension)) for a in domain.spatial_axes]
    exact = sum(nested(system.parts["main"], points.x, index)[:, 0] for index in squares)
    torch.testing.assert_close(rows[:, 0].detach(), exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("region", ["boundary", "x.upper", "y.lower"])
def test_normal_derivative(region: str) -> None:
    system = system_on(SQUARE)
    rows, (points,) = rows_of(block_on(SQUARE, lambda p: p.u.normal_derivative, region), system, 40)
    gradient = torch.cat([nested(system.parts["main"], points.x, k) for k in ((1, 0), (0, 1))], -1)
    assert points.normal is not None
    exact = (gradient * points.normal).sum(-1, keepdim=True)
    torch.testing.assert_close(rows.detach(), exact, rtol=1e-10, atol=1e-10)


# --- fields in arithmetic -------------------------------------------------------------------------
A = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
B = torch.tensor([1.5, 0.25, -1.0], dtype=torch.float64)


def field_of(values: Tensor) -> Any:
    return Field("u", lambda which: values, Coordinates(("x",), (0,)), None)


@pytest.mark.parametrize(
    "apply",
    [
        *(operator.add, operator.sub, operator.mul, operator.truediv),
        *(operator.lt, operator.le, operator.gt, operator.ge),
    ],
)
def test_operators_use_values(apply: Callable[[Any, Any], Tensor]) -> None:
    u, v = field_of(A), field_of(B)
    expected = apply(A, B)
    for pair in [(u, v), (A, v), (u, B)]:
        assert torch.equal(apply(*pair), expected)
    assert torch.equal(apply(u, 2.0), apply(A, 2.0))
    assert torch.equal(apply(2.0, u), apply(2.0, A))


def test_other_operators_use_values() -> None:
    u, v = field_of(A), field_of(B)
    assert torch.equal(-u, -A)
    assert torch.equal(abs(u), abs(A))
    assert torch.equal(u**2, A**2)
    assert torch.equal(2.0**u, 2.0**A)
    assert torch.equal(abs(u) ** v, abs(A) ** B)
    assert torch.equal(torch.sin(u), torch.sin(A))
    assert torch.equal(torch.maximum(u, v), torch.maximum(A, B))
    assert torch.equal(torch.where(u > v, u, v), torch.maximum(A, B))
    assert torch.equal(torch.stack([u, v], -1), torch.stack([A, B], -1))
    assert torch.equal(torch.cat((u, v)), torch.cat((A, B)))
    assert torch.equal(torch.add(A, other=u), A + A)


# --- what a residual needs ------------------------------------------------------------------------
SPECS: dict[str, tuple[Box, Callable[[Site], Tensor], JetSpec]] = {
    "value in arithmetic": (SQUARE, lambda p: p.u**2 - p.x, JetSpec.value_only(2)),
    "laplacian summed": (SQUARE, lambda p: p.u.laplacian, JetSpec.closure(2, [], (0, 1))),
    "laplacian and xx": (
        SQUARE,
        lambda p: p.u.laplacian + p.u.xx,
        JetSpec.closure(2, [(2, 0), (0, 2)]),
    ),
    "laplacian and xy": (
        SQUARE,
        lambda p: p.u.laplacian + p.u.xy,
        JetSpec.closure(2, [(1, 1)], (0, 1)),
    ),
    "laplacian below xxx": (
        SQUARE,
        lambda p: p.u.laplacian + p.u.xxx,
        JetSpec.closure(2, [(3, 0), (0, 2)]),
    ),
    "heat in a plane": (
        PLANE_IN_TIME,
        lambda p: p.u.t - p.u.laplacian,
        JetSpec.closure(3, [(0, 0, 1)], (0, 1)),
    ),
    "burgers": (
        STRIP,
        lambda p: p.u.t + p.u * p.u.x - 0.1 * p.u.xx,
        JetSpec.closure(2, [(0, 1), (2, 0)]),
    ),
    "laplacian on a line": (LINE, lambda p: p.u.laplacian, JetSpec.closure(1, [(2,)])),
}


@pytest.mark.parametrize("name", SPECS)
def test_required_jets_are_minimal(name: str) -> None:
    domain, residual, expected = SPECS[name]
    assert required_jets(block_on(domain, residual), system_on(domain)) == {"main": expected}


def test_networks_that_are_not_used_are_left_out() -> None:
    system = system_on(STRIP, ("u", "v"), {"first": ("u",), "second": ("v",)})
    need = required_jets(block_on(STRIP, lambda p: p.u.x - p.v), system)
    assert need == {"first": JetSpec.closure(2, [(1, 0)]), "second": JetSpec.value_only(2)}
    need = required_jets(block_on(STRIP, lambda p: p.v.t), system)
    assert need == {"second": JetSpec.closure(2, [(0, 1)])}


def test_fields_of_one_network_share_its_jet() -> None:
    system = system_on(STRIP, ("u", "v"))
    need = required_jets(block_on(STRIP, lambda p: p.u.x - p.v.t), system)
    assert need == {"main": JetSpec.closure(2, [(1, 0), (0, 1)])}


def test_both_sites_count() -> None:
    block = block_on(STRIP, lambda p, q: p.u.x - q.u.value, "x.periodic")
    assert required_jets(block, system_on(STRIP)) == {"main": JetSpec.closure(2, [(1, 0)])}


# --- systems --------------------------------------------------------------------------------------
def test_fields_come_from_their_networks() -> None:
    networks = {"flow": ("u", "v"), "heat": ("w",)}
    system = system_on(SQUARE, ("u", "v", "w"), networks)
    assert system.field_names == ("u", "v", "w")
    block = block_on(SQUARE, lambda p: torch.stack([p.u.x, p.v.value, p.w.y], -1))
    rows, (points,) = rows_of(block, system)
    flow, heat = system.parts["flow"], system.parts["heat"]
    exact = torch.stack(
        [
            nested(flow, points.x, (1, 0))[:, 0],
            nested(flow, points.x, (0, 0))[:, 1],
            nested(heat, points.x, (0, 1))[:, 0],
        ],
        -1,
    )
    torch.testing.assert_close(rows.detach(), exact, rtol=1e-10, atol=1e-10)
    one = torch.autograd.grad(rows[:, 2].sum(), list(system.parameters()), allow_unused=True)
    named = dict(zip((name for name, _ in system.named_parameters()), one, strict=True))
    for name, gradient in named.items():
        used = gradient is not None and bool(gradient.abs().max() > 0)
        assert used == name.startswith("networks.heat")


def test_scalars_get_gradients() -> None:
    system = system_on(STRIP, scalars={"nu": 0.3, "rate": -2.0})
    start = {name: v.item() for name, v in system.scalars.items()}
    assert start == {"nu": 0.3, "rate": -2.0}
    assert all(v.dtype == torch.float64 for v in system.scalars.values())

    def residual(p: Site) -> Tensor:
        result: Tensor = p.u.t - p.scalars.nu**2 * p.u.xx + p.scalars.rate
        return result

    rows, (points,) = rows_of(block_on(STRIP, residual), system)
    second = nested(system.parts["main"], points.x, (2, 0))
    gradients = torch.autograd.grad(rows.sum(), [system.scalars["nu"], system.scalars["rate"]])
    assert float(gradients[0]) == pytest.approx(float(-2 * 0.3 * second.sum()), rel=1e-10)
    assert float(gradients[1]) == pytest.approx(len(points))
    assert system.n_parameters == sum(p.numel() for p in system.parameters())


def test_group_averages_its_points() -> None:
    system = system_on(SQUARE)
    plain, _ = rows_of(block_on(SQUARE, lambda p: p.u.x), system, 12)
    mean, _ = rows_of(block_on(SQUARE, lambda p: p.u.x, group=4), system, 12)
    assert mean.shape == (3, 1)
    torch.testing.assert_close(mean, plain.view(3, 4, 1).mean(1), rtol=1e-14, atol=1e-14)


def test_columns_of_data_and_sides() -> None:
    x = torch.tensor([[0.1, 0.2], [0.5, -1.0]], dtype=torch.float64)
    y = torch.tensor([3.0, 4.0], dtype=torch.float64)
    region = FixedPoints(Points(x, data={"y": y}))
    block = ResidualBlock("data", region, lambda p: p.u.value - p.data["y"] + p.side)
    system = system_on(SQUARE)
    rows, _ = rows_of(block, system)
    with torch.no_grad():
        torch.testing.assert_close(rows[:, 0], system.parts["main"](x)[:, 0] - y)


def test_sides_and_normals_of_sites() -> None:
    x = torch.zeros(3, 2, dtype=torch.float64)
    normal, side = torch.ones_like(x), torch.tensor([-1, 0, 1], dtype=torch.int8)
    coordinates = Coordinates(("x", "y"), (0, 1))
    site = Site(Points(x, normal, side), {}, coordinates)
    assert site.normal is normal
    assert torch.equal(site.side, side.double())
    assert torch.equal(Site(Points(x), {}, coordinates).side, torch.zeros(3).double())
    assert torch.equal(site.y, x[:, 1])


# --- refusals -------------------------------------------------------------------------------------
REFUSALS: dict[str, tuple[Box, Callable[..., Any], str]] = {
    "letter": (STRIP, lambda p: p.u.y, "u.y: 'y' is no coordinate; coordinates: x, t"),
    "second letter": (STRIP, lambda p: p.u.xz, "u.xz: 'z' is no coordinate"),
    "misspelt": (STRIP, lambda p: p.u.laplace, "u.laplace: 'l' is no coordinate"),
    "in d": (STRIP, lambda p: p.u.d("x", "q"), "u.d(x, q): 'q' is no coordinate"),
    "order": (STRIP, lambda p: p.u.xxxxx, "u.xxxxx: derivatives are available up to order 4"),
    "order in d": (STRIP, lambda p: p.u.d(*"xxttx"), "up to order 4"),
    "field": (STRIP, lambda p: p.w.x, "'w' is neither field nor coordinate; there are u, x, t"),
    "scalar": (STRIP, lambda p: p.u * p.scalars.nu, "residual 'equation' fails:"),
    "column": (STRIP, lambda p: p.u - p.data["y"], "residual 'equation' fails: KeyError: 'y'"),
    "no normal": (STRIP, lambda p: p.u.normal_derivative, "this region has no normal"),
    "no space": (CLOCK, lambda p: p.u.laplacian, "u.laplacian: there is no space coordinate"),
    "nothing": (STRIP, lambda p: None, "one row per point, found NoneType"),
    "number": (STRIP, lambda p: 1.0, "one row per point, found float"),
    "mean": (STRIP, lambda p: (p.u**2).mean(), "one row per point, found () for 2 points"),
    "transposed": (
        STRIP,
        lambda p: torch.stack([p.u.x, p.u.t, p.u.xx]),
        "one row per point, found (3, 2) for 2 points",
    ),
    "three axes": (STRIP, lambda p: p.u.x[:, None, None], "found (2, 1, 1) for 2 points"),
    "mixed points": (
        STRIP,
        lambda p: p.u.x * p.points.x[:, :1],
        "mixes its points: it returns (n, n)",
    ),
    "a dictionary": (STRIP, lambda p: {"a": p.u.x}, "one row per point, found dict"),
    "arguments": (STRIP, lambda p, q: p.u.x - q.u.x, "residual 'equation' fails: TypeError"),
    "division": (STRIP, lambda p: p.u.x / (1 // 0), "fails: ZeroDivisionError"),
    "index": (STRIP, lambda p: p.points.x[:, 7], "fails: IndexError"),
    "two lines": (STRIP, lambda p: int("one\ntwo"), "fails: ValueError"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_residuals_that_cannot_be_used(name: str) -> None:
    domain, residual, message = REFUSALS[name]
    with pytest.raises(ProblemError) as caught:
        required_jets(block_on(domain, residual), system_on(domain))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_equations_at_two_points_are_no_mixture() -> None:
    """The trace runs at two points, where (n, 2) and (n, n) look the same."""
    block = block_on(STRIP, lambda p: torch.stack([p.u.x, p.u.t], -1))
    assert required_jets(block, system_on(STRIP))["main"].order == 1


@pytest.mark.parametrize(
    ("fields", "networks", "message"),
    [
        (("u", "v"), {"a": ("u",)}, r"networks give the fields \['u'\]"),
        (("u",), {"a": ("u",), "b": ("u",)}, "networks give the fields"),
        (("u", "x"), None, r"\['x'\] name both a field and a coordinate"),
    ],
)
def test_fields_and_networks_must_fit(
    fields: tuple[str, ...], networks: Mapping[str, tuple[str, ...]] | None, message: str
) -> None:
    with pytest.raises(ProblemError, match=message):
        system_on(STRIP, fields, networks)


def test_a_problem_needs_a_residual() -> None:
    problem = Problem()
    problem.domain = STRIP
    (block,) = problem.blocks()
    with pytest.raises(ProblemError, match="Problem defines neither residual"):
        required_jets(block, system_on(STRIP))

"""Jets against nested reverse mode: functions, algebra, directions, summed Laplacians."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from derivative_oracle import (
    all_indices,
    assert_components,
    full_spec,
    nested,
    nested_components,
)
from torch import Tensor

from kanpinn.errors import ProblemError
from kanpinn.jets import FUNCTIONS, MAX_ORDER, Jet, JetSpec

TOLERANCE = 1e-10
RANGES = {"log": (0.2, 3.0), "sqrt": (0.2, 3.0), "asin": (-0.8, 0.8), "acos": (-0.8, 0.8)}
RANGES |= {"tan": (-1.2, 1.2)}


def torch_function(name: str) -> Callable[..., Any]:
    found = getattr(torch, name, None) or getattr(torch.nn.functional, name)
    assert callable(found)
    return found


# --- univariate functions -------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_function_and_derivatives(name: str) -> None:
    lower, upper = RANGES.get(name, (-2.5, 2.5))
    z = torch.linspace(lower, upper, 42, dtype=torch.float64)  # zero is not among them
    exact = nested_components(
        lambda x: torch_function(name)(x[:, 0]), z[:, None], full_spec(1, MAX_ORDER)
    )
    for order in range(MAX_ORDER + 1):
        rows = FUNCTIONS[name](z, order)
        assert len(rows) == order + 1
        assert_components(torch.stack(rows), exact[: order + 1], 1e-12)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_reverse_mode_gives_the_next_derivative(name: str) -> None:
    """The gradient of a residual with fourth derivatives needs the fifth, from autograd."""
    lower, upper = RANGES.get(name, (-2.5, 2.5))
    z = torch.linspace(lower, upper, 42, dtype=torch.float64)[:, None]
    fifth = nested(lambda x: torch_function(name)(x[:, 0]), z, (5,))
    slope = nested(lambda x: FUNCTIONS[name](x[:, 0], 4)[4], z, (1,))
    assert_components(slope[None], fifth[None], TOLERANCE)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_torch_functions_take_jets(name: str) -> None:
    lower, upper = RANGES.get(name, (-2.5, 2.5))
    x = torch.stack([torch.linspace(lower, upper, 20), torch.linspace(0.9, 0.5, 20)], -1).double()
    spec = full_spec(2, 4)

    def function(columns: Sequence[Any]) -> Any:
        return torch_function(name)(columns[0] * columns[1])

    check(function, x, spec)


# --- algebra ----------------------------------------------------------------------------------
Function = Callable[[Sequence[Any]], Any]


def as_jet(function: Function, x: Tensor, spec: JetSpec, directions: Tensor | None = None) -> Jet:
    coordinates = Jet.coordinates(x, spec, directions)
    jet = function([coordinates[:, a] for a in range(x.shape[1])])
    assert isinstance(jet, Jet)
    return jet


def check(function: Function, x: Tensor, spec: JetSpec, directions: Tensor | None = None) -> None:
    found = as_jet(function, x, spec, directions).data
    exact = nested_components(lambda z: function(z.unbind(-1)), x, spec, directions)
    assert_components(found, exact, TOLERANCE)


def sample_points(n: int, d: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + torch.rand(n, d, dtype=torch.float64, generator=generator)


T = torch.linspace(0.4, 2.0, 23, dtype=torch.float64)
ALGEBRA: dict[str, Function] = {
    "sum": lambda c: c[0] + c[1] * c[0],
    "difference": lambda c: c[0] * c[1] - c[1] ** 3,
    "negation": lambda c: -(c[0] * c[1]),
    "plus sign": lambda c: +(c[0] * c[1]),
    "product": lambda c: c[0] * c[1] * (c[0] + 2.0 * c[1]) * c[0],
    "quotient": lambda c: (c[0] + 1.0) / (c[0] * c[1] + 0.5),
    "number": lambda c: (3.0 + c[0] - 1.0) * 2.0 / 5.0 + (1.5 - c[1]) * 4 + c[0],
    "number over": lambda c: 2.0 / (c[0] * c[1] + 0.3),
    "tensor after": lambda c: (c[0] * c[1] + T - T**2) * T / (T + 1.0),
    "tensor plus": lambda c: T + c[0] * c[1],
    "tensor minus": lambda c: T - c[0] * c[1],
    "tensor times": lambda c: T * (c[0] * c[1]),
    "tensor over": lambda c: T / (c[0] + c[1]),
    "tensor to the": lambda c: T ** (c[0] * c[1]),
    "torch.sub": lambda c: torch.sub(T, c[0] * c[1]) + torch.sub(c[0] * c[1], T),
    "torch.div": lambda c: torch.div(T, c[0] * c[1]) + torch.div(c[0] * c[1], T),
    "torch.pow": lambda c: torch.pow(T, c[0] * c[1]) + torch.pow(c[0] * c[1], c[0]),
    "square": lambda c: (c[0] * c[1]) ** 2,
    "cube": lambda c: (c[0] - c[1]) ** 3,
    "inverse square": lambda c: (c[0] * c[1]) ** -2,
    "root": lambda c: (c[0] + c[1]) ** 0.5,
    "power zero": lambda c: c[0] * c[1] ** 0,
    "power of jets": lambda c: c[0] ** (c[1] * c[0]),
    "number to the": lambda c: 2.5 ** (c[0] - c[1]),
    "absolute": lambda c: abs(c[0] * c[1] - 0.6),
    "composition": lambda c: torch.sin(torch.exp(c[0] * c[1]) / torch.cosh(c[0])),
    "deep": lambda c: torch.tanh(torch.sqrt(c[0] + torch.sin(c[1] * c[0]) ** 2) * c[1]),
    "where": lambda c: torch.where(c[0] > c[1], c[0] * c[1], torch.sin(c[1])),
    "where number": lambda c: torch.where(c[0] <= 0.8, 2.0, c[0] * c[1]),
    "where tensor": lambda c: torch.where(T > 1.0, c[0] ** 3, T),
    "where compared with a tensor": lambda c: torch.where(torch.lt(T, c[0]), c[0] * c[1], c[1]),
    "maximum": lambda c: torch.maximum(c[0] * c[1], torch.cos(c[0])),
    "minimum": lambda c: torch.minimum(c[0] * c[1], torch.cos(c[0])),
    "maximum of a tensor": lambda c: torch.maximum(T, c[0] * c[1] + 0.5),
    "minimum with a tensor": lambda c: torch.minimum(c[0] * c[1] + 0.5, T),
}


@pytest.mark.parametrize("name", ALGEBRA)
def test_algebra_of_all_derivatives(name: str) -> None:
    check(ALGEBRA[name], sample_points(23, 2), full_spec(2, MAX_ORDER))


@pytest.mark.parametrize("name", ALGEBRA)
@pytest.mark.parametrize("laplacian", [(0, 1), (0,)])
def test_algebra_with_summed_laplacian(name: str, laplacian: tuple[int, ...]) -> None:
    check(ALGEBRA[name], sample_points(23, 2, 1), JetSpec.closure(2, [(0, 1)], laplacian))


@pytest.mark.parametrize("index", all_indices(3, 4))
def test_minimal_closure_of_every_index(index: tuple[int, ...]) -> None:
    """Every multi-index alone, on the smallest set of components that carries it."""

    def function(c: Sequence[Any]) -> Any:
        return torch.exp(c[0] * c[1]) * torch.sin(c[1] + c[2] ** 2) / (c[2] + c[0])

    spec = JetSpec.closure(3, [index])
    assert spec.order == sum(index)
    below = 1
    for k in index:
        below *= k + 1
    assert spec.n_components == below
    x = sample_points(9, 3)
    check(function, x, spec)
    jet = as_jet(function, x, spec)
    assert torch.equal(jet.component(index), jet.data[spec.position[index]])


def test_whole_powers_are_exact_at_zero() -> None:
    x = torch.tensor([[0.0], [-1.0]], dtype=torch.float64)
    jet = as_jet(lambda c: c[0] ** 2, x, full_spec(1, 4))
    expected = torch.tensor([[0.0, 1.0], [0.0, -2.0], [2.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    assert torch.equal(jet.data, expected.double())


def test_laplacian_is_carried_or_added_up() -> None:
    def function(c: Sequence[Any]) -> Any:
        return torch.sin(c[0]) * c[1] ** 3 * torch.exp(c[2])

    x = sample_points(11, 3)
    summed = as_jet(function, x, JetSpec.closure(3, [], (0, 1, 2)))
    apart = as_jet(function, x, full_spec(3, 2))
    assert summed.spec.n_components == 5
    torch.testing.assert_close(summed.laplacian, apart.laplacian, rtol=1e-13, atol=1e-13)


def test_indexing_keeps_every_component() -> None:
    x = sample_points(7, 2)
    jet = Jet.coordinates(x, full_spec(2, 2)) * 2.0
    assert torch.equal(jet[2:4, 1].data, jet.data[:, 2:4, 1])
    assert torch.equal(jet[torch.tensor([0, 3])].data, jet.data[:, [0, 3]])


def test_comparisons_look_at_values() -> None:
    x = sample_points(23, 2)
    jet = Jet.coordinates(x, full_spec(2, 1))
    a: Any = jet[:, 0]
    b = jet[:, 1]
    for found, expected in [
        (a < b, x[:, 0] < x[:, 1]),
        (a <= 0.7, x[:, 0] <= 0.7),
        (a > T, x[:, 0] > T),
        (torch.ge(T, a), x[:, 0] <= T),
        (torch.lt(T, a), x[:, 0] > T),
    ]:
        assert torch.equal(found, expected)
        assert found.any() and not found.all()


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_extremes_pass_nan_on(name: str) -> None:
    spec = JetSpec.value_only(1)
    nan = Jet(spec, torch.tensor([[float("nan"), 1.0]]))
    one = Jet(spec, torch.tensor([[2.0, float("nan")]]))
    assert torch_function(name)(nan, one).data.isnan().all()


def test_constants_have_no_derivatives() -> None:
    spec = full_spec(2, 3)
    jet = Jet.constant(torch.ones(4, dtype=torch.float64), spec)
    assert torch.equal(jet.value, torch.ones(4, dtype=torch.float64))
    assert not jet.data[1:].any()


def test_other_torch_functions_are_refused() -> None:
    jet: Any = Jet.coordinates(sample_points(3, 1), full_spec(1, 1))[:, 0]
    for call in (
        lambda: torch.cumsum(jet, 0),
        lambda: torch.add(jet, 1.0, alpha=2.0),
        lambda: torch.nn.functional.gelu(jet, approximate="tanh"),
    ):
        with pytest.raises(TypeError, match="not defined for jets"):
            call()


# --- directions ---------------------------------------------------------------------------------
def smooth_of_five(c: Sequence[Any]) -> Any:
    return torch.sin(c[0] * c[1] + c[2]) * torch.exp(c[3] - c[4] * c[0]) + c[4] ** 3 * c[2]


@pytest.mark.parametrize("per_point", [False, True], ids=["fixed", "per point"])
@pytest.mark.parametrize("n_directions", [1, 2, 3])
def test_random_directions(n_directions: int, per_point: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    x = sample_points(6, 5)
    shape = (n_directions, 6, 5) if per_point else (n_directions, 5)
    directions = torch.randn(shape, dtype=torch.float64, generator=generator)
    order = 4 if n_directions < 3 else 3
    check(smooth_of_five, x, full_spec(n_directions, order), directions)
    carried = tuple(range(n_directions))
    check(smooth_of_five, x, JetSpec.closure(n_directions, [], carried), directions)


def test_orthonormal_directions_give_the_laplacian() -> None:
    """In any orthonormal frame, another one at every point, the sum of squares is the same."""
    generator = torch.Generator().manual_seed(6)
    x = sample_points(6, 5)
    frames = torch.linalg.qr(torch.randn(6, 5, 5, dtype=torch.float64, generator=generator)).Q
    spec = JetSpec.closure(5, [], range(5))
    turned = as_jet(smooth_of_five, x, spec, frames.permute(1, 0, 2).contiguous())
    axes = as_jet(smooth_of_five, x, spec)
    torch.testing.assert_close(turned.laplacian, axes.laplacian, rtol=1e-12, atol=1e-12)


# --- specifications -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, ((0,), (1,), (2,), (3,), (4,), (5,))), "order 5; jets carry orders up to 4"),
        ((2, ((0, 0), (1, 0), (1, 1))), "not downward closed"),
        ((2, ((1, 0), (0, 0))), "first component must be the value"),
        ((2, ()), "first component must be the value"),
        ((2, ((0, 0), (1, 0)), (0, 1)), "needs the first derivatives"),
        ((2, ((0, 0, 0),)), "2 directions"),
        ((1, ((0,), (1,), (1,))), "repeated"),
    ],
)
def test_bad_specifications(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ProblemError, match=message) as caught:
        JetSpec(*arguments)
    assert "\n" not in str(caught.value)


def test_closure_is_minimal_and_ordered() -> None:
    spec = JetSpec.closure(2, [(2, 1)])
    assert spec.indices == ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (2, 1))
    assert spec.laplacian is None and spec.order == 3
    assert JetSpec.closure(3, [(0, 0, 1)], (0, 1)).indices == (
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
    )
    assert JetSpec.value_only(3).n_components == 1

"""Prolongation as equality of functions, against closed forms, and projection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kanpinn.errors import NestingError
from kanpinn.splines import Knots, SplineBasis, project, prolongation

ORDERS = range(2, 9)
COUNTS = (1, 3, 16, 64)
KINDS = ("uniform", "graded", "front", "random")
REFINEMENTS = ("halved", "tripled", "inserted", "some channels")


def make_knots(order: int, kind: str) -> Knots:
    """Ragged knots; graded to one end or to a front in the middle by a ratio of 1000."""
    rng = np.random.default_rng(order)
    if kind == "uniform":
        return Knots.uniform_grid(order, COUNTS, len(COUNTS))
    rows = []
    for n in COUNTS:
        steps = {
            "graded": np.geomspace(1.0, 1e3, n),
            "front": 10.0 ** (3.0 * np.abs(np.linspace(-1.0, 1.0, n))),
            "random": 10.0 ** rng.uniform(-1.5, 1.5, n),
        }[kind]
        rows.append(-1.0 + 2.0 * np.r_[0.0, np.cumsum(steps)] / steps.sum())
    return Knots.from_breakpoints(order, rows)


def refine(knots: Knots, how: str) -> Knots:
    """Finer knots that contain the given ones."""
    if how == "halved":
        return knots.refined()
    if how == "some channels":
        return knots.refined([channel % 2 == 0 for channel in range(knots.channels)])
    shares = {"tripled": (1 / 3, 2 / 3), "inserted": (0.001, 0.3, 0.9)}[how]
    new = [
        [float(t[j] + s * (t[j + 1] - t[j])) for j in range(0, len(t) - 1) for s in shares]
        for t in knots.breakpoints
    ]
    return knots.inserted(new)


def probes(knots: Knots, fine: Knots, outside: float = 0.0) -> Tensor:
    """Random points, all knots, both ends, and some outside by a share of the fine spacing."""
    rng = np.random.default_rng(3)
    columns = []
    for t in (t.numpy() for t in fine.breakpoints):
        reach = outside * np.array([t[1] - t[0], t[-1] - t[-2]])
        inside = np.r_[rng.uniform(t[0], t[-1], 150), rng.choice(t, 150), t[0], t[-1]]
        columns.append(np.r_[inside, t[0] - reach[0], t[-1] + reach[1]])
    return torch.from_numpy(np.stack(columns, 1))


def functions(knots: Knots, u: Tensor, x: Tensor, derivative: int = 0) -> Tensor:
    """The univariate function of each channel at its points, ``(N, channels)``."""
    terms = SplineBasis(knots).dense(x, derivative)[derivative] * u
    return torch.stack([part.sum(-1) for part in terms.split(list(knots.n_functions), -1)], -1)


def coefficients(knots: Knots, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(5).standard_normal((*shape, knots.n_features)))


@pytest.mark.parametrize("how", REFINEMENTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_prolongation_is_the_same_function(order: int, kind: str, how: str) -> None:
    coarse = make_knots(order, kind)
    fine = refine(coarse, how)
    u = coefficients(coarse)
    u_fine = prolongation(coarse, fine).apply(u)
    x = probes(coarse, fine, outside=1.0)
    before, after = functions(coarse, u, x), functions(fine, u_fine, x)
    scale = before.abs().amax(0)
    inside = (after[:-2] - before[:-2]).abs() / scale
    assert inside.max() < 1e-14
    # One fine spacing outside the end polynomials are still the same.
    assert ((after - before).abs() / scale).max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_carried_over(kind: str) -> None:
    coarse = make_knots(5, kind)
    fine = coarse.refined()
    u = coefficients(coarse)
    u_fine = prolongation(coarse, fine).apply(u)
    x = probes(coarse, fine)
    for m in (1, 2, 3):
        before, after = functions(coarse, u, x, m), functions(fine, u_fine, x, m)
        # Graded knots: derivatives of fine functions are up to 1000 times larger an order.
        tolerance = 1e-12 if kind == "uniform" else 1e-9
        assert ((after - before).abs() / before.abs().amax(0)).max() < tolerance


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_dyadic_rows_are_binomial(order: int, n: int) -> None:
    knots = Knots.uniform_grid(order, n, 1, lower=-0.3, upper=0.4)
    matrix = prolongation(knots, knots.refined()).dense()
    expected = torch.zeros(n + order - 1, 2 * n + order - 1, dtype=torch.float64)
    for i in range(1 - order, n):
        for s in range(order + 1):
            if 1 - order <= 2 * i + s <= 2 * n - 1:
                weight = 2.0 ** (1 - order) * math.comb(order, s)
                expected[i + order - 1, 2 * i + s + order - 1] = weight
    torch.testing.assert_close(matrix, expected, rtol=0, atol=4e-16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [2, 4, 7])
def test_composition(order: int, kind: str) -> None:
    first = make_knots(order, kind)
    second = refine(first, "inserted")
    third = second.refined()
    direct = prolongation(first, third).dense()
    steps = prolongation(first, second).dense() @ prolongation(second, third).dense()
    assert (direct - steps).abs().max() < 1e-14


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_equal_knots_give_the_identity(order: int, kind: str) -> None:
    knots = make_knots(order, kind)
    matrix = prolongation(knots, knots).dense()
    assert torch.equal(matrix, torch.eye(knots.n_features, dtype=torch.float64))


def test_constants_stay_constant() -> None:
    coarse = make_knots(6, "random")
    transfer = prolongation(coarse, refine(coarse, "inserted"))
    ones = torch.ones(coarse.n_features, dtype=torch.float64)
    assert (transfer.apply(ones) - 1.0).abs().max() < 1e-15


def test_apply_and_restrict_are_the_dense_products(device: torch.device) -> None:
    coarse = make_knots(4, "random").to(device=device)
    transfer = prolongation(coarse, coarse.refined())
    matrix = transfer.dense()
    assert matrix.shape == (transfer.n_coarse_features, transfer.n_fine_features)
    u = coefficients(coarse, 2, 3).to(device).requires_grad_()
    fine = transfer.apply(u)
    torch.testing.assert_close(fine, u @ matrix, rtol=1e-13, atol=1e-14)
    assert fine.device.type == device.type
    g = torch.randn(fine.shape, dtype=torch.float64).to(device)
    torch.testing.assert_close(transfer.restrict(g), g @ matrix.T, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(torch.autograd.grad(fine, u, g)[0], transfer.restrict(g))
    assert transfer.apply(u.float()).dtype == torch.float32
    assert transfer.to("cpu").weights.device.type == "cpu"


def test_knots_that_nest_to_round_off() -> None:
    coarse = make_knots(5, "random")
    rng = np.random.default_rng(0)
    moved = []
    for t in coarse.refined().breakpoints:
        shift = 1e-15 * torch.from_numpy(rng.uniform(-1, 1, len(t)))
        shift[0] = shift[-1] = 0.0
        moved.append(t + shift)
    fine = Knots.from_breakpoints(5, moved)
    u = coefficients(coarse)
    u_fine = prolongation(coarse, fine).apply(u)
    x = probes(coarse, fine)
    before = functions(coarse, u, x)
    error = (functions(fine, u_fine, x) - before).abs().amax(0) / before.abs().amax(0)
    # A knot moved by 1e-15 is a share of that in the smallest spacing.
    spacing = torch.stack([t.diff().min() for t in fine.breakpoints])
    assert (error < 1e-14 + 1e-14 / spacing).all()
    with pytest.raises(NestingError, match="do not nest"):
        prolongation(coarse, fine, tolerance=1e-17)


def test_single_precision_knots_nest() -> None:
    coarse = Knots.uniform_grid(4, 7, 2, lower=-0.3, upper=0.4, dtype=torch.float32)
    fine = coarse.refined().refined()
    transfer = prolongation(coarse, Knots.uniform_grid(4, 28, 2, -0.3, 0.4, dtype=torch.float32))
    assert torch.equal(transfer.dense(), prolongation(coarse, fine).dense())


BASE = Knots.uniform_grid(4, 4, 2)


@pytest.mark.parametrize(
    ("fine", "message"),
    [
        (Knots.uniform_grid(5, 8, 2), "orders differ: coarse 4, fine 5"),
        (Knots.uniform_grid(4, 8, 3), "channels differ: coarse 2, fine 3"),
        (Knots.uniform_grid(4, 8, 2, upper=1.5), "ends of channel 0 differ"),
        (Knots.uniform_grid(4, 8, 2, lower=-1.0 - 1e-9), "ends of channel 0 differ"),
        (Knots.uniform_grid(4, [8, 6], 2), "channel 1 do not nest: coarse knot 1 at -0.5"),
        (Knots.uniform_grid(4, 2, 2), "coarse knot 1 at -0.5 is not among the fine knots"),
        (
            Knots.from_breakpoints(4, [BASE.breakpoints[0], [-1, -0.5, 1e-9, 0.5, 1]]),
            r"channel 1 do not nest: coarse knot 2 at 0.0 .*nearest 1e-09",
        ),
    ],
)
def test_knots_that_do_not_nest(fine: Knots, message: str) -> None:
    with pytest.raises(NestingError, match=message):
        prolongation(BASE, fine)


def test_two_coarse_knots_cannot_share_a_fine_one() -> None:
    coarse = Knots.from_breakpoints(3, [[0.0, 0.5, 0.5 + 1e-13, 1.0]])
    with pytest.raises(NestingError, match="coarse knot 2"):
        prolongation(coarse, Knots.from_breakpoints(3, [[0.0, 0.5, 0.75, 1.0]]))


def test_coefficients_of_other_knots_are_refused() -> None:
    transfer = prolongation(BASE, BASE.refined())
    with pytest.raises(NestingError, match="length 13, the coarse knots have 14"):
        transfer.apply(torch.zeros(13))
    with pytest.raises(NestingError, match="length 14, the fine knots have 22"):
        transfer.restrict(torch.zeros(14))
    with pytest.raises(NestingError, match="length 13, the source knots have 14"):
        project(BASE, BASE.refined(), torch.zeros(13))
    with pytest.raises(NestingError, match="2 channels cannot be fitted by 1"):
        project(BASE, Knots.uniform_grid(4, 4, 1), torch.zeros(14))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_projection_is_exact_where_knots_nest(order: int, kind: str) -> None:
    coarse = make_knots(order, kind)
    fine = coarse.refined()
    u = coefficients(coarse, 3)
    found, residual = project(coarse, fine, u)
    assert residual < 1e-14
    x = probes(coarse, fine)[:-2]
    before = functions(coarse, u[1], x)
    error = (functions(fine, found[1], x) - before).abs() / before.abs().amax(0)
    assert error.max() < 1e-12


def test_projection_is_the_best_fit_and_reports_its_residual() -> None:
    source, target = Knots.uniform_grid(5, 9, 2), Knots.uniform_grid(3, [4, 5], 2)
    u = coefficients(source, 2)
    found, residual = project(source, target, u)
    nodes, weights = np.polynomial.legendre.leggauss(400)  # another rule, not aligned with knots
    x = torch.from_numpy(np.stack([nodes, nodes], 1))
    w = torch.from_numpy(weights)
    defect = torch.stack(
        [functions(target, f, x) - functions(source, g, x) for f, g in zip(found, u, strict=True)]
    )
    mean = (defect.square() * w[:, None]).sum(1) / 2.0
    assert residual == pytest.approx(mean.mean().sqrt().item(), rel=1e-4)
    assert residual > 0.01
    # The defect of a least-squares fit is orthogonal to the space.
    basis = SplineBasis(target).dense(x, 0)[0].split(list(target.n_functions), -1)
    for channel, functions_of_channel in enumerate(basis):
        products = (functions_of_channel * (w * defect[0, :, channel])[:, None]).sum(0)
        assert products.abs().max() < 1e-5


def test_projection_onto_other_ends_continues_the_polynomials() -> None:
    source = Knots.uniform_grid(4, 4, 1)
    wider = Knots.from_breakpoints(4, [[-1.2, -0.5, 0.0, 0.5, 1.1]])
    u = coefficients(source)
    found, residual = project(source, wider, u)
    assert residual < 1e-13
    x = torch.linspace(-1.2, 1.1, 50, dtype=torch.float64)[:, None]
    assert (functions(wider, found, x) - functions(source, u, x)).abs().max() < 1e-12

"""The power-ReLU basis: evaluation, change of basis, prolongation, and ill-conditioning."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from kanpinn.errors import ConditioningError, DomainError, KnotError, NestingError
from kanpinn.splines import (
    Knots,
    PowerReluBasis,
    SplineBasis,
    change_of_basis,
    condition_number,
    inverse_change_of_basis,
    relu_prolongation,
    relu_to_spline,
    spline_to_relu,
)
from kanpinn.splines.knots import pad_breakpoints

EPS = torch.finfo(torch.float64).eps
RAGGED = [[-1.0, -0.6, 0.1, 0.4, 1.0], [0.0, 0.3, 1.0], [-2.0, 1.0]]


def draw(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(2).standard_normal(shape))


def points(knots: Knots, n: int = 100) -> Tensor:
    rng = np.random.default_rng(4)
    columns = [np.r_[t, rng.uniform(t[0], t[-1], n - len(t))] for t in knots.breakpoints]
    return torch.from_numpy(np.stack(columns, 1))


@pytest.mark.parametrize("padded", [False, True], ids=["fixed", "padded"])
@pytest.mark.parametrize("order", range(2, 9))
def test_truncated_powers(order: int, padded: bool) -> None:
    knots = Knots.from_breakpoints(order, RAGGED)
    basis = (
        PowerReluBasis.from_padded(order, pad_breakpoints(knots), knots.n_intervals)
        if padded
        else PowerReluBasis(knots)
    )
    x = points(knots)
    values = basis.dense(x, order)
    column = 0
    for channel in range(knots.channels):
        t = knots.extended(channel).numpy()
        for k in range(knots.n_functions[channel]):
            z = np.maximum(x[:, channel].numpy() - t[k], 0.0)
            factor = 1.0
            for m in range(order):
                power = z ** (order - 1 - m) if m < order - 1 else (x[:, channel].numpy() >= t[k])
                np.testing.assert_allclose(values[m, :, column], factor * power, rtol=1e-14)
                factor *= order - 1 - m
            assert (values[order, :, column] == 0.0).all()
            column += 1
    assert column == knots.n_features


@pytest.mark.parametrize("order", [2, 3, 4, 6])
def test_change_of_basis_is_an_identity_of_functions(order: int) -> None:
    knots = Knots.from_breakpoints(order, RAGGED)
    x = points(knots)
    # Outside too: both bases continue their end polynomials.
    x[0], x[1] = torch.tensor([-1.2, -0.2, -2.5]), torch.tensor([1.3, 1.1, 1.5])
    splines = SplineBasis(knots).dense(x, 1)
    powers = PowerReluBasis(knots).dense(x, 1)
    pairs = zip(
        splines.split(list(knots.n_functions), -1),
        powers.split(list(knots.n_functions), -1),
        strict=True,
    )
    for channel, (b, psi) in enumerate(pairs):
        a = change_of_basis(knots, channel)
        assert torch.equal(a, a.triu())
        assert torch.equal(a, a.tril(order))
        for m in (0, 1):
            bound = 10 * EPS * (psi[m].abs() @ a.abs().T).max()
            assert (psi[m] @ a.T - b[m]).abs().max() < bound


@pytest.mark.parametrize("order", range(2, 9))
def test_uniform_change_of_basis_is_a_power_of_the_first_difference(order: int) -> None:
    n, h = 9, 0.25
    knots = Knots.uniform_grid(order, n, 1, lower=0.0, upper=n * h)
    size = n + order - 1
    difference = np.eye(size) - np.eye(size, k=1)
    factorial = np.prod(np.arange(1.0, order))
    expected = np.linalg.matrix_power(difference, order) * h ** (1 - order) / factorial
    np.testing.assert_allclose(change_of_basis(knots, 0), expected, rtol=1e-13)


@pytest.mark.parametrize("order", [2, 4, 8])
def test_inverse_change_of_basis_is_right_in_every_entry(order: int) -> None:
    """Against rational arithmetic, where a solve would lose the digits of ``cond A``."""
    knots = Knots.from_breakpoints(order, [[-1.0, -0.75, -0.5, 0.125, 0.25, 0.5, 0.9375, 1.0]])
    t = [Fraction(x) for x in knots.extended(0).tolist()]
    size = knots.n_features
    inverse = [[Fraction(int(i == j)) for j in range(size)] for i in range(size)]
    exact = [[Fraction((i == j) - (j == i + 1)) for j in range(size)] for i in range(size)]
    for k in range(2, order + 1):  # the recursion of the matrix itself
        below = [*exact[1:], [Fraction(0)] * size]
        exact = [
            [
                a / (t[i + k - 1] - t[i]) - b / (t[i + k] - t[i + 1])
                for a, b in zip(*pair, strict=True)
            ]
            for i, pair in enumerate(zip(exact, below, strict=True))
        ]
    for j in range(size):  # back substitution, column by column
        for i in reversed(range(size)):
            rest = sum((exact[i][k] * inverse[k][j] for k in range(i + 1, size)), Fraction(0))
            inverse[i][j] = (inverse[i][j] - rest) / exact[i][i]
    expected = np.array([[float(x) for x in row] for row in inverse])
    found = inverse_change_of_basis(knots, 0).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize(("order", "n"), [(2, 64), (3, 64), (4, 32), (5, 16), (6, 16), (8, 4)])
def test_conversions_both_ways(order: int, n: int) -> None:
    knots = Knots.uniform_grid(order, [n, max(1, n // 2)], 2)
    u = draw(3, knots.n_features)
    w = spline_to_relu(knots, u)
    x = points(knots, 200)
    spline, relu = SplineBasis(knots).dense(x, 0)[0], PowerReluBasis(knots).dense(x, 0)[0]
    condition = condition_number(knots)
    expected = u @ spline.T
    assert (w @ relu.T - expected).abs().max() < 100 * EPS * condition * expected.abs().max()
    back = relu_to_spline(knots, w)
    assert (back - u).abs().max() < 100 * EPS * condition * u.abs().max()


def test_conversion_transposes_gradients() -> None:
    knots = Knots.from_breakpoints(4, RAGGED)
    u = draw(knots.n_features).requires_grad_()
    g = draw(knots.n_features)
    (found,) = torch.autograd.grad(spline_to_relu(knots, u), u, g)
    parts = g.split(list(knots.n_functions))
    expected = torch.cat([change_of_basis(knots, c) @ part for c, part in enumerate(parts)])
    torch.testing.assert_close(found, expected)


def test_condition_number_is_the_largest_of_the_channels() -> None:
    knots = Knots.from_breakpoints(4, RAGGED)
    expected = [np.linalg.cond(change_of_basis(knots, c).numpy()) for c in range(3)]
    assert condition_number(knots) == pytest.approx(max(expected), rel=1e-10)
    assert np.argmax(expected) == 0
    coarse, fine = (condition_number(Knots.uniform_grid(4, n, 1)) for n in (32, 64))
    assert fine > 8 * coarse


def refinements(knots: Knots) -> list[Knots]:
    middle = [
        [float(0.5 * (t[0] + t[1])), float(t[-2] + 0.3 * (t[-1] - t[-2]))]
        for t in knots.breakpoints
    ]
    return [knots.refined(), knots.inserted(middle), knots]


@pytest.mark.parametrize("kind", ["uniform", "random"])
@pytest.mark.parametrize("n", [2, 16, 64])
@pytest.mark.parametrize("order", [2, 3, 4, 5, 6])
def test_prolongation_is_the_same_function(order: int, n: int, kind: str) -> None:
    if kind == "uniform":
        coarse = Knots.uniform_grid(order, [n, n // 2], 2)
    else:
        steps = np.random.default_rng(order).uniform(0.5, 1.5, n)
        row = np.r_[0.0, np.cumsum(steps)] / steps.sum()
        coarse = Knots.from_breakpoints(order, [2.0 * row - 1.0, row])
    w = spline_to_relu(coarse, draw(2, coarse.n_features))
    x = points(coarse, 300)
    before = w @ PowerReluBasis(coarse).dense(x, 0)[0].T
    bound = 100 * EPS * condition_number(coarse) * before.abs().max()
    for fine in refinements(coarse):
        w_fine = relu_prolongation(coarse, fine).apply(w)
        after = w_fine @ PowerReluBasis(fine).dense(x, 0)[0].T
        assert (after - before).abs().max() < bound


@pytest.mark.parametrize("order", range(2, 9))
def test_prolongation_agrees_with_rational_arithmetic(order: int) -> None:
    knots = Knots.uniform_grid(order, 4, 1)
    w = draw(knots.n_features)
    found = relu_prolongation(knots, knots.refined()).apply(w)
    # Moments sum_m m^j w_m, with the nodes m in coarse spacings, are kept by the halved ones.
    nodes = [Fraction(m) for m in range(order - 1, -1, -1)]
    exact = [Fraction(float(value)) for value in w[:order]]
    for j in range(order):
        before = sum(m**j * value for m, value in zip(nodes, exact, strict=True))
        terms = [
            (m / 2) ** j * Fraction(float(value))
            for m, value in zip(nodes, found[:order], strict=True)
        ]
        assert abs(float(sum(terms) - before)) < 1e-14 * float(sum(abs(term) for term in terms))
    interior = found[order:]
    assert torch.equal(interior[1::2], w[order:])
    assert (interior[::2] == 0.0).all()


def test_prolongation_is_differentiable_and_keeps_its_device(device: torch.device) -> None:
    coarse = Knots.from_breakpoints(4, RAGGED).to(device=device)
    transfer = relu_prolongation(coarse, coarse.refined([True, False, True]))
    w = draw(2, 3, coarse.n_features).to(device).requires_grad_()
    fine = transfer.apply(w)
    assert fine.device.type == device.type
    assert fine.shape == (2, 3, transfer.n_fine_features)
    matrix = transfer.apply(torch.eye(coarse.n_features, dtype=torch.float64, device=device))
    torch.testing.assert_close(fine, w @ matrix)
    g = torch.randn_like(fine)
    torch.testing.assert_close(torch.autograd.grad(fine, w, g)[0], g @ matrix.T)
    # An unrefined channel is carried over as it is.
    assert torch.equal(matrix[7:12, 11:16], torch.eye(5, dtype=torch.float64, device=device))


def test_ill_conditioned_changes_are_refused() -> None:
    knots = Knots.uniform_grid(8, 64, 1)
    w = torch.zeros(knots.n_features, dtype=torch.float64)
    with pytest.raises(ConditioningError, match=r"3\.26e\+12.*exceeds the limit 1\.0e-02"):
        relu_to_spline(knots, w)
    assert relu_to_spline(knots, w, limit=0.1).shape == w.shape
    small = Knots.uniform_grid(6, 16, 1)
    w = torch.zeros(small.n_features, dtype=torch.float64)
    assert relu_to_spline(small, w).shape == w.shape
    with pytest.raises(ConditioningError, match=r"torch\.float32"):
        relu_to_spline(small, w.float())


def test_ill_conditioned_prolongations_are_refused() -> None:
    coarse = Knots.uniform_grid(6, 4, 1)
    steep = coarse.inserted([[-1.0 + 1e-4]])
    with pytest.raises(ConditioningError, match="the prolongation has condition number"):
        relu_prolongation(coarse, steep)
    transfer = relu_prolongation(coarse, coarse.refined())
    w = torch.zeros(coarse.n_features, dtype=torch.float64)
    assert transfer.apply(w).dtype == torch.float64
    with pytest.raises(ConditioningError, match=r"torch\.float32 exceeds"):
        transfer.apply(w.float())
    with pytest.raises(ConditioningError, match=r"torch\.float32 exceeds"):
        relu_prolongation(coarse.to(dtype=torch.float32), coarse.refined().to(dtype=torch.float32))


def test_low_orders_are_carried_in_single_precision() -> None:
    coarse = Knots.uniform_grid(4, 8, 2)
    transfer = relu_prolongation(coarse, coarse.refined())
    w = spline_to_relu(coarse, draw(coarse.n_features))
    torch.testing.assert_close(
        transfer.apply(w.float()).double(), transfer.apply(w), rtol=1e-6, atol=1e-5
    )


def test_what_does_not_fit_is_refused() -> None:
    knots = Knots.uniform_grid(4, 4, 2)
    with pytest.raises(NestingError, match="channel 1 do not nest"):
        relu_prolongation(knots, Knots.uniform_grid(4, [8, 6], 2))
    with pytest.raises(NestingError, match="13 coefficients do not fit"):
        relu_prolongation(knots, knots.refined()).apply(torch.zeros(13))
    with pytest.raises(NestingError, match="13 coefficients do not fit"):
        spline_to_relu(knots, torch.zeros(13))
    with pytest.raises(DomainError, match=r"the basis needs \(N, 2\)"):
        PowerReluBasis(knots).dense(torch.zeros(3, 1, dtype=torch.float64), 0)
    with pytest.raises(KnotError, match="padded breakpoints"):
        PowerReluBasis.from_padded(4, torch.zeros(1, 3), (3,))


@pytest.mark.parametrize("order", [4, 6])
def test_gradients_in_points_and_knots(order: int) -> None:
    padded = torch.tensor([[-1.0, -0.3, 0.5, 1.0], [0.0, 0.4, 1.0, torch.inf]]).double()
    finite = padded.isfinite()
    x = torch.tensor([[-0.5, 0.1], [0.2, 0.55], [0.83, 1.1]], dtype=torch.float64)

    def values(points: Tensor, knots: Tensor) -> Tensor:
        filled = padded.masked_scatter(finite, knots)
        return PowerReluBasis.from_padded(order, filled, (3, 2)).dense(points, 2)

    inputs = (x.requires_grad_(), padded[finite].requires_grad_())
    assert torch.autograd.gradcheck(values, inputs, rtol=1e-5, atol=1e-5)
    assert torch.autograd.gradgradcheck(values, inputs, rtol=1e-4, atol=1e-3)


def test_other_types_and_devices(device: torch.device) -> None:
    knots = Knots.from_breakpoints(4, RAGGED)
    x = points(knots)
    moved = PowerReluBasis(knots).to(device=device)
    torch.testing.assert_close(
        moved.dense(x.to(device), 2).cpu(), PowerReluBasis(knots).dense(x, 2)
    )
    assert moved.to(dtype=torch.float32).dense(x.to(device).float(), 0).dtype == torch.float32

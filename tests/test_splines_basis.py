"""B-spline bases against scipy, with derivatives in the points and in the knots."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from torch import Tensor

from kanpinn.errors import DomainError
from kanpinn.splines import Knots, SplineBasis
from kanpinn.splines.knots import pad_breakpoints

ORDERS = range(2, 9)
COUNTS = (1, 2, 5, 16, 64)
KINDS = ("uniform", "graded", "random")


def make_knots(order: int, kind: str) -> Knots:
    """Ragged knots: 1 to 64 intervals, different ends."""
    rng = np.random.default_rng(order)
    if kind == "uniform":
        return Knots.uniform_grid(order, COUNTS, len(COUNTS))
    rows = []
    for channel, n in enumerate(COUNTS):
        steps = np.geomspace(1.0, 1e3, n) if kind == "graded" else rng.uniform(0.05, 1.0, n)
        rows.append(-1.0 - 0.3 * channel + 2.0 * np.r_[0.0, np.cumsum(steps)] / steps.sum())
    return Knots.from_breakpoints(order, rows)


def make_points(knots: Knots, n: int = 200, outside: float = 0.1) -> Tensor:
    """Random points in each channel, up to a share of the end spacing outside, and all ends."""
    rng = np.random.default_rng(7)
    columns = []
    for breakpoints in knots.breakpoints:
        t = breakpoints.numpy()
        reach = outside * np.array([t[1] - t[0], t[-1] - t[-2]])
        columns.append(np.r_[t[0], t[-1], rng.uniform(t[0] - reach[0], t[-1] + reach[1], n)])
    return torch.from_numpy(np.stack(columns, 1))


def scipy_basis(t: NDArray[np.float64], order: int, x: NDArray[np.float64], m: int) -> Tensor:
    """``d^m b / dx^m`` of all functions, ``(N, n + r - 1)``, end polynomials continued."""
    n = len(t) - order
    if m >= order:
        return torch.zeros(len(x), n, dtype=torch.float64)
    return torch.from_numpy(BSpline(t, np.eye(n), order - 1, extrapolate=True)(x, nu=m))


@pytest.mark.parametrize("padded", [False, True], ids=["fixed", "padded"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_agrees_with_scipy(order: int, kind: str, padded: bool) -> None:
    knots = make_knots(order, kind)
    x = make_points(knots)
    basis = (
        SplineBasis.from_padded(order, pad_breakpoints(knots), knots.n_intervals)
        if padded
        else SplineBasis(knots)
    )
    values = basis.dense(x, 4).split(list(knots.n_functions), -1)
    for channel, found in enumerate(values):
        t = knots.extended(channel).numpy()
        for m in range(5):
            exact = scipy_basis(t, order, x[:, channel].numpy(), m)
            scale = exact.abs().max() if m < order else 1.0
            error = ((found[m] - exact).abs().max() / scale).item()
            assert error < 3e-14, f"channel {channel}, derivative {m}: {error:.1e}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_partition_of_unity_and_its_derivatives(order: int, kind: str) -> None:
    knots = make_knots(order, kind)
    x = make_points(knots)
    _, values = SplineBasis(knots).local(x, order + 1)
    sums = values.sum(-1)
    assert (sums[0] - 1.0).abs().max() < 1e-14
    assert (values[0, :2] >= -1e-15).all()  # the ends; outside, signs change
    for m in range(1, order):
        assert (sums[m].abs() / values[m].abs().amax((0, 2))).max() < 3e-14
    assert (values[order:] == 0.0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_local_names_the_functions_that_are_not_zero(kind: str) -> None:
    knots = make_knots(4, kind)
    x = make_points(knots, outside=0.0)
    first, values = SplineBasis(knots).local(x, 1)
    for channel, breakpoints in enumerate(knots.breakpoints):
        t = breakpoints.numpy()
        interval = np.searchsorted(t, x[:, channel].numpy(), side="right") - 1
        interval = interval.clip(0, len(t) - 2)  # closed at the right end
        np.testing.assert_array_equal(first[:, channel], knots.offsets[channel] + interval)
    assert values.shape == (2, len(x), knots.channels, 4)


@pytest.mark.parametrize("order", [2, 4, 7])
def test_uniform_and_general_evaluation_agree_at_knots(order: int) -> None:
    knots = Knots.uniform_grid(order, 11, 1, lower=-0.7, upper=0.4)
    x = knots.breakpoints[0][:, None]
    general = SplineBasis.from_padded(order, pad_breakpoints(knots), knots.n_intervals)
    smooth = order - 1  # derivatives below that are continuous, so no side is wrong
    found, expected = SplineBasis(knots).dense(x, smooth - 1), general.dense(x, smooth - 1)
    scale = expected.abs().amax((1, 2), keepdim=True)
    assert ((found - expected).abs() / scale).max() < 1e-14


@pytest.mark.parametrize("kind", KINDS)
def test_points_that_are_not_numbers(kind: str) -> None:
    knots = make_knots(4, kind)
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e300, -1e300], dtype=torch.float64)
    x = bad[:, None].expand(-1, knots.channels).clone()
    first, values = SplineBasis(knots).local(x, 1)
    starts = torch.tensor(knots.offsets)
    last = starts + torch.tensor(knots.n_intervals) - 1
    assert ((first >= starts) & (first <= last)).all()
    assert torch.equal(first[[1, 3]], last.expand(2, -1))
    assert torch.equal(first[[2, 4]], starts.expand(2, -1))
    assert values[:, 0].isnan().any(-1).all()  # NaN is passed on, not hidden


@pytest.mark.parametrize("kind", ["uniform", "random"])
def test_nested_autograd_in_the_points(kind: str) -> None:
    knots = make_knots(7, kind)
    x = make_points(knots, 30, outside=0.05).requires_grad_()
    weights = torch.randn(knots.n_features, dtype=torch.float64)
    basis = SplineBasis(knots)
    exact = basis.dense(x.detach(), 5) * weights
    sums = torch.stack([part.sum(-1) for part in exact.split(list(knots.n_functions), -1)], -1)
    value = (basis.dense(x, 0)[0] * weights).sum()
    for m in range(1, 6):
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        error = (gradient - sums[m]).abs().amax(0) / sums[m].abs().amax(0)
        assert error.max() < 1e-13, f"derivative {m}"
        value = gradient.sum()


@pytest.mark.parametrize("kind", ["uniform", "random"])
@pytest.mark.parametrize("derivatives", [0, 2, 3, 5])
def test_reverse_pass_of_every_derivative(kind: str, derivatives: int) -> None:
    knots = make_knots(4, kind)
    x = make_points(knots, 30).requires_grad_()
    basis = SplineBasis(knots)
    _, values = basis.local(x, derivatives)
    _, higher = basis.local(x.detach(), derivatives + 1)
    weights = torch.randn(values.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(values, x, weights, retain_graph=True)
    expected = (weights * higher[1:]).sum((0, 3))
    torch.testing.assert_close(
        gradient, expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item()
    )
    # Several reverse passes at once, as a Jacobian of a system takes them.
    stacked = torch.stack([weights, 2.0 * weights])
    (batch,) = torch.autograd.grad(values, x, stacked, is_grads_batched=True)
    torch.testing.assert_close(batch, torch.stack([gradient, 2.0 * gradient]))


def scipy_functional(
    rows: list[NDArray[np.float64]], order: int, x: Tensor, weights: Tensor
) -> float:
    """``sum weights d^m b / dx^m`` with scipy, exterior knots continuing the end spacing."""
    total, start = 0.0, 0
    steps = np.arange(1, order)
    for channel, t in enumerate(rows):
        extended = np.r_[t[0] - steps[::-1] * (t[1] - t[0]), t, t[-1] + steps * (t[-1] - t[-2])]
        stop = start + len(t) + order - 2
        for m in range(len(weights)):
            exact = scipy_basis(extended, order, x[:, channel].numpy(), m)
            total += float((weights[m, :, start:stop] * exact).sum())
        start = stop
    return total


@pytest.mark.parametrize("m", [0, 1, 2])
@pytest.mark.parametrize("order", [3, 4, 6])
def test_knot_gradients_agree_with_finite_differences(order: int, m: int) -> None:
    rng = np.random.default_rng(order)
    rows = [np.array([-1.0, -0.6, 0.1, 0.4, 1.0]), np.array([-0.5, 0.2, 0.9])]
    padded = torch.full((2, 5), torch.inf, dtype=torch.float64)
    for row, t in zip(padded, rows, strict=True):
        row[: len(t)] = torch.from_numpy(t)
    padded.requires_grad_()
    # Points beside every knot and outside, but none so close that a moved knot crosses it.
    x = torch.from_numpy(np.stack([rng.permutation(np.linspace(-1.13, 1.21, 24)) for _ in rows], 1))
    assert all(abs(x[:, c].numpy()[:, None] - t).min() > 1e-3 for c, t in enumerate(rows))
    weights = torch.zeros(m + 1, len(x), 4 + 2 + 2 * (order - 1), dtype=torch.float64)
    weights[m] = torch.from_numpy(rng.standard_normal(weights.shape[1:]))
    values = SplineBasis.from_padded(order, padded, (4, 2)).dense(x, m)
    (gradient,) = torch.autograd.grad((weights * values).sum(), padded)
    step = 1e-5
    for channel, t in enumerate(rows):
        for j in range(len(t)):
            shifted = []
            for sign in (1.0, -1.0, 2.0, -2.0):
                moved = [row.copy() for row in rows]
                moved[channel][j] += sign * step
                shifted.append(scipy_functional(moved, order, x, weights))
            near, far = shifted[0] - shifted[1], shifted[2] - shifted[3]
            difference = (8.0 * near - far) / (12.0 * step)
            tolerance = 1e-7 * gradient.abs().max().item()
            assert abs(gradient[channel, j].item() - difference) < tolerance
    assert (gradient[1, 3:] == 0.0).all()  # padding takes no part


@pytest.mark.parametrize("derivatives", [0, 2, 3])
def test_second_derivatives_in_points_and_knots(derivatives: int) -> None:
    padded = torch.tensor([[-1.0, -0.3, 0.5, 1.0], [0.0, 0.4, 1.0, torch.inf]], dtype=torch.float64)
    finite = padded.isfinite()
    x = torch.tensor([[-0.5, 0.1], [0.2, 0.55], [0.83, 1.1]], dtype=torch.float64)

    def values(points: Tensor, knots: Tensor) -> Tensor:
        filled = padded.masked_scatter(finite, knots)
        return SplineBasis.from_padded(4, filled, (3, 2)).local(points, derivatives)[1]

    inputs = (x.requires_grad_(), padded[finite].requires_grad_())
    assert torch.autograd.gradcheck(values, inputs, rtol=1e-5, atol=1e-5)
    assert torch.autograd.gradgradcheck(values, inputs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_other_types_and_devices(kind: str, device: torch.device) -> None:
    knots = make_knots(4, kind)
    x = make_points(knots)
    expected = SplineBasis(knots).dense(x, 2)
    moved = SplineBasis(knots).to(device=device).dense(x.to(device), 2).cpu()
    torch.testing.assert_close(
        moved, expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item()
    )
    padded = SplineBasis.from_padded(4, pad_breakpoints(knots), knots.n_intervals)
    torch.testing.assert_close(
        padded.to(device=device).dense(x.to(device), 2).cpu(),
        expected,
        rtol=1e-12,
        atol=1e-12 * expected.abs().max().item(),
    )
    single = SplineBasis(knots).to(dtype=torch.float32, device=device)
    found = single.dense(x.to(device, torch.float32), 0)
    assert found.dtype == torch.float32
    # Rounding of points and knots, of size 1, is large beside the smallest spacings.
    spacing = min(t.diff().min().item() for t in knots.breakpoints)
    assert (found.cpu() - expected[0]).abs().max() < 1e-6 / spacing


@pytest.mark.parametrize(
    "x",
    [torch.zeros(3), torch.zeros(3, 4), torch.zeros(3, 5, dtype=torch.float32)],
    ids=["one axis", "channels", "type"],
)
def test_points_that_do_not_fit(x: Tensor) -> None:
    x = x if x.shape == (3, 5) else x.double()
    with pytest.raises(DomainError, match=r"the basis needs \(N, 5\) and torch.float64"):
        SplineBasis(make_knots(4, "uniform")).local(x, 1)

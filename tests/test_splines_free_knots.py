"""Free knots: order and floor by construction, the inverse, refinement, and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from torch import Tensor

from kanpinn.errors import KnotError
from kanpinn.splines import (
    Knots,
    SplineBasis,
    knots_from_logits,
    logits_from_breakpoints,
    prolongation,
)

FLOOR = 0.1
COUNTS = (5, 2, 8)


def random_logits(spread: float, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    logits = torch.full((len(COUNTS), max(COUNTS)), -torch.inf, dtype=torch.float64)
    for row, n in zip(logits, COUNTS, strict=True):
        row[:n] = torch.from_numpy(spread * rng.standard_normal(n))
    return logits


def to_knots(padded: Tensor, order: int = 4) -> Knots:
    rows = [row[: n + 1] for row, n in zip(padded, COUNTS, strict=True)]
    return Knots.from_breakpoints(order, rows)


def reference(logits: NDArray[np.float64], a: float, b: float, floor: float) -> NDArray[np.float64]:
    """Breakpoints of one channel, written out in numpy."""
    share = np.exp(logits - logits.max())
    spacings = (b - a) * (floor / len(logits) + (1.0 - floor) * share / share.sum())
    t = a + np.r_[0.0, np.cumsum(spacings)]
    t[-1] = b
    return t


@pytest.mark.parametrize("spread", [0.0, 1.0, 300.0])
def test_knots_are_ordered_and_above_the_floor(spread: float) -> None:
    logits = random_logits(spread)
    # Ends with a + (b - a) != b, so that b itself must be set.
    padded = knots_from_logits(logits, -0.7, 0.4, FLOOR)
    assert padded.shape == (3, 9)
    for row, s, n in zip(padded, logits, COUNTS, strict=True):
        assert row[0] == -0.7
        assert row[n] == 0.4
        assert row[n + 1 :].isposinf().all()
        assert (row[: n + 1].diff() > FLOOR / n * 1.1 * (1.0 - 1e-12)).all()
        expected = reference(s[:n].numpy(), -0.7, 0.4, FLOOR)
        np.testing.assert_allclose(row[: n + 1], expected, rtol=0, atol=1e-15)


def test_ends_per_channel() -> None:
    lower = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)
    padded = knots_from_logits(random_logits(1.0), lower, lower + 3.0, FLOOR)
    assert torch.equal(padded[:, :1], lower)
    assert [row[n].item() for row, n in zip(padded, COUNTS, strict=True)] == [2.0, 3.0, 5.0]


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_logits_are_the_inverse(spread: float) -> None:
    logits = random_logits(spread)
    padded = knots_from_logits(logits, -1.0, 1.0, FLOOR)
    found = logits_from_breakpoints(to_knots(padded), FLOOR)
    assert torch.equal(found.isfinite(), logits.isfinite())
    for s, s_found, n in zip(logits, found, COUNTS, strict=True):
        difference = (s_found - s)[:n]
        # A logit far below the others stands for a small difference from the floor.
        assert (difference - difference.mean()).abs().max() < 1e-11
    again = knots_from_logits(found, -1.0, 1.0, FLOOR)
    torch.testing.assert_close(again, padded, rtol=0, atol=1e-15)


@pytest.mark.parametrize("spread", [0.0, 1.0, 40.0, 300.0])
def test_refinement_is_admissible_and_keeps_coarse_knots(spread: float) -> None:
    # At large spreads some intervals sit on the floor, and stay on it level after level.
    padded = knots_from_logits(random_logits(spread), -1.0, 1.0, FLOOR)
    coarse = knots = to_knots(padded)
    for level in range(1, 5):
        fine = knots.refined()
        logits = logits_from_breakpoints(fine, FLOOR)
        assert logits[0, : fine.n_intervals[0]].isfinite().all()
        moved = knots_from_logits(logits, -1.0, 1.0, FLOOR)
        rows = [row[: n + 1] for row, n in zip(moved, fine.n_intervals, strict=True)]
        for row, t in zip(rows, coarse.breakpoints, strict=True):
            tolerance = 1e-15 if level == 1 else 1e-14  # sums of up to 128 spacings
            torch.testing.assert_close(row[:: 2**level], t, rtol=0, atol=tolerance)
        following = Knots.from_breakpoints(4, rows)
        weights = prolongation(knots, following).weights  # nests within its tolerance
        assert weights.isfinite().all()
        knots = following


def test_many_knots_do_not_drift() -> None:
    logits = torch.from_numpy(np.random.default_rng(0).standard_normal((20, 128)))
    padded = knots_from_logits(logits, -1.0, 1.0, FLOOR)
    knots = Knots.from_breakpoints(4, list(padded))
    again = knots_from_logits(logits_from_breakpoints(knots.refined(), FLOOR), -1.0, 1.0, FLOOR)
    torch.testing.assert_close(again[:, ::2], padded, rtol=0, atol=4e-15)


def test_refined_logits_are_the_coarse_ones_twice() -> None:
    logits = random_logits(1.0)
    fine = to_knots(knots_from_logits(logits, -1.0, 1.0, FLOOR)).refined()
    found = logits_from_breakpoints(fine, FLOOR)
    for s, s_fine, n in zip(logits, found, COUNTS, strict=True):
        difference = s_fine[: 2 * n] - s[:n].repeat_interleave(2)
        assert (difference - difference.mean()).abs().max() < 1e-12


def test_single_precision_keeps_coarse_knots() -> None:
    padded = knots_from_logits(random_logits(2.0).float(), -1.0, 1.0, FLOOR)
    coarse = to_knots(padded)
    fine = coarse.refined()
    moved = knots_from_logits(logits_from_breakpoints(fine, FLOOR), -1.0, 1.0, FLOOR)
    assert moved.dtype == torch.float32
    for row, t in zip(moved, coarse.breakpoints, strict=True):
        torch.testing.assert_close(row[: 2 * len(t) - 1 : 2], t, rtol=0, atol=1e-6)
    rows = [row[: n + 1] for row, n in zip(moved, fine.n_intervals, strict=True)]
    prolongation(coarse, Knots.from_breakpoints(4, rows))


def test_numbers_that_are_not_finite_are_passed_on() -> None:
    logits = random_logits(1.0)
    logits[1, 0] = torch.nan
    padded = knots_from_logits(logits, -1.0, 1.0, FLOOR)
    assert padded[1, 1].isnan()
    assert padded[0].isfinite().sum() == COUNTS[0] + 1
    x = torch.zeros(4, 3, dtype=torch.float64)
    values = SplineBasis.from_padded(4, padded, COUNTS).local(x, 1)[1]
    assert values[:, :, 1].isnan().all()
    assert values[:, :, [0, 2]].isfinite().all()


@pytest.mark.parametrize("floor", [0.0, 1.0, -0.1, float("nan")])
def test_floors_outside_zero_and_one(floor: float) -> None:
    with pytest.raises(KnotError, match="floor of the knot spacing"):
        knots_from_logits(random_logits(1.0), -1.0, 1.0, floor)
    with pytest.raises(KnotError, match="floor of the knot spacing"):
        logits_from_breakpoints(Knots.uniform_grid(4, 4, 1), floor)


def test_spacings_below_the_floor() -> None:
    knots = Knots.from_breakpoints(4, [[0.0, 0.5, 1.0], [0.0, 0.5, 0.54, 1.0]])
    assert logits_from_breakpoints(knots, 0.1).isfinite().sum() == 5
    with pytest.raises(KnotError, match=r"interval 1 of channel 1 has length 4\.000e-02, below"):
        logits_from_breakpoints(knots, 0.13)


def functional(
    logits: NDArray[np.float64], order: int, x: NDArray[np.float64], weights: Tensor, m: int
) -> float:
    """``sum weights d^m b / dx^m`` with numpy and scipy alone."""
    t = reference(logits, -1.0, 1.0, FLOOR)
    steps = np.arange(1, order)
    t = np.r_[t[0] - steps[::-1] * (t[1] - t[0]), t, t[-1] + steps * (t[-1] - t[-2])]
    spline = BSpline(t, np.eye(len(t) - order), order - 1, extrapolate=True)
    return float((weights.numpy() * spline(x, nu=m)).sum())


@pytest.mark.parametrize("m", [0, 1, 2])
@pytest.mark.parametrize("order", [4, 6])
def test_gradients_through_the_logits_agree_with_finite_differences(order: int, m: int) -> None:
    rng = np.random.default_rng(m)
    s = rng.standard_normal(5)
    x = np.linspace(-1.1, 1.2, 31)
    assert np.abs(x[:, None] - reference(s, -1.0, 1.0, FLOOR)[1:-1]).min() > 1e-3
    weights = torch.from_numpy(rng.standard_normal((len(x), 5 + order - 1)))
    logits = torch.from_numpy(s)[None].requires_grad_()
    basis = SplineBasis.from_padded(order, knots_from_logits(logits, -1.0, 1.0, FLOOR), (5,))
    values = basis.dense(torch.from_numpy(x)[:, None], m)[m]
    (gradient,) = torch.autograd.grad((weights * values).sum(), logits)
    step = 1e-5
    for j in range(5):
        shifted = []
        for sign in (1.0, -1.0):
            moved = s.copy()
            moved[j] += sign * step
            shifted.append(functional(moved, order, x, weights, m))
        difference = (shifted[0] - shifted[1]) / (2.0 * step)
        assert gradient[0, j].item() == pytest.approx(
            difference, abs=1e-7 * gradient.abs().max().item()
        )


def test_padding_takes_no_part_in_gradients() -> None:
    logits = random_logits(1.0).requires_grad_()
    padded = knots_from_logits(logits, -1.0, 1.0, FLOOR)
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None].expand(-1, 3)
    values = SplineBasis.from_padded(4, padded, COUNTS).local(x, 2)[1]
    (gradient,) = torch.autograd.grad(values.square().sum(), logits)
    assert gradient.isfinite().all()
    assert (gradient[logits.isneginf()] == 0.0).all()
    assert (gradient[logits.isfinite()] != 0.0).all()

"""Knots: construction, layout of the feature axis, refinement, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kanpinn.errors import KnotError
from kanpinn.splines import Knots, SplineBasis

GRADED = [0.0, 0.1, 0.3, 1.0]


def test_uniform_grid_layout() -> None:
    knots = Knots.uniform_grid(4, [3, 8], 2, lower=-2.0, upper=1.0)
    assert knots.channels == 2
    assert knots.n_intervals == (3, 8)
    assert knots.n_functions == (6, 11)
    assert knots.offsets == (0, 6)
    assert knots.n_features == 17
    assert knots.uniform
    torch.testing.assert_close(
        knots.breakpoints[0], torch.tensor([-2.0, -1.0, 0.0, 1.0], dtype=torch.float64)
    )
    assert repr(knots) == "Knots(order=4, intervals=3..8, channels=2, on [-2, 1], uniform)"


@pytest.mark.parametrize("order", range(2, 9))
@pytest.mark.parametrize("breakpoints", [GRADED, [-1.0, 2.0], [0.0, 1.0, 2.0, 3.0]])
def test_exterior_knots_continue_the_end_spacing(order: int, breakpoints: list[float]) -> None:
    knots = Knots.from_breakpoints(order, [breakpoints])
    t = knots.extended(0).numpy()
    assert len(t) == len(breakpoints) + 2 * order - 2
    np.testing.assert_array_equal(t[order - 1 : len(t) - order + 1], breakpoints)
    np.testing.assert_allclose(np.diff(t[:order]), breakpoints[1] - breakpoints[0], atol=1e-15)
    np.testing.assert_allclose(np.diff(t[-order:]), breakpoints[-1] - breakpoints[-2], atol=1e-15)


@pytest.mark.parametrize("order", [2, 3, 6, 8])
def test_greville_abscissae_reproduce_the_identity(order: int) -> None:
    knots = Knots.from_breakpoints(order, [GRADED, np.linspace(-1, 1, 7)])
    x = torch.rand(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    terms = SplineBasis(knots).dense(x, 0)[0] * knots.greville()
    sums = torch.stack([part.sum(-1) for part in terms.split(list(knots.n_functions), -1)], -1)
    torch.testing.assert_close(sums, x, rtol=0, atol=1e-14)


def test_numpy_integers_count() -> None:
    knots = Knots.uniform_grid(np.int64(4), np.int64(3), 1)  # type: ignore[arg-type]
    assert type(knots.order) is int
    assert knots.n_intervals == (3,)


def test_refinement_keeps_coarse_knots_bit_for_bit() -> None:
    knots = Knots.uniform_grid(5, [7, 10], 2, lower=-0.3, upper=0.7)
    fine = knots
    for _ in range(6):
        fine = fine.refined()
    assert fine.uniform
    assert fine.n_intervals == (7 * 64, 640)
    for coarse_t, fine_t in zip(knots.breakpoints, fine.breakpoints, strict=True):
        assert torch.equal(coarse_t, fine_t[::64])
    # The flag is not only carried along: the same knots are recognised afresh.
    assert Knots.from_breakpoints(5, fine.breakpoints).uniform


def test_refinement_of_marked_channels() -> None:
    knots = Knots.from_breakpoints(3, [GRADED, GRADED])
    fine = knots.refined([False, True])
    assert fine.n_intervals == (3, 6)
    assert torch.equal(fine.breakpoints[0], knots.breakpoints[0])
    np.testing.assert_allclose(fine.breakpoints[1], [0, 0.05, 0.1, 0.2, 0.3, 0.65, 1], atol=1e-16)
    assert not fine.uniform
    mixed = Knots.uniform_grid(3, 4, 2).refined([True, False])
    assert mixed.uniform
    assert mixed.n_intervals == (8, 4)


def test_insertion_sorts_and_counts() -> None:
    knots = Knots.uniform_grid(4, 2, 2, lower=0.0)
    fine = knots.inserted([[0.9, 0.1], []])
    np.testing.assert_array_equal(fine.breakpoints[0], [0, 0.1, 0.5, 0.9, 1])
    assert fine.n_intervals == (4, 2)
    assert not fine.uniform
    assert knots.inserted([[0.25, 0.75], [0.75, 0.25]]).uniform


def test_knots_own_their_numbers() -> None:
    t = torch.tensor(GRADED, dtype=torch.float64, requires_grad=True)
    knots = Knots.from_breakpoints(4, [t])
    with torch.no_grad():
        t += 1.0
    np.testing.assert_array_equal(knots.breakpoints[0], GRADED)


def test_type_and_device(device: torch.device) -> None:
    knots = Knots.uniform_grid(4, 5, 2).to(dtype=torch.float32, device=device)
    assert knots.dtype == torch.float32
    assert knots.device.type == device.type
    assert knots.uniform
    assert knots.extended(1).device.type == device.type
    assert knots.refined().dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Knots.uniform_grid(1, 4, 1), "order 1 is not allowed: 2 to 8"),
        (lambda: Knots.uniform_grid(9, 4, 1), "order 9 is not allowed"),
        (lambda: Knots.uniform_grid(2.5, 4, 1), "must be an integer, found 2.5"),  # type: ignore[arg-type]
        (lambda: Knots.uniform_grid(4, 0, 1), "channel 0 has 0 intervals"),
        (lambda: Knots.uniform_grid(4, [3, -1], 2), "channel 1 has -1 intervals"),
        (lambda: Knots.uniform_grid(4, [3.0], 1), "3.0 intervals, an integer"),  # type: ignore[list-item]
        (lambda: Knots.uniform_grid(4, [3, 2], 3), "2 interval counts were given for 3"),
        (lambda: Knots.uniform_grid(4, 4, 0), "at least one channel"),
        (lambda: Knots.uniform_grid(4, 4, 1, lower=1.0), "ends a < b"),
        (lambda: Knots.uniform_grid(4, 4, 1, upper=np.nan), "ends a < b"),
        (lambda: Knots.from_breakpoints(4, [[0, 1], [0, 2, 1]]), "channel 1 are not increasing"),
        (lambda: Knots.from_breakpoints(4, [[0, 1, 1, 2]]), "repeated: 1.0, 1.0 at positions 1, 2"),
        (lambda: Knots.from_breakpoints(4, [[0, np.nan, 1]]), "not finite: nan at position 1"),
        (lambda: Knots.from_breakpoints(4, [[0, np.inf]]), "not finite: inf"),
        (lambda: Knots.from_breakpoints(4, [[0.0]]), "n >= 1 is needed"),
        (lambda: Knots.from_breakpoints(4, [[]]), "n >= 1 is needed"),
        (lambda: Knots.from_breakpoints(4, [[[0.0, 1.0]]]), r"shape \(1, 2\)"),
        (lambda: Knots.from_breakpoints(4, [["a", "b"]]), "channel 0 are not numbers"),
        (lambda: Knots(4, (torch.tensor([0, 1]),), True), "a floating-point type is needed"),
        (lambda: Knots(4, (torch.tensor(GRADED),), True), "not equally spaced"),
        (
            lambda: Knots.from_breakpoints(4, [torch.tensor([0.0, 1.0]), [0.0, 1.0]]),
            "they must agree",
        ),
        (lambda: Knots.uniform_grid(4, 4, 2).refined([True]), "1 marks were given for 2"),
        (lambda: Knots.uniform_grid(4, 4, 2).inserted([[0.1]]), "points of 1 channels"),
        (lambda: Knots.uniform_grid(4, 4, 1).inserted([[1.0]]), "new knot 1.0 of channel 0"),
        (lambda: Knots.uniform_grid(4, 4, 1).inserted([[-1.5]]), "not inside the interval"),
        (lambda: Knots.uniform_grid(4, 4, 1).inserted([[np.nan]]), "new knot nan"),
        (lambda: Knots.uniform_grid(4, 4, 1).inserted([[0.5]]), "repeated: 0.5, 0.5"),
        (lambda: Knots.uniform_grid(4, 4, 1).inserted([[0.1, 0.1]]), "repeated: 0.1, 0.1"),
        (
            lambda: SplineBasis.from_padded(4, torch.zeros(2, 5), (4, 3, 4)),
            r"shape \(2, 5\), interval counts \(4, 3, 4\) need \(3, 5\)",
        ),
        (lambda: SplineBasis.from_padded(4, torch.zeros(1, 1), (0,)), "at least 1 interval"),
        (lambda: SplineBasis.from_padded(12, torch.zeros(1, 2), (1,)), "order 12"),
    ],
)
def test_what_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(KnotError, match=message):
        make()


def test_intervals_too_short_to_halve() -> None:
    with pytest.raises(KnotError, match="repeated"):
        Knots.from_breakpoints(4, [[0.0, 1.0, np.nextafter(1.0, 2.0), 2.0]]).refined()
    with pytest.raises(KnotError, match="repeated"):
        Knots.from_breakpoints(4, [[0.0, 1.0, 1.0 + 1e-12, 2.0]]).to(dtype=torch.float32)


def test_knots_of_a_coarser_type_are_uniform_no_longer() -> None:
    """float32 rounds thirds by more than float64 takes for equal spacing."""
    single = Knots.uniform_grid(4, 3, 1, dtype=torch.float32)
    double = single.to(dtype=torch.float64)
    assert single.uniform and not double.uniform
    np.testing.assert_array_equal(double.breakpoints[0], single.breakpoints[0].double())
    assert Knots.uniform_grid(4, 4, 1, dtype=torch.float32).to(dtype=torch.float64).uniform
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    both = [SplineBasis(k).dense(x.to(k.dtype), 0)[0].double() for k in (single, double)]
    torch.testing.assert_close(*both, rtol=0, atol=1e-6)

"""Gradient descent in both bases, against autograd and the closed form of its iterates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from figure_checks import check, main_axes

from kanpinn.analysis import PreconditionedDescent, run
from kanpinn.analysis.descent import BASES, Basis, iterate, largest, least_squares, recorded, steps
from kanpinn.errors import ConfigError
from kanpinn.plotting.analysis import draw
from kanpinn.splines import Knots, PowerReluBasis

PAIRS = list(itertools.product(BASES, BASES))
SMALL = PreconditionedDescent(n=6, order=3, function="exp(x) + sin(5*x)", iterations=20)


@pytest.mark.parametrize(("geometry", "gradient"), PAIRS)
def test_every_step_is_the_one_of_autograd(geometry: Basis, gradient: Basis) -> None:
    """On ``w`` through truncated powers, on ``u`` through B-splines."""
    fit = least_squares(SMALL)
    matrix, y = torch.from_numpy(fit.matrix), torch.from_numpy(fit.target.copy())
    x = (2 * torch.arange(len(y)) + 1) / len(y) - 1.0
    powers = PowerReluBasis(Knots.uniform_grid(3, 6, 1)).dense(x.double()[:, None], 0)[0]
    features = {"u": torch.from_numpy(fit.features), "w": powers}[gradient]
    u = torch.linspace(-1, 2, len(matrix), dtype=torch.float64)
    in_basis = {"u": u, "w": matrix.T @ u}
    c = in_basis[gradient].clone().requires_grad_()
    loss = (features @ c - y).square().sum() / (2 * len(y))
    (slope,) = torch.autograd.grad(loss, c)
    moved = c.detach() - 1e-3 * slope
    if gradient == "u" and geometry == "w":
        moved = matrix.T @ moved
    if gradient == "w" and geometry == "u":
        moved = torch.linalg.solve(matrix.T, moved)
    found = steps(fit, geometry, gradient, 1e-3)(in_basis[geometry].numpy())
    np.testing.assert_allclose(found, moved.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gradient", BASES)
def test_iterates_have_their_closed_form(gradient: Basis) -> None:
    """``u_k - u* = (I - s P H)^k (u_0 - u*)`` with ``P = I`` or ``(A A^T)^-1``."""
    fit = least_squares(SMALL)
    size = 1 / largest(fit.hessian_of(gradient))
    square = fit.matrix @ fit.matrix.T
    preconditioner = np.eye(len(square)) if gradient == "u" else np.linalg.inv(square)
    shrink = np.eye(len(square)) - size * preconditioner @ fit.hessian
    assert np.abs(np.linalg.eigvals(shrink)).max() < 1
    wanted = [0, 1, 7, 20]
    found = list(iterate(steps(fit, "u", gradient, size), np.zeros(len(square)), wanted))
    best = fit.best()
    for k, u in zip(wanted, found, strict=True):
        expected = best - np.linalg.matrix_power(shrink, k) @ best
        np.testing.assert_allclose(u, expected, atol=1e-10)
    np.testing.assert_allclose(fit.hessian @ best, fit.features.T @ fit.target / len(fit.target))


def test_descent_on_splines_reaches_what_descent_on_powers_does_not() -> None:
    options = PreconditionedDescent(
        n=32, order=3, function="sin(pi*x) + sin(8*pi*x)", iterations=1000, bands=(6, 12, 20)
    )
    found = run(options)
    assert len(found.rows) == 4 * 5
    last = {(r["geometry"], r["gradient"]): r for r in found.rows if r["iteration"] == 1000}
    assert set(last) == set(PAIRS)
    assert last["u", "u"]["band 13-20"] < 1e-3
    assert last["u", "w"]["band 13-20"] > 0.9
    assert last["u", "w"]["band 0-6"] < last["u", "w"]["band 13-20"]
    for row in found.curves:
        assert row["difference"] < 1e-8
        twin = last["u", row["gradient"]]
        if row["iteration"] == 1000:
            assert row["error"] == pytest.approx(twin["error"], rel=1e-6)
    starts = [row for row in found.curves if row["iteration"] == 0]
    assert all(row[name] == 1.0 for row in starts for name in row if "band" in name)
    (figure,) = draw(found)
    assert len(main_axes(check(figure))) == 3


def test_errors_of_bands_add_up() -> None:
    """With the shares of the best fit, to the error of the whole."""
    found = run(SMALL)
    fit = least_squares(SMALL)
    from scipy.fft import dct

    best = dct(fit.features @ fit.best(), norm="ortho") ** 2
    names = [name for name in found.rows[0] if name.startswith("band ")]
    edges = {"band 0-4": best[:5], "band 5-16": best[5:17], "band 17-32": best[17:33]}
    edges["band above 32"] = best[33:]
    row = found.rows[-1]
    total = sum(row[name] ** 2 * edges[name].sum() for name in names)
    assert row["error"] ** 2 == pytest.approx(total / best.sum(), rel=1e-3)


def test_recorded_iterations() -> None:
    assert recorded(1) == [0, 1]
    numbers = recorded(5000)
    assert numbers[0] == 0 and numbers[-1] == 5000
    assert {1, 10, 100, 1000} <= set(numbers)
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": (4, 4)}, "bands: found [4, 4], allowed: increasing numbers"),
        ({"function": "sin(z)"}, "z"),
    ],
)
def test_options_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PreconditionedDescent(**changes)  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.parametrize("function", ["0*x", "sqrt(x)"])
def test_functions_that_cannot_be_fitted(function: str) -> None:
    with pytest.raises(ConfigError, match="allowed: finite values"):
        run(PreconditionedDescent(function=function))

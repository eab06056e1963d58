"""Self-scaled BFGS and Broyden: against their textbook forms, scipy's BFGS, in runs, failures."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from test_optimisers import (
    AutogradObjective,
    Scripted,
    assert_same_state,
    layout_of,
    log_barrier,
    quadratic,
    rosenbrock,
    rotated_spectrum,
    solve,
)
from torch import Tensor

import kanpinn
from kanpinn import api
from kanpinn.errors import ConfigError
from kanpinn.optimisers import (
    Optimiser,
    ParameterLayout,
    SelfScaledBFGS,
    SelfScaledBFGSOptions,
    SelfScaledBroyden,
    SelfScaledBroydenOptions,
    StepResult,
    StopReason,
    build_optimiser,
)
from kanpinn.optimisers.quasi_newton_memory import Pair
from kanpinn.optimisers.self_scaled import (
    LARGEST,
    NOTE_INDEFINITE,
    InverseHessian,
    Scaling,
    bfgs_scaling,
    broyden_scaling,
    updated,
)

F64 = torch.float64
METHODS = (SelfScaledBFGS(), SelfScaledBroyden())
START = torch.full((10,), -1.2, dtype=F64)


def named(optimiser: Optimiser) -> str:
    return optimiser.options.optimiser


def textbook_hessian(
    b: np.ndarray, s: np.ndarray, y: np.ndarray, tau: float, theta: float
) -> np.ndarray:
    """The same family in terms of ``B = H^-1``: theta is 0 for BFGS and 1 for DFP."""
    bs, sy = b @ s, s @ y
    w = y / sy - bs / (s @ bs)
    family = b - np.outer(bs, bs) / (s @ bs) + theta * (s @ bs) * np.outer(w, w)
    return tau * family + np.outer(y, y) / sy


def textbook_choice(kind: str, b: np.ndarray, s: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """tau and theta, from the matrix and its inverse, as the papers write them."""
    sy, n = s @ y, len(s)
    ratio, h = s @ b @ s / sy, y @ np.linalg.solve(b, y) / sy
    rho = min(1.0, 1 / ratio)
    if kind == "ssbfgs":
        return rho, 0.0
    a = h * ratio - 1
    least = min(1.0, h * (1 - np.sqrt(a / (1 + a))))
    theta = max((least - 1) / a, min(1 / least, (1 - ratio) / ratio))
    sigma = 1 + theta * a
    root = sigma ** (1 / (1 - n))
    return (rho * min(root, 1 / theta) if theta > 0 else min(rho * root, sigma)), theta


def random_pair(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A positive definite matrix and a pair with positive curvature."""
    root = torch.randn(n, n, dtype=F64, generator=generator)
    matrix = root @ root.T + 0.1 * torch.eye(n, dtype=F64)
    s, y = torch.randn(2, n, dtype=F64, generator=generator)
    return matrix, s, y * torch.sign(s @ y)


# --- one update -----------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [-0.2, 0.0, 0.4, 1.0, 3.0])
def test_update_is_the_inverse_of_the_textbook_form(
    theta: float, generator: torch.Generator
) -> None:
    """Also the secant equation, symmetry, and a positive definite result."""
    matrix, s, y = random_pair(7, generator)
    b = np.linalg.inv(matrix.numpy())
    a = float(s.numpy() @ b @ s.numpy()) * float(y @ matrix @ y) / float(s @ y) ** 2 - 1
    theta = max(theta, -0.5 / a)  # definite above -1 / a
    new = updated(matrix, s, y, matrix @ y, Scaling(0.3, (1 - theta) / (1 + a * theta)))
    expected = np.linalg.inv(textbook_hessian(b, s.numpy(), y.numpy(), 0.3, theta))
    np.testing.assert_allclose(new.numpy(), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(new @ y, s, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(new, new.T, rtol=1e-14, atol=1e-14)
    assert torch.linalg.eigvalsh(new).min() > 0


def test_scalings_by_hand() -> None:
    """Every branch of the choice, with numbers worked out on paper."""
    root = math.sqrt(0.5)
    assert bfgs_scaling(4.0, 3.0, 5) == (0.25, 1.0)
    assert bfgs_scaling(0.5, 3.0, 5) == (1.0, 1.0)
    # a = 1, r = 1 - root; theta = (1 - b) / b = -1/2, sigma = 1/2, which is below root / 1
    assert broyden_scaling(2.0, 1.0, 3) == pytest.approx((0.5, 3.0))
    # a = 1, r = 1; theta = (1 - b) / b = 1, DFP; sigma = 2
    assert broyden_scaling(0.5, 4.0, 3) == pytest.approx((root, 0.0), abs=1e-15)
    # a = 3; theta = 1/4, sigma = 7/4
    assert broyden_scaling(0.8, 5.0, 3) == pytest.approx((1.75**-0.5, 3 / 7))
    # a = 3, r = 1; theta = 1, below (1 - b) / b = 39; sigma = 4
    assert broyden_scaling(0.025, 160.0, 3) == pytest.approx((0.5, 0.0))
    # a = 9; theta is its lower bound (r - 1) / 9, so that sigma is r
    r = 1 - math.sqrt(0.9)
    assert broyden_scaling(10.0, 1.0, 3) == pytest.approx((r, (1 - (r - 1) / 9) / r))
    # parallel, and one parameter: BFGS
    assert broyden_scaling(4.0, 0.25, 3) == broyden_scaling(4.0, 9.0, 1) == (0.25, 1.0)


@pytest.mark.parametrize("n", [2, 3, 500])
def test_scalings_keep_the_matrix_definite(n: int) -> None:
    """Over 24 decades of the ratios: ``0 < tau <= 1`` and ``phi > -1 / a``."""
    for b in np.logspace(-12, 12, 25):
        for excess in np.logspace(-12, 12, 25):
            h = (1 + excess) / b
            tau, phi = broyden_scaling(b, h, n)
            a = b * h - 1
            assert 0 < tau <= 1 and math.isfinite(phi)
            assert a <= 1e-8 or phi > -1 / a


def scipy_path(start: np.ndarray, steps: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Iterates of scipy's BFGS on the quadratic, the start included, and its last matrix."""
    objective, path = AutogradObjective(quadratic(8, 2)), [start.copy()]

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = objective.loss_and_gradient(torch.from_numpy(x))
        return loss.item(), gradient.numpy()

    found = scipy.optimize.minimize(
        evaluate,
        start,
        jac=True,
        method="BFGS",
        callback=lambda x: path.append(np.array(x)),
        options={"gtol": 1e-6, "maxiter": steps},
    )
    return path, found.hess_inv


def test_without_scaling_it_is_scipys_bfgs() -> None:
    """Along scipy's iterates ``tau = phi = 1`` gives scipy's directions and its last matrix."""
    path, expected = scipy_path(np.zeros(8), 12)
    assert len(path) >= 10
    objective, matrix = AutogradObjective(quadratic(8, 2)), torch.eye(8, dtype=F64)
    points = [torch.from_numpy(x) for x in path]
    for start, end in pairwise(points):
        g0, g1 = (objective.loss_and_gradient(x)[1] for x in (start, end))
        s, y = end - start, g1 - g0
        cosine = -(s @ (matrix @ g0)) / (s.norm() * (matrix @ g0).norm())
        assert cosine.item() == pytest.approx(1, abs=1e-9)
        matrix = updated(matrix, s, y, matrix @ y, Scaling(1.0, 1.0))
    np.testing.assert_allclose(matrix.numpy(), expected, rtol=1e-6, atol=1e-9)


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", METHODS, ids=named)
def test_steps_equal_the_textbook(optimiser: Optimiser) -> None:
    """Direction and matrix of every step, from a Hessian updated on its own and solved with."""
    objective = AutogradObjective(rosenbrock)
    hessian, theta = np.zeros((10, 10)), START
    scaled = 0
    for count, result in enumerate(solve(optimiser, objective, START, 40)):
        g0, g1 = (objective.loss_and_gradient(x)[1].numpy() for x in (theta, result.theta))
        s, y = (result.theta - theta).numpy(), g1 - g0
        if count:
            direction = -np.linalg.solve(hessian, g0)
            cosine = s @ direction / np.linalg.norm(s) / np.linalg.norm(direction)
            assert cosine == pytest.approx(1, abs=1e-10)
            tau, parameter = textbook_choice(named(optimiser), hessian, s, y)
            scaled += tau < 1 or parameter != 0
        else:
            hessian, tau, parameter = y @ y / (s @ y) * np.eye(10), 1.0, 0.0
        hessian = textbook_hessian(hessian, s, y, tau, parameter)
        matrix = result.state["inverse_hessian"]
        np.testing.assert_allclose(matrix.numpy() @ hessian, np.eye(10), atol=1e-6)
        torch.testing.assert_close(matrix @ torch.from_numpy(y), torch.from_numpy(s))
        assert torch.linalg.eigvalsh(matrix).min() > 0
        assert int(result.state["pairs"]) == count + 1
        theta = result.theta
    assert scaled > 10


def stiff_square(x: Tensor) -> Tensor:
    """Nonlinear least squares with a condition number of 1e6 at its minimum 0."""
    scales = torch.logspace(0, -3, len(x), dtype=x.dtype, device=x.device)
    mixed = rotated_spectrum(len(x), 0).to(x) @ x
    return ((scales * (mixed + 0.3 * mixed**2)) ** 2).sum()


def test_scaling_pays_on_a_badly_scaled_problem() -> None:
    """What the self-scaling is for: decades below the loss of scipy's BFGS at equal steps."""
    start = torch.linspace(0.5, 1.5, 60, dtype=F64)
    last = {
        named(optimiser): solve(optimiser, AutogradObjective(stiff_square), start, 150)[-1]
        for optimiser in METHODS
    }
    plain = scipy.optimize.minimize(
        lambda x: stiff_square(torch.from_numpy(x)).item(),
        start.numpy(),
        jac=lambda x: AutogradObjective(stiff_square).loss_and_gradient(torch.from_numpy(x))[1],
        method="BFGS",
        options={"gtol": 0, "maxiter": 150},
    )
    assert last["ssbroyden"].loss.item() < 1e-3 * plain.fun
    assert last["ssbfgs"].loss.item() < 0.1 * plain.fun


@pytest.mark.parametrize("optimiser", METHODS, ids=named)
def test_float32_learns_the_same(optimiser: Optimiser) -> None:
    function = quadratic(6, 1)
    results = [
        solve(optimiser, AutogradObjective(function), torch.zeros(6, dtype=dtype), 4)[-1]
        for dtype in (torch.float32, F64)
    ]
    single, double = (result.state["inverse_hessian"] for result in results)
    assert single.dtype == torch.float32 and results[0].theta.dtype == torch.float32
    torch.testing.assert_close(single.to(F64), double, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("optimiser", METHODS, ids=named)
def test_one_parameter(optimiser: Optimiser) -> None:
    objective = AutogradObjective(lambda x: (torch.cosh(x - 2)).sum())
    last = solve(optimiser, objective, torch.zeros(1, dtype=F64), 30)[-1]
    assert last.theta.item() == pytest.approx(2, abs=1e-8)


# --- what does not fit, and failures --------------------------------------------------------------


@pytest.mark.parametrize("optimiser", METHODS, ids=named)
def test_too_many_parameters_are_refused(optimiser: Optimiser) -> None:
    n = LARGEST + 1
    with pytest.raises(
        ConfigError, match=r"found 10,001 parameters, allowed: at most 10,000.*lbfgs"
    ):
        optimiser.init(torch.zeros(n), ParameterLayout(("x",), (n,)))


def test_registered_under_their_names() -> None:
    for options, kind in (
        (SelfScaledBFGSOptions(patience=7), SelfScaledBFGS),
        (SelfScaledBroydenOptions(curvature=0.5), SelfScaledBroyden),
    ):
        built = build_optimiser(options)
        assert type(built) is kind and built.options == options
    with pytest.raises(ConfigError, match="ssbroyden: sufficient_decrease"):
        SelfScaledBroydenOptions(sufficient_decrease=0.3, curvature=0.2)


def test_a_matrix_that_lost_definiteness_begins_anew(generator: torch.Generator) -> None:
    _, s, y = random_pair(5, generator)
    for wrong in (-torch.eye(5, dtype=F64), torch.full((5, 5), math.nan, dtype=F64)):
        spoilt = InverseHessian(wrong, 3, broyden_scaling)
        learnt, notes = spoilt.learn(Pair(s, y, 1.0, -s))
        fresh, silent = spoilt.cleared().learn(Pair(s, y, 1.0, -s))
        assert notes == (NOTE_INDEFINITE,) and silent == () and learnt.count == 1
        assert torch.equal(learnt.matrix, fresh.matrix)
        torch.testing.assert_close(learnt.matrix @ y, s)


@pytest.mark.parametrize("optimiser", METHODS, ids=named)
def test_never_searches_uphill(optimiser: Optimiser) -> None:
    good = solve(optimiser, AutogradObjective(rosenbrock), START, 8)[-1]
    turned = good.state | {"inverse_hessian": -good.state["inverse_hessian"]}
    result = optimiser.step(good.theta, turned, AutogradObjective(rosenbrock), layout_of(START))
    assert result.notes == ("quasi-Newton direction was no descent: history cleared",)
    assert result.loss.item() < good.loss.item() and int(result.state["pairs"]) == 1


@pytest.mark.parametrize("optimiser", METHODS, ids=named)
def test_line_search_failure(optimiser: Optimiser) -> None:
    """A loss that is wrong away from the start: forgets H, tries ``-g``, stops, can go on."""
    good = solve(optimiser, AutogradObjective(rosenbrock), START, 8)[-1]

    def wrong(x: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = AutogradObjective(rosenbrock).loss_and_gradient(x)
        return (loss, gradient) if torch.equal(x, good.theta) else (loss + 1, gradient)

    failed = optimiser.step(good.theta, good.state, Scripted(wrong), layout_of(START))
    assert failed.stop is StopReason.LINE_SEARCH_FAILED
    assert torch.equal(failed.theta, good.theta) and int(failed.state["pairs"]) == 0
    resumed = solve(optimiser, AutogradObjective(rosenbrock), failed.theta, 200, failed.state)
    assert resumed[-1].loss.item() < 1e-15


@pytest.mark.parametrize("optimiser", METHODS, ids=named)
def test_non_finite_start_and_restart(optimiser: Optimiser) -> None:
    """Stops where no loss was ever finite; otherwise goes back to the best iterate."""
    outside = torch.tensor([-1.0, 2.0, 0.5], dtype=F64)
    objective = AutogradObjective(log_barrier)
    last = solve(optimiser, objective, outside, 5)[-1]
    assert last.stop is StopReason.NON_FINITE and torch.equal(last.theta, outside)

    start = torch.tensor([8.0, 0.05, 30.0], dtype=F64)
    best = solve(optimiser, objective, start, 5)[-1]
    for count in range(3):
        result = optimiser.step(outside, best.state, objective, layout_of(start))
        assert result.stop is None and result.loss.item() < best.loss.item()
        assert int(result.state["restarts"]) == count + 1 and int(result.state["pairs"]) == 1
        best = result
    last = optimiser.step(outside, best.state, objective, layout_of(start))
    assert last.stop is StopReason.NON_FINITE and torch.equal(last.theta, best.theta)


@pytest.mark.parametrize("kind", ["ssbfgs", "ssbroyden"])
def test_stops(kind: str) -> None:
    """At the tolerance of the gradient, again without an evaluation, and without progress."""

    def stopped(function: Any, start: Tensor, **options: Any) -> tuple[Optimiser, StepResult]:
        optimiser: Optimiser = (
            SelfScaledBFGS(SelfScaledBFGSOptions(**options))
            if kind == "ssbfgs"
            else SelfScaledBroyden(SelfScaledBroydenOptions(**options))
        )
        return optimiser, solve(optimiser, AutogradObjective(function), start, 300)[-1]

    optimiser, last = stopped(quadratic(), torch.zeros(20, dtype=F64), gradient_tolerance=1e-3)
    assert last.stop is StopReason.GRADIENT_TOLERANCE
    objective = AutogradObjective(quadratic())
    assert objective.loss_and_gradient(last.theta)[1].norm().item() <= 1e-3
    again = optimiser.step(last.theta, last.state, objective, layout_of(last.theta))
    assert again.stop is StopReason.GRADIENT_TOLERANCE and again.evaluations == 0
    assert_same_state(again.state, last.state)

    slow = {"change_tolerance": 0.5, "patience": 3}
    _, last = stopped(lambda x: 1e3 + rosenbrock(x), torch.zeros(9, dtype=F64), **slow)
    assert last.stop is StopReason.NO_PROGRESS and last.loss.item() > 1e3 + 1e-9


# --- in a run -------------------------------------------------------------------------------------


class Bump(kanpinn.Problem):
    domain = kanpinn.Box((-1.0, -1.0), (1.0, 1.0))
    conditions = (kanpinn.Dirichlet(value=0.0, exact=True),)

    def residual(self, p: kanpinn.Site) -> Tensor:
        return p.u.laplacian + 2 * (2 - p.x**2 - p.y**2)


def tiny(kind: str, steps: int = 30) -> dict[str, Any]:
    return {
        "name": "tiny",
        "model": {"width": 3, "intervals": 2, "order": 4},
        "sampling": {"interior": 60, "held_out": 20},
        "training": {"levels": 2, "phases": [{"optimiser": kind, "steps": steps}]},
        "threads": 1,
        "figures": False,
    }


@pytest.mark.parametrize("kind", ["ssbfgs", "ssbroyden"])
def test_a_run_of_two_levels(kind: str) -> None:
    result, baseline = (api.solve(tiny(name), problem=Bump) for name in (kind, "lbfgs"))
    assert [level["steps"] for level in result.levels] == [30, 30]
    assert result.levels[-1]["loss"] < baseline.levels[-1]["loss"]


def test_plan_counts_the_matrix() -> None:
    dense, vectors = (
        api.plan(api.prepare(tiny(kind), problem=Bump))[-1] for kind in ("ssbroyden", "lbfgs")
    )
    n = dense.n_params
    difference = (dense.memory_mib - vectors.memory_mib) * 2**20
    assert difference == pytest.approx(8 * n * (2 * n + 8 - 108))


@pytest.mark.parametrize("kind", ["ssbfgs", "ssbroyden"])
def test_a_resumed_run_is_bitwise_the_same(kind: str, tmp_path: Path) -> None:
    """Through a checkpoint in the middle of a phase, the matrix included."""
    counter = iter(range(1, 10**9))
    folder, config = tmp_path / "stopped", tiny(kind)
    api.solve(
        config, out=folder, problem=Bump, stop=lambda: next(counter) >= 41, on_interrupt="return"
    )
    resumed = api.solve(config, out=folder, problem=Bump, resume=True)
    whole = api.solve(config, out=tmp_path / "whole", problem=Bump)
    losses = [[level["loss"] for level in result.levels] for result in (resumed, whole)]
    assert losses[0] == losses[1]
    one, two = (kanpinn.load(result.folder).level(1, "last").model for result in (resumed, whole))
    for (name, first), second in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(first, second), name

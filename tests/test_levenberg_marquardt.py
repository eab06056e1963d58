"""Levenberg-Marquardt: against scipy, its damped system, its curvature, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from test_optimisers import assert_same_state, layout_of, solve
from torch import Tensor

from kanpinn.errors import ConfigError
from kanpinn.optimisers import (
    Condition,
    LeastSquaresObjective,
    LevenbergMarquardt,
    LevenbergMarquardtOptions,
    ParameterLayout,
    StopReason,
)
from kanpinn.optimisers.levenberg_marquardt import NOTE_REJECTED
from kanpinn.optimisers.linear_models import DampedSystem

F64 = torch.float64
Residual = Callable[[Tensor], Tensor]


class Whole:
    """A Jacobian that is held as it is."""

    def __init__(self, jacobian: Tensor) -> None:
        self.jacobian = jacobian

    def product(self, v: Tensor) -> Tensor:
        return self.jacobian @ v

    def transposed(self, u: Tensor) -> Tensor:
        return self.jacobian.mT @ u

    def block_squares(self, size: int) -> list[Tensor]:
        blocks = self.jacobian.split(min(2, size), 1)
        return [(block.mT @ block)[None] for block in blocks]


@dataclass(frozen=True)
class Squared:
    """A square that is held as it is, with the rows it was made of or without."""

    upper: Tensor
    transposed: Callable[[Tensor], Tensor]
    jacobian: Tensor | None = None

    @property
    def evaluations(self) -> int:
        return int(self.jacobian is None)

    def product(self, v: Tensor) -> Tensor | None:
        return None if self.jacobian is None else self.jacobian @ v

    def normal(self, d: Tensor, u: Tensor) -> Tensor | None:
        return None if self.jacobian is None else self.jacobian.mT @ (self.jacobian @ d + u)


class Squares:
    """A sum of squares whose Jacobian comes from autograd; counts evaluations."""

    def __init__(self, residual: Residual, keep: bool = False) -> None:
        self.residual, self.keep = residual, keep
        self.evaluations = 0

    def loss(self, theta: Tensor) -> Tensor:
        self.evaluations += 1
        return self.residual(theta).square().sum()

    def loss_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("a least-squares method has no use for this")

    def residuals(self, theta: Tensor) -> Tensor:
        self.evaluations += 1
        return self.residual(theta)

    def jacobian(self, theta: Tensor) -> Tensor:
        found: Tensor = torch.autograd.functional.jacobian(self.residual, theta)
        return found

    def squares(self, theta: Tensor, memory: float) -> Squared:
        self.evaluations += 1
        jacobian = self.jacobian(theta)
        joined = torch.cat([jacobian, self.residual(theta)[:, None]], 1)
        if self.keep:
            return Squared((joined.mT @ joined).triu(), lambda u: jacobian.mT @ u, jacobian)
        return Squared((joined.mT @ joined).triu(), lambda u: self.transposed_product(theta, u))

    def triangle(self, theta: Tensor) -> Tensor:
        joined = torch.cat([self.jacobian(theta), self.residual(theta)[:, None]], 1)
        r = torch.linalg.qr(joined, mode="r").R
        return torch.cat([r, r.new_zeros(joined.shape[1] - len(r), joined.shape[1])])

    def transposed_product(self, theta: Tensor, u: Tensor) -> Tensor:
        self.evaluations += 1
        return self.jacobian(theta).mT @ u

    def jacobian_rows(self, theta: Tensor) -> list[Tensor]:
        self.evaluations += 1
        return [torch.cat([self.jacobian(theta), self.residual(theta)[:, None]], 1)]

    def linearise(self, theta: Tensor, memory: float) -> Whole:
        self.evaluations += 1
        return Whole(self.jacobian(theta))


def rosenbrock(x: Tensor) -> Tensor:
    return torch.cat([10 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]])


def decay(p: Tensor) -> Tensor:
    t = torch.linspace(0, 4, 40, dtype=p.dtype)
    data = 2 * torch.exp(-1.3 * t) + 0.5 + 0.05 * torch.sin(7 * t)
    return p[0] * torch.exp(-p[1] * t) + p[2] - data


def curved_valley(p: Tensor) -> Tensor:
    """A narrow valley along a parabola: ``(100 (y - x^2), x - 3)``."""
    return torch.stack([100 * (p[1] - p[0] ** 2), p[0] - 3])


def log_barrier(x: Tensor) -> Tensor:
    """Zero at 1, nan below 0."""
    return torch.log(x)


STARTS: dict[str, tuple[Residual, list[float]]] = {
    "rosenbrock": (rosenbrock, [-1.2, 1.0, -0.5, 2.0]),
    "decay": (decay, [1.0, 0.2, 0.0]),
    "valley": (curved_valley, [-2.0, 4.0]),
    "barrier": (log_barrier, [8.0, 2.0, 0.05]),
}
VARIANTS = {
    "geodesic": LevenbergMarquardtOptions(),
    "plain": LevenbergMarquardtOptions(geodesic=False),
    "columns": LevenbergMarquardtOptions(scaling="columns"),
    "dual": LevenbergMarquardtOptions(solver="dual", scaling="columns"),
    "iterative": LevenbergMarquardtOptions(solver="iterative"),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("keep", [False, True])
def test_solves_as_scipy_does(keep: bool, name: str, variant: str) -> None:
    function, start = STARTS[name]
    objective = Squares(function, keep)
    theta = torch.tensor(start, dtype=F64)
    assert isinstance(objective, LeastSquaresObjective)
    results = solve(LevenbergMarquardt(VARIANTS[variant]), objective, theta, 200)
    found = scipy.optimize.least_squares(
        lambda p: np.nan_to_num(function(torch.from_numpy(p)).numpy(), nan=1e3),
        start,
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
    )
    assert float(results[-1].loss) <= 2 * found.cost * (1 + 1e-9) + 1e-20
    assert objective.evaluations == sum(result.evaluations for result in results)
    losses = [float(result.loss) for result in results]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("keep", [False, True])
def test_acceleration_follows_a_curved_valley(keep: bool) -> None:
    """Fewer steps than along straight lines; that is what it is for."""
    steps = {}
    for variant in ("geodesic", "plain"):
        theta = torch.tensor([-2.0, 4.0], dtype=F64)
        results = solve(
            LevenbergMarquardt(VARIANTS[variant]), Squares(curved_valley, keep), theta, 200
        )
        steps[variant] = next(k for k, r in enumerate(results) if float(r.loss) < 1e-12)
    assert steps["geodesic"] < 0.7 * steps["plain"]


@pytest.mark.parametrize("damping", [1e-12, 1e-3, 10.0])
def test_damped_system_against_normal_equations(damping: float) -> None:
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(30, 6, dtype=F64, generator=generator)
    residual = torch.randn(30, dtype=F64, generator=generator)
    scale = torch.rand(6, dtype=F64, generator=generator) + 0.5
    triangle = torch.linalg.qr(torch.cat([jacobian, residual[:, None]], 1), mode="r").R
    system = DampedSystem.of(triangle, damping, scale)
    matrix = (jacobian.mT @ jacobian + damping * torch.diag(scale**2)).numpy()
    step = -scipy.linalg.solve(matrix, (jacobian.mT @ residual).numpy(), assume_a="pos")
    np.testing.assert_allclose(system.step().numpy(), step, rtol=1e-11)
    other = torch.randn(6, dtype=F64, generator=generator)
    expected = -scipy.linalg.solve(matrix, other.numpy(), assume_a="pos")
    np.testing.assert_allclose(system.newton(other).numpy(), expected, rtol=1e-11)


def test_damping_keeps_digits_that_normal_equations_lose() -> None:
    """Columns dependent but for 1e-9: their square is singular, the triangle is not."""
    t = torch.linspace(0, 1, 50, dtype=F64)
    jacobian = torch.stack([torch.ones_like(t), 1 + 1e-9 * t], 1)
    exact = torch.tensor([2.0, -3.0], dtype=F64)
    triangle = torch.linalg.qr(torch.cat([jacobian, -(jacobian @ exact)[:, None]], 1), mode="r").R
    found = DampedSystem.of(triangle, 1e-30, torch.ones(2, dtype=F64)).step()
    assert float((found - exact).abs().max()) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_deterministic_pure_and_resumable(variant: str) -> None:
    optimiser = LevenbergMarquardt(VARIANTS[variant])
    start = torch.tensor([-1.2, 1.0, -0.5, 2.0], dtype=F64)
    first, second = (solve(optimiser, Squares(rosenbrock), start, 8) for _ in range(2))
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.theta, two.theta)
        assert_same_state(one.state, two.state)
    middle = first[3]
    kept = {name: tensor.clone() for name, tensor in middle.state.items()}
    rest = solve(optimiser, Squares(rosenbrock), middle.theta.clone(), 4, middle.state)
    assert_same_state(middle.state, kept)
    assert torch.equal(rest[-1].theta, first[7].theta)
    assert_same_state(rest[-1].state, first[7].state)


def test_float32_stays_float32() -> None:
    theta = torch.tensor([-1.2, 1.0], dtype=torch.float32)
    last = solve(LevenbergMarquardt(), Squares(rosenbrock), theta, 60)[-1]
    assert last.theta.dtype == last.loss.dtype == torch.float32
    assert float(last.loss) < 1e-10


def test_stops_at_the_gradient_tolerance_and_without_progress() -> None:
    theta = torch.ones(3, dtype=F64)
    result = solve(LevenbergMarquardt(), Squares(rosenbrock), theta, 5)[-1]
    assert result.stop is StopReason.GRADIENT_TOLERANCE and torch.equal(result.theta, theta)
    options = LevenbergMarquardtOptions(change_tolerance=0.5, patience=3)
    stopped = solve(LevenbergMarquardt(options), Squares(decay), torch.ones(3, dtype=F64), 50)
    assert stopped[-1].stop is StopReason.NO_PROGRESS
    reference = float(stopped[-1].state["reference_loss"])
    assert all(float(result.loss) > 0.5 * reference for result in stopped[-3:])


def test_no_step_that_lowers_the_loss() -> None:
    """A residual whose Jacobian lies: every trial is refused, and nothing moves."""

    class Lying(Squares):
        def squares(self, theta: Tensor, memory: float) -> Squared:
            wrong = super().squares(theta, memory)
            wrong.upper[:-1, -1] *= -1
            return wrong

    theta = torch.tensor([3.0], dtype=F64)
    options = LevenbergMarquardtOptions(max_trials=5, geodesic=False)
    result = solve(LevenbergMarquardt(options), Lying(lambda x: x), theta, 5)[-1]
    assert result.stop is StopReason.NO_PROGRESS and result.notes == (NOTE_REJECTED,)
    assert torch.equal(result.theta, theta)


def test_non_finite_start() -> None:
    theta = torch.tensor([-1.0], dtype=F64)
    result = solve(LevenbergMarquardt(), Squares(log_barrier), theta, 5)[-1]
    assert result.stop is StopReason.NON_FINITE and torch.equal(result.theta, theta)


def test_fewer_residuals_than_parameters_is_noted_and_solved() -> None:
    theta = torch.tensor([2.0, -1.0, 4.0], dtype=F64)
    results = solve(LevenbergMarquardt(), Squares(lambda x: x[:1] * x[1:2] - 6), theta, 30)
    assert ["residuals for" in note for note in results[0].notes] == [True]
    assert "1 residuals for 3 parameters" in results[0].notes[0]
    assert "dual solver" in results[0].notes[0]
    assert results[0].conditions == (Condition.FEWER_RESIDUALS,)
    assert all(result.notes == () for result in results[1:-1])
    assert float(results[-1].loss) < 1e-25
    assert float(results[-1].loss) < 1e-20 and results[-1].theta[2] == 4


def test_dependent_columns_are_solved() -> None:
    theta = torch.tensor([1.0, 5.0], dtype=F64)

    def residual(x: Tensor) -> Tensor:
        return torch.stack([x[0] + x[1] - 3, 2 * (x[0] + x[1]) - 6, x[0] + x[1] - 3])

    assert float(solve(LevenbergMarquardt(), Squares(residual), theta, 40)[-1].loss) < 1e-18


def test_a_step_that_is_mostly_curvature_is_refused() -> None:
    """Along d the residual bends by more than the limit: the damping must grow first."""
    theta = torch.tensor([0.1], dtype=F64)
    options = LevenbergMarquardtOptions(damping=1e-9)
    objective = Squares(lambda x: 1 + 0.5 * x**2)
    result = LevenbergMarquardt(options).step(
        theta,
        LevenbergMarquardt(options).init(theta, layout_of(theta)),
        objective,
        layout_of(theta),
    )
    newton = -float((1 + 0.5 * 0.01) / 0.1)
    assert abs(float(result.theta - theta)) < 0.2 * abs(newton)


def test_linear_groups_are_damped_less() -> None:
    """The same fit with either parameter marked as linear: the one that is, moves further."""
    layouts = [ParameterLayout(("a", "b"), (1, 1), frozenset(marked)) for marked in ([], ["a"])]
    optimiser = LevenbergMarquardt(LevenbergMarquardtOptions(geodesic=False, linear_scale=0.1))
    theta = torch.zeros(2, dtype=F64)
    objective = Squares(lambda x: torch.stack([x[0] + x[1] - 1, 0.1 * x[1]]))
    steps = [
        optimiser.step(theta, optimiser.init(theta, layout), objective, layout).theta
        for layout in layouts
    ]
    jacobian = torch.tensor([[1.0, 1.0], [0.0, 0.1]], dtype=F64)
    for theta_found, scale in zip(steps, ([1.0, 1.0], [0.1, 1.0]), strict=True):
        matrix = jacobian.mT @ jacobian + torch.diag(torch.tensor(scale, dtype=F64) ** 2)
        expected = torch.linalg.solve(matrix, jacobian.mT @ torch.tensor([1.0, 0.0], dtype=F64))
        torch.testing.assert_close(theta_found, expected, rtol=1e-12, atol=1e-12)


def test_refuses_a_loss_that_is_no_sum_of_squares() -> None:
    class Plain:
        def loss(self, theta: Tensor) -> Tensor:
            return theta.sum()

        def loss_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
            return theta.sum(), torch.ones_like(theta)

    theta = torch.ones(2, dtype=F64)
    optimiser = LevenbergMarquardt()
    with pytest.raises(ConfigError, match="no sum of squares"):
        optimiser.step(theta, optimiser.init(theta, layout_of(theta)), Plain(), layout_of(theta))
    with pytest.raises(ConfigError, match="no parameters"):
        optimiser.init(torch.zeros(0, dtype=F64), layout_of(torch.zeros(0)), 1)

"""Optimisers: solved problems, oracles (torch, scipy, dense BFGS), exact resume, stop reasons."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pydantic
import pytest
import scipy.optimize
import torch
from elsewhere import ELSEWHERE
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kanpinn.errors import ConfigError
from kanpinn.optimisers import (
    LBFGS,
    OPTIMISERS,
    Adam,
    AdamOptions,
    AnyOptimiserOptions,
    BaseSchedule,
    ConstantSchedule,
    CosineSchedule,
    CyclicSchedule,
    ExponentialSchedule,
    LBFGSOptions,
    LevenbergMarquardtOptions,
    Optimiser,
    ParameterLayout,
    SelfScaledBFGS,
    SelfScaledBroyden,
    State,
    StepResult,
    StepSchedule,
    StopReason,
    build_optimiser,
)
from kanpinn.optimisers.curvature_history import CurvatureHistory
from kanpinn.optimisers.line_search import (
    SearchEnd,
    SearchResult,
    Trial,
    WolfeConditions,
    wolfe_search,
)

F64 = torch.float64
Loss = Callable[[Tensor], Tensor]


class AutogradObjective:
    """A loss with its gradient by autograd; counts evaluations, in all and non-finite ones."""

    def __init__(self, function: Loss) -> None:
        self.function = function
        self.evaluations = 0
        self.non_finite = 0

    def loss(self, theta: Tensor) -> Tensor:
        return self.loss_and_gradient(theta)[0]

    def loss_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        self.evaluations += 1
        leaf = theta.detach().clone().requires_grad_()
        loss = self.function(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
        self.non_finite += int(not math.isfinite(loss.item()))
        return loss.detach(), gradient


class Scripted:
    """An objective made of a function that returns loss and gradient."""

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.function = function

    def loss(self, theta: Tensor) -> Tensor:
        return self.function(theta)[0]

    def loss_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self.function(theta)


def rotated_spectrum(n: int, decades: float, device: torch.device | str = "cpu") -> Tensor:
    """A symmetric matrix (n, n) with eigenvalues from 1 to 10^decades and no special axes."""
    seeded = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=F64, generator=seeded))
    return (q @ torch.diag(torch.logspace(0, decades, n, dtype=F64)) @ q.T).to(device)


def quadratic(n: int = 20, decades: float = 4, device: torch.device | str = "cpu") -> Loss:
    """``(x - 1)^T A (x - 1) / 2``: zero at x = 1."""
    a = rotated_spectrum(n, decades, device)
    return lambda x: 0.5 * (x - 1) @ (a.to(x.dtype) @ (x - 1))


def rosenbrock(x: Tensor) -> Tensor:
    """Zero at x = 1."""
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def decay_fit(device: torch.device | str = "cpu") -> Loss:
    """Squared residuals of ``a exp(-b t) + c`` against data it cannot fit exactly."""
    t = torch.linspace(0, 4, 40, dtype=F64, device=device)
    data = 2 * torch.exp(-1.3 * t) + 0.5 + 0.05 * torch.sin(7 * t)
    return lambda p: ((p[0] * torch.exp(-p[1] * t) + p[2] - data) ** 2).sum()


def log_barrier(x: Tensor) -> Tensor:
    """``sum (x - log x - 1)``: zero at x = 1, nan for x < 0."""
    return (x - torch.log(x) - 1).sum()


def decay_fit_minimum() -> float:
    """The least sum of squares of ``decay_fit``, by scipy."""
    loss = decay_fit()

    def residual(p: np.ndarray) -> np.ndarray:
        t = np.linspace(0, 4, 40)
        data = 2 * np.exp(-1.3 * t) + 0.5 + 0.05 * np.sin(7 * t)
        return p[0] * np.exp(-p[1] * t) + p[2] - data

    found = scipy.optimize.least_squares(residual, [1.0, 0.2, 0.0], xtol=1e-15, ftol=1e-15)
    assert loss(torch.from_numpy(found.x)).item() == pytest.approx(2 * found.cost, rel=1e-12)
    return 2 * float(found.cost)


def problem(name: str, device: torch.device | str = "cpu") -> tuple[Loss, Tensor, float]:
    """Loss, starting point and least loss."""
    if name == "quadratic":
        return quadratic(device=device), torch.zeros(20, dtype=F64, device=device), 0.0
    if name == "rosenbrock":
        return rosenbrock, torch.full((10,), -1.2, dtype=F64, device=device), 0.0
    if name == "decay_fit":
        start = torch.tensor([1.0, 0.2, 0.0], dtype=F64, device=device)
        return decay_fit(device), start, decay_fit_minimum()
    start = torch.tensor([8.0, 2.0, 0.05, 30.0, 0.9], dtype=F64, device=device)
    return log_barrier, start, 0.0


PROBLEMS = ("quadratic", "rosenbrock", "decay_fit", "log_barrier")
# optimiser, steps, excess of the loss, gradient norm
SOLVERS: dict[str, tuple[Optimiser, int, float, float]] = {
    "adam": (
        Adam(AdamOptions(learning_rate=0.2, schedule=CosineSchedule(final_fraction=1e-3))),
        1800,
        1e-4,
        1e-1,
    ),
    "lbfgs": (LBFGS(), 400, 1e-15, 1e-11),
    "ssbfgs": (SelfScaledBFGS(), 400, 1e-15, 1e-11),
    "ssbroyden": (SelfScaledBroyden(), 400, 1e-15, 1e-11),
}


def layout_of(theta: Tensor) -> ParameterLayout:
    return ParameterLayout(("x",), (theta.numel(),))


def solve(
    optimiser: Optimiser,
    objective: Any,
    theta: Tensor,
    steps: int,
    state: State | None = None,
) -> list[StepResult]:
    """All results, up to a stop."""
    layout = layout_of(theta)
    state = optimiser.init(theta, layout, steps) if state is None else state
    results: list[StepResult] = []
    for _ in range(steps):
        results.append(optimiser.step(theta, state, objective, layout))
        theta, state = results[-1].theta, results[-1].state
        if results[-1].stop:
            break
    return results


def assert_same_state(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype, name
        assert torch.equal(one[name], two[name]), name


# --- every optimiser on every problem -------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_solves(solver: str, name: str, device: torch.device) -> None:
    if solver == "adam" and device == ELSEWHERE:
        pytest.skip("thousands of steps, for which tests/elsewhere.py is too slow")
    optimiser, steps, excess, norm = SOLVERS[solver]
    function, start, least = problem(name, device)
    objective = AutogradObjective(function)
    results = solve(optimiser, objective, start, steps)
    last = results[-1]
    assert last.loss.shape == () and last.theta.shape == start.shape
    assert function(last.theta).item() - least <= excess
    assert last.gradient_norm is not None and last.gradient_norm.item() <= norm
    assert objective.evaluations == sum(result.evaluations for result in results)
    there = [tensor for tensor in last.state.values() if tensor.ndim]
    assert there and all(tensor.device == start.device for tensor in there)
    if optimiser.deterministic_objective:
        assert last.stop in (StopReason.GRADIENT_TOLERANCE, StopReason.NO_PROGRESS)
        # the non-finite region was met, and survived
        assert (objective.non_finite > 0) == (name == "log_barrier")


@pytest.mark.parametrize("solver", SOLVERS)
def test_loss_is_where_the_class_says(solver: str) -> None:
    optimiser = SOLVERS[solver][0]
    objective = AutogradObjective(rosenbrock)
    theta = torch.full((10,), -1.2, dtype=F64)
    for result in solve(optimiser, objective, theta, 5):
        where = theta if optimiser.loss_at == "start" else result.theta
        loss, gradient = objective.loss_and_gradient(where)
        assert result.loss.item() == loss.item()
        assert result.gradient_norm is not None
        assert result.gradient_norm.item() == pytest.approx(gradient.norm().item(), rel=1e-14)
        theta = result.theta


@pytest.mark.parametrize("solver", SOLVERS)
def test_deterministic_pure_and_resumable(solver: str) -> None:
    """Same input, same bits; inputs untouched; a state through numpy goes on with the same bits."""
    optimiser, steps, _, _ = SOLVERS[solver]
    steps = min(steps, 70)  # more than the history, so that it has dropped pairs
    optimiser = LBFGS(LBFGSOptions(history=7)) if solver == "lbfgs" else optimiser
    objective = AutogradObjective(rosenbrock)
    start = torch.full((10,), -1.2, dtype=F64)
    first, second = (solve(optimiser, objective, start, steps) for _ in range(2))
    assert len(first) == steps
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.theta, two.theta)
        assert_same_state(one.state, two.state)

    middle = first[steps // 2]
    kept_theta = middle.theta.clone()
    kept = {name: tensor.clone() for name, tensor in middle.state.items()}
    outcomes = [
        optimiser.step(middle.theta, middle.state, objective, layout_of(start)) for _ in range(2)
    ]
    assert torch.equal(outcomes[0].theta, outcomes[1].theta)
    assert_same_state(outcomes[0].state, outcomes[1].state)
    assert torch.equal(middle.theta, kept_theta)
    assert_same_state(middle.state, kept)

    loaded = {name: torch.from_numpy(t.numpy().copy()) for name, t in middle.state.items()}
    theta = torch.from_numpy(middle.theta.numpy().copy())
    rest = solve(optimiser, objective, theta, steps - steps // 2 - 1, loaded)
    assert torch.equal(rest[-1].theta, first[-1].theta)
    assert_same_state(rest[-1].state, first[-1].state)
    assert sum(r.evaluations for r in rest) == sum(r.evaluations for r in first[steps // 2 + 1 :])


@pytest.mark.parametrize("solver", SOLVERS)
def test_state_does_not_share_the_parameters(solver: str) -> None:
    """Whatever is written over theta afterwards, the next step starts from an honest evaluation."""
    optimiser = SOLVERS[solver][0]
    objective = AutogradObjective(rosenbrock)
    theta = torch.full((10,), -1.2, dtype=F64)
    layout = layout_of(theta)
    state = optimiser.init(theta, layout, 10)
    theta.fill_(0.3)
    result = optimiser.step(theta, state, objective, layout)
    kept = {name: tensor.clone() for name, tensor in result.state.items()}
    theta.fill_(-9.0)
    moved = result.theta.clone()
    result.theta.fill_(-7.0)
    assert_same_state(result.state, kept)
    again = optimiser.step(moved, result.state, objective, layout)
    assert again.loss.item() < rosenbrock(torch.full((10,), 0.3, dtype=F64)).item()


def test_state_does_not_share_parameters_that_did_not_move() -> None:
    theta = torch.ones(20, dtype=F64)
    optimiser, layout = LBFGS(LBFGSOptions(gradient_tolerance=1e-3)), layout_of(theta)
    state = optimiser.init(theta, layout)
    result = optimiser.step(theta, state, AutogradObjective(quadratic()), layout)
    assert result.stop is StopReason.GRADIENT_TOLERANCE
    theta.fill_(5.0)
    result.theta.fill_(6.0)
    assert (result.state["theta"] == 1).all() and (result.state["best_theta"] == 1).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_stays_float32(solver: str) -> None:
    optimiser, steps, _, _ = SOLVERS[solver]
    start = torch.zeros(20, dtype=torch.float32)
    last = solve(optimiser, AutogradObjective(lambda x: quadratic()(x) + 1), start, steps)[-1]
    assert last.theta.dtype == last.loss.dtype == torch.float32
    assert abs(last.loss.item() - 1) < 1e-4


@pytest.mark.parametrize("solver", SOLVERS)
def test_init_refuses_what_does_not_fit(solver: str) -> None:
    optimiser = SOLVERS[solver][0]
    with pytest.raises(ConfigError, match=r"shape \(3,\).*\(4,\)"):
        optimiser.init(torch.zeros(3), ParameterLayout(("x",), (4,)), 10)
    with pytest.raises(ConfigError, match="no parameters"):
        optimiser.init(torch.zeros(0), ParameterLayout((), ()), 10)
    with pytest.raises(ConfigError, match="int64"):
        optimiser.init(torch.zeros(2, dtype=torch.int64), ParameterLayout(("x",), (2,)), 10)


# --- layout and registry --------------------------------------------------------------------------


def test_layout_splits_into_views() -> None:
    layout = ParameterLayout(("a", "b", "c"), (2, 0, 3))
    theta = torch.arange(5.0)
    parts = layout.split(theta)
    assert layout.total == 5
    assert {name: part.tolist() for name, part in parts.items()} == {
        "a": [0, 1],
        "b": [],
        "c": [2, 3, 4],
    }
    parts["c"][0] = 9.0
    assert theta[2] == 9.0
    for names, sizes in ((("a", "a"), (1, 1)), (("a",), (1, 2)), (("a",), (-1,))):
        with pytest.raises(ConfigError, match="parameter layout"):
            ParameterLayout(names, sizes)


def test_registry() -> None:
    every = (
        AdamOptions(learning_rate=0.5),
        LBFGSOptions(history=3),
        LevenbergMarquardtOptions(damping=2.0),
    )
    for options in every:
        optimiser = build_optimiser(options)
        assert type(optimiser) is OPTIMISERS[options.optimiser]
        assert optimiser.options == options
    assert Adam.deterministic_objective is False and LBFGS.deterministic_objective is True

    class Unknown:
        optimiser = "sgd"

    with pytest.raises(ConfigError, match="'sgd'; the optimisers are adam, lbfgs"):
        build_optimiser(Unknown())


def test_options_validate_with_pydantic() -> None:
    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(AnyOptimiserOptions)
    raw = {"optimiser": "adam", "schedule": {"kind": "cyclic", "cycle": 50}}
    assert adapter.validate_python(raw) == AdamOptions(schedule=CyclicSchedule(cycle=50))
    assert adapter.validate_python({"optimiser": "lbfgs", "history": 9}).history == 9
    for wrong in (
        {"optimiser": "lbfgs", "history": 0},
        {"optimiser": "adam", "betas": [0.9, 1.0]},
        {"optimiser": "adam", "group_learning_rates": {"knots": -1}},
        {"optimiser": "adam", "schedule": {"kind": "linear"}},
    ):
        with pytest.raises(pydantic.ValidationError):
            adapter.validate_python(wrong)
    with pytest.raises(ConfigError, match="sufficient_decrease"):
        LBFGSOptions(sufficient_decrease=0.3, curvature=0.2)


# --- schedules ------------------------------------------------------------------------------------


def torch_schedule(kind: str, steps: int) -> list[float]:
    """Learning rates of torch's own schedulers with a learning rate of 1."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    made: dict[str, Callable[[], Any]] = {
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 0.05),
        "exponential": lambda: torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.97),
        "step": lambda: torch.optim.lr_scheduler.StepLR(optimiser, 7, 0.5),
        "cyclic": lambda: torch.optim.lr_scheduler.CyclicLR(
            optimiser, 0.1, 1.0, 10, mode="exp_range", gamma=0.99, cycle_momentum=False
        ),
    }
    scheduler = made[kind]()
    rates = []
    for _ in range(steps):
        rates.append(float(optimiser.param_groups[0]["lr"]))
        optimiser.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    "schedule",
    [
        CosineSchedule(final_fraction=0.05),
        ExponentialSchedule(decay=0.97, every=1),
        StepSchedule(decay=0.5, every=7),
        CyclicSchedule(cycle=20, decay=0.99, low_fraction=0.1),
    ],
    ids=lambda schedule: schedule.kind,
)
def test_schedule_equals_torch(schedule: Any) -> None:
    factors = schedule.factor(torch.arange(53), 53).tolist()
    assert factors == pytest.approx(torch_schedule(schedule.kind, 53), rel=1e-12, abs=1e-15)


def test_schedule_closed_forms() -> None:
    assert ConstantSchedule().factor(17).item() == 1.0
    assert ExponentialSchedule(decay=0.9, every=2000).factor(3000).item() == pytest.approx(0.9**1.5)
    restart = CyclicSchedule(cycle=4, decay=0.5, low_fraction=0.2, shape="restart")
    expected = [0.2 + 0.8 * 0.5**k * (1 - (k % 4) / 4) for k in range(9)]
    assert restart.factor(torch.arange(9)).tolist() == pytest.approx(expected, rel=1e-14)
    cosine = CosineSchedule(final_fraction=0.1)
    assert cosine.factor(torch.tensor([0, 50, 100, 200]), 100).tolist() == pytest.approx(
        [1.0, 0.55, 0.1, 0.1]
    )


@pytest.mark.parametrize(
    "schedule",
    [ConstantSchedule(), CosineSchedule(), ExponentialSchedule(every=3), CyclicSchedule()],
    ids=lambda schedule: schedule.kind,
)
def test_warmup_is_linear_and_then_the_schedule(schedule: BaseSchedule) -> None:
    """From 1e-4 to 1e-2 in 10 steps, and then as without warm-up, 10 steps shorter."""
    warm = replace(schedule, warmup=10, warmup_factor=0.01)
    rates = (1e-2 * warm.factor(torch.arange(40), 40)).tolist()
    assert rates[:10] == pytest.approx([1e-4 + 9.9e-4 * k for k in range(10)], rel=1e-12)
    after = (1e-2 * schedule.factor(torch.arange(30), 30)).tolist()
    assert rates[10:] == pytest.approx(after, rel=1e-14)


def test_schedule_that_needs_the_total() -> None:
    with pytest.raises(ConfigError, match="number of steps"):
        CosineSchedule().factor(3)
    adam = Adam(AdamOptions(schedule=CosineSchedule()))
    with pytest.raises(ConfigError, match="number of steps"):
        adam.init(torch.zeros(2), ParameterLayout(("x",), (2,)))
    with pytest.raises(ConfigError, match="total_steps is 0"):
        adam.init(torch.zeros(2), ParameterLayout(("x",), (2,)), 0)


# --- Adam -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 20.0])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_equals_torch(decay: float, clip: float | None) -> None:
    start = torch.linspace(-1.2, 1.4, 10, dtype=F64)
    kind = torch.optim.AdamW if decay else torch.optim.Adam
    parameter = start.clone().requires_grad_()
    reference = kind([parameter], lr=0.03, betas=(0.8, 0.99), eps=1e-6, weight_decay=decay)
    options = AdamOptions(
        learning_rate=0.03, betas=(0.8, 0.99), eps=1e-6, weight_decay=decay, gradient_clip=clip
    )
    results = solve(Adam(options), AutogradObjective(rosenbrock), start, 50)
    clipped = 0
    for result in results:
        reference.zero_grad()
        rosenbrock(parameter).backward()
        assert parameter.grad is not None
        norm = parameter.grad.norm().item()
        if clip is not None and norm > clip:
            parameter.grad *= clip / norm
            clipped += 1
        reference.step()
        torch.testing.assert_close(result.theta, parameter.detach(), rtol=0, atol=1e-12)
    assert len(results) == 50 and (clip is None or 0 < clipped < 50)


def test_adam_schedule_sets_the_learning_rate() -> None:
    """The first update is ``learning rate * sign(gradient)``, in later ones the rate shows too."""
    schedule = StepSchedule(decay=0.1, every=1)
    adam = Adam(AdamOptions(learning_rate=0.5, eps=1e-300, schedule=schedule))
    slope = torch.tensor([3.0, -0.2], dtype=F64)
    objective = AutogradObjective(lambda x: slope.to(x) @ x)
    results = solve(adam, objective, torch.zeros(2, dtype=F64), 3)
    # with a constant gradient, m / (1 - b1^k) / sqrt(v / (1 - b2^k)) is its sign
    for count, result in enumerate(results):
        travelled = sum(0.5 * 0.1**k for k in range(count + 1))
        torch.testing.assert_close(result.theta, -slope.sign() * travelled, rtol=1e-12, atol=0)
    assert adam.learning_rate(results[-1].state).item() == pytest.approx(0.5e-3)


def test_adam_group_learning_rates() -> None:
    """Each group moves as if alone with its own learning rate; the longest prefix decides."""
    layout = ParameterLayout(("knots.0", "knots.1.end", "weights", "fixed"), (2, 3, 2, 1))
    factors = {"knots": 0.1, "knots.1": 0.5, "fixed": 0.0}
    start = torch.linspace(-1, 1, 8, dtype=F64)
    separable = AutogradObjective(lambda x: (x**4 - x).sum())

    def run(options: AdamOptions) -> Tensor:
        adam, theta = Adam(options), start
        state = adam.init(theta, layout)
        for _ in range(20):
            result = adam.step(theta, state, separable, layout)
            theta, state = result.theta, result.state
        return theta

    together = layout.split(
        run(AdamOptions(learning_rate=0.1, weight_decay=0.2, group_learning_rates=factors))
    )
    rates = {"knots.0": 0.01, "knots.1.end": 0.05, "weights": 0.1}
    for name, rate in rates.items():
        alone = layout.split(run(AdamOptions(learning_rate=rate, weight_decay=0.2)))[name]
        torch.testing.assert_close(together[name], alone, rtol=1e-13, atol=1e-14)
    assert torch.equal(together["fixed"], start[-1:])
    with pytest.raises(ConfigError, match=r"no group begins with 'bias'.*knots\.0"):
        Adam(AdamOptions(group_learning_rates={"bias": 1.0})).init(start, layout)


@pytest.mark.parametrize("bad", ["loss", "gradient", "overflow"])
def test_adam_skips_non_finite_steps(bad: str) -> None:
    """A bad batch changes counters only, and the run goes on as if it had not been there."""

    def objective(broken: bool) -> Scripted:
        def evaluate(theta: Tensor) -> tuple[Tensor, Tensor]:
            loss, gradient = AutogradObjective(rosenbrock).loss_and_gradient(theta)
            if broken and bad == "loss":
                loss = loss * math.inf
            elif broken:
                gradient[3] = math.nan if bad == "gradient" else 1e200
            return loss, gradient

        return Scripted(evaluate)

    adam, theta = Adam(AdamOptions(gradient_clip=5.0)), torch.full((10,), -1.2, dtype=F64)
    layout = layout_of(theta)
    runs = []
    for broken_steps in ((), (2, 3, 7)):
        place, state, good = theta, adam.init(theta, layout), 0
        count, in_a_row = 0, []
        while good < 8:
            result = adam.step(place, state, objective(count in broken_steps), layout)
            if count in broken_steps:
                assert torch.equal(result.theta, place)
                assert torch.equal(result.state["m"], state["m"])
                assert torch.equal(result.state["v"], state["v"])
            else:
                assert not torch.equal(result.theta, place)
                good += 1
            place, state, count = result.theta, result.state, count + 1
            in_a_row.append(int(state["skipped_in_a_row"]))
            assert result.stop is None
        runs.append((place, int(state["skipped"]), int(state["step"]), in_a_row))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1:3] == (0, 8) and runs[1][1:3] == (3, 11)
    assert runs[1][3] == [0, 0, 1, 2, 0, 0, 0, 1, 0, 0, 0]


class NoWaiting(TorchDispatchMode):
    """Raises when a tensor's value is asked for on the host."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("the host waits for a value")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "schedule", [CosineSchedule(warmup=2), CyclicSchedule(warmup=2), StepSchedule()]
)
def test_adam_never_waits_for_the_device(schedule: Any, device: torch.device) -> None:
    options = AdamOptions(
        schedule=schedule, gradient_clip=1.0, weight_decay=0.1, group_learning_rates={"x": 0.5}
    )
    adam, theta = Adam(options), torch.ones(4, dtype=F64, device=device)
    layout = layout_of(theta)
    state = adam.init(theta, layout, 10)
    objective = Scripted(lambda x: ((x * x).sum(), 2 * x))
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        theta.sum().item()
    with NoWaiting():
        for _ in range(3):
            result = adam.step(theta, state, objective, layout)
            theta, state = result.theta, result.state
    assert (theta < 1).all()


# --- L-BFGS ---------------------------------------------------------------------------------------


def dense_inverse_hessian(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The BFGS update of the inverse Hessian, pair by pair, from the scaled identity."""
    s, y = pairs[-1]
    n = len(s)
    h = (s @ y) / (y @ y) * np.eye(n)
    for s, y in pairs:
        v = np.eye(n) - np.outer(y, s) / (s @ y)
        h = v.T @ h @ v + np.outer(s, s) / (s @ y)
    return h


@pytest.mark.parametrize("count", [1, 4, 6, 11])
def test_direction_equals_dense_bfgs(count: int, generator: torch.Generator) -> None:
    """With room for six pairs: fewer, exactly as many, and more."""
    n, room = 9, 6
    a = rotated_spectrum(n, 3)
    history = CurvatureHistory.empty(room, torch.zeros(n, dtype=F64))
    pairs = []
    for _ in range(count):
        s = torch.randn(n, dtype=F64, generator=generator)
        y = a @ s + 0.1 * s**3
        history = history.append(s, y)
        pairs.append((s.numpy(), y.numpy()))
    gradient = torch.randn(n, dtype=F64, generator=generator)
    expected = -dense_inverse_hessian(pairs[-room:]) @ gradient.numpy()
    assert history.count == min(count, room)
    np.testing.assert_allclose(history.direction(gradient).numpy(), expected, rtol=1e-9)


def yanai(a: float, b1: float, b2: float) -> float:
    """A function with flat ends that differ in steepness."""

    def gamma(b: float) -> float:
        return math.sqrt(1 + b * b) - b

    left = gamma(b1) * math.sqrt((1 - a) ** 2 + b2 * b2)
    return left + gamma(b2) * math.sqrt(a * a + b1 * b1)


# Test functions of More and Thuente (doi:10.1145/192115.192132), section 5, a logarithm, and worse.
LINES: dict[str, Callable[[float], float]] = {
    "1": lambda a: -a / (a * a + 2),
    "2": lambda a: (a + 0.004) ** 5 - 2 * (a + 0.004) ** 4,
    "4": lambda a: yanai(a, 0.001, 0.001),
    "5": lambda a: yanai(a, 0.01, 0.001),
    "6": lambda a: yanai(a, 0.001, 0.01),
    "log": lambda a: -a - 0.01 * math.log(4 - a) if a < 4 else math.nan,
    "sharp": lambda a: math.hypot(a - 0.97, 1e-4) + 50 * max(a - 0.97, 0.0) ** 2,
    "waves": lambda a: 0.3 * (a - 3) ** 2 - 0.5 * math.sin(9 * a),
}


def search_along(
    line: Callable[[float], float], first: float, c1: float, c2: float, budget: int = 60
) -> tuple[SearchResult, WolfeConditions]:
    nothing = torch.zeros(0)

    def evaluate(step: float) -> Trial:
        h = 1e-6 * max(1e-2, abs(step))
        slope = (line(step + h) - line(step - h)) / (2 * h)
        return Trial(step, line(step), slope, nothing, nothing, nothing)

    start = evaluate(0.0)
    conditions = WolfeConditions(start.value, start.slope, c1, c2, -math.inf, 0.0)
    return wolfe_search(evaluate, start, first, conditions, budget), conditions


@pytest.mark.parametrize("first", [1e-3, 1e-1, 1e1, 1e3])
@pytest.mark.parametrize("name", LINES)
def test_line_search_on_hard_lines(name: str, first: float) -> None:
    """Strong Wolfe, tightly (c2 = 0.1), from first steps over six decades."""
    found, conditions = search_along(LINES[name], first, 1e-3, 0.1)
    assert found.end is SearchEnd.WOLFE and found.trial is not None
    trial = found.trial
    assert trial.value <= conditions.value + 1e-3 * trial.step * conditions.slope
    assert abs(trial.slope) <= 0.1 * abs(conditions.slope)
    assert found.evaluations <= 25


def test_line_search_comes_back_quickly_from_a_non_finite_region() -> None:
    """By powers of ten: halving alone would need 20 evaluations."""

    def line(a: float) -> float:
        return -2 * a - 3 * math.log(4 - a) if a < 4 else math.nan

    found, _ = search_along(line, 1e6, 1e-4, 0.9)
    assert found.end is SearchEnd.WOLFE and found.evaluations <= 12


def test_lbfgs_noise_cannot_add_up() -> None:
    """A loss that creeps up at each evaluation: accepted only up to the noise above the best."""
    scales = torch.logspace(0, 3, 12, dtype=F64)
    count = 0

    def creeping(x: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal count
        count += 1
        return torch.tensor(1 + 0.3e-8 * (count - 1), dtype=F64), scales * x

    results = solve(LBFGS(), Scripted(creeping), torch.ones(12, dtype=F64), 20)
    losses = [result.loss.item() for result in results if result.stop is None]
    assert losses and 1 < max(losses) <= 1 + 1.0001e-8


def scipy_run(function: Loss, start: Tensor, steps: int) -> tuple[list[float], float, float]:
    """All losses evaluated by scipy's L-BFGS-B, its final loss and gradient norm."""
    objective, losses = AutogradObjective(function), []

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = objective.loss_and_gradient(torch.from_numpy(x))
        losses.append(loss.item())
        return loss.item(), gradient.numpy()

    options = {"maxcor": 50, "ftol": 0, "gtol": 0, "maxiter": steps, "maxfun": 10**6}
    found = scipy.optimize.minimize(
        evaluate, start.numpy(), jac=True, method="L-BFGS-B", options=options
    )
    return losses, float(found.fun), float(np.linalg.norm(found.jac))


def recorded(function: Loss, losses: list[float]) -> Loss:
    def wrapped(x: Tensor) -> Tensor:
        loss = function(x)
        losses.append(loss.item())
        return loss

    return wrapped


@pytest.mark.parametrize("name", ["rosenbrock", "quadratic", "decay_fit"])
def test_lbfgs_against_scipy(name: str) -> None:
    """To the same loss in at most 1.3 times the evaluations (and 5), and as far down or further."""
    function, start, least = problem(name)
    losses: list[float] = []
    last = solve(LBFGS(), AutogradObjective(recorded(function, losses)), start, 2000)[-1]
    theirs, their_loss, _ = scipy_run(function, start, 2000)
    for level in (1e-2, 1e-5, 1e-8):
        ours_count, their_count = (
            next(k for k, loss in enumerate(run) if loss <= least + level)
            for run in (losses, theirs)
        )
        assert ours_count <= 1.3 * their_count + 5
    assert last.loss.item() <= their_loss + 1e-15 * abs(their_loss) + 1e-25


@pytest.mark.parametrize("decades", [2, 4])
def test_lbfgs_goes_on_below_the_noise_of_the_loss(decades: int) -> None:
    """Where the loss differs only by round-off, the gradient still falls, far below scipy's."""
    a = rotated_spectrum(50, decades)
    b = torch.linspace(-1, 1, 50, dtype=F64)

    def function(x: Tensor) -> Tensor:
        return 0.5 * x @ (a @ x) - b @ x + 1

    start = torch.ones(50, dtype=F64)
    results = solve(LBFGS(), AutogradObjective(function), start, 3000)
    _, _, theirs = scipy_run(function, start, 3000)
    assert results[-1].stop in (StopReason.NO_PROGRESS, StopReason.GRADIENT_TOLERANCE)
    ours = results[-1].gradient_norm
    assert ours is not None and ours.item() <= 1e-3 * theirs and ours.item() <= 1e-10
    # one part in 1e8 is the stated noise of the loss: it may not creep up by more
    lowest = min(result.loss.item() for result in results)
    assert results[-1].loss.item() <= lowest + 1e-8 * abs(lowest)


@pytest.mark.parametrize("name", PROBLEMS)
def test_lbfgs_accepted_steps_satisfy_strong_wolfe(name: str) -> None:
    """Both conditions hold exactly at every accepted step; near round-off, the approximate form."""
    function, theta, least = problem(name)
    objective = AutogradObjective(function)
    c1, c2, best, exact = 1e-4, 0.9, math.inf, 0
    for result in solve(LBFGS(), objective, theta, 400):
        if result.stop is not None or function(theta).item() - least < 1e-20:
            break  # theta itself is only good to round-off from here on
        assert not result.notes
        s = result.theta - theta
        (f0, g0), (f1, g1) = (objective.loss_and_gradient(x) for x in (theta, result.theta))
        slope0, slope1, value0, value1 = (x.item() for x in (g0 @ s, g1 @ s, f0, f1))
        best = min(best, value0)
        rounding = 1e-6 * abs(slope0)  # theta + s is rounded, so s is not exactly along d
        assert slope0 < 0
        assert abs(slope1) <= -c2 * slope0 + rounding
        if value1 <= value0 + c1 * slope0:
            exact += 1
        else:
            assert value1 <= best + 1e-8 * abs(best)
            assert slope1 <= (2 * c1 - 1) * slope0 + rounding
            assert value0 - least <= 1e-6 * max(1, least)
        theta = result.theta
    assert exact >= 10


def test_lbfgs_wolfe_is_reached_from_bad_first_steps() -> None:
    """Far too long and far too short first trials end in an acceptable step all the same."""
    for rate in (1e-6, 1e4):
        options = LBFGSOptions(learning_rate=rate, max_line_search_evaluations=40)
        objective = AutogradObjective(rosenbrock)
        start = torch.full((10,), -1.2, dtype=F64)
        results = solve(LBFGS(options), objective, start, 10)
        assert not any(result.notes for result in results)
        assert all(result.evaluations > 2 for result in results)
        losses = [result.loss.item() for result in results]
        assert losses == sorted(losses, reverse=True) and losses[-1] < 0.1 * rosenbrock(start)


def test_lbfgs_evaluates_again_where_theta_was_changed() -> None:
    objective = AutogradObjective(rosenbrock)
    results = solve(LBFGS(), objective, torch.full((10,), -1.2, dtype=F64), 20)
    layout, moved = layout_of(results[-1].theta), results[-1].theta + 0.01
    before = objective.evaluations
    result = LBFGS().step(moved, results[-1].state, objective, layout)
    assert objective.evaluations - before == result.evaluations >= 2
    assert result.loss.item() < rosenbrock(moved).item()


def stop_of(options: LBFGSOptions, objective: Any, start: Tensor) -> list[StepResult]:
    results = solve(LBFGS(options), objective, start, 300)
    assert results[-1].stop is not None
    return results


def test_lbfgs_stops_at_the_gradient_tolerance() -> None:
    objective, start = AutogradObjective(quadratic()), torch.zeros(20, dtype=F64)
    last = stop_of(LBFGSOptions(gradient_tolerance=1e-3), objective, start)[-1]
    assert last.stop is StopReason.GRADIENT_TOLERANCE
    assert objective.loss_and_gradient(last.theta)[1].norm().item() <= 1e-3
    # and again, without any evaluation, when asked to go on
    again = LBFGS(LBFGSOptions(gradient_tolerance=1e-3)).step(
        last.theta, last.state, objective, layout_of(start)
    )
    assert again.stop is StopReason.GRADIENT_TOLERANCE and again.evaluations == 0
    assert torch.equal(again.theta, last.theta)


def test_lbfgs_stops_without_progress() -> None:
    """Loss and gradient that no longer fall, over the given number of steps."""
    objective, start = (
        AutogradObjective(lambda x: quadratic()(3 * x) + 1),
        torch.zeros(20, dtype=F64),
    )
    options = LBFGSOptions(gradient_tolerance=0, patience=5)
    results = stop_of(options, objective, start)
    assert results[-1].stop is StopReason.NO_PROGRESS
    assert results[-1].loss.item() == pytest.approx(1, abs=1e-14)
    # an endless slow descent is no progress either, if the tolerance says so
    slow = LBFGSOptions(change_tolerance=0.5, patience=3)
    results = stop_of(
        slow, AutogradObjective(lambda x: 1e3 + rosenbrock(x)), torch.zeros(9).to(F64)
    )
    assert results[-1].stop is StopReason.NO_PROGRESS and results[-1].loss.item() > 1e3 + 1e-9


def test_lbfgs_flat_loss_is_no_progress() -> None:
    def flat(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones((), dtype=F64), torch.ones_like(x)

    start = torch.zeros(3, dtype=F64)
    last = stop_of(LBFGSOptions(), Scripted(flat), start)[-1]
    assert last.stop is StopReason.NO_PROGRESS
    assert torch.equal(last.theta, start)


def test_lbfgs_line_search_failure() -> None:
    """A gradient that becomes wrong: clears the history, tries the steepest descent, gives up."""

    def uphill(x: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * x @ x, -x

    start = torch.ones(3, dtype=F64)
    last = stop_of(LBFGSOptions(), Scripted(uphill), start)[-1]
    assert last.stop is StopReason.LINE_SEARCH_FAILED
    assert torch.equal(last.theta, start) and last.evaluations == 26

    good = solve(LBFGS(), AutogradObjective(rosenbrock), torch.full((10,), -1.2, dtype=F64), 8)[-1]

    def wrong(x: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = AutogradObjective(rosenbrock).loss_and_gradient(x)
        return (loss, gradient) if torch.equal(x, good.theta) else (loss + 1, gradient)

    failed = LBFGS().step(good.theta, good.state, Scripted(wrong), layout_of(good.theta))
    assert failed.stop is StopReason.LINE_SEARCH_FAILED
    assert any("history cleared" in note for note in failed.notes)
    assert int(good.state["pairs"]) == 8 and int(failed.state["pairs"]) == 0
    # a caller may go on with a repaired objective
    resumed = solve(LBFGS(), AutogradObjective(rosenbrock), failed.theta, 200, failed.state)
    assert resumed[-1].loss.item() < 1e-15


def test_lbfgs_steepest_descent_saves_a_failed_search() -> None:
    """Pairs that mislead (here: of another problem) cost one search, not the run."""
    first = solve(LBFGS(), AutogradObjective(quadratic(10)), torch.zeros(10, dtype=F64), 9)[-1]
    state = dict(first.state)
    state["s_history"], state["y_history"] = state["s_history"] * 1e6, state["y_history"] * 1e-6
    start = torch.full((10,), -1.2, dtype=F64)
    options = LBFGSOptions(max_line_search_evaluations=8)
    results = solve(LBFGS(options), AutogradObjective(rosenbrock), start, 300, state)
    assert any("history cleared" in note for note in results[0].notes)
    assert results[0].stop is None and results[-1].loss.item() < 1e-15


def test_lbfgs_never_searches_uphill() -> None:
    """Pairs turned round make H negative definite: its direction is not tried at all."""
    objective = AutogradObjective(rosenbrock)
    good = solve(LBFGS(), objective, torch.full((10,), -1.2, dtype=F64), 8)[-1]
    turned = {name: -good.state[name] for name in ("y_history", "products")}
    result = LBFGS().step(good.theta, good.state | turned, objective, layout_of(good.theta))
    assert result.notes == ("quasi-Newton direction was no descent: history cleared",)
    assert result.loss.item() < good.loss.item() and int(result.state["pairs"]) == 1


def test_lbfgs_non_finite_start_without_a_best_iterate() -> None:
    start = torch.tensor([-1.0, 2.0], dtype=F64)
    last = stop_of(LBFGSOptions(), AutogradObjective(log_barrier), start)[-1]
    assert last.stop is StopReason.NON_FINITE
    assert torch.equal(last.theta, start) and last.evaluations == 1
    assert not torch.isfinite(last.loss)


def test_lbfgs_restarts_from_the_best_iterate() -> None:
    objective = AutogradObjective(log_barrier)
    start = torch.tensor([8.0, 2.0, 0.05, 30.0, 0.9], dtype=F64)
    before = solve(LBFGS(), objective, start, 6)[-1]
    layout, outside = layout_of(start), -torch.ones(5, dtype=F64)
    state, best = before.state, before
    for count in range(3):
        result = LBFGS().step(outside, state, objective, layout)
        assert result.stop is None
        assert result.notes == ("restarted from best iterate: loss or gradient not finite",)
        assert result.loss.item() < best.loss.item()  # went on from there
        assert int(result.state["restarts"]) == count + 1 and int(result.state["pairs"]) == 1
        state, best = result.state, result
    last = LBFGS().step(outside, state, objective, layout)
    assert last.stop is StopReason.NON_FINITE
    assert torch.equal(last.theta, best.theta) and last.loss.item() == best.loss.item()


def test_lbfgs_restart_shortens_the_first_step() -> None:
    """Ten times shorter after each restart, with the scale of the last pair."""
    seen: list[Tensor] = []

    def function(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return log_barrier(x)

    objective = AutogradObjective(function)
    start = torch.tensor([8.0, 2.0, 30.0], dtype=F64)
    state = solve(LBFGS(), objective, start, 4)[-1].state
    best, gradient, scale = state["best_theta"], 1 - 1 / state["best_theta"], state["scale"]
    for count in (1, 2):
        seen.clear()
        spoilt = state | {"restarts": torch.tensor(count - 1)}
        LBFGS().step(-torch.ones(3, dtype=F64), spoilt, objective, layout_of(start))
        torch.testing.assert_close(seen[2], best - 0.1**count * scale * gradient)


def test_lbfgs_at_the_edge_of_a_non_finite_region() -> None:
    """No point satisfies the curvature condition: the loss still falls, up to the edge."""

    def function(x: Tensor) -> Tensor:
        return (x + 0 * torch.sqrt(x - 1)).sum()  # nan below 1

    results = stop_of(LBFGSOptions(), AutogradObjective(function), torch.tensor([3.0]).to(F64))
    assert any("sufficient decrease only" in note for note in results[0].notes)
    assert results[-1].stop in (StopReason.LINE_SEARCH_FAILED, StopReason.NO_PROGRESS)
    assert 0 < results[-1].loss.item() - 1 < 1e-6

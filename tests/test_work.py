"""Operations of training: hand-counted for tiny networks, call by call; in runs, and resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_multilevel import Inverse, Line, StopAfter, adam, lbfgs, lm
from test_multilevel import options as run_options
from test_objective import make, objective_of
from tiny_runs import Plain
from torch import Tensor

from kanpinn.conditions import Periodic
from kanpinn.geometry import Box
from kanpinn.jets import JetSpec
from kanpinn.models import KANOptions, MLPOptions, ModelOptions, MultichannelOptions
from kanpinn.optimisers import (
    LBFGS,
    LBFGSOptions,
    LevenbergMarquardt,
    LevenbergMarquardtOptions,
    Optimiser,
    SelfScaledBroyden,
)
from kanpinn.optimisers.dense_model import DenseModel
from kanpinn.optimisers.dual_model import DualModel
from kanpinn.optimisers.iterative_model import IterativeModel
from kanpinn.problem import Problem, build_system
from kanpinn.residuals import Site
from kanpinn.training import (
    BalanceOptions,
    MultilevelRun,
    SelfScaledBroydenPhase,
    SmoothingOptions,
)
from kanpinn.training.objective import SystemObjective
from kanpinn.training.work import point_operations

KAN = KANOptions(width=3, order=4, intervals=2)
# Layers 2 -> 3 -> 1, and jets of a value, two first derivatives and their Laplacian.
POINT = 2 * 4 * (2 * 4 * 3 + 3 * 4 * 1)
N = (2 * 3 + 3 * 1) * (2 + 4 - 1)  # parameters
ONE = torch.ones


def plain(model: ModelOptions = KAN, n: int = 10, **more: Any) -> tuple[SystemObjective, Tensor]:
    """Poisson's equation with built-in conditions at ``n`` points, one equation."""
    return objective_of(*make(model, Plain(), n), **more)


def spent(objective: SystemObjective, call: Callable[[], Any]) -> int:
    before = objective.meter.operations
    call()
    return objective.meter.operations - before


# --- a point --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "functions"),
    [
        (KAN, 2 * 4 * 3 + 3 * 4),
        (replace(KAN, intervals=16), 2 * 4 * 3 + 3 * 4),  # the same four of any number
        (replace(KAN, base="silu"), 2 * 5 * 3 + 3 * 5),
        (replace(KAN, order=(4, 6)), 2 * 4 * 3 + 3 * 6),
        (MultichannelOptions(width=3, order=4, intervals=2), 2 * 5 * 3 + 3 * 5),
        (MultichannelOptions(width=3, order=4, intervals=16), 2 * 19 * 3 + 3 * 19),
        (MLPOptions(width=4, hidden_layers=2), 2 * 4 + 4 * 4 + 4),
    ],
)
def test_a_point(model: ModelOptions, functions: int) -> None:
    system = build_system(Plain(), model, torch.Generator().manual_seed(0))
    value = {"main": JetSpec.value_only(2)}
    assert point_operations(system, value) == 2 * functions
    second = {"main": JetSpec.closure(2, [(2, 0), (1, 1)])}  # and so (0, 0), (1, 0), (0, 1)
    assert point_operations(system, second) == 2 * 5 * functions


# --- the calls of an objective --------------------------------------------------------------------
def test_losses_gradients_and_residuals() -> None:
    objective, theta = plain()
    assert len(theta) == N
    u = ONE(10, dtype=torch.float64)
    counted = {
        1: (lambda: objective.loss(theta), lambda: objective.residuals(theta)),
        3: (
            lambda: objective.loss_and_gradient(theta),
            lambda: objective.transposed_product(theta, u),
            lambda: list(objective.jacobian_rows(theta)),
        ),
    }
    for times, calls in counted.items():
        for call in calls:
            assert spent(objective, call) == times * 10 * POINT


def test_squares_and_triangles_of_the_jacobian() -> None:
    rows, columns = 60, N + 1
    objective, theta = plain(n=rows)
    assert spent(objective, lambda: objective.triangle(theta)) == (
        3 * rows * POINT + 2 * rows * columns**2
    )
    square = 3 * rows * POINT + rows * columns**2
    kept = 2 * rows * N
    for memory, product, transposed in ((1e9, kept, kept), (0, 0, 3 * rows * POINT)):
        found = objective.squares(theta, memory)
        assert spent(objective, lambda: objective.squares(theta, memory)) == square  # noqa: B023
        assert spent(objective, lambda: found.product(theta)) == product  # noqa: B023
        u = ONE(rows, dtype=torch.float64)
        assert spent(objective, lambda: found.transposed(u)) == transposed  # noqa: B023


def test_products_with_the_jacobian() -> None:
    objective, theta = plain(n=10, chunk=8)  # two chunks, of 8 and 2 points
    every: dict[str, Any] = {}

    def linearise() -> None:
        every["linear"] = objective.linearise(theta, memory)

    u = ONE(10, dtype=torch.float64)
    # The second chunk is made, found too large to be kept, and made again for every product.
    for memory, made in ((1e9, 0), (1.0, 2 * 10)):
        first = 10 if memory > 1 else 8
        assert spent(objective, linearise) == (10 + 2 * first) * POINT
        linear = every["linear"]
        for call in (lambda: linear.product(theta), lambda: linear.transposed(u)):  # noqa: B023
            assert spent(objective, call) == (made + 10) * POINT
        blocks = 3 * (2 * 4**2 + 2**2) + (3 * 4**2 + 3**2)  # rows of 10 and of 15 columns
        assert spent(objective, lambda: linear.block_squares(4)) == (  # noqa: B023
            (made + 10) * POINT + 10 * blocks
        )


def test_several_equations_networks_and_blocks() -> None:
    """Two equations on 8 points of the interior, a value at 8 points of the boundary."""
    objective, theta = objective_of(*make(KAN, Inverse(), 8))
    u_xx, v_y, value = 3, 2, 1  # components: u, u_x, u_xx; v, v_y; u alone
    point = POINT // 4
    equation, boundary = 8 * point * (u_xx + v_y), 8 * point * value
    assert spent(objective, lambda: objective.residuals(theta)) == equation + boundary
    jacobian = 5 * equation + 3 * boundary
    assert spent(objective, lambda: list(objective.jacobian_rows(theta))) == jacobian
    assert spent(objective, lambda: objective.triangle(theta)) == (
        jacobian + 2 * (len(theta) + 1) * (2 * 8 + 8) ** 2  # fewer rows than columns
    )


def test_joined_points_count_each() -> None:
    class Ring(Problem):
        domain = Box((0.0, 0.0), (1.0, 1.0))
        conditions = (Periodic(order=0),)

        def residual(self, p: Site) -> Tensor:
            return p.u.x

    objective, theta = objective_of(*make(KAN, Ring(), 8))
    assert [len(data.points) for data in objective.data] == [1, 2]
    point = POINT // 4  # u and u_x at 8 points, u alone at 8 pairs
    assert spent(objective, lambda: objective.loss(theta)) == point * (8 * 2 + 8 * 2)


def test_mini_batches_and_threads() -> None:
    whole, theta = plain()
    picked = torch.tensor([1, 4, 7])
    batched, _ = plain(chosen={whole.data[0].block.name: picked})
    assert spent(batched, lambda: batched.loss_and_gradient(theta)) == 3 * 3 * POINT
    shared, _ = plain(chunk=2, workers=2)
    for objective in (whole, shared):
        objective.triangle(theta)
        objective.linearise(theta, 0.0).product(theta)
    # One of them is in more chunks, of which the first is made once more.
    assert whole.meter.operations - shared.meter.operations == 2 * (10 - 2) * POINT


# --- linear systems -------------------------------------------------------------------------------
def model_of(kind: type, objective: SystemObjective, theta: Tensor, *more: Any) -> Any:
    return kind(objective, theta, objective.residuals(theta), torch.ones_like, *more)


def test_dense_systems_from_squares() -> None:
    objective, theta = plain(n=100)
    model = model_of(DenseModel, objective, theta, 1e3)
    assert model.meter.operations == 0
    damped = model.damped(1.0)
    solves = 3 * 2 * N**2  # and two refinements
    assert model.meter.operations == N**3 // 3 + solves
    damped.correction(model.residuals)
    assert model.meter.operations == N**3 // 3 + 2 * solves
    before = model.meter.operations
    assert model.rank() is not None
    assert model.meter.operations - before == 2 * (N + 1) * N**2


def test_dense_systems_from_triangles() -> None:
    objective, theta = plain(n=100)
    model = model_of(DenseModel, objective, theta, 0.0)
    damped = model.damped(1e-30)
    factor = 2 * (2 * N + 1) * (N + 1) ** 2
    assert model.meter.operations in (factor, N**3 // 3 + factor)
    before = model.meter.operations
    damped.step()
    assert model.meter.operations - before == N**2
    damped.correction(model.residuals)
    assert model.meter.operations - before == 3 * N**2
    model.remaining(theta)
    assert model.meter.operations - before == 3 * N**2 + 2 * (N + 1) ** 2


def test_dual_systems() -> None:
    rows = 6
    objective, theta = plain(n=rows)
    model = model_of(DualModel, objective, theta)
    triangle = factor = 2 * N * rows**2  # both of Q and R are formed
    assert model.meter.operations == 2 * rows * N + triangle + factor
    before = model.meter.operations
    damped = model.damped(1e-3)
    assert model.meter.operations - before == 2 * (2 * rows) * (rows + 1) ** 2
    before = model.meter.operations
    damped.step()
    assert model.meter.operations - before == rows**2 + 2 * rows * N
    before = model.meter.operations
    damped.correction(model.residuals)
    assert model.meter.operations - before == 2 * rows**2 + 2 * rows**2 + 2 * rows * N
    before = model.meter.operations
    model.remaining(theta)
    assert model.meter.operations - before == 2 * rows**2 + 2 * rows * N


def test_iterative_systems() -> None:
    objective, theta = plain(n=10)
    iterations = 3
    model = model_of(IterativeModel, objective, theta, iterations, 1e-30, 1e3)
    assert model.meter.operations == 0
    damped = model.damped(1e-3)
    sizes = [10] * 3 + [15]  # a block for each output
    assert model.meter.operations == sum(n**3 // 3 + n**3 for n in sizes)
    before = objective.meter.operations, model.meter.operations
    damped.step()
    # A product with J^T first, one with each in an iteration, and the solution goes through P.
    assert objective.meter.operations - before[0] == (1 + 2 * iterations) * 10 * POINT
    front = sum(2 * n**2 for n in sizes)
    assert model.meter.operations - before[1] == (1 + 2 * iterations + 1) * front


# --- steps of the optimisers ----------------------------------------------------------------------
def steps(optimiser: Optimiser, count: int) -> list[tuple[int, int]]:
    """Operations of the optimiser itself, and evaluations, of some steps."""
    objective, theta = plain(n=100)
    state, found = optimiser.init(theta, objective.pack.layout), []
    for _ in range(count):
        result = optimiser.step(theta, state, objective, objective.pack.layout)
        assert result.stop is None
        theta, state = result.theta, result.state
        found.append((result.operations, result.evaluations))
    calls = sum(evaluations for _, evaluations in found)
    if not isinstance(optimiser, LevenbergMarquardt):
        assert objective.meter.operations == calls * 3 * 100 * POINT
    return found


def test_steps_of_quasi_newton_methods() -> None:
    n = N
    assert [own for own, _ in steps(SelfScaledBroyden(), 3)] == [
        6 * n**2,
        2 * n**2 + 8 * n**2,
        2 * n**2 + 8 * n**2,
    ]
    # Pairs at hand: 0, 1, 2, 2; the third pair takes the place of the first.
    assert [own for own, _ in steps(LBFGS(LBFGSOptions(history=2)), 4)] == [
        2 * n,
        (8 * n + 2) + 4 * n,
        (16 * n + 8) + 4 * n,
        (16 * n + 8) + 4 * n,
    ]


def test_a_step_of_levenberg_marquardt_counts_its_systems() -> None:
    options = LevenbergMarquardtOptions(memory_mib=1e4)
    (first, _), (second, _) = steps(LevenbergMarquardt(options), 2)
    factor, solves = N**3 // 3, 3 * 2 * N**2
    trial = factor + 2 * solves
    rank = 2 * (N + 1) * N**2
    assert (first - rank) % trial == 0 and first > rank  # as many dampings as it took
    assert second % trial == 0 and second > 0


# --- runs -----------------------------------------------------------------------------------------
def test_a_run_adds_up_what_its_steps_cost() -> None:
    """Adam on every point of every level: layers 1 -> 2 -> 1 of order 4, jets u, u', u''."""
    point = 2 * 3 * (1 * 4 * 2 + 2 * 4 * 1)
    state = MultilevelRun(Line(), run_options([adam((4, 3))], levels=2)).run()
    assert [entry.record.operations for entry in state.levels] == [
        entry.record.steps * 3 * entry.record.n_points * point for entry in state.levels
    ]
    rows = [(row["step"], row["operations"]) for row in state.history]
    first, second = (entry.record.operations for entry in state.levels)
    assert rows[0] == (0, 0) and (4, first) in rows and rows[-1] == (7, first + second)


def test_updates_of_weights_count() -> None:
    balance = BalanceOptions(by="gradient_norm", every=2)
    plain, balanced = (
        MultilevelRun(Inverse(), run_options([adam(4)], balance=which)).run().current.record
        for which in (None, balance)
    )
    assert balanced.operations == plain.operations * 6 // 4  # before two of four steps
    traces = MultilevelRun(Inverse(), run_options([adam(4)], balance=BalanceOptions(every=2))).run()
    assert traces.current.record.operations > balanced.operations  # two equations


CASES: dict[str, tuple[type[Problem], Any]] = {
    "adam, lm": (Line, run_options([adam(3), lm(4)], levels=2)),
    "lbfgs": (Inverse, run_options([lbfgs(5)], levels=2)),
    "ssbroyden": (Line, run_options([SelfScaledBroydenPhase(steps=5)], levels=2)),
    "iterative": (Line, run_options([lm(4, solver="iterative")], levels=2)),
    "dual": (Line, run_options([lm(4, solver="dual")])),
    "penalties": (
        Line,
        run_options([lm(3)], smoothing=SmoothingOptions(penalties=(0.1, 0.01))),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_interrupted_runs_count_the_same(name: str) -> None:
    problem, chosen = CASES[name]
    whole = MultilevelRun(problem(), chosen).run()
    state = MultilevelRun(problem(), chosen, StopAfter(1)).run()
    for _ in range(whole.total_steps):
        state = MultilevelRun(problem(), chosen, StopAfter(2), state).run()
    assert [entry.record.operations for entry in state.levels] == [
        entry.record.operations for entry in whole.levels
    ]
    assert all(entry.record.operations > 0 for entry in whole.levels)


def test_threads_count_the_same() -> None:
    found = []
    for workers in (1, 3):
        chosen = run_options([adam(2), lm(3)], levels=2, chunk=8)
        state = MultilevelRun(Line(), replace(chosen, workers=workers)).run()
        found.append([entry.record.operations for entry in state.levels])
    assert found[0] == found[1]

"""Weights that change with training: their rules by hand, schedules, optimisers, bad input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_levenberg_marquardt import Squared
from torch import Tensor

from kanpinn.conditions import Condition, Dirichlet, Initial, Mean
from kanpinn.errors import ConfigError
from kanpinn.geometry import Box
from kanpinn.models import KANOptions
from kanpinn.optimisers import LBFGS, Adam, LevenbergMarquardt, ParameterLayout
from kanpinn.optimisers.base import Linearisation
from kanpinn.optimisers.levenberg_marquardt import LevenbergMarquardtOptions
from kanpinn.problem import Problem
from kanpinn.residuals import ResidualBlock, Site
from kanpinn.sampling import QUADRATURE, Grading, SamplingOptions
from kanpinn.training import (
    AttentionOptions,
    BalanceOptions,
    CausalOptions,
    LBFGSPhase,
    LevenbergMarquardtPhase,
    MultilevelRun,
    NullObserver,
    Phase,
    RunOptions,
    TrainingOptions,
    Weights,
)
from kanpinn.training.block_data import residual_rows
from kanpinn.training.objective import SystemObjective
from kanpinn.training.parameters import ParameterPack
from kanpinn.training.weighting import Weighting

MODEL = KANOptions(width=3, order=4, intervals=3)


class Heat(Problem):
    """``u_t = u_xx / 10`` on [0, 1] x [1, 3] with penalised data, ``sin(pi x)`` at the start."""

    domain = Box((0.0, 1.0), (1.0, 3.0), names=("x", "t"), time="t")
    conditions: Sequence[Condition] = (
        Dirichlet(value=0.0, weight=4.0),
        Initial(value="sin(pi*x)", weight=9.0),
    )
    residual_weight = 0.5

    def residual(self, p: Site) -> Tensor:
        rate: Tensor = p.u.t - 0.1 * p.u.xx
        return rate


class Notes(NullObserver):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_note(self, message: str) -> None:
        self.told.append(message)


GRADED = SamplingOptions(
    interior=150, boundary=20, initial=20, held_out=40, grading=(Grading("x", 0.2, share=0.5),)
)


def options(phases: Sequence[Phase] = (LBFGSPhase(steps=1),), **training: Any) -> RunOptions:
    settings = TrainingOptions(phases=tuple(phases), **{"log_every": 5, **training})
    return RunOptions(MODEL, settings, GRADED, seed=2)


def level(chosen: RunOptions, problem: Problem | None = None) -> Any:
    """System and blocks of the first level, before any training."""
    run = MultilevelRun(problem or Heat(), chosen)
    return run._begin(run.hierarchy.levels[0], resumed=False)


def weighting(context: Any, chosen: RunOptions) -> Weighting:
    return Weighting(chosen.training, context.system, context.data, Weights())


def squares(data: Any, system: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Squared rows, their quadrature weights, and their times."""
    rows, at = residual_rows(data, system).square().mean(1), data.points[0]
    return rows, at.data.get(QUADRATURE, torch.ones_like(rows)), at.x[:, 1]


# --- causal weights -------------------------------------------------------------------------------
def causal_by_hand(context: Any, epsilon: float, slices: int) -> list[Tensor]:
    """Factors of the equation's rows and of the boundary's, from the definition, row by row."""
    equation, boundary, initial = context.data
    rows, q, _ = squares(initial, context.system)
    losses = [9.0 * float((rows * q).sum() / q.sum())]
    for k in range(slices):
        low, high = 1 + 2 * k / slices, 1 + 2 * (k + 1) / slices
        total = 0.0
        for data, weight in ((equation, 0.5), (boundary, 4.0)):
            rows, q, t = squares(data, context.system)
            inside = (t >= low) & ((t < high) | (high == 3.0))
            assert bool(inside.any())
            total += weight * float((rows * q)[inside].sum() / q[inside].sum())
        losses.append(total)
    result = []
    for data in (equation, boundary):
        t = data.points[0].x[:, 1]
        of = [min(math.floor((float(time) - 1) * slices / 2), slices - 1) for time in t]
        values = [math.exp(-epsilon * sum(losses[: k + 1])) for k in of]
        result.append(torch.tensor(values, dtype=torch.float64))
    return result


def test_causal_weights_by_hand() -> None:
    causal = CausalOptions(blocks=("equation", "dirichlet*"), slices=5, epsilon=(0.02,))
    chosen = options(causal=causal)
    context = level(chosen)
    assert QUADRATURE in context.data[0].points[0].data
    found = weighting(context, chosen)
    changed, notes = found.update(0, ParameterPack(context.system))
    assert changed and notes == ["causal weights: epsilon 0.02"]
    factors = found.factors()
    expected = causal_by_hand(context, 0.02, 5)
    assert list(factors) == ["equation", "dirichlet u on boundary"]
    assert float(expected[0].min()) < 0.9 * float(expected[0].max()) < 0.9
    for values, wanted in zip(factors.values(), expected, strict=True):
        torch.testing.assert_close(values, wanted, rtol=1e-12, atol=0)


def test_initial_rows_keep_their_weight_under_any_pattern() -> None:
    chosen = options(causal=CausalOptions(blocks=("*",)))
    context = level(chosen)
    found = weighting(context, chosen)
    found.update(0, ParameterPack(context.system))
    assert list(found.factors()) == ["equation", "dirichlet u on boundary"]


def test_epsilons_follow_one_another_until_all_weights_are_one() -> None:
    chosen = options(causal=CausalOptions(epsilon=(0.01, 1.0), slices=4, every=3))
    context = level(chosen)
    found, pack = weighting(context, chosen), ParameterPack(context.system)
    losses = torch.tensor([1.0, 2.0, 0.5, 4.0, 8.0], dtype=torch.float64)
    found.causal.losses = lambda: losses  # type: ignore[method-assign, union-attr]

    def weights() -> list[float]:
        return found.weights.causal["slices"].tolist()

    found.update(0, pack)
    assert weights() == pytest.approx([math.exp(-0.01 * s) for s in (1.0, 3.0, 3.5, 7.5)])
    losses = losses / 10
    assert found.update(2, pack) == (False, [])  # not due
    assert found.update(3, pack) == (True, ["causal weights: epsilon 1"])
    assert weights() == pytest.approx([math.exp(-s) for s in (0.1, 0.3, 0.35, 0.75)])
    losses = losses / 100
    assert found.update(6, pack) == (True, ["causal weights: one from here on"])
    assert weights() == [1.0] * 4
    losses = losses * 1e6
    assert found.update(9, pack) == (False, [])
    losses = losses * math.nan
    again = weighting(context, chosen)
    again.causal.losses = lambda: losses  # type: ignore[method-assign, union-attr]
    assert again.update(0, pack) == (False, []) and again.factors() == {}


# --- balance --------------------------------------------------------------------------------------
def block_losses(context: Any, factors: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Per block: gradient of its loss, and all gradients of its scaled rows, by autograd alone."""
    system = context.system
    parameters = list(system.parameters())
    result = {}
    for data in context.data:
        q = data.points[0].data.get(QUADRATURE, torch.ones(data.n_rows, dtype=torch.float64))
        chunk = data.chunks[0]
        assert len(data.chunks) == 1
        r = data.block.residual(*system.sites(chunk.points, chunk.prepared))
        f = factors.get(data.block.name, torch.ones_like(q))
        rows = r * (data.block.weight * q * f / data.n_rows).sqrt()

        def flat(value: Tensor) -> Tensor:
            g = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            return torch.cat([torch.zeros(1) if e is None else e.reshape(-1) for e in g])

        gradient = flat(rows.square().sum())
        result[data.block.name] = (gradient, torch.stack([flat(row) for row in rows]))
    return result


@pytest.mark.parametrize("causal", [None, CausalOptions(epsilon=(0.02,))])
def test_balanced_blocks_are_of_equal_size(causal: CausalOptions | None) -> None:
    sizes = {}
    for by in ("gradient_norm", "ntk"):
        chosen = options(balance=BalanceOptions(by=by), causal=causal)
        context = level(chosen)
        found = weighting(context, chosen)
        changed, notes = found.update(0, ParameterPack(context.system))
        assert changed and notes[-1].startswith("balance: factors of equation ")
        parts = block_losses(context, found.factors())
        assert len(parts) == 3
        gradients = [float(gradient.norm()) for gradient, _ in parts.values()]
        traces = [float(rows.square().sum()) for _, rows in parts.values()]
        sizes[by] = (gradients, traces)
        plain = block_losses(context, {} if causal is None else found.causal.factors())  # type: ignore[union-attr]
        own = [
            float(g.norm() if by == "gradient_norm" else r.square().sum())
            for g, r in plain.values()
        ]
        assert max(own) > 1.5 * min(own), "balanced already: the test would show nothing"
        balanced = gradients if by == "gradient_norm" else traces
        assert balanced == pytest.approx([sum(own) / 3] * 3, rel=1e-9)
    assert sizes["ntk"][0] != pytest.approx(sizes["gradient_norm"][0], rel=0.1)


def test_fixed_weights_cancel_and_memory_keeps_old_factors() -> None:
    chosen = options(balance=BalanceOptions(by="ntk", memory=0.75, every=10))
    totals = []
    for heavy in (1.0, 50.0):
        problem = Heat()
        problem.conditions = (Dirichlet(weight=heavy), Initial(value="sin(pi*x)"))
        context = level(chosen, problem)
        found = weighting(context, chosen)
        found.update(0, ParameterPack(context.system))
        factors = found.weights.balance
        weights = {
            d.block.name: d.block.weight * float(factors[d.block.name]) for d in context.data
        }
        totals.append(weights["dirichlet u on boundary"] / weights["equation"])
    assert totals[0] == pytest.approx(totals[1], rel=1e-12)
    before = {name: float(value) for name, value in factors.items()}
    with torch.no_grad():
        for p in context.system.parameters():
            p.mul_(1.5)
    assert found.update(15, ParameterPack(context.system)) == (False, [])  # not due
    found.update(20, ParameterPack(context.system))
    fresh = weighting(context, chosen)
    fresh.update(0, ParameterPack(context.system))
    for name, value in fresh.weights.balance.items():
        expected = 0.75 * before[name] + 0.25 * float(value)
        assert float(factors[name]) == pytest.approx(expected, rel=1e-12)


def test_balance_without_anything_to_go_by() -> None:
    chosen = options(balance=BalanceOptions())
    context = level(chosen)
    found = weighting(context, chosen)
    with torch.no_grad():
        next(context.system.parameters()).fill_(math.nan)
    assert found.update(0, ParameterPack(context.system)) == (False, [])


# --- training with them ---------------------------------------------------------------------------
class Steep(Heat):
    """Decay in time alone, soft data at the start: what causal weights are for."""

    conditions = (Initial(value="sin(pi*x)", weight=10.0), Dirichlet(exact=True))


def test_training_walks_through_the_schedule_and_chooses_by_fixed_weights() -> None:
    observer = Notes()
    causal = CausalOptions(epsilon=(0.1, 10.0), every=2)
    chosen = options([LevenbergMarquardtPhase(steps=30)], causal=causal)
    run = MultilevelRun(Steep(), chosen, observer)
    state = run.run()
    told = [note.partition(": ")[2] for note in observer.told if "causal" in note]
    assert told[-1] == "causal weights: one from here on"
    assert float(state.weights.causal["slices"].min()) == 1.0
    assert state.history[-1]["loss"] < 1e-3 * state.history[0]["loss"]
    plain = MultilevelRun(Steep(), options())
    context = plain._context(plain.hierarchy.levels[0], state.current.best_system())
    _, score = context.held_out.evaluate(context.system)
    assert state.current.best_score == score


def test_the_logged_loss_has_the_weights_it_was_trained_with() -> None:
    causal = CausalOptions(epsilon=(1.0,), every=2)
    chosen = options([LevenbergMarquardtPhase(steps=3)], causal=causal, log_every=1)
    run = MultilevelRun(Steep(), chosen)
    state = run.run()
    context = run._context(run.hierarchy.levels[0], state.current.system)
    factors = Weighting(chosen.training, context.system, context.data, state.weights).factors()
    pack = ParameterPack(context.system)
    objective = SystemObjective(context.system, pack, context.data, factors=factors)
    unweighted = SystemObjective(context.system, pack, context.data)
    theta = pack.read()
    assert state.history[-1]["loss"] == pytest.approx(float(objective.loss(theta)), rel=1e-12)
    assert float(unweighted.loss(theta)) > 1.01 * float(objective.loss(theta))


def test_refreshed_optimisers_forget_the_old_objective() -> None:
    layout = ParameterLayout(("a",), (3,))
    theta = torch.ones(3, dtype=torch.float64)

    class Bowl:
        """``factor |theta|^2 / 2`` with all that a least-squares method asks for."""

        factor = 1.0

        def loss(self, x: Tensor) -> Tensor:
            return self.residuals(x).square().sum()

        def loss_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.loss(x), self.factor * x

        def residuals(self, x: Tensor) -> Tensor:
            return math.sqrt(self.factor / 2) * x

        def squares(self, x: Tensor, memory: float) -> Squared:
            (rows,) = self.jacobian_rows(x)
            return Squared(rows.mT @ rows, lambda u: self.transposed_product(x, u))

        def triangle(self, x: Tensor) -> Tensor:
            (rows,) = self.jacobian_rows(x)
            return torch.cat([rows, rows.new_zeros(1, 4)])

        def transposed_product(self, x: Tensor, u: Tensor) -> Tensor:
            return math.sqrt(self.factor / 2) * u

        def jacobian_rows(self, x: Tensor) -> list[Tensor]:
            return [math.sqrt(self.factor / 2) * torch.cat([torch.eye(3).to(x), x[:, None]], 1)]

        def linearise(self, x: Tensor, memory: float) -> Linearisation:
            raise AssertionError("three parameters need no products")

    damped = LevenbergMarquardtOptions(damping=1e6, patience=1)
    kept: dict[type, tuple[str, ...]] = {LBFGS: (), LevenbergMarquardt: ("damping", "iteration")}
    for optimiser in (LBFGS(), LevenbergMarquardt(damped)):
        bowl = Bowl()
        first = optimiser.step(theta, optimiser.init(theta, layout), bowl, layout)
        bowl.factor = 1000.0  # the loss is now far above what the state remembers
        state = optimiser.refresh(first.theta, first.state, layout)
        expected = optimiser.init(first.theta, layout)
        expected |= {name: first.state[name] for name in kept[type(optimiser)]}
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        second = optimiser.step(first.theta, state, bowl, layout)
        assert second.stop is None
        assert float(second.loss) < float(bowl.loss(first.theta))
    adam = Adam()
    state = adam.step(theta, adam.init(theta, layout), Bowl(), layout).state
    after = adam.refresh(theta, state, layout)
    assert all(torch.equal(after[name], state[name]) for name in state) and int(after["step"]) == 1


# --- bad input ------------------------------------------------------------------------------------
class Timeless(Heat):
    domain = Box((0.0, 1.0), (1.0, 3.0), names=("x", "t"))
    conditions = (Dirichlet(weight=4.0),)


class Joined(Heat):
    conditions = (*Heat.conditions, Mean(value=0.1, points=16))


class OwnLoss(Heat):
    def blocks(self) -> tuple[ResidualBlock, ...]:
        return tuple(replace(b, loss=torch.abs) if b.equation else b for b in super().blocks())


BAD: dict[str, tuple[type[Problem], dict[str, Any], str]] = {
    "balance pattern": (
        Heat,
        {"balance": BalanceOptions(blocks=("equation", "dirichlet"))},
        "training.balance.blocks: 'dirichlet' matches no block; there are equation, dirichlet u",
    ),
    "one block": (
        Heat,
        {"balance": BalanceOptions(blocks=("equation",))},
        "training.balance.blocks: found equation, allowed: patterns that match two blocks",
    ),
    "causal pattern": (
        Heat,
        {"causal": CausalOptions(blocks=("pde",))},
        "training.causal.blocks: 'pde' matches no block; there are equation",
    ),
    "no time": (Timeless, {"causal": CausalOptions()}, "training.causal: the problem has no time"),
    "mean": (
        Joined,
        {"causal": CausalOptions(blocks=("*",))},
        "training.causal.blocks: rows of 'mean u on interior' join points of several times",
    ),
    "attention and a loss": (
        OwnLoss,
        {"attention": AttentionOptions()},
        "training.attention.blocks: it weighs squares, and 'equation' has a loss of its own; "
        "allowed: patterns without it",
    ),
    "causal weights and a loss": (
        OwnLoss,
        {"causal": CausalOptions()},
        "training.causal.blocks: it weighs squares, and 'equation' has a loss of its own; ",
    ),
    "balance by ntk and a loss": (
        OwnLoss,
        {"balance": BalanceOptions()},
        "training.balance.blocks: by ntk weighs squares, and 'equation' has a loss of its own; "
        "allowed: by: gradient_norm, or patterns without it",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_weights_that_do_not_fit(name: str) -> None:
    problem, training, message = BAD[name]
    with pytest.raises(ConfigError) as caught:
        MultilevelRun(problem(), options(**training))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_beside_a_loss_of_its_own() -> None:
    """What does not rest on that block's squares is allowed."""
    others = ("dirichlet*", "initial*")
    for training in (
        {"attention": AttentionOptions(blocks=others)},
        {"balance": BalanceOptions(blocks=others)},
        {"balance": BalanceOptions(by="gradient_norm")},
    ):
        state = MultilevelRun(OwnLoss(), options(**training)).run()
        assert math.isfinite(state.history[-1]["loss"])


def test_no_epsilon() -> None:
    with pytest.raises(ConfigError, match=r"training\.causal\.epsilon: found an empty list"):
        CausalOptions(epsilon=())


def test_no_weights_no_change() -> None:
    context = level(options())
    found = weighting(context, options())
    assert found.update(0, ParameterPack(context.system)) == (False, [])
    assert found.factors() == {} and found.weights == Weights()


def test_weights_of_a_level_start_afresh() -> None:
    """The second level's first weights are those its own start gives, not the first level's."""
    causal = CausalOptions(epsilon=(1e-4,), threshold=0.5)
    chosen = options([LevenbergMarquardtPhase(steps=(6, 1))], levels=2, causal=causal)
    observer = Notes()
    MultilevelRun(Steep(), chosen, observer).run()
    told = [note for note in observer.told if "causal" in note]
    assert [note.partition(":")[0] for note in told] == ["step 0", "step 6"]

"""Time windows: what is handed over, one function at all times, resume, bad input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_runs import Recorder, save
from torch import Tensor

from kanpinn.checkpoint import read_checkpoint, restore_state
from kanpinn.conditions import Condition, Dirichlet, Initial, Mean, Neumann
from kanpinn.errors import ConfigError, DomainError
from kanpinn.geometry import Box
from kanpinn.models import KANOptions
from kanpinn.plotting.gather import residual_columns
from kanpinn.problem import Problem
from kanpinn.residuals import ResidualBlock, Site, System
from kanpinn.sampling import SamplingOptions
from kanpinn.solution import Solution
from kanpinn.training import (
    LevenbergMarquardtPhase,
    MultilevelRun,
    NullObserver,
    RunOptions,
    RunState,
    TargetOptions,
    TrainingOptions,
    predict,
)
from kanpinn.training.evaluation import ReferenceErrors
from kanpinn.training.windows import HANDED_OVER


class Swing(Problem):
    """``u_tt = -4 u`` at every x, ``u = x cos(2 t)``, of second order in time."""

    domain = Box((-1.0, 1.0), (1.0, 4.0), names=("x", "t"), time="t")
    conditions: Sequence[Condition] = (
        Initial(value=f"x*cos({2.0})", weight=10.0),
        Initial(value=f"-2*x*sin({2.0})", derivative=1, weight=10.0),
    )

    def residual(self, p: Site) -> Tensor:
        return p.u.tt + 4 * p.u

    def reference(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x[:, 0] * np.cos(2 * x[:, 1])

    def evaluation_points(self) -> Tensor:
        return self.domain.evaluation_grid((5, 31))[0]


SAMPLING = SamplingOptions(interior=80, initial=16, held_out=40)
MODEL = KANOptions(width=3, order=5, intervals=2)


def options(steps: int = 8, levels: int = 2, windows: int = 3, **training: Any) -> RunOptions:
    settings = {"log_every": 3, "checkpoint_every": 4, **training}
    phases = (LevenbergMarquardtPhase(steps=steps),)
    chosen = TrainingOptions(windows=windows, levels=levels, phases=phases, **settings)
    return RunOptions(MODEL, chosen, SAMPLING, seed=1)


@pytest.fixture(scope="module")
def recorded() -> list[RunState]:
    """The states at all checkpoints of a run of three windows; the last one is that of the end."""
    recorder = Recorder()
    MultilevelRun(Swing(), options(), recorder).run()
    return recorder.kept


@pytest.fixture(scope="module")
def trained(recorded: list[RunState]) -> RunState:
    return recorded[-1]


def chain(system: System) -> list[System]:
    """The systems of all windows, earliest first."""
    found = [system]
    while found[0].past is not None:
        found.insert(0, found[0].past)
    return found


def window_of(x: Tensor) -> Tensor:
    """Windows of points ``(n, 2)``: [1, 2), [2, 3), [3, 4]."""
    return (x[:, 1] >= 2).long() + (x[:, 1] >= 3).long()


# --- training -------------------------------------------------------------------------------------
def test_windows_follow_one_another_to_the_end(trained: RunState) -> None:
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [entry.record.key for entry in trained.levels] == keys
    assert trained.finished and trained.total_steps == 6 * 8
    x = Swing().evaluation_points()
    exact = torch.from_numpy(Swing().reference(x.numpy()))
    difference = predict(trained.best_level.best_system(), x)[:, 0] - exact
    error = float(difference.norm() / exact.norm())
    assert error < 0.03


def test_logged_errors_are_those_of_all_times_so_far(trained: RunState) -> None:
    x = Swing().evaluation_points()
    exact = torch.from_numpy(Swing().reference(x.numpy()))
    for window, end in enumerate((2.0, 3.0, 4.0)):
        level = [e for e in trained.levels if e.record.window == window][-1]
        inside = x[:, 1] <= end
        found = predict(level.system, x[inside])[:, 0]
        error = float((found - exact[inside]).norm() / exact[inside].norm())
        assert level.record.rel_l2 == pytest.approx(error, rel=1e-12)
    assert [row["window"] for row in trained.history] == sorted(
        row["window"] for row in trained.history
    )


def test_past_windows_are_evaluated_once(
    trained: RunState, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, x = trained.current.system, Swing().evaluation_points()
    expected = predict(system, x)[:, 0] - torch.from_numpy(Swing().reference(x.numpy()))
    asked: list[System] = []
    original = System._own_values

    def counted(self: System, *arguments: Any) -> Tensor:
        asked.append(self)
        return original(self, *arguments)

    monkeypatch.setattr(System, "_own_values", counted)
    errors = ReferenceErrors(Swing(), [], next(iter(system.parameters())).detach())
    found = [errors.evaluate(system) for _ in range(3)]
    assert found[0] is not None and found[0] == found[1] == found[2]
    assert found[0].linf == pytest.approx(float(expected.abs().max()), rel=1e-12)
    assert [asked.count(piece) for piece in chain(system)] == [1, 1, 3]


def test_initial_values_are_handed_over(trained: RunState) -> None:
    """Values and rates of the window before at its end; the rates by automatic differentiation."""
    run = MultilevelRun(Swing(), options(), state=trained)
    run._enter(2)
    past = trained.best_of(1).best_system()
    assert run.window.domain.lower == (-1.0, 3.0) and run.window.domain.upper == (1.0, 4.0)
    _, values, rates = run._context(run.hierarchy.levels[0], trained.current.system).data
    for data, order in ((values, 0), (rates, 1)):
        x = data.points[0].x.clone().requires_grad_()
        assert len(x) == 16 and bool((x[:, 1] == 3.0).all())
        u = past.parts["main"](x)[:, 0]
        expected = torch.autograd.grad(u.sum(), x)[0][:, 1] if order else u.detach()
        torch.testing.assert_close(
            data.points[0].data[HANDED_OVER], expected, rtol=1e-10, atol=1e-12
        )
        assert float(expected.abs().max()) > 0.1


def test_a_target_ends_a_window_and_not_the_run() -> None:
    chosen = options(target=TargetOptions(heldout_residual=1e3), levels=1)
    state = MultilevelRun(Swing(), chosen).run()
    assert [entry.record.stop_reason for entry in state.levels] == ["target"] * 3
    assert [entry.record.steps for entry in state.levels] == [3, 3, 3]


# --- one function at all times --------------------------------------------------------------------
def test_values_and_derivatives_come_from_the_window_of_their_time(trained: RunState) -> None:
    solution = Solution(trained)
    systems = chain(solution.model)
    assert len(systems) == 3
    x = torch.rand(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x * torch.tensor([2.0, 3.0]) + torch.tensor([-1.0, 1.0])
    x[:2, 1] = torch.tensor([2.0, 3.0])
    values, slopes = solution(x), solution.derivatives(x, "t", "xt")
    for number, system in enumerate(systems):
        mine = window_of(x) == number
        assert int(mine.sum()) > 40
        at = x[mine].clone().requires_grad_()
        u = system.parts["main"](at)[:, 0]
        (gradient,) = torch.autograd.grad(u.sum(), at, create_graph=True)
        (second,) = torch.autograd.grad(gradient[:, 1].sum(), at)
        torch.testing.assert_close(values[mine, 0], u.detach())
        torch.testing.assert_close(slopes["t"][mine, 0], gradient[:, 1].detach())
        torch.testing.assert_close(slopes["xt"][mine, 0], second[:, 0])
    assert solution.bounds == {"x": (-1.0, 1.0), "t": (1.0, 4.0)}
    assert solution(x[:0]).shape == (0, 1)
    with pytest.raises(DomainError, match=r"t = 4\.1"):
        solution(np.array([[0.0, 4.1]]))


def test_residuals_of_figures_come_from_the_window_of_their_time(trained: RunState) -> None:
    problem, system = Swing(), trained.best_level.best_system()
    points = problem.domain.interior().place(torch.rand(60, 2, dtype=torch.float64))[0]
    ((name, column),) = residual_columns(problem, system, points)
    second = Solution(trained).derivatives(points.x, "tt", "")
    expected = second["tt"] + 4 * second[""]
    assert name == "equation"
    np.testing.assert_allclose(column, expected[:, 0].numpy(), rtol=1e-10, atol=1e-12)


def test_parameters_of_the_past_are_not_trained_again(trained: RunState) -> None:
    last = trained.current
    assert last.system.past is not None
    own = {id(p) for p in last.system.parameters()}
    assert not own & {id(p) for p in last.system.past.parameters()}
    assert last.record.n_params == trained.levels[1].record.n_params
    single = Solution(trained).to("cpu", torch.float32)
    assert {p.dtype for s in chain(single.model) for p in s.parameters()} == {torch.float32}
    assert {p.dtype for s in chain(last.system) for p in s.parameters()} == {torch.float64}
    assert [entry.record.window for entry in trained.levels] == [0, 0, 1, 1, 2, 2]
    assert Solution(trained).level(0).record.key == (2, 0)


# --- checkpoint and resume ------------------------------------------------------------------------
def test_a_checkpoint_holds_all_windows(trained: RunState, tmp_path: Path) -> None:
    path = save(tmp_path / "c.h5", trained, Swing())
    checkpoint = read_checkpoint(path)
    assert checkpoint.content.system.parts == ("main", "main@1", "main@2")
    x = Swing().evaluation_points()
    expected, found = Solution(trained), Solution.load(path)
    assert torch.equal(found(x), expected(x))
    assert torch.equal(found.last(x), expected.last(x))
    assert save(tmp_path / "d.h5", restore_state(checkpoint), Swing()).read_bytes()
    for one, two in zip(expected.levels, found.levels, strict=True):
        assert one.record == two.record and one.bounds == two.bounds


def test_a_resumed_run_equals_the_undisturbed_one(recorded: list[RunState], tmp_path: Path) -> None:
    """From inside the second and third window, and from the last state of a window."""
    final = recorded[-1]
    x = Swing().evaluation_points()
    places = {(s.current.record.key, s.step): s for s in recorded[:-1]}
    wanted = [((0, 1), 8), ((1, 0), 4), ((2, 1), 4)]
    for place in wanted:
        path = save(tmp_path / "c.h5", places[place], Swing())
        state = restore_state(read_checkpoint(path))
        resumed = MultilevelRun(Swing(), options(), state=state).run()
        assert [replace(e.record, wall_s=0.0) for e in resumed.levels] == [
            replace(e.record, wall_s=0.0) for e in final.levels
        ]
        assert torch.equal(predict(resumed.current.system, x), predict(final.current.system, x))
        scores = [[row["heldout_score"] for row in s.history] for s in (resumed, final)]
        assert scores[0] == scores[1]


def test_a_run_stopped_early_covers_what_it_has_begun() -> None:
    class Stop(NullObserver):
        begun = 0

        def on_level(self, state: RunState) -> None:
            self.begun += 1

        def stop_requested(self) -> bool:
            return self.begun == 2

    state = MultilevelRun(Swing(), options(levels=1), Stop()).run()
    assert state.current.record.key == (1, 0) and not state.finished
    assert Solution(state).bounds["t"] == (1.0, 3.0)


# --- bad input ------------------------------------------------------------------------------------
class Own(Swing):
    def blocks(self) -> tuple[ResidualBlock, ...]:
        return super().blocks()


def changed(**attributes: Any) -> Problem:
    problem = Swing()
    for name, value in attributes.items():
        setattr(problem, name, value)
    return problem


BAD = {
    "no time": (
        changed(domain=Box((-1.0, 1.0), (1.0, 4.0), names=("x", "t")), conditions=(Dirichlet(),)),
        "the problem's domain is no box with a time coordinate",
    ),
    "own blocks": (Own(), "the problem defines its own blocks"),
    "scalars": (changed(scalars={"k": 1.0}), "the problem trains scalars"),
    "built in": (
        changed(conditions=(Initial(value="x", exact=True),)),
        "initial u on initial is built in; penalised initial values (exact=False",
    ),
    "built in by another name": (
        changed(conditions=(Dirichlet(value="x", on="t.lower", exact=True),)),
        "dirichlet u on t.lower is built in",
    ),
    "no values": (
        changed(conditions=(Neumann(on="initial"),)),
        "neumann u on initial gives no values",
    ),
    "none": (changed(conditions=(Dirichlet(),)), "the problem has no initial values"),
    "final": (
        changed(conditions=(*Swing.conditions, Dirichlet(on="final"))),
        "dirichlet u on final joins or fixes what lies in other windows",
    ),
    "mean": (changed(conditions=(*Swing.conditions, Mean())), "mean u on interior joins or fixes"),
}


@pytest.mark.parametrize("name", BAD)
def test_problems_that_cannot_be_cut(name: str) -> None:
    problem, message = BAD[name]
    with pytest.raises(ConfigError) as caught:
        MultilevelRun(problem, options())
    assert str(caught.value).startswith("training.windows: found 3, allowed: 1, because ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert MultilevelRun(problem, options(windows=1)).blocks

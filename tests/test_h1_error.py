"""The error of the gradient: differences of references, gradients of networks, level records."""

from __future__ import annotations

import math
from dataclasses import replace
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pytest
import torch
from derivative_oracle import nested
from numpy.typing import NDArray
from tiny_domains import Disc
from tiny_runs import MODELS, Coupled, Plain, Recorder, options
from torch import Tensor

from kanpinn.errors import DomainError
from kanpinn.geometry import Box, Domain, Points
from kanpinn.problem import Problem, build_system
from kanpinn.residuals import Site, System
from kanpinn.training import LevenbergMarquardtPhase, MultilevelRun, TrainingOptions, predict
from kanpinn.training.derivatives import predict_gradient
from kanpinn.training.evaluation import SolutionChange
from kanpinn.training.h1_error import STEP, H1Error, ReferenceGradient, reference_gradient
from kanpinn_problems.allen_cahn import AllenCahn
from kanpinn_problems.burgers import Burgers
from kanpinn_problems.poisson import Poisson
from kanpinn_problems.poisson_interface import PoissonInterface

Floats = NDArray[np.float64]


def known_gradient(problem: Problem, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Points and derivatives there; all evaluation points by default."""
    x = problem.evaluation_points() if x is None else x
    found = reference_gradient(problem, x)
    assert found is not None
    return x[found[1]], found[0][found[1]]


def relative(found: Tensor, exact: Floats) -> float:
    return float(np.linalg.norm(found.numpy() - exact) / np.linalg.norm(exact))


# --- the reference's gradient ---------------------------------------------------------------------
def test_differences_agree_with_the_exact_gradient() -> None:
    x, gradient = known_gradient(Poisson())
    assert len(x) == 201 * 201 and gradient.shape == (len(x), 1, 2)
    a, b = np.pi * x.numpy().T
    exact = np.stack([np.pi * np.cos(a) * np.sin(b), np.pi * np.sin(a) * np.cos(b)], -1)
    assert relative(gradient[:, 0], exact) < 2e-12
    edge = (x.abs() == 1.0).any(1).numpy()
    assert edge.sum() == 800
    assert np.abs(gradient[:, 0].numpy() - exact)[edge].max() < 2e-11  # one-sided ones, too


def test_differences_are_of_fourth_order(monkeypatch: pytest.MonkeyPatch) -> None:
    at = torch.tensor([[-1.0, 0.4], [0.3, 0.2], [1.0, 0.7]], dtype=torch.float64)
    a, b = np.pi * at.numpy().T
    exact = np.stack([np.pi * np.cos(a) * np.sin(b), np.pi * np.sin(a) * np.cos(b)], -1)
    errors = []
    for step in (2.0**-5, 2.0**-6):
        monkeypatch.setattr("kanpinn.training.h1_error.STEP", step)
        errors.append(np.abs(known_gradient(Poisson(), at)[1][:, 0].numpy() - exact))
    rates = np.log2(errors[0] / errors[1])[:, 0]  # along x: forward, central, backward
    assert rates == pytest.approx([4.0, 4.0, 4.0], abs=0.3)


def test_a_front_is_resolved() -> None:
    """Burgers' equation with the oddness of its solution, and at half the step."""
    x = torch.tensor([[0.0, 0.5], [0.01, 0.5], [-0.01, 0.5], [0.02, 0.8]], dtype=torch.float64)
    problem = Burgers(nu=0.01)
    found = known_gradient(problem, x)[1][:, 0]
    h = 2 * STEP / 8
    for row, (place, time) in enumerate(x.tolist()):
        at = place + h * np.arange(-2, 3)
        u = problem.solution(at, np.full(5, time))
        slope = float(u @ np.array([1, -8, 0, 8, -1])) / (12 * h)
        assert found[row, 0] == pytest.approx(slope, rel=1e-8)
    torch.testing.assert_close(found[1], found[2] * torch.tensor([1.0, -1.0]).double())


def test_differences_do_not_reach_across_an_interface() -> None:
    problem = PoissonInterface()
    x, gradient = known_gradient(problem)
    assert len(x) == 201 * 201  # one-sided ones fit beside the plane, and on it on the plus side
    assert (x[:, 0] == 0).sum() == 201
    beside = torch.tensor([[-1e-9, 0.25], [-2e-4, 0.25], [1e-9, 0.25]], dtype=torch.float64)
    for at, found in ((x, gradient), known_gradient(problem, beside)):
        a, b = at.numpy().T
        m = np.pi * np.where(a < 0, 1.0, 2.0)
        waves = np.sin(3 * np.pi * b), np.cos(3 * np.pi * b)
        exact = np.stack([m * np.cos(m * a) * waves[0], 3 * np.pi * np.sin(m * a) * waves[1]], -1)
        assert np.abs(found[:, 0].numpy() - exact).max() < 1e-9


class Square(Problem):
    """Any reference on [-1, 1]^2."""

    domain: Domain = Box((-1.0, -1.0), (1.0, 1.0))

    def residual(self, p: Site) -> Tensor:
        return p.u.laplacian

    def reference(self, x: Floats) -> Floats:
        return np.asarray(x[:, 0] ** 2 * x[:, 1])


def test_points_where_no_formula_fits_are_left_out() -> None:
    class Round(Square):
        domain = Disc()

        def reference(self, x: Floats) -> Floats:
            assert (np.linalg.norm(x, axis=1) <= 1).all()
            return super().reference(x)

    x = torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.6, -0.7], [0.0, 0.0]], dtype=torch.float64)
    found = reference_gradient(Round(), x)
    assert found is not None
    gradient, known = found
    assert known.tolist() == [False, False, True, True]
    exact = [[2 * 0.6 * -0.7, 0.36], [0.0, 0.0]]
    torch.testing.assert_close(gradient[known][:, 0], torch.tensor(exact).double())


def test_the_initial_time_is_left_out() -> None:
    """Initial values of a kink there, and a series of modes from there on."""
    x, gradient = known_gradient(AllenCahn(), AllenCahn().evaluation_points()[::8])
    assert float(x[:, 1].min()) > 0 and bool(torch.isfinite(gradient).all())
    assert float(gradient[..., 1].abs().max()) < 10  # across t = 0 differences reach 100


def test_references_without_a_gradient() -> None:
    x = Square().evaluation_points()[::500]

    class Table(Square):
        known = {tuple(row): 1.0 + row[0] for row in x.tolist()}  # noqa: RUF012 - read only

        def reference(self, x: Floats) -> Floats:
            return np.array([self.known[tuple(row)] for row in x.tolist()])

    class Refusing(Square):
        def reference(self, x: Floats) -> Floats:
            raise DomainError("nothing is known here")

    class Holed(Square):
        def reference(self, x: Floats) -> Floats:
            return np.where(np.isin(x[:, 0], [-1.0, 0.0, 1.0]), 1.0, np.nan)

    class Constant(Square):
        def reference(self, x: Floats) -> Floats:
            return 3.0 + 1e-16 * np.asarray(np.sin(1e6 * x[:, 0]))

    class Unknown(Square):
        def reference(self, x: Floats) -> None:  # type: ignore[override]
            return None

    for problem in (Table(), Refusing(), Holed(), Constant(), Unknown()):
        assert reference_gradient(problem, x) is None
        like = torch.zeros(1, dtype=torch.float64)
        system = build_system(problem, MODELS["kan"], torch.Generator().manual_seed(0))
        assert H1Error(ReferenceGradient(problem), [], like).evaluate(system) is None


# --- the networks' gradient -----------------------------------------------------------------------
@pytest.mark.parametrize("name", ["kan", "kan free", "kan ragged free base", "multichannel", "mlp"])
def test_gradients_of_networks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kanpinn.training.derivatives.LARGEST_CHUNK", 7)
    system = build_system(Plain(), MODELS[name], torch.Generator().manual_seed(1))
    unit = torch.rand(20, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = torch.tensor([-1.0, 0.0]) + unit * torch.tensor([2.0, 3.0])
    found = predict_gradient(system, x, ("u",))
    assert found.shape == (20, 1, 2) and not found.requires_grad
    for axis, index in enumerate([(1, 0), (0, 1)]):
        expected = nested(system.values, x, index)
        torch.testing.assert_close(found[..., axis], expected, rtol=1e-10, atol=1e-10)


def test_gradients_are_in_the_order_of_the_fields() -> None:
    problem = Coupled()
    system = build_system(problem, MODELS["kan"], torch.Generator().manual_seed(1))
    assert system.field_names == ("c", "a", "b")
    x = torch.tensor([[0.7, 1.5], [-1.2, 3.1]], dtype=torch.float64)
    found = predict_gradient(system, x, problem.fields)
    for axis, index in enumerate([(1, 0), (0, 1)]):
        expected = nested(lambda x: system.values(x, problem.fields), x, index)
        torch.testing.assert_close(found[..., axis], expected, rtol=1e-10, atol=1e-10)


# --- both together --------------------------------------------------------------------------------
class Wave(Square):
    """Fewer evaluation points."""

    def reference(self, x: Floats) -> Floats:
        return np.asarray(np.sin(2 * x[:, 0]) * np.exp(x[:, 1]))

    def evaluation_points(self) -> Tensor:
        return self.domain.evaluation_grid((9, 7))[0]


def exact_error(system: System, x: Tensor) -> float:
    """Of the gradient of :class:`Wave`, by nested derivatives."""
    a, b = x.numpy().T
    exact = np.stack(
        [2 * np.cos(2 * a) * np.exp(b), np.sin(2 * a) * np.exp(b)],
        -1,
    )
    parts = [nested(system.values, x, index)[:, 0].numpy() for index in ((1, 0), (0, 1))]
    return float(np.linalg.norm(np.stack(parts, -1) - exact) / np.linalg.norm(exact))


def test_error_is_that_at_points_not_trained_on() -> None:
    problem = Wave()
    system = build_system(problem, MODELS["kan"], torch.Generator().manual_seed(1))
    like, x = torch.zeros(1, dtype=torch.float64), problem.evaluation_points()
    gradient = ReferenceGradient(problem)
    assert H1Error(gradient, [], like).evaluate(system) == pytest.approx(
        exact_error(system, x), rel=1e-10
    )
    rest = torch.ones(len(x), dtype=torch.bool)
    rest[[0, 4, 30]] = False
    found = H1Error(gradient, [Points(x[~rest])], like).evaluate(system)
    assert found == pytest.approx(exact_error(system, x[rest]), rel=1e-10)
    early = H1Error(gradient, [], like, end=0.4).evaluate(system)
    assert early == pytest.approx(exact_error(system, x[x[:, 1] <= 0.4]), rel=1e-10)
    assert early != found


def test_few_of_many_points_are_taken_and_all_of_few() -> None:
    for problem, count in ((Poisson(), 5051), (Poisson(dimension=1), 5001), (Wave(), 63)):
        known = ReferenceGradient(problem).known
        assert known is not None and len(known[0]) == count
    places = ReferenceGradient(Poisson()).known
    assert places is not None
    assert [len(places[0][:, axis].unique()) for axis in range(2)] == [201, 201]


# --- level records --------------------------------------------------------------------------------
def run_options(levels: int = 3) -> Any:
    phases = (LevenbergMarquardtPhase(steps=5),)
    training = TrainingOptions(levels=levels, phases=phases, log_every=2)
    return replace(options(MODELS["kan"]), training=training)


def test_records_have_the_errors_of_the_last_networks() -> None:
    state = MultilevelRun(Wave(), run_options()).run()
    x, before = Wave().evaluation_points(), None
    exact = torch.tensor(Wave().reference(x.numpy()))
    for level in state.levels:
        record, values = level.record, predict(level.system, x)
        assert record.linf == pytest.approx(float((values[:, 0] - exact).abs().max()), rel=1e-12)
        assert record.h1 == pytest.approx(exact_error(level.system, x), rel=1e-9)
        if before is None:
            assert record.change is None
        else:
            size = float((values - before).norm() / values.norm())
            assert record.change == pytest.approx(size, rel=1e-12) and size > 0
        before = values
    last = state.history[-1]
    assert (state.current.record.rel_l2, state.current.record.linf) == (
        last["rel_l2"],
        last["linf"],
    )


def test_the_reference_is_asked_once_for_its_gradient() -> None:
    calls: list[int] = []

    class Counted(Wave):
        def reference(self, x: Floats) -> Floats:
            calls.append(len(x))
            return super().reference(x)

    MultilevelRun(Counted(), run_options(levels=1)).run()
    once = len(calls)
    calls.clear()
    MultilevelRun(Counted(), run_options(levels=4)).run()
    assert len(calls) == once and sum(calls) <= 10 * 63


def test_the_clock_stands_still_for_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    pause, kinds = 0.2, (H1Error, SolutionChange)
    for kind, measure in [(kind, kind.evaluate) for kind in kinds]:

        def slow(self: Any, system: Any, measure: Any = measure) -> Any:
            sleep(pause)
            return measure(self, system)

        monkeypatch.setattr(kind, "evaluate", slow)
    run = MultilevelRun(Wave(), run_options(levels=2))
    began = perf_counter()
    state = run.run()
    beside = perf_counter() - began - state.elapsed
    assert beside >= 3 * pause  # two errors and a change
    levels = sum(level.record.wall_s for level in state.levels)
    assert levels == pytest.approx(state.elapsed, rel=1e-6)


def test_a_level_that_was_interrupted_has_no_such_errors_until_it_ends() -> None:
    class Stop(Recorder):
        def stop_requested(self) -> bool:
            return stopped

    stopped = True
    first = MultilevelRun(Wave(), run_options(), Stop()).run()
    assert (first.current.record.h1, first.current.record.change) == (None, None)
    assert first.current.record.linf is not None
    stopped = False
    MultilevelRun(Wave(), run_options(), state=first).run()
    whole = MultilevelRun(Wave(), run_options()).run()
    for a, b in zip(first.levels, whole.levels, strict=True):
        assert (a.record.linf, a.record.h1, a.record.change) == (
            b.record.linf,
            b.record.h1,
            b.record.change,
        )


def test_no_reference_but_a_change() -> None:
    state = MultilevelRun(Coupled(), run_options(levels=2)).run()
    coarse, fine = (level.record for level in state.levels)
    assert [record.h1 for record in (coarse, fine)] == [None, None]
    assert coarse.change is None and fine.change is not None and math.isfinite(fine.change)

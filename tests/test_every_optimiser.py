"""Every optimiser on a tiny form of every problem: how far the loss falls."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import pytest

from kanpinn.api.preparation import Prepared, prepare
from kanpinn.config import parse_config, to_dict
from kanpinn.optimisers import OPTIMISERS
from kanpinn.registry import list_problems
from kanpinn.training import MultilevelRun

CONFIGS = Path(__file__).parent.parent / "configs"
CONFIG_OF = {  # a config that the tiny form of each problem is made from
    "regression": "regression_expsin",
    "tabular": "regression_csv",
}
TINY = (
    "model.width=4",
    "model.hidden_layers=1",
    "model.intervals=4",
    "training.levels=1",
    "training.log_every=100",
    "sampling={method: sobol, interior: 60, boundary: 20, initial: 20, held_out: 20}",
)
STEPS = {"adam": 60, "lbfgs": 30, "ssbfgs": 30, "ssbroyden": 30, "lm": 15}
RATE = {"adam": 0.02}  # of learning, where the default is meant for long runs
FALL = 0.7  # the last loss is at most this share of the first
# Its geometric mean over the problems, at most; 60 steps of steepest descent reach 0.03.
MEAN_FALL = {"adam": 0.06, "lbfgs": 0.015, "ssbfgs": 0.01, "ssbroyden": 0.01, "lm": 5e-4}
PROBLEMS = [entry.name for entry in list_problems()]


@functools.cache
def tiny(problem: str) -> Prepared:
    """A few points, parameters and knots; the equation is the shipped config's.

    Without a reference: computing one takes longer than the training here.
    """
    prepared = prepare(CONFIGS / f"{CONFIG_OF.get(problem, problem)}.yaml", TINY)
    prepared.problem.reference = lambda x: None  # type: ignore[method-assign]
    return prepared


def test_no_optimiser_is_left_out() -> None:
    assert set(STEPS) == set(OPTIMISERS)


@functools.cache
def remaining(problem: str, optimiser: str) -> float:
    """The last loss, as a share of the first."""
    prepared = tiny(problem)
    phase = {"optimiser": optimiser, "steps": STEPS[optimiser]}
    if optimiser in RATE:
        phase["learning_rate"] = RATE[optimiser]
    config = parse_config(to_dict(prepared.config), overrides=[f"training.phases=[{phase}]"])
    options = replace(prepared.run.options, training=config.training)
    history = MultilevelRun(prepared.problem, options).run().history
    return float(history[-1]["loss"] / history[0]["loss"])


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("optimiser", STEPS)
def test_lowers_the_loss(problem: str, optimiser: str) -> None:
    assert remaining(problem, optimiser) < FALL


@pytest.mark.parametrize("optimiser", STEPS)
def test_is_as_good_as_its_kind(optimiser: str) -> None:
    falls = [math.log(remaining(problem, optimiser)) for problem in PROBLEMS]
    assert math.exp(sum(falls) / len(falls)) < MEAN_FALL[optimiser]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_least_squares_go_further_than_gradients(problem: str) -> None:
    assert remaining(problem, "lm") < 0.9 * remaining(problem, "adam")

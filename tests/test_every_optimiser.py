"""Every optimiser on a tiny form of every problem: the loss falls and stays finite."""

from __future__ import annotations

import functools
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


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("optimiser", STEPS)
def test_lowers_the_loss(problem: str, optimiser: str) -> None:
    prepared = tiny(problem)
    phase = {"optimiser": optimiser, "steps": STEPS[optimiser]}
    if optimiser in RATE:
        phase["learning_rate"] = RATE[optimiser]
    config = parse_config(to_dict(prepared.config), overrides=[f"training.phases=[{phase}]"])
    options = replace(prepared.run.options, training=config.training)
    history = MultilevelRun(prepared.problem, options).run().history
    assert history[-1]["loss"] < FALL * history[0]["loss"]

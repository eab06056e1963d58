"""Runs of a few steps of every kind, for the tests of their analyses."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import kanpinn
from kanpinn import api
from kanpinn.problem import Problem
from kanpinn.residuals import System
from kanpinn.training import MultilevelRun, NullObserver, RunState

CONFIG: dict[str, Any] = {
    "problem": {"name": "poisson", "dimension": 1},
    "model": {"width": 2, "order": 4, "intervals": 2},
    "sampling": {"interior": 30, "held_out": 30},
    "training": {"levels": 3, "phases": [{"optimiser": "lm", "steps": 2}]},
    "figures": False,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "kan": {},
    "multichannel": {"model": {"type": "multichannel", "width": 2, "order": 4, "intervals": 2}},
    "free": {"model": {"width": 2, "order": 4, "intervals": 2, "knots": "free"}},
    "mlp": {"model": {"type": "mlp", "width": 3}, "training.levels": 1},
    "adaptive": {"training.refine": "adaptive"},
    "refitted": {"training.transfer": "least_squares"},
    "skipping": {"training.phases": [{"optimiser": "lm", "steps": [0, 2, 0]}]},
    "adaptive and free": {
        "model": {"width": 2, "order": 4, "intervals": 2, "knots": "free"},
        "training.refine": "adaptive",
    },
    "types by level": {
        "model": {"width": 2, "order": 4, "intervals": 3},
        "training.precision": ["float32", "float64"],
    },
    "adaptive, types by level": {
        "model": {"width": 2, "order": 4, "intervals": 3},
        "training.precision": ["float32", "float64"],
        "training.refine": "adaptive",
    },
    "several starts": {"training.starts": {"count": 2}},
    "windows": {
        "problem": {"name": "burgers", "exact_conditions": False},
        "training.windows": 2,
        "training.levels": 2,
    },
}


class Levels(NullObserver):
    """Keeps the networks that every level starts with."""

    def __init__(self) -> None:
        self.starts: list[System] = []

    def on_level(self, state: RunState) -> None:
        self.starts.append(copy.deepcopy(state.current.system))


def config_of(variant: str) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    for key, value in VARIANTS[variant].items():
        first, _, rest = key.partition(".")
        if rest:
            config[first][rest] = value
        else:
            config[first] = value
    return config


def trained(variant: str) -> tuple[kanpinn.Solution, Problem, Levels]:
    """A run of a few steps, its problem, and the systems at the starts of its levels."""
    prepared = api.prepare(config_of(variant))
    levels, options = Levels(), prepared.run.options
    state = MultilevelRun(prepared.problem, options, levels).run()
    if options.training.starts is not None:  # levels of all trials are told of
        alone = replace(options.training, starts=None)
        options = replace(options, training=alone, start=state.levels[0].record.start)
        levels = Levels()
        MultilevelRun(prepared.problem, options, levels).run()
    solution = kanpinn.Solution(state, prepared.config.to_dict(), {"fields": ["u"]})
    return solution, prepared.problem, levels

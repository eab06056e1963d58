"""The networks of a run at the start and at the end of every level.

At its start a level has what the refinement makes of the level before. That is no part of a
checkpoint, but follows from it: the same prolongation is done again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from kanpinn.config import RunConfig, parse_config
from kanpinn.problem import Problem, build_system
from kanpinn.residuals import System
from kanpinn.solution import Solution
from kanpinn.splines import Knots
from kanpinn.training import LevelRecord
from kanpinn.training.hierarchy import (
    Hierarchy,
    Refinement,
    build_hierarchy,
    knot_networks,
    on_knots,
    refine_system,
)
from kanpinn.training.initial import initial_system
from kanpinn.training.run_options import network_seed
from kanpinn.training.windows import window_problem

Moment = Literal["start", "end"]
LastKnots = dict[str, Sequence[Knots]]


@dataclass(frozen=True)
class Stage:
    """A moment of a run.

    Attributes:
        record: of the level.
        moment: its start, with prolongated (on the first level initial) networks, or its end.
        system: the networks then.
        problem: what is solved in the level's time window.
        before: the networks that a start was prolongated from, if it was.
    """

    record: LevelRecord
    moment: Moment
    system: System
    problem: Problem
    before: System | None = None

    @property
    def columns(self) -> dict[str, int | str]:
        """What tells it from others of the run, for tables; time windows where there are some."""
        window = {"window": self.record.window} if self.record.window else {}
        return {**window, "level": self.record.level, "moment": self.moment}


@dataclass(frozen=True)
class History:
    """What a run's config says of its levels."""

    config: RunConfig
    hierarchy: Hierarchy
    problem: Problem

    def window(self, number: int, past: System | None) -> Problem:
        """The problem in a time window."""
        return window_problem(self.problem, number, self.config.training.windows, past)

    def rules(self, start: int, end: int) -> list[Refinement]:
        """How the knots of level ``end`` follow from those of level ``start``."""
        rules = (level.refinement for level in self.hierarchy.levels[start + 1 : end + 1])
        return [rule for rule in rules if rule is not None]


def run_stages(solution: Solution, problem: Problem) -> Iterator[Stage]:
    """Start and end of every level that was trained, coarsest first, window after window.

    The end is the last iterate, which the next level starts from. The start of a level is left out
    where it cannot be found again: after adaptive refinement of free knots, which have moved since.
    """
    history = _history(solution, problem)
    choice = history.config.training.smoothing is not None  # then the best iterate is prolongated
    known = [entry.record for entry in solution.levels]
    for number, record in enumerate(known):
        end = solution.level(record.level, "last", record.window).model
        own = history.window(record.window, end.past)
        previous = known[number - 1] if number else None
        if previous is None or previous.window != record.window:
            yield Stage(record, "start", _initial(history, own, record, end), own)
        else:
            iterate: Literal["best", "last"] = "best" if choice else "last"
            before = solution.level(previous.level, iterate, previous.window).model
            rules = history.rules(previous.level, record.level)
            start = refined(before, rules, end, history.config.training.transfer)
            if start is not None:
                yield Stage(record, "start", start, own, before)
        yield Stage(record, "end", end, own)


def refined(
    before: System, rules: Sequence[Refinement], trained: System, transfer: str
) -> System | None:
    """What the refinements make of a level's networks, ``None`` if it cannot be told.

    Args:
        before: the networks.
        rules: from level to level.
        trained: the networks at the end of the level that is to be started.
        transfer: ``prolongation`` or ``least_squares``.
    """
    if all(rule.share is None for rule in rules):
        dtype = next(trained.parameters()).dtype
        return refine_system(before, rules, transfer, dtype)
    networks = knot_networks(trained)
    if any(layer.settings.free for net in networks.values() for layer in net.knot_layers):
        return None
    return on_knots(before, {name: net.knots for name, net in networks.items()}, transfer)


def _history(solution: Solution, problem: Problem) -> History:
    config = parse_config(solution.config, "the run's config", import_problem=False)
    coarse = build_system(problem, config.model, torch.Generator().manual_seed(config.seed))
    return History(config, build_hierarchy(coarse, config.training), problem)


def _initial(history: History, problem: Problem, record: LevelRecord, like: System) -> System:
    """The random networks that a run begins with: they follow from its seed."""
    config, rules = history.config, history.rules(0, record.level)
    seed, parameter = network_seed(config.seed, record.start), next(iter(like.parameters()))
    return initial_system(problem, config.model, seed, rules, parameter, like.past)

"""What a run would take, level by level, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kanpinn.api.memory_needs import sizes_of
from kanpinn.api.preparation import Prepared
from kanpinn.training.memory import MIB


@dataclass(frozen=True)
class LevelPlan:
    """One level of a run to come.

    Attributes:
        level: 0 is the coarsest.
        n_intervals: knot intervals per layer.
        n_params: trainable numbers.
        n_points: points trained on, by block.
        steps: of all phases.
        memory_mib: estimate of what training takes beside the program itself.
        dtype: type of all its numbers.
        solvers: the linear solver of each phase on these points, ``None`` for other methods than
            ``lm``, where the level is skipped, and where the rows of a penalty would decide.
        at_most: whether intervals and parameters are the most that training may arrive at.
        work: what the level may spend, of what ``training.work`` counts, in which case steps are
            the most that it may take; ``None`` without such a budget.
        starts: initial networks that take these steps.
    """

    level: int
    n_intervals: tuple[int, ...]
    n_params: int
    n_points: Mapping[str, int]
    steps: int
    memory_mib: float
    dtype: str
    solvers: tuple[str | None, ...]
    at_most: bool = False
    work: float | None = None
    starts: int = 1

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        lists = {"n_intervals": list(self.n_intervals), "solvers": list(self.solvers)}
        return {**asdict(self), **lists}


@dataclass(frozen=True)
class PhasePlan:
    """The optimiser of one phase of a run to come.

    Attributes:
        optimiser: by name.
        steps: on each level.
        reason: why ``optimiser: auto`` became this one; ``None`` where the config names it.
        solvers: the linear solver of ``lm`` on each level, see :class:`LevelPlan`.
    """

    optimiser: str
    steps: tuple[int, ...]
    reason: str | None
    solvers: tuple[str | None, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "steps": list(self.steps), "solvers": list(self.solvers)}

    def choice(self) -> str:
        """What ``auto`` chose and why, in one line."""
        steps = "/".join(map(str, self.steps if len(set(self.steps)) > 1 else self.steps[:1]))
        used = list(dict.fromkeys(solver for solver in self.solvers if solver))
        solver = f"; linear solver {', then '.join(used)}" if used else ""
        return f"optimiser {self.optimiser} (auto: {self.reason}), {steps} steps a level{solver}"


def phase_plans(prepared: Prepared, levels: Sequence[LevelPlan]) -> list[PhasePlan]:
    """The optimiser of every phase, and how it came to be chosen."""
    run, training = prepared.run, prepared.run.options.training
    return [
        PhasePlan(
            optimiser=phase.optimiser,
            steps=tuple(training.steps_of(phase, level.level) for level in levels),
            reason=run.reasons.get(number),
            solvers=tuple(level.solvers[number] for level in levels),
        )
        for number, phase in enumerate(training.phases)
    ]


def plan(prepared: Prepared) -> list[LevelPlan]:
    """The levels of a run, with their points and an estimate of the memory.

    The number of points is exact but for the sampling method ``grid``, which rounds it.
    """
    run = prepared.run
    options, work = run.options, run.options.training.work
    plans = []
    for level in run.hierarchy.levels:
        sizes = sizes_of(run, level)
        plans.append(
            LevelPlan(
                level=level.index,
                n_intervals=level.n_intervals,
                n_params=level.n_parameters,
                n_points=sizes.points,
                steps=sum(level.steps),
                memory_mib=sizes.total() / MIB,
                dtype=options.dtype_name(level.index),
                solvers=sizes.solvers(),
                at_most=level.at_most,
                work=work.on(level.index) if work else None,
                starts=run.starts_on(level),
            )
        )
    return plans

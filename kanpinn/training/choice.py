"""What ``optimiser: auto`` becomes: decided once, before a run, by its problem and its sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kanpinn.residuals import ResidualBlock, System
from kanpinn.training.hierarchy import build_hierarchy
from kanpinn.training.options import (
    FIRST_LINES,
    TrainingOptions,
)
from kanpinn.training.phase_options import (
    MOST_STEPS,
    AdamPhase,
    AutoPhase,
    LBFGSPhase,
    LevenbergMarquardtPhase,
    Phase,
    SelfScaledBroydenPhase,
)

LEAST_SQUARES_STEPS = 60  # a level: most of what lm gains comes before, and it stops by itself
DENSE_PARAMETERS = 2000  # up to here a dense inverse Hessian was seen to be worth its price


def resolve_phases(
    training: TrainingOptions, blocks: Sequence[ResidualBlock], coarse: System
) -> tuple[TrainingOptions, Mapping[int, str]]:
    """The options with an optimiser in the place of every ``auto``, and the reasons by phase.

    Levenberg-Marquardt where it applies, to sums of squares on the full batch: in the comparison
    of docs/accuracy.md its error is more than ten times below that of any other method in the
    same time. Elsewhere the self-scaled Broyden method, the best of those that need a gradient
    alone, or L-BFGS where its dense inverse Hessian would make steps too dear.

    Args:
        training: as asked for.
        blocks: of the problem.
        coarse: its system on the coarsest level.
    """
    if not any(isinstance(phase, AutoPhase) for phase in training.phases):
        return training, {}
    obstacle = _obstacle_to_squares(training, blocks)
    hierarchy = build_hierarchy(coarse, training)
    largest = max(level.n_parameters for level in hierarchy.levels if any(level.steps))
    found, reasons = list(training.phases), {}
    for number, phase in enumerate(training.phases):
        if isinstance(phase, AutoPhase):
            found[number], reasons[number] = _chosen(phase, training, obstacle, largest)
    return replace(training, phases=tuple(found)), reasons


def _obstacle_to_squares(training: TrainingOptions, blocks: Sequence[ResidualBlock]) -> str | None:
    """What forbids a least-squares method, ``None`` if nothing does."""
    general = [block.name for block in blocks if not block.is_least_squares]
    if general:
        return f"{general[0]!r} has a loss that is no sum of squares"
    batched = [isinstance(p, AdamPhase) and p.batch is not None for p in training.phases]
    return f"phase {batched.index(True)} takes mini-batches" if any(batched) else None


def _chosen(
    phase: AutoPhase, training: TrainingOptions, obstacle: str | None, largest: int
) -> tuple[Phase, str]:
    """The phase that takes the place of an ``auto``, and why."""
    if obstacle is None:
        least = FIRST_LINES * training.log_every if training.adapts else 0
        steps = max(LEAST_SQUARES_STEPS, least) if phase.steps == "auto" else phase.steps
        reason = "the losses are sums of squares"
        return LevenbergMarquardtPhase(steps=steps, train=phase.train), reason
    steps = MOST_STEPS if phase.steps == "auto" else phase.steps
    if largest <= DENSE_PARAMETERS:
        return SelfScaledBroydenPhase(steps=steps, train=phase.train), obstacle
    reason = f"{obstacle}, and {largest:,} parameters are many for ssbroyden"
    return LBFGSPhase(steps=steps, train=phase.train), reason

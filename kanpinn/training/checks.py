"""What is refused before a run begins: blocks and networks that do not fit what is asked."""

from __future__ import annotations

from collections.abc import Sequence

from kanpinn.errors import ConfigError, ProblemError
from kanpinn.models import KnotNetwork
from kanpinn.residuals import ResidualBlock, System, required_jets
from kanpinn.training.options import LevenbergMarquardtPhase, TrainingOptions


def check_blocks(blocks: Sequence[ResidualBlock], training: TrainingOptions) -> None:
    """Refuse blocks of the same name, and squares that are none.

    Raises:
        ProblemError: if two blocks have the same name, which tells their points apart.
        ConfigError: if a least-squares method is to minimise a block's general loss.
    """
    names = [block.name for block in blocks]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ProblemError(f"two residual blocks are called {sorted(repeated)[0]!r}")
    general = [block.name for block in blocks if not block.is_least_squares]
    if general and training.adapts:
        raise ConfigError(
            "training.refine: found 'auto', which compares sums of squares, and "
            f"{general[0]!r} has a loss of its own; allowed: dyadic, or a list"
        )
    for number, phase in enumerate(training.phases):
        if general and isinstance(phase, LevenbergMarquardtPhase):
            raise ConfigError(
                f"training.phases.{number}.optimiser: {phase.optimiser} minimises sums of squares, "
                f"and {general[0]!r} has a loss of its own; allowed: adam, lbfgs, ssbfgs, ssbroyden"
            )


def check_smoothness(system: System, blocks: Sequence[ResidualBlock]) -> None:
    """Refuse a model too rough for the derivatives of the equation.

    Raises:
        ConfigError: naming the block, its derivatives, and the order that would do.
    """
    for block in blocks:
        for name, spec in required_jets(block, system).items():
            limit = system.parts[name].network.smoothness
            if limit is None or spec.order <= limit:
                continue
            if isinstance(system.parts[name].network, KnotNetwork):
                raise ConfigError(
                    f"model.order: too low for {block.name!r}, which takes derivatives of order "
                    f"{spec.order}: at least {spec.order + 2} is needed, found {limit + 2}"
                )
            raise ConfigError(
                f"model.activation: too rough for {block.name!r}, which takes derivatives of "
                f"order {spec.order}; allowed: tanh, silu, gelu, sin"
            )

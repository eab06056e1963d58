"""What is refused before a run begins: blocks and networks that do not fit what is asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from kanpinn.errors import ConfigError, ProblemError
from kanpinn.models import KnotNetwork
from kanpinn.problem import Problem
from kanpinn.residuals import ResidualBlock, System, evaluate_rows, required_jets
from kanpinn.training.block_data import BlockData
from kanpinn.training.evaluation import held_out_equations
from kanpinn.training.options import TrainingOptions
from kanpinn.training.phase_options import LevenbergMarquardtPhase
from kanpinn.training.smoothing import Roughness


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
    if general and (training.adapts or training.marks):
        raise ConfigError(
            f"training.refine: found {training.refine!r}, which compares sums of squares, and "
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


def check_networks(system: System, blocks: Sequence[ResidualBlock]) -> None:
    """Refuse a network whose fields are in no residual that counts.

    Raises:
        ProblemError: naming the network and its fields.
    """
    used = {name for block in blocks if block.weight for name in required_jets(block, system)}
    for name, part in system.parts.items():
        if name not in used:
            raise ProblemError(
                f"network {name!r} ({', '.join(part.fields)}): no residual depends on it, so that "
                "nothing determines it; allowed: fields that the equation, a condition or data use"
            )


def check_scalars(system: System, data: Iterable[BlockData]) -> None:
    """Refuse a scalar that no residual depends on: its columns of the Jacobian are zero.

    At most one pass over the points, and only until every scalar was seen to count.

    Args:
        system: as training starts.
        data: the blocks with the points that are trained on first.

    Raises:
        ProblemError: naming the scalar, and whether residuals use it at all.
    """
    used: set[str] = set()
    idle = set(system.scalars)
    generator = torch.Generator().manual_seed(0)
    for entry in data if idle else ():
        for chunk in entry.chunks if entry.block.weight else ():
            rows = evaluate_rows(entry.block, system, chunk.points, chunk.prepared)
            if not rows.requires_grad:
                continue
            # Random weights, so that the derivatives of several rows do not cancel.
            weights = torch.randn(rows.shape, generator=generator, dtype=torch.float64).to(rows)
            scalars = tuple(system.scalars.values())
            slopes = torch.autograd.grad((weights * rows).sum(), scalars, allow_unused=True)
            found = {k: v for k, v in zip(system.scalars, slopes, strict=True) if v is not None}
            used |= set(found)
            idle -= {name for name, slope in found.items() if float(slope)}
            if not idle:
                return
    for name in (name for name in system.scalars if name in idle):
        start, lost = float(system.scalars[name].detach()), "so that nothing determines it"
        if name in used:
            raise ProblemError(
                f"scalars: the derivative of every residual with respect to {name!r} is zero where "
                f"training starts, {lost}; allowed: another start than {start:g}, or residuals "
                "that depend on it there"
            )
        raise ProblemError(
            f"scalars: no residual depends on {name!r}, {lost}; allowed: scalars that the "
            "equation, a condition or data use"
        )


def check_penalties(
    system: System, problem: Problem, blocks: Sequence[ResidualBlock], training: TrainingOptions
) -> None:
    """Refuse penalties that do not fit the model, or a choice that nothing could judge.

    Raises:
        ConfigError: naming the key.
    """
    smoothing = training.smoothing
    if smoothing is None:
        return
    Roughness(system, smoothing)
    if len(smoothing.values) > 1 and not held_out_equations(problem, blocks):
        raise ConfigError(
            f"training.smoothing.penalties: found {len(smoothing.values)} to choose from, "
            "allowed: one, since this problem has no held-out residual to choose by"
        )

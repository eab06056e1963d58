"""The random networks that training starts from: they follow from the seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kanpinn.models import ModelOptions
from kanpinn.problem import Problem, build_system
from kanpinn.residuals import System
from kanpinn.splines import Knots
from kanpinn.training.hierarchy import Refinement


def initial_system(
    problem: Problem,
    model: ModelOptions,
    seed: int,
    refinements: Sequence[Refinement],
    like: torch.Tensor,
    past: System | None = None,
) -> System:
    """Random initial networks, on the knots that the refinements of the coarsest ones lead to.

    Args:
        problem: what is solved, in the time window.
        model: the networks.
        seed: of the network, see :func:`~kanpinn.training.run_options.network_seed`.
        refinements: from the coarsest knots on.
        like: type and device.
        past: the system of the time window before.
    """

    def finer(knots: tuple[Knots, ...]) -> tuple[Knots, ...]:
        for refinement in refinements:
            knots = refinement.apply(knots)
        return knots

    generator = torch.Generator().manual_seed(seed)
    return build_system(problem, model, generator, like.dtype, like.device, finer, past)

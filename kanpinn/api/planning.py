"""What a run would take, level by level, without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kanpinn.api.preparation import Prepared
from kanpinn.jets import JetSpec
from kanpinn.models import KnotNetwork
from kanpinn.optimisers import (
    LBFGSOptions,
    LevenbergMarquardtOptions,
    SelfScaledBFGSOptions,
    SelfScaledBroydenOptions,
)
from kanpinn.problem import build_system
from kanpinn.residuals import System, required_jets
from kanpinn.training import Level
from kanpinn.training.accumulate import SLAB
from kanpinn.training.objective import CHUNK_BYTES, FEATURE_CACHE_BYTES

MIB = 2.0**20
CHUNK_COPIES = 12  # jets of one chunk alive in a gradient: values, products and their adjoints
JACOBIAN_COPIES = 3  # of a slab of the Jacobian: its pieces, the slab, its factorisation
DENSE_COPIES = 2  # of an inverse Hessian: before and after its update
ADAM_VECTORS = 6  # of the parameters' length: theta, gradient, two moments, best, trial


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
    """

    level: int
    n_intervals: tuple[int, ...]
    n_params: int
    n_points: Mapping[str, int]
    steps: int
    memory_mib: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "n_intervals": list(self.n_intervals)}


def plan(prepared: Prepared) -> list[LevelPlan]:
    """The levels of a run, with their points and an estimate of the memory.

    The number of points is exact but for the sampling method ``grid``, which rounds it.
    """
    run = prepared.run
    options = run.options
    coarse = build_system(run.problem, options.model, torch.Generator().manual_seed(options.seed))
    specs = {block.name: required_jets(block, coarse) for block in run.blocks}
    plans = []
    for level in run.hierarchy.levels:
        points = {block.name: run.n_points(block, level) for block in run.blocks}
        plans.append(
            LevelPlan(
                level=level.index,
                n_intervals=level.n_intervals,
                n_params=level.n_parameters,
                n_points=points,
                steps=sum(level.steps),
                memory_mib=_memory(prepared, coarse, specs, points, level) / MIB,
            )
        )
    return plans


def _memory(
    prepared: Prepared,
    coarse: System,
    specs: Mapping[str, Mapping[str, JetSpec]],
    points: Mapping[str, int],
    level: Level,
) -> float:
    """Bytes: prepared points, kept features, one chunk in flight, the optimiser's vectors."""
    options = prepared.run.options
    number = 8 if options.dtype is torch.float64 else 4
    total = 0.0
    for block in prepared.run.blocks:
        sites = points[block.name] * block.region.n_sites
        held_out = options.sampling.held_out if block.equation else options.sampling.held_out / 5
        for name, spec in specs[block.name].items():
            part = coarse.parts[name]
            per_site = spec.n_components * (part.inputs.n_channels + 2 * len(part.fields))
            features = spec.n_components * _first_features(coarse, name, level)
            kept = features * sites * number
            kept = kept if kept <= FEATURE_CACHE_BYTES else 0
            share = (sites + held_out * block.region.n_sites) / max(sites, 1)
            total += (sites * per_site * number + kept) * share
    layers = max(len(part.network.layers) for part in coarse.parts.values())
    total += CHUNK_COPIES * layers * CHUNK_BYTES
    return total + _vectors(prepared, level) * level.n_parameters * number


def _first_features(coarse: System, name: str, level: Level) -> int:
    """Width of the first layer's features on a level."""
    network = coarse.parts[name].network
    if not isinstance(network, KnotNetwork):
        return network.widths[0]
    knots = network.knots[0]
    return knots.channels * (level.n_intervals[0] + knots.order - 1)


def _vectors(prepared: Prepared, level: Level) -> int:
    """Vectors as long as the parameters that the greediest phase keeps."""
    phases = [p for p in prepared.config.training.phases if p.steps_on(level.index)]
    memories = [2 * p.history + 8 for p in phases if isinstance(p, LBFGSOptions)]
    if any(isinstance(p, SelfScaledBFGSOptions | SelfScaledBroydenOptions) for p in phases):
        memories.append(DENSE_COPIES * level.n_parameters + 8)
    if any(isinstance(p, LevenbergMarquardtOptions) for p in phases):
        memories.append(JACOBIAN_COPIES * SLAB * level.n_parameters)
    return max([ADAM_VECTORS, *memories])

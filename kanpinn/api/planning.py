"""What a run would take, level by level, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kanpinn.api.preparation import Prepared
from kanpinn.jets import JetSpec
from kanpinn.models import KnotLayer, Layer, SplineLayer
from kanpinn.optimisers import (
    LBFGSOptions,
    LevenbergMarquardt,
    LevenbergMarquardtOptions,
    SelfScaledBFGSOptions,
    SelfScaledBroydenOptions,
)
from kanpinn.optimisers.linear_models import dense_numbers, dual_numbers, iterative_numbers
from kanpinn.problem import build_system
from kanpinn.residuals import ResidualBlock, System, n_equations, required_jets
from kanpinn.training import Level
from kanpinn.training.block_data import FEATURE_CACHE_BYTES, chunk_rows
from kanpinn.training.evaluation import EVALUATION_BYTES
from kanpinn.training.hierarchy import first_knots

MIB = 2.0**20
# Measured, as far as they are not plain: peaks beside those of a small run.
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
    system = build_system(run.problem, options.model, torch.Generator().manual_seed(options.seed))
    specs = {block.name: required_jets(block, system) for block in run.blocks}
    knots = first_knots(system)
    plans = []
    for level in run.hierarchy.levels:
        knots = level.refinement.apply(knots) if level.refinement else knots
        points = {block.name: run.n_points(block, level) for block in run.blocks}
        sizes = _Sizes(prepared, level, system, specs, points, [k.n_features for k in knots])
        plans.append(
            LevelPlan(
                level=level.index,
                n_intervals=level.n_intervals,
                n_params=level.n_parameters,
                n_points=points,
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


@dataclass(frozen=True)
class _Sizes:
    """What training on one level takes, in bytes, from the sizes of its arrays.

    Attributes:
        prepared: the run.
        level: the level.
        coarse: networks of the coarsest level: of the same widths and orders.
        specs: jets by block and network.
        points: number of points by block.
        splines: functions of every layer on knots, of all its channels.
    """

    prepared: Prepared
    level: Level
    coarse: System
    specs: Mapping[str, Mapping[str, JetSpec]]
    points: Mapping[str, int]
    splines: Sequence[int]

    def total(self) -> float:
        """Points with what is kept for them, the largest evaluation, the optimiser's arrays."""
        blocks = self.prepared.run.blocks
        step = max(self._step(block) for block in blocks)
        return (
            sum(self._points(block) for block in blocks)
            + max(step, EVALUATION_BYTES)
            + self._optimiser()
        )

    def solvers(self) -> tuple[str | None, ...]:
        """The linear solver of every phase that has one; see :class:`LevelPlan`."""
        n, rows, training = self.level.n_parameters, self.rows, self.prepared.config.training
        known = training.smoothing is None or rows >= n
        return tuple(
            LevenbergMarquardt(phase).choose(rows, n, self._number).solver
            if isinstance(phase, LevenbergMarquardtOptions)
            and training.steps_of(phase, self.level.index)
            and known
            else None
            for phase in training.phases
        )

    @property
    def _number(self) -> int:
        return self.prepared.run.options.dtype_on(self.level.index).itemsize

    def _features(self, number: int, layer: Layer) -> int:
        """Features of a layer on this level."""
        if not isinstance(layer, KnotLayer):
            return layer.in_width
        return self.splines[number] + (layer.in_width if layer.settings.base else 0)

    def _points(self, block: ResidualBlock) -> float:
        """Prepared points of a block and their held-out ones, with the first layer's features."""
        sampling, n_sites = self.prepared.run.options.sampling, block.region.n_sites
        sites = self.points[block.name] * n_sites
        held_out = (sampling.held_out if block.equation else sampling.held_out / 5) * n_sites
        total = 0.0
        for name, spec in self.specs[block.name].items():
            part = self.coarse.parts[name]
            per_site = spec.n_components * (part.inputs.n_channels + 2 * len(part.fields))
            total += per_site * (sites + held_out)
            features = spec.n_components * self._features(0, part.network.chain[0])
            for count in (sites, held_out):
                if features * count * 8 <= FEATURE_CACHE_BYTES:
                    total += features * count
        return total * self._number

    def _step(self, block: ResidualBlock) -> float:
        """A chunk of a block in flight: what all layers keep for the gradient, and its adjoints."""
        n_sites = block.region.n_sites
        chosen = self.prepared.run.options.training.chunk
        rows = chosen or chunk_rows(self.coarse, self.specs[block.name], n_sites)
        kept = transient = 0.0
        for name, spec in self.specs[block.name].items():
            for number, layer in enumerate(self.coarse.parts[name].network.chain):
                features = self._features(number, layer)
                kept += _kept(layer, features, spec)
                transient = max(transient, 3.0 * spec.n_components * features)
        rows = min(rows, self.points[block.name])
        return rows * n_sites * (kept + transient) * self._number

    def _optimiser(self) -> float:
        """Vectors as long as the parameters, or the Jacobian, of the greediest phase."""
        n, training = self.level.n_parameters, self.prepared.config.training
        numbers = [float(ADAM_VECTORS * n)]
        for phase in training.phases:
            if not training.steps_of(phase, self.level.index):
                continue
            if isinstance(phase, LBFGSOptions):
                numbers.append((2.0 * phase.history + 8) * n)
            if isinstance(phase, SelfScaledBFGSOptions | SelfScaledBroydenOptions):
                numbers.append((DENSE_COPIES * n + 8.0) * n)
            if isinstance(phase, LevenbergMarquardtOptions):
                numbers.append(self._least_squares(phase))
        return max(numbers) * self._number

    @property
    def rows(self) -> int:
        """Residuals of all blocks."""
        blocks = self.prepared.run.blocks
        return sum(
            self.points[block.name] // block.group * n_equations(block, self.coarse)
            for block in blocks
        )

    def _least_squares(self, phase: LevenbergMarquardtOptions) -> float:
        """What the linear solver that such a phase chooses holds."""
        n, rows = self.level.n_parameters, self.rows
        solver = LevenbergMarquardt(phase).choose(rows, n, self._number).solver
        if solver == "dense":
            return dense_numbers(rows, n, self.prepared.run.options.workers)
        if solver == "dual":
            return dual_numbers(rows, n)
        kept = sum(self._linearised(block) for block in self.prepared.run.blocks)
        return iterative_numbers(rows, n) + min(kept, phase.memory_mib * MIB / self._number)

    def _linearised(self, block: ResidualBlock) -> float:
        """Features and adjoints of all layers at a block's points, or columns where these are less.

        Those of the last chunks are not kept where there is no room.
        """
        equations, total = n_equations(block, self.coarse), 0.0
        for name, spec in self.specs[block.name].items():
            for number, layer in enumerate(self.coarse.parts[name].network.chain):
                features, out = self._features(number, layer), layer.out_width
                pair = spec.n_components * (features + equations * out)
                total += min(pair, equations * features * out)
        return total * self.points[block.name] * block.region.n_sites


def _kept(layer: Layer, features: int, spec: JetSpec) -> float:
    """Numbers that a layer keeps for the gradient, for every point."""
    jets, orders = spec.n_components, spec.order + 1
    if isinstance(layer, SplineLayer):
        local = layer.in_width * layer.order
        recorded = 8 if layer.settings.free else 1  # free knots have no reverse pass of their own
        return float(jets * features + recorded * (orders + 2) * local)
    if isinstance(layer, KnotLayer):
        return float((3 * jets + 4 * orders) * features)
    return float(3 * jets * features)

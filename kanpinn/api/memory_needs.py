"""What training would take of the machine's memory, from sizes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kanpinn.errors import ConfigError
from kanpinn.jets import JetSpec
from kanpinn.kernels import kernels_expected
from kanpinn.models import Layer
from kanpinn.optimisers import (
    LBFGSOptions,
    LevenbergMarquardt,
    LevenbergMarquardtOptions,
    SelfScaledBFGSOptions,
    SelfScaledBroydenOptions,
)
from kanpinn.optimisers.solver_choice import dense_numbers, dual_numbers, iterative_numbers
from kanpinn.residuals import ResidualBlock, System, n_equations, required_jets
from kanpinn.training import Level, MultilevelRun, RunOptions
from kanpinn.training.block_data import FEATURE_CACHE_BYTES, rows_at_once
from kanpinn.training.evaluation import evaluation_numbers, evaluation_rows
from kanpinn.training.memory import MIB, Memory, row_numbers
from kanpinn.training.replay import RECORDED, RECORDERS

# Measured, as far as they are not plain: peaks beside those of a small run.
DENSE_COPIES = 2  # of an inverse Hessian: before and after its update
KERNEL_COPIES = 2  # of a layer's coefficients: they and their gradient, in the kernel's order
ADAM_VECTORS = 6  # of the parameters' length: theta, gradient, two moments, best, trial
STEP = 1.1  # by which bounds are tried


def check_memory(run: MultilevelRun) -> None:
    """Refuse a bound on memory that training would exceed.

    Raises:
        ConfigError: naming the level, and a bound that would do.
    """
    bound = run.options.memory_mib
    if bound is None:
        return
    levels, allowed = [sizes_of(run, level) for level in run.active], bound

    def fits(memory_mib: float) -> bool:
        options = run.unbounded.bounded(memory_mib)
        totals = (replace(sizes, options=options).total() for sizes in levels)
        return max(totals) <= memory_mib * MIB

    while not fits(allowed):
        allowed *= STEP
    if allowed > bound:
        most = max(levels, key=lambda sizes: sizes.total())
        shares = ", ".join(f"{value / MIB:.3g} for {part}" for part, value in most.parts().items())
        raise ConfigError(
            f"memory_mib: found {bound:g}, allowed: about {math.ceil(allowed)} or more, because "
            f"level {most.level.index} takes {shares}"
        )


def sizes_of(run: MultilevelRun, level: Level) -> Sizes:
    """What training on a level of a run takes."""
    system = run.initial_system(level.index)
    specs = {block.name: required_jets(block, system) for block in run.blocks}
    points = {block.name: run.n_points(block, level) for block in run.blocks}
    return Sizes(run.blocks, run.options, level, system, specs, points)


@dataclass(frozen=True)
class Sizes:
    """What training on one level takes, in bytes, from the sizes of its arrays.

    Attributes:
        blocks: of the problem.
        options: of the run.
        level: the level.
        system: networks as it begins with.
        specs: jets by block and network.
        points: number of points by block.
    """

    blocks: Sequence[ResidualBlock]
    options: RunOptions
    level: Level
    system: System
    specs: Mapping[str, Mapping[str, JetSpec]]
    points: Mapping[str, int]

    def total(self) -> float:
        """Points with what is kept for them, the largest evaluation, the optimiser's arrays."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """What the total consists of."""
        step = max(self._step(block) for block in self.blocks) * (self._workers + self._recorded)
        return {
            "points": sum(self._points(block) for block in self.blocks),
            "rows at once": max(step, self._evaluation()),
            "the optimiser": self._optimiser(),
        }

    def _memory(self, jacobian: bool) -> Memory:
        return self.options.memory(jacobian, len(self.blocks))

    def solvers(self) -> tuple[str | None, ...]:
        """The linear solver of every phase that has one; see :class:`LevelPlan`."""
        n, rows, training = self.level.n_parameters, self.rows, self.options.training
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
        return self.options.dtype_on(self.level.index).itemsize

    @property
    def _workers(self) -> int:
        """Threads that share the chunks."""
        sizes = (self.rows, self.level.n_parameters, self._number)
        return self._memory(True).workers(self.options.device, *sizes)

    @property
    def _recorded(self) -> int:
        """Evaluations that are recorded, with memory of their own."""
        return RECORDED if self.options.graphs and self.options.device.type in RECORDERS else 0

    def _makes_features(self, layer: Layer, jacobian: bool) -> bool:
        """Whether an evaluation makes a layer's features, as far as can be told before."""
        compiled = self.options.device.type == "cpu" and kernels_expected()
        return not (compiled and layer.suits_kernel(jacobian))

    def _points(self, block: ResidualBlock) -> float:
        """Prepared points of a block and their held-out ones, with the first layer's features."""
        sampling, n_sites = self.options.sampling, block.region.n_sites
        sites = self.points[block.name] * n_sites
        held_out = (sampling.held_out if block.equation else sampling.held_out / 5) * n_sites
        total = 0.0
        for name, spec in self.specs[block.name].items():
            part = self.system.parts[name]
            per_site = spec.n_components * (part.inputs.n_channels + 2 * len(part.fields))
            total += per_site * (sites + held_out)
            first = part.network.chain[0]
            features = spec.n_components * first.n_features
            for count, jacobian in ((sites, True), (held_out, False)):
                memory = self._memory(jacobian)
                asked = self._makes_features(first, memory.jacobian)
                fits = features * count * 8 <= memory.features(FEATURE_CACHE_BYTES)
                total += features * count if first.fixed_features and asked and fits else 0
        return total * self._number

    def _step(self, block: ResidualBlock) -> float:
        """Chunks of a block in flight: what all layers keep for the gradient, and its adjoints."""
        memory, equations = self._memory(True), n_equations(block, self.system)
        sizes = (self.system, block, self.specs[block.name], equations)

        def makes(layer: Layer) -> bool:
            return self._makes_features(layer, memory.jacobian)

        rows = rows_at_once(*sizes, self.options.training.chunk, memory, makes)
        rows = min(max(rows, block.group), self.points[block.name])
        specs, n_sites = self.specs[block.name], block.region.n_sites
        direct = {"dense", "dual"} & set(self.solvers())  # whose rows are part of what they hold
        jacobian = memory.jacobian and not direct
        numbers = rows * row_numbers(self.system, specs, n_sites, equations, makes, jacobian)
        layers = [layer for name in specs for layer in self.system.parts[name].network.chain]
        copied = [layer.coefficients.numel() for layer in layers if not makes(layer)]
        return (numbers + KERNEL_COPIES * max(copied, default=0)) * self._number

    def _evaluation(self) -> float:
        """Points that errors are measured at, at once."""
        memory = self._memory(False)
        rows = evaluation_rows(self.system, memory) * memory.sharing(self.options.device)
        return (
            rows
            * 8.0
            * evaluation_numbers(self.system, lambda layer: self._makes_features(layer, False))
        )

    def _optimiser(self) -> float:
        """Vectors as long as the parameters, or the Jacobian, of the greediest phase."""
        n, training = self.level.n_parameters, self.options.training
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
        return sum(
            self.points[block.name] // block.group * n_equations(block, self.system)
            for block in self.blocks
        )

    def _least_squares(self, phase: LevenbergMarquardtOptions) -> float:
        """What the linear solver that such a phase chooses holds."""
        n, rows = self.level.n_parameters, self.rows
        solver = LevenbergMarquardt(phase).choose(rows, n, self._number).solver
        if solver == "dense":
            return dense_numbers(rows, n, self._workers)
        if solver == "dual":
            return dual_numbers(rows, n)
        kept = sum(self._linearised(block) for block in self.blocks)
        return iterative_numbers(rows, n) + min(kept, phase.memory_mib * MIB / self._number)

    def _linearised(self, block: ResidualBlock) -> float:
        """Features and adjoints of all layers at a block's points, or columns where these are less.

        Those of the last chunks are not kept where there is no room.
        """
        equations, total = n_equations(block, self.system), 0.0
        for name, spec in self.specs[block.name].items():
            for layer in self.system.parts[name].network.chain:
                features, out = layer.n_features, layer.out_width
                pair = spec.n_components * (features + equations * out)
                total += min(pair, equations * features * out)
        return total * self.points[block.name] * block.region.n_sites

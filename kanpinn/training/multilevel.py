"""The multilevel engine: solve on the coarsest level, prolongate, solve on the next finer one.

Algorithm 1 of arXiv 2603.04827. The optimiser's state is reset at a refinement: gradients go from
fine to coarse by the transpose of the prolongation, and no way of carrying them forward is unique.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from kanpinn.geometry import Points
from kanpinn.models import ModelOptions
from kanpinn.optimisers import StopReason, build_optimiser
from kanpinn.problem import Problem, build_system
from kanpinn.residuals import ResidualBlock, System
from kanpinn.sampling import SamplingOptions, sample, sample_graded, stream
from kanpinn.splines import Knots
from kanpinn.training.adaptive import adapt_points
from kanpinn.training.block_data import BlockData, neighbours
from kanpinn.training.checks import (
    check_blocks,
    check_networks,
    check_penalties,
    check_scalars,
    check_smoothness,
)
from kanpinn.training.choice import resolve_phases
from kanpinn.training.control import EXTENSION
from kanpinn.training.evaluation import (
    ReferenceErrors,
    RefinementChange,
    SolutionChange,
    held_out_data,
    held_out_equations,
    predict,
    reference_values,
)
from kanpinn.training.h1_error import H1Error, ReferenceGradient
from kanpinn.training.hierarchy import (
    Hierarchy,
    Level,
    Refinement,
    build_hierarchy,
    first_knots,
    mean_intervals,
    naming_level,
    on_knots,
    refine_system,
)
from kanpinn.training.knot_insertion import adaptive_knots, as_splines
from kanpinn.training.loop import LevelContext, Trainer
from kanpinn.training.objective import SystemObjective
from kanpinn.training.options import TrainingOptions
from kanpinn.training.parameters import ParameterPack
from kanpinn.training.smoothing import Roughness
from kanpinn.training.starts import TrialObserver, best_trial, replay
from kanpinn.training.state import (
    LevelRecord,
    LevelState,
    NullObserver,
    Observer,
    RunState,
    snapshot,
)
from kanpinn.training.weighting import Weights, check_weighting
from kanpinn.training.windows import check_windows, evaluation_points, window_problem

AllPoints = dict[str, tuple[Points, ...]]  # by block
RUN_ENDS = (StopReason.INTERRUPTED, StopReason.TIME, StopReason.NON_FINITE)


@dataclass(frozen=True)
class RunOptions:
    """All options of a run but the problem's own."""

    model: ModelOptions
    training: TrainingOptions
    sampling: SamplingOptions
    seed: int = 0
    dtype: torch.dtype = torch.float64
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    workers: int = 1  # threads that share the chunks of points; no result depends on them
    start: int = 0  # which of this seed's random initial networks

    @property
    def network_seed(self) -> int:
        """Seed of the initial networks."""
        if not self.start:
            return self.seed
        return int(stream(self.seed, "start", self.start).generate_state(1)[0])


class MultilevelRun:
    """A run over all levels of a hierarchy.

    Args:
        problem: what is solved.
        options: model, training, sampling, seed.
        observer: told of levels, lines and checkpoints.
        state: a state to continue from.

    Attributes:
        options: with phases that are resolved: no other part of a run meets an ``auto``.
        reasons: why the phases that were ``auto`` became what they are, by number.

    Raises:
        ConfigError: if model, problem and training do not fit together.
    """

    def __init__(
        self,
        problem: Problem,
        options: RunOptions,
        observer: Observer | None = None,
        state: RunState | None = None,
    ) -> None:
        self.problem, self.options = problem, options
        self.number, self.window = 0, problem  # the time window being solved
        self.past: System | None = None
        self._drawn: dict[tuple[str, int, int], tuple[Points, ...]] = {}  # of that window
        self._exact: torch.Tensor | None = None  # the reference, known once it was asked for
        self._gradient = ReferenceGradient(problem)
        self.observer = observer or NullObserver()
        self.state = state or RunState()
        problem.check()
        self.blocks = problem.blocks()
        check_blocks(self.blocks, options.training)
        check_weighting(self.blocks, problem.coordinates, options.training)
        check_windows(problem, self.blocks, options.training.windows)
        coarse = self._initial_system(())
        training, self.reasons = resolve_phases(options.training, self.blocks, coarse)
        self.options = replace(options, training=training)
        self.hierarchy: Hierarchy = build_hierarchy(coarse, training)
        check_networks(coarse, self.blocks)
        check_smoothness(coarse, self.blocks)
        check_penalties(coarse, problem, self.blocks, options.training)
        for phase in training.phases:
            pack = ParameterPack(coarse, phase.train)
            build_optimiser(phase).init(pack.read(), pack.layout, 1)  # refuses what does not fit

    def run(self) -> RunState:
        """Train all (remaining) windows and levels; the state tells why it ended."""
        self.state.reopen()
        if not held_out_equations(self.problem, self.blocks):
            self.observer.on_note(
                "no held-out residual: all points of the equation are given and trained on; "
                "held_out_blocks() of the problem can name others"
            )
        count = self.options.training.windows
        first = self.state.current.record.window if self.state.levels else 0
        for number in range(first, count):
            self._enter(number)
            reason = self._train_levels()
            if reason in RUN_ENDS:
                break
        self.state.finished = self.state.current.record.stop_reason != StopReason.INTERRUPTED.value
        self.observer.on_checkpoint(self.state)
        return self.state

    def _enter(self, number: int) -> None:
        """Take up a time window, where the best system of the one before ends."""
        self.number, self._drawn, self._exact = number, {}, None
        self.past = self.state.best_of(number - 1).best_system() if number else None
        count = self.options.training.windows
        self.window = window_problem(self.problem, number, count, self.past)
        self.blocks = self.window.blocks()

    @property
    def active(self) -> list[Level]:
        """Levels with steps."""
        return [level for level in self.hierarchy.levels if any(level.steps)]

    def starts_on(self, level: Level) -> int:
        """How many initial networks are trained on a level."""
        starts = self.options.training.starts
        if starts is None or level not in self.active[: starts.levels]:
            return 1
        return starts.count

    def _train_levels(self, most: int | None = None) -> StopReason:
        """Train all (remaining) levels of the window, or the first ``most``; why the last ended."""
        done = self._choose_start()
        ended = self.state.current.record.stop_reason if done else None
        reason = StopReason(ended or StopReason.STEPS)
        if reason in (*RUN_ENDS, StopReason.TARGET):
            return reason
        begun = {level.record.key for level in self.state.levels}
        for level in self.active[:most]:
            key = (self.number, level.index)
            if key in done or (key in begun and key != self.state.current.record.key):
                continue
            started = time.perf_counter()
            context = self._begin(level, resumed=key in begun)
            reason = self._train(level, context, started)
            if reason in (*RUN_ENDS, StopReason.TARGET):
                break
        return reason

    def _choose_start(self) -> set[tuple[int, int]]:
        """Train the first levels from several initial networks; the keys of the levels done so."""
        starts = self.options.training.starts
        if starts is None or self.state.levels:
            return set()

        def train(number: int, state: RunState) -> StopReason:
            training = replace(self.options.training, starts=None)
            options = replace(self.options, training=training, start=number)
            trial = MultilevelRun(self.problem, options, TrialObserver(self.observer), state)
            trial._gradient = self._gradient  # known once it was asked for
            trial._enter(self.number)
            return trial._train_levels(starts.levels)

        chosen = best_trial(starts.count, train, self.observer, self.state.elapsed)
        if chosen is None:
            return set()
        self.state = chosen
        replay(chosen, self.observer)
        return {level.record.key for level in chosen.levels}

    def _train(self, level: Level, context: LevelContext, started: float) -> StopReason:
        """Train a level, again with more points where those it has are what limits it."""
        while True:
            options, state = self.options.training, self.state
            reason = Trainer(options, context, state, self.observer, started).run()
            if reason is not StopReason.POINTS or not self._extend(level):
                return reason
            started = time.perf_counter()
            context = self._context(level, state.current.system)
            state.current.record.n_points = sum(data.n_points for data in context.data)

    def _extend(self, level: Level) -> bool:
        """Double the points of the current level, where there are more to be drawn."""
        record, most = self.state.current.record, self.options.training.max_extensions
        given = all(b.region.n_distinct is not None for b in self.blocks if b.equation)
        if given or record.extensions >= most:
            return False
        record.extensions, record.stop_reason = record.extensions + 1, None
        self.state.optimiser = {}
        self.observer.on_note(
            f"step {self.state.total_steps}: the held-out residual no longer follows the training "
            f"residual: level {level.index} goes on with more points (extension "
            f"{record.extensions} of {most})"
        )
        return True

    def check_refinements(self) -> None:
        """Take the initial networks through all refinements that training will make of them.

        Raises:
            ConfigError: naming the level, if knots do not nest, or a change of basis would leave
                no digits in the run's own number type.
        """
        first, *rest = [level.index for level in self.active]
        system = self._initial_system(self._refinements_to(first))
        for level in range(first + 1, rest[-1] + 1 if rest else 0):
            with naming_level(level - 1):
                if self.options.training.marks:
                    as_splines(system)  # refuses what could not be judged
                system = self._refine(system, level - 1, level)

    def check_scalars(self) -> None:
        """Take the scalars' derivatives on the points that training starts with.

        Raises:
            ProblemError: if no residual depends on one of them.
        """
        level = self.active[0]
        system = self._initial_system(self._refinements_to(level.index))
        chunk = self.options.training.chunk
        check_scalars(
            system, (BlockData(b, self._points(b, level, 0), system, chunk) for b in self.blocks)
        )

    def _roughness(self, system: System) -> Roughness | None:
        smoothing = self.options.training.smoothing
        return None if smoothing is None else Roughness(system, smoothing)

    def _begin(self, level: Level, resumed: bool) -> LevelContext:
        """Points and networks of a level; its record is new unless the level is resumed."""
        state, previous = self.state, None
        if resumed:
            system = state.current.system
        elif state.levels and state.current.record.window == self.number:
            # Under the weakest penalty training ends rougher than what it found best.
            choice = self.options.training.smoothing is not None
            previous = state.current.best_system() if choice else state.current.system
            system = self._next(previous, level)
        else:
            system = self._initial_system(self._refinements_to(level.index))
        context = self._context(level, system)
        if not resumed:
            state.phase, state.step, state.restarts, state.optimiser = 0, 0, 0, {}
            record = LevelRecord(
                extensions=self._extensions(level.index),
                level=level.index,
                n_intervals=list(mean_intervals(first_knots(system))),
                n_params=system.n_parameters,
                n_points=sum(data.n_points for data in context.data),
                window=self.number,
            )
            if previous is not None:
                self._compare(previous, context, record)
                state.phase = self.options.training.first_stage(state.current.record.smoothing)
            state.weights = Weights()
            state.levels.append(LevelState(record, system, snapshot(system)))
        self.observer.on_level(state)
        return context

    def _refinements_to(self, level: int) -> list[Refinement]:
        """How the knots of a level follow from the coarsest level's."""
        rules = [entry.refinement for entry in self.hierarchy.levels[1 : level + 1]]
        return [rule for rule in rules if rule is not None]

    def _initial_system(self, refinements: Sequence[Refinement]) -> System:
        """Random initial networks, on the knots that the refinements lead to."""
        options = self.options
        generator = torch.Generator().manual_seed(options.network_seed)

        def finer(knots: tuple[Knots, ...]) -> tuple[Knots, ...]:
            for refinement in refinements:
                knots = refinement.apply(knots)
            return knots

        model, dtype, device = options.model, options.dtype, options.device
        return build_system(self.window, model, generator, dtype, device, finer, self.past)

    def _refine(self, system: System, start: int, end: int) -> System:
        """Through all levels from ``start`` to ``end``, those without steps included."""
        for level in self.hierarchy.levels[start + 1 : end + 1]:
            assert level.refinement is not None
            system = refine_system(system, level.refinement, self.options.training.transfer)
        return system

    def _next(self, previous: System, level: Level) -> System:
        """The networks of a level, from those of the level before."""
        rule = level.refinement
        if rule is None or rule.share is None:
            return self._refine(previous, self.state.current.record.level, level.index)
        points = self._all_points(level)
        with naming_level(level.index - 1):
            fine = adaptive_knots(previous, lambda system: self._data(points, system), rule)
            return on_knots(previous, fine, self.options.training.transfer)

    def _all_points(self, level: Level) -> AllPoints:
        extensions = self._extensions(level.index)
        return {b.name: self._points(b, level, extensions) for b in self.blocks}

    def _data(self, points: AllPoints, system: System) -> tuple[BlockData, ...]:
        pairs = [(block, neighbours(block, points[block.name])) for block in self.blocks]
        return tuple(BlockData(*pair, system, self.options.training.chunk) for pair in pairs)

    def _context(self, level: Level, system: System) -> LevelContext:
        options, like = self.options, next(iter(system.parameters()))
        points, chunk = self._all_points(level), options.training.chunk
        data = self._data(points, system)
        held_out = held_out_data(
            self.window, self.blocks, points, options.sampling, system, options.seed, chunk
        )
        x, trained = evaluation_points(self.problem, self.window), self._trained_on(level)
        if self._exact is None:
            self._exact = reference_values(self.problem, x)
        return LevelContext(
            system,
            data,
            held_out,
            ReferenceErrors(self.problem, trained, like.detach(), x, self._exact),
            self._change(level, like.detach()),
            H1Error(self._gradient, trained, like.detach(), self._end),
            self._since(level, x.to(like)),
            options.seed,
            options.workers,
            self._roughness(system),
        )

    def _since(self, level: Level, x: torch.Tensor) -> SolutionChange | None:
        """Measures the change at points since the last networks of the level before."""
        before = self._before(level)
        return SolutionChange(self.problem.fields, before.system, x) if before else None

    @property
    def _end(self) -> float | None:
        """Where the time window ends, if there are several."""
        return None if self.window is self.problem else self.window.domain.upper[-1]

    def _change(self, level: Level, like: torch.Tensor) -> RefinementChange | None:
        """Measures the change since the level before, where there is one and anything needs it."""
        before = self._before(level)
        if before is None or not self.options.training.estimates:
            return None
        return RefinementChange(self.problem, before.best_system(), before.best_score, like)

    def n_points(self, block: ResidualBlock, level: Level, extensions: int = 0) -> int:
        """Points of a block on a level: whole groups of the sampling options' count.

        ``extensions`` is how often they were doubled.
        """
        sampling, region = self.options.sampling, block.region
        if region.n_distinct is not None:
            return region.n_distinct
        count = sampling.count(region.kind, level.index, level.n_parameters)
        if block.points is not None:
            count = round(block.points * sampling.growth**level.index)
        count *= EXTENSION**extensions
        return -(-max(count, 1) // block.group) * block.group

    def _trained_on(self, level: Level) -> list[Points]:
        """All points of this level and of those trained before it."""
        return [
            site
            for entry in self.hierarchy.levels[: level.index + 1]
            if any(entry.steps)
            for block in self.blocks
            for extensions in self._stages(entry)
            for site in self._points(block, entry, extensions)
        ]

    def _extensions(self, index: int) -> int:
        """How often points were doubled up to the level of that index: a level inherits them."""
        begun = [entry.record for entry in self.state.levels if entry.record.level <= index]
        return begun[-1].extensions if begun else 0

    def _stages(self, level: Level) -> range:
        """The numbers of extensions that a level has been trained with so far."""
        return range(self._extensions(level.index - 1), self._extensions(level.index) + 1)

    def _points(self, block: ResidualBlock, level: Level, extensions: int) -> tuple[Points, ...]:
        """Points of a block, drawn once in a time window and kept."""
        key = (block.name, level.index, extensions)
        if key not in self._drawn:
            self._drawn[key] = self._draw(block, level, extensions)
        return self._drawn[key]

    def _draw(self, block: ResidualBlock, level: Level, extensions: int) -> tuple[Points, ...]:
        """Points of a block: they follow from the seed, the level and its extensions."""
        options, sampling = self.options, self.options.sampling
        count = self.n_points(block, level, extensions)
        key: tuple[str | int, ...] = (block.name, level.index)
        key += (extensions,) if extensions else ()
        if block.group > 1:  # a mean needs equal weights
            seed = stream(options.seed, "train", *key)
            return sample(block.region, count, "sobol", seed, options.dtype, options.device)
        before, adaptive = self._before(level), sampling.adaptive
        whole = block.region.kind != "interior" or block.region.n_distinct is not None
        if adaptive is None or before is None or whole or not block.equation:
            return self._spread(block, count, "train", *key)
        drawn = min(round(adaptive.share * count), count - 1)
        (base,) = self._spread(block, count - drawn, "train", *key)
        (pool,) = self._spread(block, round(adaptive.pool * count), "pool", *key)
        seed = stream(options.seed, "adaptive", *key)
        points = adapt_points(block, base, pool, drawn, before.system, adaptive, seed)
        if points is not None:
            return (points,)
        self.observer.on_note(
            f"level {level.index}: the residual of {block.name!r} is not finite, or zero, at most "
            "of the points to choose from: its points are spread without regard to it"
        )
        return self._spread(block, count, "train", *key)

    def _spread(self, block: ResidualBlock, count: int, *key: str | int) -> tuple[Points, ...]:
        """Points of a block without regard to its residual."""
        options, names = self.options, self.problem.domain.names
        seed = stream(options.seed, *key)
        dtype, device = options.dtype, options.device
        return sample_graded(block.region, count, options.sampling, names, seed, dtype, device)

    def _before(self, level: Level) -> LevelState | None:
        """The last level trained before this one in its time window, if there is one."""
        records = {entry.record.key: entry for entry in self.state.levels}
        keys = [(self.number, k) for k in range(level.index)]
        earlier = [records[key] for key in keys if key in records]
        return earlier[-1] if earlier else None

    def _compare(self, coarse: System, context: LevelContext, record: LevelRecord) -> None:
        """Loss before and after the prolongation, on the new level's points, and the change."""
        before = (
            coarse,
            tuple(BlockData(d.block, d.points, coarse, d.size) for d in context.data),
        )
        record.loss_before_prolongation = _loss(*before)
        record.loss_after_prolongation = _loss(context.system, context.data)
        x = context.held_out.data[0].points[0].x
        record.max_change = float((predict(context.system, x) - predict(coarse, x)).abs().max())


def _loss(system: System, data: Sequence[BlockData]) -> float:
    pack = ParameterPack(system)
    return float(SystemObjective(system, pack, data).loss(pack.read()))

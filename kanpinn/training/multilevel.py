"""The multilevel engine: solve on the coarsest level, prolongate, solve on the next finer one.

Algorithm 1 of arXiv 2603.04827. The optimiser's state is reset at a refinement: gradients go from
fine to coarse by the transpose of the prolongation, and no way of carrying them forward is unique.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from kanpinn.geometry import Points
from kanpinn.optimisers import StopReason, build_optimiser
from kanpinn.problem import Problem
from kanpinn.residuals import ResidualBlock, System
from kanpinn.training.block_data import BlockData, neighbours
from kanpinn.training.checks import (
    check_blocks,
    check_networks,
    check_penalties,
    check_scalars,
    check_smoothness,
)
from kanpinn.training.choice import resolve_phases
from kanpinn.training.context import LevelContext
from kanpinn.training.drawing import Drawing
from kanpinn.training.evaluation import held_out_data, held_out_equations
from kanpinn.training.h1_error import ReferenceGradient
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
from kanpinn.training.initial import initial_system
from kanpinn.training.knot_insertion import adaptive_knots, as_splines
from kanpinn.training.loop import Trainer
from kanpinn.training.measures import Measures
from kanpinn.training.memory import Memory
from kanpinn.training.options import StartsOptions
from kanpinn.training.parameters import ParameterPack
from kanpinn.training.replay import recorder_on
from kanpinn.training.run_options import RunOptions
from kanpinn.training.smoothing import Roughness
from kanpinn.training.starts import after_trial, in_words
from kanpinn.training.state import (
    LevelRecord,
    LevelState,
    NullObserver,
    Observer,
    RunState,
    Trials,
    snapshot,
)
from kanpinn.training.weighting import Weights, check_weighting
from kanpinn.training.windows import check_windows, window_problem

AllPoints = dict[str, tuple[Points, ...]]  # by block
RUN_ENDS = (StopReason.INTERRUPTED, StopReason.TIME, StopReason.NON_FINITE)
LEVELS_END = (*RUN_ENDS, StopReason.TARGET)


class MultilevelRun:
    """A run over all levels of a hierarchy.

    Args:
        problem: what is solved.
        options: model, training, sampling, seed.
        observer: told of levels, lines and checkpoints.
        state: a state to continue from.

    Attributes:
        options: with phases that are resolved: no other part of a run meets an ``auto``; while
            initial networks are tried ``start`` is that of the trial under way.
        unbounded: the same before linear systems are held to the bound on memory.
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
        self._gradient = ReferenceGradient(problem)
        self.observer = observer or NullObserver()
        self.state = state or RunState()
        tell: Callable[[str], None] = lambda text: self.observer.on_note(text)  # noqa: E731 - of then
        self._recorder = recorder_on(options.device, tell) if options.graphs else None
        problem.check()
        self._measures = Measures(problem, problem, self._gradient)
        self._drawing = self._new_drawing()
        self.blocks = problem.blocks()
        check_blocks(self.blocks, options.training)
        check_weighting(self.blocks, problem.coordinates, options.training)
        check_windows(problem, self.blocks, options.training.windows)
        coarse = self._random_system((), options.dtype_on(0))
        training, self.reasons = resolve_phases(options.training, self.blocks, coarse)
        self.unbounded = replace(options, training=training)
        self.options = self.unbounded.bounded(options.memory_mib)
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
        if self.state.outcome is not self.state:
            self.observer.on_network(self.state.outcome)
        return self.state

    def _enter(self, number: int) -> None:
        """Take up a time window, where the best system of the one before ends."""
        self.number, self._drawing = number, self._new_drawing()
        self.past = self.state.best_of(number - 1).best_system() if number else None
        count = self.options.training.windows
        self.window = window_problem(self.problem, number, count, self.past)
        self.blocks = self.window.blocks()
        self._measures = Measures(self.problem, self.window, self._gradient, self.memory(False))

    def _new_drawing(self) -> Drawing:
        """For the points of a time window."""
        names = self.problem.domain.names
        return Drawing(self.options, names, lambda note: self.observer.on_note(note))

    @property
    def active(self) -> list[Level]:
        """Levels with steps."""
        return [level for level in self.hierarchy.levels if any(level.steps)]

    def starts_on(self, level: Level) -> int:
        """How many initial networks are trained on a level."""
        starts = self.options.training.starts
        if starts is None or level not in self.active:
            return 1
        return starts.on(self.active.index(level))

    def _train_levels(self) -> StopReason:
        """Train all (remaining) levels of the window; why the last ended."""
        starts, levels, reason = self.options.training.starts, self.active, StopReason.STEPS
        if starts is not None and (self.state.trials or not self.state.levels):
            reason, levels = self._choose_start(starts), levels[starts.levels :]
        return reason if reason in LEVELS_END else self._train_each(levels, reason)

    def _train_each(self, levels: Sequence[Level], reason: StopReason) -> StopReason:
        """Train those of the levels that are not done; why the last ended."""
        begun = {level.record.key for level in self.state.levels}
        for level in levels:
            key = (self.number, level.index)
            if key in begun and key != self.state.current.record.key:
                continue
            started = time.perf_counter()
            context = self._begin(level, resumed=key in begun)
            reason = self._train(level, context, started)
            if reason in LEVELS_END:
                break
        return reason

    def _choose_start(self, starts: StartsOptions) -> StopReason:
        """Train the first levels from several initial networks, and turn to the best.

        Returns:
            Why the best one ended, or where the run was stopped before the choice, why it was.
        """
        trials = self.state.trials = self.state.trials or Trials(starts.count)
        while self.state.trials is not None:
            self.observer.on_note(trials.label)
            self._turn_to(self.state)
            reason = self._train_each(self.active[: starts.levels], StopReason.STEPS)
            if reason in (StopReason.INTERRUPTED, StopReason.TIME):
                return reason
            self.state = after_trial(self.state, reason is StopReason.TARGET)
        self.observer.on_note(in_words(trials, self.state))
        self._turn_to(self.state)
        return StopReason(self.state.current.record.stop_reason or StopReason.STEPS)

    def _turn_to(self, state: RunState) -> None:
        """Take up another initial network, whose points may be its own."""
        start = state.trials.number if state.trials else 0
        self.options = replace(self.options, start=start)
        self._drawing = self._new_drawing()
        self.observer.on_network(state)

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
        trained = [level.index for level in self.active]
        system = self.initial_system(trained[0])
        for start, end in pairwise(trained):
            for level in range(start + 1, end + 1):
                with naming_level(level - 1):
                    if self.options.training.marks:
                        as_splines(system)  # refuses what could not be judged
                    dtype = self.options.dtype_on(end) if level == end else torch.float64
                    system = self._refine(system, level - 1, level, dtype)

    def check_scalars(self) -> None:
        """Take the scalars' derivatives on the points that training starts with.

        Raises:
            ProblemError: if no residual depends on one of them.
        """
        level = self.active[0]
        system = self.initial_system(level.index)
        chunk = self.options.training.chunk
        check_scalars(
            system,
            (
                BlockData(b, self._points(b, level, 0), system, chunk, self.memory(True))
                for b in self.blocks
            ),
        )

    def memory(self, jacobian: bool) -> Memory:
        """What evaluations may take, where the Jacobian is made of what is evaluated, or is not."""
        return self.options.memory(jacobian, len(self.blocks))

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
            system = self.initial_system(level.index)
        context = self._context(level, system)
        if not resumed:
            state.phase, state.step, state.restarts, state.optimiser = 0, 0, 0, {}
            record = LevelRecord(
                extensions=self.state.extensions_to(level.index),
                level=level.index,
                n_intervals=list(mean_intervals(first_knots(system))),
                n_params=system.n_parameters,
                n_points=sum(data.n_points for data in context.data),
                window=self.number,
                start=self.options.start,
                dtype=self.options.dtype_name(level.index),
            )
            if previous is not None:
                record.start = state.current.record.start
                context.compare(previous, record)
                state.phase = self.options.training.first_stage(state.current.record.smoothing)
            state.weights = Weights()
            state.levels.append(LevelState(record, system, snapshot(system)))
        self.observer.on_level(state)
        return context

    def _refinements_to(self, level: int) -> list[Refinement]:
        """How the knots of a level follow from the coarsest level's."""
        rules = [entry.refinement for entry in self.hierarchy.levels[1 : level + 1]]
        return [rule for rule in rules if rule is not None]

    def initial_system(self, level: int) -> System:
        """Random initial networks on the knots of a level, in its type."""
        return self._random_system(self._refinements_to(level), self.options.dtype_on(level))

    def _random_system(self, refinements: Sequence[Refinement], dtype: torch.dtype) -> System:
        """The same on the knots that the refinements lead to."""
        options = self.options
        like = torch.empty(0, dtype=dtype, device=options.device)
        seed = options.network_seed
        return initial_system(self.window, options.model, seed, refinements, like, self.past)

    def _refine(self, system: System, start: int, end: int, dtype: torch.dtype) -> System:
        """Through all levels from ``start`` to ``end``, those without steps included."""
        rules = self._refinements_to(end)[start:]
        return refine_system(system, rules, self.options.training.transfer, dtype)

    def _next(self, previous: System, level: Level) -> System:
        """The networks of a level, from those of the level before."""
        rule, dtype = level.refinement, self.options.dtype_on(level.index)
        if rule is None or rule.share is None:
            return self._refine(previous, self.state.current.record.level, level.index, dtype)
        points = self._all_points(level)
        with naming_level(level.index - 1):
            fine = adaptive_knots(previous, lambda system: self._data(points, system), rule)
            return on_knots(previous, fine, self.options.training.transfer, dtype)

    def _all_points(self, level: Level) -> AllPoints:
        extensions = self.state.extensions_to(level.index)
        return {b.name: self._points(b, level, extensions) for b in self.blocks}

    def _data(self, points: AllPoints, system: System) -> tuple[BlockData, ...]:
        pairs = [(block, neighbours(block, points[block.name])) for block in self.blocks]
        chunk, memory = self.options.training.chunk, self.memory(True)
        return tuple(BlockData(*pair, system, chunk, memory) for pair in pairs)

    def _context(self, level: Level, system: System) -> LevelContext:
        options, like = self.options, next(iter(system.parameters())).detach()
        points, chunk = self._all_points(level), options.training.chunk
        data = self._data(points, system)
        held_out = held_out_data(
            self.window,
            self.blocks,
            points,
            options.sampling,
            system,
            options.seed,
            chunk,
            self.memory(False),
        )
        trained, before, measures = self._trained_on(level), self._before(level), self._measures
        return LevelContext(
            system,
            data,
            held_out,
            measures.errors(trained, like),
            measures.refinement(before, like) if options.training.estimates else None,
            measures.h1(trained, like),
            measures.since(before.system if before else None, like),
            options.seed,
            self.memory(True).workers(
                options.device,
                sum(entry.n_residuals for entry in data),
                system.n_parameters,
                like.element_size(),
            ),
            self._roughness(system),
            self.memory(False),
            self._recorder,
        )

    def n_points(self, block: ResidualBlock, level: Level, extensions: int = 0) -> int:
        """See :meth:`~kanpinn.training.drawing.Drawing.count`."""
        return self._drawing.count(block, level, extensions)

    def _points(self, block: ResidualBlock, level: Level, extensions: int) -> tuple[Points, ...]:
        before = self._before(level)
        system = before.system if before else None
        return self._drawing.points(block, level, extensions, system)

    def _before(self, level: Level) -> LevelState | None:
        """The last level trained before this one in its time window, if there is one."""
        return self.state.before((self.number, level.index))

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

    def _stages(self, level: Level) -> range:
        """The numbers of extensions that a level has been trained with so far."""
        first, last = (self.state.extensions_to(index) for index in (level.index - 1, level.index))
        return range(first, last + 1)

"""The one training loop: phases of optimiser steps on one level.

Every decision depends on steps, residuals and the seed, never on a clock; a time budget only ends
a run. The loop's state is a :class:`~kanpinn.training.state.RunState`, complete between any two
steps, so that a run continues exactly where it stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kanpinn.optimisers import Optimiser, StepResult, StopReason, build_optimiser
from kanpinn.optimisers.solver_choice import dense_numbers
from kanpinn.training.block_data import residual_rows
from kanpinn.training.context import LevelContext
from kanpinn.training.control import (
    ErrorSplit,
    is_due,
    judged_lines,
    limit_of_training,
    points_are_few,
    split_errors,
    verdict,
)
from kanpinn.training.objective import SystemObjective
from kanpinn.training.options import TrainingOptions
from kanpinn.training.parameters import ParameterPack
from kanpinn.training.phase_options import AdamPhase, LevenbergMarquardtPhase, Phase
from kanpinn.training.stage import Stage
from kanpinn.training.state import EXTENDED, STOPPED, Observer, RunState, key_of, restore, snapshot
from kanpinn.training.weighting import Weighting

SPLIT_PARAMETERS = 2000  # from here on errors are split for Levenberg-Marquardt alone
# Reasons of an optimiser to stop.
OPTIMISER_STOPS = (
    StopReason.GRADIENT_TOLERANCE,
    StopReason.NO_PROGRESS,
    StopReason.LINE_SEARCH_FAILED,
)
# Reasons that end a phase but not the level, and those that end a level but not the run.
PHASE_ENDS = (StopReason.STEPS, StopReason.OPTIMISER, *OPTIMISER_STOPS)
LEVEL_ENDS = (*PHASE_ENDS, StopReason.POINTS, StopReason.KNOTS, StopReason.WORK)
# Reasons that stop a run in the midst of a phase, which may go on later.
STOPS = (StopReason.INTERRUPTED, StopReason.TIME)


class Trainer:
    """Trains one level: runs its stages step by step on the state of the run.

    A stage is a phase, or with penalties to choose from, a phase with one of them.

    Args:
        options: phases, budgets, intervals of logging.
        context: networks, points.
        state: the run's state; changed in place.
        observer: told of every logged line.
        started: reading of the clock when the level's set-up began; now by default.
        clock: seconds.
    """

    def __init__(
        self,
        options: TrainingOptions,
        context: LevelContext,
        state: RunState,
        observer: Observer,
        started: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.options, self.context, self.state = options, context, state
        self.observer, self.clock = observer, clock
        self.weighting = Weighting(options, context.system, context.data, state.weights)
        self.stage = Stage(options, context, state, self.weighting)
        started = clock() if started is None else started
        self._start = started - state.elapsed
        self._level_start = started - state.current.record.wall_s

    def run(self) -> StopReason:
        """Run the level's remaining phases; the reason is that of the last one."""
        state, level = self.state, self.state.current.record.level
        if not self._has_begun():
            self._log(self.stage.loss(), note="start")
            if not math.isfinite(state.history[-1]["loss"]):
                self._tell_non_finite()
        extended = sum(row["phase"] == EXTENDED for row in state.history)
        if extended < state.current.record.extensions:
            self._log(self.stage.loss(), note=EXTENDED)
        reason = StopReason.STEPS
        stages = self.options.stages
        while state.phase < len(stages):
            phase, _ = stages[state.phase]
            steps = self.options.steps_of(phase, level)
            if steps:
                reason = self._run_phase(phase, steps)
                if reason in OPTIMISER_STOPS and not self._phases_left():
                    reason = self._limit(reason)
                if reason not in PHASE_ENDS:
                    break
                if self.context.roughness and state.history[-1]["step"] != state.total_steps:
                    self._log(self.stage.loss(), note="penalty")  # its last iterate is judged, too
            state.phase, state.step, state.optimiser = state.phase + 1, 0, {}
        return self._close(reason)

    def _tell_non_finite(self) -> None:
        """Say which blocks are not finite where a level starts, and at how many points."""
        level = self.state.current.record.level
        for data in self.context.data:
            rows = residual_rows(data, self.context.system)
            wrong = ~torch.isfinite(rows).all(1)
            if bool(wrong.any()):
                at = data.points[0].x[int(wrong.nonzero()[0]) * data.block.group].tolist()
                self.observer.on_note(
                    f"level {level} starts with a loss that is not finite: "
                    f"residual {data.block.name!r} is not in {int(wrong.sum())} of {len(rows)} "
                    f"rows, first at ({', '.join(f'{value:g}' for value in at)})"
                )

    def _tell_no_gain(self) -> None:
        """Say so where a level's best iterate is still the one it started with."""
        level = self.state.current
        start = self.state.total_steps - level.record.steps
        if level.record.steps and level.best_step == start and self.state.solution[1] == "best":
            self.observer.on_note(
                f"{level.record.label}: no step improved on the start by the held-out score, so "
                "its best networks are those it started with"
            )

    def _run_phase(self, phase: Phase, steps: int) -> StopReason:
        pack = ParameterPack(self.context.system, phase.train)
        optimiser = build_optimiser(phase)
        theta = pack.read()
        self.weighting.start()
        if not self.state.optimiser:
            self.state.optimiser = self._fresh(optimiser, theta, pack, steps)
        while self.state.step < steps:
            limit = StopReason.WORK if self._is_spent() else self._judge()
            if limit is not None:
                return limit
            if self._update_weights(pack):
                self.state.optimiser = optimiser.refresh(theta, self.state.optimiser, pack.layout)
            objective = self.stage.objective(phase, pack)
            result = optimiser.step(theta, self.state.optimiser, objective, pack.layout)
            theta = result.theta
            self._accept(phase, pack, result, objective)
            reason = self._after_step(optimiser, result, bool(objective.chosen))
            if reason is StopReason.NON_FINITE and self._restart():
                theta, reason = pack.read(), None
                self.state.optimiser = self._fresh(optimiser, theta, pack, steps)
            if reason is not None:
                return reason
        return StopReason.STEPS

    def _has_begun(self) -> bool:
        """Whether the last logged line is of this level."""
        history = self.state.history
        return bool(history) and key_of(history[-1]) == self.state.current.record.key

    def _update_weights(self, pack: ParameterPack) -> bool:
        """Update the weights that are due; whether the objective has changed."""
        changed, notes = self.weighting.update(self.state.step, pack)
        self.state.current.record.operations += self.weighting.meter.take()
        for note in notes:
            self.observer.on_note(f"step {self.state.total_steps}: {note}")
        return changed

    def _fresh(
        self, optimiser: Optimiser, theta: Tensor, pack: ParameterPack, steps: int
    ) -> dict[str, Tensor]:
        """A new state of the optimiser; its learning-rate schedule stands where the phase does."""
        fresh = optimiser.init(theta, pack.layout, steps)
        if "step" in fresh:
            fresh["step"] = torch.full_like(fresh["step"], self.state.step)
        return fresh

    def _judge(self) -> StopReason | None:
        """What limits the level, with ``refine: auto``; asked before a step, by the lines so far.

        A run that was interrupted after a step asks again when it goes on.
        """
        state = self.state
        begun = state.step > 0 and state.history[-1]["step"] == state.total_steps
        if not (self.options.adapts and begun):
            return None
        lines = judged_lines(state)
        return verdict(lines, self._split) if is_due(len(lines)) else None

    def _is_spent(self) -> bool:
        """Whether the level has spent its work; asked before a step, like :meth:`_judge`."""
        work = self.options.work
        return work is not None and work.spent(self.state.current.record.as_dict())

    def _phases_left(self) -> bool:
        """Whether a later phase of this level has steps."""
        level = self.state.current.record.level
        later = self.options.stages[self.state.phase + 1 :]
        return any(self.options.steps_of(phase, level) for phase, _ in later)

    def _limit(self, reason: StopReason) -> StopReason:
        """What limits a level whose last optimiser has stopped by itself, with ``refine: auto``."""
        if not self.options.adapts:
            return reason
        if points_are_few(self.state.history[-1]):
            return StopReason.POINTS
        return limit_of_training(self._split()) or StopReason.OPTIMISER

    def _split(self) -> ErrorSplit | None:
        """Both errors now; ``None`` where that would be dear beside a step, or memory forbids."""
        system, phases = self.context.system, self.options.phases
        least_squares = any(isinstance(phase, LevenbergMarquardtPhase) for phase in phases)
        if system.n_parameters > SPLIT_PARAMETERS and not least_squares:
            return None
        data, n = self.context.data, system.n_parameters
        rows = sum(entry.n_residuals for entry in data)
        itemsize = next(system.parameters()).element_size()
        if not self.context.memory.holds_system(itemsize * dense_numbers(rows, n)):
            return None
        return split_errors(system, data, self.context.workers)

    def _accept(
        self, phase: Phase, pack: ParameterPack, result: StepResult, objective: SystemObjective
    ) -> None:
        pack.write(result.theta)
        state = self.state
        state.optimiser = result.state
        state.step += 1
        state.total_steps += 1
        state.current.record.steps += 1
        state.current.record.evaluations += result.evaluations
        state.current.record.operations += objective.meter.operations + result.operations
        if isinstance(phase, AdamPhase):
            self.weighting.attend(objective)
        state.current.record.meet(result.conditions)
        for note in result.notes:
            self.observer.on_note(f"step {state.total_steps}: {note}")

    def _after_step(
        self, optimiser: Optimiser, result: StepResult, batched: bool
    ) -> StopReason | None:
        """Log, check budgets and targets; the reason to stop, if there is one."""
        state, options = self.state, self.options
        due = state.total_steps % options.log_every == 0
        interrupted = self.observer.stop_requested()
        if due or result.stop is not None:
            # Logged is the whole objective at the iterate that is kept; an optimiser may know it
            # at the start of its step alone, or for a mini-batch.
            known = optimiser.loss_at == "end" and not batched
            row = self._log(float(result.loss) if known else self.stage.loss(), optimiser=optimiser)
            # On the whole batch every step meets the same loss: one skipped is lost for good.
            skipped = int(result.state.get("skipped_in_a_row", torch.tensor(0)))
            least = options.log_every if batched else 1
            if not math.isfinite(row["loss"]) or skipped >= least:
                return StopReason.NON_FINITE
            if options.target.met(row):
                return self._take_as_solution(row)
        if result.stop is not None:
            return result.stop
        if interrupted:
            return StopReason.INTERRUPTED
        if options.time_limit is not None and self._elapsed() > options.time_limit:
            return StopReason.TIME
        if state.total_steps % options.checkpoint_every == 0:
            self.observer.on_checkpoint(state)
        return None

    def _log(
        self, loss: float, note: str | None = None, optimiser: Optimiser | None = None
    ) -> dict[str, Any]:
        """Evaluate, keep the best iterate, add a line of history."""
        state, level = self.state, self.state.current
        phase = optimiser.options.optimiser if optimiser else note
        row = self.stage.line(loss, phase, self._elapsed)
        if row["heldout_score"] < level.best_score and note != STOPPED:
            self._keep(row)
        state.history.append(row)
        self.observer.on_log(row, state)
        return row

    def _take_as_solution(self, row: dict[str, Any]) -> StopReason:
        """The current iterate meets the target: it is the solution, whatever its score."""
        self._keep(row)
        return StopReason.TARGET

    def _keep(self, row: dict[str, Any]) -> None:
        """The current iterate, whose line this is, is the level's best."""
        level = self.state.current
        level.best, level.best_score = snapshot(self.context.system), row["heldout_score"]
        level.best_step = self.state.total_steps
        level.record.smoothing = self.stage.weight

    def _restart(self) -> bool:
        """Go back to the best iterate after a non-finite loss; False when that is used up."""
        state = self.state
        if state.restarts >= self.options.max_restarts or not math.isfinite(
            state.current.best_score
        ):
            return False
        state.restarts += 1
        restore(self.context.system, state.current.best)
        self.observer.on_note(
            f"step {state.total_steps}: non-finite loss, restarted from the best iterate "
            f"({state.restarts} of {self.options.max_restarts})"
        )
        return True

    def _elapsed(self) -> float:
        now = self.clock()
        self.state.elapsed = now - self._start
        self.state.current.record.wall_s = now - self._level_start
        return self.state.elapsed

    def _close(self, reason: StopReason) -> StopReason:
        """Complete the level's record; the reason it ends for, the target if that is met now.

        Stopped between two lines, the run has one more, which is no best iterate of the level: the
        run that goes on forgets it, and is then the same as one that never stopped.
        """
        record, last = self.state.current.record, self.state.history[-1]
        if last["step"] != self.state.total_steps:
            last = self._log(self.stage.loss(), note=STOPPED if reason in STOPS else "end")
            if self.options.target.met(last):
                if reason in LEVEL_ENDS:
                    reason = self._take_as_solution(last)
                elif reason is StopReason.TIME:
                    reason = StopReason.TARGET
        if self.options.adapts and reason not in (StopReason.INTERRUPTED, StopReason.NON_FINITE):
            errors = self._split()
            record.optimisation_error = errors.optimisation if errors else None
            record.discretisation_error = errors.discretisation if errors else None
        record.loss, record.heldout_residual = last["loss"], last["heldout_residual"]
        record.rel_l2, record.linf = last["rel_l2"], last["linf"]
        record.estimated_error = last.get("estimated_error")
        self._elapsed()  # what follows is measured for the report: the clock stands still
        if reason is not StopReason.INTERRUPTED:
            context = self.context
            record.h1 = context.h1.evaluate(context.system)
            record.change = context.since.evaluate(context.system) if context.since else None
        record.stop_reason = reason.value
        self._tell_no_gain()
        return reason

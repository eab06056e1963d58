"""Solving: one path from a config to a run folder, for Python and for the command line."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from kanpinn.api.continuation import find_run, recall, restored
from kanpinn.api.planning import phase_plans, plan
from kanpinn.api.preparation import AnyConfig, Prepared, prepare
from kanpinn.api.result import SolveResult, overfitting, status_of, summarise
from kanpinn.checkpoint import write_checkpoint
from kanpinn.config import described_changes, dump_yaml, to_dict
from kanpinn.errors import DivergedError
from kanpinn.io.interrupt import StopSignals
from kanpinn.io.progress import Display, Silent
from kanpinn.io.run_folder import RunFolder, RunObserver, RunWriter, Status, new_folder
from kanpinn.kernels import kernels
from kanpinn.provenance import describe_problem, gather
from kanpinn.solution import Solution
from kanpinn.solution.origin import AnyProblem
from kanpinn.training import RunState

RUNS = Path("runs")
SMALL_MODEL = 2_000  # parameters on the finest level: the side of an optimiser's matrices


def solve(
    config: AnyConfig,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    *,
    resume: bool = False,
    problem: AnyProblem | None = None,
    display: Display | None = None,
    stop: Callable[[], bool] | None = None,
    on_interrupt: Literal["raise", "return"] = "raise",
) -> SolveResult:
    """Train as a config says, and leave a run folder behind.

    The first Ctrl-C (or SIGTERM) ends the run after the current step with a checkpoint; a second
    one ends the program at once.

    Args:
        config: path of a YAML file, a mapping as in one, or a resolved config.
        overrides: ``KEY=VALUE``, as on the command line.
        out: the run folder; by default ``runs/<name>/<UTC timestamp>`` in the current folder.
        resume: continue the run in ``out``, or without it the newest unfinished one of this
            config. A finished run is not trained further: its summary comes back.
        problem: an instance or a class, instead of what the config says of the problem.
        display: shows the progress; nothing by default.
        stop: asked after every step whether to stop, beside Ctrl-C.
        on_interrupt: what follows once an interrupted run is saved: ``KeyboardInterrupt`` as in any
            script, or a result with the status ``interrupted``.

    Raises:
        ConfigError: before anything is written, if the config cannot be used.
        RunFolderError: if the folder holds a run, or cannot be written.
        CheckpointError: if a checkpoint cannot be read or written.
        KeyboardInterrupt: see ``on_interrupt``.
    """
    prepared = prepare(config, overrides, problem)
    display = display or Silent()
    with _threads(prepared), display, StopSignals() as signals:
        folder = _place(prepared, out, resume)
        with RunWriter(folder) as writer:
            session = _Session(prepared, folder, writer, display, resume)
            session.train(lambda: signals() or (stop is not None and stop()))
            summary = session.finish()
            try:
                signals.release()  # all that counts is saved: from here on Ctrl-C acts at once
                session.draw()
            except KeyboardInterrupt:  # the run is done, if without figures
                if on_interrupt == "raise":
                    raise
    if signals.requested and on_interrupt == "raise":
        raise KeyboardInterrupt
    return SolveResult(Status(summary["status"]), summary, folder.path)


def _place(prepared: Prepared, out: str | Path | None, resume: bool) -> RunFolder:
    """The run's folder, found or created; nothing is written before everything is checked."""
    data = to_dict(prepared.config)
    runs = (RUNS / prepared.config.name).absolute()
    if resume:
        return find_run(runs, prepared, data, None if out is None else Path(out).absolute())
    folder = new_folder(runs) if out is None else RunFolder(Path(out).absolute())
    folder.create(dump_yaml(data))
    return folder


@contextmanager
def _threads(prepared: Prepared) -> Iterator[None]:
    """PyTorch's threads while a run goes on, beside those that share chunks of points.

    Below ``SMALL_MODEL`` parameters the work of an operation is not worth sharing: waiting for a
    busy core costs more than is gained. No result depends on the number of threads then.
    """
    before, number = torch.get_num_threads(), prepared.config.threads
    if prepared.run.hierarchy.levels[-1].n_parameters < SMALL_MODEL:
        number = 1
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Prediction:
    """What a problem's own metrics see of a solution: its values anywhere, its scalars."""

    def __init__(self, solution: Solution) -> None:
        self._solution = solution
        self.scalars = solution.scalars

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._solution(x, outside="extend")


class _Session:
    """One session of a run: training in an open run folder, and what is left there.

    Args:
        prepared: the run.
        folder: its folder.
        writer: of that folder.
        display: shows the progress.
        resume: whether to continue from the folder's checkpoint.
    """

    def __init__(
        self,
        prepared: Prepared,
        folder: RunFolder,
        writer: RunWriter,
        display: Display,
        resume: bool,
    ) -> None:
        self.prepared, self.folder, self.writer, self.display = prepared, folder, writer, display
        self.run = prepared.run
        self.options = self.run.options
        self.config = to_dict(prepared.config)
        self.plan = plan(prepared)
        self.phases = phase_plans(prepared, self.plan)
        self.status, self.fresh = Status.FAILED, True  # fresh: not merely looked up
        self.earlier: list[Mapping[str, Any]] = []
        if resume:
            self._continue()
        self.problem = self._describe_problem()
        self.provenance = self._gather()

    @property
    def state(self) -> RunState:
        """The state of the run."""
        return self.run.state

    def train(self, stop: Callable[[], bool]) -> None:
        """Train to the end of the run, of its budget, or of the user's patience."""
        self._announce()
        if self.state.finished:
            self.status = status_of(self.state, self.prepared.config.training.target)
            return
        self.display.begin(self.run.hierarchy)
        self.run.observer = RunObserver(self.writer, self._save, self.display, stop)
        began = time.perf_counter()
        try:
            self.run.run()
        except Exception as error:
            self.status = Status.DIVERGED if isinstance(error, DivergedError) else Status.FAILED
            self.writer.log(traceback.format_exc())
            self.writer.write_summary(self._summary({}))
            raise
        except BaseException:
            self.writer.log("stopped at once")
            raise
        self.status = status_of(self.state, self.prepared.config.training.target)
        self.writer.log(f"trained for {time.perf_counter() - began:.1f} s: {self.status}")
        warning = overfitting(self.state, self.prepared.problem)
        if warning and self.status.final:
            self._note(warning)

    def finish(self) -> Mapping[str, Any]:
        """Write the summary, unless the run was finished and has one."""
        known = self.folder.read_summary()
        if not self.fresh and known is not None:
            return known
        summary = self._summary(self._metrics())
        self.writer.write_summary(summary)
        return summary

    def draw(self) -> None:
        """Draw the figures; if that fails the run is whole without them, and the log says so."""
        wanted = self.prepared.config.figures and self.status is not Status.INTERRUPTED
        if not (wanted and self.fresh):
            return
        try:
            self.display.note("drawing the figures")
            from kanpinn.plotting import plot_run

            plot_run(self._solution(), self.prepared.problem, self.folder.figures)
        except Exception as error:  # anything may go wrong in the user's reference, or on the disk
            self._warn("the figures could not be drawn", error)
        except KeyboardInterrupt:
            self._note(f"stopped: `kanpinn plot {self.folder.path}` draws the figures")
            raise

    def _continue(self) -> None:
        """Take the state from the folder's checkpoint."""
        checkpoint = recall(self.folder, self.prepared, self.config)
        state = None if checkpoint is None else restored(checkpoint, self.prepared, self.config)
        if checkpoint is None or state is None or not (state.total_steps or state.trials):
            self._note("no steps had been saved: training starts from the beginning")
            self.writer.restart_metrics([])
            return
        self.run.state = state
        recorded = dict(checkpoint.provenance)
        self.earlier = [*recorded.pop("earlier", []), recorded]
        ended = self.folder.status
        if state.finished and ended is not None and ended.final:
            self._note(f"this run has already finished ({ended}): there is nothing left to do")
            self.fresh = False
            return
        self._note(f"continued from step {state.total_steps}")
        changed = described_changes(checkpoint.config, self.config)
        if changed:
            self._note(f"changed since: {', '.join(changed)}")
        self.writer.restart_metrics(state.history)
        self.writer.write_config(dump_yaml(self.config))

    @property
    def _n_threads(self) -> int:
        """Threads at work: within an operation, or side by side on chunks of points."""
        return max(torch.get_num_threads(), self.options.workers)

    def _announce(self) -> None:
        device = str(self.options.device)
        if self.options.device.type == "cuda":
            device += f" ({torch.cuda.get_device_name(self.options.device)})"
        else:
            threads = self._n_threads
            device += f" ({threads} thread{'s' if threads > 1 else ''})"
        config = self.prepared.config
        if self.options.device.type == "cpu":
            made_by = f", {kernels().description}"
        else:
            made_by = ", PyTorch kernels" + (" in CUDA graphs" if self.options.graphs else "")
        types = list(dict.fromkeys(level.dtype for level in self.plan))
        self._note(f"device {device}, {', then '.join(types)}, seed {config.seed}{made_by}")
        for phase in self.phases:
            if phase.reason:
                self._note(phase.choice())
        self._note(f"run folder {self.folder.path}")

    def _note(self, text: str) -> None:
        self.writer.log(text)
        self.display.note(text)

    def _warn(self, what: str, error: Exception) -> None:
        """Say that something beside the run failed: in the log in full, on the display in brief."""
        self.writer.log(f"{what}:\n{traceback.format_exc()}")
        self.display.note(f"warning: {what}: {type(error).__name__}: {error} (see run.log)")

    def _describe_problem(self) -> dict[str, Any]:
        parameters = dict(self.config["problem"])
        name = parameters.pop("name")
        return describe_problem(self.prepared.problem, name, parameters, self.prepared.source)

    def _gather(self) -> dict[str, Any]:
        more: dict[str, Any] = {"command": list(sys.argv), "earlier": self.earlier}
        more["threads"] = self._n_threads
        more["kernels"] = kernels(tell=self._note).description
        return gather(self.options.device, self.options.dtype, self.prepared.config.seed, **more)

    def _save(self, state: RunState) -> None:
        write_checkpoint(self.folder.checkpoint, state, self.config, self.problem, self.provenance)

    def _solution(self) -> Solution:
        return Solution(self.state, self.config, self.problem, self.provenance)

    def _metrics(self) -> dict[str, float]:
        """What the problem itself measures, of the default solution."""
        solution = self._solution()
        try:
            found = self.prepared.problem.metrics(_Prediction(solution))
            return {name: float(value) for name, value in found.items()}
        except Exception as error:  # the problem's own code: a trained run is not lost for it
            self._warn("the problem's metrics could not be computed", error)
            return {}

    def _summary(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        config = self.prepared.config
        return summarise(self.state, self.status, config, self.options, metrics, self.phases)

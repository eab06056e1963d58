"""What solving gives back, and the summary of a run."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kanpinn import __version__
from kanpinn.api.planning import PhasePlan
from kanpinn.config import RunConfig
from kanpinn.io.run_folder import Status, strict_json
from kanpinn.optimisers import StopReason
from kanpinn.problem import Problem
from kanpinn.solution import Solution
from kanpinn.training import RunOptions, RunState, TargetOptions

FAR = 5.0  # times the training error: beyond what unseen rows of noisy data commonly have
ROUND_OFF = 1e-8  # errors below it are not worth a word


@dataclass(frozen=True, repr=False)
class SolveResult:
    """How a run ended.

    Attributes:
        status: what it came to.
        summary: the content of ``summary.json``.
        folder: the run folder.
    """

    status: Status
    summary: Mapping[str, Any]
    folder: Path

    @property
    def exit_code(self) -> int:
        """What the command line returns for it."""
        return self.status.exit_code

    @property
    def rel_l2(self) -> float | None:
        """Relative L2 error of the default solution, ``None`` without a reference."""
        return self._number("rel_l2")

    @property
    def linf(self) -> float | None:
        """Largest error of the default solution, ``None`` without a reference."""
        return self._number("linf")

    @property
    def heldout_residual(self) -> float | None:
        """Root mean square residual of the equation on points never trained on."""
        return self._number("heldout_residual")

    @property
    def loss(self) -> float | None:
        """Training loss of the default solution."""
        return self._number("loss")

    @property
    def wall_s(self) -> float:
        """Seconds of training in all sessions."""
        return float(self.summary["wall_s"])

    @property
    def levels(self) -> list[dict[str, Any]]:
        """The records of all levels."""
        return list(self.summary["levels"])

    @property
    def metrics(self) -> dict[str, float]:
        """Further figures of merit that the problem defines."""
        return dict(self.summary["metrics"])

    @cached_property
    def solution(self) -> Solution:
        """The solution, read from the checkpoint when it is first asked for."""
        return Solution.load(self.folder)

    def __repr__(self) -> str:
        """How it ended in one line; :attr:`summary` has everything."""
        numbers = {"rel_l2": self.rel_l2, "heldout_residual": self.heldout_residual}
        found = "".join(f", {k}={v:.3e}" for k, v in numbers.items() if v is not None)
        return f"SolveResult({self.status}{found}, wall_s={self.wall_s:.1f}, {str(self.folder)!r})"

    def _number(self, key: str) -> float | None:
        value = self.summary.get(key)
        return None if value is None else float(value)


def status_of(state: RunState, target: TargetOptions) -> Status:
    """How a run ended, from its state alone."""
    reason, found = state.current.record.stop_reason, state.outcome
    loss = found.current.record.loss or 0.0
    if reason == StopReason.INTERRUPTED:
        return Status.INTERRUPTED
    if reason == StopReason.NON_FINITE or not math.isfinite(loss):
        return Status.DIVERGED
    if target.given:
        rows = [found.history[-1], best_row(found)]
        reached = any(target.met(row) for row in rows)
        return Status.TARGET_REACHED if reached else Status.TARGET_MISSED
    return Status.TIME_LIMIT if reason == StopReason.TIME else Status.COMPLETED


def best_row(state: RunState) -> Mapping[str, Any]:
    """The logged line of the default solution; empty if no iterate had a finite score."""
    level, iterate = state.solution
    if iterate == "last":
        return state.stopped or {}
    for row in reversed(state.history):
        key = (row.get("window") or 0, row["level"])
        if key == level.record.key and row["heldout_score"] == level.best_score:
            return row
    return {}


def overfitting(state: RunState, problem: Problem) -> str | None:
    """A warning if a fit of data is far better on its training rows than on its held-out ones.

    Compared are the root of the loss and the held-out score of the default solution, which are the
    same mean square on other rows. ``None`` where the two are close, or close to round-off.
    """
    row = best_row(state.outcome) if problem.held_out_blocks() else {}
    loss, unseen = row.get("loss"), row.get("heldout_score")
    if loss is None or unseen is None or not (loss >= 0 and unseen > ROUND_OFF):
        return None
    fitted = math.sqrt(loss)
    if unseen <= FAR * fitted:
        return None
    return (
        f"warning: the error on rows held out, {unseen:.1e}, is far above that on training rows, "
        f"{fitted:.1e}: try a smaller model, fewer levels, or training.smoothing"
    )


def summarise(
    state: RunState,
    status: Status,
    config: RunConfig,
    options: RunOptions,
    metrics: Mapping[str, float],
    phases: Sequence[PhasePlan],
) -> dict[str, Any]:
    """The content of ``summary.json``.

    Numbers are those of the default solution, the best iterate by the held-out score; each level's
    record says what its last iterate had.
    """
    elapsed, reason = state.elapsed, state.current.record.stop_reason if state.levels else None
    state = state.outcome
    row = best_row(state) if state.levels else {}
    level, iterate = state.solution if state.levels else (None, "best")
    last = iterate == "last"
    summary = {
        "status": status.value,
        "name": config.name,
        "problem": config.problem.name,
        "rel_l2": row.get("rel_l2"),
        "linf": row.get("linf"),
        "heldout_residual": row.get("heldout_residual"),
        "loss": row.get("loss"),
        "estimated_error": row.get("estimated_error"),
        "stop_reason": reason,
        "wall_s": elapsed,
        "n_params": level.record.n_params if level else None,
        "device": str(options.device),
        "dtype": (level.record.dtype if level else None) or config.dtype,
        "seed": config.seed,
        "version": __version__,
        "levels": [entry.record.as_dict() for entry in state.levels],
        "phases": [phase.as_dict() for phase in phases],
        "reweighting": list(options.training.reweighting),
        "metrics": dict(metrics),
        "scalars": Solution(state).scalars if state.levels else {},
        "steps": state.total_steps,
        "best_level": level.record.level if level else None,
        "best_step": state.total_steps if last else level.best_step if level else None,
        "smoothing": row.get("smoothing") if last else level.record.smoothing if level else None,
        "peak_rss_mb": peak_memory(),
    }
    result: dict[str, Any] = strict_json(summary)
    return result


def peak_memory() -> float | None:
    """Most memory this process has held so far, in MiB; ``None`` where that is not known."""
    if sys.platform == "win32":
        return None
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins with the peak of the parent process
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return round(int(found[1]) / 2**10, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)

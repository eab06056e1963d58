"""Progress of a run: a bar per level on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import TaskID

    from kanpinn.training import Hierarchy, LevelRecord


class Display(Protocol):
    """What shows the progress of a run; a context manager around it."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End, leaving the terminal in order."""

    def begin(self, hierarchy: Hierarchy) -> None:
        """The levels to come."""

    def network(self, label: str) -> None:
        """Which initial network the levels and lines to come are of; empty once one is chosen."""

    def level(self, record: LevelRecord) -> None:
        """A level begins or is continued."""

    def row(self, row: Mapping[str, Any], record: LevelRecord) -> None:
        """A line was logged."""

    def note(self, text: str) -> None:
        """Something to say beside that."""


def describe(row: Mapping[str, Any], digits: int = 3, between: str = "  ") -> str:
    """Loss, held-out residual, error where known, and seconds of a logged line."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.{digits}e}"

    parts = [f"loss {number(row['loss'])}", f"held-out {number(row['heldout_residual'])}"]
    if row.get("rel_l2") is not None:
        parts.append(f"rel_l2 {number(row['rel_l2'])}")
    return between.join([*parts, f"{row['wall_s']:.1f} s"])


class Silent:
    """Shows nothing."""

    of_network = ""  # stands before the name of a level

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def begin(self, hierarchy: Hierarchy) -> None:
        """Do nothing."""

    def network(self, label: str) -> None:
        """Remember it."""
        self.of_network = f"{label}, " if label else ""

    def level(self, record: LevelRecord) -> None:
        """Do nothing."""

    def row(self, row: Mapping[str, Any], record: LevelRecord) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


class Lines(Silent):
    """One plain line per logged step.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def level(self, record: LevelRecord) -> None:
        """Say what the level is."""
        intervals = "/".join(str(n) for n in record.n_intervals)
        knots = f"intervals {intervals}, " if intervals else ""
        name = f"{self.of_network}{record.label}"
        self.note(f"{name}: {knots}{record.n_params} parameters, {record.n_points} points")

    def row(self, row: Mapping[str, Any], record: LevelRecord) -> None:
        """Print the line."""
        window = f"window {record.window}, " if record.window else ""
        name = f"{self.of_network}{window}level {row['level']}"
        self.note(f"{name}  step {row['step']:>6}  {describe(row)}")

    def note(self, text: str) -> None:
        """Print the text."""
        print(text, file=self.stream, flush=True)


class Bars(Silent):
    """A progress bar per level, with the latest values beside it.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.progress = Progress(
            TextColumn("{task.fields[level]}"),
            BarColumn(bar_width=None),  # what the words leave: they come to 72 columns
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[values]}"),
            console=Console(file=stream, highlight=False),
            expand=True,
        )
        self.totals: dict[int, int] = {}
        self.tasks: dict[int, TaskID] = {}

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def begin(self, hierarchy: Hierarchy) -> None:
        """Keep the number of steps of every level."""
        self.totals = {level.index: sum(level.steps) for level in hierarchy.levels}

    def level(self, record: LevelRecord) -> None:
        """Add a bar."""
        self.tasks[record.level] = self.progress.add_task(
            "",
            total=self.totals.get(record.level, 0),
            completed=record.steps,
            level=f"{self.of_network}{record.label}",
            values=f"{record.n_params} parameters",
        )

    def row(self, row: Mapping[str, Any], record: LevelRecord) -> None:
        """Move the bar."""
        task = self.tasks[record.level]
        self.progress.update(task, completed=record.steps, values=describe(row, 1, " "))

    def note(self, text: str) -> None:
        """Print above the bars."""
        self.progress.console.print(text, markup=False)


def display_for(stream: TextIO, quiet: bool = False) -> Display:
    """Bars on a terminal, lines elsewhere, nothing if ``quiet``."""
    if quiet:
        return Silent()
    return Bars(stream) if stream.isatty() else Lines(stream)

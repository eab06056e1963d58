"""A study that was run, read: from its folder, or from the one file with all its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kanpinn.api.recall import load
from kanpinn.config import parse_study, read_yaml
from kanpinn.errors import ConfigError, RunFolderError, suggestion
from kanpinn.io.run_folder import RunFolder, Status
from kanpinn.solution import Solution, history_columns
from kanpinn.study import (
    Case,
    Design,
    LevelRow,
    final_medians,
    finals_of,
    label,
    level_rows,
    medians,
)

DESIGN, CASES, REPORT = "study.yaml", "cases", "report"
# What the stored design has beside that of a study's file.
STORED_ONLY = ("base_config", "variant")


@dataclass(frozen=True)
class CaseResult:
    """A case and its run.

    Attributes:
        case: what was varied.
        folder: of the run.
        summary: of the run; ``None`` if it has not come to an end.
        error: what the run said when it failed, ``None`` if it did not.
    """

    case: Case
    folder: Path
    summary: dict[str, Any] | None
    error: str | None = None

    @property
    def solution(self) -> Solution:
        """The run's default solution."""
        return load(self.folder)

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The run's logged lines."""
        return RunFolder(self.folder).read_metrics()

    @cached_property
    def config(self) -> str:
        """The run's resolved config as YAML; empty if it has none yet."""
        try:
            return RunFolder(self.folder).config.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""


@dataclass(frozen=True)
class Study:
    """A study, read: its cases with their results, and tables over all of them.

    Attributes:
        folder: of the study.
        design: what was asked for.
        cases: in the order of the design.
    """

    folder: Path
    design: Design
    cases: tuple[CaseResult, ...]

    @property
    def missing(self) -> tuple[CaseResult, ...]:
        """Cases without a result: not run yet, stopped, or failed."""
        return tuple(found for found in self.cases if found.summary is None)

    def rows(self) -> list[LevelRow]:
        """A row per level of every case that has a result."""
        return [row for found in self._known() for row in level_rows(*found)]

    def medians(self) -> list[dict[str, Any]]:
        """Medians and quartiles over the axis ``seed``, per level and combination of the others."""
        return medians(self.rows())

    def finals(self) -> list[dict[str, Any]]:
        """A row per case that has a result: its last level, fitted orders, its metrics."""
        return finals_of(self._known())

    def final_medians(self) -> list[dict[str, Any]]:
        """The finals over the axis ``seed``: medians, quartiles, means, standard deviations."""
        return final_medians(self.finals(), self.design.axes)

    def select(self, **labels: Any) -> Study:
        """The study of some of its cases: those with a label, or one of a list of labels, per axis.

        Axes whose names have dots are given as ``select(**{"model.order": 5})``.

        Raises:
            ConfigError: if the study has no such axis or label.
        """
        wanted = {axis: self._labels(axis, value) for axis, value in labels.items()}
        chosen = (
            found
            for found in self.cases
            if all(found.case.labels[axis] in some for axis, some in wanted.items())
        )
        return replace(self, cases=tuple(chosen))

    def history(self, case: CaseResult | Case | str) -> dict[str, NDArray[Any]]:
        """What a case's run has logged, as columns ``(n_lines,)``; see :attr:`Solution.history`.

        Args:
            case: itself, its title (``model.order=4, seed=1``), or the name of its folder.

        Raises:
            ConfigError: if the study has no such case.
        """
        name = case if isinstance(case, str) else _case_of(case).folder
        for found in self.cases:
            if name in (found.case.folder, found.case.title):
                return history_columns(found.lines)
        near = suggestion(name, [found.case.title for found in self.cases])
        raise ConfigError(f"{self.folder}: the study has no case {name!r}{near}")

    def _known(self) -> Iterator[tuple[Case, dict[str, Any], list[dict[str, Any]]]]:
        """Cases that have a result, with summaries and logged lines."""
        for found in self.cases:
            if found.summary is not None:
                yield found.case, found.summary, found.lines

    def _labels(self, axis: str, value: Any) -> list[str]:
        """The labels that a value of :meth:`select` stands for."""
        if axis not in self.design.axes:
            near = suggestion(axis, self.design.axes)
            known = ", ".join(self.design.axes)
            raise ConfigError(f"{self.folder}: no axis {axis!r}{near or ';'} allowed: {known}")
        given = [label(v) for v in (value if isinstance(value, list | tuple) else [value])]
        known_labels = self.design.axes[axis]
        for name in given:
            if name not in known_labels:
                near = suggestion(name, known_labels)
                raise ConfigError(
                    f"{self.folder}: axis {axis}: no label {name!r}{near or ';'} allowed: "
                    f"{', '.join(known_labels)}"
                )
        return given


def _case_of(case: CaseResult | Case) -> Case:
    return case.case if isinstance(case, CaseResult) else case


def load_study(folder: str | Path) -> Study:
    """A study's results, from its folder.

    Raises:
        RunFolderError: if the folder holds no study.
    """
    folder = Path(folder)
    stored = folder / DESIGN
    if not stored.is_file():
        raise RunFolderError(f"{folder}: holds no {DESIGN}: it is not the folder of a study")
    return read_cases(folder, stored_design(read_yaml(stored), str(stored), folder.name), {})


def stored_design(data: Mapping[str, Any], source: str, default_name: str) -> Design:
    """The design that a study has stored: one of its variants, if it is one."""
    own = {key: value for key, value in data.items() if key not in STORED_ONLY}
    return replace(parse_study(own, source, default_name), variant=data.get("variant"))


def run_folder(folder: Path, case: Case) -> RunFolder:
    """Where the run of a case is."""
    return RunFolder(folder / CASES / case.folder)


def is_finished(run: RunFolder) -> bool:
    """Whether nothing is left to be run."""
    return run.status is not None and run.status.final


def read_cases(folder: Path, design: Design, errors: Mapping[str, str]) -> Study:
    """The study in a folder; ``errors`` of this session by the cases' folders."""
    found = []
    for case in design.cases():
        run = run_folder(folder, case)
        summary = run.read_summary() if is_finished(run) else None
        error = errors.get(case.folder)
        if error is None and run.status is Status.FAILED:
            error = run.last_words
        found.append(CaseResult(case, run.path, summary, error))
    return Study(folder, design, tuple(found))

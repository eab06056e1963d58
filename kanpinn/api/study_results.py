"""A study that was run, read: from its folder, or from the one file with all its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kanpinn.api.recall import load
from kanpinn.config import parse_study, parse_yaml, read_yaml
from kanpinn.errors import CheckpointError, ConfigError, RunFolderError, suggestion
from kanpinn.io.run_folder import RunFolder, Status
from kanpinn.io.study_file import (
    STUDY_FILE,
    StoredCase,
    StoredStudy,
    read_study_file,
    write_study_file,
)
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
STORED_ONLY = ("base_config", "base_configs", "variant")


@dataclass(frozen=True)
class CaseResult:
    """A case and its run.

    Attributes:
        case: what was varied.
        folder: of the run.
        summary: of the run; ``None`` if it has not come to an end.
        error: what the run said when it failed, ``None`` if it did not.
        stored: what is known of it without its folder, from the file of the study.
    """

    case: Case
    folder: Path
    summary: Mapping[str, Any] | None
    error: str | None = None
    stored: StoredCase | None = field(default=None, repr=False)

    @property
    def solution(self) -> Solution:
        """The run's default solution."""
        return load(self.folder)

    @cached_property
    def lines(self) -> Sequence[dict[str, Any]]:
        """The run's logged lines."""
        return self.stored.lines if self.stored else RunFolder(self.folder).read_metrics()

    @cached_property
    def config(self) -> str:
        """The run's resolved config as YAML; empty if it has none yet."""
        if self.stored:
            return self.stored.config
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
        stored: the design as it is stored, with every default of the base config, in YAML.
    """

    folder: Path
    design: Design
    cases: tuple[CaseResult, ...]
    stored: str = field(default="", repr=False)

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

    def select(self, /, **labels: Any) -> Study:
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

    def _known(self) -> Iterator[tuple[Case, Mapping[str, Any], Sequence[dict[str, Any]]]]:
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


def load_study(path: str | Path) -> Study:
    """A study's results, from its folder, or from its file ``study.h5`` alone, wherever that is.

    The file has all numbers; solutions are in the folder.

    Raises:
        RunFolderError: if the folder holds no study.
        CheckpointError: if the file cannot be used.
    """
    path = Path(path)
    if path.is_file() and path.name != DESIGN:
        return _from_file(path)
    folder = path.parent if path.is_file() else path
    stored = folder / DESIGN
    if not stored.is_file():
        if (folder / STUDY_FILE).is_file():
            return _from_file(folder / STUDY_FILE)
        raise RunFolderError(
            f"{folder}: holds no {DESIGN}, nor a checkpoint: it is the folder of neither a study "
            "nor a run"
        )
    return read_cases(folder, stored_design(read_yaml(stored), str(stored), folder.name), {})


def _from_file(path: Path) -> Study:
    stored = read_study_file(path)
    source = f"{path}: design"
    data = parse_yaml(stored.design, source)
    design = stored_design(data if isinstance(data, dict) else {}, source, path.stem)
    by_name = {case.name: case for case in stored.cases}
    folder, found = path.parent, []
    for case in design.cases():
        kept = by_name.get(case.folder)
        if kept is None:
            raise CheckpointError(f"{path}: /cases/{case.folder}: is missing")
        place = run_folder(folder, case).path
        found.append(CaseResult(case, place, kept.summary, kept.error, kept))
    return Study(folder, design, tuple(found), stored.design)


def write_numbers(study: Study) -> None:
    """Write ``study.h5`` into the study's folder.

    Not of some of a study's cases, nor where the study was read from such a file.

    Raises:
        OSError: if it cannot be written; the one before is then untouched.
    """
    whole = len(study.cases) == len(study.design.cases())
    if not whole or any(found.stored for found in study.cases):
        return
    cases = tuple(_to_store(found) for found in study.cases)
    write_study_file(study.folder / STUDY_FILE, StoredStudy(study.stored, cases))


def _to_store(found: CaseResult) -> StoredCase:
    rows = []
    if found.summary is not None:
        rows = [row.flat() for row in level_rows(found.case, found.summary, found.lines)]
    return StoredCase(
        name=found.case.folder,
        title=found.case.title,
        labels=found.case.labels,
        summary=found.summary,
        error=found.error,
        config=found.config,
        lines=found.lines,
        levels=[{k: v for k, v in row.items() if k not in found.case.labels} for row in rows],
    )


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
    stored = folder / DESIGN
    text = stored.read_text(encoding="utf-8") if stored.is_file() else ""
    return Study(folder, design, tuple(found), text)

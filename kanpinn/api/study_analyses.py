"""Analyses of a study: done once, kept in its folder, and part of its report."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kanpinn.api.study_results import CaseResult, Study
from kanpinn.errors import ConfigError, KanpinnError
from kanpinn.io.run_folder import to_json, write_atomically
from kanpinn.study import Design
from kanpinn.study.medians import FAILED

if TYPE_CHECKING:  # else when needed: no other command should wait for SciPy
    from kanpinn.analysis import Analysis, Finding

KEY = "analyses"
FOLDER = "analyses"
SELECT = "select"  # the key of an entry that says which cases it is of

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """An analysis that a study asks for.

    Attributes:
        name: of its files: that of the analysis, with a number from the second one on.
        options: of the analysis.
        select: labels by axis of the cases it is of, as for :meth:`Study.select`.
    """

    name: str
    options: Analysis
    select: Mapping[str, Any]

    @property
    def of_runs(self) -> bool:
        """Whether it is of runs, and does not stand alone."""
        from kanpinn.analysis.catalogue import OF_RUNS

        return type(self.options) in OF_RUNS

    def cases(self, study: Study) -> list[CaseResult]:
        """The runs it is of: those that have a result and did not diverge."""
        if not self.of_runs:
            return []
        chosen = study.select(**self.select).cases
        return [c for c in chosen if c.summary is not None and c.summary["status"] not in FAILED]

    def stamp(self, study: Study) -> str:
        """Differs where options or runs do."""
        asked = {
            "options": asdict(self.options),
            "runs": {case.case.folder: case.summary for case in self.cases(study)},
        }
        return hashlib.sha256(to_json(asked).encode()).hexdigest()


def parse_requests(design: Design, source: str) -> list[Request]:
    """The analyses of a design.

    Raises:
        ConfigError: naming the entry that cannot be used.
    """
    if not design.analyses:
        return []
    from kanpinn.analysis import parse

    entries = [dict(entry) for entry in design.analyses]
    selects = [entry.pop(SELECT, {}) for entry in entries]
    requests: list[Request] = []
    for number, (options, select) in enumerate(zip(parse(entries, source), selects, strict=True)):
        before = sum(request.options.name == options.name for request in requests)
        name = f"{options.name}_{before + 1}" if before else options.name
        requests.append(Request(name, options, select))
        _check(requests[-1], design, f"{source}: {KEY}.{number}")
    return requests


def _check(request: Request, design: Design, where: str) -> None:
    """Refuse an analysis of cases that the study does not have, or could not tell apart."""
    if not isinstance(request.select, Mapping):
        raise ConfigError(f"{where}.{SELECT}: found {request.select!r}; labels by axis are needed")
    try:
        Study(Path(), design, ()).select(**request.select)
    except ConfigError as error:
        raise ConfigError(f"{where}.{SELECT}: {str(error).partition(': ')[2]}") from error
    if not request.of_runs:
        return
    if not design.cases():
        raise ConfigError(f"{where}: {request.options.name} analyses runs; the study has no cases")
    from kanpinn.analysis.catalogue import columns_of

    for axis in design.axes:
        if axis in columns_of(request.options):
            raise ConfigError(
                f"{where}: the axis {axis} is a column of {request.options.name}; choose another "
                "name for the axis"
            )


def analyse(study: Study, requests: Sequence[Request], tell: Tell) -> None:
    """Do the analyses that are not done yet, or whose runs have changed since.

    One that fails does not end the others; what it said is kept in the place of a finding.

    Raises:
        OSError: if a finding cannot be written.
    """
    for request in requests:
        path, stamp = _path(study.folder, request.name), request.stamp(study)
        if _read(path).get("stamp") == stamp:
            continue
        began = time.perf_counter()
        result = _attempt(study, request)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, to_json({"stamp": stamp, **result}))
        seconds = time.perf_counter() - began
        tell(f"analysis {request.name}: {result.get('error') or f'done in {seconds:.1f} s'}")


def _attempt(study: Study, request: Request) -> dict[str, Any]:
    """The finding as plain data, or the error."""
    from kanpinn.analysis import run

    cases = request.cases(study)
    if request.of_runs and not cases:
        return {"error": "no run has a result"}
    try:
        runs = [(case.case.labels, case.solution) for case in cases]
        return {"finding": asdict(run(request.options, runs, trust=True))}  # it has just been run
    except Exception as error:  # numbers of runs, or the user's code, may do anything
        known = isinstance(error, KanpinnError)
        return {"error": str(error) if known else f"{type(error).__name__}: {error}"}


def findings(study: Study) -> dict[str, Finding | str]:
    """What the analyses of a study have found, or why they have not, by the names of their files.

    Only of the runs as they are now.
    """
    found: dict[str, Finding | str] = {}
    for request in parse_requests(study.design, str(study.folder)):
        kept = _read(_path(study.folder, request.name))
        if kept.get("stamp") != request.stamp(study):
            found[request.name] = "not done for the runs as they are now"
        else:
            found[request.name] = _finding(kept)
    return found


def _finding(kept: Mapping[str, Any]) -> Finding | str:
    from kanpinn.analysis import Finding

    if "finding" not in kept:
        return str(kept.get("error"))
    data = kept["finding"]
    return Finding(**{**data, "curves": tuple(data["curves"])})


def failures(study: Study) -> dict[str, str]:
    """Analyses that have failed or are not done, and why."""
    return {name: one for name, one in findings(study).items() if isinstance(one, str)}


def _path(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{name}.json"


def _read(path: Path) -> dict[str, Any]:
    """What is kept of an analysis; nothing where there is no such file, or none of use."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}

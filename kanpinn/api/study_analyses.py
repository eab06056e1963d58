"""Analyses of a study: done once, kept in its folder, and part of its report."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kanpinn.analysis import Analysis, Finding, parse, run
from kanpinn.analysis.catalogue import KEY, OF_RUNS
from kanpinn.api.study_results import CaseResult, Study
from kanpinn.errors import ConfigError, KanpinnError
from kanpinn.io.run_folder import to_json, write_atomically
from kanpinn.study import Design

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

    def cases(self, study: Study) -> list[CaseResult]:
        """The runs it is of, as far as they have a result; none for one that stands alone."""
        if type(self.options) not in OF_RUNS:
            return []
        return [case for case in study.select(**self.select).cases if case.summary is not None]


def parse_requests(design: Design, source: str) -> list[Request]:
    """The analyses of a design.

    Raises:
        ConfigError: naming the entry that cannot be used.
    """
    entries = [dict(entry) for entry in design.analyses]
    selects = [entry.pop(SELECT, {}) for entry in entries]
    requests: list[Request] = []
    for number, (options, select) in enumerate(zip(parse(entries, source), selects, strict=True)):
        where = f"{source}: {KEY}.{number}"
        if not isinstance(select, Mapping):
            raise ConfigError(f"{where}.{SELECT}: found {select!r}; labels by axis are needed")
        try:
            Study(Path(source), design, ()).select(**select)
        except ConfigError as error:
            raise ConfigError(f"{where}.{SELECT}: {str(error).partition(': ')[2]}") from error
        before = sum(request.options.name == options.name for request in requests)
        name = f"{options.name}_{before + 1}" if before else options.name
        requests.append(Request(name, options, select))
        if type(options) in OF_RUNS and not design.cases():
            raise ConfigError(f"{where}: {options.name} analyses runs; the study has no cases")
    return requests


def analyse(study: Study, requests: Sequence[Request], tell: Tell) -> None:
    """Do the analyses that are not done yet, or whose runs have changed since.

    One that fails is told of, and does not end the others.

    Raises:
        OSError: if a finding cannot be written.
    """
    for request in requests:
        cases, path = request.cases(study), _path(study.folder, request.name)
        if type(request.options) in OF_RUNS and not cases:
            tell(f"analysis {request.name}: no run has a result")
            continue
        stamp = _stamp(request, cases)
        if (_read(path) or {}).get("stamp") == stamp:
            continue
        began = time.perf_counter()
        try:
            runs = [(case.case.labels, case.solution) for case in cases]
            found = run(request.options, runs, trust=True)  # their code has just been run
        except KanpinnError as error:
            tell(f"analysis {request.name}: {error}")
            continue
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, to_json({"stamp": stamp, "finding": asdict(found)}))
        tell(f"analysis {request.name}: done in {time.perf_counter() - began:.1f} s")


def findings(study: Study) -> dict[str, Finding]:
    """What the analyses of a study have found so far, by the names of their files."""
    found = {}
    for request in parse_requests(study.design, str(study.folder)) if study.design.analyses else ():
        kept = _read(_path(study.folder, request.name))
        if kept is not None:
            data = kept["finding"]
            found[request.name] = Finding(**{**data, "curves": tuple(data["curves"])})
    return found


def _path(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{name}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) and "finding" in data else None


def _stamp(request: Request, cases: Sequence[CaseResult]) -> str:
    """Differs where options or runs do."""
    asked = {
        "options": asdict(request.options),
        "runs": {case.case.folder: case.summary for case in cases},
    }
    return hashlib.sha256(to_json(asked).encode()).hexdigest()

"""Running a study: its cases in processes of their own, and a report on what they found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanpinn.api.recall import load
from kanpinn.config import differing_keys, dump_yaml, load_config, read_yaml, to_dict
from kanpinn.errors import ConfigError, RunFolderError
from kanpinn.io.run_folder import RunFolder, write_atomically
from kanpinn.io.study_tables import write_tables
from kanpinn.solution import Solution
from kanpinn.study import Case, Design, LevelRow, level_rows, medians, parse_design

STUDIES = Path("runs") / "studies"
DESIGN, CASES, REPORT = "study.yaml", "cases", "report"
Tell = Callable[[str], None]


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


@dataclass(frozen=True)
class Study:
    """A study's folder, read: its cases with their results, and tables over all of them.

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
        return [
            row
            for found in self.cases
            if found.summary is not None
            for row in level_rows(found.case, found.summary)
        ]

    def medians(self) -> list[dict[str, Any]]:
        """Medians and quartiles over the axis ``seed``, per level and combination of the others."""
        return medians(self.rows())


def run_study(
    config: str | Path,
    out: str | Path | None = None,
    *,
    jobs: int = 1,
    tell: Tell | None = None,
) -> Study:
    """Run the cases of a study that have no result yet, and write its report.

    Cases run as ``kanpinn solve`` in processes of their own, ``jobs`` at a time, which share the
    processor's threads. One that fails or diverges does not end the others. The same call again
    runs what is missing, and continues what was interrupted.

    Args:
        config: YAML file with ``base`` (a config), ``axes`` and perhaps ``name``.
        out: the study's folder, by default ``runs/studies/<name>``.
        jobs: processes at a time.
        tell: hears of every case that ends.

    Raises:
        ConfigError: if the design or the config of a case cannot be used; nothing has run then.
        RunFolderError: if the folder is that of another study, or cannot be written.
        KeyboardInterrupt: for Ctrl-C, once the cases under way have saved what they had.
    """
    if jobs < 1:
        raise ConfigError(f"jobs: found {jobs}, allowed: at least 1")
    config, say = Path(config), tell or (lambda text: None)
    design = parse_design(read_yaml(config), str(config), config.stem)
    base = config.parent / design.base
    cases = design.cases()
    _check_cases(base, cases, str(config))
    folder = (Path(out) if out is not None else STUDIES / design.name).absolute()
    _open_folder(folder, design, base)
    todo = [case for case in cases if not _finished(_run_folder(folder, case))]
    if len(todo) < len(cases):
        say(f"{len(cases) - len(todo)} of {len(cases)} cases have a result already")
    threads = None if load_config(base).threads else max(1, _processors() // jobs)
    errors = _run_all(todo, base, folder, jobs, threads, say)
    study = _read(folder, design, errors)
    write_report(study)
    return study


def load_study(folder: str | Path) -> Study:
    """A study's results, from its folder.

    Raises:
        RunFolderError: if the folder holds no study.
    """
    folder = Path(folder)
    stored = folder / DESIGN
    if not stored.is_file():
        raise RunFolderError(f"{folder}: holds no {DESIGN}: it is not the folder of a study")
    data = read_yaml(stored)
    data.pop("base_config", None)
    return _read(folder, parse_design(data, str(stored), folder.name), {})


def write_report(study: Study) -> Path:
    """Write ``report/``: tables as CSV, Markdown and LaTeX, and a page with the figures.

    Raises:
        RunFolderError: if it cannot be written.
    """
    report = study.folder / REPORT
    try:
        _write_report(study, report)
    except OSError as error:
        raise RunFolderError(f"{report}: cannot be written ({error.strerror})") from error
    return report


def _write_report(study: Study, report: Path) -> None:
    report.mkdir(exist_ok=True)
    write_tables(report, [row.flat() for row in study.rows()], study.medians())
    from kanpinn.plotting.study import write_page

    failures = [(found.case.title, found.error or "no result") for found in study.missing]
    write_page(report / "report.html", study.design.name, study.rows(), study.medians(), failures)


def _check_cases(base: Path, cases: Sequence[Case], source: str) -> None:
    """Read every case's config before any of them runs."""
    for case in cases:
        try:
            load_config(base, case.overrides)
        except ConfigError as error:
            raise ConfigError(f"{source}: case {case.title}: {error}") from error


def _open_folder(folder: Path, design: Design, base: Path) -> None:
    """Create the folder, or find it to be this study's; its design may have grown."""
    resolved = to_dict(load_config(base))
    stored = folder / DESIGN
    if stored.is_file():
        changed = differing_keys(read_yaml(stored).get("base_config") or {}, resolved, ())
        if changed:
            raise RunFolderError(
                f"{folder}: holds a study of another base config, which differs in "
                f"{', '.join(changed[:5])}; choose another folder with --out"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(f"{folder}: is not empty and holds no study; choose another folder")
    data = {
        "name": design.name,
        "base": os.path.relpath(base.absolute(), folder),
        "axes": {axis: dict(values) for axis, values in design.axes.items()},
        "base_config": resolved,
    }
    try:
        (folder / CASES).mkdir(parents=True, exist_ok=True)
        write_atomically(stored, dump_yaml(data))
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be written ({error.strerror})") from error


def _run_folder(folder: Path, case: Case) -> RunFolder:
    return RunFolder(folder / CASES / case.folder)


def _finished(run: RunFolder) -> bool:
    return run.status is not None and run.status.final


def _run_all(
    cases: Sequence[Case], base: Path, folder: Path, jobs: int, threads: int | None, say: Tell
) -> dict[str, str]:
    """Run cases; by folder, what those said that failed."""
    errors: dict[str, str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        running = {
            pool.submit(_run_case, case, base, _run_folder(folder, case), threads): case
            for case in cases
        }
        try:
            for count, future in enumerate(as_completed(running), start=1):
                case, error = running[future], future.result()
                if error:
                    errors[case.folder] = error
                summary = _run_folder(folder, case).read_summary() or {}
                say(f"[{count}/{len(cases)}] {case.title}: {error or _in_brief(summary)}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return errors


def _processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run_case(case: Case, base: Path, run: RunFolder, threads: int | None) -> str | None:
    """``kanpinn solve`` in a process; what it said if it failed."""
    command = [sys.executable, "-m", "kanpinn", "solve", str(base)]
    command += [] if threads is None else [f"threads={threads}"]
    command += [*case.overrides, "--out", str(run.path), "-q", "--json"]
    if run.holds_run:
        command.append("--resume")
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if run.status is not None and run.status.final:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"ended with {done.returncode}"


def _in_brief(summary: dict[str, Any]) -> str:
    error = summary.get("rel_l2")
    shown = "" if error is None else f", relative L2 {error:.2e}"
    return f"{summary['status']}{shown} in {summary['wall_s']:.1f} s"


def _read(folder: Path, design: Design, errors: dict[str, str]) -> Study:
    found = []
    for case in design.cases():
        run = _run_folder(folder, case)
        summary = run.read_summary() if _finished(run) else None
        found.append(CaseResult(case, run.path, summary, errors.get(case.folder)))
    return Study(folder, design, tuple(found))

"""Running a study: its cases in processes of their own, and a report on what they found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from kanpinn.api.study_analyses import Request, analyse, parse_requests
from kanpinn.api.study_cases import Base, bases_of, check_cases, resolve_cases
from kanpinn.api.study_report import write_report
from kanpinn.api.study_results import (
    CASES,
    DESIGN,
    Study,
    is_finished,
    read_cases,
    run_folder,
)
from kanpinn.api.study_runner import Job, StudyRunner, Tell
from kanpinn.config import differing_keys, dump_yaml, parse_study, read_yaml, to_dict
from kanpinn.errors import ConfigError, RunFolderError
from kanpinn.io.run_folder import lock, write_atomically
from kanpinn.study import Case, Design

STUDIES = Path("runs") / "studies"
LOCK = ".lock"


def run_study(
    config: str | Path,
    out: str | Path | None = None,
    *,
    variant: str | None = None,
    jobs: int = 1,
    tell: Tell | None = None,
) -> Study:
    """Run the cases of a study that have no result yet, and write its report.

    Cases run as ``kanpinn solve`` in processes of their own, ``jobs`` at a time, which share the
    processor's threads. One that fails or diverges does not end the others. The same call again
    runs what is missing, and continues what was interrupted.

    Args:
        config: YAML file with ``base`` (a config), ``axes`` or ``cases``, and perhaps ``name``,
            ``set``, ``budget``, ``analyses`` and ``variants``.
        out: the study's folder, by default ``runs/studies/<name>``, with ``-<variant>`` behind.
        variant: of the study, if not the study itself.
        jobs: processes at a time.
        tell: hears of every case that ends.

    Raises:
        ConfigError: if the design or the config of a case cannot be used; nothing has run then.
        RunFolderError: if the folder is that of another study, another process is at work on it,
            or it cannot be written.
        KeyboardInterrupt: for Ctrl-C, once the cases under way have saved what they had.
    """
    if jobs < 1:
        raise ConfigError(f"jobs: found {jobs}, allowed: at least 1")
    say = tell or (lambda text: None)
    asked = _read(Path(config), out, variant)
    folder, design = asked.folder, asked.design
    with _open_folder(folder, design, asked.bases):
        waiting = asked.waiting()
        check_cases(waiting, asked.file)
        done = len(asked.configs) - len(waiting)
        if done:
            say(f"{done} of {len(asked.configs)} cases have a result already")
        threads = max(1, _processors() // jobs)
        errors = StudyRunner(jobs, say).run(_jobs(waiting, folder, threads), done)
        study = read_cases(folder, design, errors)
        analyse(study, asked.requests, say)
        write_report(study)
    return study


def plan_study(
    config: str | Path, out: str | Path | None = None, *, variant: str | None = None
) -> StudyPlan:
    """What :func:`run_study` would do with the same arguments; nothing is run or written.

    Raises:
        ConfigError: as there.
        RunFolderError: if the folder is that of another study.
    """
    asked = _read(Path(config), out, variant)
    _check_folder(asked.folder, asked.design, asked.bases)
    waiting = asked.waiting()
    check_cases(waiting, asked.file)
    return StudyPlan(
        asked.folder,
        tuple(case for case, _ in asked.configs),
        tuple(case for case, _ in waiting),
        tuple(request.name for request in asked.requests),
    )


@dataclass(frozen=True)
class StudyPlan:
    """What a study would do.

    Attributes:
        folder: its folder.
        cases: all of them.
        waiting: those that have no result yet.
        analyses: their names.
    """

    folder: Path
    cases: tuple[Case, ...]
    waiting: tuple[Case, ...]
    analyses: tuple[str, ...]


@dataclass(frozen=True)
class _Asked:
    """A study's file, read."""

    file: Path
    design: Design
    bases: Mapping[str, Base]
    configs: Sequence[tuple[Case, dict[str, Any]]]
    requests: Sequence[Request]
    folder: Path

    def waiting(self) -> list[tuple[Case, dict[str, Any]]]:
        """The cases without a result."""
        return [(c, d) for c, d in self.configs if not is_finished(run_folder(self.folder, c))]


def _read(file: Path, out: str | Path | None, variant: str | None) -> _Asked:
    design = parse_study(read_yaml(file), str(file), file.stem, variant)
    bases = bases_of(design, file)
    configs = resolve_cases(design, bases, file)
    requests = parse_requests(design, str(file))
    folder = (Path(out) if out is not None else STUDIES / design.folder).absolute()
    return _Asked(file, design, bases, configs, requests, folder)


def _jobs(
    configs: Sequence[tuple[Case, Mapping[str, Any]]], folder: Path, threads: int
) -> list[Job]:
    """What is to be run, each with its config in a file: the base may be edited meanwhile.

    Where a config does not say how many threads it has, it has ``threads``.
    """
    jobs = []
    for case, data in configs:
        path = folder / CASES / f"{case.folder}.yaml"
        write_atomically(path, dump_yaml({**data, "threads": data["threads"] or threads}))
        jobs.append(Job(case, path, run_folder(folder, case)))
    return jobs


def _open_folder(folder: Path, design: Design, bases: Mapping[str, Base]) -> TextIO:
    """Create the folder, or find it to be this study's: its design may have grown.

    It is locked until the file that comes back is closed.
    """
    _check_folder(folder, design, bases)
    with ExitStack() as opened:
        try:
            (folder / CASES).mkdir(parents=True, exist_ok=True)
            file = opened.enter_context((folder / LOCK).open("a"))
            lock(file, folder, "study")
            write_atomically(folder / DESIGN, dump_yaml(_to_store(folder, design, bases)))
        except OSError as error:
            raise RunFolderError(f"{folder}: cannot be written ({error.strerror})") from error
        opened.pop_all()  # all is well: the file stays open
        return file


def _check_folder(folder: Path, design: Design, bases: Mapping[str, Base]) -> None:
    stored = folder / DESIGN
    if not stored.is_file():
        begun = (LOCK, CASES)  # of a study that was killed before it had its design there
        if folder.exists() and not (
            folder.is_dir() and all(path.name in begun for path in folder.iterdir())
        ):
            raise RunFolderError(
                f"{folder}: is not empty and holds no study; choose another folder"
            )
        return
    data = read_yaml(stored)
    stored_bases = {"": data.get("base_config") or {}, **(data.get("base_configs") or {})}
    for path, base in bases.items():
        held = stored_bases.get(path)
        changed = differing_keys(held, to_dict(base.config()), ()) if held is not None else ()
        if changed:
            raise RunFolderError(
                f"{folder}: holds a study of another base config{f' {path}' if path else ''}, "
                f"which differs in {', '.join(changed[:5])}; choose another folder with --out"
            )
    if data.get("variant") != design.variant:
        held, asked = (_variant_in_words(v) for v in (data.get("variant"), design.variant))
        raise RunFolderError(
            f"{folder}: holds {held}, not {asked}; choose another folder with --out"
        )


def _variant_in_words(name: str | None) -> str:
    return "the study itself" if name is None else f"the variant {name!r}"


def _to_store(folder: Path, design: Design, bases: Mapping[str, Base]) -> dict[str, Any]:
    """The design with every default of its bases."""
    resolved = {path: to_dict(base.config()) for path, base in bases.items()}
    data = design.as_dict()
    if design.variant is not None:
        data["variant"] = design.variant
    if "" in resolved:
        inside = not isinstance(design.base, str)
        path = os.path.abspath(bases[""].source)
        data["base"] = resolved[""] if inside else os.path.relpath(path, folder)
        data["base_config"] = resolved.pop("")
    if resolved:
        data["base_configs"] = resolved
    return data


def _processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

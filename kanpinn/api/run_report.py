"""The report of a single run: one page with its numbers, figures, config and origin."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kanpinn.api.inspection import in_words, inspect
from kanpinn.config import dump_yaml
from kanpinn.errors import RunFolderError
from kanpinn.io.page import Picture, Section, write_page
from kanpinn.io.run_folder import RunFolder, strict_json
from kanpinn.io.study_tables import for_people, shown
from kanpinn.solution import Solution
from kanpinn.study import Case, level_rows, too_few_levels

PAGE = "report.html"
# What figures show, by the first word of their names; see kanpinn.plotting.plot_run.
SHOWN = {
    "fields": "Solution, and where they are known reference, error and residual",
    "snapshots": "Solution at several instants",
    "residuals": "Residuals of further equations",
    "parity": "Predicted against measured values",
    "convergence": "Loss, held-out residual and error against steps and time",
    "univariate": "Learned univariate functions of a layer",
}
NUMBERS = ("rel_l2", "linf", "heldout_residual", "loss", "estimated_error", "n_params")


def write_run_report(run: str | Path) -> Path:
    """Write ``report.html`` into a run's folder; no code of the problem is run.

    Figures are those of the run. If it has none they are drawn from the solution alone, without
    reference and residual.

    Raises:
        CheckpointError: if the run has no checkpoint, or it cannot be used.
        RunFolderError: if the page cannot be written.
    """
    run = Path(run)
    path = run / PAGE
    found, folder = inspect(run), RunFolder(run)
    name = f"{found['config'].get('name')}: {run.name}"
    try:
        write_page(path, name, _sections(found, folder))
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def _sections(found: Mapping[str, Any], folder: RunFolder) -> Iterator[Section]:
    summary = folder.read_summary() or {}
    words = in_words(found)
    numbers = {key: shown(summary[key]) for key in NUMBERS if summary.get(key) is not None}
    numbers |= {key: shown(value) for key, value in (summary.get("metrics") or {}).items()}
    origin = ("device", "written by", "commit", "on", "sessions", "last session")
    own = {key: value for key, value in words.items() if key not in origin}
    yield Section("Summary", rows=_pairs({**own, **numbers}))
    yield _levels(found, folder)
    yield Section("Figures", pictures=_pictures(folder))
    yield Section("Config", verbatim=dump_yaml(found["config"]))
    yield Section(
        "Where it comes from",
        rows=_pairs({key: words[key] for key in origin}),
        verbatim=dump_yaml(strict_json(found["provenance"])),
    )


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"quantity": name, "value": value} for name, value in values.items()]


def _levels(found: Mapping[str, Any], folder: RunFolder) -> Section:
    """The levels, with the columns of a study's."""
    stored = {"reweighting": (folder.read_summary() or {}).get("reweighting")}
    summary = {"status": found["status"] or "unfinished", "levels": found["levels"], **stored}
    rows = level_rows(Case({}, {}), summary, folder.read_metrics())
    note = too_few_levels(rows)
    marked = frozenset(number for number, row in enumerate(rows) if row.limited)
    text = ["Levels that the optimiser, not the knots, limits are marked."] if marked else []
    text += [f"{note[0].upper()}{note[1:]}."] if note else []
    return Section("Levels", text, rows=for_people([row.flat() for row in rows]), marked=marked)


def _pictures(folder: RunFolder) -> list[Picture]:
    """The run's figures; those that it has not are drawn for the page alone."""
    paths = list(folder.figures.glob("*.png"))
    if paths:
        return _read(paths)
    from kanpinn.plotting import plot_run

    with tempfile.TemporaryDirectory() as place:
        return _read(plot_run(Solution.load(folder.path), None, Path(place)))


def _read(paths: list[Path]) -> list[Picture]:
    """Figures in the order in which a run draws them."""
    order = list(SHOWN)

    def kind(path: Path) -> str:
        return path.stem.partition("_")[0]

    def place(path: Path) -> tuple[int, str]:
        return order.index(kind(path)) if kind(path) in order else len(order), path.stem

    return [
        Picture(path.read_bytes(), f"{SHOWN.get(kind(path), 'Figure')} ({path.name}).")
        for path in sorted(paths, key=place)
    ]

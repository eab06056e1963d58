"""The report of a study: tables, and a page with the figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kanpinn.api.study_results import REPORT, Study, write_numbers
from kanpinn.errors import RunFolderError
from kanpinn.io.study_tables import write_tables


def write_report(study: Study) -> Path:
    """Write ``report/``: tables as CSV, Markdown and LaTeX, and a page with the figures.

    Beside it goes ``study.h5`` with all numbers.

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
    write_numbers(study)
    write_tables(report, tables(study))
    from kanpinn.plotting.study import write_page

    failures = [(found.case.title, found.error or "no result") for found in study.missing]
    write_page(report / "report.html", study.design.name, study.rows(), study.medians(), failures)


def tables(study: Study) -> dict[str, list[dict[str, Any]]]:
    """All tables, by the names of their files."""
    return {
        "levels": [row.flat() for row in study.rows()],
        "medians": study.medians(),
        "finals": study.finals(),
        "final_medians": study.final_medians(),
    }

"""The report of a study: tables, and a page with the figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kanpinn import __version__
from kanpinn.api.study_analyses import findings
from kanpinn.api.study_results import REPORT, Study, write_numbers
from kanpinn.errors import RunFolderError
from kanpinn.io.page import Picture, Section, write_page
from kanpinn.io.study_tables import for_people, write_tables
from kanpinn.solution import history_columns
from kanpinn.study import too_few_levels

if TYPE_CHECKING:
    from kanpinn.analysis import Finding

Rows = list[dict[str, Any]]


def write_report(study: Study) -> Path:
    """Write ``report/``: tables as CSV, Markdown and LaTeX, and a page with the figures.

    Beside it goes ``study.h5`` with all numbers.

    Raises:
        RunFolderError: if it cannot be written.
    """
    report = study.folder / REPORT
    try:
        report.mkdir(exist_ok=True)
        write_numbers(study)
        found, analysed = tables(study), findings(study)
        rows = {name: one.rows for name, one in analysed.items() if not isinstance(one, str)}
        write_tables(report, {**found, **rows})
        parts = sections(study, found, [_analysis(*pair) for pair in analysed.items()])
        write_page(report / "report.html", study.design.folder, parts)
    except OSError as error:
        raise RunFolderError(f"{report}: cannot be written ({error.strerror})") from error
    return report


def tables(study: Study) -> dict[str, Rows]:
    """All tables, by the names of their files."""
    return {
        "levels": [row.flat() for row in study.rows()],
        "medians": study.medians(),
        "finals": study.finals(),
        "final_medians": study.final_medians(),
    }


def sections(
    study: Study, found: dict[str, Rows], analysed: Sequence[Section] = ()
) -> list[Section]:
    """The parts of the page, in their order."""
    return [
        _ends(study, found["final_medians"]),
        *_figures(study, found),
        *analysed,
        _table("Medians over the seeds, by level", found["medians"], MARKED),
        _table("All cases", found["finals"]),
        _table("All levels", found["levels"]),
        Section(
            "Cases without a result",
            rows=[
                {"case": case.case.title, "why": case.error or "not run, or not to its end"}
                for case in study.missing
            ],
        ),
        _origin(study),
    ]


def _analysis(name: str, found: Finding | str) -> Section:
    """What an analysis has found, with its figures, or why it has not."""
    if isinstance(found, str):
        return Section(f"Analysis {name}", [found])
    from kanpinn.plotting.analysis import draw
    from kanpinn.plotting.style import to_png

    pictures = [Picture(to_png(figure), found.title) for figure in draw(found)]
    return Section(found.title, [found.text], pictures, for_people(found.rows))


MARKED = "Levels that the optimiser, not the knots, limits in some run are marked."


def _ends(study: Study, finals: Rows) -> Section:
    """The table of how the cases ended, and what must be known beside it."""
    text = []
    if study.missing:
        text.append(f"{len(study.missing)} of {len(study.cases)} cases have no result; see below.")
    left_out = sum(row["left_out"] for row in finals)
    if left_out:
        text.append(f"{left_out} runs that diverged are in no median (left_out).")
    note = too_few_levels(study.rows())
    text += [f"{note[0].upper()}{note[1:]}."] if note else []
    table = _table("How the cases ended", finals)
    spread = "Medians over the seeds, with quartiles in brackets; means with standard deviations."
    return Section(table.title, [*text, *([spread] if finals else [])], rows=table.rows)


def _table(title: str, rows: Rows, note: str = "") -> Section:
    """A table for people; rows that are limited by the optimiser stand out."""
    marked = frozenset(number for number, row in enumerate(rows) if row.get("limited"))
    text = [note] if note and marked else []
    return Section(title, text, rows=for_people(rows), marked=marked)


def _figures(study: Study, found: dict[str, Rows]) -> list[Section]:
    from kanpinn.plotting.study import plot_errors, plot_norms, plot_spread
    from kanpinn.plotting.study_histories import History, plot_histories
    from kanpinn.plotting.style import to_png

    rows, medians = study.rows(), found["medians"]
    histories = [
        History(case.case.labels, history_columns(case.lines)) for case in study.cases if case.lines
    ]

    def section(title: str, *drawn: tuple[Any, str]) -> Section:
        pictures = [Picture(to_png(figure), alt) for figure, alt in drawn if figure is not None]
        return Section(title, pictures=pictures)

    return [
        section(
            "Errors",
            (plot_errors(rows, medians), "Error by level against h, degrees of freedom and work."),
            (plot_norms(rows, medians), "Errors in other norms against h."),
        ),
        section(
            "Convergence",
            (plot_histories(histories), "Loss, residual and error against steps and time."),
        ),
        section(
            "Over the seeds",
            (plot_spread(found["finals"], list(study.design.axes)), "Box plots of how runs ended."),
        ),
    ]


def _origin(study: Study) -> Section:
    """How the study was run."""
    summaries = [case.summary for case in study.cases if case.summary is not None]
    text = [f"Written by kanpinn {__version__}."]
    for key, words in {"version": "run by kanpinn", "device": "on", "dtype": "in"}.items():
        text += _said(words, [str(summary.get(key)) for summary in summaries])
    return Section("How it was run", [" ".join(text)], verbatim=study.stored)


def _said(words: str, values: Sequence[str]) -> list[str]:
    unique = list(dict.fromkeys(values))
    return [f"{words.capitalize()} {', '.join(unique)}."] if unique else []

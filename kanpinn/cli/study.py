"""``study`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kanpinn.cli.console import print_table, say, short_path
from kanpinn.cli.options import PATH, as_json, verbose
from kanpinn.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from kanpinn.api import Study, StudyPlan

SHOWN = (
    *("window", "level", "runs", "left_out", "intervals", "parameters", "seconds"),
    *("heldout_residual", "rel_l2", "order", "order_change", "error_estimate"),
)
FINALS = (
    *("runs", "left_out", "limited", "parameters", "seconds", "operations", "loss"),
    *("rel_l2", "fitted_order", "gci"),
)


@click.command(short_help="Run all cases of a study that are missing; report.")
@click.argument("config", type=PATH)
@click.option("--out", type=PATH, metavar="DIR", help="Study folder [runs/studies/<name>].")
@click.option("--variant", metavar="NAME", help="One of the study's variants, such as quick.")
@click.option("--jobs", type=int, default=1, show_default=True, help="Cases at a time.")
@click.option("--dry-run", is_flag=True, help="List the cases; run and write nothing.")
@as_json("the medians")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
@verbose
def study(
    config: Path,
    out: Path | None,
    variant: str | None,
    jobs: int,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run the cases of CONFIG (base, axes, cases) that have no result yet; write the report.

    The same command again goes on where it was stopped. Results go to the study's folder: a run
    folder per case, and report/ with tables (CSV, Markdown, LaTeX) and a page with the figures.
    """
    from kanpinn import api

    if dry_run:
        return _show_plan(api.plan_study(config, out, variant=variant), as_json)
    try:
        tell = None if quiet else say
        found = api.run_study(config, out, variant=variant, jobs=jobs, tell=tell)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        return EXIT_INTERRUPTED
    return _show(found, as_json)


@click.command(short_help="Write the report of a study or of a run anew.")
@click.argument("path", type=PATH, metavar="STUDY|RUN")
@as_json("the medians, or of a run summary.json,")
@verbose
def report(path: Path, as_json: bool) -> int:
    """Write the report of a study, or of a single run, from the results that are there.

    STUDY is the folder of a study or its study.h5, RUN a run folder, which gets a page
    report.html. No code of a problem is run.
    """
    from kanpinn import api
    from kanpinn.io.run_folder import RunFolder, to_json

    run = RunFolder(path)
    if run.checkpoint.is_file():
        page = api.write_run_report(path)
        if as_json:
            click.echo(to_json(run.read_summary() or {}, indent=2))
        else:
            click.echo(f"report: {short_path(page)}")
        return EXIT_OK
    found = api.load_study(path)
    api.write_report(found)
    return _show(found, as_json)


def _show_plan(plan: StudyPlan, as_json: bool) -> int:
    """What would be run, on stdout."""
    from kanpinn.io.run_folder import to_json

    waiting = [case.title for case in plan.waiting]
    if as_json:
        cases = [case.title for case in plan.cases]
        found = {"folder": str(plan.folder), "cases": cases, "waiting": waiting}
        click.echo(to_json({**found, "analyses": plan.analyses}, indent=2))
        return EXIT_OK
    for title in waiting:
        click.echo(title)
    done = len(plan.cases) - len(waiting)
    words = f"{len(waiting)} of {len(plan.cases)} cases to run" if done else f"{len(waiting)} cases"
    more = f", analyses: {', '.join(plan.analyses)}" if plan.analyses else ""
    click.echo(f"{words}{more}; folder {short_path(plan.folder)}")
    return EXIT_OK


def _show(found: Study, as_json: bool) -> int:
    """How the cases ended, and the levels, over the seeds, on stdout."""
    from kanpinn import api
    from kanpinn.io.run_folder import to_json
    from kanpinn.study import too_few_levels

    medians, finals = found.medians(), found.final_medians()
    if as_json:
        result = {"medians": medians, "finals": finals, "missing": len(found.missing)}
        click.echo(to_json(result, indent=2))
    else:
        _print(found, medians, SHOWN)
        _print(found, finals, FINALS)
        note = too_few_levels(found.rows())
        if note:
            click.echo(note)
    failed = api.failures(found)
    for missing in found.missing:
        say(f"no result: {missing.case.title}: {missing.error or 'not run'}")
    for name, why in failed.items():
        say(f"analysis {name}: {why}")
    if not as_json:
        click.echo(f"report: {short_path(found.folder / 'report' / 'report.html')}")
    return EXIT_FAILURE if found.missing or failed else EXIT_OK


def _print(found: Study, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Some columns of a table, those of the problem's own metrics included."""
    from kanpinn.io.study_tables import for_people
    from kanpinn.study.columns import METRICS

    if not rows:
        return
    short = for_people(rows)
    names = [
        name
        for name in short[0]
        if name in found.design.axes or name in columns or name.startswith(METRICS)
    ]
    print_table(names, [[row[name] for name in names] for row in short])
    click.echo()

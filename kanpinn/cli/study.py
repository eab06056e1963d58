"""``study`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kanpinn.cli.console import print_table, say, short_path
from kanpinn.cli.options import PATH, as_json, verbose
from kanpinn.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from kanpinn.api import Study

SHOWN = ("level", "runs", "intervals", "parameters", "seconds", "rel_l2", "order")


@click.command(short_help="Run all cases of a study that are missing; report.")
@click.argument("config", type=PATH)
@click.option("--out", type=PATH, metavar="DIR", help="Study folder [runs/studies/<name>].")
@click.option("--variant", metavar="NAME", help="One of the study's variants, such as quick.")
@click.option("--jobs", type=int, default=1, show_default=True, help="Cases at a time.")
@as_json("the medians")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
@verbose
def study(
    config: Path, out: Path | None, variant: str | None, jobs: int, as_json: bool, quiet: bool
) -> int:
    """Run the cases of CONFIG (base, axes, cases) that have no result yet; write the report.

    The same command again goes on where it was stopped. Results go to the study's folder: a run
    folder per case, and report/ with tables (CSV, Markdown, LaTeX) and a page with the figures.
    """
    from kanpinn import api

    try:
        tell = None if quiet else say
        found = api.run_study(config, out, variant=variant, jobs=jobs, tell=tell)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        return EXIT_INTERRUPTED
    return _show(found, as_json)


@click.command(short_help="Write a study's report anew.")
@click.argument("study", type=PATH, metavar="STUDY")
@as_json("the medians")
@verbose
def report(study: Path, as_json: bool) -> int:
    """Write the report of the folder STUDY from the results that are there."""
    from kanpinn import api

    found = api.load_study(study)
    api.write_report(found)
    return _show(found, as_json)


def _show(found: Study, as_json: bool) -> int:
    """The medians on stdout."""
    from kanpinn.io.run_folder import to_json
    from kanpinn.io.study_tables import shown

    rows = found.medians()
    if as_json:
        click.echo(to_json({"medians": rows, "missing": len(found.missing)}, indent=2))
    elif rows:
        names = [name for name in rows[0] if name in found.design.axes or name in SHOWN]
        print_table(names, [[shown(row.get(name)) for name in names] for row in rows])
        click.echo()
    for missing in found.missing:
        say(f"no result: {missing.case.title}: {missing.error or 'not run'}")
    if not as_json:
        click.echo(f"report: {short_path(found.folder / 'report' / 'report.html')}")
    return EXIT_FAILURE if found.missing else EXIT_OK

"""``inspect`` and ``list``."""

from __future__ import annotations

from pathlib import Path

import click

from kanpinn.cli.console import print_levels, print_pairs, print_table
from kanpinn.cli.options import as_json, run_argument, verbose

KINDS = ("problems", "models", "bases", "optimisers")


@click.command()
@run_argument("RUN_OR_CHECKPOINT")
@as_json("everything, with the resolved config,")
@verbose
def inspect(run: Path, as_json: bool) -> int:
    """Show what a run folder or a checkpoint holds. Runs no code of the problem."""
    from kanpinn import api
    from kanpinn.io.run_folder import to_json

    found = api.inspect(run)
    if as_json:
        click.echo(to_json(found, indent=2))
    else:
        print_levels(found["levels"])
        click.echo()
        print_pairs(api.in_words(found))
    return 0


@click.command(name="list", short_help="List problems, models, bases and optimisers.")
@click.argument("kinds", nargs=-1, type=click.Choice(KINDS), metavar="[KIND]...")
@as_json("names and summaries")
@verbose
def list_names(kinds: tuple[str, ...], as_json: bool) -> int:
    """List what a config can name: problems, models, bases, optimisers (all by default)."""
    from kanpinn import registry
    from kanpinn.io.run_folder import to_json

    sources = {
        "problems": registry.list_problems,
        "models": registry.list_models,
        "bases": registry.list_bases,
        "optimisers": registry.list_optimisers,
    }
    chosen = {kind: sources[kind]() for kind in KINDS if not kinds or kind in kinds}
    if as_json:
        plain = {k: {e.name: e.summary for e in entries} for k, entries in chosen.items()}
        click.echo(to_json(plain, indent=2))
        return 0
    rows = [(kind, e.name, e.summary) for kind, entries in chosen.items() for e in entries]
    print_table(("", "", ""), rows)
    return 0

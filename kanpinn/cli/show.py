"""``inspect`` and ``list``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kanpinn.cli.console import number, print_levels, print_pairs, print_table
from kanpinn.cli.options import as_json, run_argument, verbose

KINDS = ("problems", "models", "bases", "optimisers")


@click.command()
@run_argument("RUN_OR_CHECKPOINT")
@as_json("everything, with the resolved config,")
@verbose
def inspect(run: Path, as_json: bool) -> int:
    """Show what a run folder or a checkpoint holds. Runs no code of the problem."""
    from kanpinn.checkpoint import read_checkpoint, restore_state
    from kanpinn.io.run_folder import CHECKPOINT, RunFolder, to_json
    from kanpinn.solution import Solution

    folder = RunFolder(run if run.is_dir() else run.parent)
    checkpoint = read_checkpoint(run / CHECKPOINT if run.is_dir() else run)
    summary = folder.read_summary() if folder.checkpoint.name == checkpoint.path.name else None
    state = checkpoint.content.training
    inverse = bool(checkpoint.content.system.scalars)
    found: dict[str, Any] = {
        "path": str(checkpoint.path),
        "status": summary["status"] if summary and "status" in summary else None,
        "finished": checkpoint.finished,
        "steps": state.total_steps,
        "wall_s": state.elapsed,
        "problem": checkpoint.problem,
        "levels": [record.as_dict() for record in checkpoint.levels],
        "scalars": Solution(restore_state(checkpoint)).scalars if inverse else {},
        "config": checkpoint.config,
        "provenance": checkpoint.provenance,
    }
    if as_json:
        click.echo(to_json(found, indent=2))
    else:
        _print_checkpoint(found)
    return 0


def _print_checkpoint(found: dict[str, Any]) -> None:
    """Levels, what was solved and how, and where it comes from."""
    config, problem, origin = found["config"], found["problem"], found["provenance"]
    print_levels(found["levels"])
    click.echo()
    parameters = ", ".join(f"{k}={v}" for k, v in (problem.get("parameters") or {}).items())
    model = ", ".join(
        f"{key} {_plain(value)}"
        for key, value in (config.get("model") or {}).items()
        if value is not None
    )
    phases = (config.get("training") or {}).get("phases") or []
    versions = origin.get("versions") or {}
    commit, threads = origin.get("commit"), origin.get("threads")
    pairs = {
        "checkpoint": found["path"],
        "status": found["status"] or ("finished" if found["finished"] else "unfinished"),
        "steps": str(found["steps"]),
        "training": f"{number(found['wall_s'], '.1f')} s",
        "problem": str(problem.get("name")) + (f" ({parameters})" if parameters else ""),
        "fields": f"{', '.join(problem.get('fields', []))} of "
        f"({', '.join(problem.get('coordinates', []))})",
        **{f"scalar {name}": number(value, ".6e") for name, value in found["scalars"].items()},
        "model": model,
        "phases": ", ".join(
            f"{phase.get('optimiser')} {_plain(phase.get('steps'))}" for phase in phases
        ),
        "seed": str(config.get("seed")),
        "device": f"{origin.get('device')}, {origin.get('dtype')}, {_counted(threads, 'thread')}",
        "written by": ", ".join(f"{k} {v}" for k, v in versions.items() if v is not None),
        "commit": f"{commit}{' and changes' if origin.get('commit_modified') else ''}",
        "on": f"{origin.get('host')}, {origin.get('system')}",
        "sessions": str(1 + len(origin.get("earlier") or [])),
        "last session": f"begun {origin.get('utc')}",
    }
    print_pairs(pairs)


def _counted(number: Any, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _plain(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)


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

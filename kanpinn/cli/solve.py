"""``solve`` and ``validate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kanpinn.cli.console import number, print_levels, print_pairs, print_table, say, short_path
from kanpinn.cli.options import PATH, all_overrides, as_json, config_arguments, verbose

if TYPE_CHECKING:
    from kanpinn.api import LevelPlan, PhasePlan, Prepared, SolveResult
    from kanpinn.training import WorkOptions


@click.command(short_help="Train as a config says; keys can be replaced.")
@config_arguments
@click.option("--out", type=PATH, metavar="DIR", help="Run folder [runs/<name>/<UTC time>].")
@click.option("--resume", is_flag=True, help="Continue a run, by default the newest unfinished.")
@click.option("--dry-run", is_flag=True, help="Show what would be done; train and write nothing.")
@as_json("summary.json")
@click.option("-q", "--quiet", is_flag=True, help="No log and no progress on stderr.")
@verbose
def solve(
    config: Path,
    overrides: tuple[str, ...],
    device: str | None,
    dtype: str | None,
    threads: str | None,
    seed: str | None,
    out: Path | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Train as CONFIG says, with some of its keys replaced: model.width=8 training.levels=4.

    The results go to a run folder and, in brief, to stdout. Ctrl-C stops after the current step
    with a checkpoint; --resume then goes on exactly where the run stopped.
    """
    if dry_run and resume:
        raise click.UsageError("--dry-run and --resume exclude each other")
    changes = all_overrides(overrides, device=device, dtype=dtype, threads=threads, seed=seed)
    from kanpinn import api
    from kanpinn.io.progress import display_for

    if dry_run:
        show_plan(api.prepare(config, changes), as_json)
        return 0
    result = api.solve(
        config,
        changes,
        out,
        resume=resume,
        display=display_for(sys.stderr, quiet),
        on_interrupt="return",
    )
    show_result(result, as_json)
    if result.status == "interrupted" and not quiet:
        say(f"interrupted; to continue: add --resume --out {short_path(result.folder)}")
    return result.exit_code


@click.command()
@config_arguments
@verbose
def validate(
    config: Path,
    overrides: tuple[str, ...],
    device: str | None,
    dtype: str | None,
    threads: str | None,
    seed: str | None,
) -> int:
    """Check CONFIG in full: keys, problem, model, levels. Train and write nothing."""
    from kanpinn import api

    changes = all_overrides(overrides, device=device, dtype=dtype, threads=threads, seed=seed)
    prepared = api.prepare(config, changes)
    levels = prepared.run.hierarchy.levels
    click.echo(
        f"{config}: OK ({prepared.config.problem.name}; {len(levels)} "
        f"level{'s' if len(levels) > 1 else ''}, {'at most ' if levels[-1].at_most else ''}"
        f"{levels[-1].n_parameters} parameters on the "
        f"finest; device {prepared.run.options.device})"
    )
    _print_choices(api.phase_plans(prepared, api.plan(prepared)))
    return 0


def show_result(result: SolveResult, as_json: bool) -> None:
    """The summary on stdout."""
    from kanpinn.io.run_folder import to_json

    summary = result.summary
    if as_json:
        click.echo(to_json(summary, indent=2))
        return
    scalars = summary.get("scalars") or {}  # summaries written before had none
    print_levels(summary["levels"])
    click.echo()
    pairs = {
        "status": str(summary["status"]),
        "problem": str(summary["problem"]),
        "relative L2 error": number(summary["rel_l2"]),
        "largest error": number(summary["linf"]),
        "held-out residual": number(summary["heldout_residual"]),
        "loss": number(summary["loss"]),
        **{name: number(value, ".6e") for name, value in summary["metrics"].items()},
        **{f"scalar {name}": number(value, ".6e") for name, value in scalars.items()},
        "parameters": str(summary["n_params"]),
        "training": f"{summary['wall_s']:.1f} s on {summary['device']}, {summary['dtype']}, "
        f"seed {summary['seed']}",
        "run folder": short_path(result.folder),
    }
    print_pairs({name: value for name, value in pairs.items() if value != "-"})


def show_plan(prepared: Prepared, as_json: bool) -> None:
    """Resolved config, levels and memory on stdout."""
    from kanpinn.api import phase_plans, plan
    from kanpinn.config import dump_yaml, to_dict
    from kanpinn.io.run_folder import to_json

    levels, config = plan(prepared), to_dict(prepared.config)
    phases = phase_plans(prepared, levels)
    memory = max(level.memory_mib for level in levels)
    if as_json:
        found: dict[str, Any] = {
            "config": config,
            "device": str(prepared.run.options.device),
            "phases": [phase.as_dict() for phase in phases],
            "levels": [level.as_dict() for level in levels],
            "memory_mib": memory,
        }
        click.echo(to_json(found, indent=2))
        return
    click.echo(dump_yaml(config))
    _print_plan(levels, prepared.run.options.training.work)
    click.echo()
    _print_choices(phases)
    click.echo(
        f"memory for training: about {memory:.0f} MiB on {prepared.run.options.device}, beside the "
        "program itself; nothing was trained or written"
    )


def _print_choices(phases: list[PhasePlan]) -> None:
    """What became of phases with ``optimiser: auto``, a line each."""
    for phase in phases:
        if phase.reason:
            click.echo(phase.choice())


def _print_plan(levels: list[LevelPlan], work: WorkOptions | None) -> None:
    """A line per level, with types where they differ.

    With a budget of work, steps are the most that a level may take.
    """
    spent = (work.of,) if work else ()
    types = len({level.dtype for level in levels}) > 1
    kind = ("type",) if types else ()
    headers = ("level", "intervals", "params", "points", *kind, "steps", *spent, "MiB")
    rows = [
        (
            str(level.level),
            "/".join(map(str, level.n_intervals)) or "-",
            f"<= {level.n_params}" if level.at_most else str(level.n_params),
            str(sum(level.n_points.values())),
            *((level.dtype,) if types else ()),
            ("<= " if level.work else "")
            + (f"{level.steps} x {level.starts}" if level.starts > 1 else str(level.steps)),
            *((f"{level.work:.3g}",) if level.work is not None else ()),
            f"{level.memory_mib:.0f}",
            ", ".join(f"{name} {count}" for name, count in level.n_points.items()),
        )
        for level in levels
    ]
    print_table((*headers, "points by block"), rows)

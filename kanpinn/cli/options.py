"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

# Whether a path exists, and what is in it, is checked where it is read: with one wording for the
# command line and for Python.
PATH = click.Path(path_type=Path)
EXISTING = click.Path(path_type=Path, exists=True)  # a missing one is a mistake of usage: exit 2


def _holding_a_run(ctx: click.Context, parameter: click.Parameter, run: Path) -> Path:
    """Refuse a folder without checkpoint; if it is one of runs, name the newest."""
    from kanpinn.io.run_folder import CHECKPOINT

    if run.is_file() or (run / CHECKPOINT).exists():
        return run
    inside = [path for depth in ("*", "*/*") for path in run.glob(f"{depth}/{CHECKPOINT}")]
    hint = "a run folder or a checkpoint is needed"
    if inside:
        newest = max(inside, key=lambda path: path.stat().st_mtime)
        hint = f"of the runs in it the newest is {newest.parent}"
    raise click.UsageError(f"{run}: holds no {CHECKPOINT}; {hint}", ctx)


def run_argument(metavar: str | None = None) -> Callable[[Command], Command]:
    """The argument ``RUN``: a run folder or a checkpoint."""
    return click.argument("run", type=EXISTING, metavar=metavar, callback=_holding_a_run)


def _be_verbose(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    if value and ctx.obj is not None:
        ctx.obj.verbose = True
    return value


def verbose(command: Command) -> Command:
    """``-v``: errors with their traceback."""
    option = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_be_verbose,
        help="Show the traceback of an error.",
    )
    return option(command)


def as_json(what: str) -> Callable[[Command], Command]:
    """``--json``: one JSON object on stdout."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what} as one JSON object.")


def config_arguments(command: Command) -> Command:
    """``CONFIG [KEY=VALUE ...]`` and the options that stand for keys of the config."""
    decorators = [
        click.argument("config", type=PATH),
        click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]..."),
        click.option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:INDEX."),
        click.option("--dtype", metavar="TYPE", help="float64 or float32."),
        click.option("--threads", metavar="N", help="Threads on the CPU."),
        click.option("--seed", metavar="N", help="Seed of everything that is random."),
    ]
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def all_overrides(overrides: Sequence[str], **options: str | None) -> list[str]:
    """Overrides and options as one list; what was given as an option counts most."""
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    return [*overrides, *given]

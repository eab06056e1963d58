"""The group of all commands: finds them when they are needed, and turns errors into exit codes."""

from __future__ import annotations

import difflib
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from kanpinn.errors import EXIT_FAILURE, EXIT_INTERRUPTED, KanpinnError

# Modules and functions of the commands, imported one at a time: `kanpinn solve` reads no other.
COMMANDS = {
    "solve": "kanpinn.cli.solve:solve",
    "validate": "kanpinn.cli.solve:validate",
    "study": "kanpinn.cli.study:study",
    "evaluate": "kanpinn.cli.evaluate:evaluate",
    "plot": "kanpinn.cli.evaluate:plot",
    "inspect": "kanpinn.cli.show:inspect",
    "report": "kanpinn.cli.study:report",
    "list": "kanpinn.cli.show:list_names",
}

# Objects between garbage collections: with Python's 700, a sixth of the time of a short command
# goes into looking through what imports leave behind.
COLLECT_EVERY = 1_000_000

_STANDARD = Path(os.__file__).resolve().parent  # of Python's own library


@dataclass
class Session:
    """What one call of the program shares between its commands."""

    verbose: bool = False


class CommandGroup(click.Group):
    """A group that imports a command when it is asked for.

    A user's mistake is one line on stderr and the error's exit code; ``-v`` shows the traceback.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of a user's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest name for one that there is not."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"{error.message}{hint}", error.ctx) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; standing alone, exit with its code."""
        name = prog_name or "kanpinn"
        if not standalone_mode:
            return super().main(args, name, complete_var, standalone_mode=False, **extra)
        session = Session()
        extra.setdefault("obj", session)
        gc.set_threshold(COLLECT_EVERY)
        try:
            code = super().main(args, name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()  # a closed pipe shows here, and not when the interpreter ends
        except Exception as error:
            code = report(error, session.verbose)
        except SystemExit as error:
            raised = traceback.extract_tb(error.__traceback__)[-1].filename
            if Path(raised).parent.name == "click":  # its own, for a closed pipe
                raise
            code = report(error, session.verbose)  # exit() in a user's code
        sys.exit(code if isinstance(code, int) else 0)


def report(error: BaseException, verbose: bool) -> int:
    """Print one line that says what is wrong; the exit code."""
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has seen enough; what is left must not fail again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    if verbose and not isinstance(error, click.ClickException | click.Abort):
        traceback.print_exception(error)
    match error:
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.format_message(), err=True)
            return error.exit_code
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "kanpinn"
            _complain(f"{error.format_message()} (see {path} --help)")
            return error.exit_code
        case click.ClickException():
            _complain(error.format_message())
            return error.exit_code
        case click.Abort():
            _complain("stopped at once; what was saved before is whole")
            return EXIT_INTERRUPTED
        case KanpinnError():
            _complain(str(error))
            return error.exit_code
        case OSError():
            _complain(str(error))
        case MemoryError():
            _complain(f"out of memory ({error})" if str(error) else "out of memory")
        case _:
            _complain(f"{type(error).__name__}: {' '.join(str(error).split())} {_blame(error)}")
    return EXIT_FAILURE


def _blame(error: BaseException) -> str:
    """Whose an unexpected error is: a user's file that it came through, or else kanpinn's."""
    package = Path(__file__).resolve().parent.parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        theirs = {"site-packages", "dist-packages"}.isdisjoint(path.parts) and path.is_file()
        if theirs and not {package, _STANDARD} & set(path.parents):
            return f"({path}:{frame.lineno}; -v shows how it came there)"
    return "(this is a bug in kanpinn; -v shows where)"


def _complain(text: str) -> None:
    """One line for each thing that is wrong."""
    for line in filter(None, map(str.strip, text.splitlines())):
        click.echo(f"error: {line}", err=True)


@click.command(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kanpinn", prog_name="kanpinn")
def main() -> None:
    """Solve PDEs and fit functions with multilevel spline networks.

    Start with `kanpinn solve configs/poisson.yaml`. Results go to stdout, log and progress to
    stderr. Exit codes: 0 done, 1 failure at run time, 2 usage or config error, 3 diverged,
    4 budget spent before the target was met, 130 interrupted with a checkpoint.
    """

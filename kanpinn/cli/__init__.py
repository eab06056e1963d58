"""The command line: ``kanpinn``. Wiring only; nothing heavy is imported before a command runs."""

from kanpinn.cli.group import main

__all__ = ["main"]

"""Every package can be the first one imported, and importing costs no more than it must."""

from __future__ import annotations

import subprocess
import sys

PACKAGES = (
    *(
        "analysis",
        "ansatz",
        "api",
        "checkpoint",
        "cli",
        "config",
        "expressions",
        "geometry",
        "jets",
    ),
    *("kernels", "models", "optimisers", "plotting", "plotting.analysis", "plotting.study"),
    *("problem", "registry", "sampling", "solution", "splines", "study", "training"),
)


def imported(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# One interpreter for all: torch and SciPy are loaded once, kanpinn anew for every package.
EACH_FIRST = """
import importlib, sys
import matplotlib.pyplot, scipy.stats, torch
for name in sys.argv[1:]:
    for module in [m for m in sys.modules if m.partition(".")[0] == "kanpinn"]:
        del sys.modules[module]
    try:
        importlib.import_module(f"kanpinn.{name}")
    except ImportError as error:
        print(f"{name}: {error}")
"""


def test_any_package_can_come_first() -> None:
    assert imported(EACH_FIRST, *PACKAGES) == ""


def test_commands_do_not_wait_for_scipy() -> None:
    code = "import sys, kanpinn.api; print(sum(m.startswith('scipy.') for m in sys.modules))"
    assert imported(code) == "0"

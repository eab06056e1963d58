"""Every package can be the first one imported, and importing costs no more than it must."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


def imported(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", PACKAGES)
def test_any_package_can_come_first(name: str) -> None:
    imported(f"import kanpinn.{name}")


def test_commands_do_not_wait_for_scipy() -> None:
    code = "import sys, kanpinn.api; print(sum(m.startswith('scipy.') for m in sys.modules))"
    assert imported(code) == "0"

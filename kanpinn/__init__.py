"""kanpinn: physics-informed networks and regression with multilevel spline networks.

The public interface. Heavy modules are imported on first use, so that ``import kanpinn`` and
``kanpinn --help`` stay fast.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kanpinn.api import SolveResult, load, solve
    from kanpinn.conditions import (
        Dirichlet,
        FluxJump,
        Initial,
        Jump,
        Mean,
        Neumann,
        Periodic,
        Robin,
    )
    from kanpinn.errors import DataError, KanpinnError, ProblemError
    from kanpinn.expressions import Expression
    from kanpinn.geometry import Box, Domain, FixedPoints, Points, Region
    from kanpinn.io.scaling import AffineScaling, split
    from kanpinn.io.tables import read_table
    from kanpinn.models import KAN, MLP, Abs, Asinh, Formula, MultichannelMLP, Step
    from kanpinn.problem import Problem, Scaling
    from kanpinn.residuals import ResidualBlock, Site
    from kanpinn.sampling import stream
    from kanpinn.solution import Solution

try:
    __version__ = version("kanpinn")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

_HOMES = {
    "kanpinn.api": ("SolveResult", "Study", "load", "load_study", "run_study", "solve"),
    "kanpinn.conditions": (
        "Dirichlet",
        "FluxJump",
        "Initial",
        "Jump",
        "Mean",
        "Neumann",
        "Periodic",
        "Robin",
    ),
    "kanpinn.errors": ("DataError", "KanpinnError", "ProblemError"),
    "kanpinn.expressions": ("Expression",),
    "kanpinn.geometry": ("Box", "Domain", "FixedPoints", "Points", "Region"),
    "kanpinn.io.scaling": ("AffineScaling", "split"),
    "kanpinn.io.tables": ("read_table",),
    "kanpinn.models": ("KAN", "MLP", "Abs", "Asinh", "Formula", "MultichannelMLP", "Step"),
    "kanpinn.problem": ("Problem", "Scaling"),
    "kanpinn.residuals": ("ResidualBlock", "Site"),
    "kanpinn.sampling": ("stream",),
    "kanpinn.solution": ("Solution",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "KAN",
    "MLP",
    "Abs",
    "AffineScaling",
    "Asinh",
    "Box",
    "DataError",
    "Dirichlet",
    "Domain",
    "Expression",
    "FixedPoints",
    "FluxJump",
    "Formula",
    "Initial",
    "Jump",
    "KanpinnError",
    "Mean",
    "MultichannelMLP",
    "Neumann",
    "Periodic",
    "Points",
    "Problem",
    "ProblemError",
    "Region",
    "ResidualBlock",
    "Robin",
    "Scaling",
    "Site",
    "Solution",
    "SolveResult",
    "Step",
    "Study",
    "__version__",
    "load",
    "load_study",
    "read_table",
    "run_study",
    "solve",
    "split",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'kanpinn' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

"""A domain that is no box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kanpinn.errors import ProblemError
from kanpinn.geometry import Domain


class Disc(Domain):
    """The unit disc."""

    names, lower, upper, time = ("x", "y"), (-1.0, -1.0), (1.0, 1.0), None

    def contains(self, x: Tensor, tolerance: float | None = None) -> Tensor:
        return x.norm(dim=1) <= 1

    def outside(self, site: Sequence[float]) -> str:
        return "outside"

    def region_names(self) -> tuple[str, ...]:
        return ()

    def region(self, name: str) -> Any:
        raise ProblemError(name)

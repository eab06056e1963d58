"""A region covered more densely around a plane, where a solution is known to be steep."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from kanpinn.errors import ProblemError
from kanpinn.geometry.box import Interior
from kanpinn.geometry.points import Points
from kanpinn.geometry.regions import Region


@final
class Graded(Region):
    """The inside of a box, equally spread in ``asinh((x - at)/scale)`` instead of in ``x``.

    The density of points falls like ``1 / sqrt(scale^2 + (x - at)^2)``.

    Args:
        region: the inside of a box.
        axis: which coordinate is graded.
        scale: width of the dense part, in the coordinate's unit.
        at: where it is centred.

    Raises:
        ProblemError: for another region, or an axis it does not have.
    """

    def __init__(self, region: Region, axis: int, scale: float, at: float = 0.0) -> None:
        if not isinstance(region, Interior):
            raise ProblemError(f"grading: {region.name!r} is graded, allowed: a box's inside")
        if not 0 <= axis < region.unit_dimension:
            raise ProblemError(f"grading: axis {axis}, allowed: 0 to {region.unit_dimension - 1}")
        self.region, self.axis, self.scale, self.at = region, axis, scale, at
        self.name, self.kind = region.name, region.kind
        self.unit_dimension, self.measure = region.unit_dimension, region.measure
        self._ends = region.box.lower[axis], region.box.upper[axis]

    def density(self, x: Tensor) -> Tensor:
        """Density (n,) of the points at x (n, d), relative to an equal spread."""
        low, high = self._ends
        first, last = (math.asinh((end - self.at) / self.scale) for end in (low, high))
        distance = torch.sqrt(self.scale**2 + (x[:, self.axis] - self.at) ** 2)
        return (high - low) / ((last - first) * distance)

    def place(self, unit: Tensor) -> tuple[Points, ...]:
        """Map unit (n, d) to points (n, d), the graded coordinate by ``sinh``."""
        low, high = self._ends
        first, last = (math.asinh((end - self.at) / self.scale) for end in (low, high))
        stretched = first + (last - first) * unit[:, self.axis]
        x = self.at + self.scale * torch.sinh(stretched)
        warped = unit.clone()
        warped[:, self.axis] = ((x - low) / (high - low)).clamp(0.0, 1.0)
        return self.region.place(warped)

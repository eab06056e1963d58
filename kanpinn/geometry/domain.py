"""The interface of a domain: its coordinates, its regions, and the check of a user's points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kanpinn.errors import DomainError
from kanpinn.geometry.regions import Region


class Domain(ABC):
    """A set in d coordinates (time, if any, the last of them), and the regions it offers.

    Attributes:
        names: Names of the coordinates.
        lower, upper: Corners of the bounding box.
        time: Name of the time coordinate, or None.
    """

    names: tuple[str, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    time: str | None

    @property
    def dimension(self) -> int:
        """Number of coordinates d, time included."""
        return len(self.names)

    @property
    def spatial_axes(self) -> tuple[int, ...]:
        """Indices of the coordinates that are not time."""
        return tuple(axis for axis, name in enumerate(self.names) if name != self.time)

    @abstractmethod
    def contains(self, x: Tensor, tolerance: float | None = None) -> Tensor:
        """Return the mask (n,) of the rows of x (n, d) that lie in the closed domain.

        `tolerance` is an absolute distance; None allows for the rounding of x's own dtype.
        """

    @abstractmethod
    def outside(self, site: Sequence[float]) -> str:
        """Say which coordinate of a site outside leaves the domain, and what is allowed."""

    @abstractmethod
    def region_names(self) -> tuple[str, ...]:
        """Names that `region` knows."""

    @abstractmethod
    def region(self, name: str) -> Region:
        """Return the region of that name.

        Raises:
            ProblemError: If there is no such region; the message offers the nearest name.
        """

    def interior(self) -> Region:
        """Return the inside, where the equation holds."""
        return self.region("interior")

    def boundary(self) -> Region:
        """Return all spatial faces, covered in proportion to their areas."""
        return self.region("boundary")

    def check(self, x: Tensor | NDArray[Any]) -> None:
        """Check that x (n, d) holds points of the domain.

        Raises:
            DomainError: For another dtype than float32 or float64, another shape, NaN or infinite
                coordinates, and points outside, naming the first such row, its coordinate and the
                allowed range.
        """
        sites = self._as_sites(x)
        wrong = ~torch.isfinite(sites)
        rows = wrong.any(dim=1).nonzero().flatten()
        if len(rows):
            row = int(rows[0])
            axis = int(wrong[row].nonzero()[0])
            raise DomainError(
                f"points: row {row}: {self.names[axis]} = {float(sites[row, axis])}, "
                f"allowed: finite numbers{_and_more(len(rows) - 1)}"
            )
        rows = (~self.contains(sites)).nonzero().flatten()
        if len(rows):
            row = int(rows[0])
            reason = self.outside([float(value) for value in sites[row]])
            raise DomainError(f"points: row {row}: {reason}{_and_more(len(rows) - 1)}")

    def _as_sites(self, x: Tensor | NDArray[Any]) -> Tensor:
        """Return x (n, d) as a tensor after checking its type and shape."""
        if not isinstance(x, Tensor | np.ndarray):
            raise DomainError(
                f"points: found {type(x).__name__}, allowed: a tensor or a NumPy array"
            )
        if str(x.dtype).removeprefix("torch.") not in ("float32", "float64"):
            raise DomainError(f"points: found dtype {x.dtype}, allowed: float32, float64")
        if x.ndim != 2 or x.shape[1] != self.dimension:
            raise DomainError(
                f"points: found shape {tuple(x.shape)}, allowed: (n, {self.dimension}), "
                f"one column for each of {', '.join(self.names)}"
            )
        if isinstance(x, Tensor):
            return x.detach()
        # Torch can share the memory of writable arrays with positive strides only.
        shareable = x.flags.writeable and min(x.strides) >= 0
        return torch.from_numpy(x if shareable else x.copy())

    def evaluation_grid(
        self, shape: Sequence[int] | None = None, total: int = 40_401
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Return a tensor grid over the bounding box, both ends included.

        Without `shape` it has round(total^(1/d)) points in every coordinate, but at most 10,001:
        10,001 in one dimension, 201 x 201 in two, 34 x 34 x 34 in three. Where the domain is not
        its bounding box, `contains` tells which of them lie in it.

        Returns:
            The points (prod(shape), d) in float64, the last coordinate varying fastest, and the
            shape.

        Raises:
            DomainError: If `shape` is not d counts of at least 2.
        """
        if shape is None:
            shape = self.dimension * (max(2, min(round(total ** (1 / self.dimension)), 10_001)),)
        counts = tuple(int(count) for count in shape)
        if len(counts) != self.dimension or min(counts) < 2:
            raise DomainError(
                f"evaluation grid: found shape {counts}, allowed: {self.dimension} counts of at "
                f"least 2, one for each of {', '.join(self.names)}"
            )
        axes = [
            torch.from_numpy(np.linspace(lower, upper, count))
            for lower, upper, count in zip(self.lower, self.upper, counts, strict=True)
        ]
        grid = torch.meshgrid(*axes, indexing="ij")
        return torch.stack([column.reshape(-1) for column in grid], dim=1), counts


def _and_more(count: int) -> str:
    return f" ({count} more such row{'s' if count > 1 else ''})" if count else ""

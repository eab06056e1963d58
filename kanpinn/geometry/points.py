"""Sites with what belongs to them: normals, sides of interfaces, measured values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kanpinn.errors import DomainError


@dataclass(frozen=True, eq=False)
class Points:
    """Sites where residuals are evaluated.

    Everything given may be a NumPy array instead of a tensor, and is a tensor afterwards (a copy).

    Args:
        x: (n, d) coordinates, time last.
        normal: (n, d) outward unit normals on a boundary; on an interface the unit normal from the
            minus to the plus side; None where there is none.
        side: (n,) of -1, 0, +1: the side of an interface from which the point is approached
            (one-sided limits of jumping coefficients); 0 away from interfaces. None means all 0.
        data: Further columns (n,), such as measured values.

    Raises:
        DomainError: If the shapes do not match, or something is neither tensor nor array.
    """

    x: Tensor
    normal: Tensor | None = None
    side: Tensor | None = None
    data: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make tensors of arrays, and check the shapes."""
        for name in ("x", "normal", "side"):
            if name == "x" or getattr(self, name) is not None:
                object.__setattr__(self, name, _as_tensor(name, getattr(self, name)))
        columns = {name: _as_tensor(f"data column {name!r}", c) for name, c in self.data.items()}
        object.__setattr__(self, "data", columns)
        if self.x.ndim != 2 or not self.x.is_floating_point():
            raise DomainError(
                "points: x must hold floating-point numbers and have the shape (n, d), "
                f"found {self.x.dtype} of shape {tuple(self.x.shape)}"
            )
        n = len(self.x)
        _expect("normal", self.normal, tuple(self.x.shape))
        _expect("side", self.side, (n,))
        for name, column in self.data.items():
            _expect(f"data column {name!r}", column, (n,))

    def __len__(self) -> int:
        """Return the number of points n."""
        return len(self.x)

    @property
    def dimension(self) -> int:
        """Number of coordinates d."""
        return int(self.x.shape[1])

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Points:
        """Return the points in another dtype or on another device.

        Integer columns (sides, class labels) keep their dtype.
        """

        def move(value: Tensor) -> Tensor:
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        return Points(
            move(self.x),
            None if self.normal is None else move(self.normal),
            None if self.side is None else move(self.side),
            {name: move(column) for name, column in self.data.items()},
        )

    def rows(self, index: slice | Tensor) -> Points:
        """Return the rows selected by a slice, by indices (k,) or by a mask (n,)."""
        return Points(
            self.x[index],
            None if self.normal is None else self.normal[index],
            None if self.side is None else self.side[index],
            {name: column[index] for name, column in self.data.items()},
        )

    @staticmethod
    def cat(pieces: Sequence[Points]) -> Points:
        """Join points end to end; a missing side counts as 0.

        Raises:
            DomainError: If there is nothing to join, if only some of the pieces have normals, or if
                their data columns or dimensions differ.
        """
        if not pieces:
            raise DomainError("points: nothing to join, allowed: at least one piece")
        dimensions = sorted({piece.dimension for piece in pieces})
        if len(dimensions) > 1:
            raise DomainError(f"points: pieces of dimensions {dimensions}, allowed: one dimension")
        if len({frozenset(piece.data) for piece in pieces}) > 1:
            found = "; ".join(str(sorted(piece.data)) for piece in pieces)
            raise DomainError(f"points: data columns {found}, allowed: the same in all pieces")
        normals = [piece.normal for piece in pieces if piece.normal is not None]
        if normals and len(normals) < len(pieces):
            raise DomainError(
                f"points: {len(normals)} of {len(pieces)} pieces have normals, allowed: all or none"
            )
        one_sided = any(piece.side is not None for piece in pieces)
        return Points(
            torch.cat([piece.x for piece in pieces]),
            torch.cat(normals) if normals else None,
            torch.cat([_side(piece) for piece in pieces]) if one_sided else None,
            {name: torch.cat([piece.data[name] for piece in pieces]) for name in pieces[0].data},
        )


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.tensor(np.ascontiguousarray(value))
    found = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    raise DomainError(f"points: {name}: found {found}, allowed: a tensor or a NumPy array")


def _expect(name: str, value: Tensor | None, shape: tuple[int, ...]) -> None:
    if value is not None and tuple(value.shape) != shape:
        raise DomainError(f"points: {name} has shape {tuple(value.shape)}, allowed: {shape}")


def _side(points: Points) -> Tensor:
    if points.side is not None:
        return points.side
    return torch.zeros(len(points), dtype=torch.int8, device=points.x.device)

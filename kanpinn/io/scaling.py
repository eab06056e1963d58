"""Splits of the user's rows, and affine scalings of their columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kanpinn.errors import DataError
from kanpinn.sampling import stream

Floats = NDArray[np.float64]
MIN_ROWS = 2  # that a spread can be found from


def split(
    n: int, fractions: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the training, validation and test rows: disjoint, sorted, none of them empty.

    Validation and test take their fractions rounded to whole rows, training the rest. The shuffle
    sorts raw PCG64 output, which numpy keeps the same between versions, of a stream of its own: the
    user's columns may well be the output of ``default_rng(seed)``, and would be split in order.

    Raises:
        DataError: fractions that are not positive or do not sum to 1, a negative seed, or too few
            rows.
    """
    if len(fractions) != 3 or not all(0 < f < 1 for f in fractions):
        raise DataError(f"split {tuple(fractions)}: three fractions between 0 and 1 are needed")
    if abs(sum(fractions) - 1) > 1e-9:
        raise DataError(f"split {tuple(fractions)}: the fractions sum to {sum(fractions):g}, not 1")
    if seed < 0:
        raise DataError(f"split: the seed is {seed}; it must not be negative")
    n_validation, n_test = round(n * fractions[1]), round(n * fractions[2])
    n_train = n - n_validation - n_test
    sizes = {"training": n_train, "validation": n_validation, "test": n_test}
    for name, size in sizes.items():
        if size < 1:
            raise DataError(
                f"split {tuple(fractions)}: {n} rows leave none for {name}; more rows are needed"
            )
    order = np.argsort(np.random.PCG64(stream(seed, "split")).random_raw(n), kind="stable")
    parts = np.split(order, [n_train, n_train + n_validation])
    train, validation, test = (np.sort(part).astype(np.int64) for part in parts)
    return train, validation, test


@dataclass(frozen=True, eq=False)
class AffineScaling:
    """``scaled = (values - shift) / scale``, column by column.

    Attributes:
        shift: ``(k,)``, in the user's units.
        scale: ``(k,)``, in the user's units per unit of scaled value; not zero.

    Raises:
        DataError: shapes that differ, or numbers that are not finite or zero scales.
    """

    shift: Floats
    scale: Floats

    def __post_init__(self) -> None:
        for name in ("shift", "scale"):
            values = np.array(getattr(self, name), dtype=np.float64)  # a copy that nobody changes
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if self.shift.ndim != 1 or self.shift.shape != self.scale.shape:
            raise DataError(
                f"scaling: shift {self.shift.shape} and scale {self.scale.shape} must both be (k,)"
            )
        if not (np.isfinite(self.shift).all() and np.isfinite(self.scale).all()):
            raise DataError("scaling: shift and scale must be finite")
        if not self.scale.all():
            raise DataError("scaling: scale must not be zero")

    @classmethod
    def fit_minmax(
        cls,
        values: ArrayLike,
        lower: ArrayLike = -1.0,
        upper: ArrayLike = 1.0,
        names: Sequence[str] = (),
    ) -> AffineScaling:
        """Map each column of ``values (n, k)`` onto ``[lower, upper]``, never past it by round-off.

        Args:
            values: finite numbers.
            lower: scaled value of each column's minimum, a number or ``(k,)``.
            upper: scaled value of its maximum.
            names: column names for error messages.

        Raises:
            DataError: a constant or non-finite column, or ``lower >= upper``.
        """
        columns = _fit_values(values, names)
        low, high = columns.min(axis=0), columns.max(axis=0)
        lower, upper = np.broadcast_arrays(
            np.asarray(lower, np.float64), np.asarray(upper, np.float64), low
        )[:2]
        if not (lower < upper).all():
            raise DataError(f"scaling: lower {lower} must be less than upper {upper}")
        scale = high / (upper - lower) - low / (upper - lower)
        middle, centre = low / 2 + high / 2, (lower + upper) / 2
        shift = middle - centre * scale
        with np.errstate(all="ignore"):  # scales that under- or overflow are refused below
            for k in range(53):  # widen by round-off only, until both ends lie inside
                inside = ((low - shift) / scale >= lower) & ((high - shift) / scale <= upper)
                if inside.all():
                    break
                scale = np.where(inside, scale, scale * (1 + np.finfo(np.float64).eps * 2.0**k))
                shift = middle - centre * scale
        return cls(shift, scale)

    @classmethod
    def fit_standard(cls, values: ArrayLike, names: Sequence[str] = ()) -> AffineScaling:
        """Give each column of ``values (n, k)`` mean 0 and standard deviation 1 (divisor ``n``).

        Raises:
            DataError: a constant or non-finite column.
        """
        columns = _fit_values(values, names)
        with np.errstate(all="ignore"):  # deviations that under- or overflow are refused below
            return cls(columns.mean(axis=0), columns.std(axis=0))

    def apply(self, values: ArrayLike) -> Floats:
        """Scaled values ``(..., k)`` of ``values (..., k)``."""
        return np.asarray((self._checked(values) - self.shift) / self.scale)

    def invert(self, scaled: ArrayLike) -> Floats:
        """Values ``(..., k)`` in the user's units of ``scaled (..., k)``."""
        return np.asarray(self._checked(scaled) * self.scale + self.shift)

    def _checked(self, values: ArrayLike) -> Floats:
        checked = np.asarray(values, dtype=np.float64)
        if checked.ndim == 0 or checked.shape[-1] != len(self.shift):
            raise DataError(f"scaling: values {checked.shape} must have {len(self.shift)} columns")
        return checked


def _fit_values(values: ArrayLike, names: Sequence[str]) -> Floats:
    columns = np.asarray(values, dtype=np.float64)
    if columns.ndim != 2 or len(columns) < MIN_ROWS:
        raise DataError(f"scaling: values {columns.shape} must be (n, k) with n >= {MIN_ROWS}")
    for k, column in enumerate(columns.T):
        name = repr(names[k]) if k < len(names) else str(k)
        if not np.isfinite(column).all():
            raise DataError(f"scaling: column {name} holds values that are not finite")
        if column.min() == column.max():
            raise DataError(f"scaling: column {name} is constant and cannot be scaled")
    return columns

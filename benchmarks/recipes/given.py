"""What a recipe is given: the points it is measured on, its data, and a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MEASURES = ("rel_l2", "mse", "rmse")


@dataclass(frozen=True)
class Given:
    """Points and outputs; the same for every contestant.

    Attributes:
        measure: ``rel_l2``, ``mse`` or ``rmse``.
        test_x: points of the errors, ``(n, d)``.
        test_y: what is right there, ``(n,)``.
        train_x: points of the data, ``(m, d)``, empty for a differential equation.
        train_y: the data there, ``(m,)``.
        seed: of networks and points.
    """

    measure: str
    test_x: Floats
    test_y: Floats
    train_x: Floats
    train_y: Floats
    seed: int = 1

    def error(self, predict: Callable[[Floats], Floats]) -> float:
        """Error of a function that maps points ``(n, d)`` to ``n`` values."""
        predicted = np.asarray(predict(self.test_x), dtype=np.float64).reshape(-1)
        square = float(np.mean((predicted - self.test_y) ** 2))
        if self.measure == "mse":
            return square
        size = float(np.mean(self.test_y**2)) if self.measure == "rel_l2" else 1.0
        return (square / size) ** 0.5

    def save(self, path: Path) -> None:
        """Write all but the seed as NPZ."""
        names = ("test_x", "test_y", "train_x", "train_y")
        np.savez(path, measure=self.measure, **{name: getattr(self, name) for name in names})

    @classmethod
    def load(cls, path: Path, seed: int) -> Given:
        """What :meth:`save` wrote."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files if name != "measure"}
            return cls(measure=str(file["measure"]), seed=seed, **arrays)

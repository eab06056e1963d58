"""What problems that fit data have in common: residual, validation and test rows, metrics."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kanpinn import FixedPoints, Points, Problem, ResidualBlock, Scaling, Site

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of data in the user's units.

    Attributes:
        inputs: ``(n, d)``.
        outputs: ``(n, m)``, one column per field.
    """

    inputs: Floats
    outputs: Floats

    def points(self, fields: Sequence[str]) -> Points:
        """The inputs as points, the outputs as data columns named like the fields."""
        columns = {name: torch.tensor(self.outputs[:, k]) for k, name in enumerate(fields)}
        return Points(torch.tensor(self.inputs), data=columns)


class DataFit(Problem, ABC):
    """Least-squares fit of data: residual ``(u_f(x_i) - y_if) / scale_f`` for row i and field f.

    So the loss and the held-out residual measure the outputs in the scaled units of
    :attr:`scales`, while the fields themselves are in the user's. Iterates are judged by the
    validation rows; :meth:`metrics` uses the test rows, which nothing else ever sees.

    Attributes:
        training: rows that are trained on.
        validation: rows that choose the best iterate.
        test: rows for the metrics.
    """

    training: Rows
    validation: Rows
    test: Rows

    def residual(self, p: Site) -> Tensor:
        """``(u_f - y_f) / scale_f``, ``(n, m)``."""
        rows = [
            (p.fields[name].value - p.data[name]) / self._scaling(name).scale
            for name in self.fields
        ]
        return torch.stack(rows, -1)

    def blocks(self) -> tuple[ResidualBlock, ...]:
        """One block: the training rows."""
        return (self._block(self.training),)

    def held_out_blocks(self) -> tuple[ResidualBlock, ...]:
        """One block: the validation rows."""
        return (self._block(self.validation),)

    def test_blocks(self) -> tuple[ResidualBlock, ...]:
        """One block: the test rows."""
        return (self._block(self.test),)

    def metrics(self, predict: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """``test_mse``, the mean square of ``(u - y) / scale`` on the test rows, and its root."""
        scale = np.array([self._scaling(name).scale for name in self.fields])
        mse = float(np.mean(np.square(self.test_errors(predict) / scale)))
        return {"test_mse": mse, "test_rmse": math.sqrt(mse)}

    def test_errors(self, predict: Callable[[Tensor], Tensor]) -> Floats:
        """``u - y`` on the test rows in the user's units, ``(n, m)``."""
        predicted = predict(torch.tensor(self.test.inputs)).detach().double().cpu().numpy()
        return np.asarray(predicted - self.test.outputs)

    def _block(self, rows: Rows) -> ResidualBlock:
        region = FixedPoints(rows.points(self.fields))
        return ResidualBlock(
            "data", region, self.residual, weight=self.residual_weight, equation=True
        )

    def _scaling(self, name: str) -> Scaling:
        return self.scales.get(name, Scaling())

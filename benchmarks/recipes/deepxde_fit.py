"""DeepXDE's fit of a data set, its inputs standardised as in its example."""

from __future__ import annotations

import deepxde as dde

from recipes.deepxde_training import begin, train
from recipes.given import Given
from recipes.stopwatch import Report


def fit(
    widths: list[int], dtype: str, adam: int, seconds: float, report: Report, given: Given
) -> int:
    """Train a tanh network; the number of its parameters."""
    begin(given, dtype)
    data = dde.data.DataSet(
        X_train=given.train_x,
        y_train=given.train_y[:, None],
        X_test=given.test_x,
        y_test=given.test_y[:, None],
        standardize=True,
    )
    net = dde.nn.FNN(widths, "tanh", "Glorot normal")
    return train(data, net, adam, seconds, report, given)

"""pykan's fit by its L-BFGS on grids that get finer, with a clock."""

from __future__ import annotations

import numpy as np
import torch
from kan import KAN

from recipes.given import Floats, Given
from recipes.stopwatch import Report, Stopwatch


class TimeOver(Exception):
    """Ends a fit."""


def fit_on_grids(
    grids: tuple[int, ...], steps: int, seconds: float, report: Report, given: Given
) -> int:
    """So many steps (of 20 iterations) on every grid; the number of parameters on the last one."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(given.seed)
    np.random.seed(given.seed)
    x, y = torch.tensor(given.train_x), torch.tensor(given.train_y)[:, None]
    data = {"train_input": x, "train_label": y, "test_input": x[:10], "test_label": y[:10]}
    model = KAN(width=[2, 5, 1], grid=grids[0], k=3, seed=given.seed)

    def predict(points: Floats) -> Floats:
        with torch.no_grad():
            return np.concatenate([model(p).numpy() for p in torch.tensor(points).split(4096)])

    def error() -> float:
        kept = model.cache_data, model.save_act
        model.save_act = False
        found = given.error(predict)
        model.cache_data, model.save_act = kept
        return found

    watch = Stopwatch(seconds, report, error)

    def look() -> torch.Tensor:
        if watch.look():
            raise TimeOver
        return torch.zeros(())

    try:
        for grid in grids:
            if grid != grids[0]:
                model(x)  # the splines are refitted at the points of the last call
                model = model.refine(grid)
            model.fit(data, opt="LBFGS", steps=steps, metrics=[look])
    except TimeOver:
        pass
    watch.finish()
    return _parameters(model)


def _parameters(model: KAN) -> int:
    """Those of the splines and their scales: the rest is constant in a fit like this."""
    return sum(
        p.numel()
        for layer in model.act_fun
        for p in (layer.coef, layer.scale_base, layer.scale_sp)
        if p.requires_grad
    )

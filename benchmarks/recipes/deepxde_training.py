"""DeepXDE with PyTorch: Adam, then L-BFGS, with a clock."""

from __future__ import annotations

import deepxde as dde
import numpy as np
import torch
from deepxde.optimizers.config import LBFGS_options

from recipes.given import Floats, Given
from recipes.stopwatch import Report, Stopwatch

ITERATIONS_PER_CALL = 25  # of L-BFGS; its state lasts from one call to the next


class Watch(dde.callbacks.Callback):
    """Looks at the clock after every iteration, or every call of L-BFGS."""

    def __init__(self, watch: Stopwatch) -> None:
        super().__init__()
        self.watch = watch

    def on_epoch_end(self) -> None:
        if self.watch.look():
            self.model.stop_training = True


class Model(dde.Model):
    """A model whose own evaluations do not count."""

    watch: Stopwatch

    def _test(self, verbose: int = 1) -> None:
        with self.watch.paused():
            super()._test(verbose)


def begin(given: Given, dtype: str) -> None:
    """Set type and seed."""
    if dde.backend.backend_name != "pytorch":
        raise RuntimeError(f"DeepXDE runs on {dde.backend.backend_name}, not on PyTorch")
    torch.set_num_threads(1)
    dde.config.set_default_float(dtype)
    dde.config.set_random_seed(given.seed)


def train(
    data: dde.data.Data,
    net: dde.nn.NN,
    adam: int,
    seconds: float,
    report: Report,
    given: Given,
) -> int:
    """So many iterations of Adam, and L-BFGS for the rest of the time; the parameters' number."""
    model = Model(data, net)
    transform = getattr(data, "transform_inputs", lambda x: x)

    def predict(x: Floats) -> Floats:
        return model.predict(np.asarray(transform(x), dtype=dde.config.real(np)))

    model.compile("adam", lr=1e-3, verbose=0)
    LBFGS_options["iter_per_step"] = ITERATIONS_PER_CALL
    LBFGS_options["fun_per_step"] = ITERATIONS_PER_CALL * 5 // 4
    watch = model.watch = Stopwatch(seconds, report, lambda: given.error(predict))
    model.train(iterations=adam, callbacks=[Watch(watch)], verbose=0)
    if not watch.spent:
        model.compile("L-BFGS", verbose=0)
        model.train(callbacks=[Watch(watch)], verbose=0)
    watch.finish()
    return sum(p.numel() for p in net.parameters())

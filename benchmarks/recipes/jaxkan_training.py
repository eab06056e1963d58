"""jaxKAN's physics-informed training: its tutorial's network and Adam, then L-BFGS of Optax.

In double precision, which takes no longer here and lets L-BFGS go on where single precision stalls.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jaxkan.models.KAN import KAN
from jaxkan.models.utils import get_adam, get_lbfgs

from recipes.given import Floats, Given
from recipes.stopwatch import Report, Stopwatch

Loss = Callable[[KAN], jax.Array]
Step = Callable[[KAN, nnx.Optimizer], jax.Array]


def network(seed: int) -> KAN:
    """The tutorial's: Chebyshev polynomials of degree 5, two hidden layers of 6 channels."""
    if not jax.config.jax_enable_x64:
        raise RuntimeError("JAX runs in single precision")
    settings = {
        "D": 5,
        "flavor": "exact",
        "residual": None,
        "external_weights": False,
        "init_scheme": {"type": "glorot_fine"},
        "add_bias": True,
    }
    return KAN(
        layer_dims=[2, 6, 6, 1], layer_type="chebyshev", required_parameters=settings, seed=seed
    )


def train(
    model: KAN,
    loss: Loss,
    adam: int,
    inputs: Callable[[Floats], Floats],
    seconds: float,
    report: Report,
    given: Given,
) -> int:
    """So many steps of Adam, and L-BFGS for the rest of the time; the parameters' number.

    ``inputs`` puts the points of the errors into the order that the network has them in.
    """
    x = jnp.asarray(inputs(given.test_x))
    values = nnx.jit(lambda model: model(x))

    def error() -> float:
        return given.error(lambda _: np.asarray(values(model)))

    watch = Stopwatch(seconds, report, error)
    optimiser = nnx.Optimizer(model, get_adam(learning_rate=1e-3), wrt=nnx.Param)
    step = adam_step(loss)
    for _ in range(adam):
        jax.block_until_ready(step(model, optimiser))
        if watch.look():
            break
    if not watch.spent:
        optimiser = nnx.Optimizer(model, get_lbfgs(), wrt=nnx.Param)
        step = lbfgs_step(loss)
        over = False
        while not over:
            jax.block_until_ready(step(model, optimiser))
            over = watch.look()
    watch.finish()
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def adam_step(loss: Loss) -> Step:
    @nnx.jit
    def step(model: KAN, optimiser: nnx.Optimizer) -> jax.Array:
        value, gradient = nnx.value_and_grad(loss)(model)
        optimiser.update(model, gradient)
        return value

    return step


def lbfgs_step(loss: Loss) -> Step:
    @nnx.jit
    def step(model: KAN, optimiser: nnx.Optimizer) -> jax.Array:
        value, gradient = nnx.value_and_grad(loss)(model)
        optimiser.update(model, gradient, value=value, value_fn=loss)
        return value

    return step

"""Burgers' equation as in jaxKAN's tutorial on physics-informed networks, then L-BFGS."""

from __future__ import annotations

import jax
import numpy as np
from jax import numpy as jnp
from jaxkan.models.KAN import KAN
from jaxkan.pikan.pde import get_burgers_res
from jaxkan.pikan.sampling import get_collocs_sobol

from recipes.given import Given
from recipes.jaxkan_training import network, train
from recipes.stopwatch import Report

ADAM = 1500  # the tutorial has 5000, and no L-BFGS


def run(seconds: float, report: Report, given: Given) -> int:
    seed = given.seed
    inner = get_collocs_sobol(ranges=[(0, 1), (-1, 1)], total_points=2**12, seed=seed)
    start = get_collocs_sobol(ranges=[(0, 0), (-1, 1)], total_points=2**6, seed=seed)
    ends = [
        get_collocs_sobol(ranges=[(0, 1), (x, x)], total_points=2**6, seed=seed) for x in (-1, 1)
    ]
    outer = jnp.concatenate([start, *ends])
    known = jnp.concatenate([-jnp.sin(np.pi * start[:, 1:]), jnp.zeros((2 * 2**6, 1))])
    residual = get_burgers_res()

    def loss(model: KAN) -> jax.Array:
        equation = jnp.mean(residual(model, inner) ** 2)
        return equation + jnp.mean((model(outer) - known) ** 2)

    # Its coordinates are t and x.
    return train(network(seed), loss, ADAM, lambda x: x[:, ::-1], seconds, report, given)

"""Poisson's equation, by jaxKAN's tutorial on Burgers' equation, then L-BFGS."""

from __future__ import annotations

import jax
import numpy as np
from jax import numpy as jnp
from jaxkan.models.KAN import KAN
from jaxkan.pikan.sampling import get_collocs_sobol

from recipes.given import Given
from recipes.jaxkan_training import network, train
from recipes.stopwatch import Report

ADAM = 1500  # the tutorial has 5000, and no L-BFGS


def residual(model: KAN, points: jax.Array) -> jax.Array:
    def u(x: jax.Array, y: jax.Array) -> jax.Array:
        return model(jnp.array([[x, y]]))[0, 0]

    u_xx, u_yy = jax.grad(jax.grad(u, 0), 0), jax.grad(jax.grad(u, 1), 1)

    def at(x: jax.Array, y: jax.Array) -> jax.Array:
        source = -2 * np.pi**2 * jnp.sin(np.pi * x) * jnp.sin(np.pi * y)
        return u_xx(x, y) + u_yy(x, y) - source

    return jax.vmap(at)(points[:, 0], points[:, 1])


def run(seconds: float, report: Report, given: Given) -> int:
    whole, sides = (-1, 1), ((-1, -1), (1, 1))
    inner = get_collocs_sobol(ranges=[whole, whole], total_points=2**12, seed=given.seed)
    ranges = [[side, whole] for side in sides] + [[whole, side] for side in sides]
    outer = jnp.concatenate(
        [get_collocs_sobol(ranges=pair, total_points=2**6, seed=given.seed) for pair in ranges]
    )

    def loss(model: KAN) -> jax.Array:
        return jnp.mean(residual(model, inner) ** 2) + jnp.mean(model(outer) ** 2)

    return train(network(given.seed), loss, ADAM, lambda x: x, seconds, report, given)

"""jaxKAN's spline KAN, compiled by XLA, with nested forward and reverse mode."""

from __future__ import annotations

from collections.abc import Callable

import jax
from case import Case


def prepare(case: Case) -> Callable[[], object]:
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    jax.config.update("jax_platforms", "cpu")
    from flax import nnx
    from jax import numpy as jnp
    from jaxkan.models.KAN import KAN

    model = KAN(
        layer_dims=list(case.widths),
        layer_type="spline",
        required_parameters={"k": case.degree, "G": case.intervals},
        seed=1,
    )
    graph, state, rest = nnx.split(model, nnx.Param, ...)
    x = jax.random.uniform(
        jax.random.key(1), (case.points, case.widths[0]), dtype=case.dtype, minval=-1, maxval=1
    )

    def cast(leaf: jax.Array) -> jax.Array:  # some of its arrays are single in any case
        return leaf.astype(case.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    state, rest = jax.tree.map(cast, state), jax.tree.map(cast, rest)

    def values(state: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state, rest)(x)

    def laplacian(state: nnx.State, x: jax.Array) -> jax.Array:
        """Second derivatives along each axis, forward over reverse, the whole batch at once."""

        def first(x: jax.Array) -> jax.Array:
            return jax.grad(lambda x: values(state, x).sum())(x)

        rows = []
        for axis in range(x.shape[1]):
            direction = jnp.zeros_like(x).at[:, axis].set(1)
            rows.append(jax.jvp(first, (x,), (direction,))[1][:, axis])
        return sum(rows)

    rows = laplacian if case.task in ("jets", "laplacian") else values
    if case.task in ("forward", "jets"):
        step = jax.jit(rows)
    else:
        step = jax.jit(jax.grad(lambda state, x: (rows(state, x) ** 2).mean()))
    return lambda: jax.block_until_ready(step(state, x))

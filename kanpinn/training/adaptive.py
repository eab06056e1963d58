"""Adaptive collocation: a share of a level's points is drawn where the residual is large.

RAD, the residual-based adaptive distribution of Wu et al. (arXiv 2207.10289), once per level: the
network that a level starts from decides on its points, so that a resumed run finds the same ones.
Points are taken from the pool as they are; moved by more than the width of a front they would miss
it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kanpinn.geometry import Points
from kanpinn.residuals import ResidualBlock, System
from kanpinn.sampling import QUADRATURE, AdaptiveSampling
from kanpinn.training.block_data import UNBOUNDED, BlockData, residual_rows
from kanpinn.training.memory import Memory


def adapt_points(
    block: ResidualBlock,
    base: Points,
    pool: Points,
    n: int,
    system: System,
    options: AdaptiveSampling,
    seed: np.random.SeedSequence,
    memory: Memory = UNBOUNDED,
) -> Points | None:
    """``base`` and ``n`` points of the pool, drawn with probability ``min(1, c |r|^k / d)``.

    ``d`` is the density of base and pool, and ``c`` makes it ``n`` points. The drawn ones are as
    dense as ``|r|^k``, up to where the pool is used up. All carry quadrature weights, one over
    their density: the loss remains the mean over the domain, measured better where it is large.
    ``None`` where there is nothing to go by: a residual not finite, or zero nearly anywhere.

    Args:
        block: an equation inside the domain.
        base: points spread without regard to the residual, with weights ``1 / d`` if unequally.
        pool: more points, spread in the same way.
        n: how many of them to draw.
        system: the networks whose residual decides.
        options: the exponent ``k``.
        seed: of the draw.
        memory: what an evaluation may take.
    """
    # In float64 on the CPU: the draw is then the same on every device.
    wanted = _residual_size(block, pool, system, options.exponent, memory) / _density(pool)
    if not bool(torch.isfinite(wanted).all()) or int((wanted > 0).sum()) < n:
        return None
    factor = inclusion_factor(wanted, n)
    index = draw((factor * wanted).clamp(max=1.0), seed)
    joined = Points.cat([base, pool.rows(index.to(pool.x.device))])
    around = _residual_size(block, base, system, options.exponent, memory) / _density(base)
    probability = (factor * torch.cat([around, wanted[index]])).clamp(max=1.0)
    density = _density(joined) * (len(base) + len(pool) * probability) / len(joined)
    return replace(joined, data={**joined.data, QUADRATURE: (1.0 / density).to(joined.x)})


def inclusion_factor(sizes: Tensor, n: int) -> float:
    """``c`` with ``sum_i min(1, c size_i) = n``, for sizes ``(m,)`` of which ``n`` are positive."""
    falling = sizes.sort(descending=True).values
    rest = falling.flip(0).cumsum(0).flip(0)  # sum of this one and all smaller ones
    for certain in range(n):  # how many are taken for sure
        factor = (n - certain) / float(rest[certain])
        if factor * float(falling[certain]) <= 1.0:
            return factor
    return 1.0 / float(falling[n - 1])


def draw(probability: Tensor, seed: np.random.SeedSequence) -> Tensor:
    """Systematic sampling: each index with its own probability, in all as many as they add up to.

    Args:
        probability: of every index, ``(m,)``, at most one.
        seed: of the order and of the offset.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    order = generator.permutation(len(probability))
    reached = np.cumsum(probability.numpy()[order])
    marks = np.floor(reached + generator.random())
    taken = np.diff(marks, prepend=0.0) > 0
    return torch.from_numpy(np.sort(order[taken]))


def _density(points: Points) -> Tensor:
    """Density ``(n,)`` of the points, relative to an equal spread; float64 on the CPU."""
    weights = points.data.get(QUADRATURE)
    if weights is None:
        return torch.ones(len(points), dtype=torch.float64)
    return 1.0 / weights.double().cpu()


def _residual_size(
    block: ResidualBlock, points: Points, system: System, exponent: float, memory: Memory
) -> Tensor:
    """``|r|^k`` ``(n,)`` of a block's rows; float64 on the CPU."""
    data = BlockData(block, (points,), system, memory=memory, keep=False)
    rows = residual_rows(data, system)
    size: Tensor = torch.linalg.vector_norm(rows.double().cpu(), dim=-1) ** exponent
    return size

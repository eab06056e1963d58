"""Simulated measurements for inverse problems: a known solution at random places, plus noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from kanpinn import Box, Points, ProblemError, stream

Floats = NDArray[np.float64]


def simulate_measurements(
    solution: Callable[[Floats], Floats], domain: Box, count: int, noise: float, seed: int
) -> Points:
    """Points drawn uniformly from a box, with the measured values in the data column ``u``.

    Args:
        solution: from points ``(n, d)`` to values ``(n,)``.
        domain: where to measure.
        count: number of measurements n.
        noise: standard deviation of the Gaussian noise, in units of the values' own.
        seed: of places and noise; other streams than those of training.

    Raises:
        ProblemError: if there are no measurements, or the noise is negative or not finite.
    """
    if count < 1:
        raise ProblemError(
            f"n_data: found {count}, allowed: at least 1; without data nothing determines what is "
            "to be found"
        )
    if not 0 <= noise < np.inf:
        raise ProblemError(f"noise: found {noise}, allowed: a finite number of at least 0")
    lower, upper = np.array(domain.lower), np.array(domain.upper)
    places = np.random.default_rng(stream(seed, "places")).random((count, len(lower)))
    x = lower + (upper - lower) * places
    values = solution(x)
    errors = np.random.default_rng(stream(seed, "noise")).standard_normal(count)
    measured = values + noise * values.std() * errors
    return Points(torch.from_numpy(x), data={"u": torch.from_numpy(measured)})

"""The points that levels are trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kanpinn.geometry import Points
from kanpinn.residuals import ResidualBlock, System
from kanpinn.sampling import sample, sample_graded, stream
from kanpinn.training.adaptive import adapt_points
from kanpinn.training.control import EXTENSION
from kanpinn.training.hierarchy import Level
from kanpinn.training.run_options import RunOptions


class Drawing:
    """Draws the points of a time window's blocks, each once, and keeps them.

    They follow from the seed, the level and its extensions, with adaptive sampling also from the
    networks trained before.

    Args:
        options: sampling, seed, types by level and device.
        names: of the coordinates.
        note: told where a choice by residual was not possible.
    """

    def __init__(
        self, options: RunOptions, names: Sequence[str], note: Callable[[str], None]
    ) -> None:
        self.options, self.names, self.note = options, tuple(names), note
        self._drawn: dict[tuple[str, int, int], tuple[Points, ...]] = {}

    def count(self, block: ResidualBlock, level: Level, extensions: int = 0) -> int:
        """Points of a block on a level: whole groups of the sampling options' count.

        ``extensions`` is how often they were doubled.
        """
        sampling, region = self.options.sampling, block.region
        if region.n_distinct is not None:
            return region.n_distinct
        count = sampling.count(region.kind, level.index, level.n_parameters)
        if block.points is not None:
            count = round(block.points * sampling.growth**level.index)
        count *= EXTENSION**extensions
        return -(-max(count, 1) // block.group) * block.group

    def points(
        self, block: ResidualBlock, level: Level, extensions: int, before: System | None
    ) -> tuple[Points, ...]:
        """Points of a block on a level, after so many extensions.

        ``before`` is the system with the last networks trained before the level in its window.
        """
        key = (block.name, level.index, extensions)
        if key not in self._drawn:
            self._drawn[key] = self._draw(block, level, extensions, before)
        return self._drawn[key]

    def _draw(
        self, block: ResidualBlock, level: Level, extensions: int, before: System | None
    ) -> tuple[Points, ...]:
        options, sampling = self.options, self.options.sampling
        count = self.count(block, level, extensions)
        key: tuple[str | int, ...] = (block.name, level.index)
        key += (extensions,) if extensions else ()
        if block.group > 1:  # a mean needs equal weights
            seed, dtype = stream(options.seed, "train", *key), options.dtype_on(level.index)
            return sample(block.region, count, "sobol", seed, dtype, options.device)
        adaptive = sampling.adaptive
        whole = block.region.kind != "interior" or block.region.n_distinct is not None
        if adaptive is None or before is None or whole or not block.equation:
            return self._spread(block, level, count, "train", *key)
        drawn = min(round(adaptive.share * count), count - 1)
        (base,) = self._spread(block, level, count - drawn, "train", *key)
        (pool,) = self._spread(block, level, round(adaptive.pool * count), "pool", *key)
        seed = stream(options.seed, "adaptive", *key)
        memory = options.memory(jacobian=False, blocks=1)
        points = adapt_points(block, base, pool, drawn, before, adaptive, seed, memory)
        if points is not None:
            return (points,)
        self.note(
            f"level {level.index}: the residual of {block.name!r} is not finite, or zero, at most "
            "of the points to choose from: its points are spread without regard to it"
        )
        return self._spread(block, level, count, "train", *key)

    def _spread(
        self, block: ResidualBlock, level: Level, count: int, *key: str | int
    ) -> tuple[Points, ...]:
        """Points of a block without regard to its residual."""
        options, names = self.options, self.names
        seed = stream(options.seed, *key)
        dtype, device = options.dtype_on(level.index), options.device
        return sample_graded(block.region, count, options.sampling, names, seed, dtype, device)

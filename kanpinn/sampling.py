"""Sampling of regions: grids, random and quasi-random points, held-out points, mini-batches.

Every draw is a pure function of the seed and of what it is for. Points are generated on the CPU in
float64 and cast last, so they depend neither on the device, nor on the number of threads, nor
on the order of the calls.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import NDArray
from torch import Tensor

from kanpinn.errors import ConfigError, ProblemError
from kanpinn.geometry import Graded, Kind, Points, Region

Method = Literal["grid", "random", "sobol", "latin_hypercube"]

QUADRATURE = "quadrature"
"""Data column of the quadrature weights of unequally spread points; their mean is about 1."""

SOBOL_BITS = 53
"""Digits of a Sobol number: all a float64 in [0, 1) can tell apart, so that two scramblings share
no point (with SciPy's 30 bits two sets of 2000 numbers would meet in one run of 300)."""


@dataclass(frozen=True)
class Grading:
    """A share of the interior points, spread equally in ``asinh((x - at)/scale)``."""

    of: Annotated[str, "Name of the graded coordinate"]
    scale: Annotated[float, Gt(0.0), "Width of the dense part, in the coordinate's unit"]
    at: Annotated[float, "Where the dense part is centred"] = 0.0
    share: Annotated[float, Gt(0.0), Le(1.0), "Share of the interior points"] = 0.5


@dataclass(frozen=True)
class AdaptiveSampling:
    """A share of the interior points, drawn where the residual is large at a level's start."""

    share: Annotated[float, Gt(0.0), Lt(1.0), "Share of the interior points"] = 0.4
    exponent: Annotated[float, Gt(0.0), "Points are as dense as this power of the residual"] = 1.0
    pool: Annotated[
        float, Ge(2.0), Le(100.0), "Points the share is drawn from, as a multiple of all points"
    ] = 10.0


@dataclass(frozen=True)
class SamplingOptions:
    """How many points of which kind, and how they are spread."""

    method: Annotated[
        Method,
        "How points are spread: equally spaced, independent, scrambled Sobol or Latin hypercube",
    ] = "sobol"
    interior: Annotated[int, Ge(1), "Points of each block inside the domain, on level 0"] = 2000
    boundary: Annotated[int, Ge(1), "Points of each block on boundaries, on level 0"] = 400
    interface: Annotated[int, Ge(1), "Points of each block on interfaces, on level 0"] = 200
    initial: Annotated[int, Ge(1), "Points of each block at a fixed time, on level 0"] = 200
    held_out: Annotated[int, Ge(1), "Points for the held-out residual, on every level"] = 2000
    growth: Annotated[
        float, Ge(1.0), Le(64.0), "Factor on all these counts but held_out from level to level"
    ] = 1.0
    per_parameter: Annotated[
        Annotated[float, Gt(0.0), Le(1e6)] | None,
        "At least this many interior points per trainable parameter of the level; null for no rule",
    ] = None
    grading: Annotated[
        tuple[Grading, ...], "Shares of the interior points that are denser around a plane"
    ] = ()
    adaptive: Annotated[
        AdaptiveSampling | None,
        "A share of the interior points drawn by residual, from the second level on",
    ] = None

    def __post_init__(self) -> None:
        if sum(entry.share for entry in self.grading) > 1.0 + 1e-12:
            raise ConfigError("sampling.grading: the shares add up to more than 1")
        if self.adaptive is not None and self.method == "grid":
            raise ConfigError(
                "sampling.adaptive: found with method: grid, whose points stand for unequal shares "
                "of the domain; allowed: null, or one of random, sobol, latin_hypercube"
            )

    def count(self, kind: Kind, level: int = 0, n_parameters: int = 0) -> int:
        """Return the points of one block, round(base growth^level), by the kind of its region.

        Inside the domain at least per_parameter * n_parameters. Given data are never sampled: 0.
        """
        if kind == "data":
            return 0
        base: dict[Kind, int] = {
            "interior": self.interior,
            "boundary": self.boundary,
            "interface": self.interface,
            "initial": self.initial,
        }
        points = round(base[kind] * self.growth**level)
        if kind == "interior" and self.per_parameter is not None:
            points = max(points, math.ceil(self.per_parameter * n_parameters))
        return points


def stream(seed: int, *keys: str | int) -> np.random.SeedSequence:
    """Return the random stream of one purpose, e.g. ``stream(seed, "train", part, block, level)``.

    Streams of different keys are independent, and the same in every process: the keys are
    hashed by SHA-256 into the spawn key of NumPy's SeedSequence.

    Raises:
        ProblemError: If the seed is negative.
    """
    if seed < 0:
        raise ProblemError(f"seed: found {seed}, allowed: an integer of at least 0")
    # repr tells "1" from 1, and its quotes keep ("a", "b") apart from ("a', 'b",). NumPy's integers
    # have a repr of their own, hence int().
    plain = tuple(key if isinstance(key, str) else int(key) for key in keys)
    words = np.frombuffer(hashlib.sha256(repr(plain).encode()).digest(), dtype="<u4")
    return np.random.SeedSequence(int(seed), spawn_key=tuple(int(word) for word in words))


def unit_points(
    n: int, dimension: int, method: Method, seed: np.random.SeedSequence
) -> NDArray[np.float64]:
    """Return n points (n, dimension) of the unit cube.

    * "grid": the tensor grid with k = round(n^(1/dimension)) equally spaced points per
      coordinate, ends included (the midpoint if k = 1): k^dimension points, not always n.
    * "random": independent and uniform.
    * "sobol": the first n of a scrambled Sobol sequence (Owen, doi:10.1006/jcom.1998.0487). They
      are best balanced where n is a power of two; any n is allowed.
    * "latin_hypercube": one point in each of n slices of every coordinate
      (McKay, Beckman, Conover, doi:10.1080/00401706.1979.10489755).

    Raises:
        ProblemError: If n is below 1, the dimension below 0, or the method unknown.
    """
    if n < 1 or dimension < 0:
        raise ProblemError(
            f"sampling: {n} points in {dimension} dimensions, allowed: at least 1 in at least 0"
        )
    if dimension == 0:
        return np.zeros((n, 0))
    if method == "grid":
        count = max(1, round(n ** (1 / dimension)))
        axis = np.linspace(0.0, 1.0, count) if count > 1 else np.array([0.5])
        grid = np.meshgrid(*dimension * [axis], indexing="ij")
        return np.stack([column.ravel() for column in grid], axis=1)
    generator = np.random.Generator(np.random.PCG64(seed))
    if method == "random":
        return generator.random((n, dimension))
    if method == "sobol":
        from scipy.stats import qmc  # when needed: it takes as long as torch to import

        sequence = qmc.Sobol(dimension, scramble=True, bits=SOBOL_BITS, rng=generator)
        # A whole power of two is drawn, because SciPy warns of any other number.
        return np.asarray(sequence.random_base2((n - 1).bit_length())[:n])
    if method == "latin_hypercube":
        from scipy.stats import qmc

        return np.asarray(qmc.LatinHypercube(dimension, rng=generator).random(n))
    raise ProblemError(
        f"sampling: unknown method {method!r}, allowed: grid, random, sobol, latin_hypercube"
    )


def sample(
    region: Region,
    n: int,
    method: Method,
    seed_sequence: np.random.SeedSequence,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Points, ...]:
    """Return n points of a region, as one `Points` per site of its rows.

    A region of finitely many points (given data, the ends of an interval) is returned whole,
    each point once, whatever n. A grid covers every part of a region on its own (every face of
    a boundary), with points in proportion to its measure, and has about n points.

    Raises:
        ProblemError: If n is below 1, or the region rejects (nearly) all points.
    """
    if region.n_distinct is not None:
        count = region.n_distinct
        middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        sites = region.place(middles[:, None].expand(count, region.unit_dimension))
    elif method == "grid":
        grids = []
        for part in region.parts:
            share = max(1, round(n * part.measure / region.measure / part.acceptance))
            unit = torch.from_numpy(unit_points(share, part.unit_dimension, "grid", seed_sequence))
            grids.append(part.place(unit[part.accepts(unit)]))
        sites = tuple(Points.cat(pieces) for pieces in zip(*grids, strict=True))
    else:
        sites = region.place(_draw(region, n, method, seed_sequence))
    if not len(sites[0]):
        raise _empty(region)
    return tuple(points.to(dtype, device) for points in sites)


def sample_graded(
    region: Region,
    n: int,
    options: SamplingOptions,
    names: Sequence[str],
    seed: np.random.SeedSequence,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Points, ...]:
    """Return n points of a region, with the options' graded shares among them.

    Grading acts on the inside of a domain; every share has a random stream of its own. The points
    then carry quadrature weights, one over their density, so that weighted means over them remain
    means over the region: denser points make those means more exact and nothing more important.

    Raises:
        ConfigError: If a graded coordinate is not one of `names`.
    """
    if not options.grading or region.kind != "interior" or region.n_distinct is not None:
        return sample(region, n, options.method, seed, dtype, device)
    graded = [(_graded(region, entry, names), entry.share) for entry in options.grading]
    rest = 1.0 - sum(share for _, share in graded)
    counts = [round(share * n) for _, share in graded]
    parts = zip([*(part for part, _ in graded), region], [*counts, n - sum(counts)], strict=True)
    drawn = [
        sample(part, count, options.method, _child(seed, number))
        for number, (part, count) in enumerate(parts)
        if count > 0
    ]
    (points,) = (Points.cat(pieces) for pieces in zip(*drawn, strict=True))
    density = torch.full((len(points),), rest, dtype=points.x.dtype)
    for part, share in graded:
        density += share * part.density(points.x)
    weighted = replace(points, data={**points.data, QUADRATURE: 1.0 / density})
    return (weighted.to(dtype, device),)


def _child(seed: np.random.SeedSequence, number: int) -> np.random.SeedSequence:
    """An independent stream below another; unlike ``spawn``, it changes nothing."""
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, number))


def _graded(region: Region, entry: Grading, names: Sequence[str]) -> Graded:
    if entry.of not in names:
        raise ConfigError(
            f"sampling.grading: coordinate {entry.of!r} is unknown; allowed: {', '.join(names)}"
        )
    return Graded(region, list(names).index(entry.of), entry.scale, entry.at)


def _draw(region: Region, n: int, method: Method, seed: np.random.SeedSequence) -> Tensor:
    """Return n points (n, m) of the unit cube that the region accepts, out of more if need be."""
    draws = n if region.acceptance == 1.0 else math.ceil(1.1 * n / region.acceptance) + 8
    for _ in range(8):
        unit = torch.from_numpy(unit_points(draws, region.unit_dimension, method, seed))
        unit = unit[region.accepts(unit)]
        if len(unit) >= n:
            return unit[:n]
        draws *= 2
    raise _empty(region)


def _empty(region: Region) -> ProblemError:
    return ProblemError(
        f"region {region.name!r}: (almost) no point of it was found, allowed: a region that fills "
        "the stated share of its bounding box"
    )


def held_out(
    region: Region,
    n: int,
    seed: int,
    keys: tuple[str | int, ...] = (),
    trained: Iterable[Points] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Points, ...]:
    """Return n points that training never sees, from a stream of their own.

    They are scrambled Sobol points of ``stream(seed, "held_out", *keys)``; rows whose first site
    is among the `trained` points (in that dtype) are left out and replaced.

    Raises:
        ProblemError: If the region has finitely many points, which are all trained on.
    """
    if region.n_distinct is not None:
        raise ProblemError(
            f"region {region.name!r}: it has {region.n_distinct} points in all and training uses "
            "them, allowed for held-out points: a region to sample from"
        )
    known = [points.x.to("cpu", dtype) for points in trained]
    sequence = stream(seed, "held_out", *keys)
    draws = n
    for _ in range(8):
        sites = sample(region, draws, "sobol", sequence, dtype)
        if known:
            fresh = ~seen(sites[0].x, torch.cat(known))
            sites = tuple(points.rows(fresh) for points in sites)
        if len(sites[0]) >= n:
            return tuple(points.rows(slice(n)).to(dtype, device) for points in sites)
        draws *= 2
    raise _empty(region)


def seen(x: Tensor, trained: Tensor) -> Tensor:
    """Return the mask (n,) of the rows of x (n, d) that also occur, exactly, in trained (k, d)."""
    rows = torch.cat([x.detach().cpu(), trained.detach().to("cpu", x.dtype)]).numpy()
    _, number = np.unique(rows, axis=0, return_inverse=True)
    number = number.reshape(-1)
    mask = np.isin(number[: len(x)], number[len(x) :])
    return torch.from_numpy(mask).to(x.device)


def batch_indices(n: int, batch: int, seed: int, step: int, *keys: str | int) -> Tensor:
    """Return the rows (batch,) of n that step number `step` (from 0) trains on.

    The steps walk through one shuffled epoch after the other: position q = step * batch + i is
    row ``permutation(seed, e)[q mod n]`` of epoch e = floor(q / n), so every epoch holds each row
    exactly once, and a batch may end one epoch and begin the next. A pure function of its
    arguments: a resumed run needs no generator state. `keys` tell blocks apart. A batch of n or
    more is the full batch, in order.

    Raises:
        ProblemError: If n or batch is below 1, or step below 0.
    """
    if n < 1 or batch < 1 or step < 0:
        raise ProblemError(
            f"mini-batch: {batch} of {n} rows at step {step}, allowed: at least 1 of at least 1 "
            "at a step of at least 0"
        )
    if batch >= n:
        return torch.arange(n)
    start = step * batch
    epochs = range(start // n, (start + batch - 1) // n + 1)
    pieces = [
        _permutation(n, seed, epoch, keys)[max(0, start - epoch * n) : start + batch - epoch * n]
        for epoch in epochs
    ]
    return torch.from_numpy(np.concatenate(pieces))


# Not state but memory: shuffling 10^6 rows takes longer than many a step of one small batch.
@lru_cache(maxsize=16)
def _permutation(n: int, seed: int, epoch: int, keys: tuple[str | int, ...]) -> NDArray[np.int64]:
    generator = np.random.Generator(np.random.PCG64(stream(seed, "batches", *keys, epoch)))
    order = generator.permutation(n)
    order.flags.writeable = False
    return order

"""A residual block with its points, prepared and cut into fixed chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kanpinn.geometry import Points, neighbour_order
from kanpinn.jets import JetSpec
from kanpinn.models import Layer, Prepared
from kanpinn.models.knot_layer import KnotLayer
from kanpinn.residuals import ResidualBlock, System, evaluate_rows, n_equations, required_jets
from kanpinn.training.accumulate import tree_sum
from kanpinn.training.memory import Memory, power_of_two, row_numbers, rows_on_gpu
from kanpinn.training.parallel import ordered_map
from kanpinn.training.work import Evaluation, point_operations

CHUNK_BYTES = 2**21  # of the widest layer's non-zero features: these then stay in a core's cache
POINTS_PER_FUNCTION = 8  # of a channel's basis, at least, in a chunk
MOST_ROWS = 4096
# The same for gradients by the kernel, which makes no features.
KERNEL_WORK = 2**26  # multiply-adds: tens of milliseconds, beside some of Python's for every chunk
KERNEL_POINTS_PER_FUNCTION = 48  # since it also puts the coefficients in its own order
KERNEL_MOST_ROWS = 2048
UNBOUNDED = Memory()
FEATURE_CACHE_BYTES = 2**28  # of the first layer's features, kept from step to step, per block


@dataclass(frozen=True)
class Chunk:
    """Some rows of a block, prepared: what an evaluation walks over."""

    rows: slice
    points: tuple[Points, ...]
    prepared: tuple[Mapping[str, Prepared], ...]


class BlockData:
    """A residual block with its points, in fixed chunks.

    Args:
        block: the residual.
        points: one :class:`Points` per joined site; they take the system's type.
        system: prepares the points.
        chunk: rows evaluated at once, or ``None`` for the rule on memory.
        memory: what rows and kept features may take.
        keep: whether features are kept at all, from one evaluation to the next.

    Attributes:
        n_equations: residuals of a row.
    """

    def __init__(
        self,
        block: ResidualBlock,
        points: Sequence[Points],
        system: System,
        chunk: int | None = None,
        memory: Memory = UNBOUNDED,
        keep: bool = True,
    ) -> None:
        like = next(system.parameters())
        self.block, self.points = block, tuple(site.to(like.dtype) for site in points)
        self.memory = memory
        self.specs = required_jets(block, system)
        self.n_equations = n_equations(block, system)
        self._point = len(self.points) * point_operations(system, self.specs)
        jets = like.new_empty(0)
        size = rows_at_once(
            system,
            block,
            self.specs,
            self.n_equations,
            chunk,
            memory,
            lambda layer: layer.needs_features(jets, memory.jacobian),
        )
        self.size = max(1, size // block.group) * block.group
        self._keep = keep and self._feature_bytes(system) <= memory.features(FEATURE_CACHE_BYTES)
        self.chunks = tuple(self._prepare(system))

    @property
    def n_points(self) -> int:
        """Number of points (of sites, counted once per row)."""
        return len(self.points[0])

    @property
    def n_rows(self) -> int:
        """Number of residual rows."""
        return self.n_points // self.block.group

    @property
    def n_residuals(self) -> int:
        """Number of residuals: of every row those of its equations."""
        return self.n_rows * self.n_equations

    def cost(self, chunk: Chunk | None = None) -> Evaluation:
        """What its rows cost, or those of a chunk."""
        count = self.n_points if chunk is None else len(chunk.points[0])
        return Evaluation(count * self._point, self.n_equations)

    def select(self, index: Tensor, system: System) -> Chunk:
        """Any rows, for a mini-batch."""
        points = tuple(p.rows(index) for p in self.points)
        return Chunk(slice(0, len(index)), points, self._prepared(points, system, keep=False))

    def _prepare(self, system: System) -> Iterator[Chunk]:
        for start in range(0, self.n_points, self.size):
            rows = slice(start, min(start + self.size, self.n_points))
            points = tuple(p.rows(rows) for p in self.points)
            yield Chunk(rows, points, self._prepared(points, system, self._keep))

    def _prepared(
        self, points: Sequence[Points], system: System, keep: bool
    ) -> tuple[Mapping[str, Prepared], ...]:
        return tuple(
            {
                name: system.parts[name].prepare(p.x, spec, p.side, keep, p.normal)
                for name, spec in self.specs.items()
            }
            for p in points
        )

    def _feature_bytes(self, system: System) -> int:
        total = 0
        for name, spec in self.specs.items():
            width = system.parts[name].network.chain[0].n_features
            total += spec.n_components * width * self.n_points * len(self.points) * 8
        return total


def rows_at_once(
    system: System,
    block: ResidualBlock,
    specs: Mapping[str, JetSpec],
    n_equations: int,
    chunk: int | None,
    memory: Memory,
    makes_features: Callable[[Layer], bool],
) -> int:
    """Rows of a block that are evaluated at once.

    On a CPU a rule of caches, see :func:`chunk_rows`; on a GPU one of memory, see
    :func:`~kanpinn.training.memory.rows_on_gpu`.

    Args:
        system: the networks.
        block: the block.
        specs: the jets that it asks of each network.
        n_equations: residuals of a row.
        chunk: rows that were asked for.
        memory: bounds them.
        makes_features: see :func:`~kanpinn.training.memory.point_numbers`.
    """
    n_sites, like = block.region.n_sites, next(system.parameters())
    numbers = row_numbers(system, specs, n_sites, n_equations, makes_features, memory.jacobian)
    row = like.element_size() * numbers
    on_cpu = like.device.type == "cpu"
    cached = chunk_rows(system, specs, n_sites, makes_features, memory.jacobian) if on_cpu else 0
    return memory.rows(chunk or cached or rows_on_gpu(row), row)


def chunk_rows(
    system: System,
    specs: Mapping[str, JetSpec],
    n_sites: int,
    makes_features: Callable[[Layer], bool],
    jacobian: bool,
) -> int:
    """Rows per chunk: the widest layer's non-zero feature jets fill about ``CHUNK_BYTES``.

    At least ``POINTS_PER_FUNCTION`` for every function of a channel, though: a chunk reads all
    coefficients and makes a gradient of that size, which must not be most of its work. Where the
    kernel evaluates all layers and no Jacobian is made, a chunk has the work ``KERNEL_WORK``:
    enough beside what Python takes for a chunk, little enough to be shared among threads.

    A power of two between 64 and 4096, a function of the model, the equation and the kind of
    optimiser alone.
    """
    widest, most, work, by_kernel = 1, 1, 1, not jacobian
    for name, spec in specs.items():
        for layer in system.parts[name].network.chain:
            local = layer.in_width * (layer.order if isinstance(layer, KnotLayer) else 1)
            size = spec.n_components * local * n_sites
            widest, work = max(widest, size), work + size * layer.out_width
            most = max(most, layer.n_features // layer.in_width)
            by_kernel = by_kernel and not makes_features(layer)
    if by_kernel:
        rows = max(KERNEL_WORK // work, KERNEL_POINTS_PER_FUNCTION * most)
        return power_of_two(rows, KERNEL_MOST_ROWS)
    rows = max(CHUNK_BYTES // (8 * widest), POINTS_PER_FUNCTION * most)
    return power_of_two(rows, MOST_ROWS)


def neighbours(block: ResidualBlock, points: Sequence[Points]) -> tuple[Points, ...]:
    """The same points, neighbours beside each other, so that few functions reach into a chunk.

    Groups of points that make one row keep their places.
    """
    if block.group > 1 or not len(points[0]):
        return tuple(points)
    order = neighbour_order(points[0].x)
    return tuple(site.rows(order) for site in points)


def residual_rows(data: BlockData, system: System) -> Tensor:
    """All rows ``(n_rows, m)`` of a block, without gradient."""
    return torch.cat(list(_evaluated(data, system)))


def mean_square(data: BlockData, system: System) -> Tensor:
    """Mean square of a block's rows, summed over chunks in the fixed tree, 0-d."""
    return _mean(data, system, torch.square)


def mean_loss(data: BlockData, system: System) -> Tensor:
    """Mean of a block's own loss, summed over chunks in the fixed tree, 0-d."""
    return _mean(data, system, data.block.loss or torch.square)


def _mean(data: BlockData, system: System, function: Callable[[Tensor], Tensor]) -> Tensor:
    parts = _evaluated(data, system, function)
    total, count = tree_sum([part.sum(), part.new_tensor(part.numel())] for part in parts)
    return total / count


def _evaluated(
    data: BlockData, system: System, function: Callable[[Tensor], Tensor] = torch.Tensor.detach
) -> Iterator[Tensor]:
    """A function of every chunk's rows, without gradient."""

    @torch.no_grad()
    def one(chunk: Chunk) -> Tensor:
        return function(evaluate_rows(data.block, system, chunk.points, chunk.prepared))

    device = next(system.parameters()).device
    return ordered_map(one, data.chunks, data.memory.sharing(device))

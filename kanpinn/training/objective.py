"""The objective of a level: weighted mean squares of residual rows, and their gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from kanpinn.errors import ConfigError
from kanpinn.geometry import Points
from kanpinn.jets import JetSpec
from kanpinn.models import Prepared
from kanpinn.models.knot_layers import KnotLayer
from kanpinn.optimisers import ParameterLayout
from kanpinn.residuals import ResidualBlock, System, evaluate_rows, required_jets
from kanpinn.sampling import QUADRATURE
from kanpinn.training.accumulate import tree_sum

CHUNK_BYTES = 2**21  # of the widest layer's features: temporaries then stay in a core's cache
FEATURE_CACHE_BYTES = 2**28  # of the first layer's features, kept from step to step, per block


class ParameterPack:
    """The trainable parameters of a system, by group, as one flat vector.

    Args:
        system: whose parameters.
        patterns: which groups, by name (``*`` matches anything).

    Raises:
        ConfigError: if a pattern matches no group.
    """

    def __init__(self, system: System, patterns: Sequence[str] = ("*",)) -> None:
        named = {group_name(name): p for name, p in system.named_parameters()}
        for pattern in patterns:
            if not any(fnmatch(name, pattern) for name in named):
                raise ConfigError(
                    f"training.phases.train: {pattern!r} matches no parameter group; there are "
                    f"{', '.join(named)}"
                )
        self.parameters: dict[str, nn.Parameter] = {
            name: p for name, p in named.items() if any(fnmatch(name, q) for q in patterns)
        }
        sizes = tuple(p.numel() for p in self.parameters.values())
        self.layout = ParameterLayout(tuple(self.parameters), sizes)

    def read(self) -> Tensor:
        """The flat vector ``(n,)``, a copy."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters.values()])

    def write(self, theta: Tensor) -> None:
        """Set the parameters from the flat vector."""
        parts = theta.split(self.layout.sizes)
        with torch.no_grad():
            for p, part in zip(self.parameters.values(), parts, strict=True):
                p.copy_(part.view_as(p))


def group_name(parameter_name: str) -> str:
    """``networks.main.network.layers.0.coefficients`` -> ``main.layer0.coefficients``."""
    words = parameter_name.split(".")
    if words[0] != "networks":
        return parameter_name
    return ".".join([words[1], f"layer{words[4]}", *words[5:]])


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
        points: one :class:`Points` per joined site.
        system: prepares the points.
        chunk: rows evaluated at once, or ``None`` for the rule on memory.
    """

    def __init__(
        self,
        block: ResidualBlock,
        points: Sequence[Points],
        system: System,
        chunk: int | None = None,
    ) -> None:
        self.block, self.points = block, tuple(points)
        self.specs = required_jets(block, system)
        size = chunk or chunk_rows(system, self.specs, block.region.n_sites)
        self.size = max(1, size // block.group) * block.group
        self._keep = self._feature_bytes(system) <= FEATURE_CACHE_BYTES
        self.chunks = tuple(self._prepare(system))

    @property
    def n_points(self) -> int:
        """Number of points (of sites, counted once per row)."""
        return len(self.points[0])

    @property
    def n_rows(self) -> int:
        """Number of residual rows."""
        return self.n_points // self.block.group

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
                name: system.parts[name].prepare(p.x, spec, p.side, keep_features=keep)
                for name, spec in self.specs.items()
            }
            for p in points
        )

    def _feature_bytes(self, system: System) -> int:
        total = 0
        for name, spec in self.specs.items():
            width = system.parts[name].network.chain[0].coefficients.shape[1]
            total += spec.n_components * width * self.n_points * len(self.points) * 8
        return total


def chunk_rows(system: System, specs: Mapping[str, JetSpec], n_sites: int) -> int:
    """Rows per chunk: the widest layer's feature jets fill about ``CHUNK_BYTES``.

    A power of two between 64 and 4096, a function of the model and the equation alone.
    """
    widest = 1
    for name, spec in specs.items():
        for layer in system.parts[name].network.chain:
            local = layer.in_width * (layer.order if isinstance(layer, KnotLayer) else 1)
            widest = max(widest, spec.n_components * local * n_sites)
    rows = CHUNK_BYTES // (8 * widest)
    return 1 << max(6, min(12, rows.bit_length() - 1))


class SystemObjective:
    """``sum_b weight_b mean(q_i (w_i r_i)^2)`` over the rows of every block ``b``.

    ``q`` are the quadrature weights of unequally spread points, 1 for others.

    Implements the optimisers' objective over one pack of parameters.

    Args:
        system: the networks and scalars.
        pack: which parameters ``theta`` stands for.
        data: blocks with their points.
        attention: row weights ``w`` per block name, ``(n_rows,)``; ones where missing.
        batch: picks rows of a block for a mini-batch; ``None`` for all rows.
    """

    def __init__(
        self,
        system: System,
        pack: ParameterPack,
        data: Sequence[BlockData],
        attention: Mapping[str, Tensor] | None = None,
        batch: Callable[[BlockData], Tensor | None] | None = None,
    ) -> None:
        self.system, self.pack, self.data = system, pack, tuple(data)
        self.attention = dict(attention or {})
        self.batch = batch
        self.rows: dict[str, list[tuple[slice | Tensor, Tensor]]] = {}

    def loss(self, theta: Tensor) -> Tensor:
        """The loss at ``theta`` ``(n,)``, 0-d."""
        self.pack.write(theta)
        with torch.no_grad():
            return tree_sum([part] for part, _ in self._parts())[0]

    def loss_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its gradient ``(n,)`` at ``theta`` ``(n,)``."""
        self.pack.write(theta)
        loss, gradient = tree_sum(self._with_gradient())
        return loss, gradient

    def _with_gradient(self) -> Iterator[list[Tensor]]:
        parameters = tuple(self.pack.parameters.values())
        for part, _ in self._parts():
            gradients = torch.autograd.grad(part, parameters, allow_unused=True)
            pieces = [
                torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1)
                for p, g in zip(parameters, gradients, strict=True)
            ]
            yield [part.detach(), torch.cat(pieces)]

    def _parts(self) -> Iterator[tuple[Tensor, str]]:
        """Every chunk's share of the loss; the rows' sizes are kept for the attention weights."""
        self.rows = {}
        for data in self.data:
            block, chosen = data.block, None if self.batch is None else self.batch(data)
            chunks = data.chunks if chosen is None else (data.select(chosen, self.system),)
            count = data.n_rows if chosen is None else len(chosen) // block.group
            for chunk in chunks:
                rows = evaluate_rows(block, self.system, chunk.points, chunk.prepared)
                where: slice | Tensor = chosen if chosen is not None else chunk.rows
                if block.group > 1 and isinstance(where, slice):
                    where = slice(where.start // block.group, where.stop // block.group)
                weights = self.attention.get(block.name)
                if weights is not None:
                    size = rows.detach().square().sum(-1).sqrt()
                    self.rows.setdefault(block.name, []).append((where, size))
                    rows = rows * weights[where][:, None]
                values = rows.square() if block.loss is None else block.loss(rows)
                quadrature = chunk.points[0].data.get(QUADRATURE)
                if quadrature is not None:
                    values = values * (quadrature[:, None] if values.ndim > 1 else quadrature)
                width = values.shape[-1] if values.ndim > 1 else 1
                yield values.sum() * (block.weight / (count * width)), block.name


def residual_rows(data: BlockData, system: System) -> Tensor:
    """All rows ``(n_rows, m)`` of a block, without gradient."""
    with torch.no_grad():
        rows = [evaluate_rows(data.block, system, c.points, c.prepared) for c in data.chunks]
    return torch.cat(rows)


def mean_square(data: BlockData, system: System) -> Tensor:
    """Mean square of a block's rows, summed over chunks in the fixed tree, 0-d."""
    return _mean(data, system, torch.square)


def mean_loss(data: BlockData, system: System) -> Tensor:
    """Mean of a block's own loss, summed over chunks in the fixed tree, 0-d."""
    return _mean(data, system, data.block.loss or torch.square)


def _mean(data: BlockData, system: System, function: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.no_grad():
        parts = (
            function(evaluate_rows(data.block, system, c.points, c.prepared)) for c in data.chunks
        )
        total, count = tree_sum([part.sum(), part.new_tensor(part.numel())] for part in parts)
    return total / count

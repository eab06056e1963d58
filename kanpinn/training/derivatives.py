"""Derivatives of a system's fields at any points, past time windows included, in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

from kanpinn.jets import Jet, JetSpec
from kanpinn.models import Layer
from kanpinn.residuals import System
from kanpinn.training.block_data import UNBOUNDED, chunk_rows
from kanpinn.training.memory import EVALUATION, Memory, point_numbers, rows_on_gpu
from kanpinn.training.parallel import ordered_map

Side = Literal[-1, 1]
T = TypeVar("T")

# Points at once on a CPU: features should stay in a core's cache (measured: 1024 is within 10% of
# the best for most networks).
LARGEST_CHUNK = 1024


def jet_slices(
    system: System, n: int, spec: JetSpec, memory: Memory = UNBOUNDED
) -> Iterator[slice]:
    """The rows of ``n`` points in pieces whose jets are evaluated at once."""
    like = next(system.parameters())
    jets, specs = like.new_empty(0), dict.fromkeys(system.parts, spec)

    def makes_features(layer: Layer) -> bool:
        return layer.needs_features(jets)

    point = point_numbers(system, specs, makes_features) * like.element_size()
    if like.device.type == "cpu":
        size = min(chunk_rows(system, specs, 1, makes_features, False), LARGEST_CHUNK)
    else:
        size = rows_on_gpu(point)
    size = memory.rows(size, point, EVALUATION)
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def map_slices(
    function: Callable[[slice], T],
    system: System,
    n: int,
    spec: JetSpec,
    memory: Memory = UNBOUNDED,
) -> Iterator[T]:
    """A function of the rows of every piece (:func:`jet_slices`), in order, without gradient.

    Threads share the pieces; ``function`` is called by several.
    """
    device = next(system.parameters()).device
    slices = jet_slices(system, n, spec, memory)
    return ordered_map(torch.no_grad()(function), slices, memory.sharing(device))


def system_jets(system: System, x: Tensor, spec: JetSpec, side: Side = 1) -> list[Jet]:
    """The jets ``(K, n, n_fields)`` of all networks at points ``(n, d)``, without gradient.

    Args:
        system: networks, and perhaps a past.
        x: points.
        spec: what the jets carry.
        side: from which points on an interface are approached.
    """
    pieces = system.pieces(x)
    with torch.no_grad():
        found = [_own_jets(owner, x[rows], spec, side) for rows, owner in pieces]
    if len(found) == 1:
        return found[0]
    jets = []
    for number, jet in enumerate(found[0]):
        data = jet.data.new_empty(jet.data.shape[0], len(x), jet.data.shape[2])
        for (rows, _), own in zip(pieces, found, strict=True):
            data[:, rows] = own[number].data.to(data.dtype)
        jets.append(Jet(spec, data))
    return jets


def _own_jets(system: System, x: Tensor, spec: JetSpec, side: Side) -> list[Jet]:
    """The jets of a system's own networks, in their type."""
    x = x.to(next(system.parameters()).dtype)
    sides = x.new_full((len(x),), side)
    return [part.jet(part.prepare(x, spec, sides)) for part in system.parts.values()]


def predict_gradient(
    system: System, x: Tensor, fields: Sequence[str], memory: Memory = UNBOUNDED
) -> Tensor:
    """First derivatives ``(n, n_fields, d)`` of the named fields at points ``(n, d)``."""
    dimension = x.shape[1]
    units = [tuple(int(a == b) for b in range(dimension)) for a in range(dimension)]
    spec = JetSpec.closure(dimension, units)
    order = [system.field_names.index(name) for name in fields]
    result = x.new_empty(len(x), len(fields), dimension)

    def fill(rows: slice) -> None:
        jets = system_jets(system, x[rows], spec)
        for axis, unit in enumerate(units):
            columns = torch.cat([jet.component(unit) for jet in jets], -1)
            result[rows, :, axis] = columns[:, order]

    for _ in map_slices(fill, system, len(x), spec, memory):
        pass
    return result

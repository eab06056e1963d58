"""The exact Jacobian of residual rows, chunk by chunk, from one reverse pass per equation.

Points do not interact. With a layer's features ``F`` and the derivatives ``G`` of a point's
residual with respect to the layer's outputs, the derivatives with respect to the coefficients are
the outer product ``sum_k G[k, i, o] F[k, i, f]`` at every point ``i``. What joins several points
(periodicity, jumps, mean values) adds their rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kanpinn.geometry import Points
from kanpinn.models import Prepared
from kanpinn.models.tape import LayerRecord, Tape
from kanpinn.optimisers import ParameterLayout
from kanpinn.residuals import ResidualBlock, System, evaluate_rows


def rows_with_jacobian(
    block: ResidualBlock,
    system: System,
    points: Sequence[Points],
    prepared: Sequence[Mapping[str, Prepared]],
    layout: ParameterLayout,
) -> tuple[Tensor, Tensor]:
    """Residual rows ``(n, m)`` and their derivatives ``(n, m, layout.total)``.

    Args:
        block: the residual, with ``m`` equations.
        system: networks and scalars.
        points: per joined site.
        prepared: per joined site and network.
        layout: the parameters, by the names of their groups.
    """
    tape = Tape()
    rows = evaluate_rows(block, system, points, prepared, tape)
    jacobian = rows.new_zeros(len(points[0]), rows.shape[1], layout.total)
    for equation in range(rows.shape[1]):
        last = equation == rows.shape[1] - 1
        _fill(jacobian[:, equation], rows[:, equation].sum(), tape, system, layout, not last)
    if block.group > 1:
        # The sum's derivative has the mean's 1 / group already.
        jacobian = jacobian.reshape(-1, block.group, *jacobian.shape[1:]).sum(1)
    return rows.detach(), jacobian


def _fill(
    jacobian: Tensor,
    total: Tensor,
    tape: Tape,
    system: System,
    layout: ParameterLayout,
    retain: bool,
) -> None:
    """Add the derivatives of one equation at every point to ``jacobian``, ``(n, parameters)``."""
    where = layout.slices()
    for name, columns in _columns(total, tape, system, retain):
        if name in where:
            jacobian[:, where[name]] += columns


def _columns(
    total: Tensor, tape: Tape, system: System, retain: bool
) -> Sequence[tuple[str, Tensor]]:
    leaves = [leaf for record in tape.layers for leaf in _leaves(record)]
    leaves += tape.scalars.values()
    found = torch.autograd.grad(total, leaves, retain_graph=retain, allow_unused=True)
    adjoints = iter(
        torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)
    )
    columns = []
    for record in tape.layers:
        output = next(adjoints)
        copies = {name: next(adjoints) for name in record.copies}
        layer = system.parts[record.part].network.chain[record.number]
        group = f"{record.part}.layer{record.number}"
        for name, values in layer.jacobian(record.features, output, copies).items():
            columns.append((f"{group}.{name}", values))
    columns += [(f"scalars.{name}", next(adjoints)[:, None]) for name in tape.scalars]
    return columns


def _leaves(record: LayerRecord) -> list[Tensor]:
    return [record.output, *record.copies.values()]

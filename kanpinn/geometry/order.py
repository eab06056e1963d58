"""The order of points: neighbours beside each other."""

from __future__ import annotations

import torch
from torch import Tensor

LEAF = 64  # points that are not ordered any further


def neighbour_order(x: Tensor, leaf: int = LEAF) -> Tensor:
    """Order ``(n,)`` in which points ``(n, d)`` near each other follow each other: a k-d tree's.

    Points are split across the coordinate in which they spread most, in units of the spread of all,
    after the largest number ``leaf * 2^k`` of them. Runs of ``leaf * 2^k`` points, counted from the
    first, are therefore boxes: few functions of local support differ from zero in one. Points of
    one value keep their order.
    """
    spread = x.amax(0) - x.amin(0)
    scaled = x / torch.where(spread > 0, spread, 1.0)

    def ordered(index: Tensor) -> list[Tensor]:
        if len(index) <= leaf:
            return [index]
        here = scaled[index]
        widest = int((here.amax(0) - here.amin(0)).argmax())
        index = index[here[:, widest].argsort(stable=True)]
        size = leaf
        while 2 * size < len(index):
            size *= 2
        return [*ordered(index[:size]), *ordered(index[size:])]

    return torch.cat(ordered(torch.arange(len(x), device=x.device)))

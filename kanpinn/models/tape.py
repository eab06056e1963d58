"""What an evaluation leaves behind for the Jacobian of its residuals.

Points do not interact, so one reverse pass from a sum over points gives the derivatives of every
point's own residual, as long as each point has its own copy of what it depends on. A layer's
outputs have that by themselves; knots and free scalars are copied, point by point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from kanpinn.models.features import Features


@dataclass(frozen=True)
class LayerRecord:
    """One evaluation of one layer.

    Attributes:
        part: name of the network.
        number: of the layer in it.
        features: by parameter ``(out, f)``, those it was contracted with.
        output: the layer's output jets ``(K, n, out_width)``, in the graph.
        copies: per trainable but the coefficients, a leaf with one copy a point, ``(n, ...)``.
    """

    part: str
    number: int
    features: Mapping[str, Features]
    output: Tensor
    copies: Mapping[str, Tensor]


@dataclass
class Tape:
    """Records of the layers in the order of their evaluation, and copies of the scalars.

    Attributes:
        layers: one record for every evaluation of a layer.
        scalars: per trainable scalar, a leaf with one copy a point, ``(n,)``.
        part: name of the network that is being evaluated.
    """

    layers: list[LayerRecord] = field(default_factory=list)
    scalars: dict[str, Tensor] = field(default_factory=dict)
    part: str = ""

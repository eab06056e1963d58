"""KAN, multichannel MLP and plain MLP: chains of layers, each a ``torch.nn.Module``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from kanpinn.errors import ConfigError
from kanpinn.jets import JetSpec
from kanpinn.models.initialise import (
    ACTIVATION_GAIN,
    UNIFORM_VARIANCE,
    VARIANCE_BEFORE_TANH,
    initialise_dense,
    initialise_knot_layer,
)
from kanpinn.models.knot_layer import KnotLayer, KnotLayerSettings
from kanpinn.models.knot_layers import PowerReluLayer, SplineLayer
from kanpinn.models.layer import Layer, Network, apply_elementwise
from kanpinn.splines import Knots

# Highest derivative an activation may be differentiated to inside a residual whose gradient is
# wanted; None: smooth.
ACTIVATION_SMOOTHNESS: dict[str, int | None] = {
    "tanh": None,
    "silu": None,
    "gelu": None,
    "sin": None,
    "relu": 0,
}


class KnotNetwork(Network):
    """A network of layers on knots: what can be refined."""

    layers: nn.ModuleList

    def __init__(self, layers: Sequence[KnotLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    @property
    def knot_layers(self) -> tuple[KnotLayer, ...]:
        """The layers, typed."""
        return tuple(layer for layer in self.layers if isinstance(layer, KnotLayer))

    @property
    def knots(self) -> tuple[Knots, ...]:
        """Knots per layer."""
        return tuple(layer.knots for layer in self.knot_layers)

    @property
    def smoothness(self) -> int | None:
        """Order ``r`` allows derivatives to ``r - 2``: one more is needed for the gradient."""
        return min(layer.order for layer in self.knot_layers) - 2

    def refined(self, knots: Sequence[Knots]) -> Self:
        """The same function on finer, nested knots, layer by layer (exact prolongation).

        Raises:
            NestingError: if a layer's knots do not nest.
        """
        pairs = zip(self.knot_layers, knots, strict=True)
        return type(self)([layer.refined(fine) for layer, fine in pairs])

    def refitted(self, knots: Sequence[Knots]) -> Self:
        """Least-squares projection on any knots, layer by layer: not exact; a baseline."""
        pairs = zip(self.knot_layers, knots, strict=True)
        return type(self)([layer.refitted(fine) for layer, fine in pairs])


class KAN(KnotNetwork):
    """Kolmogorov-Arnold network on B-splines: ``y_q = sum_p phi_qp(x_p)`` in every layer."""

    def to_multichannel(self) -> MultichannelMLP:
        """The same function as a multichannel MLP (power-ReLU basis), ``W = C A``."""
        spline = (layer for layer in self.layers if isinstance(layer, SplineLayer))
        return MultichannelMLP([layer.to_power_relu() for layer in spline])


class MultichannelMLP(KnotNetwork):
    """The twin of a KAN in the power-ReLU basis: ReLU powers with the knots as biases."""

    def to_kan(self) -> KAN:
        """The same function as a KAN, ``C = W A^-1``.

        Raises:
            ConditioningError: if the change of basis would leave no digits.
        """
        relu = (layer for layer in self.layers if isinstance(layer, PowerReluLayer))
        return KAN([layer.to_spline() for layer in relu])


class DenseLayer(Layer):
    """``y = W sigma(omega z) + b``; without an activation, an affine map.

    Args:
        in_width: inputs.
        out_width: outputs.
        activation: name of the elementwise function in front, or ``None``.
        frequency: ``omega``, the frequency factor of a sine network.
    """

    def __init__(
        self, in_width: int, out_width: int, activation: str | None, frequency: float = 1.0
    ) -> None:
        super().__init__()
        self.in_width, self.out_width = in_width, out_width
        self.activation, self.frequency = activation, frequency
        self.coefficients = nn.Parameter(torch.zeros(out_width, in_width, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(out_width, dtype=torch.float64))

    def features(self, z: Tensor, spec: JetSpec) -> Tensor:
        """Jets of the activated inputs, ``(K, n, in_width)``."""
        if self.activation is None:
            return z
        return apply_elementwise(self.activation, self.frequency * z, spec)

    def contract(self, features: Tensor) -> Tensor:
        """Affine map: the bias enters the value alone."""
        y = super().contract(features)
        return torch.cat([(y[0] + self.bias)[None], y[1:]]) if len(y) > 1 else y + self.bias

    def columns(self, adjoint: Tensor, copies: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Layer.columns`."""
        return {"bias": adjoint[0]}

    def extra_repr(self) -> str:
        """Widths and activation."""
        return f"{self.in_width} -> {self.out_width}, activation={self.activation}"


class MLP(Network):
    """Plain multilayer perceptron: affine maps with one fixed activation between them."""

    layers: nn.ModuleList

    def __init__(self, widths: Sequence[int], activation: str, frequency: float = 1.0) -> None:
        super().__init__()
        if activation not in ACTIVATION_SMOOTHNESS:
            raise ConfigError(
                f"activation {activation!r} is unknown; allowed: {', '.join(ACTIVATION_SMOOTHNESS)}"
            )
        self.activation, self.frequency = activation, frequency
        names = [None, *[activation] * (len(widths) - 2)]
        self.layers = nn.ModuleList(
            DenseLayer(p, q, name, frequency)
            for p, q, name in zip(widths, widths[1:], names, strict=False)
        )

    @property
    def smoothness(self) -> int | None:
        """The activation's."""
        return ACTIVATION_SMOOTHNESS[self.activation]


def build_knot_network(
    kind: type[KnotNetwork],
    knots: Sequence[Knots],
    n_outputs: int,
    settings: KnotLayerSettings,
    generator: torch.Generator,
) -> KnotNetwork:
    """A network on the given knots with random initial coefficients.

    The first layer reads normalised coordinates and is not squashed. All others expect inputs as
    spread as those, after the squashing. A multichannel MLP starts as the same function as the KAN
    drawn from the same generator.
    """
    variance = VARIANCE_BEFORE_TANH if settings.squash else UNIFORM_VARIANCE
    layer_type = SplineLayer if kind is KAN else PowerReluLayer
    outputs = [*(k.channels for k in knots[1:]), n_outputs]
    layers: list[KnotLayer] = []
    for number, (k, width) in enumerate(zip(knots, outputs, strict=True)):
        squash = settings.squash if number else None
        own = KnotLayerSettings(settings.free, settings.floor, squash, settings.base)
        layer = layer_type(k, width, own)
        bounded = number == 0 or squash is not None
        initialise_knot_layer(layer, generator, variance, bounded)
        layers.append(layer)
    return kind(layers)


def build_mlp(
    widths: Sequence[int], activation: str, frequency: float, generator: torch.Generator
) -> MLP:
    """A plain MLP with Glorot initial weights times the activation's gain (SIREN for sine).

    Sources: Glorot and Bengio, AISTATS 2010; He et al., arXiv 1502.01852; Sitzmann et al.,
    arXiv 2006.09661 (first layer uniform in 1/n, the others in sqrt(6/n)/omega).
    """
    network = MLP(widths, activation, frequency)
    for number, layer in enumerate(network.layers):
        assert isinstance(layer, DenseLayer)
        bound = None
        if activation == "sin":
            fan = layer.in_width
            bound = math.sqrt(6 / fan) / frequency if number else 1.0 / fan
        gain = ACTIVATION_GAIN.get(activation, 1.0) if number else 1.0
        initialise_dense(layer.coefficients, generator, gain, bound)
    return network

"""Options that describe a model, and the models built from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le

from kanpinn.errors import ConfigError
from kanpinn.models.inputs import AnyInputMap
from kanpinn.models.knot_layer import KnotLayerSettings
from kanpinn.models.layer import Network
from kanpinn.models.networks import KAN, KnotNetwork, MultichannelMLP, build_knot_network, build_mlp
from kanpinn.splines import Knots

PositiveInt = Annotated[int, Gt(0)]
Intervals = Annotated[int, Gt(0), Le(10_000)]
Order = Annotated[int, Ge(2), Le(8)]


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Size and inputs, common to all models."""

    width: Annotated[int, Gt(0), "channels of every hidden layer"] = 8
    hidden_layers: Annotated[int, Ge(0), "number of hidden layers"] = 1
    widths: Annotated[
        tuple[PositiveInt, ...] | None,
        "all widths, inputs and outputs included, instead of width and hidden_layers",
    ] = None
    inputs: Annotated[
        tuple[str | AnyInputMap, ...] | None,
        "what the network reads: coordinate names and input maps; the problem's own by default",
    ] = None

    def resolve_widths(self, n_inputs: int, n_outputs: int) -> tuple[int, ...]:
        """All widths of the network.

        Raises:
            ConfigError: if ``widths`` does not fit the problem.
        """
        if self.widths is None:
            return (n_inputs, *(self.width,) * self.hidden_layers, n_outputs)
        if len(self.widths) < 2 or (self.widths[0], self.widths[-1]) != (n_inputs, n_outputs):
            raise ConfigError(
                f"model.widths: found {list(self.widths)}; the problem needs {n_inputs} input "
                f"channels first and {n_outputs} outputs last"
            )
        return self.widths


@dataclass(frozen=True, kw_only=True)
class KnotNetworkOptions(NetworkOptions):
    """Knots and branches, common to KAN and multichannel MLP."""

    order: Annotated[
        Order | tuple[Order, ...],
        "spline order r (degree r - 1), 2 to 8, one for all layers or one per layer",
    ] = 6
    intervals: Annotated[
        Intervals | tuple[Intervals, ...],
        "knot intervals on the coarsest level, one for all layers or one per layer",
    ] = 4
    breakpoints: Annotated[
        tuple[tuple[tuple[float, ...], ...], ...] | None,
        "knots of the coarsest level per layer and channel on [-1, 1], instead of intervals",
    ] = None
    knots: Annotated[Literal["uniform", "free"], "free: interior knots are trained"] = "uniform"
    knot_floor: Annotated[
        float, Gt(0), Le(0.9), "least spacing of free knots, as a share of the mean spacing"
    ] = 0.05
    squash: Annotated[
        Literal["tanh", "none"], "map in front of the hidden layers that keeps them on the knots"
    ] = "tanh"
    base: Annotated[
        Literal["silu", "none"], "base branch beside the splines, as in the original KAN"
    ] = "none"

    def settings(self) -> KnotLayerSettings:
        """What the layers are made of."""
        return KnotLayerSettings(
            free=self.knots == "free",
            floor=self.knot_floor,
            squash=None if self.squash == "none" else self.squash,
            base=None if self.base == "none" else self.base,
        )

    def coarse_knots(
        self, widths: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> tuple[Knots, ...]:
        """Knots of every layer on the coarsest level."""
        n_layers = len(widths) - 1
        orders = _per_layer("model.order", self.order, n_layers)
        if self.breakpoints is not None:
            return self._given_knots(widths, orders, dtype, device)
        intervals = _per_layer("model.intervals", self.intervals, n_layers)
        return tuple(
            Knots.uniform_grid(order, n, channels, dtype=dtype, device=device)
            for order, n, channels in zip(orders, intervals, widths[:-1], strict=True)
        )

    def _given_knots(
        self,
        widths: Sequence[int],
        orders: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> tuple[Knots, ...]:
        assert self.breakpoints is not None
        found = [len(layer) for layer in self.breakpoints]
        if found != list(widths[:-1]):
            raise ConfigError(
                f"model.breakpoints: found {found} channels per layer, allowed: {widths[:-1]}"
            )
        rows = [
            [torch.tensor(t, dtype=dtype, device=device) for t in layer]
            for layer in self.breakpoints
        ]
        pairs = zip(orders, rows, strict=True)
        given = tuple(Knots.from_breakpoints(order, layer) for order, layer in pairs)
        for number, knots in enumerate(given):
            for p, t in enumerate(knots.breakpoints):
                if (float(t[0]), float(t[-1])) != (-1.0, 1.0):
                    raise ConfigError(
                        f"model.breakpoints.{number}.{p}: found knots from {t[0]:g} to {t[-1]:g}, "
                        "allowed: from -1 to 1, the range of what a layer reads"
                    )
        return given


@dataclass(frozen=True, kw_only=True)
class KANOptions(KnotNetworkOptions):
    """Kolmogorov-Arnold network on B-splines."""

    type: Literal["kan"] = "kan"


@dataclass(frozen=True, kw_only=True)
class MultichannelOptions(KnotNetworkOptions):
    """Multichannel MLP: the same functions in the power-ReLU basis."""

    type: Literal["multichannel"] = "multichannel"


@dataclass(frozen=True, kw_only=True)
class MLPOptions(NetworkOptions):
    """Plain multilayer perceptron."""

    type: Literal["mlp"] = "mlp"
    activation: Annotated[
        Literal["tanh", "silu", "gelu", "relu", "sin"], "activation of the hidden layers"
    ] = "tanh"
    frequency: Annotated[float, Gt(0), "frequency factor of the sine activation"] = 1.0


ModelOptions = KANOptions | MultichannelOptions | MLPOptions


def build_network(
    options: ModelOptions,
    n_inputs: int,
    n_outputs: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
    finer: Callable[[tuple[Knots, ...]], tuple[Knots, ...]] | None = None,
) -> Network:
    """The network the options describe, with random initial parameters.

    ``finer`` maps the knots of the options to those the network is to start on.

    Raises:
        ConfigError: if widths, orders, intervals or knots do not fit together.
    """
    device = device or torch.device("cpu")
    widths = options.resolve_widths(n_inputs, n_outputs)
    if isinstance(options, MLPOptions):
        network = build_mlp(widths, options.activation, options.frequency, generator)
        return network.to(dtype=dtype, device=device)
    kind: type[KnotNetwork] = KAN if isinstance(options, KANOptions) else MultichannelMLP
    knots = options.coarse_knots(widths, torch.float64, torch.device("cpu"))
    knots = knots if finer is None else finer(knots)
    built = build_knot_network(kind, knots, n_outputs, options.settings(), generator)
    return built.to(dtype=dtype, device=device)


def _per_layer(key: str, value: int | tuple[int, ...], n_layers: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * n_layers
    if len(value) != n_layers:
        raise ConfigError(f"{key}: found {len(value)} values, the network has {n_layers} layers")
    return tuple(value)

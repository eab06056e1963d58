"""Models: KAN, multichannel MLP and MLP, all of them carrying jets."""

from kanpinn.models.field_network import FieldNetwork, OutputMap, Prepared
from kanpinn.models.inputs import (
    Abs,
    AnyInputMap,
    Asinh,
    Coordinate,
    Formula,
    Inputs,
    Periodic,
    Step,
)
from kanpinn.models.knot_layer import KnotLayer, KnotLayerSettings
from kanpinn.models.knot_layers import PowerReluLayer, SplineLayer
from kanpinn.models.layer import Layer, Network
from kanpinn.models.networks import KAN, MLP, DenseLayer, KnotNetwork, MultichannelMLP
from kanpinn.models.options import (
    KANOptions,
    MLPOptions,
    ModelOptions,
    MultichannelOptions,
    build_network,
)

__all__ = [
    "KAN",
    "MLP",
    "Abs",
    "AnyInputMap",
    "Asinh",
    "Coordinate",
    "DenseLayer",
    "FieldNetwork",
    "Formula",
    "Inputs",
    "KANOptions",
    "KnotLayer",
    "KnotLayerSettings",
    "KnotNetwork",
    "Layer",
    "MLPOptions",
    "ModelOptions",
    "MultichannelMLP",
    "MultichannelOptions",
    "Network",
    "OutputMap",
    "Periodic",
    "PowerReluLayer",
    "Prepared",
    "SplineLayer",
    "Step",
    "build_network",
]

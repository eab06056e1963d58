"""A penalty on the roughness of the networks' functions: part of the loss, and rows of squares."""

from __future__ import annotations

import math
from fnmatch import fnmatch

import torch
from torch import Tensor

from kanpinn.errors import ConfigError
from kanpinn.models import KnotLayer
from kanpinn.models.roughness import LayerRoughness
from kanpinn.optimisers import ParameterLayout
from kanpinn.residuals import System
from kanpinn.training.options import SmoothingOptions


class Roughness:
    """The roughness of all layers that a penalty acts on; see :class:`LayerRoughness`.

    Args:
        system: the networks, as they are and as training changes them.
        options: which layers, and which derivative.

    Raises:
        ConfigError: if no layer on knots is chosen, or one's order is too low for the derivative.
    """

    def __init__(self, system: System, options: SmoothingOptions) -> None:
        layers = {
            f"{name}.layer{number}": layer
            for name, part in system.parts.items()
            for number, layer in enumerate(part.network.chain)
            if isinstance(layer, KnotLayer)
        }
        if not layers:
            raise ConfigError(
                "training.smoothing: the model has no knots; allowed models: kan, multichannel"
            )
        for pattern in options.layers:
            if not any(fnmatch(name, pattern) for name in layers):
                raise ConfigError(
                    f"training.smoothing.layers: {pattern!r} matches no layer; there are "
                    f"{', '.join(layers)}"
                )
        self.parts: dict[str, LayerRoughness] = {}
        for name, layer in layers.items():
            if any(fnmatch(name, pattern) for pattern in options.layers):
                if options.derivative >= layer.order:
                    raise ConfigError(
                        f"training.smoothing.derivative: found {options.derivative}, allowed: "
                        f"below {layer.order}, the order of the splines of {name}"
                    )
                self.parts[name] = LayerRoughness(layer, options.derivative)

    def rows(self) -> Tensor:
        """The rows ``(m,)`` whose sum of squares is the roughness; differentiable."""
        return torch.cat([part.rows() for part in self.parts.values()])

    def jacobian(self, layout: ParameterLayout) -> Tensor:
        """Derivatives of the rows with respect to the layout's parameters, ``(m, n)``."""
        where, pieces = layout.slices(), []
        for name, part in self.parts.items():
            columns = part.jacobian()
            piece = next(iter(columns.values())).new_zeros(
                len(columns["coefficients"]), layout.total
            )
            for parameter, values in columns.items():
                if (group := f"{name}.{parameter}") in where:
                    piece[:, where[group]] = values
            pieces.append(piece)
        return torch.cat(pieces)


class Penalty:
    """``weight * roughness``, what a loss is increased by.

    Args:
        weight: ``lambda``.
        roughness: of the networks.
    """

    def __init__(self, weight: float, roughness: Roughness) -> None:
        self.roughness, self._root = roughness, math.sqrt(weight)

    def rows(self) -> Tensor:
        """The rows ``(m,)`` whose sum of squares is the penalty; differentiable."""
        return self._root * self.roughness.rows()

    def jacobian_piece(self, layout: ParameterLayout) -> Tensor:
        """``[J | r]`` of the rows, ``(m, n + 1)``."""
        with torch.no_grad():
            rows = self.rows()
        jacobian = self._root * self.roughness.jacobian(layout)
        return torch.cat([jacobian, rows[:, None]], 1)

"""The trainable parameters of a system as one flat vector, in groups."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from kanpinn.errors import ConfigError
from kanpinn.optimisers import ParameterLayout
from kanpinn.residuals import System

LINEAR_PARAMETERS = (
    "coefficients",
    "base_weights",
    "bias",
)  # of a layer: its output is linear in them


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
        linear = linear_groups(system) & set(self.parameters)
        self.layout = ParameterLayout(tuple(self.parameters), sizes, linear)

    def read(self) -> Tensor:
        """The flat vector ``(n,)``, a copy."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters.values()])

    def write(self, theta: Tensor) -> None:
        """Set the parameters from the flat vector."""
        parts = theta.split(self.layout.sizes)
        with torch.no_grad():
            for p, part in zip(self.parameters.values(), parts, strict=True):
                p.copy_(part.view_as(p))


def linear_groups(system: System) -> frozenset[str]:
    """The groups that the fields depend on linearly: what each network's last layer contracts."""
    return frozenset(
        f"{name}.layer{len(part.network.chain) - 1}.{kind}"
        for name, part in system.parts.items()
        for kind in LINEAR_PARAMETERS
    )


def group_name(parameter_name: str) -> str:
    """``networks.main.network.layers.0.coefficients`` -> ``main.layer0.coefficients``."""
    words = parameter_name.split(".")
    if words[0] != "networks":
        return parameter_name
    return ".".join([words[1], f"layer{words[4]}", *words[5:]])

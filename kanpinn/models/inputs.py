"""Input maps: what a network reads, made from the coordinates, each stored by name and numbers.

Every map yields channels spread over about [-1, 1] on the domain, the interval of the first
layer's knots. The maps are jets of the coordinates, so derivatives pass through them exactly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from kanpinn.errors import ConfigError
from kanpinn.expressions import Expression
from kanpinn.jets import FUNCTIONS, Jet
from kanpinn.models.approach import Approach


class InputMap(ABC):
    """One map of coordinates to input channels."""

    map: str
    channels: ClassVar[int] = 1

    @abstractmethod
    def __call__(self, at: Approach) -> Jet:
        """Channels ``(K, n, channels)`` at points approached from a side."""

    @property
    def n_channels(self) -> int:
        """Number of channels the map yields."""
        return self.channels


@dataclass(frozen=True)
class Coordinate(InputMap):
    """The coordinate itself, its range scaled onto [-1, 1]."""

    of: Annotated[str, "name of the coordinate"]
    map: Annotated[Literal["coordinate"], "the coordinate, scaled to [-1, 1]"] = "coordinate"

    def __call__(self, at: Approach) -> Jet:
        """``2 (x - a)/(b - a) - 1``."""
        return _unit(at.coordinates[self.of], *at.bounds[self.of])


@dataclass(frozen=True)
class Abs(InputMap):
    """Distance to a plane, ``|x - at|``: lets one network carry a kink there (a level set)."""

    of: Annotated[str, "name of the coordinate"]
    at: Annotated[float, "position of the kink"] = 0.0
    map: Annotated[Literal["abs"], "distance to a plane, for kinks at interfaces"] = "abs"

    def __call__(self, at: Approach) -> Jet:
        """``|x - at|`` scaled to [-1, 1]; on the plane, the side decides the slope's sign."""
        shifted = at.coordinates[self.of] - self.at
        reach = max(abs(end - self.at) for end in at.bounds[self.of])
        return _unit(shifted * at.sign(self.of, self.at), 0.0, reach)


@dataclass(frozen=True)
class Step(InputMap):
    """Side of a plane, -1 below and +1 above: lets one network carry a jump there."""

    of: Annotated[str, "name of the coordinate"]
    at: Annotated[float, "position of the jump"] = 0.0
    map: Annotated[Literal["step"], "side of a plane, for jumps of the value"] = "step"

    def __call__(self, at: Approach) -> Jet:
        """The sign of ``x - at``; on the plane it is the side, the upper one by default."""
        sign = at.sign(self.of, self.at)
        return Jet.constant(sign[:, None], at.coordinates[self.of].spec)


@dataclass(frozen=True)
class Asinh(InputMap):
    """Graded coordinate ``asinh((x - at)/scale)``: resolves a layer of that width."""

    of: Annotated[str, "name of the coordinate"]
    scale: Annotated[float, Gt(0), "width that is resolved, in the coordinate's unit"]
    at: Annotated[float, "centre of the grading"] = 0.0
    map: Annotated[Literal["asinh"], "graded coordinate, fine near its centre"] = "asinh"

    def __call__(self, at: Approach) -> Jet:
        """``asinh((x - at)/scale)`` scaled to [-1, 1]."""
        lower, upper = (math.asinh((end - self.at) / self.scale) for end in at.bounds[self.of])
        stretched = (at.coordinates[self.of] - self.at) / self.scale
        return _unit(stretched.apply(FUNCTIONS["asinh"]), lower, upper)


@dataclass(frozen=True)
class Periodic(InputMap):
    """Exactly periodic channels ``cos(k w x), sin(k w x)``, ``w = 2 pi/(b - a)``."""

    of: Annotated[str, "name of the coordinate"]
    harmonics: Annotated[int, Ge(1), "number of pairs, k = 1 .. harmonics"] = 1
    map: Annotated[Literal["periodic"], "cosine and sine of the coordinate"] = "periodic"

    @property
    def n_channels(self) -> int:
        """Two per harmonic."""
        return 2 * self.harmonics

    def __call__(self, at: Approach) -> Jet:
        """Cosine and sine of every harmonic."""
        lower, upper = at.bounds[self.of]
        angle = (at.coordinates[self.of] - lower) * (2 * math.pi / (upper - lower))
        rows = []
        for k in range(1, self.harmonics + 1):
            rows += [(angle * k).apply(FUNCTIONS[name]) for name in ("cos", "sin")]
        return Jet(angle.spec, torch.stack([row.data for row in rows], -1))


@dataclass(frozen=True)
class Formula(InputMap):
    """Any expression in the coordinates, a level set for instance, with its range.

    On an interface it is evaluated from each side by itself, where it may kink or jump.
    """

    formula: Annotated[str, "expression in the coordinates"]
    range: Annotated[tuple[float, float], "least and greatest value on the domain"]
    map: Annotated[Literal["formula"], "an expression in the coordinates"] = "formula"

    def __call__(self, at: Approach) -> Jet:
        """The expression, its range scaled to [-1, 1]."""
        value = at.evaluate(Expression.parse(self.formula, tuple(at.coordinates)))
        if not isinstance(value, Jet):
            raise ConfigError(f"model.inputs: formula {self.formula!r} does not use a coordinate")
        return _unit(value, *self.range)


AnyInputMap = Coordinate | Abs | Step | Asinh | Periodic | Formula


def _unit(jet: Jet, lower: float, upper: float) -> Jet:
    scaled = (jet - (lower + upper) / 2) * (2 / (upper - lower))
    return Jet(scaled.spec, scaled.data[..., None])


@dataclass(frozen=True)
class Inputs:
    """All input maps of a network, over a domain.

    Attributes:
        names: coordinates, in the order of the columns of ``x``.
        bounds: range of every coordinate.
        maps: the channels the network reads.
    """

    names: tuple[str, ...]
    bounds: tuple[tuple[float, float], ...]
    maps: tuple[AnyInputMap, ...]

    def __post_init__(self) -> None:
        for entry in self.maps:
            name = getattr(entry, "of", None)
            if name is not None and name not in self.names:
                raise ConfigError(
                    f"model.inputs: coordinate {name!r} is unknown; the problem has "
                    f"{', '.join(self.names)}"
                )
            if isinstance(entry, Formula):
                Expression.parse(entry.formula, self.names)
                if not entry.range[0] < entry.range[1]:
                    raise ConfigError(
                        f"model.inputs: range of {entry.formula!r}: found {list(entry.range)}, "
                        "allowed: two numbers, the lower first"
                    )

    @classmethod
    def coordinates(cls, names: Sequence[str], bounds: Sequence[tuple[float, float]]) -> Inputs:
        """The plain coordinates."""
        return cls(tuple(names), tuple(bounds), tuple(Coordinate(of=name) for name in names))

    @property
    def n_channels(self) -> int:
        """Number of channels the network reads."""
        return sum(entry.n_channels for entry in self.maps)

    def approach(
        self, coordinates: Jet, side: Tensor | None = None, normal: Tensor | None = None
    ) -> Approach:
        """Coordinate jets ``(K, n, d)`` by name, with the sides they are approached from."""
        named = {name: coordinates[:, a] for a, name in enumerate(self.names)}
        return Approach(named, dict(zip(self.names, self.bounds, strict=True)), side, normal)

    def __call__(self, at: Approach) -> Jet:
        """Channels ``(K, n, n_channels)`` at points approached from a side."""
        jets = [entry(at) for entry in self.maps]
        return Jet(jets[0].spec, torch.cat([jet.data for jet in jets], -1))

"""The interface of a problem: a domain, an equation, conditions, perhaps a reference."""

from __future__ import annotations

import keyword
import math
from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kanpinn.ansatz import build_ansatz
from kanpinn.conditions import Condition, Periodic
from kanpinn.errors import ProblemError
from kanpinn.geometry import Box, Domain
from kanpinn.models.field_network import FieldNetwork, OutputMap
from kanpinn.models.inputs import AnyInputMap, Coordinate, Inputs
from kanpinn.models.inputs import Periodic as PeriodicInput
from kanpinn.models.options import ModelOptions, build_network
from kanpinn.residuals import Coordinates, ResidualBlock, Site, System
from kanpinn.splines import Knots


@dataclass(frozen=True)
class Scaling:
    """Affine scaling of one field: user's units = ``shift + scale * scaled``."""

    shift: float = 0.0
    scale: float = 1.0


class Problem(ABC):
    """A differential equation, or data to fit, on a domain.

    A subclass sets ``domain``, writes ``residual``, and lists its ``conditions``::

        class Decay(Problem):
            domain = Box([0.0], [1.0], names=("t",), time="t")
            conditions = (Initial(value=1.0, exact=True),)

            def residual(self, p):
                return p.u.t + p.u

    Parameters that the config may set (``problem: {name: ..., nu: 0.01}``) are the fields of a
    subclass that is a dataclass.

    Attributes:
        domain: where the equation holds.
        fields: names of the unknowns.
        networks: which network gives which fields; one network for all of them by default.
        conditions: boundary, initial and interface conditions.
        inputs: what the networks read, coordinates by name and input maps; the plain coordinates
            by default.
        scales: typical size of each field (shift and scale of the network's output).
        scalars: initial values of trainable scalars (inverse problems).
        residual_weight: factor of the equation's mean square in the objective.
    """

    domain: Domain
    fields: tuple[str, ...] = ("u",)
    networks: Mapping[str, tuple[str, ...]] | None = None
    conditions: Sequence[Condition] = ()
    inputs: Sequence[str | AnyInputMap] | None = None
    scales: Mapping[str, Scaling] = {}
    scalars: Mapping[str, float] = {}
    residual_weight: float = 1.0

    summary: ClassVar[str] = ""

    def residual(self, p: Site) -> Tensor:
        """The equation's residual at the sites, zero for the solution.

        Returns ``(n,)``, or ``(n, m)`` for m equations.
        """
        raise ProblemError(f"{type(self).__name__} defines neither residual(self, p) nor blocks()")

    def blocks(self) -> tuple[ResidualBlock, ...]:
        """All residual blocks: the equation on the interior and the soft conditions."""
        equation = ResidualBlock(
            "equation",
            self.domain.interior(),
            self.residual,
            weight=self.residual_weight,
            equation=True,
        )
        soft = (c.block(self.domain) for c in self.conditions if not c.exact)
        return (equation, *soft)

    def reference(self, x: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """The reference solution ``(n, n_fields)`` or ``(n,)`` at points ``(n, d)``, if known."""
        return None

    def held_out_blocks(self) -> tuple[ResidualBlock, ...] | None:
        """Blocks with points of their own to judge iterates by (validation data), if any.

        By default every block is sampled anew at points that are never trained on; one of finitely
        many points cannot be, and has no part in the held-out residual.
        """
        return None

    def test_blocks(self) -> tuple[ResidualBlock, ...] | None:
        """Blocks of data that nothing is chosen by (test data), if any: shown in figures."""
        return None

    def evaluation_points(self) -> Tensor:
        """Points ``(n, d)`` errors are measured on: about 40,000 on a grid over the domain."""
        x, _ = self.domain.evaluation_grid()
        return x[self.domain.contains(x)]

    def metrics(self, predict: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Further figures of merit of a solution; ``predict`` maps ``(n, d)`` to ``(n, m)``.

        In an inverse problem ``predict.scalars`` holds the trained scalars by name.
        """
        return {}

    def check(self) -> None:
        """Refuse a definition that lacks what every problem needs.

        Raises:
            ProblemError: naming the class and what is missing or unusable.
        """
        name = type(self).__name__
        domain = getattr(self, "domain", None)
        if not isinstance(domain, Domain):
            found = "none" if domain is None else type(domain).__name__
            raise ProblemError(f"{name}.domain: found {found}, allowed: a Box or another Domain")
        for condition in self.conditions:
            if not isinstance(condition, Condition):
                raise ProblemError(
                    f"{name}.conditions: found {type(condition).__name__}, allowed: conditions "
                    "such as Dirichlet(...)"
                )
        check_fields(self.fields, f"{name}.fields")
        check_part_names(self.networks or (), nn.ModuleDict(), f"{name}.networks")
        check_part_names(self.scalars, nn.ParameterDict(), f"{name}.scalars")
        for scalar, start in self.scalars.items():
            if not isinstance(start, int | float) or not math.isfinite(start):
                raise ProblemError(f"{name}.scalars: {scalar!r} is {start!r}, allowed: a number")
        unknown = [field for field in self.scales if field not in self.fields]
        if unknown:
            raise ProblemError(
                f"{name}.scales: found {unknown[0]!r}, allowed: {', '.join(self.fields)}"
            )
        self.network_fields()

    # --- what the solver derives from the above -----------------------------------------------
    @property
    def coordinates(self) -> Coordinates:
        """Names of the coordinates and which of them are space."""
        return Coordinates(tuple(self.domain.names), tuple(self.domain.spatial_axes))

    def network_fields(self) -> dict[str, tuple[str, ...]]:
        """Fields of every network.

        Raises:
            ProblemError: if a field belongs to no network, or to two, or is named like a
                coordinate, or if a condition is on an unknown field.
        """
        networks = dict(self.networks or {"main": tuple(self.fields)})
        listed = [name for fields in networks.values() for name in fields]
        if sorted(listed) != sorted(self.fields):
            raise ProblemError(
                f"networks give the fields {listed}, the problem has {list(self.fields)}"
            )
        clash = set(self.fields) & set(self.domain.names)
        if clash:
            raise ProblemError(f"{sorted(clash)} name both a field and a coordinate")
        for condition in self.conditions:
            if condition.field not in self.fields:
                raise ProblemError(
                    f"{condition.label}: unknown field, allowed: {', '.join(self.fields)}"
                )
        return networks

    def input_maps(self, chosen: Sequence[str | AnyInputMap] | None) -> Inputs:
        """Input maps: the config's choice, or the problem's, periodic where that is exact."""
        names = tuple(self.domain.names)
        bounds = tuple(zip(self.domain.lower, self.domain.upper, strict=True))
        entries = chosen if chosen is not None else self.inputs
        entries = list(entries if entries is not None else names)
        maps = [Coordinate(of=entry) if isinstance(entry, str) else entry for entry in entries]
        for condition in self.conditions:
            if condition.exact and isinstance(condition, Periodic):
                maps = _made_periodic(maps, condition)
        return Inputs(names, bounds, tuple(maps))

    def output_map(self, name: str) -> OutputMap:
        """Built-in conditions and scaling of one field."""
        scaling = self.scales.get(name, Scaling())
        exact = [
            c
            for c in self.conditions
            if c.exact and c.field == name and not isinstance(c, Periodic)
        ]
        if exact and not isinstance(self.domain, Box):
            raise ProblemError(f"{exact[0].label}: exact conditions need a box")
        domain = self.domain
        faces = [face for c in exact if isinstance(domain, Box) for face in c.faces(domain)]
        return build_ansatz(
            faces, domain.names, domain.lower, domain.upper, scaling.scale, scaling.shift
        )


def check_fields(fields: Sequence[str], where: str) -> None:
    """Refuse names that a residual could not write as ``p.<name>``, and repeated ones."""
    taken = {*dir(Site), *Site.__dataclass_fields__}
    if isinstance(fields, str) or not fields:
        raise ProblemError(f"{where}: found {fields!r}, allowed: names such as ('u', 'v')")
    for field in fields:
        usable = isinstance(field, str) and field.isidentifier() and not keyword.iskeyword(field)
        if not usable or field.startswith("_") or field in taken:
            raise ProblemError(
                f"{where}: found {field!r}, allowed: Python names, no underscore first, but "
                f"{', '.join(sorted(entry for entry in taken if not entry.startswith('_')))}"
            )
    if len(set(fields)) < len(fields):
        raise ProblemError(f"{where}: found {list(fields)}, allowed: different names")


def check_part_names(names: Iterable[str], container: nn.Module, where: str) -> None:
    """Refuse names of networks and scalars that PyTorch cannot keep, or that would be ambiguous."""
    for name in names:
        if not isinstance(name, str) or not name or "." in name or hasattr(container, name):
            raise ProblemError(
                f"{where}: found {name!r}, allowed: text without dots that is no attribute of "
                f"torch.nn.{type(container).__name__}, such as 'flow'"
            )


def _made_periodic(maps: Sequence[AnyInputMap], condition: Periodic) -> list[AnyInputMap]:
    """Periodic channels in the place of the first channel of that axis.

    Other channels of the axis are dropped, but the config's own periodic ones stay.
    """
    own = [m for m in maps if getattr(m, "of", None) == condition.axis]
    position = maps.index(own[0]) if own else len(maps)
    chosen = [m for m in own if isinstance(m, PeriodicInput)] or [condition.input_map()]
    others = [[m for m in part if m not in own] for part in (maps[:position], maps[position:])]
    return [*others[0], *chosen, *others[1]]


def build_system(
    problem: Problem,
    options: ModelOptions,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
    finer: Callable[[tuple[Knots, ...]], tuple[Knots, ...]] | None = None,
    past: System | None = None,
) -> System:
    """Field networks and scalars of a problem, with random initial parameters.

    ``finer`` maps the coarsest level's knots to those the networks are to start on; ``past`` is the
    system that these networks continue in time.
    """
    inputs = problem.input_maps(options.inputs)
    networks = {}
    for name, fields in problem.network_fields().items():
        network = build_network(
            options, inputs.n_channels, len(fields), generator, dtype, device, finer
        )
        outputs = tuple(problem.output_map(field) for field in fields)
        networks[name] = FieldNetwork(fields, inputs, network, outputs)
    return System(networks, problem.coordinates, problem.scalars, past)

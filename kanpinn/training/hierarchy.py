"""The hierarchy of levels: what each level's knots are, apart from running it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kanpinn.errors import ConditioningError, ConfigError, KnotError, NestingError
from kanpinn.models import FieldNetwork, KnotNetwork, Network
from kanpinn.residuals import System
from kanpinn.splines import Knots
from kanpinn.training.options import LayerKnots, TrainingOptions

MOST_INTERVALS = 10_000  # that a list of refinements may ask for


@dataclass(frozen=True)
class Refinement:
    """How the knots of one level follow from those of the level before.

    Attributes:
        layers: per layer, whether to halve every interval (a flag), the new number of intervals,
            or the new breakpoints.
        share: where a flag is set, halve this share of the layer's intervals instead of all.
            Training decides which (:mod:`kanpinn.training.knot_insertion`).
    """

    layers: tuple[bool | LayerKnots, ...]
    share: float | None = None

    def apply(self, knots: Sequence[Knots]) -> tuple[Knots, ...]:
        """The finer knots in float64, layer by layer; of a share, for plans, longest intervals."""
        pairs = zip(knots, self.layers, strict=True)
        return tuple(
            self._finer(k.widened(), rule, number) for number, (k, rule) in enumerate(pairs)
        )

    def count(self, knots: Knots) -> int:
        """How many intervals of a layer are halved at most, where there is a share."""
        assert self.share is not None
        return max(1, round(self.share * sum(knots.n_intervals)))

    def _finer(self, knots: Knots, rule: bool | LayerKnots, layer: int) -> Knots:
        if self.share is None or not rule:
            return _refine(knots, rule, layer)
        lengths = [t.diff().tolist() for t in knots.breakpoints]
        return knots.bisected(largest(lengths, self.count(knots)))


def largest(values: Sequence[Sequence[float]], count: int) -> list[list[int]]:
    """Where the largest values of all rows are, in every row; of equal ones the first."""
    places = [(p, j) for p, row in enumerate(values) for j in range(len(row))]
    places.sort(key=lambda place: -values[place[0]][place[1]])
    chosen = sorted(places[:count])
    return [[j for q, j in chosen if q == p] for p in range(len(values))]


def _refine(knots: Knots, rule: bool | LayerKnots, layer: int) -> Knots:
    if isinstance(rule, bool):
        return knots.refined() if rule else knots
    if isinstance(rule, int):
        rows = [_subdivided(t, rule, layer) for t in knots.breakpoints]
        return Knots.from_breakpoints(knots.order, rows)
    like = knots.breakpoints[0]
    return Knots.from_breakpoints(knots.order, [like.new_tensor(rule)] * knots.channels)


def _subdivided(t: torch.Tensor, intervals: int, layer: int) -> torch.Tensor:
    """Every interval cut into equal parts, or, where that is not possible, equal spacing."""
    if intervals > MOST_INTERVALS:
        raise ConfigError(
            f"training.refine: found {intervals} intervals in layer {layer}, allowed: at most "
            f"{MOST_INTERVALS}"
        )
    n = len(t) - 1
    if intervals % n:
        return torch.linspace(
            float(t[0]), float(t[-1]), intervals + 1, dtype=t.dtype, device=t.device
        )
    share = torch.arange(intervals // n, dtype=t.dtype, device=t.device) / (intervals // n)
    inner = t[:-1, None] + (t[1:] - t[:-1])[:, None] * share
    return torch.cat([inner.reshape(-1), t[-1:]])


@dataclass(frozen=True)
class Level:
    """One level of the hierarchy: a plain record.

    Attributes:
        index: 0 is the coarsest.
        steps: optimiser steps of every stage (phase, and penalty where there are some).
        refinement: how its knots follow from those of the level before; none on level 0.
        n_intervals: knot intervals per layer, the rounded mean over its channels.
        n_parameters: trainable numbers.
    """

    index: int
    steps: tuple[int, ...]
    refinement: Refinement | None
    n_intervals: tuple[int, ...]
    n_parameters: int

    @property
    def at_most(self) -> bool:
        """Whether training may make less of it than its intervals and parameters."""
        return self.refinement is not None and self.refinement.share is not None


@dataclass(frozen=True)
class Hierarchy:
    """All levels, coarsest first."""

    levels: tuple[Level, ...]

    def __repr__(self) -> str:
        lines = ["level  intervals       parameters  steps"]
        for level in self.levels:
            intervals = "/".join(str(n) for n in level.n_intervals) or "-"
            steps = "+".join(str(n) for n in level.steps)
            count = f"{'<= ' if level.at_most else ''}{level.n_parameters}"
            lines.append(f"{level.index:>5}  {intervals:<14}  {count:>10}  {steps}")
        return "\n".join(lines)


def first_network(system: System) -> Network:
    """The network the hierarchy is described by: all of a system's are on as many knots."""
    return next(iter(system.parts.values())).network


def first_knots(system: System) -> tuple[Knots, ...]:
    """Its knots per layer, none if it has none."""
    network = first_network(system)
    return network.knots if isinstance(network, KnotNetwork) else ()


def mean_intervals(knots: Sequence[Knots]) -> tuple[int, ...]:
    """Knot intervals per layer, the rounded mean over its channels."""
    return tuple(round(sum(k.n_intervals) / k.channels) for k in knots)


def build_hierarchy(system: System, options: TrainingOptions) -> Hierarchy:
    """The levels that ``options`` ask for, from a system on the coarsest level.

    Raises:
        ConfigError: if the model has no knots and is to be refined, or a refinement does not fit
            the network's layers.
        NestingError: later, when knots that do not nest are to be prolongated exactly.
    """
    network = first_network(system)
    if not isinstance(network, KnotNetwork) and options.levels > 1:
        raise ConfigError(
            f"training.levels: found {options.levels}; a model without knots has one level"
        )
    if not isinstance(network, KnotNetwork) and (options.adapts or options.marks):
        raise ConfigError(
            f"training.refine: found {options.refine!r}, allowed: dyadic, because the model has no "
            "knots"
        )
    levels: list[Level] = []
    knots = first_knots(system)
    for index in range(options.levels):
        rule = _refinement(options, index, len(knots)) if index else None
        if rule is not None:
            knots = rule.apply(knots)
        levels.append(
            Level(
                index=index,
                steps=tuple(options.steps_of(phase, index) for phase, _ in options.stages),
                refinement=rule,
                n_intervals=mean_intervals(knots),
                n_parameters=_count_parameters(system, knots),
            )
        )
    return Hierarchy(tuple(levels))


def _refinement(options: TrainingOptions, index: int, n_layers: int) -> Refinement:
    if isinstance(options.refine, str):
        flags = options.refine_layers or (True,) * n_layers
        if len(flags) != n_layers:
            raise ConfigError(
                f"training.refine_layers: found {len(flags)} entries, the network has "
                f"{n_layers} layers"
            )
        return Refinement(tuple(flags), options.refine_share if options.marks else None)
    rule = options.refine[index - 1]
    layers = (rule,) * n_layers if isinstance(rule, int) else rule
    if len(layers) != n_layers:
        raise ConfigError(
            f"training.refine[{index - 1}]: found {len(layers)} entries, the network has "
            f"{n_layers} layers"
        )
    return Refinement(tuple(layers))


def _count_parameters(system: System, knots: Sequence[Knots]) -> int:
    """Trainable numbers on the given knots, without building the networks."""
    total = sum(p.numel() for p in system.scalars.parameters())
    for part in system.parts.values():
        if not isinstance(part.network, KnotNetwork):
            total += sum(p.numel() for p in part.parameters())
            continue
        for layer, k in zip(part.network.knot_layers, knots, strict=True):
            base = layer.in_width if layer.settings.base else 0
            total += layer.out_width * (k.n_features + base)
            total += sum(k.n_intervals) if layer.settings.free else 0
    return total


def refine_system(
    system: System, refinements: Sequence[Refinement], transfer: str, dtype: torch.dtype
) -> System:
    """The system on a finer level's knots: the same function, or refitted by least squares.

    Args:
        system: on a coarser level.
        refinements: from level to level.
        transfer: ``prolongation`` or ``least_squares``.
        dtype: type of the result; levels between are in float64.

    Raises:
        NestingError: if knots do not nest and the transfer is exact.
        ConditioningError: if the type cannot carry the result.
        KnotError: if knots coincide in it.
    """
    for number, rule in enumerate(refinements, 1):
        fine = {name: rule.apply(net.knots) for name, net in knot_networks(system).items()}
        last = number == len(refinements)
        system = on_knots(system, fine, transfer, dtype if last else torch.float64)
    return system


def on_knots(
    system: System,
    knots: Mapping[str, Sequence[Knots]],
    transfer: str,
    dtype: torch.dtype | None = None,
) -> System:
    """The same with the knots of every network given, layer by layer; by default in their type."""
    exact, parts = transfer == "prolongation", {}
    for name, net in knot_networks(system).items():
        fine = [k if dtype is None else k.to(dtype) for k in knots[name]]
        finer = net.refined(fine) if exact else net.refitted(fine)
        parts[name] = system.parts[name].with_network(finer)
    return with_parts(system, parts)


def in_type(system: System, dtype: torch.dtype) -> System:
    """A copy of a system's own networks and scalars in a type; its past is shared."""
    parts = {name: copy.deepcopy(part).to(dtype) for name, part in system.parts.items()}
    return with_parts(system, parts)


def knot_networks(system: System) -> dict[str, KnotNetwork]:
    """All networks, which are ones on knots."""
    networks = {name: part.network for name, part in system.parts.items()}
    return {name: net for name, net in networks.items() if isinstance(net, KnotNetwork)}


@contextmanager
def naming_level(level: int) -> Iterator[None]:
    """What is wrong with knots, as an error of the refinement from that level."""
    try:
        yield
    except (NestingError, ConditioningError, KnotError) as error:
        raise ConfigError(f"training.refine: from level {level}: {error}") from error


def with_parts(system: System, parts: dict[str, FieldNetwork]) -> System:
    """A system of other networks with the same scalars' values and past."""
    scalars = {name: float(value.detach()) for name, value in system.scalars.items()}
    return System(parts, system.coordinates, scalars, system.past)

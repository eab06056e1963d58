"""The hierarchy of levels: what each level's knots are, apart from running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kanpinn.errors import ConfigError
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
    """

    layers: tuple[bool | LayerKnots, ...]

    def apply(self, knots: Sequence[Knots]) -> tuple[Knots, ...]:
        """The finer knots, layer by layer."""
        pairs = zip(knots, self.layers, strict=True)
        return tuple(_refine(k, rule, number) for number, (k, rule) in enumerate(pairs))


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
        refinements: how its knots follow from those of the level before; none on level 0.
        n_intervals: knot intervals of the first channel, per layer.
        n_parameters: trainable numbers.
    """

    index: int
    steps: tuple[int, ...]
    refinement: Refinement | None
    n_intervals: tuple[int, ...]
    n_parameters: int


@dataclass(frozen=True)
class Hierarchy:
    """All levels, coarsest first."""

    levels: tuple[Level, ...]

    def __repr__(self) -> str:
        lines = ["level  intervals       parameters  steps"]
        for level in self.levels:
            intervals = "/".join(str(n) for n in level.n_intervals) or "-"
            steps = "+".join(str(n) for n in level.steps)
            lines.append(f"{level.index:>5}  {intervals:<14}  {level.n_parameters:>10}  {steps}")
        return "\n".join(lines)


def first_network(system: System) -> Network:
    """The network the hierarchy is described by: all of a system's share their knots."""
    return next(iter(system.parts.values())).network


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
    if not isinstance(network, KnotNetwork) and options.adapts:
        raise ConfigError(
            "training.refine: found 'auto', allowed: dyadic, because the model has no knots"
        )
    levels: list[Level] = []
    knots = network.knots if isinstance(network, KnotNetwork) else ()
    for index in range(options.levels):
        rule = _refinement(options, index, len(knots)) if index else None
        if rule is not None:
            knots = rule.apply(knots)
        levels.append(
            Level(
                index=index,
                steps=tuple(phase.steps_on(index) for phase, _ in options.stages),
                refinement=rule,
                n_intervals=tuple(k.n_intervals[0] for k in knots),
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
        return Refinement(tuple(flags))
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


def refine_system(system: System, refinement: Refinement, transfer: str) -> System:
    """The system on the next level's knots: the same function, or refitted by least squares.

    Raises:
        NestingError: if knots do not nest and the transfer is exact.
    """
    parts = {}
    for name, part in system.parts.items():
        network = part.network
        assert isinstance(network, KnotNetwork)
        fine = refinement.apply(network.knots)
        exact = transfer == "prolongation"
        parts[name] = part.with_network(network.refined(fine) if exact else network.refitted(fine))
    return with_parts(system, parts)


def with_parts(system: System, parts: dict[str, FieldNetwork]) -> System:
    """A system of other networks with the same scalars' values and past."""
    scalars = {name: float(value.detach()) for name, value in system.scalars.items()}
    return System(parts, system.coordinates, scalars, system.past)

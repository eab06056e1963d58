"""Time windows: an evolution equation is solved on one piece of its time interval after the other.

A window is the problem itself on a part of the time interval, with initial values that are those of
the window before at its end, and networks of its own. Each system knows the one it continues
(:attr:`~kanpinn.residuals.System.past`), so that the last one is the solution at all times.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import final

import torch
from torch import Tensor

from kanpinn.conditions import Condition, Dirichlet, Initial
from kanpinn.errors import ConfigError
from kanpinn.geometry import Box, Points
from kanpinn.geometry.regions import Region
from kanpinn.jets import JetSpec
from kanpinn.problem import Problem
from kanpinn.residuals import ResidualBlock, Site, System

HANDED_OVER = "handed over"  # data column of the points of a window's initial values


@final
class Interface(Region):
    """The initial time of a window, its points with what the window before says there.

    Args:
        region: the initial time, where there is one site a row.
        past: the system of the window before.
        field: which of its fields.
        derivative: order of the derivative in time.
    """

    def __init__(self, region: Region, past: System, field: str, derivative: int = 0) -> None:
        self.region, self.past, self.field, self.derivative = region, past, field, derivative
        self.name, self.kind = region.name, region.kind
        self.unit_dimension, self.measure = region.unit_dimension, region.measure
        self.acceptance = region.acceptance

    def accepts(self, unit: Tensor) -> Tensor:
        """As the region does."""
        return self.region.accepts(unit)

    def place(self, unit: Tensor) -> tuple[Points, ...]:
        """The region's points, with the data column ``HANDED_OVER``."""
        (points,) = self.region.place(unit)
        values = self._values(points.x).to(points.x)
        return (replace(points, data={**points.data, HANDED_OVER: values}),)

    def _values(self, x: Tensor) -> Tensor:
        """Values, or derivatives in time, ``(n,)`` of the field at points ``(n, d)``."""
        time = len(self.past.coordinates.names) - 1
        index = (0,) * time + (self.derivative,)
        spec = JetSpec.closure(time + 1, (index,))
        at = x.to(next(iter(self.past.parameters())))
        with torch.no_grad():
            for part in self.past.parts.values():
                if self.field in part.fields:
                    jet = part.jet(part.prepare(at, spec))
                    return jet.component(index)[:, part.fields.index(self.field)]
        raise ValueError(f"no network gives {self.field!r}")


@dataclass(frozen=True, kw_only=True)
class HandedOver(Initial):
    """``u`` (or a derivative in time) is that of the window before, at the window's start."""

    past: System

    def block(self, domain: Box) -> ResidualBlock:  # type: ignore[override]
        """The initial condition, on points that carry its values."""
        plain = super().block(domain)
        region = Interface(plain.region, self.past, self.field, self.derivative)
        return replace(plain, region=region)


def window_problem(problem: Problem, number: int, count: int, past: System | None) -> Problem:
    """The problem on window ``number`` of ``count``; the first one begins as the problem does.

    Args:
        problem: on the whole time interval.
        number: from 0.
        count: windows of equal length.
        past: the system of the window before.
    """
    if count == 1:
        return problem
    domain = problem.domain
    assert isinstance(domain, Box)  # check_windows
    start, end = domain.lower[-1], domain.upper[-1]
    edges = [start + (end - start) * k / count for k in range(count)] + [end]
    result = copy.copy(problem)
    result.domain = replace(
        domain,
        lower=(*domain.lower[:-1], edges[number]),
        upper=(*domain.upper[:-1], edges[number + 1]),
    )
    if past is not None:
        result.conditions = tuple(_continued(c, domain, past) for c in problem.conditions)
    return result


def evaluation_points(problem: Problem, window: Problem) -> Tensor:
    """The problem's evaluation points ``(n, d)`` up to the end of a window."""
    x = problem.evaluation_points()
    if window is problem:
        return x
    return x[x[:, -1] <= window.domain.upper[-1]]


def _continued(condition: Condition, domain: Box, past: System) -> Condition:
    """A condition as later windows have it."""
    if not _is_initial(condition, domain):
        return condition
    assert isinstance(condition, Dirichlet)  # check_windows
    shared = {f.name: getattr(condition, f.name) for f in fields(Dirichlet)}
    shared["value"] = lambda p: _handed_over(p)
    return HandedOver(**shared, derivative=getattr(condition, "derivative", 0), past=past)


def _handed_over(site: Site) -> Tensor:
    return site.data[HANDED_OVER]


def _is_initial(condition: Condition, domain: Box) -> bool:
    return not condition.exact and domain.region(condition.on).name == "initial"


def check_windows(problem: Problem, blocks: Sequence[ResidualBlock], count: int) -> None:
    """Refuse windows for problems that cannot be cut in time.

    Raises:
        ConfigError: saying why, and what is allowed.
    """
    if count == 1:
        return

    def refuse(reason: str) -> ConfigError:
        return ConfigError(f"training.windows: found {count}, allowed: 1, because {reason}")

    domain = problem.domain
    if domain.time is None or not isinstance(domain, Box):
        raise refuse("the problem's domain is no box with a time coordinate")
    own = type(problem).blocks is not Problem.blocks
    if own or problem.held_out_blocks() is not None:
        raise refuse("the problem defines its own blocks, which may hold at any time")
    if problem.scalars:
        raise refuse("the problem trains scalars, which all times share")
    ends = [c for c in problem.conditions if c.on in ("initial", f"{domain.time}.lower")]
    for condition in ends:
        if condition.exact:
            raise refuse(
                f"{condition.label} is built in; penalised initial values (exact=False, often "
                "problem.exact_initial=false) can be handed over"
            )
        if not isinstance(condition, Dirichlet):
            raise refuse(f"{condition.label} gives no values to hand over")
    if not ends:
        raise refuse("the problem has no initial values")
    late = [b for b in blocks if b.region.name == "final" or b.group > 1]
    if late:
        raise refuse(f"{late[0].name} joins or fixes what lies in other windows")

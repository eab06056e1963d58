"""Residual blocks: what a problem asks of its fields, and how a row of it is evaluated.

A block lives on a region. A row of it may join several sites (the two faces of a periodic pair,
the two sides of an interface) or many points (a mean value). What derivatives a block needs is
found by running it once on recording fields; no list has to be kept in step with the equation.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from kanpinn.errors import KanpinnError, ProblemError
from kanpinn.geometry import Points, Region
from kanpinn.jets import MAX_ORDER, Jet, JetSpec
from kanpinn.models.field_network import FieldNetwork, Prepared
from kanpinn.models.tape import Tape

Component = Callable[[tuple[int, ...] | str], Tensor]
LAPLACIAN = "laplacian"


@dataclass(frozen=True)
class Coordinates:
    """Names of the coordinates and which of them are space."""

    names: tuple[str, ...]
    spatial: tuple[int, ...]

    @property
    def time(self) -> int | None:
        """Index of the time coordinate, if there is one."""
        others = [axis for axis in range(len(self.names)) if axis not in self.spatial]
        return others[0] if others else None

    def index(self, letters: Sequence[str], where: str) -> tuple[int, ...]:
        """The multi-index of a derivative by coordinate names."""
        index = [0] * len(self.names)
        for letter in letters:
            if letter not in self.names:
                raise AttributeError(
                    f"{where}: {letter!r} is no coordinate; coordinates: {', '.join(self.names)}"
                )
            index[self.names.index(letter)] += 1
        if sum(index) > MAX_ORDER:
            raise ProblemError(f"{where}: derivatives are available up to order {MAX_ORDER}")
        return tuple(index)


class Field:
    """One field at the sites of a block: its value, and its derivatives by name.

    ``u.x``, ``u.xt``, ``u.xx`` and ``u.d("x", "x")`` are derivatives, ``u.laplacian`` is summed
    over the space coordinates, ``u.normal_derivative`` is along the outward normal. In arithmetic
    ``u`` stands for its value.
    """

    def __init__(
        self, name: str, component: Component, coordinates: Coordinates, normal: Tensor | None
    ) -> None:
        self._name, self._component = name, component
        self._coordinates, self._normal = coordinates, normal

    @property
    def value(self) -> Tensor:
        """Values ``(n,)``."""
        return self._component((0,) * len(self._coordinates.names))

    @property
    def laplacian(self) -> Tensor:
        """``sum_a d^2 u/dx_a^2`` over the space coordinates, ``(n,)``."""
        if not self._coordinates.spatial:
            raise ProblemError(f"{self._name}.laplacian: there is no space coordinate")
        return self._component(LAPLACIAN)

    @property
    def normal_derivative(self) -> Tensor:
        """``n . grad u``, ``(n,)``."""
        if self._normal is None:
            raise ProblemError(f"{self._name}.normal_derivative: this region has no normal")
        names = self._coordinates.names
        parts = [self._normal[:, a] * self.d(name) for a, name in enumerate(names)]
        return sum(parts[1:], parts[0])

    def d(self, *names: str) -> Tensor:
        """The derivative along the named coordinates, ``(n,)``."""
        where = f"{self._name}.d({', '.join(names)})"
        return self._component(self._coordinates.index(names, where))

    def __getattr__(self, letters: str) -> Tensor:
        if letters.startswith("_"):
            raise AttributeError(letters)
        whole = (letters,) if letters in self._coordinates.names else tuple(letters)
        return self._component(self._coordinates.index(whole, f"{self._name}.{letters}"))

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = {name: _plain(entry) for name, entry in (kwargs or {}).items()}
        return func(*_plain(args), **named)


def _plain(entry: Any) -> Any:
    """Values instead of fields, in lists too (``torch.stack([p.u, p.v])``)."""
    if isinstance(entry, list | tuple):
        return type(entry)(_plain(part) for part in entry)
    return entry.value if isinstance(entry, Field) else entry


def _operator(name: str) -> Callable[..., Any]:
    def method(self: Field, *others: Any) -> Any:
        plain = (other.value if isinstance(other, Field) else other for other in others)
        return getattr(self.value, name)(*plain)

    method.__name__ = name
    return method


for _name in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow"),
    *("neg", "abs", "lt", "le", "gt", "ge"),
):
    setattr(Field, f"__{_name}__", _operator(f"__{_name}__"))


@dataclass(frozen=True)
class Site:
    """What a residual sees at its points: coordinates, fields, normals, data, scalars.

    ``p.x`` and ``p.t`` are coordinates ``(n,)``; ``p.u`` is a field; ``p.points`` holds the sites
    with ``normal`` and ``side``; ``p.data["name"]`` a measured column; ``p.scalars.nu`` a
    trainable scalar.
    """

    points: Points
    fields: Mapping[str, Field]
    coordinates: Coordinates
    scalars: SimpleNamespace = field(default_factory=SimpleNamespace)

    @property
    def normal(self) -> Tensor | None:
        """Outward unit normals ``(n, d)``."""
        return self.points.normal

    @property
    def side(self) -> Tensor:
        """Side of the interface ``(n,)``: -1, 0, +1."""
        if self.points.side is None:
            return self.points.x.new_zeros(len(self.points))
        return self.points.side.to(self.points.x.dtype)

    @property
    def data(self) -> Mapping[str, Tensor]:
        """Measured columns ``(n,)``."""
        return self.points.data

    def coordinate(self, name: str) -> Tensor:
        """One coordinate, ``(n,)``."""
        return self.points.x[:, self.coordinates.names.index(name)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self.fields:
            return self.fields[name]
        if name in self.coordinates.names:
            return self.coordinate(name)
        known = ", ".join([*self.fields, *self.coordinates.names])
        raise AttributeError(f"{name!r} is neither field nor coordinate; there are {known}")


Residual = Callable[..., Tensor]


@dataclass(frozen=True)
class ResidualBlock:
    """One named set of residual rows.

    Attributes:
        name: how the block is called in logs.
        region: where it lives; rows join ``region.n_sites`` sites.
        residual: called with one :class:`Site` per joined site; returns ``(n,)`` or ``(n, m)``.
        weight: factor of its mean square in the objective.
        group: points averaged into one row (a mean value); 1: every point is a row.
        loss: a general loss of the residual's values, ``(n, m)`` to ``(n,)``, that only gradient
            methods take; ``None`` for the square.
        equation: whether it is part of the differential equation (or of the data to fit), and
            thereby of the held-out residual.
        points: number of points on level 0 instead of the sampling options'.
    """

    name: str
    region: Region
    residual: Residual
    weight: float = 1.0
    group: int = 1
    loss: Callable[[Tensor], Tensor] | None = None
    equation: bool = False
    points: int | None = None

    @property
    def is_least_squares(self) -> bool:
        """Whether the block is a sum of squares."""
        return self.loss is None


class System(nn.Module):
    """Everything trainable: field networks by name, and free scalars.

    Args:
        networks: each gives some of the fields.
        coordinates: names and space axes.
        scalars: initial values of trainable scalars (inverse problems).
        past: the trained system that this one continues in time, from its own initial time on; none
            of its parameters are this system's.
    """

    def __init__(
        self,
        networks: Mapping[str, FieldNetwork],
        coordinates: Coordinates,
        scalars: Mapping[str, float] | None = None,
        past: System | None = None,
    ) -> None:
        super().__init__()
        self._past = (past,)  # in a tuple: no submodule
        self.networks = nn.ModuleDict(networks)
        self.coordinates = coordinates
        like = next(iter(self.networks.parameters()))
        self.scalars = nn.ParameterDict(
            {name: nn.Parameter(like.new_tensor(start)) for name, start in (scalars or {}).items()}
        )

    @property
    def parts(self) -> dict[str, FieldNetwork]:
        """The field networks, typed."""
        return {k: v for k, v in self.networks.items() if isinstance(v, FieldNetwork)}

    @property
    def field_names(self) -> tuple[str, ...]:
        """All fields, network after network."""
        return tuple(name for part in self.parts.values() for name in part.fields)

    @property
    def past(self) -> System | None:
        """The system that this one continues in time."""
        return self._past[0]

    def follow(self, past: System | None) -> None:
        """Continue another system."""
        self._past = (past,)

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """Range of every coordinate, the past included."""
        own = next(iter(self.parts.values())).inputs.bounds
        if self.past is None:
            return own
        return (*own[:-1], (self.past.bounds[-1][0], own[-1][1]))

    def pieces(self, x: Tensor) -> list[tuple[Tensor | slice, System]]:
        """The rows of points ``(n, d)`` by the system that answers for their times."""
        if self.past is None:
            return [(slice(None), self)]
        found: list[tuple[Tensor, System]] = []
        system, rest = self, torch.ones(len(x), dtype=torch.bool, device=x.device)
        while system.past is not None:
            start = next(iter(system.parts.values())).inputs.bounds[-1][0]
            later = rest & (x[:, -1] >= start)
            found.append((later, system))
            system, rest = system.past, rest & ~later
        found.append((rest, system))
        return [(rows, owner) for rows, owner in found if bool(rows.any())] or [(rest, self)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> System:
        if self.past is not None:
            self.past._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def values(self, x: Tensor, fields: Sequence[str] | None = None) -> Tensor:
        """Fields ``(n, n_fields)`` at points ``(n, d)``: those named, or all by network.

        In the type of the points, whatever those of the networks.
        """
        if self.past is None:
            return self._own_values(x, fields)
        result = x.new_empty(len(x), len(fields or self.field_names))
        for rows, system in self.pieces(x):
            result[rows] = system._own_values(x[rows], fields)
        return result

    def _own_values(self, x: Tensor, fields: Sequence[str] | None) -> Tensor:
        own = x.to(next(self.parameters()).dtype)
        columns = torch.cat([part(own) for part in self.parts.values()], -1).to(x.dtype)
        if not fields:
            return columns
        return torch.stack([columns[:, self.field_names.index(name)] for name in fields], -1)

    @property
    def n_parameters(self) -> int:
        """Number of trainable numbers."""
        return sum(p.numel() for p in self.parameters())

    def sites(
        self,
        points: Sequence[Points],
        prepared: Sequence[Mapping[str, Prepared]],
        tape: Tape | None = None,
    ) -> tuple[Site, ...]:
        """Sites with the fields' jets at the given points.

        With a ``tape``, which records what the Jacobian needs, scalars have one copy a point.
        """
        scalars: dict[str, Tensor] = dict(self.scalars.items())
        if tape is not None:
            count = len(points[0])
            scalars = {k: v.detach().repeat(count).requires_grad_() for k, v in scalars.items()}
            tape.scalars = scalars
        result = []
        for at, ready in zip(points, prepared, strict=True):
            jets = {name: self._jet(name, p, tape) for name, p in ready.items()}
            named = SimpleNamespace(**scalars)
            result.append(Site(at, self._fields(jets, at), self.coordinates, named))
        return tuple(result)

    def _jet(self, name: str, prepared: Prepared, tape: Tape | None) -> Jet:
        if tape is not None:
            tape.part = name
        return self.parts[name].jet(prepared, tape)

    def _fields(self, jets: Mapping[str, Jet], at: Points) -> dict[str, Field]:
        fields = {}
        for name, jet in jets.items():
            for number, field_name in enumerate(self.parts[name].fields):
                component = _component_of(jet, number, self.coordinates.spatial)
                fields[field_name] = Field(field_name, component, self.coordinates, at.normal)
        return fields


def _component_of(jet: Jet, number: int, spatial: tuple[int, ...]) -> Component:
    def component(which: tuple[int, ...] | str) -> Tensor:
        if isinstance(which, str):
            if jet.spec.laplacian is not None:
                return jet.data[-1][:, number]
            n = jet.spec.n_directions
            parts = [jet.component(_double(n, a))[:, number] for a in spatial]
            return sum(parts[1:], parts[0])
        return jet.component(which)[:, number]

    return component


def _double(n: int, a: int) -> tuple[int, ...]:
    return tuple(2 * (a == b) for b in range(n))


def required_jets(block: ResidualBlock, system: System) -> dict[str, JetSpec]:
    """Per network, the jet a block needs: found by running it once on recording fields.

    Networks whose fields the block does not use are left out.

    Raises:
        ProblemError: if the residual fails, or returns something that is not one row per point.
    """
    wanted, rows = _trace(block, system, 2)
    if not isinstance(rows, Tensor) or rows.ndim not in (1, 2) or len(rows) != 2:
        found = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise ProblemError(
            f"residual {block.name!r} must return a tensor with one row per point, found {found} "
            "for 2 points"
        )
    if rows.shape == (2, 2) and _trace(block, system, 3)[1].shape == (3, 3):
        raise ProblemError(
            f"residual {block.name!r} mixes its points: it returns (n, n) for n points, where "
            "(n,), or (n, m) for m equations, is allowed; did (n, 1) meet (n,)?"
        )
    jets = {name: _closure(which, system.coordinates) for name, which in wanted.items() if which}
    if not jets:
        raise ProblemError(
            f"residual {block.name!r} uses none of the fields {', '.join(system.field_names)}"
        )
    return jets


def n_equations(block: ResidualBlock, system: System) -> int:
    """Residuals of a row of a block, m: found like what derivatives it needs."""
    rows = _trace(block, system, 2)[1]
    return int(rows.shape[1]) if rows.ndim == 2 else 1


Wanted = dict[str, set[tuple[int, ...] | str]]


def _trace(block: ResidualBlock, system: System, n: int) -> tuple[Wanted, Any]:
    """The components a residual asks for at ``n`` points, and what it returns."""
    wanted: Wanted = {name: set() for name in system.parts}
    like = next(iter(system.parameters()))
    units = torch.linspace(0.375, 0.625, n, dtype=torch.float64)
    units = units[:, None].expand(n, block.region.unit_dimension)
    sites = []
    for at in block.region.place(units):
        at = at.to(like.dtype, like.device)
        fields = {}
        for name, part in system.parts.items():
            for field_name in part.fields:
                component = _recorder(wanted[name], like.new_full((len(at),), 0.5))
                fields[field_name] = Field(field_name, component, system.coordinates, at.normal)
        scalars = SimpleNamespace(**dict(system.scalars.items()))
        sites.append(Site(at, fields, system.coordinates, scalars))
    return wanted, _call(block, sites)


def _call(block: ResidualBlock, sites: Sequence[Site]) -> Any:
    try:
        return block.residual(*sites)
    except KanpinnError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's function may do
        raise failure(f"residual {block.name!r}", error) from error


def failure(what: str, error: BaseException) -> ProblemError:
    """What to raise for an exception, caught where a user's function was called."""
    reason = str(error).partition("\n")[0]
    if not isinstance(error, AttributeError):
        reason = f"{type(error).__name__}: {reason}"
    frames = traceback.extract_tb(error.__traceback__)[1:]
    if frames:  # the first line below the call is the user's
        reason += f" ({Path(frames[0].filename).name}, line {frames[0].lineno})"
    return ProblemError(f"{what} fails: {reason}")


def _recorder(record: set[tuple[int, ...] | str], answer: Tensor) -> Component:
    def component(which: tuple[int, ...] | str) -> Tensor:
        record.add(which)
        return answer

    return component


def _closure(which: set[tuple[int, ...] | str], coordinates: Coordinates) -> JetSpec:
    """The smallest jet: the Laplacian is carried as a sum where only the sum is asked for."""
    n = len(coordinates.names)
    indices = {index for index in which if not isinstance(index, str)}
    if LAPLACIAN not in which:
        return JetSpec.closure(n, indices)
    squares = {_double(n, a) for a in coordinates.spatial}
    carried = JetSpec.closure(n, indices)
    if len(coordinates.spatial) > 1 and not squares & set(carried.indices):
        return JetSpec.closure(n, indices, coordinates.spatial)
    return JetSpec.closure(n, indices | squares)


def evaluate_rows(
    block: ResidualBlock,
    system: System,
    points: Sequence[Points],
    prepared: Sequence[Mapping[str, Prepared]],
    tape: Tape | None = None,
) -> Tensor:
    """Residual rows ``(n / group, m)`` of a block at prepared points."""
    rows = block.residual(*system.sites(points, prepared, tape))
    rows = rows[:, None] if rows.ndim == 1 else rows
    if block.group > 1:
        rows = rows.reshape(-1, block.group, rows.shape[-1]).mean(1)
    return rows

"""Conditions on boundaries, interfaces and initial times: soft, as residuals, or built in exactly.

Values and coefficients are numbers, expressions in the coordinates (and ``side``, the side of an
interface), or functions of the :class:`~kanpinn.residuals.Site`. Only numbers and expressions can
be built in exactly, because they are stored in checkpoints as text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kanpinn.ansatz import FaceValue
from kanpinn.errors import ExpressionError, ProblemError
from kanpinn.expressions import Expression
from kanpinn.geometry import Box, Domain
from kanpinn.models.inputs import Periodic as PeriodicInput
from kanpinn.residuals import Residual, ResidualBlock, Site

Value = float | str | Callable[[Site], Tensor | float]


def evaluate_value(value: Value, site: Site) -> Tensor | float:
    """A condition's value at sites, ``(n,)`` or one number.

    Raises:
        ProblemError: if a function returns anything else, which would broadcast to ``(n, n)``.
        ExpressionError: if an expression uses other names than the coordinates and ``side``.
    """
    if callable(value):
        found = value(site)
        if isinstance(found, Tensor) and found.shape not in ((), (len(site.points),)):
            raise ProblemError(
                f"a condition's value has shape {tuple(found.shape)}, allowed: one number per point"
            )
        return found
    if isinstance(value, int | float):
        return float(value)
    expression = Expression.parse(value, (*site.coordinates.names, "side"))
    at = {
        name: site.side if name == "side" else site.coordinate(name)
        for name in expression.variables
    }
    result: Tensor | float = expression(**at)
    return result


@dataclass(frozen=True, kw_only=True)
class Condition(ABC):
    """One condition on one field; ``docs/problems.md`` has examples.

    Build in what can be built in (``exact=True``: Dirichlet, Initial and Periodic); for the others
    a weight of about 100 is a good start.

    Attributes:
        field: which field.
        on: name of the region, e.g. ``"boundary"``, ``"x.lower"``, ``"initial"``, ``"x=0"``.
        value: what is prescribed: a number, a formula in the coordinates such as ``"sin(pi*x)"``,
            or a function of the :class:`~kanpinn.residuals.Site` that returns one number per point.
        weight: factor of its mean square in the objective, that of the equation being 1.
        exact: whether it is built into the network's output or inputs instead.
        points: number of points on level 0 instead of the sampling options'.
    """

    field: str = "u"
    on: str = "boundary"
    weight: float = 1.0
    exact: bool = False
    points: int | None = None

    sites: ClassVar[int] = 1

    @property
    def label(self) -> str:
        """Name of its block in logs."""
        return f"{type(self).__name__.lower()} {self.field} on {self.on}"

    @abstractmethod
    def residual(self) -> Residual:
        """The residual of the soft condition."""

    def faces(self, domain: Box) -> list[FaceValue]:
        """Face values for the ansatz, if the condition is exact and one on values."""
        raise ProblemError(
            f"{self.label}: cannot be built in exactly; allowed for exact conditions: Dirichlet, "
            "Initial and Periodic ones on a box. Use exact=False with a weight"
        )

    def block(self, domain: Domain) -> ResidualBlock:
        """The soft condition as a residual block."""
        region = domain.region(self.on)
        if region.n_sites != self.sites:
            raise ProblemError(
                f"{self.label}: needs a region whose rows join {self.sites} site(s), "
                f"{self.on!r} joins {region.n_sites}"
            )
        return ResidualBlock(
            self.label, region, self.residual(), weight=self.weight, points=self.points
        )


@dataclass(frozen=True, kw_only=True)
class Dirichlet(Condition):
    """``u = value``.

    ``value`` is a number, a formula in the coordinates such as ``"sin(pi*x)"``, or a function of
    the points (:class:`~kanpinn.residuals.Site`) that returns one number for each. ``on`` names the
    region: ``"boundary"``, ``"x.lower"``, ``"initial"``, ``"x=0"``. ``exact=True`` builds the
    condition into the network, for a number or a formula on faces of a box: the first choice.
    Otherwise ``weight`` is the factor of its mean square, that of the equation being 1; about 100
    is a good start. ``points`` replaces the sampling options' number on level 0.
    """

    value: Value = 0.0

    def residual(self) -> Residual:
        """``u - value``."""
        return lambda p: getattr(p, self.field).value - evaluate_value(self.value, p)

    def faces(self, domain: Box) -> list[FaceValue]:
        """The faces of the region, each with the value."""
        if callable(self.value):
            raise ProblemError(
                f"{self.label}: an exact condition needs its value as a number or an expression"
            )
        named = {
            f"{name}.{end}": (a, s)
            for a, name in enumerate(domain.names)
            for s, end in ((-1, "lower"), (1, "upper"))
        }
        if self.on == "boundary":
            sides = [(a, s) for a in domain.spatial_axes for s in (-1, 1)]
        elif self.on == "initial":
            sides = [(domain.dimension - 1, -1)]
        elif self.on in named:
            sides = [named[self.on]]
        else:
            raise ProblemError(
                f"{self.label}: an exact condition needs faces: boundary, initial, "
                f"{', '.join(named)}"
            )
        try:
            Expression.parse(self.value, domain.names)
        except ExpressionError as error:
            raise ProblemError(f"{self.label}: {error}") from error
        return [FaceValue(axis, side, str(self.value)) for axis, side in sides]


@dataclass(frozen=True, kw_only=True)
class Initial(Dirichlet):
    """``u = value`` at the initial time (or ``du/dt = value`` with ``derivative=1``).

    Values can be built in (``exact=True``), rates cannot; the rest as in :class:`Dirichlet`.
    """

    on: str = "initial"
    derivative: int = 0

    @property
    def label(self) -> str:
        """Value and rate at the same time are two blocks."""
        field = self.field if self.derivative == 0 else f"d{self.derivative}({self.field})"
        return f"initial {field} on {self.on}"

    def residual(self) -> Residual:
        """``u - value`` or ``u_t - value``."""
        if self.derivative == 0:
            return super().residual()

        def rate(p: Site) -> Tensor:
            time = p.coordinates.names[-1]
            slope: Tensor = getattr(p, self.field).d(*(time,) * self.derivative)
            return slope - evaluate_value(self.value, p)

        return rate

    def faces(self, domain: Box) -> list[FaceValue]:
        """The initial face; a rate cannot be built in."""
        if self.derivative:
            return Condition.faces(self, domain)
        return super().faces(domain)


@dataclass(frozen=True, kw_only=True)
class Neumann(Condition):
    """``n . grad u = value``, ``n`` the outward normal.

    Always penalised; ``on``, ``value``, ``weight`` and ``points`` as in :class:`Dirichlet`.
    """

    value: Value = 0.0

    def residual(self) -> Residual:
        """``n . grad u - value``."""
        return lambda p: getattr(p, self.field).normal_derivative - evaluate_value(self.value, p)


@dataclass(frozen=True, kw_only=True)
class Robin(Condition):
    """``alpha u + beta n . grad u = value``, ``n`` the outward normal.

    ``alpha`` and ``beta`` are given like ``value``. Always penalised; ``on``, ``value``, ``weight``
    and ``points`` as in :class:`Dirichlet`.
    """

    alpha: Value = 1.0
    beta: Value = 1.0
    value: Value = 0.0

    def residual(self) -> Residual:
        """``alpha u + beta n . grad u - value``."""

        def robin(p: Site) -> Tensor:
            u = getattr(p, self.field)
            alpha, beta = evaluate_value(self.alpha, p), evaluate_value(self.beta, p)
            row: Tensor = alpha * u + beta * u.normal_derivative
            return row - evaluate_value(self.value, p)

        return robin


@dataclass(frozen=True, kw_only=True)
class Periodic(Condition):
    """Values, and derivatives up to ``order`` along the axis, agree on two opposite faces.

    Built in exactly, the coordinate is replaced by ``harmonics`` pairs of cosine and sine; that
    is the first choice. Otherwise ``weight`` and ``points`` are those of :class:`Dirichlet`.
    """

    on: str = "x.periodic"
    order: int = 1
    harmonics: int = 1
    sites: ClassVar[int] = 2

    @property
    def axis(self) -> str:
        """The periodic coordinate."""
        return self.on.partition(".")[0]

    def residual(self) -> Residual:
        """Differences of the derivatives of order 0 to ``order``."""

        def difference(p: Site, q: Site) -> Tensor:
            u, v = getattr(p, self.field), getattr(q, self.field)
            rows = [u.d(*(self.axis,) * k) - v.d(*(self.axis,) * k) for k in range(self.order + 1)]
            return torch.stack(rows, -1)

        return difference

    def input_map(self) -> PeriodicInput:
        """The input map that makes it exact.

        Raises:
            ProblemError: if the region is no pair of opposite faces.
        """
        if not self.on.endswith(".periodic"):
            raise ProblemError(
                f"{self.label}: found region {self.on!r}, allowed: a coordinate's name followed by "
                '".periodic"'
            )
        return PeriodicInput(of=self.axis, harmonics=self.harmonics)


@dataclass(frozen=True, kw_only=True)
class Jump(Condition):
    """``u(+) - u(-) = value`` across an interface, ``on="x=0"`` for instance.

    Always penalised; ``value``, ``weight`` and ``points`` as in :class:`Dirichlet`.
    """

    value: Value = 0.0
    sites: ClassVar[int] = 2

    def residual(self) -> Residual:
        """``u(+) - u(-) - value``."""

        def jump(minus: Site, plus: Site) -> Tensor:
            difference: Tensor = getattr(plus, self.field).value - getattr(minus, self.field).value
            return difference - evaluate_value(self.value, plus)

        return jump


@dataclass(frozen=True, kw_only=True)
class FluxJump(Condition):
    """``(c n . grad u)(+) - (c n . grad u)(-) = value``, ``n`` from the minus to the plus side.

    The coefficient is evaluated on each side by itself (``side`` is -1 or +1 there). Always
    penalised; ``on`` is an interface, ``value``, ``weight`` and ``points`` as in
    :class:`Dirichlet`.
    """

    coefficient: Value = 1.0
    value: Value = 0.0
    sites: ClassVar[int] = 2

    def residual(self) -> Residual:
        """Difference of the one-sided fluxes, less the value."""

        def jump(minus: Site, plus: Site) -> Tensor:
            fluxes = [
                evaluate_value(self.coefficient, p) * getattr(p, self.field).normal_derivative
                for p in (minus, plus)
            ]
            difference: Tensor = fluxes[1] - fluxes[0]
            return difference - evaluate_value(self.value, plus)

        return jump


@dataclass(frozen=True, kw_only=True)
class Mean(Condition):
    """The mean of ``u`` over a region equals ``value``, a number: one row joins all its points."""

    on: str = "interior"
    value: float = 0.0
    points: int | None = 1024

    def residual(self) -> Residual:
        """``u - value`` at every point, averaged over the block's group."""
        return lambda p: getattr(p, self.field).value - self.value

    def block(self, domain: Domain) -> ResidualBlock:
        """One row of ``points`` points, or of all points where there are finitely many."""
        region = domain.region(self.on)
        points = region.n_distinct or self.points or 1024
        return ResidualBlock(
            self.label,
            region,
            self.residual(),
            weight=self.weight,
            points=points,
            group=points,
        )

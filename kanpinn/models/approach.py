"""Coordinates approached from one side of an interface, for maps and formulas with kinks or jumps.

A formula takes its branches (``abs``, ``sign``, ``where``, ``minimum``, ``maximum``) by values at a
point a few rounding errors beside the given one, and its values and derivatives at the point
itself. On an interface it has thereby the one-sided value and derivatives, exactly.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kanpinn.expressions import Expression
from kanpinn.jets import FUNCTIONS, Jet

Bounds = Mapping[str, tuple[float, float]]
STEP = 32  # rounding errors between a point and where its branches are taken


@dataclass(frozen=True)
class Approach:
    """Coordinates at points, and from where each of them is approached.

    Attributes:
        coordinates: jets ``(K, n)`` by name.
        bounds: range of every coordinate.
        given: side of the interface, ``(n,)`` of -1, 0 and +1; 0 and ``None`` stand for +1.
        normal: unit normals from the minus to the plus side, ``(n, d)``; where there is none, the
            plus side is that of the greater coordinates.
    """

    coordinates: Mapping[str, Jet]
    bounds: Bounds
    given: Tensor | None = None
    normal: Tensor | None = None

    @cached_property
    def side(self) -> Tensor:
        """The side ``(n,)``, -1 or +1, in the type of the coordinates."""
        value = next(iter(self.coordinates.values())).value
        if self.given is None:
            return torch.ones_like(value)
        return torch.where(self.given < 0, -1.0, 1.0).to(value)

    def sign(self, name: str, at: float) -> Tensor:
        """The sign ``(n,)`` of ``x - at``; on the plane it is the side."""
        sign = torch.sign(self.coordinates[name].value - at)
        return torch.where(sign == 0, self.side, sign)

    def evaluate(self, expression: Expression) -> Jet | float:
        """The jet ``(K, n)`` of an expression in the coordinates; a float if it uses none."""
        if not expression.piecewise:
            value: Jet | float = expression(**self.coordinates)
            return value
        pairs = self._beside.items()
        branched = {name: _Branched(self.coordinates[name], beside) for name, beside in pairs}
        result: _Branched | float = expression(**branched)
        return result if isinstance(result, float) else result.jet

    @cached_property
    def _beside(self) -> dict[str, Tensor]:
        """Coordinates ``(n,)`` a few rounding errors away, in double precision, by name."""
        return {name: self._moved(axis, name) for axis, name in enumerate(self.coordinates)}

    def _moved(self, axis: int, name: str) -> Tensor:
        value, (lower, upper) = self.coordinates[name].value, self.bounds[name]
        reach = STEP * torch.finfo(value.dtype).eps * max(abs(lower), abs(upper), upper - lower)
        # Of another length on every axis: differences of coordinates have a sign, too.
        direction = torch.full_like(value, 1.0 / (1 + axis))
        if self.given is not None and self.normal is not None:
            direction = torch.where(self.given == 0, direction, self.normal[:, axis])
        value = value.double()
        moved = value + reach * (self.side * direction).double()
        left = (value >= lower) & (moved < lower) | (value <= upper) & (moved > upper)
        return torch.where(left, value, moved)


class _Branched:
    """A jet beside values ``(n,)``, by which branches are taken: what an expression evaluates."""

    __slots__ = ("beside", "jet")
    __array_ufunc__ = None

    def __init__(self, jet: Jet, beside: Tensor) -> None:
        self.jet, self.beside = jet, beside

    def _apply(self, function: Callable[..., Any], other: Any) -> _Branched:
        jet, beside = (other.jet, other.beside) if isinstance(other, _Branched) else (other, other)
        return _Branched(function(self.jet, jet), function(self.beside, beside))

    def __neg__(self) -> _Branched:
        return _Branched(-self.jet, -self.beside)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> _Branched:
        name = func.__name__.strip("_")
        if func is torch.where:
            mask, *branches = args
            jets, beside = zip(*map(_parts, branches), strict=True)
            return _Branched(torch.where(mask, *jets), torch.where(mask, *beside))
        (one,) = args
        if name in ("abs", "sign"):
            sign = torch.sign(one.beside)
            factor = one.jet if name == "abs" else one.jet**0
            return _Branched(factor * sign.to(one.jet.data), func(one.beside))
        return _Branched(one.jet.apply(FUNCTIONS[name]), func(one.beside))


def _parts(operand: Any) -> tuple[Any, Any]:
    return (operand.jet, operand.beside) if isinstance(operand, _Branched) else (operand, operand)


def _arithmetic(function: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    def direct(self: _Branched, other: Any) -> _Branched:
        return self._apply(function, other)

    def reflected(self: _Branched, other: Any) -> _Branched:
        return self._apply(lambda a, b: function(b, a), other)

    return direct, reflected


def _comparison(function: Callable[[Any, Any], Any]) -> Any:
    def compare(self: _Branched, other: Any) -> Tensor:
        result: Tensor = function(self.beside, _parts(other)[1])
        return result

    return compare


_ARITHMETIC: Sequence[tuple[str, Callable[[Any, Any], Any]]] = (
    ("add", operator.add),
    ("sub", operator.sub),
    ("mul", operator.mul),
    ("truediv", operator.truediv),
    ("pow", operator.pow),
)
for _name, _function in _ARITHMETIC:
    for _prefix, _method in zip(("", "r"), _arithmetic(_function), strict=True):
        setattr(_Branched, f"__{_prefix}{_name}__", _method)
for _name, _function in (
    ("lt", operator.lt),
    ("le", operator.le),
    ("gt", operator.gt),
    ("ge", operator.ge),
):
    setattr(_Branched, f"__{_name}__", _comparison(_function))

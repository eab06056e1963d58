"""Jet algebra: sums, products, compositions of truncated Taylor stacks (forward Taylor mode)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kanpinn.jets.functions import FUNCTIONS, power
from kanpinn.jets.spec import JetSpec


class Jet:
    """A function's value and derivatives at a batch of points.

    Attributes:
        spec: which derivatives the components are.
        data: tensor ``(n_components, n_points, ...)``; component 0 is the value.

    Jets add, multiply, divide and take constant powers; ``torch.sin`` and the other functions of
    :data:`kanpinn.jets.functions.FUNCTIONS` apply to them by the chain rule. Comparisons look at
    the value alone. ``torch.where(mask, jet, jet)`` picks component by component.
    """

    __slots__ = ("data", "spec")
    __array_ufunc__ = None  # so that numpy leaves mixed arithmetic to this class

    def __init__(self, spec: JetSpec, data: Tensor) -> None:
        self.spec = spec
        self.data = data

    @classmethod
    def coordinates(cls, x: Tensor, spec: JetSpec, directions: Tensor | None = None) -> Jet:
        """Jet of the coordinates themselves.

        Args:
            x: points ``(n, d)``.
            spec: what to carry.
            directions: ``(n_directions, d)``, or per point ``(n_directions, n, d)``; the
                coordinate axes by default.
        """
        data = x.new_zeros(spec.n_components, *x.shape)
        data[0] = x
        if directions is None:
            directions = torch.eye(spec.n_directions, x.shape[-1], dtype=x.dtype, device=x.device)
        for a, component in enumerate(spec.first):
            if component is not None:
                data[component] = directions[a]
        return cls(spec, data)

    @classmethod
    def constant(cls, value: Tensor, spec: JetSpec) -> Jet:
        """Jet of a value that does not depend on the point."""
        data = value.new_zeros(spec.n_components, *value.shape)
        data[0] = value
        return cls(spec, data)

    @property
    def value(self) -> Tensor:
        """Component 0, ``(n_points, ...)``."""
        return self.data[0]

    def component(self, index: Sequence[int]) -> Tensor:
        """The derivative with the given multi-index, ``(n_points, ...)``."""
        return self.data[self.spec.position[tuple(index)]]

    @property
    def laplacian(self) -> Tensor:
        """The summed second derivatives, carried or added up."""
        if self.spec.laplacian is not None:
            return self.data[-1]
        n = self.spec.n_directions
        return sum(
            (self.component(tuple(2 * (a == b) for b in range(n))) for a in range(n)),
            torch.zeros_like(self.value),
        )

    def __getitem__(self, key: Any) -> Jet:
        """Index points and trailing axes; every component alike."""
        key = key if isinstance(key, tuple) else (key,)
        return Jet(self.spec, self.data[(slice(None), *key)])

    def apply(self, function: Callable[[Tensor, int], list[Tensor]]) -> Jet:
        """Chain rule: the jet of ``f(self)``, ``function`` giving f and its derivatives."""
        return Jet(self.spec, compose(self.data, function(self.value, self.spec.order), self.spec))

    # --- arithmetic -------------------------------------------------------------------------
    def __add__(self, other: Jet | Tensor | float) -> Jet:
        if isinstance(other, Jet):
            return Jet(self.spec, self.data + other.data)
        return Jet(self.spec, torch.cat([(self.data[0] + other)[None], self.data[1:]]))

    __radd__ = __add__

    def __neg__(self) -> Jet:
        return Jet(self.spec, -self.data)

    def __pos__(self) -> Jet:
        return self

    def __sub__(self, other: Jet | Tensor | float) -> Jet:
        return self + (-other)

    def __rsub__(self, other: Tensor | float) -> Jet:
        return (-self) + other

    def __mul__(self, other: Jet | Tensor | float) -> Jet:
        if not isinstance(other, Jet):
            return Jet(self.spec, self.data * other)
        f, g = self.data.unbind(0), other.data.unbind(0)
        rows = []
        for terms in self.spec.product_terms:
            count, i, j = terms[0]
            total = f[i] * g[j] if count == 1 else count * f[i] * g[j]
            for count, i, j in terms[1:]:
                total = total + (f[i] * g[j] if count == 1 else count * f[i] * g[j])
            rows.append(total)
        return Jet(self.spec, torch.stack(rows))

    __rmul__ = __mul__

    def __truediv__(self, other: Jet | Tensor | float) -> Jet:
        if not isinstance(other, Jet):
            return Jet(self.spec, self.data / other)
        return self * other**-1

    def __rtruediv__(self, other: Tensor | float) -> Jet:
        return self**-1 * other

    def __pow__(self, exponent: float | Jet) -> Jet:
        if isinstance(exponent, Jet):
            return (exponent * self.apply(FUNCTIONS["log"])).apply(FUNCTIONS["exp"])
        return self.apply(lambda z, order: power(z, exponent, order))

    def __rpow__(self, base: Tensor | float) -> Jet:
        scale = torch.log(torch.as_tensor(base, dtype=self.data.dtype, device=self.data.device))
        return (self * scale).apply(FUNCTIONS["exp"])

    def __abs__(self) -> Jet:
        return self.apply(FUNCTIONS["abs"])

    # --- comparisons are made on values -------------------------------------------------------
    def __lt__(self, other: Any) -> Tensor:
        return self.value < _value(other)

    def __le__(self, other: Any) -> Tensor:
        return self.value <= _value(other)

    def __gt__(self, other: Any) -> Tensor:
        return self.value > _value(other)

    def __ge__(self, other: Any) -> Tensor:
        return self.value >= _value(other)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        # silu and relu pass on inplace=False; anything else would change the meaning.
        plain = all(value in (False, "none") for value in (kwargs or {}).values())
        if plain and func is torch.where and len(args) == 3:
            return _where(*args)
        if plain and name in ("maximum", "minimum"):
            return _extreme(name, *args)
        if plain and name in _OPERATORS:
            return _binary(name, *args)
        if plain and name in FUNCTIONS and isinstance(args[0], Jet):
            return args[0].apply(FUNCTIONS[name])
        raise TypeError(f"torch function {name!r} with these arguments is not defined for jets")


def compose(z: Tensor, derivatives: Sequence[Tensor], spec: JetSpec) -> Tensor:
    """Components of ``f(z)`` from those of ``z`` and the derivatives of ``f`` at the value.

    Args:
        z: ``(K, n, ...)``.
        derivatives: ``f^(m)(z[0])``, ``m = 0 .. spec.order``, each ``(n, ...)``.
        spec: names the components.

    Returns:
        ``(K, n, ...)``.
    """
    rows = [derivatives[0]]
    for polynomials in chain_polynomials(z, spec)[1:]:
        parts = [derivatives[m] * p for m, p in polynomials.items()]
        rows.append(sum(parts[1:], parts[0]))
    return torch.stack(rows)


def chain_polynomials(z: Tensor, spec: JetSpec) -> list[dict[int, Tensor]]:
    """The factors ``g`` of the chain rule ``(f(z))_k = sum_m f^(m)(z_0) g_{k,m}(z)``.

    ``g`` does not depend on ``f``: the incomplete Bell polynomials of the jet's components.
    Entry 0 (the value) is empty; entry ``k`` maps ``m`` to a tensor of the shape of ``z[0]``.
    """
    rows: list[dict[int, Tensor]] = [{}]
    components = z.unbind(0)  # one node for reverse mode, where indexing would make many
    for terms in spec.chain_terms[1:]:
        row: dict[int, Tensor] = {}
        for count, m, factors in terms:
            product = components[factors[0]]
            for component in factors[1:]:
                product = product * components[component]
            if count != 1:
                product = count * product
            row[m] = row[m] + product if m in row else product
        rows.append(row)
    return rows


def _value(operand: Any) -> Any:
    return operand.value if isinstance(operand, Jet) else operand


def _where(mask: Tensor, first: Any, second: Any) -> Jet:
    jet = first if isinstance(first, Jet) else second
    first, second = (_lift(operand, jet) for operand in (first, second))
    return Jet(jet.spec, torch.where(mask, first.data, second.data))


def _lift(operand: Any, like: Jet) -> Jet:
    if isinstance(operand, Jet):
        return operand
    value = torch.as_tensor(operand, dtype=like.data.dtype, device=like.data.device)
    return Jet.constant(value.expand_as(like.value), like.spec)


def _extreme(name: str, first: Any, second: Any) -> Jet:
    """``maximum`` or ``minimum``, the first where both are equal; NaN where either is NaN."""
    f, s = _value(first), _value(second)
    mask = (f >= s if name == "maximum" else f <= s) | (f != f)
    return _where(mask, first, second)


# Tensor-first arithmetic (``tensor * jet``) arrives through __torch_function__ with these names.
_OPERATORS = {
    "add": ("__add__", "__radd__"),
    "sub": ("__sub__", "__rsub__"),
    "mul": ("__mul__", "__rmul__"),
    "div": ("__truediv__", "__rtruediv__"),
    "pow": ("__pow__", "__rpow__"),
    "lt": ("__lt__", "__gt__"),
    "le": ("__le__", "__ge__"),
    "gt": ("__gt__", "__lt__"),
    "ge": ("__ge__", "__le__"),
}


def _binary(name: str, first: Any, second: Any) -> Any:
    """``first op second``, one of them perhaps a plain tensor."""
    direct, reflected = _OPERATORS[name]
    if isinstance(first, Jet):
        return getattr(first, direct)(second)
    return getattr(second, reflected)(first)

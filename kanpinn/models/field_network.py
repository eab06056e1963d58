"""A field network: coordinates to physical fields, with input maps and built-in constraints.

``u_f(x) = lift_f(x) + factor_f(x) N_f(inputs(x))``: the factor vanishes where a condition is built
in exactly, and the lift carries its values. All of it is jet algebra.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from kanpinn.expressions import Expression
from kanpinn.jets import Jet, JetSpec
from kanpinn.models.approach import Approach
from kanpinn.models.inputs import Inputs
from kanpinn.models.layer import Layer, Network
from kanpinn.models.tape import Tape

Formula = str | float  # an expression in the coordinates


@dataclass(frozen=True)
class OutputMap:
    """Built-in constraint and scaling of one field: ``u = lift + factor * N``.

    Formulas are expressions in the coordinates, stored as text.
    """

    lift: Formula = 0.0
    factor: Formula = 1.0


@dataclass(frozen=True)
class Prepared:
    """All that depends on the points alone: computed once per set of points.

    Attributes:
        z: input channels ``(K, n, channels)``.
        lift: jets ``(K, n, n_fields)``.
        factor: jets ``(K, n, n_fields)``, or ``None`` for one.
        first: the first layer, if its features stay fixed and are to be kept.
    """

    spec: JetSpec
    z: Tensor
    lift: Tensor | None
    factor: Tensor | None
    first: Layer | None = None

    @cached_property
    def first_features(self) -> Tensor | None:
        """Features of the first layer ``(K, n, F)``, made when they are first asked for."""
        if self.first is None:
            return None
        with torch.no_grad():
            return self.first.features(self.z, self.spec)


class FieldNetwork(nn.Module):
    """Fields over a domain, from one network.

    Args:
        fields: names of the outputs.
        inputs: input maps.
        network: maps ``inputs.n_channels`` channels to one output per field.
        outputs: built-in constraints, per field.
    """

    def __init__(
        self,
        fields: tuple[str, ...],
        inputs: Inputs,
        network: Network,
        outputs: tuple[OutputMap, ...] | None = None,
    ) -> None:
        super().__init__()
        self.fields, self.inputs, self.network = fields, inputs, network
        self.outputs = outputs or tuple(OutputMap() for _ in fields)

    def with_network(self, network: Network) -> Self:
        """The same maps around another network, a refined one for instance."""
        return type(self)(self.fields, self.inputs, network, self.outputs)

    def prepare(
        self,
        x: Tensor,
        spec: JetSpec,
        side: Tensor | None = None,
        keep_features: bool = False,
        normal: Tensor | None = None,
    ) -> Prepared:
        """What depends on the points ``x``, ``(n, d)``, alone.

        ``side`` (n,) says from which side a point on an interface is approached, ``normal``
        (n, d) where its plus side lies (see :class:`~kanpinn.models.approach.Approach`);
        ``keep_features`` also keeps the first layer's features, if they are fixed, once something
        has asked for them.
        """
        with torch.no_grad() if not x.requires_grad else torch.enable_grad():
            at = self.inputs.approach(Jet.coordinates(x, spec), side, normal)
            z = self.inputs(at).data
            lift = _stacked(at, [m.lift for m in self.outputs], neutral=0.0)
            factor = _stacked(at, [m.factor for m in self.outputs], neutral=1.0)
        first = self.network.chain[0]
        keeps = keep_features and first.fixed_features
        return Prepared(spec, z, lift, factor, first if keeps else None)

    def jet(self, prepared: Prepared, tape: Tape | None = None) -> Jet:
        """Field jets ``(K, n, n_fields)`` at prepared points."""
        spec, z = prepared.spec, prepared.z
        asked = self.network.chain[0].needs_features(z, for_jacobian=tape is not None)
        features = prepared.first_features if asked else None
        raw = Jet(spec, self.network.jet(z, spec, features, tape))
        if prepared.factor is not None:
            raw = Jet(spec, prepared.factor) * raw
        if prepared.lift is not None:
            raw = Jet(spec, raw.data + prepared.lift)
        return raw

    def forward(self, x: Tensor) -> Tensor:
        """Field values ``(n, n_fields)`` at points ``(n, d)``."""
        return self.jet(self.prepare(x, JetSpec.value_only(x.shape[-1]))).value


def _stacked(at: Approach, formulas: list[Formula], neutral: float) -> Tensor | None:
    """Stacked jets of the formulas, or ``None`` if all of them are neutral."""
    if all(_is_number(formula, neutral) for formula in formulas):
        return None
    return torch.stack([_evaluate(formula, at).data for formula in formulas], -1)


def _is_number(formula: Formula, number: float) -> bool:
    try:
        return float(formula) == number
    except ValueError:
        return False


def _evaluate(formula: Formula, at: Approach) -> Jet:
    """Jet ``(K, n)`` of a formula in the coordinates."""
    value = at.evaluate(Expression.parse(formula, tuple(at.coordinates)))
    if isinstance(value, Jet):
        return value
    like = next(iter(at.coordinates.values()))
    return Jet.constant(like.value.new_full(like.value.shape, float(value)), like.spec)

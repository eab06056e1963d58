"""The work of training in floating-point operations: what costs are compared by.

Counted where training asks for something, in a model that depends on neither the machine nor the
clock. A multiplication and an addition count as one each:

* A residual at a point: in every layer, for each of the ``K`` components of its jet, the product of
  the features with the coefficients, ``2 K out f``. ``f`` is ``in r`` for splines of order ``r``,
  of which no others are not zero, ``in (n + r - 1)`` for the power-ReLU basis, all of which are,
  and ``in`` for a plain MLP; a base branch has ``in`` more. Making the features, and what the
  equation makes of the fields, is not counted.
* The gradient, or ``J^T u``: three residuals (forward, and two products back in every layer).
* Features and adjoints, from which products with the Jacobian are made: ``1 + m`` residuals for
  ``m`` equations, forward and once back for each. A product with ``J`` or ``J^T`` from them is one.
* Rows of the Jacobian: ``m`` more, for the outer products.
* ``[J | r]`` with ``N`` rows and ``c = n + 1`` columns, as a dense matrix: its square ``N c^2``,
  its triangle ``2 N c^2``. Columns that are zero and left out count, too.
* The linear systems of a step: see :mod:`kanpinn.optimisers.operations` for what they are made
  of. Quasi-Newton methods count the products with their approximation and its update.

Not counted is what only looks at a solution (logged lines, held-out residuals, errors), what makes
a level (points, prolongation, indicators of knots), and what ``refine: auto`` judges by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kanpinn.jets import JetSpec
from kanpinn.models import Layer, SplineLayer
from kanpinn.residuals import System


def layer_operations(layer: Layer, components: int) -> int:
    """Of a layer at a point, for jets of so many components."""
    functions = layer.n_features
    if isinstance(layer, SplineLayer):
        functions = layer.in_width * (layer.order + bool(layer.settings.base))
    return 2 * components * functions * layer.out_width


def point_operations(system: System, specs: Mapping[str, JetSpec]) -> int:
    """Of all fields at a point, by the jets that are asked of each network."""
    return sum(
        layer_operations(layer, spec.n_components)
        for name, spec in specs.items()
        for layer in system.parts[name].network.chain
    )


@dataclass(frozen=True)
class Evaluation:
    """What some rows of a block cost.

    Attributes:
        residual: their residuals once.
        equations: ``m``, residuals of a row.
    """

    residual: int
    equations: int

    @property
    def gradient(self) -> int:
        """Of a gradient, or of a product with ``J^T`` by reverse mode."""
        return 3 * self.residual

    @property
    def linearised(self) -> int:
        """Of features and adjoints; a product from them costs as much as a residual."""
        return (1 + self.equations) * self.residual

    @property
    def outer(self) -> int:
        """Of the rows of the Jacobian from features and adjoints."""
        return self.equations * self.residual

    @property
    def jacobian(self) -> int:
        """Of the rows of the Jacobian."""
        return self.linearised + self.outer

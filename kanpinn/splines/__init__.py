"""Spline spaces: knots, local evaluation, exact transfer, the power-ReLU basis, free knots."""

from kanpinn.splines.basis import Pieces, SplineBasis, check_points
from kanpinn.splines.free_knots import (
    DEFAULT_FLOOR,
    knots_from_logits,
    logits_from_breakpoints,
)
from kanpinn.splines.knots import (
    MAX_ORDER,
    MIN_ORDER,
    Knots,
    extend_padded,
    integers,
    pad_breakpoints,
)
from kanpinn.splines.power_relu import (
    DEFAULT_LIMIT,
    PowerReluBasis,
    ReluProlongation,
    change_of_basis,
    condition_number,
    inverse_change_of_basis,
    relu_prolongation,
    relu_to_spline,
    spline_to_relu,
)
from kanpinn.splines.transfer import Prolongation, project, prolongation

__all__ = [
    "DEFAULT_FLOOR",
    "DEFAULT_LIMIT",
    "MAX_ORDER",
    "MIN_ORDER",
    "Knots",
    "Pieces",
    "PowerReluBasis",
    "Prolongation",
    "ReluProlongation",
    "SplineBasis",
    "change_of_basis",
    "check_points",
    "condition_number",
    "extend_padded",
    "integers",
    "inverse_change_of_basis",
    "knots_from_logits",
    "logits_from_breakpoints",
    "pad_breakpoints",
    "project",
    "prolongation",
    "relu_prolongation",
    "relu_to_spline",
    "spline_to_relu",
]

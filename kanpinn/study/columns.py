"""Names in a study's tables: which axes have a meaning of their own, and what columns there are."""

from __future__ import annotations

from collections.abc import Mapping

SEED = "seed"  # the axis that medians are taken over
CASE = "case"  # the axis that listed cases make
METRICS = "metrics."  # in front of what a problem measures by itself
ERRORS = ("rel_l2", "linf", "h1")  # against the reference
# What a summary says of the default solution; a level's record has the same of its last iterate.
SOLUTION = ("loss", "heldout_residual", "rel_l2", "linf")
COSTS = ("seconds", "evaluations", "operations")  # sums up to the end of a level

# How the column of the observed order is called, by that of the error it is read off.
ORDERS = {"rel_l2": "order", "linf": "order_linf", "h1": "order_h1", "change": "order_change"}
FITTED = {error: f"fitted_{order}" for error, order in ORDERS.items()}
ESTIMATES = ("change", "order_change", "error_estimate", "gci")  # without a reference
# Numbers that differ between seeds.
MEASURES = (
    *COSTS,
    *("loss", "heldout_residual"),
    *(name for error in ERRORS for name in (error, ORDERS[error])),
    *ESTIMATES,
)
LIMITED_OF = "limited_of"  # of how many runs it is known whether the optimiser limits them
QUARTILES = ("_q1", "_q3")
SPREAD = ("_mean", "_sd")

COLUMNS = frozenset(
    {"status", "window", "level", "levels", "intervals", "h", "parameters", "points", "steps"}
    | {"loss_before", "loss_after", "limited", LIMITED_OF, "ended_by", "runs", "left_out"}
    | {"fitted_levels", *FITTED.values(), *MEASURES}
)


def group_of(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """All labels of a case but the seed's: cases that share them are one group."""
    return tuple((axis, label) for axis, label in labels.items() if axis != SEED)


def is_column(name: str) -> bool:
    """Whether a table may have a column of that name, so that no axis can be called like it."""
    for ending in (*QUARTILES, *SPREAD):
        name = name.removesuffix(ending)
    return name in COLUMNS or name.startswith(METRICS)

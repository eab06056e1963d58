"""Studies: which cases they consist of, and what is read off their results."""

from kanpinn.study.columns import CASE, COLUMNS, SEED, group_of, is_column
from kanpinn.study.design import Budget, Case, Design
from kanpinn.study.medians import final_medians, medians
from kanpinn.study.options import StudyOptions, VariantOptions, label, make_design
from kanpinn.study.orders import (
    Extrapolation,
    FittedOrder,
    extrapolate,
    fitted_order,
    observed_order,
    order_of_changes,
)
from kanpinn.study.results import LevelRow, final_row, finals_of, level_rows, too_few_levels

__all__ = [
    "CASE",
    "COLUMNS",
    "SEED",
    "Budget",
    "Case",
    "Design",
    "Extrapolation",
    "FittedOrder",
    "LevelRow",
    "StudyOptions",
    "VariantOptions",
    "extrapolate",
    "final_medians",
    "final_row",
    "finals_of",
    "fitted_order",
    "group_of",
    "is_column",
    "label",
    "level_rows",
    "make_design",
    "medians",
    "observed_order",
    "order_of_changes",
    "too_few_levels",
]

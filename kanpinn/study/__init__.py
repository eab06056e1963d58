"""Studies: which cases they consist of, and what is read off their results."""

from kanpinn.study.columns import CASE, COLUMNS, SEED, is_column
from kanpinn.study.design import Budget, Case, Design
from kanpinn.study.options import StudyOptions, VariantOptions, label, make_design
from kanpinn.study.results import LevelRow, level_rows, medians, observed_order

__all__ = [
    "CASE",
    "COLUMNS",
    "SEED",
    "Budget",
    "Case",
    "Design",
    "LevelRow",
    "StudyOptions",
    "VariantOptions",
    "is_column",
    "label",
    "level_rows",
    "make_design",
    "medians",
    "observed_order",
]

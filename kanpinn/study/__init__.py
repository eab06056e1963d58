"""Studies: which cases they consist of, and what is read off their results."""

from kanpinn.study.design import COLUMNS, SEED, Case, Design, parse_design
from kanpinn.study.results import LevelRow, level_rows, medians, observed_order

__all__ = [
    "COLUMNS",
    "SEED",
    "Case",
    "Design",
    "LevelRow",
    "level_rows",
    "medians",
    "observed_order",
    "parse_design",
]

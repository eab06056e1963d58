"""Tables of studies: all digits for machines, few for people."""

from __future__ import annotations

import csv
import io
from typing import Any

from kanpinn.io.study_tables import for_people, shown, to_csv, to_latex, to_markdown

ROWS: list[dict[str, Any]] = [
    {
        "case": "a|b",
        "runs": 3,
        "left_out": 0,
        "window": 0,
        "operations": 123456789012,
        "operations_q1": 1,
        "operations_q3": 2,
        "rel_l2": 1.23456e-5,
        "rel_l2_q1": 1e-5,
        "rel_l2_q3": 2e-5,
        "rel_l2_mean": 1.5e-5,
        "rel_l2_sd": 4e-6,
        "h1": None,
    },
    {"case": "c_d", "runs": 1, "left_out": 0, "window": 0, "rel_l2": 0.5, "rel_l2_q1": 0.5}
    | {"rel_l2_q3": 0.5, "rel_l2_mean": 0.5, "rel_l2_sd": None, "h1": None},
]


def test_machines_get_every_column_and_digit() -> None:
    first, second = csv.DictReader(io.StringIO(to_csv(ROWS)))
    assert first == {k: "" if v is None else str(v) for k, v in ROWS[0].items()}
    assert second["operations"] == "" and list(second) == list(ROWS[0])


def test_people_get_what_says_something() -> None:
    first, second = for_people(ROWS)
    assert first == {
        "case": "a|b",
        "runs": "3",
        "operations": "1.23e+11",
        "rel_l2": "1.23e-05 [1.00e-05, 2.00e-05]",
        "rel_l2 mean": "1.50e-05 (4.00e-06)",
    }
    assert second["rel_l2"] == "0.5" and second["rel_l2 mean"] == "0.5"
    assert second["operations"] == "-"
    (alone,) = for_people([{**ROWS[0], "runs": 1, "left_out": 1}])
    assert alone["rel_l2"] == "1.23e-05" and alone["left_out"] == "1"
    assert "rel_l2 mean" not in alone


def test_limited_runs_stand_beside_how_many_are_known() -> None:
    rows: list[dict[str, Any]] = [
        {"runs": 5, "limited": 1, "limited_of": 3},
        {"limited": None, "limited_of": 0},
    ]
    assert [row["limited"] for row in for_people(rows)] == ["1 of 3", "-"]
    assert "limited_of" not in for_people(rows)[0] and "limited_of" in to_csv(rows)
    (run,) = for_people([{"limited": True}])
    assert run["limited"] == "yes"


def test_signs_that_mean_something_are_escaped() -> None:
    short = for_people(ROWS)
    assert r"a\|b" in to_markdown(short) and r"c\_d" in to_latex(short)
    assert to_markdown(short).count("\n") == 4


def test_values_in_words() -> None:
    values = [None, True, False, 0.0, 12, 0.012345, 12345.6]
    assert list(map(shown, values)) == ["-", "yes", "no", "0", "12", "0.0123", "1.23e+04"]

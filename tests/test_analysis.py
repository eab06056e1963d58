"""Analyses by name: parsing a config's list, and running one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from kanpinn.analysis import Analysis, BasisSpectrum, Finding, PreconditionedDescent, parse
from kanpinn.config.convert import plain
from kanpinn.config.hints import keys_of, tag_of
from kanpinn.errors import ConfigError
from kanpinn.plotting.analysis import DRAWERS, draw

NAMES = {tag[1]: cls for cls in get_args(Analysis) if (tag := tag_of(cls))}


def test_options_by_name_with_their_defaults() -> None:
    first, second = parse(
        [{"name": "basis_spectrum", "n": 20, "orders": [2]}, {"name": "preconditioned_descent"}]
    )
    assert first == BasisSpectrum(n=20, orders=(2,))
    assert second == PreconditionedDescent()


@pytest.mark.parametrize("cls", NAMES.values(), ids=NAMES)
def test_every_analysis_survives_a_config(cls: Any) -> None:
    assert parse([plain(cls())]) == (cls(),)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            [{"name": "basis_spectrum"}, {"name": "basis_spectrm"}],
            "s.yaml: analyses.1.name: found 'basis_spectrm', allowed: ",
        ),
        ([{"name": "basis_spectrm"}], "did you mean 'basis_spectrum'?"),
        ([{"n": 5}], "s.yaml: analyses.0.name: missing, allowed: basis_spectrum"),
        (
            [{"name": "basis_spectrum", "n": 3}],
            "s.yaml: analyses.0.n: found 3, allowed: an integer from 4 to 2000",
        ),
        (
            [{"name": "basis_spectrum", "order": 3}],
            "s.yaml: analyses.0.order: unknown key",
        ),
        (
            [{"name": "preconditioned_descent", "bands": [5, 2]}],
            "s.yaml: analyses.0.bands: found [5, 2], allowed: increasing numbers",
        ),
        (
            [{"name": "preconditioned_descent", "function": "foo(x)"}],
            "s.yaml: analyses.0.function: ",
        ),
        (["basis_spectrum"], "s.yaml: analyses.0: found 'basis_spectrum', allowed: a mapping"),
        ({"name": "basis_spectrum"}, "s.yaml: analyses: found a mapping, allowed: a list"),
        ("basis_spectrum", "s.yaml: analyses: found 'basis_spectrum', allowed: a list"),
    ],
)
def test_errors_name_file_key_and_what_is_allowed(data: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(data, "s.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_kind_can_be_drawn() -> None:
    assert set(DRAWERS) == set(NAMES)
    assert draw(Finding("unheard_of", "", "", [{"a": 1}])) == []
    assert all(draw(Finding(kind, "", "", [])) == [] for kind in NAMES)


def test_the_page_has_every_name_and_option() -> None:
    text = (Path(__file__).parent.parent / "docs" / "analysis.md").read_text(encoding="utf-8")
    for name, cls in NAMES.items():
        assert f"| `{name}` |" in text
        for key in keys_of(cls):
            assert f"`{key.name}`" in text, f"{name}: {key.name}"

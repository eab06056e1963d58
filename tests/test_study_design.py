"""Designs of studies: cases, variants, budgets, and what contradicts itself."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kanpinn.config import dump_yaml, parse_config, parse_study, parse_yaml
from kanpinn.errors import ConfigError
from kanpinn.study import Budget, Case, Design
from kanpinn.training import LBFGSPhase, TrainingOptions

BASE = {"base": "a.yaml"}
TABLE = {
    "base": "a.yaml",
    "cases": {
        "coarse": {"training.levels": 1},
        "fine": {"training.levels": 1, "model.intervals": 40},
        "mlp": {"model": {"type": "mlp"}},
    },
    "axes": {"seed": [1, 2]},
    "variants": {
        "quick": {"axes": {"seed": [1]}, "set": {"training.phases.0.steps": 2}},
        "two": {"axes": {"case": ["fine", "mlp"]}},
    },
}

WORK = {"of": "operations", "total": 5}


def parsed(data: dict[str, Any], variant: str | None = None) -> Design:
    return parse_study(data, "s.yaml", "s", variant)


def test_cases_are_all_combinations() -> None:
    axes = {"model.order": [4, 5], "schedule": {"fine": {"training.levels": 1}, "coarse": {}}}
    design = parsed({**BASE, "axes": axes})
    assert [case.title for case in design.cases()] == [
        "model.order=4, schedule=fine",
        "model.order=4, schedule=coarse",
        "model.order=5, schedule=fine",
        "model.order=5, schedule=coarse",
    ]
    assert design.cases()[2].changes == {"model.order": 5, "training.levels": 1}
    assert design.cases()[2].overrides == ["model.order=5", "training.levels=1"]
    folders = {case.folder for case in design.cases()}
    assert len(folders) == 4 and all("/" not in name and " " not in name for name in folders)


def test_listed_cases_are_an_axis_beside_the_others() -> None:
    cases = parsed(TABLE).cases()
    assert [case.title for case in cases[:3]] == [
        "case=coarse, seed=1",
        "case=coarse, seed=2",
        "case=fine, seed=1",
    ]
    assert cases[-1].changes == {"model": {"type": "mlp"}, "seed": 2}
    alone = parsed({**BASE, "cases": {"a": {"seed": 3}}}).cases()
    assert [case.labels for case in alone] == [{"case": "a"}]


def test_variants_replace_values_and_set_keys_on_top() -> None:
    quick = parsed(TABLE, "quick")
    assert (quick.variant, quick.folder) == ("quick", "s-quick")
    assert len(quick.cases()) == 3
    fine = quick.cases()[1]
    assert fine.labels == {"case": "fine", "seed": "1"}
    assert list(fine.changes)[-1] == "training.phases.0.steps"
    assert [c.labels["case"] for c in parsed(TABLE, "two").cases()] == ["fine"] * 2 + ["mlp"] * 2
    assert parsed(TABLE).folder == "s" and len(parsed(TABLE).cases()) == 6


def test_a_key_set_for_all_comes_behind_what_a_case_changes() -> None:
    """A case replaces all phases, and the entry of one is set behind that."""
    phases = [{"optimiser": "lbfgs", "steps": 50}]
    data = {
        **BASE,
        "cases": {"a": {"training.phases": phases}},
        "set": {"training.phases.0.steps": 3},
    }
    (case,) = parsed(data).cases()
    base = {"problem": "poisson", "training": {"phases": [{"optimiser": "adam", "steps": 9}]}}
    (phase,) = parse_config(base, overrides=case.overrides).training.phases
    assert isinstance(phase, LBFGSPhase) and phase.steps == 3


@pytest.mark.parametrize("variant", [None, "quick", "two"])
def test_a_stored_design_is_the_same_design(variant: str | None) -> None:
    data = {**TABLE, "base": {"problem": "poisson"}, "budget": {"of": "operations", "total": 1e9}}
    design = parsed(data, variant)
    again = parsed(parse_yaml(dump_yaml(design.as_dict()), "study.yaml"))
    assert [case.folder for case in again.cases()] == [case.folder for case in design.cases()]
    assert again.cases() == design.cases()


def training(**given: Any) -> TrainingOptions:
    return parse_config({"problem": "poisson", "training": given}).training


def test_a_budget_is_shared_by_the_levels_that_have_steps() -> None:
    budget = Budget(of="evaluations", total=1000)
    phases = [{"optimiser": "lbfgs", "steps": [32, 16, 0, 4]}]
    three = budget.work(training(levels=4, phases=phases))
    assert three == {"of": "evaluations", "per_level": 333}
    one = budget.work(training(levels=4, phases=[{"optimiser": "adam", "steps": [0, 0, 0, 5]}]))
    assert one["per_level"] == 1000
    assert budget.work(training(levels=2, windows=5))["per_level"] == 100
    with pytest.raises(ConfigError, match=r"budget.total: found 2, allowed: at least 4"):
        Budget(of="operations", total=2).work(training(levels=4))


def test_a_case_with_its_own_work_contradicts_the_budget() -> None:
    budget = Budget(of="operations", total=100)
    assert Case({}, {}).work_override(training()) == []
    assert Case({}, {"seed": 1}, budget).work_override(training(levels=2)) == [
        'training.work={"of": "operations", "per_level": 50}'
    ]
    for key in ("training.work", "training.work.per_level"):
        with pytest.raises(ConfigError, match="contradicts the study's budget"):
            Case({}, {key: 1}, budget).work_override(training())


def test_another_budget_is_another_run() -> None:
    folders = {Case({"a": "1"}, {"seed": 1}, b).folder for b in (None, *map(work, (1.0, 2.0)))}
    assert len(folders) == 3


def test_cases_can_have_totals_of_their_own() -> None:
    axes = {"budget.total": [10, "1e2"], "m": {"a": {"seed": 1}, "b": {"seed": 2}}}
    found = parsed({**BASE, "axes": axes, "budget": WORK})
    totals = [case.budget.total for case in found.cases() if case.budget]
    assert totals == [10, 10, 100, 100]
    assert [case.changes for case in found.cases()] == [{"seed": 1}, {"seed": 2}] * 2
    assert len({case.folder for case in found.cases()}) == 4
    again = parse_study(found.as_dict(), "s.yaml", "s")
    assert again.cases() == found.cases()
    plain = parsed({**BASE, "axes": {"seed": [1]}, "budget": WORK}).cases()[0]
    assert plain.budget == Budget(of="operations", total=5)


def work(total: float) -> Budget:
    return Budget(of="operations", total=total)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"axes": {"seed": [1]}}, "s.yaml: base: is missing; a config, or its path"),
        (BASE, "s.yaml: axes: this study has no cases: axes (a mapping), cases, or analyses"),
        ({**BASE, "axes": {}, "cases": {}}, "s.yaml: axes: this study has no cases"),
        ({**BASE, "axes": {"seed": []}}, "s.yaml: axes.seed: found []; allowed: a list"),
        ({**BASE, "axes": {"x": {}}}, "s.yaml: axes.x: found {}; allowed: a list"),
        ({**BASE, "axes": {"seed": 3}}, "s.yaml: axes.seed: found 3, allowed: a mapping"),
        ({**BASE, "axes": {"seed": [1, 1]}}, "axes.seed: a value is repeated"),
        ({**BASE, "axes": {"x": {"a": 1}}}, "axes.x.a: found 1; KEY: VALUE is needed"),
        ({**BASE, "axes": {"order": {"a": {}}}}, "axes.order: is a column of the report"),
        ({**BASE, "axes": {"rel_l2_q1": {"a": {}}}}, "axes.rel_l2_q1: is a column of the report"),
        ({**BASE, "axes": {"metrics.x": {"a": {}}}}, "axes.metrics.x: is a column of the report"),
        ({**BASE, "axes": {"x": [math.inf]}}, "axes.x: found a value that is not finite"),
        ({**BASE, "axes": {"seed": [1]}, "name": ".."}, "name: found '..'"),
        ({**BASE, "axes": {"seed": [1]}, "name": "a/b"}, "name: found 'a/b'"),
        ({**BASE, "axis": {}}, "s.yaml: axis: unknown key; did you mean 'axes'? allowed: base"),
        (
            {**BASE, "axes": {"model.order": [4], "m": {"a": {"model": {}}}}},
            "axes model.order and m contradict: both change model.order",
        ),
        (
            {**BASE, "axes": {"seed": [1]}, "cases": {"a": {"seed": 2}}},
            "axes case and seed contradict: both change seed",
        ),
        ({**BASE, "axes": {"case": {"a": {}}}, "cases": {"a": {}}}, "axes.case: is what listed"),
        ({**BASE, "cases": {"a": 3}}, "s.yaml: cases.a: found 3, allowed: a mapping"),
        (
            {**BASE, "axes": {a: list(range(101)) for a in ("x", "y")}},
            "10201 cases; at most 10000",
        ),
        (
            {**BASE, "axes": {"seed": [1, 2]}, "set": {"seed": 3}},
            "set.seed: contradicts the axis seed",
        ),
        (
            {**BASE, "axes": {"model.order": [4, 5]}, "set": {"model": {}}},
            "set.model: contradicts the axis model.order",
        ),
        (
            {**BASE, "axes": {"seed": [1]}, "budget": {"of": "steps", "total": 1}},
            "budget.of: found 'steps', allowed: operations or evaluations",
        ),
        (
            {**BASE, "axes": {"seed": [1]}, "budget": {"of": "operations", "total": 0}},
            "budget.total: found 0, allowed: a number above 0",
        ),
        (
            {**BASE, "axes": {"budget.total": [1e9]}},
            "s.yaml: 1000000000.0: budget.total: the study has no budget",
        ),
        (
            {**BASE, "cases": {"a": {"budget.total": "much"}}, "budget": WORK},
            "s.yaml: a: budget.total: found 'much', allowed: above 0",
        ),
        (
            {**BASE, "axes": {"seed": [1]}, "set": {"budget.total": -1}, "budget": WORK},
            "s.yaml: set: budget.total: found -1, allowed: above 0",
        ),
        (
            {**BASE, "axes": {"seed": [1]}, "variants": {"q": {"axes": {"sead": [1]}}}},
            "variants.q.axes.sead: is no axis of the study; did you mean 'seed'? allowed: seed",
        ),
        (
            {**TABLE, "variants": {"q": {"axes": {"case": ["fin"]}}}},
            "variants.q.axes.case: no label 'fin'; did you mean 'fine'? allowed: coarse, fine, mlp",
        ),
        (
            {**TABLE, "variants": {"q": {"axes": {"case": []}}}},
            "variants.q.axes.case: found []; allowed: some of coarse",
        ),
        ({**TABLE, "variants": {"a/b": {}}}, "variants: found 'a/b'"),
    ],
)
def test_designs_that_cannot_be_used(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parsed(data)
    assert message in str(raised.value)


def test_an_unknown_variant_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as raised:
        parsed(TABLE, "quik")
    assert str(raised.value) == (
        "s.yaml: variants: no variant 'quik'; did you mean 'quick'? allowed: quick, two"
    )
    with pytest.raises(ConfigError, match=r"no variant 'quick'; this study has none"):
        parsed({**BASE, "axes": {"seed": [1]}}, "quick")

"""What a study's file may say, and the design it comes to."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic.types import StringConstraints

from kanpinn.errors import ConfigError, suggestion
from kanpinn.study.columns import CASE, is_column
from kanpinn.study.design import BASE, TOTAL, Budget, Changes, Design

MOST_CASES = 10_000
NAME = r"^\w[\w.+-]*$"

Values = Mapping[str, Any] | tuple[Any, ...]
Axes = Mapping[str, Mapping[str, Changes]]
Analyses = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class VariantOptions:
    """A variant of a study: what it has in the place of the study's own."""

    axes: Annotated[
        Mapping[str, Values],
        "axes with other values; of an axis with labels, a list of some of them",
    ] = field(default_factory=dict)
    set: Annotated[
        Mapping[str, Any], "dotted keys changed in every case, on top of everything else"
    ] = field(default_factory=dict)
    budget: Annotated[Budget | None, "work of every case"] = None
    analyses: Annotated[Analyses | None, "analyses instead of the study's"] = None


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """A study: a base config, what its cases change in it, and what is made of their runs."""

    base: Annotated[
        str | Mapping[str, Any] | None,
        "path of a config, relative to this file, or a config; not needed where every case has a "
        "base of its own, under the key base, or there are analyses alone",
    ] = None
    name: Annotated[
        Annotated[str, StringConstraints(pattern=NAME, max_length=100)] | None,
        "of the study, of its folder too; by default that of its file",
    ] = None
    cases: Annotated[
        Mapping[str, Mapping[str, Any]], "labels of listed cases, and the dotted keys each changes"
    ] = field(default_factory=dict)
    axes: Annotated[
        Mapping[str, Values],
        "dotted keys with lists of values, or names with labels and the keys each changes",
    ] = field(default_factory=dict)
    set: Annotated[Mapping[str, Any], "dotted keys changed in every case"] = field(
        default_factory=dict
    )
    budget: Annotated[Budget | None, "the same work for every case"] = None
    analyses: Annotated[
        Analyses, "what is measured beside, or of the runs: a name, options, and which cases"
    ] = ()
    variants: Annotated[Mapping[str, VariantOptions], "by name, what they have instead"] = field(
        default_factory=dict
    )


def make_design(
    options: StudyOptions, source: str, default_name: str, variant: str | None = None
) -> Design:
    """The design that a study's file comes to.

    Args:
        options: what the file says.
        source: names it in messages.
        default_name: of a study that gives itself none.
        variant: the one asked for, if any.

    Raises:
        ConfigError: for an unknown variant, empty axes, axes that change the same thing, or no
            cases at all.
    """
    axes = _axes(options, source)
    for name in options.variants:
        if not re.fullmatch(NAME, name):
            raise ConfigError(
                f"{source}: variants: found {name!r}; a letter, then letters, digits and .+-_"
            )
        _varied(axes, options.variants[name], f"{source}: variants.{name}")  # all are checked
    own, budget, analyses = dict(options.set), options.budget, options.analyses
    if variant is not None:
        chosen = _chosen(options.variants, variant, source)
        axes = _varied(axes, chosen, f"{source}: variants.{variant}")
        own, budget = {**own, **chosen.set}, chosen.budget or budget
        analyses = analyses if chosen.analyses is None else chosen.analyses
    _check_distinct(axes, source)
    _check_set(axes, own, source)
    _check_totals([*axes.values(), {"set": own}], budget, source)
    count = math.prod(len(values) for values in axes.values())
    if count > MOST_CASES:
        raise ConfigError(f"{source}: axes: {count} cases; at most {MOST_CASES} are allowed")
    name = options.name or re.sub(r"\W+", "_", default_name)
    design = Design(name, options.base, axes, own, budget, variant, analyses)
    if options.base is None and any(BASE not in case.changes for case in design.cases()):
        raise ConfigError(f"{source}: base: is missing; a config, or its path, is needed")
    return design


def label(value: Any) -> str:
    """A value of an axis in words."""
    return str(value) if isinstance(value, str | int | float) else json.dumps(value)


def _axes(options: StudyOptions, source: str) -> Axes:
    """Labels and changes by axis; listed cases come first."""
    if not options.axes and not options.cases and not options.analyses:
        raise ConfigError(
            f"{source}: axes: this study has no cases: axes (a mapping), cases, or "
            "analyses are needed"
        )
    axes: dict[str, Mapping[str, Changes]] = {}
    if options.cases:
        if CASE in options.axes:
            raise ConfigError(
                f"{source}: axes.{CASE}: is what listed cases make; choose another name"
            )
        axes[CASE] = _axis(CASE, options.cases, f"{source}: cases")
    for name, values in options.axes.items():
        axes[name] = _axis(name, values, f"{source}: axes.{name}")
    return axes


def _axis(name: str, values: Values, where: str) -> Mapping[str, Changes]:
    """Labels and changes of an axis: a list of values of a key, or named sets of changes."""
    if is_column(name):
        raise ConfigError(f"{where}: is a column of the report; choose another name for the axis")
    if not values:
        found = "{}" if isinstance(values, Mapping) else "[]"
        raise ConfigError(
            f"{where}: found {found}; allowed: a list of values of the key {name}, or a mapping "
            "of labels to the keys they change"
        )
    if isinstance(values, Mapping):
        for title, changes in values.items():
            if not isinstance(changes, Mapping):
                raise ConfigError(f"{where}.{title}: found {changes!r}; KEY: VALUE is needed")
        return {title: dict(changes) for title, changes in values.items()}
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise ConfigError(f"{where}: found a value that is not finite")
    axis = {label(value): {name: value} for value in values}
    if len(axis) < len(values):
        raise ConfigError(f"{where}: a value is repeated")
    return axis


def _chosen(variants: Mapping[str, VariantOptions], variant: str, source: str) -> VariantOptions:
    if variant in variants:
        return variants[variant]
    known = f"allowed: {', '.join(variants)}" if variants else "this study has none"
    near = suggestion(variant, variants)
    raise ConfigError(f"{source}: variants: no variant {variant!r}{near or ';'} {known}")


def _varied(axes: Axes, variant: VariantOptions, where: str) -> Axes:
    """The axes with the values that a variant gives them."""
    varied = dict(axes)
    for name, values in variant.axes.items():
        at = f"{where}.axes.{name}"
        if name not in axes:
            near = suggestion(name, axes)
            raise ConfigError(f"{at}: is no axis of the study{near or ';'} allowed: {_list(axes)}")
        labelled = any(set(changes) != {name} for changes in axes[name].values())
        if labelled and not isinstance(values, Mapping):
            varied[name] = _some(axes[name], values, at)
        else:
            varied[name] = _axis(name, values, at)
    return varied


def _some(axis: Mapping[str, Changes], labels: Sequence[Any], where: str) -> Mapping[str, Changes]:
    """The values of an axis with those labels."""
    if not labels:
        raise ConfigError(f"{where}: found []; allowed: some of {_list(axis)}")
    for name in map(label, labels):
        if name not in axis:
            near = suggestion(name, axis)
            raise ConfigError(f"{where}: no label {name!r}{near or ';'} allowed: {_list(axis)}")
    return {name: axis[name] for name in map(label, labels)}


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _check_distinct(axes: Axes, source: str) -> None:
    """Refuse axes that change the same key, or one inside of another's."""
    keys = {axis: _keys(values) for axis, values in axes.items()}
    for one, other in itertools.combinations(axes, 2):
        for a, b in itertools.product(sorted(keys[one]), sorted(keys[other])):
            if a == b or a.startswith(f"{b}.") or b.startswith(f"{a}."):
                raise ConfigError(f"{source}: axes {one} and {other} contradict: both change {a}")


def _check_set(axes: Axes, own: Changes, source: str) -> None:
    """Refuse to set for every case what an axis varies: the cases would not be what they say."""
    for axis, values in axes.items():
        for key in own:
            if any(k == key or k.startswith(f"{key}.") for k in _keys(values)):
                raise ConfigError(
                    f"{source}: set.{key}: contradicts the axis {axis}, which varies it"
                )


def _check_totals(
    values: Iterable[Mapping[str, Changes]], budget: Budget | None, source: str
) -> None:
    """Refuse totals that are no positive numbers, or of no budget."""
    for title, changes in itertools.chain.from_iterable(axis.items() for axis in values):
        if TOTAL not in changes:
            continue
        if budget is None:
            raise ConfigError(f"{source}: {title}: {TOTAL}: the study has no budget")
        found = changes[TOTAL]
        try:
            fits = 0 < float(found) < math.inf
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ConfigError(f"{source}: {title}: {TOTAL}: found {found!r}, allowed: above 0")


def _keys(values: Mapping[str, Changes]) -> set[str]:
    return {key for changes in values.values() for key in changes}

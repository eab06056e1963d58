"""What type hints do not say of a config: knots that increase, lists and ranges not empty."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from kanpinn.config.convert import Errors, show
from kanpinn.models import Formula
from kanpinn.models.options import KnotNetworkOptions, ModelOptions
from kanpinn.training import TrainingOptions

STUDY_KEYS = {"base", "cases", "axes", "analyses", "variants"}  # of which a study has some
INCREASING = "numbers from -1 to 1, both included, strictly increasing"


def check_model(model: ModelOptions, errors: Errors) -> None:
    """Widths, breakpoints and ranges of input maps."""
    if model.widths is not None and len(model.widths) < 2:
        errors.add(
            "model.widths", f"found {show(model.widths)}, allowed: inputs first, outputs last"
        )
    if model.inputs == ():
        errors.add("model.inputs", f"found {show(model.inputs)}, allowed: at least one entry")
    for number, entry in enumerate(model.inputs or ()):
        if isinstance(entry, Formula) and not entry.range[0] < entry.range[1]:
            errors.add(
                f"model.inputs.{number}.range",
                f"found {show(entry.range)}, allowed: the least value, then a greater one",
            )
    if isinstance(model, KnotNetworkOptions):
        for i, layer in enumerate(model.breakpoints or ()):
            for j, channel in enumerate(layer):
                _check_knots(channel, f"model.breakpoints.{i}.{j}", errors)


def check_training(training: TrainingOptions, errors: Errors) -> None:
    """Trained groups and user-given refinements."""
    for number, phase in enumerate(training.phases):
        if not phase.train:
            path = f"training.phases.{number}.train"
            errors.add(path, f"found {show(phase.train)}, allowed: at least one pattern")
    for i, rule in enumerate(() if isinstance(training.refine, str) else training.refine):
        path = f"training.refine.{i}"
        if isinstance(rule, int):
            if rule < 1:
                errors.add(path, f"found {rule}, allowed: an integer of at least 1, or a list")
            continue
        for j, layer in enumerate(rule):
            if not isinstance(layer, int):
                _check_knots(layer, f"{path}.{j}", errors)


def _check_knots(knots: Sequence[float], path: str, errors: Errors) -> None:
    ends = (knots[0], knots[-1]) if knots else ()
    if ends != (-1, 1) or any(right <= left for left, right in pairwise(knots)):
        errors.add(path, f"found {show(knots)}, allowed: {INCREASING}")

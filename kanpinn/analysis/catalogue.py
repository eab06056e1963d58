"""All analyses by name: from a config's list to findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kanpinn.analysis.basis_spectrum import BasisSpectrum, basis_spectrum
from kanpinn.analysis.descent import PreconditionedDescent, preconditioned_descent
from kanpinn.analysis.finding import Case, Finding
from kanpinn.analysis.layer_speed import LayerSpeed, layer_speed
from kanpinn.analysis.prolongation_change import ProlongationChange, prolongation_change
from kanpinn.analysis.residual_spectrum import ResidualSpectrum, residual_spectrum
from kanpinn.analysis.training_spectra import TrainingSpectra, training_spectra
from kanpinn.config.convert import Errors, convert, show
from kanpinn.errors import ConfigError
from kanpinn.problem import Problem

Alone = BasisSpectrum | PreconditionedDescent | LayerSpeed
OfRuns = TrainingSpectra | ResidualSpectrum | ProlongationChange
Analysis = Alone | OfRuns
"""The options of an analysis."""

KEY = "analyses"  # of the list, in a config

ALONE: dict[type, Callable[[Any], Finding]] = {
    BasisSpectrum: basis_spectrum,
    PreconditionedDescent: preconditioned_descent,
    LayerSpeed: layer_speed,
}
OF_RUNS: dict[type, Callable[[Any, Sequence[Case], Problem | None, bool], Finding]] = {
    TrainingSpectra: training_spectra,
    ResidualSpectrum: residual_spectrum,
    ProlongationChange: prolongation_change,
}


def parse(data: Sequence[Any], source: str = "config") -> tuple[Analysis, ...]:
    """The options that a config's list of analyses stands for.

    Args:
        data: a mapping with ``name`` and options for each.
        source: names the config in messages.

    Raises:
        ConfigError: naming the source, the key (``analyses.0.n``), what was found and what is
            allowed.
    """
    errors = Errors()
    if isinstance(data, str | Mapping) or not isinstance(data, Sequence):
        errors.add(KEY, f"found {show(data)}, allowed: a list of mappings, each with a name")
        errors.check(source)
    found = convert(list(data), tuple[Analysis, ...], KEY, errors)
    errors.check(source)
    return tuple(found)


def columns_of(options: Analysis) -> frozenset[str]:
    """Columns of an analysis of runs, which no label of a case can be called like."""
    return options.columns if isinstance(options, OfRuns) else frozenset()


def run(
    options: Analysis,
    cases: Sequence[Case] = (),
    *,
    problem: Problem | None = None,
    trust: bool = False,
) -> Finding:
    """Do an analysis.

    Args:
        options: which one, and how.
        cases: labels and solution of every run, for analyses of runs.
        problem: what the runs have solved, by default what they say themselves.
        trust: whether the user's file that defined it may be executed for that.

    Raises:
        ConfigError: if the analysis needs runs and there are none.
        ProblemError: if a run's problem cannot be had, or may not be imported.
    """
    if type(options) in ALONE:
        return ALONE[type(options)](options)
    if not cases:
        raise ConfigError(f"{options.name}: analyses runs, found none, allowed: at least one case")
    return OF_RUNS[type(options)](options, cases, problem, trust)

"""All analyses by name: from a config's list to findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kanpinn.analysis.basis_spectrum import BasisSpectrum, basis_spectrum
from kanpinn.analysis.descent import PreconditionedDescent, preconditioned_descent
from kanpinn.analysis.finding import Case, Finding
from kanpinn.analysis.layer_speed import LayerSpeed, layer_speed
from kanpinn.config.convert import Errors, convert, show

Analysis = BasisSpectrum | PreconditionedDescent | LayerSpeed
"""The options of an analysis."""

KEY = "analyses"  # of the list, in a config

STANDALONE: dict[type, Callable[[Any], Finding]] = {
    BasisSpectrum: basis_spectrum,
    PreconditionedDescent: preconditioned_descent,
    LayerSpeed: layer_speed,
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


def run(options: Analysis, cases: Sequence[Case] = ()) -> Finding:
    """Do an analysis.

    Args:
        options: which one, and how.
        cases: labels and solution of every run, for analyses of runs.

    Raises:
        ConfigError: if the analysis needs runs and there are none.
    """
    return STANDALONE[type(options)](options)

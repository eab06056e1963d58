"""Analyses behind the theory: spectra, conditioning, what a prolongation changes, speed of bases.

Every analysis is a frozen dataclass of options; :func:`run` does it and returns a
:class:`Finding`, which ``kanpinn.plotting.analysis.draw`` makes figures of.
"""

from kanpinn.analysis.basis_spectrum import BasisSpectrum
from kanpinn.analysis.catalogue import Analysis, parse, run
from kanpinn.analysis.descent import PreconditionedDescent
from kanpinn.analysis.finding import Case, Finding
from kanpinn.analysis.layer_speed import LayerSpeed
from kanpinn.analysis.prolongation_change import ProlongationChange
from kanpinn.analysis.residual_spectrum import ResidualSpectrum
from kanpinn.analysis.training_spectra import TrainingSpectra

__all__ = [
    "Analysis",
    "BasisSpectrum",
    "Case",
    "Finding",
    "LayerSpeed",
    "PreconditionedDescent",
    "ProlongationChange",
    "ResidualSpectrum",
    "TrainingSpectra",
    "parse",
    "run",
]

"""Figures of runs: fields, convergence, learned functions. PNG or PDF, without a display."""

from kanpinn.plotting.convergence import plot_convergence
from kanpinn.plotting.fields import FieldSection, plot_fields
from kanpinn.plotting.gather import field_sections
from kanpinn.plotting.learned_functions import univariate_layers
from kanpinn.plotting.regression import plot_parity
from kanpinn.plotting.run import plot_run
from kanpinn.plotting.snapshots import plot_snapshots
from kanpinn.plotting.style import save_figure
from kanpinn.plotting.univariate import ChannelFunctions, LayerFunctions, plot_univariate

__all__ = [
    "ChannelFunctions",
    "FieldSection",
    "LayerFunctions",
    "field_sections",
    "plot_convergence",
    "plot_fields",
    "plot_parity",
    "plot_run",
    "plot_snapshots",
    "plot_univariate",
    "save_figure",
    "univariate_layers",
]

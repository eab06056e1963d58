"""L-BFGS: the quasi-Newton method that keeps only the last pairs of differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, final

from annotated_types import Ge
from torch import Tensor

from kanpinn.optimisers.curvature_history import CurvatureHistory
from kanpinn.optimisers.quasi_newton import QuasiNewton, QuasiNewtonOptions
from kanpinn.optimisers.quasi_newton_memory import Curvature


@dataclass(frozen=True)
class LBFGSOptions(QuasiNewtonOptions):
    """Options of ``LBFGS``."""

    optimiser: Literal["lbfgs"] = "lbfgs"
    history: Annotated[int, Ge(1), "curvature pairs kept"] = 50


@final
@dataclass(frozen=True)
class LBFGS(QuasiNewton):
    """Limited-memory BFGS (Liu and Nocedal, 1989) for a full-batch loss.

    See ``QuasiNewton`` for its steps. H comes from the last pairs of differences
    (``CurvatureHistory.direction``). Its tensors in the state: ``s_history``, ``y_history`` (m, n)
    and ``products`` (m, m).

    Source: D. Liu and J. Nocedal, Math. Prog. 45 (1989), doi:10.1007/BF01589116.
    """

    options: LBFGSOptions = field(default_factory=LBFGSOptions)

    def no_curvature(self, theta: Tensor) -> Curvature:
        """See ``QuasiNewton.no_curvature``."""
        return CurvatureHistory.empty(self.options.history, theta)

    def read_curvature(self, state: Mapping[str, Tensor], count: int) -> Curvature:
        """See ``QuasiNewton.read_curvature``."""
        return CurvatureHistory.read(state, count)

"""Self-scaled BFGS and Broyden: quasi-Newton methods with the whole inverse Hessian, (n, n).

A step ``s`` with the difference of gradients ``y`` turns H into::

    H+ = (H - H y (H y)^T / y.Hy + phi y.Hy v v^T) / tau + s s^T / s.y
    v  = s / s.y - H y / y.Hy

which satisfies ``H+ y = s``. ``tau = phi = 1`` is BFGS. ``tau < 1`` enlarges H where this step has
measured nothing, and ``phi`` moves between BFGS (1) and DFP (0), or beyond them. Both are chosen
from two ratios and their product, in which ``B = H^-1``::

    b = s.Bs / s.y,    h = y.Hy / s.y,    a = b h - 1 >= 0

Sources: M. Al-Baali, Numerical experience with a class of self-scaling quasi-Newton algorithms,
J. Optim. Theory Appl. 96 (1998), doi:10.1023/A:1022608410710; for networks trained on differential
equations J. Urban, P. Stefanou and J. Pons, arXiv 2405.04230, and E. Kiyani et al., arXiv
2501.16371.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from kanpinn.errors import ConfigError
from kanpinn.optimisers.base import State
from kanpinn.optimisers.numbers import read
from kanpinn.optimisers.operations import product
from kanpinn.optimisers.quasi_newton import QuasiNewton, QuasiNewtonOptions
from kanpinn.optimisers.quasi_newton_memory import Curvature, Notes, Pair

# Parameters: H takes 800 MB in float64 then, a step twice that.
LARGEST = 10_000
# Below this value of a, s and H y are parallel up to round-off, and phi is without effect.
PARALLEL = 1e-8

NOTE_INDEFINITE = "inverse Hessian not positive definite any more: begun anew from this step"


@dataclass(frozen=True)
class SelfScaledBFGSOptions(QuasiNewtonOptions):
    """Options of ``SelfScaledBFGS``."""

    optimiser: Literal["ssbfgs"] = "ssbfgs"


@dataclass(frozen=True)
class SelfScaledBroydenOptions(QuasiNewtonOptions):
    """Options of ``SelfScaledBroyden``."""

    optimiser: Literal["ssbroyden"] = "ssbroyden"


class Scaling(NamedTuple):
    """``tau`` and ``phi`` of one update."""

    tau: float
    phi: float


ScalingRule: TypeAlias = Callable[[float, float, int], Scaling]
"""From ``b``, ``h`` and the number of parameters."""


def bfgs_scaling(b: float, h: float, n: int) -> Scaling:
    """``tau = min(1, 1 / b)``, ``phi = 1``: Al-Baali's choice for BFGS."""
    return Scaling(min(1.0, 1 / b), 1.0)


def broyden_scaling(b: float, h: float, n: int) -> Scaling:
    """Al-Baali's choice for the Broyden family, with ``theta`` 0 for BFGS and 1 for DFP::

        c = sqrt(a / (1 + a)),    r = min(1, h (1 - c))
        theta = max((r - 1) / a, min(1, (1 - b) / b)),    sigma = 1 + theta a
        phi = (1 - theta) / sigma
        tau = min(1, 1 / b) sigma^(-1/(n-1)), but at most sigma if theta <= 0

    The bounds on ``theta`` keep ``sigma`` at least ``r > 0``, and H positive definite with it. The
    sources have ``1 / r`` for the bound 1, and ``1 / theta`` as one more bound of ``tau / min(1,
    1 / b)``; neither ever decides, since ``r < 1`` takes ``b > 1 / 2``, where ``(1 - b) / b < 1``.
    """
    a = b * h - 1
    if a <= PARALLEL or n == 1:
        return bfgs_scaling(b, h, n)
    c = math.sqrt(a / (1 + a))
    r = min(1.0, h / ((1 + a) * (1 + c)))  # h (1 - c) without cancellation
    theta = max((r - 1) / a, min(1.0, (1 - b) / b))
    sigma = 1 + theta * a
    tau = min(1.0, 1 / b) * sigma ** (-1 / (n - 1))
    return Scaling(tau if theta > 0 else min(tau, sigma), (1 - theta) / sigma)


def updated(matrix: Tensor, s: Tensor, y: Tensor, hy: Tensor, scaling: Scaling) -> Tensor:
    """``H+`` (n, n) of the module's docstring, from H (n, n) and ``s``, ``y``, ``H y``, each (n,).

    Written as a sum of squares with signs, so that a symmetric H stays symmetric but for the
    rounding of one product.
    """
    tau, phi = scaling
    sy, yhy = s @ y, y @ hy
    v = s / sy - hy / yhy
    parts = (s / sy.sqrt(), hy / (tau * yhy).sqrt(), v * (abs(phi) / tau * yhy).sqrt())
    signs = (1.0, -1.0, math.copysign(1.0, phi))
    signed = torch.stack([sign * part for sign, part in zip(signs, parts, strict=True)])  # (3, n)
    return torch.addmm(matrix, torch.stack(parts, 1), signed, beta=1 / tau)


@final
@dataclass(frozen=True)
class InverseHessian(Curvature):
    """The whole approximation H.

    It begins as ``(s.y / y.y) I`` with the BFGS update of the first pair (Nocedal and Wright,
    Numerical Optimization, equation 6.20).
    """

    matrix: Tensor  # (n, n), without meaning for a count of 0
    count: int
    rule: ScalingRule

    @property
    def direction_operations(self) -> int:
        """See ``Curvature.direction_operations``: one product."""
        return product(*self.matrix.shape) if self.count else 0

    @property
    def learning_operations(self) -> int:
        """See ``Curvature.learning_operations``: ``H y``, and an update of rank three."""
        n = len(self.matrix)
        return (product(n, n) if self.count else 0) + n * product(n, 3)

    def direction(self, gradient: Tensor) -> Tensor:
        """See ``Curvature.direction``."""
        return -(self.matrix @ gradient) if self.count else -gradient

    def learn(self, pair: Pair) -> tuple[InverseHessian, Notes]:
        """See ``Curvature.learn``."""
        s, y = pair.s, pair.y
        if not self.count:
            return self._first(s, y), ()
        hy = self.matrix @ y  # (n,)
        sy, yhy, sg = read((s @ y, y @ hy, s @ pair.gradient))
        b, h = -pair.step * sg / sy, yhy / sy
        if not (b > 0 and h > 0):  # false for values that are not finite, too
            return self._first(s, y), (NOTE_INDEFINITE,)
        matrix = updated(self.matrix, s, y, hy, self.rule(b, h, s.numel()))
        return replace(self, matrix=matrix, count=self.count + 1), ()

    def _first(self, s: Tensor, y: Tensor) -> InverseHessian:
        """From one pair alone."""
        scale = (s @ y) / (y @ y)
        matrix = torch.diag(scale.expand(s.numel()))
        return replace(self, matrix=updated(matrix, s, y, scale * y, Scaling(1.0, 1.0)), count=1)

    def cleared(self) -> InverseHessian:
        """See ``Curvature.cleared``."""
        return replace(self, count=0)

    def write(self) -> State:
        """See ``Curvature.write``."""
        return {"inverse_hessian": self.matrix}


@dataclass(frozen=True)
class SelfScaled(QuasiNewton):
    """A quasi-Newton method with an ``InverseHessian``; see ``QuasiNewton`` for its steps.

    H lies in the state, and so in checkpoints, as ``inverse_hessian`` (n, n). Beside its
    evaluations a step takes of the order of ``n^2`` operations, no system of equations is solved.
    """

    @property
    @abstractmethod
    def rule(self) -> ScalingRule:
        """How ``tau`` and ``phi`` are chosen."""

    def no_curvature(self, theta: Tensor) -> Curvature:
        """See ``QuasiNewton.no_curvature``; ConfigError beyond ``LARGEST`` parameters."""
        n = theta.numel()
        if n > LARGEST:
            raise ConfigError(
                f"{self.options.optimiser}: found {n:,} parameters, allowed: at most {LARGEST:,}, "
                f"since it keeps a matrix of {n:,} x {n:,}; use lbfgs, which keeps vectors only"
            )
        return InverseHessian(theta.new_zeros(n, n), 0, self.rule)

    def read_curvature(self, state: Mapping[str, Tensor], count: int) -> Curvature:
        """See ``QuasiNewton.read_curvature``."""
        return InverseHessian(state["inverse_hessian"], count, self.rule)


@final
@dataclass(frozen=True)
class SelfScaledBFGS(SelfScaled):
    """BFGS that scales its matrix at every step (2405.04230).

    See ``bfgs_scaling``.
    """

    options: SelfScaledBFGSOptions = field(default_factory=SelfScaledBFGSOptions)

    @property
    def rule(self) -> ScalingRule:
        """See ``SelfScaled.rule``."""
        return bfgs_scaling


@final
@dataclass(frozen=True)
class SelfScaledBroyden(SelfScaled):
    """The self-scaled Broyden method (2405.04230).

    See ``broyden_scaling``.
    """

    options: SelfScaledBroydenOptions = field(default_factory=SelfScaledBroydenOptions)

    @property
    def rule(self) -> ScalingRule:
        """See ``SelfScaled.rule``."""
        return broyden_scaling

"""What L-BFGS remembers between steps, and how it lies in the flat state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kanpinn.optimisers.base import State
from kanpinn.optimisers.curvature_history import CurvatureHistory
from kanpinn.optimisers.line_search import Trial

_COUNTERS = ("pairs", "evaluated", "stalled", "restarts", "iteration")


@dataclass(frozen=True)
class Memory:
    """The state of ``LBFGS`` with host copies of the numbers its decisions need.

    Attributes:
        history: the pairs of differences.
        point: the last evaluation (step 0, slope g.g), None if there was none yet.
        scale: s.y / y.y of the newest pair, kept when the history is cleared; 0 if there was none.
        best_theta: where the loss was lowest (n,), or the start if it was never finite.
        best_loss: the loss there; inf if it was never finite.
        reference_loss: the loss when progress was last seen.
        reference_norm: the gradient norm then.
        stalled: steps since then.
        restarts: restarts from the best iterate so far.
        iteration: accepted steps so far.
    """

    history: CurvatureHistory
    point: Trial | None
    best_theta: Tensor
    scale: float = 0.0
    best_loss: float = math.inf
    reference_loss: float = math.inf
    reference_norm: float = math.inf
    stalled: int = 0
    restarts: int = 0
    iteration: int = 0

    @staticmethod
    def read(state: Mapping[str, Tensor]) -> Memory:
        """From the flat state, waiting for the device twice."""
        pairs, evaluated, stalled, restarts, iteration = torch.stack(
            [state[name] for name in _COUNTERS]
        ).tolist()
        loss, gradient = state["loss"], state["gradient"]
        names = ("scale", "best_loss", "reference_loss", "reference_norm")
        numbers = [loss, gradient @ gradient] + [state[name] for name in names]
        # every number is exact in float64, whatever the type of theta
        value, square, scale, best_loss, reference_loss, reference_norm = torch.stack(
            [number.to(torch.float64) for number in numbers]
        ).tolist()
        point = Trial(0.0, value, square, state["theta"], loss, gradient)
        return Memory(
            history=CurvatureHistory(
                state["s_history"], state["y_history"], state["products"], pairs
            ),
            point=point if evaluated else None,
            best_theta=state["best_theta"],
            scale=scale,
            best_loss=best_loss,
            reference_loss=reference_loss,
            reference_norm=reference_norm,
            stalled=stalled,
            restarts=restarts,
            iteration=iteration,
        )

    def write(self) -> State:
        """As the flat state; the class ``LBFGS`` documents it."""
        like, point = self.best_theta, self.point

        def counter(value: int) -> Tensor:
            return torch.tensor(value, dtype=torch.int64, device=like.device)

        def number(value: float) -> Tensor:
            return torch.tensor(value, dtype=torch.float64, device=like.device)

        return {
            "theta": like if point is None else point.theta,
            "loss": like.new_full((), math.inf) if point is None else point.loss,
            "gradient": torch.zeros_like(like) if point is None else point.gradient,
            "s_history": self.history.s,
            "y_history": self.history.y,
            "products": self.history.products,
            "scale": number(self.scale),
            "best_theta": like,
            "best_loss": number(self.best_loss),
            "reference_loss": number(self.reference_loss),
            "reference_norm": number(self.reference_norm),
            "pairs": counter(self.history.count),
            "evaluated": counter(0 if point is None else 1),
            "stalled": counter(self.stalled),
            "restarts": counter(self.restarts),
            "iteration": counter(self.iteration),
        }

    def cleared(self) -> Memory:
        """The same without any pairs."""
        return replace(self, history=replace(self.history, count=0))

    def at(self, point: Trial) -> Memory:
        """With ``point`` (slope g.g) the last evaluation, and the best one if it is lower."""
        if point.finite and point.value < self.best_loss:
            return replace(self, point=point, best_theta=point.theta, best_loss=point.value)
        return replace(self, point=point)

    def measured(self, norm: float, change_tolerance: float, norm_factor: float) -> Memory:
        """After an accepted step: one more iteration, with progress or one more without.

        Progress is a loss lower than the reference by the relative ``change_tolerance``, or a
        gradient ``norm`` at most ``norm_factor`` times the reference.
        """
        assert self.point is not None
        loss, reference = self.point.value, self.reference_loss
        # the comparison is false for a reference of inf - inf, hence the first clause
        if (
            not math.isfinite(reference)
            or loss < reference - change_tolerance * abs(reference)
            or norm <= norm_factor * self.reference_norm
        ):
            return replace(
                self,
                iteration=self.iteration + 1,
                stalled=0,
                reference_loss=min(loss, reference),
                reference_norm=min(norm, self.reference_norm),
            )
        return replace(self, iteration=self.iteration + 1, stalled=self.stalled + 1)

"""What a quasi-Newton method remembers between steps, and how it lies in the flat state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from kanpinn.optimisers.base import State
from kanpinn.optimisers.line_search import Trial
from kanpinn.optimisers.numbers import read

Notes: TypeAlias = tuple[str, ...]

_COUNTERS = ("pairs", "evaluated", "stalled", "restarts", "iteration")


@dataclass(frozen=True)
class Pair:
    """What an accepted step of ``a`` along ``d = -H g`` says about the curvature.

    The Hessian ``B = H^-1`` that the step believed in gives ``B s = -a g``, without an inverse.
    """

    s: Tensor  # (n,), the difference of the parameters
    y: Tensor  # (n,), the difference of the gradients
    step: float  # a
    gradient: Tensor  # (n,), g, at the start of the step


class Curvature(ABC):
    """An approximation H of the inverse Hessian, learnt from pairs of differences; immutable.

    Attributes:
        count: pairs in use; 0: nothing is known.
    """

    count: int

    @property
    @abstractmethod
    def direction_operations(self) -> int:
        """What a direction costs, see :mod:`kanpinn.optimisers.operations`."""

    @property
    @abstractmethod
    def learning_operations(self) -> int:
        """What one more pair costs."""

    @abstractmethod
    def direction(self, gradient: Tensor) -> Tensor:
        """``-H gradient`` (n,)."""

    @abstractmethod
    def learn(self, pair: Pair) -> tuple[Curvature, Notes]:
        """With one more pair, whose ``s.y`` is positive; and what happened beside that."""

    @abstractmethod
    def cleared(self) -> Curvature:
        """Without any pairs."""

    @abstractmethod
    def write(self) -> State:
        """The tensors it consists of, by name."""


ReadCurvature: TypeAlias = Callable[[Mapping[str, Tensor], int], Curvature]
"""From the flat state and the number of pairs in use."""


@dataclass(frozen=True)
class Memory:
    """The state of ``QuasiNewton`` with host copies of the numbers its decisions need.

    Attributes:
        curvature: the approximation of the inverse Hessian.
        point: the last evaluation (step 0, slope g.g), None if there was none yet.
        scale: s.y / y.y of the newest pair, kept when pairs are cleared; 0 if there was none.
        best_theta: where the loss was lowest (n,), or the start if it was never finite.
        best_loss: the loss there; inf if it was never finite.
        reference_loss: the loss when progress was last seen.
        reference_norm: the gradient norm then.
        stalled: steps since then.
        restarts: restarts from the best iterate so far.
        iteration: accepted steps so far.
    """

    curvature: Curvature
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
    def read(state: Mapping[str, Tensor], curvature: ReadCurvature) -> Memory:
        """From the flat state, waiting for the device once."""
        pairs, evaluated, stalled, restarts, iteration = (int(state[n]) for n in _COUNTERS)
        names = ("scale", "best_loss", "reference_loss", "reference_norm")
        scale, best_loss, reference_loss, reference_norm = (float(state[n]) for n in names)
        loss, gradient = state["loss"], state["gradient"]
        value, square = read([loss, gradient @ gradient])
        point = Trial(0.0, value, square, state["theta"], loss, gradient)
        return Memory(
            curvature=curvature(state, pairs),
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
        """As the flat state; the class ``QuasiNewton`` documents it."""
        like, point = self.best_theta, self.point

        def counter(value: int) -> Tensor:
            return torch.tensor(value, dtype=torch.int64)

        def number(value: float) -> Tensor:
            return torch.tensor(value, dtype=torch.float64)

        return {
            "theta": like if point is None else point.theta,
            "loss": like.new_full((), math.inf) if point is None else point.loss,
            "gradient": torch.zeros_like(like) if point is None else point.gradient,
            **self.curvature.write(),
            "scale": number(self.scale),
            "best_theta": like,
            "best_loss": number(self.best_loss),
            "reference_loss": number(self.reference_loss),
            "reference_norm": number(self.reference_norm),
            "pairs": counter(self.curvature.count),
            "evaluated": counter(0 if point is None else 1),
            "stalled": counter(self.stalled),
            "restarts": counter(self.restarts),
            "iteration": counter(self.iteration),
        }

    def cleared(self) -> Memory:
        """The same without any pairs."""
        return replace(self, curvature=self.curvature.cleared())

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

"""Learning-rate schedules: pure functions of the step, each with a linear warm-up in front.

Step ``k`` counts from 0. With ``w`` warm-up steps and the first factor ``f0`` the factor is
``f0 + (1 - f0) k / w`` for ``k < w``, and then the schedule's own ``g(k - w)``. They are written
in tensor operations, so that a step on a GPU needs no answer from it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from kanpinn.errors import ConfigError


@dataclass(frozen=True)
class BaseSchedule(ABC):
    """Warm-up, and the interface of all schedules.

    Attributes:
        needs_total: whether the factor depends on the number of steps of the phase.
    """

    warmup: Annotated[int, Ge(0), "steps of linear warm-up before the schedule begins"] = 0
    warmup_factor: Annotated[
        float, Gt(0), Le(1), "share of the learning rate at the first step of the warm-up"
    ] = 0.01

    needs_total: ClassVar[bool] = False

    @abstractmethod
    def after_warmup(self, step: Tensor, total: Tensor | None) -> Tensor:
        """The schedule's own factor g: ``step`` and ``total`` count from the end of the warm-up."""

    def factor(self, step: int | Tensor, total: int | Tensor | None = None) -> Tensor:
        """What the learning rate is multiplied by at ``step`` (any shape), in float64.

        ``total`` is the number of steps of the phase, warm-up included.

        Raises:
            ConfigError: the schedule needs ``total`` and it is None.
        """
        if self.needs_total and total is None:
            raise ConfigError(
                f"{type(self).__name__} needs the number of steps of the phase, which is not known"
            )
        k = torch.as_tensor(step).to(torch.float64)
        rest = None if total is None else torch.as_tensor(total).to(torch.float64) - self.warmup
        main = self.after_warmup((k - self.warmup).clamp(min=0), rest)
        if self.warmup == 0:
            return main
        ramp = self.warmup_factor + (1 - self.warmup_factor) * (k / self.warmup)
        return torch.where(k < self.warmup, ramp, main)


@dataclass(frozen=True)
class ConstantSchedule(BaseSchedule):
    """``g(k) = 1``."""

    kind: Literal["constant"] = "constant"

    def after_warmup(self, step: Tensor, total: Tensor | None) -> Tensor:
        """See the class."""
        return torch.ones_like(step)


@dataclass(frozen=True)
class CosineSchedule(BaseSchedule):
    """``g(k) = e + (1 - e) (1 + cos(pi k / N)) / 2``, with N the steps after the warm-up.

    ``e = final_fraction``; constant beyond N. Source: 1608.03983, eq. 5, without restarts.
    """

    kind: Literal["cosine"] = "cosine"
    final_fraction: Annotated[float, Ge(0), Le(1), "share of the learning rate at the end"] = 0.0

    needs_total: ClassVar[bool] = True

    def after_warmup(self, step: Tensor, total: Tensor | None) -> Tensor:
        """See the class."""
        assert total is not None  # factor() has refused it
        progress = (step / total.clamp(min=1)).clamp(max=1)
        wave = 0.5 * (1 + torch.cos(math.pi * progress))
        return self.final_fraction + (1 - self.final_fraction) * wave


@dataclass(frozen=True)
class ExponentialSchedule(BaseSchedule):
    """``g(k) = decay^(k / every)``."""

    kind: Literal["exponential"] = "exponential"
    decay: Annotated[float, Gt(0), Le(1), "factor over `every` steps"] = 0.9
    every: Annotated[int, Ge(1), "steps"] = 1000

    def after_warmup(self, step: Tensor, total: Tensor | None) -> Tensor:
        """See the class."""
        return torch.pow(self.decay, step / self.every)


@dataclass(frozen=True)
class StepSchedule(BaseSchedule):
    """``g(k) = decay^floor(k / every)``."""

    kind: Literal["step"] = "step"
    decay: Annotated[float, Gt(0), Le(1), "factor at each drop"] = 0.5
    every: Annotated[int, Ge(1), "steps between drops"] = 1000

    def after_warmup(self, step: Tensor, total: Tensor | None) -> Tensor:
        """See the class."""
        return torch.pow(self.decay, torch.floor(step / self.every))


@dataclass(frozen=True)
class CyclicSchedule(BaseSchedule):
    """``g(k) = e + (1 - e) decay^k w(k mod cycle)`` with ``e = low_fraction``.

    ``w`` rises linearly from 0 to 1 and falls back within a cycle ("triangular"), or falls
    linearly from 1 at the start of each cycle ("restart"). The learning rate is thus the peak, the
    decay acts at every step, and the low end stays. Source: 1506.01186, section 3.2
    ("exp_range"); the triangular shape equals torch's ``CyclicLR(mode="exp_range")`` with
    ``step_size_up = step_size_down = cycle / 2``, ``max_lr`` the learning rate and
    ``base_lr = low_fraction * max_lr``.
    """

    kind: Literal["cyclic"] = "cyclic"
    cycle: Annotated[int, Ge(2), "steps in a whole cycle"] = 100
    decay: Annotated[float, Gt(0), Le(1), "factor on the amplitude at each step"] = 0.9995
    low_fraction: Annotated[float, Ge(0), Le(1), "share of the learning rate at the low end"] = 0.1
    shape: Annotated[
        Literal["triangular", "restart"], "rise and fall in each cycle, or fall from its start"
    ] = "triangular"

    def after_warmup(self, step: Tensor, total: Tensor | None) -> Tensor:
        """See the class."""
        place = torch.remainder(step, self.cycle) / self.cycle
        wave = 1 - torch.abs(2 * place - 1) if self.shape == "triangular" else 1 - place
        return self.low_fraction + (1 - self.low_fraction) * torch.pow(self.decay, step) * wave


Schedule: TypeAlias = (
    ConstantSchedule | CosineSchedule | ExponentialSchedule | StepSchedule | CyclicSchedule
)

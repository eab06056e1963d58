"""Adam with decoupled weight decay, in tensor operations only: a step never waits for a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, final

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from kanpinn.errors import ConfigError
from kanpinn.optimisers.base import (
    Objective,
    Optimiser,
    ParameterLayout,
    State,
    StepResult,
    check_start,
)
from kanpinn.optimisers.schedules import ConstantSchedule, Schedule

BetaValue = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class AdamOptions:
    """Options of ``Adam``."""

    optimiser: Literal["adam"] = "adam"
    learning_rate: Annotated[float, Gt(0), "learning rate before schedule and group factors"] = 1e-3
    betas: Annotated[
        tuple[BetaValue, BetaValue], "decay of the averages of the gradient and of its square"
    ] = (0.9, 0.999)
    eps: Annotated[float, Gt(0), "added to the root of the mean square"] = 1e-8
    weight_decay: Annotated[
        float, Ge(0), "decoupled decay: theta shrinks by learning rate times this at each step"
    ] = 0.0
    gradient_clip: Annotated[
        float | None, Gt(0), "largest 2-norm of the gradient, longer ones are scaled; null: none"
    ] = None
    schedule: Annotated[Schedule, "how the learning rate changes over the phase"] = field(
        default_factory=ConstantSchedule
    )
    group_learning_rates: Annotated[
        Mapping[str, Annotated[float, Ge(0)]],
        "factor on the learning rate of the groups whose name begins so (longest match); 0 freezes",
    ] = field(default_factory=dict)


def group_factors(theta: Tensor, layout: ParameterLayout, factors: Mapping[str, float]) -> Tensor:
    """The learning-rate factor of each parameter (n,): that of the longest matching prefix, or 1.

    Raises:
        ConfigError: a prefix that no group's name begins with.
    """
    for prefix in factors:
        if not any(name.startswith(prefix) for name in layout.names):
            raise ConfigError(
                f"group_learning_rates: no group begins with '{prefix}'; "
                f"the groups are {', '.join(layout.names)}"
            )
    result = torch.ones_like(theta)
    for name, where in layout.slices().items():
        matching = [prefix for prefix in factors if name.startswith(prefix)]
        if matching:
            result[where].fill_(factors[max(matching, key=len)])
    return result


@final
@dataclass(frozen=True)
class Adam(Optimiser):
    """Adam (1412.6980, algorithm 1) with decoupled weight decay (1711.05101, algorithm 2).

    With gradient g at theta, learning rate a (after schedule and group factor), decay l and k
    updates so far, this one included::

        theta <- (1 - a l) theta
        m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2
        theta <- theta - a (m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + eps)

    A step whose loss or gradient norm is not finite changes nothing but the counters: theta, m and
    v stay. It is not reported by a stop reason, since that would make the host wait
    for the device: look at ``state["skipped"]`` and ``state["skipped_in_a_row"]`` now and then.
    With a full batch the next step meets the same loss again, so one such step is the sign to
    restart from an earlier iterate.

    The state: ``m``, ``v`` (n,); ``step``, ``skipped``, ``skipped_in_a_row`` and ``total_steps``
    (0: unknown), int64; ``group_factors`` (n,), if there are any. The schedule counts all steps,
    the bias correction only those not skipped.
    """

    options: AdamOptions = field(default_factory=AdamOptions)

    deterministic_objective: ClassVar[bool] = False
    loss_at: ClassVar[Literal["start", "end"]] = "start"

    def init(self, theta: Tensor, layout: ParameterLayout, total_steps: int | None = None) -> State:
        """See ``Optimiser.init``; ConfigError too if the schedule needs ``total_steps``."""
        check_start("adam", theta, layout)
        if total_steps is not None and total_steps < 1:
            raise ConfigError(f"adam: total_steps is {total_steps}, must be at least 1")
        self.options.schedule.factor(0, total_steps)  # raises if it cannot be computed
        theta = theta.detach()

        def counter(value: int) -> Tensor:
            return torch.tensor(value, dtype=torch.int64, device=theta.device)

        state = {
            "m": torch.zeros_like(theta),
            "v": torch.zeros_like(theta),
            "step": counter(0),
            "skipped": counter(0),
            "skipped_in_a_row": counter(0),
            "total_steps": counter(total_steps or 0),
        }
        if self.options.group_learning_rates:
            state["group_factors"] = group_factors(theta, layout, self.options.group_learning_rates)
        return state

    def learning_rate(self, state: Mapping[str, Tensor]) -> Tensor:
        """The learning rate of the next step before group factors, float64 without dimensions."""
        total = state["total_steps"] if self.options.schedule.needs_total else None
        return self.options.learning_rate * self.options.schedule.factor(state["step"], total)

    def refresh(self, theta: Tensor, state: Mapping[str, Tensor], layout: ParameterLayout) -> State:
        """See ``Optimiser.refresh``: moments follow a changing objective by themselves."""
        return dict(state)

    def step(
        self,
        theta: Tensor,
        state: Mapping[str, Tensor],
        objective: Objective,
        layout: ParameterLayout,
    ) -> StepResult:
        """One update; see the class. ``loss`` and ``gradient_norm`` belong to the start."""
        theta = theta.detach()  # (n,)
        loss, gradient = (value.detach() for value in objective.loss_and_gradient(theta))
        norm = torch.linalg.vector_norm(gradient)
        proposed, m, v = self._update(theta, state, gradient, norm)
        # a finite norm (of the gradient before clipping) keeps v finite too
        good = torch.isfinite(norm) & torch.isfinite(loss)
        skipped = torch.where(good, 0, 1)  # int64
        new_state = dict(state) | {
            "m": torch.where(good, m, state["m"]),
            "v": torch.where(good, v, state["v"]),
            "step": state["step"] + 1,
            "skipped": state["skipped"] + skipped,
            "skipped_in_a_row": (state["skipped_in_a_row"] + 1) * skipped,
        }
        new_theta = torch.where(good, proposed, theta)
        return StepResult(new_theta, new_state, loss, norm, evaluations=1)

    def _update(
        self, theta: Tensor, state: Mapping[str, Tensor], gradient: Tensor, norm: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Parameters and both averages (each (n,)) after an update with this gradient."""
        options = self.options
        b1, b2 = options.betas
        if options.gradient_clip is not None:
            gradient = gradient * (options.gradient_clip / norm.clamp(min=options.gradient_clip))
        m = torch.lerp(state["m"], gradient, 1 - b1)
        v = b2 * state["v"] + (1 - b2) * gradient * gradient
        updates = (state["step"] - state["skipped"] + 1).to(torch.float64)
        correction1 = 1 - torch.pow(b1, updates)
        correction2 = 1 - torch.pow(b2, updates)
        # tensors without dimensions do not promote: theta keeps its type
        rate = self.learning_rate(state)
        direction = m / (v.sqrt() / correction2.sqrt() + options.eps) / correction1
        if "group_factors" in state:
            rate = rate * state["group_factors"].to(theta.dtype)  # (n,)
        if options.weight_decay:
            theta = theta - rate * options.weight_decay * theta
        return theta - rate * direction, m, v

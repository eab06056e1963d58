"""Weights that change while a level is trained: of rows, of whole blocks, and in time.

They enter the objective and nothing else: held-out scores take the blocks' fixed weights alone, so
that the best iterate is chosen by one measure throughout. Each follows from residuals and their
derivatives at counted steps, and starts afresh on every level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

import torch
from torch import Tensor

from kanpinn.errors import ConfigError
from kanpinn.optimisers.operations import Meter
from kanpinn.residuals import Coordinates, ResidualBlock, System
from kanpinn.sampling import QUADRATURE
from kanpinn.training.accumulate import tree_sum
from kanpinn.training.block_data import BlockData, residual_rows
from kanpinn.training.objective import SystemObjective
from kanpinn.training.options import TrainingOptions
from kanpinn.training.parameters import ParameterPack
from kanpinn.training.weight_options import AttentionOptions, BalanceOptions, CausalOptions

Named = dict[str, Tensor]


@dataclass
class Weights:
    """The weights as they stand: part of the run's state.

    Attributes:
        attention: factors of the residuals of a block, ``(n_rows,)``, by its name.
        balance: factor of the loss of a block, 0-d, by its name.
        causal: ``slices``, factors of the loss in every slice of time, and ``stage``, the number of
            epsilons that are done with (int64, 0-d).
    """

    attention: Named = field(default_factory=dict)
    balance: Named = field(default_factory=dict)
    causal: Named = field(default_factory=dict)


class Weighting:
    """Starts and updates all weights of a level.

    Args:
        options: which of them there are.
        system: networks and scalars.
        data: residual blocks with their points.
        weights: where they stand; changed in place.

    Attributes:
        meter: counts what updates cost.
    """

    def __init__(
        self,
        options: TrainingOptions,
        system: System,
        data: Sequence[BlockData],
        weights: Weights,
    ) -> None:
        self.data, self.weights, self.meter = tuple(data), weights, Meter()
        self.attention = self.balance = self.causal = None
        if options.attention is not None:
            self.attention = Attention(options.attention, data, weights.attention)
        if options.balance is not None:
            self.balance = Balance(options.balance, system, data, weights.balance, self.meter)
        if options.causal is not None:
            self.causal = Causality(options.causal, system, data, weights.causal, self.meter)

    def start(self) -> None:
        """Give rows that have no weights yet their first ones."""
        if self.attention is not None:
            self.attention.start()

    def attend(self, objective: SystemObjective) -> None:
        """After a gradient step: update the weights of the rows it has seen."""
        if self.attention is not None:
            self.attention.update(objective)

    def update(self, step: int, pack: ParameterPack) -> tuple[bool, list[str]]:
        """Before a step of a phase: update what is due at it.

        Returns:
            Whether the objective has changed, and what there is to tell.
        """
        causal, balance = self.causal, self.balance
        slices_due = causal is not None and step % causal.options.every == 0
        balance_due = balance is not None and step % balance.options.every == 0
        if not (slices_due or balance_due):  # the usual step: nothing to compare on the device
            return False, []
        before = self.factors()
        notes = []
        if causal is not None and slices_due:
            notes += causal.update()
        if balance is not None and balance_due:
            factors = self._causal_factors()
            notes += balance.update(pack, self.weights.attention, factors)
        after = self.factors()
        same = before.keys() == after.keys()
        return not (same and all(torch.equal(after[k], before[k]) for k in after)), notes

    def factors(self) -> Named:
        """Factors ``(n_rows,)`` of the rows' shares of the loss; blocks without are left out."""
        factors = self._causal_factors()
        for data in self.data:
            name, whole = data.block.name, self.weights.balance.get(data.block.name)
            if whole is not None:
                rows = factors.get(name)
                factors[name] = whole.expand(data.n_rows) if rows is None else whole * rows
        return factors

    def _causal_factors(self) -> Named:
        return {} if self.causal is None else self.causal.factors()


class Attention:
    """Residual-based attention: see :class:`~kanpinn.training.weight_options.AttentionOptions`.

    Args:
        options: blocks and rates.
        data: blocks with their points.
        weights: per block, ``(n_rows,)``; changed in place.
    """

    def __init__(
        self, options: AttentionOptions, data: Sequence[BlockData], weights: Named
    ) -> None:
        self.options, self.weights = options, weights
        self.data = _matching(data, options.blocks)

    def start(self) -> None:
        """First weights where there are none."""
        for data in self.data:
            like = data.points[0].x
            weights = self.weights.get(data.block.name)
            if weights is None or len(weights) != data.n_rows:
                self.weights[data.block.name] = like.new_full((data.n_rows,), self.options.initial)

    def update(self, objective: SystemObjective) -> None:
        """``w <- decay w + rate |r| / max |r|`` on the rows the step has seen."""
        options = self.options
        for name, seen in objective.rows.items():
            weights = self.weights[name].clone()
            largest = torch.stack([size.max() for _, size in seen]).max()
            for rows, size in seen:
                share = size / largest.clamp_min(torch.finfo(size.dtype).tiny)
                weights[rows] = options.decay * weights[rows] + options.rate * share
            # A non-finite residual must not outlive the step that met it.
            old = self.weights[name]
            self.weights[name] = torch.where(torch.isfinite(largest), weights, old)


class Balance:
    """Factors of whole blocks: see :class:`~kanpinn.training.weight_options.BalanceOptions`.

    Args:
        options: what is made equal, and how often.
        system: networks and scalars.
        data: blocks with their points.
        weights: per block, 0-d; changed in place.
        meter: counts what updates cost.
    """

    def __init__(
        self,
        options: BalanceOptions,
        system: System,
        data: Sequence[BlockData],
        weights: Named,
        meter: Meter,
    ) -> None:
        self.options, self.system, self.weights, self.meter = options, system, weights, meter
        self.data = _matching(data, options.blocks)

    def update(
        self, pack: ParameterPack, attention: Mapping[str, Tensor], factors: Mapping[str, Tensor]
    ) -> list[str]:
        """``f_b <- memory f_b + (1 - memory) mean(s) / s_b``, at first without memory.

        Args:
            pack: parameters that derivatives are taken by.
            attention: factors of the residuals, per block.
            factors: other factors of the rows' shares of the loss, per block.
        """
        sizes = torch.stack([self._size(data, pack, attention, factors) for data in self.data])
        if not bool(torch.isfinite(sizes).all()) or not bool((sizes > 0).any()):
            return []  # nothing to go by
        sizes = sizes.clamp_min(torch.finfo(sizes.dtype).eps * float(sizes.max()))
        memory, texts = self.options.memory, []
        for data, wanted in zip(self.data, sizes.mean() / sizes, strict=True):
            name, new = data.block.name, wanted
            if name in self.weights:
                new = memory * self.weights[name] + (1 - memory) * wanted
            self.weights[name] = new.clone()
            texts.append(f"{name} {float(new):.3g}")
        return [f"balance: factors of {', '.join(texts)}"]

    def _size(
        self,
        data: BlockData,
        pack: ParameterPack,
        attention: Mapping[str, Tensor],
        factors: Mapping[str, Tensor],
    ) -> Tensor:
        """``s_b``, 0-d."""
        objective = SystemObjective(self.system, pack, (data,), attention, factors=factors)
        theta = pack.read()
        if self.options.by == "gradient_norm":
            size = torch.linalg.vector_norm(objective.loss_and_gradient(theta)[1])
        else:
            pieces = objective.jacobian_rows(theta)
            size = tree_sum([piece[:, :-1].square().sum()] for piece in pieces)[0]
        self.meter.add(objective.meter.operations)
        return size


class Causality:
    """Factors in time: see :class:`~kanpinn.training.weight_options.CausalOptions`.

    Args:
        options: slices, epsilons, and how often.
        system: networks and scalars, of a problem in time.
        data: blocks with their points.
        weights: ``slices`` and ``stage``, empty at first; changed in place.
        meter: counts what updates cost.
    """

    def __init__(
        self,
        options: CausalOptions,
        system: System,
        data: Sequence[BlockData],
        weights: Named,
        meter: Meter,
    ) -> None:
        self.options, self.system, self.weights, self.meter = options, system, weights, meter
        time = system.coordinates.time
        assert time is not None  # check_weighting
        start, end = next(iter(system.parts.values())).inputs.bounds[time]
        clocks = {entry.block.name: entry.points[0].x[:, time] for entry in data}
        self.initial = [e for e in data if bool((clocks[e.block.name] == start).all())]
        chosen = _matching(data, options.blocks)
        self.data = [entry for entry in chosen if entry not in self.initial]
        self.slice_of = {
            entry.block.name: _slices(clocks[entry.block.name], start, end, options.slices)
            for entry in self.data
        }

    def update(self) -> list[str]:
        """Weights by the losses as they are now; the next epsilon where this one is done with."""
        options, like = self.options, next(iter(self.system.parameters())).detach()
        first = stage = int(self.weights["stage"]) if self.weights else 0
        if stage == len(options.epsilon):
            return []
        earlier = self.losses().cumsum(0)[:-1]
        if not bool(torch.isfinite(earlier).all()):
            return []  # nothing to go by
        weights = torch.ones_like(earlier)
        while stage < len(options.epsilon):
            weights = torch.exp(-options.epsilon[stage] * earlier)
            if not float(weights.min()) > options.threshold:
                break
            stage += 1
            weights = torch.ones_like(earlier)
        told = bool(self.weights) and stage == first
        self.weights["stage"] = torch.tensor(stage, device=like.device)
        self.weights["slices"] = weights.to(like)
        if told:
            return []
        done = stage == len(options.epsilon)
        now = "one from here on" if done else f"epsilon {options.epsilon[stage]:g}"
        return [f"causal weights: {now}"]

    def losses(self) -> Tensor:
        """``L`` of the initial time and of every slice, ``(slices + 1,)``, float64 on the CPU."""
        result = torch.zeros(self.options.slices + 1, dtype=torch.float64)
        for data in self.initial:
            squares, share = self._squares(data)
            result[0] += data.block.weight * (squares @ share) / share.sum()
        for data in self.data:
            squares, share = self._squares(data)
            where, count = self.slice_of[data.block.name].cpu(), self.options.slices
            total = torch.bincount(where, squares * share, count)
            weight = torch.bincount(where, share, count)
            mean = total / weight.clamp_min(torch.finfo(weight.dtype).tiny)  # 0 where no row is
            result[1:] += data.block.weight * mean
        return result

    def _squares(self, data: BlockData) -> tuple[Tensor, Tensor]:
        """Mean squares of a block's rows and their quadrature weights, each ``(n_rows,)``."""
        self.meter.add(data.cost().residual)
        squares = residual_rows(data, self.system).double().cpu().square().mean(-1)
        quadrature = data.points[0].data.get(QUADRATURE, torch.ones_like(squares))
        return squares, quadrature.double().cpu()

    def factors(self) -> Named:
        """Factors of the rows per block, ``(n_rows,)``."""
        slices = self.weights.get("slices")
        if slices is None:
            return {}
        return {name: slices[where] for name, where in self.slice_of.items()}


def check_weighting(
    blocks: Sequence[ResidualBlock], coordinates: Coordinates, training: TrainingOptions
) -> None:
    """Refuse weights that the problem's blocks cannot have.

    Raises:
        ConfigError: naming the key, and the blocks there are.
    """
    names = [block.name for block in blocks]
    chosen = {
        key: options
        for key in ("attention", "balance", "causal")
        if (options := getattr(training, key)) is not None
    }
    for key, options in chosen.items():
        for pattern in options.blocks:
            if not any(fnmatch(name, pattern) for name in names):
                raise ConfigError(
                    f"training.{key}.blocks: {pattern!r} matches no block; there are "
                    f"{', '.join(names)}"
                )
    balance, causal = training.balance, training.causal
    if balance and sum(_matches(name, balance.blocks) for name in names) < 2:
        raise ConfigError(
            f"training.balance.blocks: found {', '.join(balance.blocks)}, allowed: patterns that "
            f"match two blocks or more; there are {', '.join(names)}"
        )
    if causal and coordinates.time is None:
        raise ConfigError(
            "training.causal: the problem has no time coordinate; allowed: null, or a domain with "
            'one, such as Box(..., time="t")'
        )
    _check_squares(blocks, chosen)
    joined = [b.name for b in blocks if causal and b.group > 1 and _matches(b.name, causal.blocks)]
    if joined:
        raise ConfigError(
            f"training.causal.blocks: rows of {joined[0]!r} join points of several times; allowed: "
            f"{', '.join(block.name for block in blocks if block.group == 1)}"
        )


def _check_squares(
    blocks: Sequence[ResidualBlock],
    chosen: Mapping[str, AttentionOptions | BalanceOptions | CausalOptions],
) -> None:
    """Refuse weights that follow from squares for blocks that minimise something else."""
    general = [block.name for block in blocks if not block.is_least_squares]
    for key, options in chosen.items():
        rule, allowed = "it", "allowed: patterns without it"
        if isinstance(options, BalanceOptions):
            if options.by == "gradient_norm":
                continue
            rule, allowed = "by ntk", "allowed: by: gradient_norm, or patterns without it"
        for name in general:
            if _matches(name, options.blocks):
                raise ConfigError(
                    f"training.{key}.blocks: {rule} weighs squares, and {name!r} has a loss of "
                    f"its own; {allowed}"
                )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _matching(data: Sequence[BlockData], patterns: Sequence[str]) -> list[BlockData]:
    return [entry for entry in data if _matches(entry.block.name, patterns)]


def _slices(clock: Tensor, start: float, end: float, count: int) -> Tensor:
    """The slice of ``[start, end]`` that each time ``(n,)`` lies in, ``(n,)``."""
    return ((clock - start) * (count / (end - start))).long().clamp(0, count - 1)

"""Held-out residuals and errors against the reference, on points never trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from kanpinn.errors import KanpinnError, ProblemError
from kanpinn.geometry import Points
from kanpinn.models import Layer
from kanpinn.problem import Problem
from kanpinn.residuals import ResidualBlock, System, failure
from kanpinn.sampling import SamplingOptions, held_out, sample, seen, stream
from kanpinn.training.block_data import UNBOUNDED, BlockData, mean_loss, mean_square
from kanpinn.training.memory import EVALUATION, Memory, power_of_two, rows_on_gpu
from kanpinn.training.parallel import ordered_map

EVALUATION_CHUNK = (
    32768  # points at once, or fewer where what a layer makes of them fills more than
)
EVALUATION_BYTES = 2**24
KEPT_BY_KERNEL = 3  # times a layer's inputs and outputs
SATURATION = 0.5  # of the held-out score of the level before, at most, for an estimated error


class HeldOut:
    """Residuals on held-out points of every block.

    ``residual`` is the root mean square of the unweighted rows of the equations in ``measured``,
    ``None`` without any. ``score``, which chooses the best iterate, is the root of the whole
    weighted objective there: a network that forgets its boundary conditions must not win by a small
    equation residual.

    Args:
        data: all blocks with their points.
        measured: names of the equations with points that are not trained on.
    """

    def __init__(self, data: Sequence[BlockData], measured: Collection[str]) -> None:
        self.data, self.measured = tuple(data), frozenset(measured)

    def evaluate(self, system: System) -> tuple[float | None, float]:
        """``(residual, score)``."""
        squares, total = [], 0.0
        for data in self.data:
            value = float(mean_square(data, system))
            general = not data.block.is_least_squares
            total += data.block.weight * (float(mean_loss(data, system)) if general else value)
            if data.block.name in self.measured:
                squares.append(value)
        score = math.copysign(math.sqrt(abs(total)), total)  # a general loss may be negative
        return math.sqrt(sum(squares) / len(squares)) if squares else None, score


def held_out_equations(problem: Problem, blocks: Sequence[ResidualBlock]) -> list[str]:
    """Names of the equations whose residual can be measured on points that are not trained on.

    Blocks of finitely many points are trained on whole: they have such points only where the
    problem gives them (:meth:`~kanpinn.problem.Problem.held_out_blocks`).
    """
    own = problem.held_out_blocks()
    if own is not None:
        return [block.name for block in own if block.equation]
    return [b.name for b in blocks if b.equation and b.region.n_distinct is None]


def held_out_data(
    problem: Problem,
    blocks: Sequence[ResidualBlock],
    trained: dict[str, tuple[Points, ...]],
    sampling: SamplingOptions,
    system: System,
    seed: int,
    chunk: int | None,
    memory: Memory = UNBOUNDED,
) -> HeldOut:
    """Held-out points for every block that can be sampled anew, or the problem's own."""
    like = next(iter(system.parameters()))
    own = problem.held_out_blocks()
    data = []
    for block in own if own is not None else blocks:
        if block.region.n_distinct is not None:  # given whole: nothing else could be held out
            points = sample(block.region, 1, "sobol", stream(seed), like.dtype, like.device)
        else:
            share = sampling.held_out if block.equation else max(sampling.held_out // 5, 1)
            count = max(block.group, share // block.group * block.group)
            points = held_out(
                block.region,
                count,
                seed,
                (block.name,),
                trained.get(block.name, ())[:1],
                like.dtype,
                like.device,
            )
        data.append(BlockData(block, points, system, chunk, memory))
    return HeldOut(data, held_out_equations(problem, blocks))


@dataclass(frozen=True)
class Errors:
    """Errors against the reference, all fields together."""

    rel_l2: float | None
    linf: float


def reference_values(problem: Problem, x: Tensor) -> Tensor | None:
    """The reference ``(n, n_fields)`` at points ``(n, d)``; ``None`` without one.

    Raises:
        ProblemError: if it fails, or is of the wrong shape, or not finite everywhere.
    """
    name = f"problem {type(problem).__name__}: the reference"
    try:
        values = problem.reference(x.numpy())
        if values is None:
            return None
        found = np.asarray(values, dtype=np.float64)
    except KanpinnError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's function may do
        raise failure(name, error) from error
    allowed = [(len(x), len(problem.fields))] + [(len(x),)] * (len(problem.fields) == 1)
    if found.shape not in allowed:
        raise ProblemError(
            f"{name} at {len(x)} points has the shape {found.shape}, allowed: "
            f"{' or '.join(map(str, allowed))}"
        )
    exact = torch.as_tensor(found).reshape(len(x), -1)
    wrong = ~torch.isfinite(exact).all(1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        at = ", ".join(f"{value:g}" for value in x[row].tolist())
        raise ProblemError(
            f"{name} is {exact[row].tolist()} at ({at}), allowed: finite numbers at all "
            "evaluation_points(); return None where no reference is known"
        )
    return exact


class ReferenceErrors:
    """Errors on the problem's evaluation points, points trained on left out.

    Args:
        problem: with the reference.
        trained: points of the current level.
        like: type and device to evaluate in.
        x: other evaluation points, ``(n, d)``.
        exact: the reference there, where it is known already.
        memory: what an evaluation may take.
    """

    def __init__(
        self,
        problem: Problem,
        trained: Sequence[Points],
        like: Tensor,
        x: Tensor | None = None,
        exact: Tensor | None = None,
        memory: Memory = UNBOUNDED,
    ) -> None:
        self.memory = memory
        x = problem.evaluation_points() if x is None else x
        exact = reference_values(problem, x) if exact is None else exact
        self.fields = tuple(problem.fields)
        self.available = exact is not None
        self._past: tuple[System, Tensor, Tensor] | None = None
        if exact is None:
            return
        if trained:
            fresh = ~seen(x, torch.cat([p.x.double().cpu() for p in trained]))
            x, exact = x[fresh], exact[fresh]
        self.x, self.exact = x.to(like), exact.to(like.device)

    def evaluate(self, system: System) -> Errors | None:
        """Relative L2 and maximum error, or ``None`` without a reference."""
        if not self.available:
            return None
        difference = self._values(system).double() - self.exact
        return Errors(relative_l2(difference, self.exact), float(difference.abs().max()))

    def _values(self, system: System) -> Tensor:
        """The fields at all points; what past windows, which change no more, say is kept."""
        past = system.past
        if past is None:
            return predict(system, self.x, self.fields, self.memory)
        if self._past is None or self._past[0] is not past:
            own = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)
            for rows, owner in system.pieces(self.x):
                own[rows] = owner is system
            self._past = past, own, predict(past, self.x[~own], self.fields, self.memory)
        _, own, known = self._past
        values = known.new_empty(len(self.x), known.shape[1])
        values[~own] = known
        values[own] = predict(system, self.x[own], self.fields, self.memory)
        return values


class SolutionChange:
    """``|u - v| / |u|`` at some points, all fields together, ``v`` given networks.

    Args:
        fields: names of the fields.
        given: the networks ``v``, which do not change any more.
        x: the points ``(n, d)``, of the type and on the device of the networks.
        memory: what an evaluation may take.
    """

    def __init__(
        self, fields: Sequence[str], given: System, x: Tensor, memory: Memory = UNBOUNDED
    ) -> None:
        self.fields, self.given, self.x, self.memory = tuple(fields), given, x, memory

    @cached_property
    def values(self) -> Tensor:
        """``v`` ``(n, n_fields)``, computed when it is first asked for."""
        return predict(self.given, self.x, self.fields, self.memory).double()

    def evaluate(self, system: System) -> float | None:
        """The change to a system's ``u``; ``None`` where that is zero."""
        values = predict(system, self.x, self.fields, self.memory).double()
        return relative_l2(values - self.values, values)


class RefinementChange:
    """The :class:`SolutionChange` at the problem's evaluation points from the best of the level
    before.

    The classical estimate by a finer solution: it is about the error of ``v``, and, if refinement
    at least halved the error (saturation), a bound of that of ``u``. Whether it did is judged by
    the held-out score: until that has halved there is no estimate, because a network that has not
    been trained further does not differ, be it right or wrong.

    Args:
        problem: with the evaluation points.
        coarse: the best networks of the level before.
        score: their held-out score.
        like: type and device of the networks.
        memory: what an evaluation may take.
    """

    def __init__(
        self,
        problem: Problem,
        coarse: System,
        score: float,
        like: Tensor,
        memory: Memory = UNBOUNDED,
    ) -> None:
        self.score, x = score, problem.evaluation_points().to(like)
        self.change = SolutionChange(problem.fields, coarse, x, memory)

    def evaluate(self, system: System, score: float) -> float | None:
        """The change, ``None`` before ``score``, that of the system, has halved."""
        if not 0.0 <= score <= SATURATION * self.score:
            return None
        return self.change.evaluate(system)


def relative_l2(difference: Tensor, exact: Tensor) -> float | None:
    """``|difference| / |exact|``, or ``None`` where the reference is nothing but round-off."""
    size = float(exact.norm())
    least = torch.finfo(torch.float64).eps * math.sqrt(exact.numel())
    return float(difference.norm()) / size if size > least else None


def predict(
    system: System,
    x: Tensor,
    fields: Sequence[str] | None = None,
    memory: Memory = UNBOUNDED,
) -> Tensor:
    """Fields ``(n, n_fields)`` at points ``(n, d)``, in chunks, without gradient.

    Those named by ``fields``, in that order; all of them, network after network, by default. The
    result has the type of the points, whatever that of the networks.
    """
    result = x.new_empty(len(x), len(fields or system.field_names))
    size, device = evaluation_rows(system, memory), next(system.parameters()).device

    @torch.no_grad()
    def fill(piece: tuple[Tensor, Tensor]) -> None:
        values, points = piece
        values.copy_(system.values(points, fields))

    pieces = zip(result.split(size), x.split(size), strict=True)
    for _ in ordered_map(fill, pieces, memory.sharing(device)):
        pass
    return result


def evaluation_rows(system: System, memory: Memory = UNBOUNDED) -> int:
    """Points at once: a power of two, a function of model, bound and kind of device alone."""
    like = next(system.parameters())
    jets, on_cpu = like.new_empty(0), like.device.type == "cpu"
    point = 8 * evaluation_numbers(system, lambda layer: layer.needs_features(jets))
    rows = (
        power_of_two(EVALUATION_BYTES / point, EVALUATION_CHUNK) if on_cpu else rows_on_gpu(point)
    )
    return memory.rows(rows, point, EVALUATION)


def evaluation_numbers(system: System, makes_features: Callable[[Layer], bool]) -> int:
    """About how many numbers an evaluation of values holds for every point.

    Args:
        system: the networks.
        makes_features: whether a layer makes its features, or the kernel works without.
    """
    layers = [layer for part in system.parts.values() for layer in part.network.chain]
    return max(
        layer.numbers_per_point
        if makes_features(layer)
        else KEPT_BY_KERNEL * (layer.in_width + layer.out_width)
        for layer in layers
    )

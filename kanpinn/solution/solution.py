"""The solution of a run: values and derivatives in the problem's own coordinates and units."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from numpy.typing import NDArray

from kanpinn.checkpoint import read_checkpoint, restore_state
from kanpinn.errors import ConfigError
from kanpinn.models import FieldNetwork, KnotLayer, PowerReluLayer
from kanpinn.residuals import System
from kanpinn.solution.evaluator import Evaluator, Outside, Values
from kanpinn.solution.history import history_columns
from kanpinn.splines import relu_to_spline
from kanpinn.training import LevelRecord, LevelState, RunState, Weights
from kanpinn.training.derivatives import Side
from kanpinn.training.memory import Memory

if TYPE_CHECKING:
    from scipy.interpolate import BSpline

CHECKPOINT_NAME = "checkpoint.h5"

Iterate = Literal["best", "last"]


@dataclass(frozen=True)
class _Run:
    """What all solutions of a run share."""

    state: RunState
    config: Mapping[str, Any] = field(default_factory=dict)
    problem: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


class Solution:
    """Fields over a domain, as a run has found them: call it on points.

    The default is the best iterate by the held-out score over all levels; :attr:`last` is what
    training ended with, :meth:`level` the best of one level. Points are ``(n, d)`` NumPy arrays or
    tensors, float32 or float64, columns in the order of :attr:`coordinates` (time last). Results
    are of the same kind, on a tensor's own device, without gradient (:attr:`model` is a
    ``torch.nn.Module`` for everything else), in the model's floating-point type, one column per
    field in the order of :attr:`fields`. Evaluation goes in chunks: beside its result it needs
    little memory.

    ``outside`` says what becomes of points outside the domain's bounding box: ``"error"`` (a
    DomainError), ``"nan"``, or ``"extend"``, where the end polynomials are continued.
    """

    def __init__(
        self,
        state: RunState,
        config: Mapping[str, Any] | None = None,
        problem: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        state = state.outcome
        run = _Run(state, config or {}, problem or {}, provenance or {})
        self._set_up(run, *state.solution)

    def _set_up(self, run: _Run, level: LevelState, iterate: Iterate) -> None:
        self._run, self._level, self._iterate = run, level, iterate
        self._system = level.system if iterate == "last" else level.best_system()
        names = self._system.field_names
        listed = tuple(run.problem.get("fields", names))
        self.fields: tuple[str, ...] = listed if sorted(listed) == sorted(names) else names
        memory = Memory(run.config.get("memory_mib"))
        self._evaluator = Evaluator(self._system, self.fields, memory)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Solution:
        """The solution in a run folder or a checkpoint file. No code of the problem runs.

        Args:
            path: the folder of a run, or the file.
            device: where it is to be evaluated.
            dtype: floating-point type to evaluate in, by default that of every level.

        Raises:
            CheckpointError: naming the file and what is wrong with it.
            DeviceError: if there is no such device.
        """
        place = Path(path)
        checkpoint = read_checkpoint(place / CHECKPOINT_NAME if place.is_dir() else place)
        state = restore_state(checkpoint, device, dtype)
        return cls(state, checkpoint.config, checkpoint.problem, checkpoint.provenance)

    def _sibling(self, level: LevelState, iterate: Iterate) -> Solution:
        other = type(self).__new__(type(self))
        other._set_up(self._run, level, iterate)
        return other

    # --- other iterates ------------------------------------------------------------------------
    @property
    def best(self) -> Solution:
        """The best iterate by the held-out score over all levels (of equal ones the finer)."""
        return self._sibling(*self._run.state.solution)

    @property
    def last(self) -> Solution:
        """The last iterate of the last level."""
        return self._sibling(self._run.state.current, "last")

    @property
    def levels(self) -> tuple[Solution, ...]:
        """The best iterate of every level, coarsest first."""
        return tuple(self._sibling(level, "best") for level in self._run.state.levels)

    def level(self, number: int, iterate: Iterate = "best", window: int | None = None) -> Solution:
        """The best, or the last, iterate of one level, by default of the last time window.

        Raises:
            ConfigError: if the run has no such level.
        """
        state = self._run.state
        window = state.current.record.window if window is None else window
        known = {e.record.level: e for e in state.levels if e.record.window == window}
        if number not in known or iterate not in get_args(Iterate):
            raise ConfigError(
                f"level: found {number!r}, {iterate!r}; allowed: {', '.join(map(str, known))}, "
                "'best' or 'last'"
            )
        return self._sibling(known[number], iterate)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Solution:
        """The same solution on another device, or in another floating-point type."""
        state = self._run.state
        moved = [_moved(entry, device, dtype) for entry in state.levels]
        fresh = replace(state, levels=moved, optimiser={}, weights=Weights())
        run = replace(self._run, state=fresh)
        position = next(k for k, entry in enumerate(state.levels) if entry is self._level)
        other = type(self).__new__(type(self))
        other._set_up(run, moved[position], self._iterate)
        return other

    # --- evaluation ------------------------------------------------------------------------------
    def __call__(self, x: Values, outside: Outside = "error") -> Values:
        """Field values ``(n, n_fields)`` at points ``(n, d)``.

        Raises:
            DomainError: for another shape or type, NaN, or points outside.
        """
        return self._evaluator.values(x, outside)

    def derivatives(
        self,
        x: Values,
        *names: str | Sequence[str],
        outside: Outside = "error",
        side: Side = 1,
    ) -> dict[str, Values]:
        """Derivatives by name, each ``(n, n_fields)``: ``derivatives(x, "x", "xx", "xy")``.

        A name is a string of coordinate letters, or a sequence of coordinate names such as
        ``("x1", "x2")``, which comes back under ``"x1 x2"``; ``""`` is the value. Splines of
        order ``r`` have derivatives up to order ``r - 1``, the last of them with jumps at knots.

        Args:
            x: points ``(n, d)``.
            names: the derivatives, up to order 4.
            outside: see the class.
            side: from which side points on a kink of an input map are approached.

        Raises:
            DomainError: for another shape or type of the points, NaN, or points outside.
            ProblemError: for an unknown coordinate, or an order that the model does not have.
        """
        return self._evaluator.derivatives(x, names, outside, side)

    def laplacian(self, x: Values, outside: Outside = "error", side: Side = 1) -> Values:
        """``sum_a d^2 u/dx_a^2`` over the space coordinates, ``(n, n_fields)``.

        Raises:
            DomainError: for another shape or type of the points, NaN, or points outside.
            ProblemError: if the model has no second derivatives, or the problem no space.
        """
        return self._evaluator.laplacian(x, outside, side)

    # --- what it is made of ------------------------------------------------------------------
    @property
    def coordinates(self) -> tuple[str, ...]:
        """Names of the coordinates, in the order of the columns of ``x``."""
        return tuple(self._system.coordinates.names)

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Range of every coordinate."""
        box = self._evaluator.box
        pairs = zip(box.lower, box.upper, strict=True)
        return dict(zip(box.names, pairs, strict=True))

    @property
    def model(self) -> System:
        """Networks and scalars of this iterate, a ``torch.nn.Module``."""
        return self._system

    @property
    def networks(self) -> dict[str, FieldNetwork]:
        """The networks by name; each maps points ``(n, d)`` to its fields, with gradients.

        With time windows they are those of the last window; ``model.past`` has the ones before.
        """
        return self._system.parts

    @property
    def scalars(self) -> dict[str, float]:
        """Trained scalars (inverse problems)."""
        return {name: float(value.detach()) for name, value in self._system.scalars.items()}

    @property
    def record(self) -> LevelRecord:
        """The record of this iterate's level."""
        return self._level.record

    @property
    def iterate(self) -> Iterate:
        """Which iterate of its level this is."""
        return self._iterate

    @property
    def summary(self) -> list[dict[str, Any]]:
        """The records of all levels."""
        return [level.record.as_dict() for level in self._run.state.levels]

    @property
    def config(self) -> Mapping[str, Any]:
        """The run's resolved config."""
        return self._run.config

    @property
    def problem(self) -> Mapping[str, Any]:
        """What was solved: name, parameters, fields, coordinates, bounds."""
        return self._run.problem

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Versions, machine, time."""
        return self._run.provenance

    @property
    def history(self) -> dict[str, NDArray[Any]]:
        """The logged lines as columns; a number that was not logged is NaN."""
        return history_columns(self._run.state.history)

    def knots(self, layer: int, part: str | None = None) -> list[NDArray[Any]]:
        """Breakpoints of a layer, one array ``(n + 1,)`` per input channel.

        Raises:
            ConfigError: if there is no such layer, or it has no knots.
        """
        return [t.cpu().numpy().copy() for t in self._layer(layer, part).knots.breakpoints]

    def univariate(self, layer: int, output: int, input: int, part: str | None = None) -> BSpline:
        """The spline from one input to one output of a layer, as ``scipy.interpolate.BSpline``.

        Its argument is what the layer's knots divide: input channels scaled to [-1, 1] in the first
        layer, squashed activations in the others (``model`` shows the squash). Outside
        the knots it continues the end polynomial, as the network does. A base branch is not part
        of it: :meth:`base_weight`.

        Raises:
            ConfigError: if there is no such function, or the layer has no knots.
            ConditioningError: for a power-ReLU layer whose change of basis leaves no digits.
        """
        found = self._edge(layer, output, input, part)
        knots, start = found.knots, found.knots.offsets[input]
        spline = found.coefficients.detach()
        if isinstance(found, PowerReluLayer):
            spline = relu_to_spline(knots, spline)
        count = knots.n_functions[input]
        c = spline[output, start : start + count].double().cpu().numpy()
        t = knots.extended(input).double().cpu().numpy()
        from scipy.interpolate import BSpline

        return BSpline(t, c, found.order - 1, extrapolate=True)

    def base_weight(self, layer: int, output: int, input: int, part: str | None = None) -> float:
        """Weight of the base branch beside :meth:`univariate`; 0 without one.

        Raises:
            ConfigError: if there is no such function, or the layer has no knots.
        """
        found = self._edge(layer, output, input, part)
        if not found.settings.base:
            return 0.0
        return float(found.base_weights[output, input].detach())

    def _edge(self, layer: int, output: int, input: int, part: str | None) -> KnotLayer:
        found = self._layer(layer, part)
        if not (0 <= output < found.out_width and 0 <= input < found.in_width):
            raise ConfigError(
                f"layer {layer}: no function from input {input} to output {output}; it has "
                f"{found.in_width} inputs and {found.out_width} outputs"
            )
        return found

    def _layer(self, layer: int, part: str | None) -> KnotLayer:
        parts = self._system.parts
        name = next(iter(parts)) if part is None else part
        if name not in parts:
            raise ConfigError(f"part: found {part!r}, allowed: {', '.join(parts)}")
        layers = parts[name].network.layers
        if not 0 <= layer < len(layers):
            raise ConfigError(f"layer: found {layer}, allowed: 0 to {len(layers) - 1}")
        found = layers[layer]
        if not isinstance(found, KnotLayer):
            raise ConfigError(f"layer {layer} of {name!r} has no knots: the model is no KAN")
        return found

    def __repr__(self) -> str:
        name = self._run.problem.get("name", "solution")
        variables = ", ".join(self.coordinates)
        lines = [
            f"{name}: {', '.join(self.fields)}({variables}), {self._iterate} iterate of level "
            f"{self.record.level}",
            f"{'level':>5}  {'intervals':<12}  {'parameters':>10}  {'steps':>6}  "
            f"{'held-out':>9}  {'rel. L2':>9}",
        ]
        for level in self._run.state.levels:
            record = level.record
            intervals = "/".join(str(n) for n in record.n_intervals) or "-"
            lines.append(
                f"{record.level:>5}  {intervals:<12}  {record.n_params:>10}  {record.steps:>6}  "
                f"{_short(record.heldout_residual):>9}  {_short(record.rel_l2):>9}"
            )
        return "\n".join(lines)


def _moved(level: LevelState, device: torch.device | str, dtype: torch.dtype | None) -> LevelState:
    system = copy.deepcopy(level.system).to(device=device, dtype=dtype)
    best = {name: value.to(device=device, dtype=dtype) for name, value in level.best.items()}
    return replace(level, system=system, best=best)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"

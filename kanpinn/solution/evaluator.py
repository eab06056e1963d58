"""Evaluation of trained networks on a user's points: checked, in chunks, values and derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kanpinn.errors import ConfigError, DomainError, ProblemError
from kanpinn.geometry import Box
from kanpinn.jets import Jet, JetSpec
from kanpinn.models import KnotNetwork
from kanpinn.residuals import System
from kanpinn.training.block_data import UNBOUNDED
from kanpinn.training.derivatives import Side, jet_slices, map_slices, system_jets
from kanpinn.training.memory import Memory

Outside = Literal["error", "extend", "nan"]
Values = TypeVar("Values", Tensor, NDArray[Any])
MultiIndex = tuple[int, ...]

Pick = Mapping[str, Callable[[Jet], Tensor]]


class Evaluator:
    """Values and derivatives of a system's fields at points ``(n, d)``.

    Args:
        system: networks with the coordinates and bounds they know.
        fields: the order of the columns of the results.
        memory: what an evaluation may take.
    """

    def __init__(self, system: System, fields: Sequence[str], memory: Memory = UNBOUNDED) -> None:
        self.system, self.memory = system, memory
        names = system.field_names
        self._order = [names.index(name) for name in fields]

    @cached_property
    def box(self) -> Box:
        """The bounding box of the domain."""
        names, time = self.system.coordinates.names, self.system.coordinates.time
        lower, upper = zip(*self.system.bounds, strict=True)
        return Box(lower, upper, names, None if time is None else names[time])

    def values(self, x: Values, outside: Outside) -> Values:
        """Field values ``(n, n_fields)``."""
        value = (0,) * len(self.box.names)
        pick = {"": _component(value)}
        return self._evaluate(x, JetSpec.value_only(len(value)), pick, outside, 1)[""]

    def derivatives(
        self, x: Values, names: Sequence[str | Sequence[str]], outside: Outside, side: Side
    ) -> dict[str, Values]:
        """Derivatives by name, each ``(n, n_fields)``."""
        if not names:
            raise ProblemError("derivatives: none was named; e.g. derivatives(x, 'x', 'xx')")
        wanted = dict(self._multi_index(name) for name in names)
        for name, index in wanted.items():
            self._check_order(repr(name), sum(index))
        spec = JetSpec.closure(len(self.box.names), wanted.values())
        pick = {name: _component(index) for name, index in wanted.items()}
        return self._evaluate(x, spec, pick, outside, side)

    def laplacian(self, x: Values, outside: Outside, side: Side) -> Values:
        """Sum of the second derivatives in space, ``(n, n_fields)``."""
        spatial = self.system.coordinates.spatial
        if not spatial:
            raise ProblemError("laplacian: the problem has no space coordinate")
        self._check_order("laplacian", 2)
        spec = JetSpec.closure(len(self.box.names), (), spatial)
        return self._evaluate(x, spec, {"": lambda jet: jet.laplacian}, outside, side)[""]

    def _evaluate(
        self, x: Values, spec: JetSpec, pick: Pick, outside: Outside, side: Side
    ) -> dict[str, Values]:
        """What ``pick`` takes from the jets, in chunks."""
        self._check(x, outside)
        like = next(self.system.parameters())
        device = x.device if isinstance(x, Tensor) else torch.device("cpu")
        shape = (len(x), len(self._order))
        results = {name: torch.empty(shape, dtype=like.dtype, device=device) for name in pick}

        def fill(rows: slice) -> None:
            piece = _tensor(x[rows])
            jets = system_jets(self.system, piece.to(like), spec, side)
            beyond = ~self.box.contains(piece) if outside == "nan" else None
            for name, take in pick.items():
                values = torch.cat([take(jet) for jet in jets], -1)[:, self._order].to(device)
                if beyond is not None:
                    values[beyond] = torch.nan
                results[name][rows] = values

        for _ in map_slices(fill, self.system, len(x), spec, self.memory):
            pass
        if isinstance(x, Tensor):
            return results
        return {name: values.numpy() for name, values in results.items()}

    def _check(self, x: Any, outside: Outside) -> None:
        """Type and shape, finite numbers, and unless told otherwise the domain."""
        if outside not in get_args(Outside):
            allowed = ", ".join(get_args(Outside))
            raise ConfigError(f"outside: found {outside!r}, allowed: {allowed}")
        if outside == "error":
            self.box.check(x)
            return
        shape: tuple[int, ...] = getattr(x, "shape", ())
        fitting = len(shape) == 2 and shape[1] == len(self.box.names)
        self.box.check(x[:0] if fitting else x)  # no points: type and shape alone
        for rows in jet_slices(self.system, len(x), JetSpec.value_only(len(self.box.names))):
            wrong = ~torch.isfinite(_tensor(x[rows])).all(dim=1)
            if wrong.any():
                row = rows.start + int(wrong.nonzero()[0])
                raise DomainError(f"points: row {row} is not finite, allowed: finite numbers")

    def _multi_index(self, name: str | Sequence[str]) -> tuple[str, MultiIndex]:
        """The key and the multi-index of a derivative."""
        if isinstance(name, str):
            key, letters = name, (name,) if name in self.box.names else tuple(name)
        else:
            key, letters = " ".join(name), tuple(name)
        try:
            return key, self.system.coordinates.index(letters, f"derivative {key!r}")
        except AttributeError as error:
            raise ProblemError(str(error)) from error

    def _check_order(self, what: str, order: int) -> None:
        """Refuse derivatives of an order in which the model is zero between jumps."""
        for part in self.system.parts.values():
            smoothness = part.network.smoothness
            if smoothness is None or order <= smoothness + 1:
                continue
            who = "this activation has"
            if isinstance(part.network, KnotNetwork):
                who = f"splines of order {smoothness + 2} have"
            raise ProblemError(
                f"derivative {what} has order {order}: {who} derivatives up to order "
                f"{smoothness + 1}, continuous ones up to {smoothness}"
            )


def _component(index: MultiIndex) -> Callable[[Jet], Tensor]:
    return lambda jet: jet.component(index)


def _tensor(piece: Tensor | NDArray[Any]) -> Tensor:
    """Some points as a tensor; a copy, since numpy's memory may be read-only or reversed."""
    if isinstance(piece, Tensor):
        return piece.detach()
    return torch.tensor(np.ascontiguousarray(piece))

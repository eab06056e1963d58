"""Evaluations that are recorded once and then replayed, where launching operators is what costs.

A small network's operators are done sooner on a GPU than the host can launch them: hundreds an
evaluation, a few microseconds each. A recording of an evaluation is launched as a whole. It works
on fixed memory, so that what changes from step to step is copied there first, and it knows nothing
of the host's decisions: an evaluation must take the same ones each time, and read no number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from kanpinn.training.block_data import BlockData
from kanpinn.training.objective import SystemObjective
from kanpinn.training.squares import Squares

EAGER_CALLS = 2  # before an evaluation is recorded: one that is asked for once is not worth it
RECORDED = 4  # functions of an objective, each in memory of its own
WARM_UPS = 3  # of what is recorded, as PyTorch's notes on CUDA graphs have it


class Recording(Protocol):
    """A function of no arguments, recorded.

    Attributes:
        result: of the function; every replay writes it anew, in place.
    """

    result: Any

    def replay(self) -> None:
        """Redo every operator, on the memory that it was recorded on."""


class CudaGraph:
    """A recording on a GPU.

    Args:
        function: what is recorded: tensor operations alone, none of which the host waits for.
        device: the GPU.
    """

    def __init__(self, function: Callable[[], Any], device: torch.device) -> None:
        with torch.cuda.device(device):
            here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    function()
            here.wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.result = function()

    def replay(self) -> None:
        """See :class:`Recording`."""
        self.graph.replay()


Recorder = Callable[[Callable[[], Any], torch.device], Recording]
RECORDERS: dict[str, Recorder] = {"cuda": CudaGraph}  # by type of device

Inputs = dict[str, dict[str, Tensor]]
"""What may change from one evaluation to the next, by its kind and name."""


@dataclass
class _Recorded:
    """A recording with what belongs to it.

    Attributes:
        recording: of a function of the twin.
        inputs: the memory it reads.
        twin: the objective on that memory.
        operations: of the function.
    """

    recording: Recording
    inputs: Inputs
    twin: SystemObjective
    operations: int


@dataclass
class _Function:
    """One of an objective's functions: what it was last asked for with, how often, its recording.

    ``data`` is held, so that no other object takes its place in the key.
    """

    key: tuple[object, ...] = ()
    data: tuple[BlockData, ...] = ()
    calls: int = 0
    recorded: _Recorded | None = None


@dataclass
class Recordings:
    """The recordings of a level's objective.

    Attributes:
        recorder: makes them.
        tell: hears of it if one cannot be made; all evaluations are launched by operators then.
    """

    recorder: Recorder
    tell: Callable[[str], None]
    failed: bool = False
    functions: dict[str, _Function] = field(default_factory=dict)

    def recorded(self, objective: SystemObjective, name: str, *more: Any) -> _Recorded | None:
        """The recording of a function, which is made now if it is time; ``None`` without."""
        function = self.functions.setdefault(name, _Function())
        key = (*_fixed(objective), *more)
        if key != function.key:
            function = self.functions[name] = _Function(key, objective.data)
        function.calls += 1
        if function.recorded is None and function.calls > EAGER_CALLS and not self.failed:
            function.recorded = self._record(objective, name, *more)
        return function.recorded

    def _record(self, objective: SystemObjective, name: str, *more: Any) -> _Recorded | None:
        inputs = {
            kind: {key: tensor.detach().clone() for key, tensor in tensors.items()}
            for kind, tensors in _inputs(objective).items()
        }
        twin = _twin(objective, inputs)
        theta = objective.pack.read()
        inputs["theta"] = {"": theta}

        def once() -> Any:
            twin.meter.take()
            return getattr(twin, name)(theta, *more)

        try:
            recording = self.recorder(once, theta.device)
        except RuntimeError as error:
            self.failed = True
            reason = str(error).strip().partition("\n")[0]
            self.tell(f"evaluations could not be recorded, and are launched by operators: {reason}")
            return None
        return _Recorded(recording, inputs, twin, twin.meter.operations)


class ReplayedObjective(SystemObjective):
    """An objective whose functions are replayed once they have been recorded.

    Results are those of :class:`SystemObjective`, bit for bit. All but :meth:`squares` are copies;
    what that one gives is overwritten by its next call.

    Args:
        recordings: of this level.
        more: what the objective itself is made of.
    """

    def __init__(self, recordings: Recordings, *more: Any, **named: Any) -> None:
        super().__init__(*more, **named)
        self.recordings = recordings

    def loss(self, theta: Tensor) -> Tensor:
        """See the base class."""
        found = self._replayed("loss", theta)
        return super().loss(theta) if found is None else found.clone()

    def loss_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        found = self._replayed("loss_and_gradient", theta)
        if found is None:
            return super().loss_and_gradient(theta)
        loss, gradient = found
        return loss.clone(), gradient.clone()

    def residuals(self, theta: Tensor) -> Tensor:
        """See the base class."""
        found = self._replayed("residuals", theta)
        return super().residuals(theta) if found is None else found.clone()

    def squares(self, theta: Tensor, memory: float) -> Squares:
        """See the base class."""
        found = self._replayed("squares", theta, memory)
        if found is None:
            return super().squares(theta, memory)
        theta = theta.detach().clone()
        otherwise: Callable[[Tensor], Tensor] = lambda u: self.transposed_product(theta, u)  # noqa: E731
        squares: Squares = replace(found, otherwise=otherwise, meter=self.meter)
        return squares

    def _replayed(self, name: str, theta: Tensor, *more: Any) -> Any:
        """What a recording gives at ``theta``; ``None`` where there is none."""
        recorded = self.recordings.recorded(self, name, *more)
        if recorded is None:
            return None
        given = _inputs(self) | {"theta": {"": theta}}
        for kind, tensors in recorded.inputs.items():
            for key, tensor in tensors.items():
                tensor.copy_(given[kind][key])
        recorded.recording.replay()
        self.meter.add(recorded.operations)
        self.rows = recorded.twin.rows
        return recorded.recording.result


def _inputs(objective: SystemObjective) -> Inputs:
    """What may change from call to call, but for the parameters."""
    return {
        "attention": objective.attention,
        "factors": objective.factors,
        "chosen": objective.chosen,
    }


def _fixed(objective: SystemObjective) -> Sequence[object]:
    """What a recording rests on: where this is another, there has to be another recording."""
    shapes = [
        (kind, name, tuple(tensor.shape), tensor.dtype)
        for kind, tensors in _inputs(objective).items()
        for name, tensor in tensors.items()
    ]
    weight = objective.penalty.weight if objective.penalty else None
    return (objective.pack.layout, weight, *shapes, *(id(data) for data in objective.data))


def _twin(
    objective: SystemObjective, inputs: Mapping[str, Mapping[str, Tensor]]
) -> SystemObjective:
    """The same objective on other memory."""
    return SystemObjective(
        objective.system,
        objective.pack,
        objective.data,
        workers=objective.workers,
        penalty=objective.penalty,
        **inputs,
    )

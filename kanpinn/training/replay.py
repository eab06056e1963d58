"""Evaluations that are recorded once and then replayed, where launching operators is what costs.

A small network's operators are done sooner on a GPU than the host can launch them: hundreds an
evaluation, a few microseconds each. A recording of an evaluation is launched as a whole. It works
on fixed memory, so that what changes from step to step is copied there first, and it knows nothing
of the host's decisions: an evaluation must take the same ones each time, and read no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

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
            here, aside = torch.cuda.current_stream(), _beside(device)
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    function()
                with _waits_refused():  # a capture that is refused half-way is hard to undo
                    function()
            here.wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(here), torch.cuda.graph(self.graph):
                self.result = function()

    def replay(self) -> None:
        """See :class:`Recording`."""
        self.graph.replay()


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """A stream to warm up on, one for good: what libraries keep is kept by stream."""
    return torch.cuda.Stream(device)


@contextmanager
def _waits_refused() -> Iterator[None]:
    """Raise where the host would wait for a GPU."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


RECORDERS: dict[str, Callable[[Callable[[], Any], torch.device], Recording]] = {
    "cuda": CudaGraph  # by type of device
}


@dataclass
class Recorder:
    """Makes a run's recordings, until one cannot be made.

    Attributes:
        device: where the networks are.
        tell: hears of what cannot be recorded; all evaluations are launched by operators then.
    """

    device: torch.device
    tell: Callable[[str], None]
    failed: bool = False

    def record(self, function: Callable[[], Any]) -> Recording | None:
        """The recording of a function; ``None`` if there cannot be one."""
        if self.failed:
            return None
        try:
            return RECORDERS[self.device.type](function, self.device)
        except RuntimeError as error:
            self.failed, cause = True, _first_cause(error)
            reason = str(cause).strip().partition("\n")[0]
            self.tell(f"evaluations could not be recorded, and are launched by operators: {reason}")
            return None


def recorder_on(device: torch.device, tell: Callable[[str], None]) -> Recorder | None:
    """The recorder of a run on a device; ``None`` where a device has none."""
    return Recorder(device, tell) if device.type in RECORDERS else None


def _first_cause(error: BaseException) -> BaseException:
    """What led to an error: the end of a capture complains of it in general words."""
    while error.__context__ is not None:
        error = error.__context__
    return error


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
    """One of an objective's functions: what it is asked for with, how often, its recording."""

    key: tuple[object, ...] = ()
    calls: int = 0
    recorded: _Recorded | None = None


@dataclass
class Recordings:
    """The recordings of a phase's objective, whose networks, points and penalty stay the same.

    Attributes:
        recorder: makes them.
        functions: by name.
    """

    recorder: Recorder
    functions: dict[str, _Function] = field(default_factory=dict)

    def recorded(self, objective: SystemObjective, name: str, *more: Any) -> _Recorded | None:
        """The recording of a function, which is made now if it is time; ``None`` without."""
        function = self.functions.setdefault(name, _Function())
        key = (*_shapes(objective), *more)
        if key != function.key:
            function = self.functions[name] = _Function(key)
        function.calls += 1
        if function.recorded is None and function.calls > EAGER_CALLS:
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

        recording = self.recorder.record(once)
        if recording is None:
            return None
        return _Recorded(recording, inputs, twin, twin.meter.operations)


class ReplayedObjective(SystemObjective):
    """An objective whose functions are replayed once they have been recorded.

    Results are those of :class:`SystemObjective`, bit for bit. All but :meth:`squares` are copies;
    what that one gives is overwritten by its next call.

    Args:
        recordings: of this phase.
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


def _shapes(objective: SystemObjective) -> tuple[object, ...]:
    """Of all that may change from call to call: with others there has to be another recording."""
    return tuple(
        (kind, name, tuple(tensor.shape), tensor.dtype)
        for kind, tensors in _inputs(objective).items()
        for name, tensor in tensors.items()
    )


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

"""All options of a run but the problem's own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from kanpinn.models import ModelOptions
from kanpinn.sampling import SamplingOptions, stream
from kanpinn.training.memory import Memory
from kanpinn.training.options import TrainingOptions

DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class RunOptions:
    """All options of a run but the problem's own."""

    model: ModelOptions
    training: TrainingOptions
    sampling: SamplingOptions
    seed: int = 0
    dtype: torch.dtype = torch.float64
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    workers: int = 1  # threads of a CPU that share chunks of points
    memory_mib: float | None = None  # bound on all that a run takes beside the program itself
    graphs: bool = True  # on a GPU, whether evaluations are recorded and replayed
    start: int = 0  # which of this seed's random initial networks

    def memory(self, jacobian: bool, blocks: int) -> Memory:
        """Shares of the bound on memory.

        Args:
            jacobian: whether rows of the Jacobian of the points in question could be asked for.
            blocks: number of residual blocks; features are kept of their held-out points, too.
        """
        jacobian = jacobian and self.training.linearises
        return Memory(self.memory_mib, jacobian, 2 * blocks, self.workers)

    def bounded(self, memory_mib: float | None) -> RunOptions:
        """With a bound on memory that linear systems keep to their share of."""
        training = self.training.bounded(Memory(memory_mib))
        return replace(self, training=training, memory_mib=memory_mib)

    def dtype_on(self, level: int) -> torch.dtype:
        """Type of all numbers on a level."""
        name = self.training.precision_on(level)
        return self.dtype if name is None else DTYPES[name]

    def dtype_name(self, level: int) -> str:
        """The same by its name."""
        dtype = self.dtype_on(level)
        return next(name for name, known in DTYPES.items() if known is dtype)

    @property
    def network_seed(self) -> int:
        """Seed of the initial networks."""
        return network_seed(self.seed, self.start)


def network_seed(seed: int, start: int) -> int:
    """Seed of one of a run's random initial networks; the first has the run's own."""
    return int(stream(seed, "start", start).generate_state(1)[0]) if start else seed

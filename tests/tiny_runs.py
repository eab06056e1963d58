"""Runs of a few steps over every kind of model, for the tests of what becomes of their results."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kanpinn.checkpoint import write_checkpoint
from kanpinn.conditions import Dirichlet, Initial
from kanpinn.geometry import Box
from kanpinn.models import Abs, Asinh, KANOptions, MLPOptions, MultichannelOptions, Periodic
from kanpinn.optimisers.schedules import CosineSchedule
from kanpinn.problem import Problem, Scaling
from kanpinn.provenance import describe_problem, gather
from kanpinn.residuals import Site
from kanpinn.sampling import SamplingOptions
from kanpinn.training import (
    AdamPhase,
    AttentionOptions,
    LBFGSPhase,
    MultilevelRun,
    NullObserver,
    RunOptions,
    RunState,
    TrainingOptions,
)


class Plain(Problem):
    """``laplace(u) = 1`` on a rectangle, zero on its boundary; the boundary is built in."""

    domain = Box((-1.0, 0.0), (1.0, 3.0))
    conditions = (Dirichlet(value=0.0, exact=True),)

    def residual(self, p: Site) -> Tensor:
        return p.u.laplacian - 1.0

    def reference(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x[:, 0] * x[:, 1]  # wrong, but something to measure against

    def evaluation_points(self) -> Tensor:
        return self.domain.evaluation_grid((7, 7))[0]


class Coupled(Problem):
    """Three fields from two networks in space and time, every input map, a trained scalar."""

    domain = Box((-2.0, 1.0), (2.0, 4.0), names=("x", "t"), time="t")
    fields = ("a", "b", "c")
    networks: Mapping[str, tuple[str, ...]] = {"second": ("c",), "main": ("a", "b")}
    inputs = (
        "x",
        "t",
        Abs(of="x", at=0.5),
        Asinh(of="x", scale=0.3),
        Periodic(of="x", harmonics=2),
    )
    conditions = (
        Dirichlet(field="a", value="t", exact=True),
        Dirichlet(field="b", value=0.0, on="x.lower"),
        Initial(field="b", value="cos(x)"),
    )
    scales: Mapping[str, Scaling] = {"c": Scaling(shift=5.0, scale=3.0)}
    scalars: Mapping[str, float] = {"nu": 0.7, "flow/rate": 1.5}

    def residual(self, p: Site) -> Tensor:
        diffusion = p.scalars.nu * p.a.xx
        rate = getattr(p.scalars, "flow/rate")
        return torch.stack([p.a.t - diffusion + p.b, p.b.t + rate * p.b.x, p.c.x - p.a], -1)


def breakpoints(channels: int, seed: int) -> tuple[tuple[float, ...], ...]:
    """Uneven knots on [-1, 1], of another number in every channel."""
    rng = np.random.default_rng(seed)
    rows = [np.sort(rng.uniform(-0.9, 0.9, 1 + k)) for k in range(channels)]
    return tuple((-1.0, *(float(t) for t in row), 1.0) for row in rows)


RAGGED = tuple(breakpoints(channels, seed) for seed, channels in enumerate((2, 3)))
RAGGED_COUPLED = tuple(breakpoints(channels, seed) for seed, channels in enumerate((8, 3)))

MODELS: dict[str, Any] = {
    "kan": KANOptions(width=3, order=5, intervals=2),
    "kan orders": KANOptions(width=3, order=(4, 6), intervals=(2, 3)),
    "kan free": KANOptions(width=3, order=4, intervals=3, knots="free"),
    "kan ragged": KANOptions(width=3, order=4, breakpoints=RAGGED),
    "kan ragged free base": KANOptions(
        width=3, order=4, breakpoints=RAGGED, knots="free", base="silu", knot_floor=0.01
    ),
    "kan base": KANOptions(width=3, order=4, intervals=2, base="silu", squash="none"),
    "kan linear": KANOptions(hidden_layers=0, order=4, intervals=2),
    "multichannel": MultichannelOptions(width=3, order=4, intervals=2),
    "multichannel ragged": MultichannelOptions(width=3, order=4, breakpoints=RAGGED),
    "multichannel free": MultichannelOptions(width=3, order=4, intervals=2, knots="free"),
    "mlp": MLPOptions(width=4, hidden_layers=2),
    "mlp sine": MLPOptions(width=4, activation="sin", frequency=2.5),
}
ADAM = AdamPhase(
    steps=5,
    batch=40,
    learning_rate=1e-2,
    group_learning_rates={"main": 0.5},
    schedule=CosineSchedule(),
)
PHASES = (ADAM, LBFGSPhase(steps=5))


def options(model: Any, levels: int = 2, **changes: Any) -> RunOptions:
    """Options of a run of a few steps."""
    training = TrainingOptions(
        levels=levels,
        phases=PHASES,
        attention=AttentionOptions(),
        log_every=2,
        checkpoint_every=3,
    )
    sampling = SamplingOptions(interior=60, boundary=20, initial=20, held_out=50)
    return replace(RunOptions(model, training, sampling, seed=3), **changes)


class Recorder(NullObserver):
    """Keeps what ``keep`` makes of the state at every checkpoint."""

    def __init__(self, keep: Callable[[RunState], Any] = copy.deepcopy) -> None:
        self.keep = keep
        self.kept: list[Any] = []

    def on_checkpoint(self, state: RunState) -> None:
        self.kept.append(self.keep(state))


def states(problem: Problem, chosen: RunOptions) -> list[RunState]:
    """The state at every checkpoint of a run; the last one is that of the end."""
    recorder = Recorder()
    MultilevelRun(problem, chosen, recorder).run()
    return recorder.kept


def same_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Assert that two collections of tensors are equal bit for bit, types and order included."""
    assert list(first) == list(second)
    for name, value in first.items():
        other = second[name]
        assert (value.dtype, value.shape, value.device) == (other.dtype, other.shape, other.device)
        a, b = (t.detach().cpu().numpy().tobytes() for t in (value, other))
        assert a == b, name


CONFIG = {"problem": {"name": "plain"}, "values": [1, 2.5, None, True, "ä\n"], "large": 1e300}


def save(path: Path, state: RunState, problem: Any = None) -> Path:
    """Write a checkpoint of a state; gives back its path."""
    described = describe_problem(problem or Plain(), "plain")
    write_checkpoint(path, state, CONFIG, described, gather("cpu", torch.float64, 3))
    return path


def contents(state: RunState) -> dict[str, Any]:
    """All of a state but clocks, tensors by name."""
    found: dict[str, Any] = {
        "scalars": (state.phase, state.step, state.total_steps, state.restarts, state.finished),
        "history": [{k: v for k, v in row.items() if k != "wall_s"} for row in state.history],
        **{f"optimiser {name}": value for name, value in state.optimiser.items()},
        **{
            f"{kind} {name}": value
            for kind, weights in vars(state.weights).items()
            for name, value in weights.items()
        },
    }
    for entry in state.levels:
        number = entry.record.level
        record = entry.record.as_dict() | {"wall_s": None}
        found[f"level {number}"] = (record, entry.best_score, entry.best_step)
        found |= {f"{number} best {name}": value for name, value in entry.best.items()}
        found |= {f"{number} {name}": p for name, p in entry.system.named_parameters()}
    return found


def assert_same(one: RunState, two: RunState) -> None:
    a, b = contents(one), contents(two)
    assert a.keys() == b.keys()
    for key, value in a.items():
        same = torch.equal(value, b[key]) if isinstance(value, Tensor) else value == b[key]
        assert same, key

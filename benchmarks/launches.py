"""How many operators the evaluations of a config's coarsest level launch, and what that costs.

Usage: python benchmarks/launches.py [--device cuda] [--repeats 20] CONFIG [KEY=VALUE ...]

Without a device but the CPU, operators are counted alone: those that a GPU would be sent, which
does without the compiled kernel. On a GPU every evaluation is timed as operators and as a recording
(:mod:`kanpinn.training.replay`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kanpinn.api import prepare
from kanpinn.config import resolve_device
from kanpinn.kernels import kernels_unused
from kanpinn.problem import build_system
from kanpinn.sampling import sample, stream
from kanpinn.training.block_data import BlockData
from kanpinn.training.objective import SystemObjective
from kanpinn.training.parameters import ParameterPack
from kanpinn.training.replay import RECORDERS

Evaluation = Callable[[Tensor], Any]


class Counter(TorchDispatchMode):
    """Counts operators that compute: views of what is there launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def objective_of(config: str, overrides: list[str], device: torch.device) -> SystemObjective:
    """The objective of the coarsest level, on Sobol' points."""
    prepared = prepare(config, overrides)
    problem, options = prepared.problem, prepared.run.options
    generator = torch.Generator().manual_seed(options.seed)
    system = build_system(problem, options.model, generator, options.dtype_on(0), device)
    data = []
    for block in problem.blocks():
        number, seed = options.sampling.interior, stream(options.seed, block.name)
        if block.points is not None:
            number = block.points
        points = sample(block.region, number, "sobol", seed, options.dtype_on(0), device)
        rows = len(points[0]) if device.type == "cpu" else None  # all at once, as on a GPU
        data.append(BlockData(block, points, system, rows))
    return SystemObjective(system, ParameterPack(system), data)


def evaluations(objective: SystemObjective) -> dict[str, Evaluation]:
    """What steps consist of, by name."""
    return {
        "loss": objective.loss,
        "residuals": objective.residuals,
        "loss and gradient": objective.loss_and_gradient,
        "rows of the Jacobian": lambda theta: list(objective.jacobian_rows(theta)),
    }


def milliseconds(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median of some calls, each until the device is done."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = resolve_device(options.device)
    with kernels_unused():
        objective = objective_of(options.config, options.overrides, device)
        theta, recorder = objective.pack.read(), RECORDERS.get(device.type)
        print("| evaluation | operators | milliseconds | recorded |\n|---|---|---|---|")
        for name, function in evaluations(objective).items():
            function(theta)
            with Counter() as counter:
                function(theta)
            shown = ["", ""]
            if recorder is not None:
                once = lambda call=function: call(theta)  # noqa: E731
                graph = recorder(once, device)
                both = (once, graph.replay)
                shown = [f"{milliseconds(f, device, options.repeats):.3g}" for f in both]
            print(f"| {name} | {counter.count} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()

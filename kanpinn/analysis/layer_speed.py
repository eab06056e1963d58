"""Speed of the ways to evaluate layers of splines, side by side.

Figure 3 of arXiv 2603.04827: truncated powers followed by the change of basis ``b = A psi`` against
the Cox-de Boor recursion, in a network of three hidden layers of width 64; here also against this
package's own layers, by PyTorch's operators and by the compiled kernel.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le, MinLen
from torch import Tensor

from kanpinn.analysis.finding import Finding
from kanpinn.kernels import compiles, kernels_unused
from kanpinn.models import KAN
from kanpinn.models.knot_layer import KnotLayer, KnotLayerSettings
from kanpinn.models.networks import KnotNetwork, build_knot_network
from kanpinn.splines import Knots, change_of_basis

POWERS, RECURSION = "powers, then A", "Cox-de Boor"
OPERATORS, KERNEL = "kanpinn, PyTorch", "kanpinn, compiled"
TASKS = ("values", "gradient")
INPUTS = 2

Evaluation = Callable[[Tensor], Tensor]
"""Output ``(n, 1)`` of a network at inputs ``(n, 2)``."""
Basis = Callable[[Tensor], Tensor]
"""All functions ``(n, channels, m)`` of a layer at its squashed inputs ``(n, channels)``."""


@dataclass(frozen=True, kw_only=True)
class LayerSpeed:
    """Time of a network's values and gradient: powers with ``A``, Cox-de Boor, own layers."""

    name: Annotated[Literal["layer_speed"], "speed of ways to evaluate splines"] = "layer_speed"
    orders: Annotated[
        Annotated[tuple[Annotated[int, Ge(2), Le(8)], ...], MinLen(1)], "spline orders"
    ] = (2, 4, 6)
    intervals: Annotated[
        Annotated[tuple[Annotated[int, Ge(1), Le(1000)], ...], MinLen(1)], "knot intervals"
    ] = (8, 16, 32)
    width: Annotated[int, Ge(1), Le(1024), "channels of every hidden layer"] = 64
    hidden_layers: Annotated[int, Ge(1), Le(10), "hidden layers"] = 3
    points: Annotated[int, Ge(1), Le(100_000), "points of a batch"] = 512
    repeats: Annotated[int, Ge(1), Le(1000), "measurements, of which the median is taken"] = 5
    seed: Annotated[int, Ge(0), "of the points and coefficients"] = 0


def layer_speed(options: LayerSpeed) -> Finding:
    """Medians over ``repeats`` measurements in turn, so that a busy machine slows all ways alike.

    All ways compute the same network, float64 on the CPU: tanh in front of the hidden layers,
    points uniform in [-1, 1]^2. ``gradient`` is the value and the gradient of its mean square with
    respect to all coefficients. ``relative`` is the time over that of the Cox-de Boor recursion,
    ``difference`` the largest to its values, relative to their largest: truncated powers cancel.
    """
    rows: list[dict[str, Any]] = []
    generator = torch.Generator().manual_seed(options.seed)
    x = 2 * torch.rand(options.points, INPUTS, generator=generator, dtype=torch.float64) - 1
    for order, intervals in itertools.product(options.orders, options.intervals):
        network = made(order, intervals, options, generator)
        ways = available(network, x)
        with torch.no_grad():
            values = {way: evaluate(x) for way, evaluate in ways.items()}
        seconds = measured(network, x, ways, options.repeats)
        for way, task in itertools.product(ways, TASKS):
            base = values[RECURSION]
            rows.append(
                {
                    "order": order,
                    "intervals": intervals,
                    "evaluation": way,
                    "task": task,
                    "seconds": seconds[way, task],
                    "relative": seconds[way, task] / seconds[RECURSION, task],
                    "difference": float((values[way] - base).abs().max() / base.abs().max()),
                }
            )
    missing = "" if compiles(x[None]) else " There is no compiled kernel on this machine."
    text = (
        f"{options.hidden_layers} hidden layers of width {options.width}, {options.points} points, "
        f"float64, {torch.get_num_threads()} thread(s) of a CPU, medians of {options.repeats} "
        f"measurements in turn.{missing}"
    )
    return Finding("layer_speed", "Speed of ways to evaluate splines", text, rows)


def available(network: KnotNetwork, x: Tensor) -> dict[str, Evaluation]:
    """The ways to evaluate a network at points such as ``x``, the compiled one if there is one."""
    ways: dict[str, Evaluation] = {
        POWERS: _by_basis(network, powers_then_change),
        RECURSION: _by_basis(network, cox_de_boor),
        OPERATORS: lambda x: _by_operators(network, x),
    }
    if compiles(x[None]):
        ways[KERNEL] = network
    return ways


def made(
    order: int, intervals: int, options: LayerSpeed, generator: torch.Generator
) -> KnotNetwork:
    """A network on equally spaced knots with random coefficients."""
    channels = (INPUTS, *(options.width,) * options.hidden_layers)
    knots = [Knots.uniform_grid(order, intervals, count) for count in channels]
    return build_knot_network(KAN, knots, 1, KnotLayerSettings(squash="tanh"), generator)


def measured(
    network: KnotNetwork, x: Tensor, ways: Mapping[str, Evaluation], repeats: int
) -> dict[tuple[str, str], float]:
    """Median seconds by way and task; every way is tried once before."""
    found: dict[tuple[str, str], list[float]] = {
        pair: [] for pair in itertools.product(ways, TASKS)
    }
    for number, task in itertools.product(range(repeats + 1), TASKS):
        for way, evaluate in ways.items():
            started = time.perf_counter()
            _do(task, network, x, evaluate)
            if number:
                found[way, task].append(time.perf_counter() - started)
    return {pair: statistics.median(seconds) for pair, seconds in found.items()}


def _do(task: str, network: KnotNetwork, x: Tensor, evaluate: Evaluation) -> None:
    if task == "values":
        with torch.no_grad():
            evaluate(x)
        return
    torch.autograd.grad(evaluate(x).square().mean(), list(network.parameters()))


def _by_operators(network: KnotNetwork, x: Tensor) -> Tensor:
    with kernels_unused():
        y: Tensor = network(x)
    return y


def _by_basis(network: KnotNetwork, basis: Callable[[KnotLayer], Basis]) -> Evaluation:
    layers = [(layer, basis(layer)) for layer in network.knot_layers]

    def evaluate(x: Tensor) -> Tensor:
        for layer, functions in layers:
            z = torch.tanh(x) if layer.settings.squash else x
            x = functions(z).flatten(1) @ layer.coefficients.mT
        return x

    return evaluate


def powers_then_change(layer: KnotLayer) -> Basis:
    """``A relu(x - t_i)^(r-1)``; one matrix ``A`` for all channels, made once."""
    knots, order = layer.knots, layer.order
    t = knots.extended(0)[: knots.n_functions[0]]
    transposed = change_of_basis(knots, 0).mT.contiguous()

    def functions(x: Tensor) -> Tensor:
        z = torch.relu(x[..., None] - t)
        powers = z
        for _ in range(2, order):
            powers = powers * z
        return powers @ transposed

    return functions


def cox_de_boor(layer: KnotLayer) -> Basis:
    """All B-splines by their recursion; inputs in [-1, 1)."""
    t = layer.knots.extended(0)

    def functions(x: Tensor) -> Tensor:
        x = x[..., None]
        basis = ((x >= t[:-1]) & (x < t[1:])).to(x.dtype)
        for k in range(1, layer.order):
            rising = (x - t[: -k - 1]) / (t[k:-1] - t[: -k - 1])
            falling = (t[k + 1 :] - x) / (t[k + 1 :] - t[1:-k])
            basis = rising * basis[..., :-1] + falling * basis[..., 1:]
        return basis

    return functions

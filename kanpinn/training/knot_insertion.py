"""Adaptive knots: intervals are halved where that promises the lowest loss.

The indicator of an interval is that of hierarchical bases (Bank and Smith, doi:10.1137/0730048):
with all intervals halved, the fine B-spline in the middle of the interval, taken by itself. Its
columns ``a`` of the Jacobian, one for every output of the layer, tell by how much it could lower
the sum of squares ``|r|^2``,

    sum_outputs (a . r)^2 / |a|^2,

which Cauchy and Schwarz bound by the squares of the residuals that it reaches. A trained level has
residuals orthogonal to its own functions, so that what is left speaks of the new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from kanpinn.models import KnotLayer, MultichannelMLP
from kanpinn.residuals import System
from kanpinn.splines import Knots
from kanpinn.training.block_data import BlockData
from kanpinn.training.hierarchy import Refinement, knot_networks, largest, on_knots, with_parts
from kanpinn.training.objective import SystemObjective
from kanpinn.training.parameters import ParameterPack

Gains = dict[str, list[list[list[float]]]]
"""Of every interval of every channel of every layer of every network."""
DataOn = Callable[[System], Sequence[BlockData]]


def adaptive_knots(
    system: System, data_on: DataOn, refinement: Refinement
) -> dict[str, tuple[Knots, ...]]:
    """The finer knots of every network, layer by layer, in float64.

    Of a layer's intervals, those of all channels together, the share with the largest indicators
    is halved; fewer, where others promise nothing or free knots would fall below their floor.

    Args:
        system: the trained networks.
        data_on: the blocks with the points to judge by, prepared for networks.
        refinement: which layers, and the share.

    Raises:
        ConditioningError: if a multichannel MLP has no digits left as a KAN, which is judged.
    """
    gains = interval_gains(system, data_on)
    fine = {}
    for name, network in knot_networks(system).items():
        rows = zip(network.knot_layers, refinement.layers, gains[name], strict=True)
        fine[name] = tuple(
            _halved(layer, found, refinement.count(layer.knots)) if flag else layer.knots.widened()
            for layer, flag, found in rows
        )
    return fine


def _halved(layer: KnotLayer, gains: Sequence[Sequence[float]], count: int) -> Knots:
    possible = [
        [gain if wide else 0.0 for gain, wide in zip(row, _divisible(layer, t), strict=True)]
        for row, t in zip(gains, layer.knots.breakpoints, strict=True)
    ]
    chosen = largest(possible, count)
    return layer.knots.widened().bisected(
        [[j for j in row if possible[p][j] > 0] for p, row in enumerate(chosen)]
    )


def _divisible(layer: KnotLayer, t: Tensor) -> list[bool]:
    """Whether halves of the intervals between breakpoints can be free above their floor."""
    floor = float(t[-1] - t[0]) / (len(t) - 1) * layer.settings.floor
    return [not layer.settings.free or length > 2 * floor for length in t.diff().tolist()]


def interval_gains(system: System, data_on: DataOn) -> Gains:
    """The indicators of all intervals.

    Args:
        system: the networks.
        data_on: the blocks with their points, prepared for networks.

    Raises:
        ConditioningError: if a multichannel MLP has no digits left as a KAN.
    """
    splines = as_splines(system)
    networks = knot_networks(splines)
    halved = {name: [k.refined() for k in net.knots] for name, net in networks.items()}
    fine = on_knots(splines, halved, "prolongation")
    pack = ParameterPack(fine, ("*.coefficients",))
    objective = SystemObjective(fine, pack, data_on(fine))
    gains, where = objective.single_gains(pack.read()), pack.layout.slices()
    found: Gains = {}
    for name, network in knot_networks(fine).items():
        found[name] = []
        for number, layer in enumerate(network.knot_layers):
            own = gains[where[f"{name}.layer{number}.coefficients"]]
            total = own.view(layer.out_width, -1).sum(0).split(list(layer.knots.n_functions))
            first = layer.order - layer.order // 2  # centred at the first midpoint, or beside it
            rows = zip(total, layer.n_intervals, strict=True)
            found[name].append([row[first::2][: n // 2].tolist() for row, n in rows])
    return found


def as_splines(system: System) -> System:
    """The same functions in B-splines, whose columns speak of a neighbourhood alone.

    Raises:
        ConditioningError: if a multichannel MLP has no digits left as a KAN.
    """
    parts = dict(system.parts)
    for name, network in knot_networks(system).items():
        if isinstance(network, MultichannelMLP):
            parts[name] = parts[name].with_network(network.to_kan())
    return with_parts(system, parts)

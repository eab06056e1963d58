"""From a network on knots to the plain arrays of its univariate functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from kanpinn.jets import JetSpec
from kanpinn.jets.functions import FUNCTIONS
from kanpinn.models import (
    Abs,
    Asinh,
    Coordinate,
    FieldNetwork,
    Formula,
    Inputs,
    KnotLayer,
    KnotNetwork,
    Periodic,
    Step,
)
from kanpinn.models.layer import apply_elementwise
from kanpinn.plotting.style import Floats, symbol
from kanpinn.plotting.univariate import ChannelFunctions, LayerFunctions

FUNCTION_POINTS = 301


def univariate_layers(part: FieldNetwork, n: int = 4096) -> list[LayerFunctions]:
    """The univariate functions of every layer of a network on knots; none for other networks.

    ``phi_qp(s) = sum_i C[q,p,i] b_i(s) [+ V[q,p] base(s)]`` over the knots' interval, ``s`` the
    squashed input.

    Args:
        part: fields from one network.
        n: points of the bounding box from which the visited part of every axis is found.
    """
    network = part.network
    if not isinstance(network, KnotNetwork):
        return []
    layers = network.knot_layers
    channels = _channels(part.inputs)
    labels = [[label for label, _, _ in channels]]
    for number, layer in enumerate(layers[1:], 1):
        hidden = [rf"z^{{({number})}}_{{{p + 1}}}" for p in range(layer.in_width)]
        squash = rf"\{layer.settings.squash}\," if layer.settings.squash else ""
        labels.append([f"${squash}{name}$" for name in hidden])
    result = []
    for number, (layer, visited) in enumerate(zip(layers, _visited(part, n), strict=True), 1):
        outputs = [rf"$z^{{({number})}}_{{{q + 1}}}$" for q in range(layer.out_width)]
        if number == len(layers):
            outputs = [symbol(name) for name in part.fields]
        ranges = [(a, b) for _, a, b in channels] if number == 1 else [(-1.0, 1.0)] * layer.in_width
        functions = _layer_functions(layer, labels[number - 1], ranges, visited)
        result.append(LayerFunctions(functions, tuple(outputs)))
    return result


def _layer_functions(
    layer: KnotLayer,
    labels: Sequence[str],
    ranges: Sequence[tuple[float, float]],
    visited: Floats,
) -> tuple[ChannelFunctions, ...]:
    knots = layer.knots
    lines, marks = [], []
    for t in knots.breakpoints:
        own = t.double().cpu().numpy()
        marks.append(own)
        # The knots are among the points, so that kinks of low orders stay sharp.
        lines.append(np.union1d(np.linspace(own[0], own[-1], FUNCTION_POINTS), own))
    values, at_knots = _evaluate(layer, lines), _evaluate(layer, marks)
    result = []
    for p, (low, high) in enumerate(ranges):
        shift, scale = (low + high) / 2, (high - low) / 2  # from [-1, 1]
        result.append(
            ChannelFunctions(
                label=labels[p],
                x=shift + scale * lines[p],
                values=values[p],
                knots=shift + scale * marks[p],
                at_knots=at_knots[p],
                visited=(shift + scale * visited[p, 0], shift + scale * visited[p, 1]),
            )
        )
    return tuple(result)


def _evaluate(layer: KnotLayer, lines: Sequence[Floats]) -> list[Floats]:
    """Functions ``(n_outputs, k_p)`` of every channel at points ``(k_p,)`` of its own."""
    longest = max(len(line) for line in lines)
    padded = [np.append(line, np.full(longest - len(line), line[-1])) for line in lines]
    with torch.no_grad():
        c = layer.coefficients
        s = torch.as_tensor(np.stack(padded, 1), dtype=c.dtype, device=c.device)  # (k, in)
        features = layer.basis.dense(s, 0)[0]  # (k, n_spline_features)
        base = layer.settings.base
        extra = FUNCTIONS[base](s, 0)[0] if base else None  # (k, in)
        result = []
        sizes = layer.knots.n_functions
        for p, (start, size) in enumerate(zip(layer.knots.offsets, sizes, strict=True)):
            y = features[:, start : start + size] @ c[:, start : start + size].mT
            if extra is not None:
                y = y + extra[:, p : p + 1] * layer.base_weights[:, p]
            result.append(y.mT[:, : len(lines[p])].double().cpu().numpy())
    return result


def _visited(part: FieldNetwork, n: int) -> list[Floats]:
    """Least and greatest squashed input ``(channels, 2)`` of every layer over the bounding box."""
    like = next(iter(part.parameters()))
    low, high = (like.new_tensor(ends) for ends in zip(*part.inputs.bounds, strict=True))
    per_axis = 2 * round((n ** (1 / len(low)) - 1) / 2) + 1  # odd: the middle is among them
    per_axis = max(3, per_axis)
    line = torch.linspace(0, 1, per_axis, dtype=like.dtype, device=like.device)
    if per_axis ** len(low) <= 4 * n:
        unit = torch.cartesian_prod(*[line] * len(low)).reshape(-1, len(low))
    else:  # many dimensions: scrambled points instead of a grid
        unit = torch.quasirandom.SobolEngine(len(low), scramble=True, seed=0).draw(n).to(like)
    with torch.no_grad():
        z = part.prepare(low + (high - low) * unit, JetSpec.value_only(len(low))).z
        ranges = []
        spec = JetSpec.value_only(len(low))
        for layer in part.network.layers:
            assert isinstance(layer, KnotLayer)
            squash = layer.settings.squash
            s = apply_elementwise(squash, z, spec) if squash else z
            ranges.append(torch.stack([s[0].amin(0), s[0].amax(0)], -1).double().cpu().numpy())
            z = layer(z, spec)
    return ranges


def _channels(inputs: Inputs) -> list[tuple[str, float, float]]:
    """Label of every input channel, and the range of what the label says."""
    bounds = dict(zip(inputs.names, inputs.bounds, strict=True))
    result: list[tuple[str, float, float]] = []
    for entry in inputs.maps:
        if isinstance(entry, Periodic):
            for k in range(1, entry.harmonics + 1):
                angle = f"{'' if k == 1 else k}\N{GREEK SMALL LETTER OMEGA} {symbol(entry.of)}"
                result += [(f"{wave}({angle})", -1.0, 1.0) for wave in ("cos", "sin")]
        elif isinstance(entry, Formula):
            result.append((_shortened(entry.formula), *entry.range))
        else:
            result.append(_one_channel(entry, *bounds[entry.of]))
    return result


def _one_channel(
    entry: Coordinate | Abs | Step | Asinh, low: float, high: float
) -> tuple[str, float, float]:
    name = symbol(entry.of)
    if isinstance(entry, Coordinate):
        return name, low, high
    sign = "+" if entry.at < 0 else "\N{MINUS SIGN}"
    shifted = name if not entry.at else f"{name} {sign} {abs(entry.at):g}"
    if isinstance(entry, Abs):
        return f"|{shifted}|", 0.0, max(abs(end - entry.at) for end in (low, high))
    if isinstance(entry, Step):
        return f"sign({shifted})", -1.0, 1.0
    ends = [math.asinh((end - entry.at) / entry.scale) for end in (low, high)]
    inner = f"({shifted})" if entry.at else shifted
    return f"asinh({inner}/{entry.scale:g})", ends[0], ends[1]


def _shortened(formula: str) -> str:
    text = formula.replace("$", r"\$")
    return text if len(text) <= 24 else text[:23] + "\N{HORIZONTAL ELLIPSIS}"

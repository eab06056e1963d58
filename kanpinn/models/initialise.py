"""Initial coefficients that keep the variance of activations through depth.

The variance argument is that of Glorot and Bengio (AISTATS 2010), applied to the features of a
spline layer as Rigas et al. do for KANs (arXiv 2509.03417). A univariate function starts as a
straight line plus a small random spline: the line carries most of the variance, so that the
initial network is smooth and its second derivatives are moderate at any number of knots.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kanpinn.models.knot_layer import KnotLayer
from kanpinn.models.knot_layers import PowerReluLayer
from kanpinn.splines import Knots, SplineBasis, spline_to_relu

UNIFORM_VARIANCE = 1.0 / 3.0  # of a uniform variable on [-1, 1]
# Variance v of a normal variable x for which tanh(x) has variance 1/3: solved once by quadrature,
# and checked by a test.
VARIANCE_BEFORE_TANH = 0.7114
NOISE_SHARE = 0.1
# ``1 / sqrt(E sigma(g)^2)`` for a normal variable ``g``: weights larger by this factor keep the
# mean square of what enters an activation at one (He et al., arXiv 1502.01852, for ReLU). Found by
# quadrature, and checked by a test.
ACTIVATION_GAIN = {"tanh": 1.59254, "silu": 1.67653, "gelu": 1.53353, "relu": math.sqrt(2.0)}


def initialise_knot_layer(
    layer: KnotLayer,
    generator: torch.Generator,
    output_variance: float = UNIFORM_VARIANCE,
    bounded: bool = True,
) -> None:
    """Draw the coefficients of a layer on knots.

    With ``P`` inputs of variance ``s = 1/3``, slopes ``a ~ N(0, (1 - e) v / (P s))`` and spline
    noise ``~ N(0, e v / (P g))``, ``g`` the mean of ``sum_i b_i(x)^2``, each output has mean square
    ``v``; ``e`` is the noise's share.

    Args:
        layer: whose coefficients.
        generator: a CPU generator.
        output_variance: ``v``.
        bounded: whether the inputs stay on the knots. If not, there is no noise on the end
            intervals: continued beyond them, it would grow without bound from layer to layer.
    """
    knots, width = layer.knots, layer.in_width
    noisy = torch.ones(knots.n_features, dtype=torch.bool) if bounded else _inner_functions(knots)
    mean_square = _mean_square_sum(knots, noisy)
    share = NOISE_SHARE if mean_square > 0 else 0.0
    noise_scale = math.sqrt(share * output_variance / (width * (mean_square or 1.0)))
    slope_scale = math.sqrt((1 - share) * output_variance / (width * UNIFORM_VARIANCE))
    slopes = slope_scale * _normal((layer.out_width, width), layer, generator)
    per_feature = torch.repeat_interleave(
        slopes, torch.tensor(knots.n_functions, device=slopes.device), -1
    )
    noise = noise_scale * _normal((layer.out_width, knots.n_features), layer, generator)
    spline = per_feature * _linear_coefficients(knots) + noise * noisy.to(noise)
    if isinstance(layer, PowerReluLayer):
        spline = spline_to_relu(knots, spline)
    with torch.no_grad():
        layer.coefficients.copy_(spline)
        if layer.settings.base:
            base_scale = math.sqrt(NOISE_SHARE * output_variance / width)
            layer.base_weights.copy_(
                base_scale * _normal((layer.out_width, width), layer, generator)
            )


def initialise_dense(
    weights: nn.Parameter, generator: torch.Generator, gain: float, uniform_bound: float | None
) -> None:
    """Glorot normal weights with a gain, or uniform weights within a bound (SIREN)."""
    fan_out, fan_in = weights.shape
    with torch.no_grad():
        if uniform_bound is not None:
            draw = torch.rand(weights.shape, generator=generator, dtype=torch.float64)
            weights.copy_((2 * draw - 1) * uniform_bound)
        else:
            draw = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
            weights.copy_(draw * gain * math.sqrt(2.0 / (fan_in + fan_out)))


def _normal(shape: tuple[int, ...], layer: KnotLayer, generator: torch.Generator) -> Tensor:
    """Normal numbers drawn on the CPU in float64, the same for every device and dtype."""
    draw = torch.randn(shape, generator=generator, dtype=torch.float64)
    return draw.to(layer.coefficients)


def _linear_coefficients(knots: Knots) -> Tensor:
    """Coefficients of the map of each channel's ``[a, b]`` onto ``[-1, 1]``, flat."""
    rows, start = [], 0
    greville = knots.greville()
    for t, count in zip(knots.breakpoints, knots.n_functions, strict=True):
        middle, half = (t[0] + t[-1]) / 2, (t[-1] - t[0]) / 2
        rows.append((greville[start : start + count] - middle) / half)
        start += count
    return torch.cat(rows)


def _inner_functions(knots: Knots) -> Tensor:
    """Mask ``(n_features,)`` of the functions that are zero on the first and last interval."""
    r = knots.order
    position = [torch.arange(count) for count in knots.n_functions]
    pairs = zip(position, knots.n_intervals, strict=True)
    return torch.cat([(k >= r) & (k < n - 1) for k, n in pairs])


def _mean_square_sum(knots: Knots, chosen: Tensor) -> float:
    """Mean over ``[a, b]`` of the chosen functions' ``sum_i b_i(x)^2``, averaged over channels."""
    t = knots.breakpoints
    u = torch.linspace(0, 1, 201, dtype=t[0].dtype, device=t[0].device)[:, None]
    lower, upper = (torch.stack([row[k] for row in t]) for k in (0, -1))
    values = SplineBasis(knots).dense(lower + (upper - lower) * u, 0)[0]  # (201, n_features)
    return float((values**2 * chosen.to(values)).sum(-1).mean()) / knots.channels

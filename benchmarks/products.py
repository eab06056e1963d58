"""Products with a Jacobian: features that are held, or made anew by the kernel each time.

Usage: python benchmarks/products.py [--order 4] [--outputs 1,2,4,8,22] [--repeats 15]

One thread, the features of the Laplacian's jets in two channels. The ratio of both times decides
from which sparsity and how many outputs on features are no longer held (``MOST_SPARSE`` in
``training/jacobian.py``).
"""

from __future__ import annotations

import argparse

import torch
from scaling import median_seconds

from kanpinn.jets import Jet, JetSpec
from kanpinn.kernels import LocalFeatures, kernels
from kanpinn.models import KnotLayerSettings, SplineLayer
from kanpinn.models.features import DenseFeatures, Features
from kanpinn.splines import Knots

POINTS = 512  # of a chunk


def features(order: int, intervals: int) -> LocalFeatures:
    """Those of one layer on two channels."""
    layer = SplineLayer(Knots.uniform_grid(order, intervals, 2), 1, KnotLayerSettings())
    layer = layer.to(torch.float64)
    spec = JetSpec.closure(2, [], laplacian=range(2))
    x = torch.rand(POINTS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, found, _ = layer.recorded(Jet.coordinates(2 * x - 1, spec).data, spec)
    local = found["coefficients"]
    assert isinstance(local, LocalFeatures)
    return local


def milliseconds(of: Features, outputs: int, repeats: int) -> float:
    """Of one product with the Jacobian and one with its transpose."""
    components = JetSpec.closure(2, [], laplacian=range(2)).n_components
    weights = torch.randn(outputs, of.n_features, dtype=torch.float64)
    adjoint = torch.randn(components, POINTS, outputs, dtype=torch.float64)
    return 1e3 * median_seconds(lambda: (of.contract(weights), of.transposed(adjoint)), repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--order", type=int, default=4)
    parser.add_argument("--outputs", default="1,2,4,8,22", help="of the layer")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if kernels().library is None:
        parser.error("there is no compiled kernel on this machine")
    outputs = [int(number) for number in options.outputs.split(",")]
    heads = [f"{number} output{'s' * (number > 1)}" for number in outputs]
    print(f"| intervals | features for one not zero | {' | '.join(heads)} |")
    print(f"|---|---|{len(outputs) * '---|'}")
    for intervals in (8, 16, 32, 64, 128, 256):
        local = features(options.order, intervals)
        both = (DenseFeatures(local.dense()), local)
        cells = [f"{intervals}", f"{local.sparsity:.3g}"]
        for number in outputs:
            held, anew = (milliseconds(of, number, options.repeats) for of in both)
            cells.append(f"{held:.3g} / {anew:.3g} ms: {anew / held:.2g}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

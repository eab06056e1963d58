"""What the compiled kernel takes per point and channel, beside the speed of a matrix product.

Usage: python benchmarks/roofline.py

One thread; a layer of 64 channels on 512 points, cubic, 20 intervals, the jet of a Laplacian; the
least of several times.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from kanpinn.jets import JetSpec
from kanpinn.models import KnotLayerSettings, SplineLayer
from kanpinn.splines import Knots

POINTS, CHANNELS, SIZE, REPEATS = 512, 64, 1500, 12


def least_seconds(step: Callable[[], object]) -> float:
    """Of some steps, the fastest."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    torch.set_num_threads(1)
    spec = JetSpec.closure(2, [], laplacian=(0, 1))
    print("| type | outputs | forward, ns | forward and backward, ns |\n|---|---|---|---|")
    for dtype in (torch.float64, torch.float32):
        a = torch.randn(SIZE, SIZE, dtype=dtype)
        speed = 2 * SIZE**3 / least_seconds(lambda a=a: a @ a) / 1e9
        for outputs in (1, 8, 64, 256):
            knots = Knots.uniform_grid(4, 20, CHANNELS)
            layer = SplineLayer(knots, outputs, KnotLayerSettings(squash="tanh")).to(dtype)
            z = torch.randn(4, POINTS, CHANNELS, dtype=dtype).requires_grad_()

            def forward(layer: SplineLayer = layer, z: torch.Tensor = z) -> torch.Tensor:
                return layer(z, spec)

            def both(layer: SplineLayer = layer, z: torch.Tensor = z) -> object:
                return torch.autograd.grad(layer(z, spec).sum(), (z, layer.coefficients))

            times = (1e9 * least_seconds(step) / (POINTS * CHANNELS) for step in (forward, both))
            print(f"| {dtype} | {outputs} | " + " | ".join(f"{t:.0f}" for t in times) + " |")
        print(f"| {dtype} | matrix product | {speed:.0f} GFlop/s | |", flush=True)


if __name__ == "__main__":
    main()

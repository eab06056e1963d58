"""What a refinement costs beside a step of training.

Usage: python benchmarks/refine.py [--repeats 5]

Exact prolongation of all layers to knots twice as fine, the least-squares refit that other packages
do instead, and the gradient of a Laplacian residual on 4096 points. One thread, float64.
"""

from __future__ import annotations

import argparse

import torch
from case import Case
from contestants import kanpinn_network
from scaling import median_seconds

from kanpinn.models import KAN, KnotLayerSettings
from kanpinn.models.networks import build_knot_network
from kanpinn.splines import Knots


def network(widths: tuple[int, ...], order: int, intervals: int) -> KAN:
    knots = [Knots.uniform_grid(order, intervals, width) for width in widths[:-1]]
    settings = KnotLayerSettings(squash="tanh")
    generator = torch.Generator().manual_seed(1)
    built = build_knot_network(KAN, knots, widths[-1], settings, generator)
    assert isinstance(built, KAN)
    return built


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(
        "| widths | order | intervals | parameters | prolongation, ms | change | refit, ms "
        "| gradient, ms |\n|---|---|---|---|---|---|---|---|"
    )
    for widths, order, intervals in (
        ((2, 5, 1), 4, 8),
        ((2, 5, 1), 8, 64),
        ((2, 64, 64, 1), 4, 20),
        ((2, 64, 64, 1), 4, 160),
        ((2, 256, 256, 1), 4, 20),
    ):
        coarse = network(widths, order, intervals)
        fine = [knots.refined() for knots in coarse.knots]
        x = torch.rand(1000, 2, dtype=torch.float64) * 2 - 1
        with torch.no_grad():
            before, after = coarse(x), coarse.refined(fine)(x)
        change = ((after - before).abs().max() / before.abs().max()).item()
        case = Case("laplacian", widths, intervals, order - 1)
        times = [
            median_seconds(step, repeats)
            for step in (
                lambda coarse=coarse, fine=fine: coarse.refined(fine),
                lambda coarse=coarse, fine=fine: coarse.refitted(fine),
                kanpinn_network.prepare(case),
            )
        ]
        prolongation, refit, gradient = (f"{1e3 * seconds:.3g}" for seconds in times)
        parameters = sum(p.numel() for p in coarse.parameters())
        print(
            f"| {list(widths)} | {order} | {intervals} to {2 * intervals} | {parameters:,} "
            f"| {prolongation} | {change:.0e} | {refit} | {gradient} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

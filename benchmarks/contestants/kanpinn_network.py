"""kanpinn's KAN: jets through spline layers, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable

import torch
from case import Case

from kanpinn.geometry import neighbour_order
from kanpinn.jets import Jet, JetSpec
from kanpinn.models import KAN, KnotLayerSettings, KnotNetwork
from kanpinn.models.networks import build_knot_network
from kanpinn.models.tape import Tape
from kanpinn.splines import Knots

CHUNK = 4096  # the kernel holds no temporaries


def build(case: Case) -> KnotNetwork:
    """The network of a case."""
    knots = [
        Knots.uniform_grid(case.degree + 1, case.intervals, width) for width in case.widths[:-1]
    ]
    generator = torch.Generator().manual_seed(1)
    settings = KnotLayerSettings(squash="tanh")
    network = build_knot_network(KAN, knots, case.widths[-1], settings, generator)
    return network.to(getattr(torch, case.dtype))


def prepare(case: Case, chunk: int = CHUNK) -> Callable[[], object]:
    torch.set_num_threads(1)
    chunk = case.chunk if case.task == "jacobian" else chunk  # its rows are the temporaries
    dtype, network = getattr(torch, case.dtype), build(case)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(case.points, case.widths[0], dtype=dtype, generator=generator) * 2 - 1
    x = x[neighbour_order(x)] if case.ordered else x
    parameters = tuple(network.parameters())
    if case.task in ("jets", "laplacian", "jacobian"):
        spec = JetSpec.closure(case.widths[0], [], laplacian=range(case.widths[0]))
    else:
        spec = JetSpec.value_only(case.widths[0])
    chunks = [Jet.coordinates(part, spec).data for part in x.split(chunk)]

    def forward() -> object:
        with torch.no_grad():
            return [network.jet(z, spec) for z in chunks]

    def gradient() -> object:
        total = [torch.zeros_like(p) for p in parameters]
        for z in chunks:
            loss = network.jet(z, spec)[-1].square().sum() / case.points
            for sum_, part in zip(total, torch.autograd.grad(loss, parameters), strict=True):
                sum_ += part
        return total

    def jacobian() -> object:
        for z in chunks:
            tape = Tape()
            laplacian = network.jet(z, spec, tape=tape)[-1]
            adjoints = torch.autograd.grad(laplacian.sum(), [r.output for r in tape.layers])
            pairs = zip(tape.layers, adjoints, strict=True)
            parts = [f.outer(g) for record, g in pairs for f in record.features.values()]
            rows = torch.cat(parts, 1)
        return rows

    steps = {"forward": forward, "jets": forward, "jacobian": jacobian}
    return steps.get(case.task, gradient)

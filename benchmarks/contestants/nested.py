"""Steps of a PyTorch module whose Laplacian comes from nested reverse mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
from case import Case
from torch import Tensor, nn


def laplacian(u: Tensor, x: Tensor) -> Tensor:
    """Sum of the pure second derivatives of ``u``, ``(n, 1)``, at ``x``, ``(n, d)``."""
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    rows = [
        torch.autograd.grad(first[:, a].sum(), x, create_graph=True)[0][:, a]
        for a in range(x.shape[1])
    ]
    return torch.stack(rows).sum(0)


def gradient_step(network: nn.Module, case: Case, chunk: int | None = None) -> Callable[[], object]:
    """The step of a case; with ``chunk``, so many points at a time."""
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(case.points, case.widths[0], dtype=dtype, generator=generator) * 2 - 1
    chunks = [part.clone() for part in x.split(chunk or case.points)]
    parameters = tuple(p for p in network.parameters() if p.requires_grad)

    def forward() -> object:
        with torch.no_grad():
            return [network(part) for part in chunks]

    def gradient() -> object:
        for p in parameters:
            p.grad = None
        for part in chunks:
            if case.task == "laplacian":
                inner = part.detach().requires_grad_()
                rows = laplacian(network(inner), inner)
            else:
                rows = network(part)
            (rows.square().sum() / case.points).backward()
        return parameters

    def jets() -> object:
        inner = [part.detach().requires_grad_() for part in chunks]
        return [laplacian(network(z), z).detach() for z in inner]

    named = dict(network.named_parameters())

    def laplacian_at(parameters: dict[str, Tensor], point: Tensor) -> Tensor:
        def u(point: Tensor) -> Tensor:
            values: Tensor = torch.func.functional_call(network, parameters, (point[None],))
            return values[0, 0]

        return torch.func.hessian(u)(point).diagonal().sum()

    rows_of = torch.func.vmap(torch.func.grad(laplacian_at), (None, 0))

    def jacobian() -> object:
        for part in chunks:
            rows = torch.cat([each.flatten(1) for each in rows_of(named, part).values()], 1)
        return rows

    steps = {"forward": forward, "jets": jets, "jacobian": jacobian}
    return steps.get(case.task, gradient)

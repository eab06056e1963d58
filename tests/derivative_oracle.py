"""Derivatives by nested reverse mode: the oracle that jets are held against."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kanpinn.jets import JetSpec


def all_indices(n_directions: int, order: int) -> list[tuple[int, ...]]:
    """Every multi-index up to an order."""
    ranges = [range(order + 1)] * n_directions
    return [index for index in itertools.product(*ranges) if sum(index) <= order]


def full_spec(n_directions: int, order: int) -> JetSpec:
    """The specification of every derivative up to an order."""
    return JetSpec.closure(n_directions, all_indices(n_directions, order))


def nested(function: Callable[[Tensor], Tensor], x: Tensor, index: Sequence[int]) -> Tensor:
    """One derivative of ``function``, ``(n, d)`` to ``(n, ...)``, where points do not interact."""
    x = x.detach().requires_grad_()
    y = function(x)
    columns = []
    for column in y.reshape(len(x), -1).unbind(-1):
        # What is constant has no graph, and would be refused: hence the zeros.
        derivative = column + 0.0 * x[:, 0]
        for axis in (a for a, k in enumerate(index) for _ in range(k)):
            (gradient,) = torch.autograd.grad(derivative.sum(), x, create_graph=True)
            derivative = gradient[:, axis] + 0.0 * x[:, axis]
        columns.append(derivative.detach())
    return torch.stack(columns, -1).reshape(y.shape)


def nested_components(
    function: Callable[[Tensor], Tensor], x: Tensor, spec: JetSpec, directions: Tensor | None = None
) -> Tensor:
    """All components of a jet, ``(K, n, ...)``: derivatives at ``s = 0`` along ``x + sum s_a v_a``.

    ``directions`` is ``(n_directions, d)`` or ``(n_directions, n, d)``; the axes by default.
    """
    if directions is None:
        directions = torch.eye(spec.n_directions, x.shape[-1], dtype=x.dtype)
    rays = directions if directions.ndim == 3 else directions[:, None].expand(-1, len(x), -1)

    def along(s: Tensor) -> Tensor:  # (n, n_directions) to (n, ...)
        return function(x + torch.einsum("na,and->nd", s, rays))

    s = x.new_zeros(len(x), spec.n_directions)
    rows = [nested(along, s, index) for index in spec.indices]
    if spec.laplacian is not None:
        squares = [tuple(2 * (a == b) for b in range(spec.n_directions)) for a in spec.laplacian]
        rows.append(sum((nested(along, s, index) for index in squares), torch.zeros_like(rows[0])))
    return torch.stack(rows)


def assert_components(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Every component within ``tolerance`` of the largest value of that component.

    A component that is zero (a derivative beyond a polynomial's degree) is measured by the
    largest of all components.
    """
    assert found.shape == expected.shape
    whole = float(expected.abs().max())
    for k, (row, exact) in enumerate(zip(found, expected, strict=True)):
        scale = max(float(exact.abs().max()), 1e-3 * whole)
        error = float((row - exact).abs().max())
        assert error <= tolerance * scale, f"component {k}: error {error:.2e}, size {scale:.2e}"

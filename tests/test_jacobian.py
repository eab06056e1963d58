"""The exact Jacobian against autograd row by row, for every model and every kind of row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from test_objective import Diffusion, Reaction, make, objective_of
from tiny_runs import MODELS, RAGGED_COUPLED, Coupled
from torch import Tensor

from kanpinn.models import KANOptions
from kanpinn.problem import Problem
from kanpinn.residuals import evaluate_rows
from kanpinn.sampling import QUADRATURE, sample, stream
from kanpinn.training.accumulate import triangular_factor
from kanpinn.training.objective import SystemObjective, flat_gradient
from kanpinn.training.parameters import ParameterPack
from kanpinn.training.squares import squares


def by_rows(objective: SystemObjective, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals and Jacobian: one reverse pass through the loss's own graph for every row."""
    objective.pack.write(theta)
    parameters = tuple(objective.pack.parameters.values())
    residuals, jacobian = [], []
    for data in objective.data:
        block, points = data.block, data.points
        prepared = tuple(
            {n: objective.system.parts[n].prepare(p.x, s, p.side) for n, s in data.specs.items()}
            for p in points
        )
        rows = evaluate_rows(block, objective.system, points, prepared)
        share = (block.weight / rows.numel()) ** 0.5
        factor = torch.full_like(rows, share)
        if block.name in objective.attention:
            factor = factor * objective.attention[block.name][:, None]
        if QUADRATURE in points[0].data:
            factor = factor * points[0].data[QUADRATURE].sqrt()[:, None]
        for value in (rows * factor).reshape(-1):
            residuals.append(value.detach())
            graph = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            pieces = [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(parameters, graph, strict=True)
            ]
            jacobian.append(torch.cat([piece.reshape(-1) for piece in pieces]))
    return torch.stack(residuals), torch.stack(jacobian)


def compare(options: Any, problem: Problem, **more: Any) -> None:
    system, blocks = make(options, problem, n=20)
    objective, theta = objective_of(system, blocks, chunk=8, **more)
    joined = torch.cat(list(objective.jacobian_rows(theta)))
    found, jacobian = joined[:, -1], joined[:, :-1]
    residuals, expected = by_rows(objective, theta)
    columns = expected.abs().amax(0)  # each is right in its own size, down to round-off of the rows
    scale = float(columns.max())
    assert bool(((jacobian - expected).abs() <= 1e-10 * columns + 1e-15 * scale).all())
    torch.testing.assert_close(found, residuals, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(objective.residuals(theta), residuals, rtol=1e-11, atol=1e-13)
    u = torch.randn(len(residuals), dtype=theta.dtype, generator=torch.Generator().manual_seed(1))
    product = objective.transposed_product(theta, u)
    torch.testing.assert_close(product, expected.mT @ u, rtol=1e-10, atol=1e-10 * scale)
    compare_products(objective, theta, expected)


def compare_products(objective: SystemObjective, theta: Tensor, expected: Tensor) -> None:
    """Products without the Jacobian against those with it."""
    generator, scale = torch.Generator().manual_seed(1), float(expected.abs().max())
    v = torch.randn(expected.shape[1], dtype=theta.dtype, generator=generator)
    u = torch.randn(expected.shape[0], dtype=theta.dtype, generator=generator)
    linear = objective.linearise(theta, 2**30)
    torch.testing.assert_close(linear.product(v), expected @ v, rtol=1e-10, atol=1e-10 * scale)
    torch.testing.assert_close(
        linear.transposed(u), expected.mT @ u, rtol=1e-10, atol=1e-10 * scale
    )
    start, limit = 0, 4
    for square in linear.block_squares(limit):
        size = square.shape[1]
        assert size <= limit
        for block in square:
            columns = expected[:, start : start + size]
            gram = columns.mT @ columns
            torch.testing.assert_close(block, gram, rtol=1e-9, atol=1e-10 * scale**2)
            start += size
    assert start == expected.shape[1]


@pytest.mark.parametrize("name", MODELS)
def test_every_model(name: str) -> None:
    compare(MODELS[name], Diffusion())


def test_several_sites_equations_networks_means_and_scalars() -> None:
    compare(KANOptions(width=2, order=5, intervals=2), Reaction())
    compare(KANOptions(width=2, order=5, intervals=3, knots="free"), Reaction())


def test_input_maps_and_ragged_free_knots() -> None:
    options = KANOptions(
        width=3, order=4, breakpoints=RAGGED_COUPLED, knots="free", knot_floor=0.01
    )
    compare(options, Coupled())


def test_some_groups_only() -> None:
    patterns = ["*layer1*", "scalars.*"]
    compare(KANOptions(width=2, order=5, intervals=2), Reaction(), patterns=patterns)


def test_what_the_fields_are_linear_in() -> None:
    problem = Reaction()
    for options, kinds in (
        (KANOptions(width=2, order=5, intervals=2, knots="free"), {"coefficients"}),
        (MODELS["kan base"], {"coefficients", "base_weights"}),
        (MODELS["mlp"], {"coefficients", "bias"}),
    ):
        system, _ = make(options, problem)
        layout = ParameterPack(system).layout
        last = max(len(part.network.chain) for part in system.parts.values()) - 1
        assert layout.linear == {
            f"{part}.layer{last}.{kind}" for part in ("first", "second") for kind in kinds
        }
        x = sample(problem.domain.region("interior"), 9, "sobol", stream(0))[0].x
        pack = ParameterPack(system)
        theta = pack.read()
        along = torch.zeros_like(theta)
        for name, where in layout.slices().items():
            if name in layout.linear:
                along[where] = torch.linspace(-1, 1, where.stop - where.start, dtype=theta.dtype)
        values = []
        for step in (0.0, 1.0, 2.0):
            pack.write(theta + step * along)
            values.append(system.values(x).detach())
        torch.testing.assert_close(values[2] - values[1], values[1] - values[0])
        assert float((values[1] - values[0]).abs().max()) > 0.1


def test_attention_and_quadrature_weights() -> None:
    system, blocks = make(KANOptions(width=2, order=5, intervals=2), Diffusion(), n=20)
    weights = torch.linspace(0.5, 2.0, 20, dtype=torch.float64)
    for points in blocks[0][1]:
        points.data[QUADRATURE] = torch.linspace(2.0, 0.1, 20, dtype=torch.float64)  # type: ignore[index]
    objective, theta = objective_of(system, blocks, attention={blocks[0][0].name: weights})
    joined = torch.cat(list(objective.jacobian_rows(theta)))
    residuals, expected = by_rows(objective, theta)
    torch.testing.assert_close(joined[:, -1], residuals, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(joined[:, :-1], expected, rtol=1e-10, atol=1e-10)
    compare_products(objective, theta, expected)
    assert float(residuals.square().sum()) == pytest.approx(float(objective.loss(theta)), rel=1e-13)


def test_triangle_is_that_of_the_whole_matrix() -> None:
    system, blocks = make(KANOptions(width=2, order=5, intervals=2), Reaction(), n=700)
    objective, theta = objective_of(system, blocks)
    matrix = torch.cat(list(objective.jacobian_rows(theta)))
    triangle = objective.triangle(theta)
    assert torch.equal(triangle, triangle.triu())
    gram = matrix.mT @ matrix
    assert float((triangle.mT @ triangle - gram).norm() / gram.norm()) <= 1e-14
    loss, gradient = objective.loss_and_gradient(theta)
    assert float(triangle[:, -1].square().sum()) == pytest.approx(float(loss), rel=1e-13)
    expected = 2 * triangle[:, :-1].mT @ triangle[:, -1]
    torch.testing.assert_close(expected, gradient, rtol=1e-9, atol=1e-11)


def refused(u: Tensor) -> Tensor:
    raise AssertionError("the blocks are kept")


def test_square_is_that_of_the_whole_matrix() -> None:
    """With more columns than a block of the product, and columns that are zero in some pieces."""
    generator = torch.Generator().manual_seed(4)
    matrix = torch.randn(5000, 300, dtype=torch.float64, generator=generator)
    matrix[900:1800, 40:290:3] = 0
    matrix[4000:, 17] = 0
    u = torch.randn(5000, dtype=torch.float64, generator=generator)

    def blocks(piece: Tensor) -> list[tuple[Tensor, Tensor]]:
        index = piece.any(0).nonzero()[:, 0]
        return [(index, piece[:, index])]

    found = squares(matrix.split(900), blocks, matrix[0], refused, 1e9)
    torch.testing.assert_close(found.upper, (matrix.mT @ matrix).triu(), rtol=1e-13, atol=1e-11)
    assert torch.equal(found.upper, found.upper.triu()) and found.evaluations == 0
    expected = (matrix.mT @ u)[:-1]
    torch.testing.assert_close(found.transposed(u), expected, rtol=1e-13, atol=1e-11)
    product, v = found.product(u[:299]), torch.cat([u[:299], torch.zeros(1)])
    torch.testing.assert_close(product, matrix @ v, rtol=1e-13, atol=1e-11)
    size = sum(rows.numel() * 8 for _, rows in found.kept)
    for memory, kept in ((size, True), (size - 1, False)):
        other = squares(matrix.split(900), blocks, matrix[0], lambda u: u[:1], memory)
        assert (other.evaluations == 0) == kept == (len(other.transposed(u)) == 299)


@pytest.mark.parametrize("name", MODELS)
def test_square_of_residuals(name: str) -> None:
    """Two networks, a scalar, conditions at several sites and in groups."""
    system, blocks = make(MODELS[name], Reaction(), n=700)
    objective, theta = objective_of(system, blocks, chunk=400)
    joined = torch.cat(list(objective.jacobian_rows(theta)))
    expected = (joined.mT @ joined).triu()
    u = torch.randn(len(joined), dtype=joined.dtype, generator=torch.Generator().manual_seed(5))
    products = joined[:, :-1].mT @ u
    for memory in (1e9, 0.0):
        found = objective.squares(theta, memory)
        assert float((found.upper - expected).norm() / expected.norm()) <= 1e-14
        assert found.evaluations == (memory == 0)
        assert float((found.transposed(u) - products).norm() / products.norm()) <= 1e-12
        assert (found.product(theta) is None) == (memory == 0)


def factor_of(pieces: Sequence[Tensor], workers: int = 1) -> Tensor:
    sizes = [len(piece) for piece in pieces]
    return triangular_factor(pieces, lambda piece: piece, sizes, pieces[0].shape[1], workers)


@pytest.mark.parametrize("rows", [1, 3, 9, 400])
def test_triangular_factor_of_any_number_of_rows(rows: int) -> None:
    matrix = torch.randn(rows, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    whole = factor_of(matrix.split(7))
    assert whole.shape == (9, 9)
    torch.testing.assert_close(whole.mT @ whole, matrix.mT @ matrix, rtol=1e-13, atol=1e-13)


def test_triangular_factor_keeps_small_singular_values() -> None:
    """Those of the factor are those of the matrix to its round-off, not to that of its square."""
    generator = torch.Generator().manual_seed(3)
    left = torch.linalg.qr(torch.randn(300, 8, dtype=torch.float64, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=generator)).Q
    values = torch.logspace(0, -12, 8, dtype=torch.float64)
    found = torch.linalg.svdvals(factor_of((left * values @ right).split(40)))
    torch.testing.assert_close(found, values, rtol=0, atol=1e-15)
    assert abs(float(found[-1]) / 1e-12 - 1) < 1e-3


def test_flat_gradient_of_what_does_not_depend() -> None:
    a, b = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert flat_gradient((3 * a).sum(), (a, b)).tolist() == [3, 3, 0, 0]

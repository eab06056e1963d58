"""The objective: against a loss written by hand, its gradient, chunks, threads, weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from derivative_oracle import nested
from numpy.typing import NDArray
from torch import Tensor

from kanpinn.conditions import Condition, Dirichlet, Mean, Periodic
from kanpinn.errors import ConfigError
from kanpinn.geometry import Box, FixedPoints, Points
from kanpinn.kernels import kernels_expected, kernels_unused
from kanpinn.models import KANOptions, MLPOptions, ModelOptions, MultichannelOptions
from kanpinn.problem import Problem, build_system
from kanpinn.residuals import ResidualBlock, Site, System
from kanpinn.sampling import QUADRATURE, SamplingOptions, held_out, sample, stream
from kanpinn.training.accumulate import tree_sum
from kanpinn.training.block_data import BlockData, chunk_rows, mean_square, residual_rows
from kanpinn.training.evaluation import (
    HeldOut,
    ReferenceErrors,
    evaluation_rows,
    held_out_data,
    predict,
)
from kanpinn.training.objective import SystemObjective
from kanpinn.training.parameters import ParameterPack, group_name

SQUARE = Box((-1.0, 0.0), (1.0, 2.0))


class Reaction(Problem):
    """``k laplace(u) = v``, ``v_x = u``, with a trained k, two networks and soft conditions."""

    domain = SQUARE
    fields = ("u", "v")
    networks = {"first": ("u",), "second": ("v",)}  # noqa: RUF012 - read only
    scalars = {"k": 0.7}  # noqa: RUF012 - read only
    residual_weight = 3.0
    conditions: Sequence[Condition] = (
        Dirichlet(value="x*y", weight=7.0, points=21),
        Periodic(field="v", on="y.periodic", weight=0.5, points=10),
        Mean(field="v", value=0.3, weight=2.0, points=16),
    )

    def residual(self, p: Site) -> Tensor:
        return torch.stack([p.scalars.k * p.u.laplacian - p.v, p.v.x - p.u], -1)


class Diffusion(Problem):
    """``k laplace(u) = x`` with a trained k, and values on one side."""

    domain = SQUARE
    scalars = {"k": 0.7}  # noqa: RUF012 - read only
    conditions = (Dirichlet(value="y", on="x.lower", points=3),)

    def residual(self, p: Site) -> Tensor:
        result: Tensor = p.scalars.k * p.u.laplacian - p.x
        return result


KAN_OPTIONS = KANOptions(width=2, order=5, intervals=2)


def make(
    options: ModelOptions = KAN_OPTIONS, problem: Problem | None = None, n: int = 50
) -> tuple[System, list[tuple[ResidualBlock, tuple[Points, ...]]]]:
    problem = problem or Reaction()
    system = build_system(problem, options, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in system.parameters():
            size = 0.2 * float(p.abs().mean()) + 0.02
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    blocks = [
        (block, sample(block.region, block.points or n, "sobol", stream(0, block.name)))
        for block in problem.blocks()
    ]
    return system, blocks


def objective_of(
    system: System,
    blocks: Sequence[tuple[ResidualBlock, tuple[Points, ...]]],
    chunk: int | None = None,
    patterns: Sequence[str] = ("*",),
    **more: Any,
) -> tuple[SystemObjective, Tensor]:
    pack = ParameterPack(system, patterns)
    data = [BlockData(block, points, system, chunk) for block, points in blocks]
    return SystemObjective(system, pack, data, **more), pack.read()


def by_hand(
    system: System, blocks: Sequence[tuple[ResidualBlock, tuple[Points, ...]]]
) -> dict[str, Tensor]:
    """Rows of every block of ``Reaction``, from nested autograd."""
    u, v = system.parts["first"], system.parts["second"]
    k = float(system.scalars["k"].detach())
    equation, dirichlet, periodic, mean = (points for _, points in blocks)
    x = equation[0].x
    lap = nested(u, x, (2, 0)) + nested(u, x, (0, 2))
    rows = {
        "equation": torch.cat([k * lap - v(x), nested(v, x, (1, 0)) - u(x)], -1),
        "dirichlet": u(dirichlet[0].x) - dirichlet[0].x.prod(-1, keepdim=True),
        "periodic": torch.cat(
            [nested(v, periodic[0].x, d) - nested(v, periodic[1].x, d) for d in ((0, 0), (0, 1))],
            -1,
        ),
        "mean": (v(mean[0].x) - 0.3).mean(0, keepdim=True),
    }
    return {name: value.detach() for name, value in rows.items()}


WEIGHTS = {"equation": 3.0, "dirichlet": 7.0, "periodic": 0.5, "mean": 2.0}


@pytest.mark.parametrize(
    "options",
    [
        KAN_OPTIONS,
        KANOptions(width=2, order=6, intervals=3, knots="free", base="silu"),
        MultichannelOptions(width=2, order=4, intervals=2),
        MLPOptions(width=4),
    ],
)
def test_loss_is_the_one_written_by_hand(options: ModelOptions) -> None:
    system, blocks = make(options)
    rows = by_hand(system, blocks)
    expected = sum(WEIGHTS[name] * float(r.square().mean()) for name, r in rows.items())
    objective, theta = objective_of(system, blocks)
    assert float(objective.loss(theta)) == pytest.approx(expected, rel=1e-10)
    loss, gradient = objective.loss_and_gradient(theta)
    assert torch.equal(loss, objective.loss(theta))
    assert gradient.shape == theta.shape and not gradient.requires_grad
    for data, (name, exact) in zip(objective.data, rows.items(), strict=True):
        torch.testing.assert_close(residual_rows(data, system), exact, rtol=1e-9, atol=1e-9)
        assert float(mean_square(data, system)) == pytest.approx(float(exact.square().mean()))
        assert data.block.name.startswith(name)


# --- gradient -------------------------------------------------------------------------------------
MODELS: dict[str, ModelOptions] = {
    "kan": KAN_OPTIONS,
    "kan of the least order": KANOptions(width=2, order=4, intervals=3),
    "kan free": KANOptions(width=2, order=5, intervals=2, knots="free"),
    "kan free base": KANOptions(width=2, order=6, intervals=2, knots="free", base="silu"),
    "kan deep": KANOptions(width=2, hidden_layers=2, order=5, intervals=2),
    "kan ragged": KANOptions(
        widths=(2, 2, 1),
        order=5,
        breakpoints=(((-1, -0.4, 0.1, 1), (-1, 0.3, 1)), ((-1, 1), (-1, 0.2, 1))),
        knots="free",
    ),
    "multichannel": MultichannelOptions(width=2, order=4, intervals=2, knots="free"),
    "mlp": MLPOptions(width=3, hidden_layers=2),
}


@pytest.mark.parametrize("name", MODELS)
def test_gradient_in_every_parameter_by_finite_differences(name: str) -> None:
    """A loss with a Laplacian, its gradient with respect to coefficients, knots and scalars."""
    system, blocks = make(MODELS[name], Diffusion(), n=6)
    objective, theta = objective_of(system, blocks)
    gradient = objective.loss_and_gradient(theta)[1]
    h = 1e-6 if name == "multichannel" else 1e-5
    found = torch.empty_like(theta)
    for k in range(len(theta)):
        unit = torch.zeros_like(theta)
        unit[k] = h
        found[k] = (objective.loss(theta + unit) - objective.loss(theta - unit)) / (2 * h)
    scale = float(gradient.abs().max())
    assert float((found - gradient).abs().max()) <= 1e-6 * scale
    for group, part in objective.pack.layout.split(gradient).items():
        assert part.abs().max() > 1e-6 * scale, group


@pytest.mark.parametrize("name", MODELS)
def test_gradient_is_that_of_the_whole_loss(name: str) -> None:
    """Chunk by chunk, and block by block, against one reverse pass over everything."""
    system, blocks = make(MODELS[name])
    objective, theta = objective_of(system, blocks, chunk=7)
    loss, gradient = objective.loss_and_gradient(theta)
    whole, _ = objective_of(system, blocks, chunk=10**6)
    (shares,) = zip(*whole._shares(lambda share: [share], gradient=True), strict=True)
    total = torch.stack(shares).sum()
    exact = torch.autograd.grad(total, list(system.parameters()))
    flat = torch.cat([g.reshape(-1) for g in exact])
    torch.testing.assert_close(loss, total.detach(), rtol=1e-13, atol=0)
    assert float((gradient - flat).abs().max()) <= 1e-12 * float(flat.abs().max())


@pytest.mark.parametrize(
    "patterns", [("scalars.*",), ("*.coefficients",), ("first.*", "scalars.k")]
)
def test_gradient_of_some_groups(patterns: tuple[str, ...]) -> None:
    system, blocks = make(MODELS["kan free"])
    whole, theta = objective_of(system, blocks)
    some, part = objective_of(system, blocks, patterns=patterns)
    assert 0 < len(part) < len(theta)
    expected = whole.pack.layout.split(whole.loss_and_gradient(theta)[1])
    found = some.pack.layout.split(some.loss_and_gradient(part)[1])
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-12, atol=1e-14)


# --- chunks and threads ---------------------------------------------------------------------------
def assert_same_sums(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(one, two, strict=True):
        assert float((a - b).abs().max()) <= 1e-14 * float(b.abs().max())


@pytest.mark.parametrize("chunk", [1, 3, 16, 17, 64, None])
def test_chunks_change_nothing_but_round_off(chunk: int | None) -> None:
    system, blocks = make(n=130)
    reference, theta = objective_of(system, blocks, chunk=10**6)
    objective, _ = objective_of(system, blocks, chunk)
    assert_same_sums(objective.loss_and_gradient(theta), reference.loss_and_gradient(theta))


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "options",
    [
        KANOptions(width=12, order=6, intervals=8),
        KANOptions(width=3, order=4, intervals=4, hidden_layers=2),
        KANOptions(width=6, order=5, intervals=4, knots="free"),
        MultichannelOptions(width=6, order=4),
        MLPOptions(width=48, hidden_layers=2),
    ],
)
@pytest.mark.parametrize("chunk", [256, None])
def test_threads_change_no_loss_and_no_digit_of_a_gradient(
    options: ModelOptions, chunk: int | None
) -> None:
    """Sums over points are made chunk by chunk.

    The loss is the same bit for bit. For a few shapes the library of matrix products cuts its own
    long sums by the number of threads, which moves a gradient's last bit.
    """
    system, blocks = make(options, Diffusion(), n=600)
    objective, theta = objective_of(system, blocks, chunk)
    found = []
    for n in (1, 2, 3):
        with threads(n):
            found.append(objective.loss_and_gradient(theta))
    scale = float(found[0][1].abs().max())
    for loss, gradient in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert float((gradient - found[0][1]).abs().max()) <= 1e-15 * scale


@pytest.mark.parametrize("n", [1, 2])
def test_repeated_evaluations_are_bitwise_equal(n: int) -> None:
    system, blocks = make(KANOptions(width=3, order=4, intervals=4, hidden_layers=2), n=1200)
    objective, theta = objective_of(system, blocks)
    with threads(n):
        first, second = (objective.loss_and_gradient(theta) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("jacobian", [False, True])
def test_chunk_rule_is_a_power_of_two_of_the_model_alone(kernel: bool, jacobian: bool) -> None:
    sizes = {}
    for width in (2, 64):
        system, blocks = make(KANOptions(widths=(2, width, width, 1), order=6, intervals=2))
        specs = BlockData(*blocks[0], system).specs

        def rows(sites: int) -> int:
            return chunk_rows(system, specs, sites, lambda _: not kernel, jacobian)  # noqa: B023

        sizes[width] = rows(1)
        assert rows(2) <= sizes[width]
    assert 64 <= sizes[64] < sizes[2] <= 4096
    assert all(size & (size - 1) == 0 for size in sizes.values())


def test_chunks_are_larger_where_the_kernel_makes_no_features() -> None:
    system, blocks = make(KANOptions(widths=(2, 64, 64, 1), order=4, intervals=20))
    specs = BlockData(*blocks[0], system).specs
    rows = [chunk_rows(system, specs, 1, lambda _: made, False) for made in (True, False)]  # noqa: B023
    assert rows[0] < rows[1] <= 2048


def test_chunks_hold_whole_groups() -> None:
    system, blocks = make()
    block, points = blocks[-1]
    assert block.group == 16
    for chunk in (1, 16, 20, 100):
        data = BlockData(block, points, system, chunk)
        assert data.size % 16 == 0
        assert data.n_rows == 1 and len(data.chunks) == 1
    rows = [c.rows for c in BlockData(*blocks[0], system, 20).chunks]
    assert rows == [slice(0, 20), slice(20, 40), slice(40, 50)]


class Word(str):
    """Writes down how it was added up."""

    def __add__(self, other: str) -> Word:
        return Word(f"({self}{other})")


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, "a"),
        (2, "(ab)"),
        (3, "((ab)c)"),
        (4, "((ab)(cd))"),
        (5, "(((ab)(cd))e)"),
        (7, "(((ab)(cd))((ef)g))"),
        (8, "(((ab)(cd))((ef)(gh)))"),
    ],
)
def test_tree_sum_order(n: int, expected: str) -> None:
    items: list[Any] = [[Word(letter)] for letter in "abcdefgh"[:n]]
    assert tree_sum(items) == [expected]


def test_tree_sum_of_nothing() -> None:
    with pytest.raises(ValueError, match="no chunks"):
        tree_sum([])


# --- weights, batches, general losses -------------------------------------------------------------
def test_attention_weights_multiply_rows() -> None:
    system, blocks = make()
    rows = by_hand(system, blocks)
    w = torch.linspace(0.2, 3.0, 50, dtype=torch.float64)
    name = blocks[0][0].name
    objective, theta = objective_of(system, blocks, chunk=20, attention={name: w})
    weighted = rows | {"equation": rows["equation"] * w[:, None]}
    expected = sum(WEIGHTS[key] * float(r.square().mean()) for key, r in weighted.items())
    assert float(objective.loss_and_gradient(theta)[0]) == pytest.approx(expected, rel=1e-11)
    assert list(objective.rows) == [name]  # sizes of the unweighted rows, for the next weights
    seen = torch.zeros(50, dtype=torch.float64)
    for where, size in objective.rows[name]:
        seen[where] = size
    torch.testing.assert_close(seen, rows["equation"].norm(dim=1), rtol=1e-10, atol=1e-10)


def test_attention_on_a_mean() -> None:
    system, blocks = make()
    name = blocks[-1][0].name
    objective, theta = objective_of(system, blocks, attention={name: torch.tensor([2.0])})
    plain, _ = objective_of(system, blocks)
    mean = 2.0 * float(by_hand(system, blocks)["mean"].square())
    assert float(objective.loss(theta) - plain.loss(theta)) == pytest.approx(3 * mean, rel=1e-8)


def test_quadrature_weights_multiply_squares() -> None:
    system, blocks = make()
    (block, (points,)) = blocks[0]
    q = torch.linspace(0.5, 1.5, 50, dtype=torch.float64)
    weighted = Points(points.x, data={QUADRATURE: q})
    objective, theta = objective_of(system, [(block, (weighted,))], chunk=20)
    rows = by_hand(system, blocks)["equation"]
    expected = 3.0 * float((rows.square() * q[:, None]).mean())
    assert float(objective.loss(theta)) == pytest.approx(expected, rel=1e-11)


def test_a_batch_is_the_mean_over_its_rows() -> None:
    system, blocks = make()
    index = torch.tensor([41, 3, 17, 8])
    name = blocks[0][0].name
    rows = by_hand(system, blocks)
    rows |= {"equation": rows["equation"][index]}
    w = torch.linspace(0.2, 3.0, 50, dtype=torch.float64)
    expected = {key: WEIGHTS[key] * float(r.square().mean()) for key, r in rows.items()}
    objective, theta = objective_of(system, blocks, chunk=20, chosen={name: index})
    assert float(objective.loss(theta)) == pytest.approx(sum(expected.values()), rel=1e-11)
    weighted, _ = objective_of(system, blocks, chosen={name: index}, attention={name: w})
    part = (rows["equation"] * w[index][:, None]).square().mean()
    expected["equation"] = 3.0 * float(part)
    assert float(weighted.loss(theta)) == pytest.approx(sum(expected.values()), rel=1e-11)
    ((where, size),) = weighted.rows[name]
    assert torch.equal(torch.as_tensor(where), index)
    torch.testing.assert_close(size, rows["equation"].norm(dim=1), rtol=1e-10, atol=1e-10)


def softplus(rows: Tensor) -> Tensor:
    return torch.nn.functional.softplus(rows).sum(-1)


def test_general_loss() -> None:
    """What only gradient methods take: ``(n, m)`` to ``(n,)``, here no square."""
    system, blocks = make()
    general = ResidualBlock(
        "classes", SQUARE.interior(), Reaction().residual, weight=2.0, loss=softplus, equation=True
    )
    assert not general.is_least_squares and blocks[0][0].is_least_squares
    objective, theta = objective_of(system, [(general, blocks[0][1])], chunk=20)
    rows = by_hand(system, blocks)["equation"]
    expected = 2.0 * float(softplus(rows).mean())
    assert float(objective.loss(theta)) == pytest.approx(expected, rel=1e-11)
    residual, score = HeldOut(objective.data, ["classes"]).evaluate(system)
    assert residual == pytest.approx(float(rows.square().mean().sqrt()))
    assert score == pytest.approx(math.sqrt(expected))


# --- groups of parameters -------------------------------------------------------------------------
def test_groups_and_round_trip() -> None:
    system, _ = make(MODELS["kan free base"])
    pack = ParameterPack(system)
    assert set(pack.layout.names) == {
        *(f"{net}.layer{k}.{what}" for net in ("first", "second") for k in (0, 1)
          for what in ("coefficients", "base_weights", "knots_free")),
        "scalars.k",
    }  # fmt: skip
    theta = pack.read()
    assert pack.layout.total == len(theta) == system.n_parameters
    before = {name: p.detach().clone() for name, p in system.named_parameters()}
    pack.write(theta + 1.0)
    for name, p in system.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] + 1.0)
    assert torch.equal(pack.read(), theta + 1.0)
    theta.zero_()
    assert pack.read().abs().max() > 0  # a copy


@pytest.mark.parametrize(
    ("parameter", "group"),
    [
        ("networks.main.network.layers.3.coefficients", "main.layer3.coefficients"),
        ("networks.a.network.layers.0.bias", "a.layer0.bias"),
        ("scalars.nu", "scalars.nu"),
    ],
)
def test_group_names(parameter: str, group: str) -> None:
    assert group_name(parameter) == group


def test_unknown_groups_are_refused() -> None:
    system, _ = make()
    message = r"training.phases.train: '\*.knots_free' matches no parameter group; there are"
    with pytest.raises(ConfigError, match=message):
        ParameterPack(system, ("*.coefficients", "*.knots_free"))


def test_first_features_are_kept_within_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    system, blocks = make()
    kept = BlockData(*blocks[0], system)
    assert all(p.first_features is not None for p in kept.chunks[0].prepared[0].values())
    monkeypatch.setattr("kanpinn.training.block_data.FEATURE_CACHE_BYTES", 1000)
    plain = BlockData(*blocks[0], system)
    assert all(p.first_features is None for p in plain.chunks[0].prepared[0].values())
    assert torch.equal(residual_rows(kept, system), residual_rows(plain, system))


# --- held-out residuals and errors ----------------------------------------------------------------
def test_held_out_residual_and_score() -> None:
    system, blocks = make()
    rows = by_hand(system, blocks)
    data = [BlockData(block, points, system, 20) for block, points in blocks]
    residual, score = HeldOut(data, ["equation"]).evaluate(system)
    squares = {name: float(r.square().mean()) for name, r in rows.items()}
    assert residual == pytest.approx(math.sqrt(squares["equation"]), rel=1e-11)
    total = sum(WEIGHTS[name] * value for name, value in squares.items())
    assert score == pytest.approx(math.sqrt(total), rel=1e-11)


def test_held_out_points_are_new() -> None:
    problem = Reaction()
    system, blocks = make(problem=problem)
    trained = {block.name: points for block, points in blocks}
    only = [block for block, _ in blocks]
    sampling = SamplingOptions(held_out=100)
    held = held_out_data(problem, only, trained, sampling, system, seed=0, chunk=None)
    counts = {data.block.name: data.n_points for data in held.data}
    assert list(counts.values()) == [100, 20, 20, 16]
    for data in held.data:
        known = trained[data.block.name][0].x
        assert not (data.points[0].x[:, None] == known[None]).all(-1).any()
    again = held_out_data(problem, only, trained, sampling, system, seed=0, chunk=None)
    assert held.evaluate(system) == again.evaluate(system)


def test_given_data_is_held_out_only_by_the_problem() -> None:
    x = torch.linspace(-0.9, 0.9, 5, dtype=torch.float64)[:, None].expand(5, 2)
    rows = {name: FixedPoints(Points(x * f, data={"y": x[:, 0]})) for name, f in
            (("train", 1.0), ("validate", 0.5))}  # fmt: skip

    class Fit(Problem):
        domain = Box((-1.0, -1.0), (1.0, 1.0))

        def residual(self, p: Site) -> Tensor:
            result: Tensor = p.u - p.data["y"]
            return result

        def blocks(self) -> tuple[ResidualBlock, ...]:
            return (ResidualBlock("data", rows["train"], self.residual, equation=True),)

    class Validated(Fit):
        def held_out_blocks(self) -> tuple[ResidualBlock, ...]:
            return (ResidualBlock("data", rows["validate"], self.residual, equation=True),)

    for problem, expected in ((Fit(), 1.0), (Validated(), 0.5)):
        system, blocks = make(problem=problem)
        trained = {block.name: points for block, points in blocks}
        only = [block for block, _ in blocks]
        held = held_out_data(problem, only, trained, SamplingOptions(), system, 0, None)
        assert torch.equal(held.data[0].points[0].x, x * expected)
        residual, score = held.evaluate(system)
        found = residual_rows(held.data[0], system)
        assert score == pytest.approx(float(found.square().mean().sqrt()), rel=1e-11)
        assert residual == (None if expected == 1.0 else pytest.approx(score, rel=1e-11))


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        (KANOptions(width=2, intervals=2), 16384),
        (KANOptions(width=64, intervals=64), 256),
        (MultichannelOptions(width=64, intervals=64, order=4), 64),
        (MLPOptions(width=256), 1024),
    ],
)
def test_wide_networks_are_evaluated_on_fewer_points_at_once(model: Any, rows: int) -> None:
    system, _ = make(model)
    with kernels_unused():
        assert evaluation_rows(system) == rows
    features = isinstance(model, MLPOptions) or not kernels_expected()
    assert (evaluation_rows(system) > rows) is not features  # more where none are made
    rows = evaluation_rows(system)
    x = torch.linspace(-1, 1, 2 * (rows + 7), dtype=torch.float64).reshape(-1, 2)
    with torch.no_grad():
        torch.testing.assert_close(predict(system, x), system.values(x), rtol=0, atol=1e-13)
        found = predict(system, x, ["v"])
    torch.testing.assert_close(found[:, 0], predict(system, x)[:, 1], rtol=0, atol=0)


class Known(Reaction):
    """With a reference: two fields at nine points."""

    def evaluation_points(self) -> Tensor:
        return self.domain.evaluation_grid((3, 3))[0]

    def reference(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([x[:, 0], x[:, 1] ** 2], -1)


def test_errors_are_of_all_fields_at_points_not_trained_on() -> None:
    problem = Known()
    system, _ = make(problem=problem)
    x = problem.evaluation_points()
    like = next(iter(system.parameters())).detach()
    difference = predict(system, x) - torch.from_numpy(problem.reference(x.numpy()))
    exact = torch.from_numpy(problem.reference(x.numpy()))
    found = ReferenceErrors(problem, [], like).evaluate(system)
    assert found is not None
    assert found.rel_l2 == pytest.approx(float(difference.norm() / exact.norm()))
    assert found.linf == pytest.approx(float(difference.abs().max()))
    trained = [Points(x[[0, 4]]), Points(x[[8]] + 1e-9)]
    rest = [1, 2, 3, 5, 6, 7, 8]
    found = ReferenceErrors(problem, trained, like).evaluate(system)
    assert found is not None
    assert found.rel_l2 == pytest.approx(float(difference[rest].norm() / exact[rest].norm()))
    assert ReferenceErrors(Reaction(), [], like).evaluate(system) is None


def test_prediction_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    system, _ = make()
    (points,) = held_out(SQUARE.interior(), 30, 1)
    whole = predict(system, points.x)
    assert whole.shape == (30, 2) and not whole.requires_grad
    monkeypatch.setattr("kanpinn.training.evaluation.EVALUATION_CHUNK", 7)
    torch.testing.assert_close(predict(system, points.x), whole, rtol=1e-14, atol=1e-14)


# --- other devices --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["kan", "kan free", "multichannel", "mlp"])
def test_objective_on_every_device(name: str, device: torch.device) -> None:
    system, blocks = make(MODELS[name])
    objective, theta = objective_of(system, blocks)
    expected = objective.loss_and_gradient(theta)
    moved = [
        (block, tuple(p.to(torch.float64, device) for p in points)) for block, points in blocks
    ]
    there, start = objective_of(system.to(device), moved)
    found = there.loss_and_gradient(start)
    for a, b in zip(found, expected, strict=True):
        assert a.device.type == device.type
        assert float((a.cpu() - b).abs().max()) <= 1e-11 * float(b.abs().max())

"""Threads that share work: order, errors, PyTorch's own threads; no bit depends on them."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_objective import Reaction, make, objective_of
from torch import Tensor

from kanpinn.models import KANOptions
from kanpinn.residuals import System
from kanpinn.training import (
    accumulate,
    block_data,
    derivatives,
    evaluation,
    linearisation,
    predict,
    squares,
)
from kanpinn.training import objective as objective_module
from kanpinn.training.block_data import BlockData, mean_square, residual_rows
from kanpinn.training.derivatives import predict_gradient
from kanpinn.training.memory import Memory
from kanpinn.training.objective import SystemObjective
from kanpinn.training.parallel import ordered_map


@pytest.fixture(autouse=True)
def operators_with_threads() -> Iterator[None]:
    """PyTorch as a program has it that has set nothing: several threads for an operator."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


# --- the map --------------------------------------------------------------------------------------
def test_order_and_errors() -> None:
    assert list(ordered_map(lambda n: -n, range(7), 3)) == [-n for n in range(7)]
    assert list(ordered_map(abs, [], 3)) == []
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda n: 1 // n, [2, 1, 0, 3], 2))
    assert torch.get_num_threads() == 3


def test_threads_are_kept_and_nothing_goes_on_behind_a_reader() -> None:
    begun, ended, names = [], [], set()

    def work(number: int) -> int:
        begun.append(number)
        names.add(threading.current_thread().name)
        time.sleep(0.02)
        ended.append(number)
        return number

    for _ in range(3):
        assert list(ordered_map(work, range(6), 2)) == list(range(6))
    assert len(names) == 2
    reader = ordered_map(work, range(6), 2)
    assert next(reader) == 0
    reader.close()  # type: ignore[attr-defined]
    assert sorted(begun) == sorted(ended)
    assert torch.get_num_threads() == 3


def test_operators_have_one_thread_meanwhile() -> None:
    def threads(_: int) -> int:
        return torch.get_num_threads()

    assert list(ordered_map(threads, range(4), 2)) == 4 * [1]
    assert list(ordered_map(threads, range(4), 1)) == 4 * [3]
    assert list(ordered_map(threads, range(1), 2)) == [3]  # nothing to share
    assert torch.get_num_threads() == 3


def test_the_last_result_finds_all_threads() -> None:
    seen = [torch.get_num_threads() for _ in ordered_map(abs, range(5), 2)]
    assert seen == [1, 1, 1, 1, 3]


def test_threads_set_in_the_meantime_are_left_alone() -> None:
    reader = ordered_map(abs, range(5), 2)
    next(reader)
    torch.set_num_threads(2)
    reader.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == 2


def test_inference_mode_is_carried_over() -> None:
    system, _ = make()
    x = torch.rand(9000, 2, dtype=torch.float64)
    memory = Memory(0.5, threads=2)
    with torch.inference_mode():
        values = predict(system, x, memory=memory)
        gradients = predict_gradient(system, x, ["u"], memory)
    torch.testing.assert_close(values, predict(system, x), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradients, predict_gradient(system, x, ["u"]))


def test_a_thread_that_shares_work_shares_no_other() -> None:
    """It would wait for the threads that wait for it."""

    def outer(n: int) -> list[str]:
        return list(ordered_map(lambda _: threading.current_thread().name, range(n), 2))

    for names in ordered_map(outer, [3, 3, 3, 3], 2):
        assert len(set(names)) == 1


def test_threads_see_the_callers_context() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(5)
    assert list(ordered_map(lambda n: n * variable.get(), range(3), 2)) == [0, 5, 10]


# --- no bit depends on them -----------------------------------------------------------------------
def shared(monkeypatch: pytest.MonkeyPatch, *modules: Any) -> list[int]:
    """Numbers of items that the maps of some modules share among threads, as they come."""
    found = []

    def watched(function: Callable[[Any], Any], items: Any, workers: int) -> Iterator[Any]:
        items = list(items)
        found.append(len(items) if workers > 1 else 1)
        return ordered_map(function, items, workers)

    for module in modules:
        monkeypatch.setattr(module, "ordered_map", watched)
    return found


def of_objective(objective: SystemObjective, theta: Tensor) -> list[Tensor]:
    torch.manual_seed(0)
    u = torch.randn(len(objective.residuals(theta)), dtype=torch.float64)
    linear = objective.linearise(theta, 1e6)
    return [
        objective.triangle(theta),
        objective.squares(theta, 0.0).upper,
        torch.cat(list(objective.jacobian_rows(theta))),
        objective.transposed_product(theta, u),
        linear.transposed(u),
        linear.product(theta),
        *linear.block_squares(8),
        *objective.loss_and_gradient(theta),
    ]


def test_of_an_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)  # as for small models: the last digits of a QR depend on its threads
    system, blocks = make(KANOptions(width=2, order=5, intervals=2), Reaction(), n=5000)
    monkeypatch.setattr("kanpinn.training.linearisation.SLICE_BYTES", 2**14)  # several slices
    counts = shared(monkeypatch, accumulate, linearisation, objective_module, squares)
    found = [
        of_objective(*objective_of(system, blocks, chunk=64, workers=workers))
        for workers in (1, 2, 3)
    ]
    once = len(counts) // 3
    assert counts[:once] == once * [1] and min(counts[once:]) > 1
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_of_a_mini_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is evaluated in chunks like all points, and its loss is the mean over its own."""
    system, blocks = make(n=500)
    rows = torch.randperm(500, generator=torch.Generator().manual_seed(1))[:301]
    counts, found = shared(monkeypatch, objective_module), []
    for workers in (1, 3):
        objective, theta = objective_of(
            system, blocks, chunk=64, workers=workers, chosen={"equation": rows},
            attention={"equation": torch.linspace(0, 1, 500, dtype=torch.float64)},
        )  # fmt: skip
        found.append((*objective.loss_and_gradient(theta), *residual_sizes(objective)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    others = sum(len(data.chunks) for data in objective.data[1:])
    assert counts == [1, 5 + others]  # 301 rows by 64
    loss, gradient = whole_batch(system, blocks, rows)
    assert float(found[0][0]) == pytest.approx(float(loss), rel=1e-13)
    torch.testing.assert_close(found[0][1], gradient, rtol=1e-10, atol=1e-12)


def residual_sizes(objective: SystemObjective) -> list[Tensor]:
    """The rows that attention has seen: which, and how large."""
    (parts,) = objective.rows.values()
    where, sizes = zip(*parts, strict=True)
    return [torch.cat(where), torch.cat(sizes)]


def whole_batch(system: System, blocks: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The same loss from an objective on the batch's points alone."""
    (equation, (points,)), *others = blocks
    weights = torch.linspace(0, 1, 500, dtype=torch.float64)[rows]
    objective, theta = objective_of(
        system, [(equation, (points.rows(rows),)), *others], chunk=1000,
        attention={"equation": weights},
    )  # fmt: skip
    return objective.loss_and_gradient(theta)


def test_of_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = shared(monkeypatch, block_data, derivatives, evaluation)
    system, blocks = make(n=300)
    x = 2 * torch.rand(3000, 2, dtype=torch.float64) - torch.tensor([1.0, 0.0])
    found = []
    for threads in (1, 3):
        memory = Memory(0.5, threads=threads)  # MiB: small pieces
        data = BlockData(blocks[0][0], blocks[0][1], system, 64, memory)
        found.append(
            [
                predict(system, x, memory=memory),
                predict_gradient(system, x, ["u", "v"], memory),
                residual_rows(data, system),
                mean_square(data, system),
            ]
        )
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not any(tensor.requires_grad for tensor in found[1])
    assert counts[:4] == 4 * [1] and min(counts[4:]) > 1

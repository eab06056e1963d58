"""Speed of layers: what is timed is the same function, and really timed."""

from __future__ import annotations

import itertools

import pytest
import torch
from figure_checks import check, main_axes

from kanpinn.analysis import LayerSpeed, run
from kanpinn.analysis.layer_speed import (
    KERNEL,
    OPERATORS,
    POWERS,
    RECURSION,
    TASKS,
    available,
    cox_de_boor,
    made,
    powers_then_change,
)
from kanpinn.kernels import compiles, kernels_unused
from kanpinn.plotting.analysis import draw

SMALL = LayerSpeed(orders=(2, 5), intervals=(3, 6), width=4, hidden_layers=2, points=50, repeats=2)


@pytest.mark.parametrize("basis", [powers_then_change, cox_de_boor])
def test_both_bases_are_the_b_splines_of_the_layer(basis: object) -> None:
    network = made(4, 5, SMALL, torch.Generator().manual_seed(1))
    layer = network.knot_layers[1]
    x = torch.linspace(-1, 0.999, 40, dtype=torch.float64)[:, None].expand(-1, 4).contiguous()
    functions = basis(layer)(x)  # type: ignore[operator]
    expected = layer.basis.dense(x, 0)[0]
    torch.testing.assert_close(functions.flatten(1), expected, rtol=0, atol=1e-11)


def test_all_ways_have_the_same_values_and_gradients(generator: torch.Generator) -> None:
    network = made(4, 6, SMALL, generator)
    x = 2 * torch.rand(30, 2, generator=generator, dtype=torch.float64) - 1
    found = []
    for way, evaluate in available(network, x).items():
        y = evaluate(x)
        slopes = torch.autograd.grad(y.square().mean(), list(network.parameters()))
        found.append((way, y, torch.cat([s.flatten() for s in slopes])))
    assert [way for way, _, _ in found][:3] == [POWERS, RECURSION, OPERATORS]
    _, y, slope = found[1]
    for way, other, other_slope in found:
        torch.testing.assert_close(other, y, rtol=0, atol=1e-9, msg=way)
        torch.testing.assert_close(other_slope, slope, rtol=0, atol=1e-9, msg=way)


def test_rows_have_every_case_and_relative_times() -> None:
    found = run(SMALL)
    ways = [POWERS, RECURSION, OPERATORS]
    ways += [KERNEL] if compiles(torch.zeros(1, 1, 1, dtype=torch.float64)) else []
    cases = {(r["order"], r["intervals"], r["evaluation"], r["task"]): r for r in found.rows}
    assert set(cases) == set(itertools.product((2, 5), (3, 6), ways, TASKS))
    for (order, intervals, _, task), row in cases.items():
        base = cases[order, intervals, RECURSION, task]["seconds"]
        assert row["seconds"] > 0
        assert row["relative"] == pytest.approx(row["seconds"] / base)
        assert row["difference"] < 1e-8
    (figure,) = draw(found)
    assert len(main_axes(check(figure))) == 4


def test_more_work_takes_longer() -> None:
    """The recursion over 200 intervals is timed as many times that over 5."""
    options = LayerSpeed(orders=(4,), intervals=(5, 200), width=16, points=200, repeats=3)
    rows = [row for row in run(options).rows if row["evaluation"] == RECURSION]
    few, many = (
        min(row["seconds"] for row in rows if row["intervals"] == count) for count in (5, 200)
    )
    assert many > 3 * few


def test_without_a_compiler_the_finding_says_so() -> None:
    with kernels_unused():
        found = run(SMALL)
    assert "no compiled kernel" in found.text
    assert KERNEL not in {row["evaluation"] for row in found.rows}
    (figure,) = draw(found)
    check(figure)

"""Solutions: values, derivatives and univariate functions against independent evaluations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from tiny_runs import MODELS, RAGGED_COUPLED, Coupled, Plain, options, states
from torch import Tensor

from kanpinn.checkpoint import write_checkpoint
from kanpinn.errors import CheckpointError, ConfigError, DomainError, ProblemError
from kanpinn.jets import Jet, JetSpec
from kanpinn.models import KANOptions, KnotLayer, MLPOptions
from kanpinn.problem import build_system
from kanpinn.provenance import describe_problem, gather
from kanpinn.residuals import System
from kanpinn.solution import CHECKPOINT_NAME, Solution
from kanpinn.training import LevelRecord, LevelState, RunState, predict
from kanpinn.training.state import snapshot

COUPLED = KANOptions(width=3, order=5, breakpoints=RAGGED_COUPLED)


def trained(problem: Any, model: Any, levels: int = 2) -> Solution:
    state = states(problem, options(model, levels))[-1]
    return Solution(state, {"a": 1}, describe_problem(problem, "tiny"), {"host": "here"})


@pytest.fixture(scope="module")
def plain() -> Solution:
    return trained(Plain(), MODELS["kan"])


@pytest.fixture(scope="module")
def coupled() -> Solution:
    return trained(Coupled(), COUPLED)


def points(n: int = 40, lower: Any = (-1, 0), upper: Any = (1, 3), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(lower, upper, (n, 2))


# ------------------------------------------------------------------------------------ values


def test_values_are_the_best_systems(plain: Solution) -> None:
    state = plain._run.state
    best = min(reversed(state.levels), key=lambda level: level.best_score)
    x = points()
    expected = predict(best.best_system(), torch.tensor(x))
    assert torch.equal(torch.tensor(plain(x)), expected)
    assert np.abs(plain(x)).max() > 1e-3


def test_kinds_types_and_devices(plain: Solution, device: torch.device) -> None:
    solution = plain.to(device)
    x = points()
    values = solution(x)
    assert isinstance(values, np.ndarray)
    assert values.dtype == np.float64
    assert values.shape == (40, 1)
    tensor = torch.tensor(x, device=device, requires_grad=True)
    result = solution(tensor)
    assert (result.dtype, result.device.type, result.requires_grad) == (
        torch.float64,
        device.type,
        False,
    )
    tolerance = 0 if device.type == "cpu" else 1e-13
    np.testing.assert_allclose(result.cpu().numpy(), values, rtol=0, atol=tolerance)
    single = solution(x.astype(np.float32))
    assert single.dtype == np.float64  # the model's type
    np.testing.assert_array_equal(single, solution(x.astype(np.float32).astype(np.float64)))
    narrow = solution.to(device, torch.float32)(x)
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, values, atol=2e-5)


def test_any_memory_layout_of_numpy(plain: Solution) -> None:
    x = points()
    values = plain(x)
    read_only = x.copy()
    read_only.flags.writeable = False
    for same in (np.asfortranarray(x), read_only, np.repeat(x, 2, axis=0)[::2]):
        np.testing.assert_array_equal(plain(same), values)
    np.testing.assert_array_equal(plain(x[::-1]), values[::-1])
    assert plain(x[:0]).shape == (0, 1)


def test_chunks_make_no_difference(plain: Solution, monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(1000)
    whole = plain.derivatives(x, "", "xy")
    monkeypatch.setattr("kanpinn.training.derivatives.chunk_rows", lambda *_: 64)
    pieces = plain.derivatives(x, "", "xy")
    for name, values in whole.items():
        np.testing.assert_allclose(pieces[name], values, rtol=0, atol=1e-14)


def test_fields_in_the_problems_order_and_units(coupled: Solution) -> None:
    """The networks give c, then a and b; the problem says a, b, c, and c = 5 + 3 N."""
    assert coupled.model.field_names == ("c", "a", "b")
    assert coupled.fields == ("a", "b", "c")
    x = points(20, (-2, 1), (2, 4))
    tensor, values = torch.tensor(x), coupled(x)
    with torch.no_grad():
        main = coupled.networks["main"](tensor).numpy()
        second = coupled.networks["second"]
        channels = second.inputs(second.inputs.approach(jet_of(tensor))).value
        raw = second.network(channels)[:, 0].numpy()
    np.testing.assert_allclose(values[:, :2], main, rtol=1e-13)
    np.testing.assert_allclose(values[:, 2], 5 + 3 * raw, rtol=1e-13)
    walls = np.array([[-2.0, 1.5], [2.0, 3.0]])
    np.testing.assert_allclose(coupled(walls)[:, 0], walls[:, 1], rtol=1e-14)  # a = t, built in


def jet_of(x: Tensor) -> Any:
    return Jet.coordinates(x, JetSpec.value_only(x.shape[1]))


# ------------------------------------------------------------------------------------ derivatives


def by_autograd(solution: Solution, x: np.ndarray, name: str) -> np.ndarray:
    """Nested autograd through the networks' values, ``(n, n_fields)``."""
    tensor = torch.tensor(x, requires_grad=True)
    parts = solution.networks.values()
    values = torch.cat([part(tensor) for part in parts], -1)
    order = [solution.model.field_names.index(field) for field in solution.fields]
    columns = []
    for column in values[:, order].unbind(1):
        for letter in name:
            grad = torch.autograd.grad(column.sum(), tensor, create_graph=True)[0]
            column = grad[:, solution.coordinates.index(letter)]
        columns.append(column.detach().numpy())
    return np.stack(columns, -1)


@pytest.mark.parametrize(
    "name", ["kan", "kan ragged", "kan ragged free base", "mlp", "multichannel"]
)
def test_derivatives_agree_with_autograd(name: str) -> None:
    solution = trained(Plain(), MODELS[name], 1)
    x = points()
    found = solution.derivatives(x, "", "x", "y", "xx", "xy", "yyx", "xyx")
    assert list(found) == ["", "x", "y", "xx", "xy", "yyx", "xyx"]
    for key, values in found.items():
        expected = by_autograd(solution, x, key)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-10 * scale)
    expected = by_autograd(solution, x, "xx") + by_autograd(solution, x, "yy")
    np.testing.assert_allclose(solution.laplacian(x), expected, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(solution.derivatives(x, "")[""], solution(x))


def test_derivatives_agree_with_finite_differences(plain: Solution) -> None:
    x, h = points(lower=(-0.9, 0.1), upper=(0.9, 2.9)), 1e-3
    found = plain.derivatives(x, "x", "yy")
    up, down = (plain(x + s * np.array([h, 0.0])) for s in (1, -1))
    np.testing.assert_allclose(found["x"], (up - down) / (2 * h), atol=1e-4)
    up, down = (plain(x + s * np.array([0.0, h])) for s in (1, -1))
    np.testing.assert_allclose(found["yy"], (up - 2 * plain(x) + down) / h**2, atol=1e-3)


def test_the_laplacian_leaves_time_out(coupled: Solution) -> None:
    x = points(20, (-2, 1), (2, 4))
    found = coupled.laplacian(x)
    np.testing.assert_allclose(found, coupled.derivatives(x, "xx")["xx"], rtol=1e-12, atol=1e-12)
    assert np.abs(coupled.derivatives(x, "tt")["tt"]).max() > 1e-6
    np.testing.assert_allclose(
        coupled.derivatives(x, ("x", "t"))["x t"], by_autograd(coupled, x, "xt"), atol=1e-9
    )


def test_kinks_of_input_maps_have_two_sides(coupled: Solution) -> None:
    kink = np.array([[0.5, 2.0]])
    near = 1e-9
    for side in (-1, 1):
        at = coupled.derivatives(kink, "x", side=side)["x"]
        beside = coupled.derivatives(kink + np.array([side * near, 0.0]), "x")["x"]
        np.testing.assert_allclose(at, beside, atol=1e-5)
    plus, minus = (coupled.derivatives(kink, "x", side=side)["x"] for side in (1, -1))
    assert np.abs(plus - minus).max() > 1e-4
    np.testing.assert_array_equal(coupled.derivatives(kink, "x")["x"], plus)


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [
        (MODELS["multichannel"], "xxyy", "splines of order 4 have derivatives up to order 3, cont"),
        (MLPOptions(activation="relu"), "xx", "this activation has derivatives up to order 1"),
        (MODELS["kan"], "xxxxx", "up to order 4"),
        (MODELS["kan"], "xz", "'z' is no coordinate; coordinates: x, y"),
    ],
)
def test_derivatives_that_do_not_exist(model: Any, name: str, reason: str) -> None:
    solution = untrained(model)
    with pytest.raises(ProblemError, match=reason):
        solution.derivatives(points(), "x", name)


def test_rough_models_have_no_laplacian() -> None:
    solution = untrained(MLPOptions(activation="relu"))
    with pytest.raises(ProblemError, match="derivative laplacian has order 2"):
        solution.laplacian(points())
    with pytest.raises(ProblemError, match="none was named"):
        solution.derivatives(points())


def untrained(model: Any, problem: Any = None) -> Solution:
    """A solution with random parameters, of a model too rough for any equation perhaps."""
    system: System = build_system(problem or Plain(), model, torch.Generator().manual_seed(1))
    record = LevelRecord(0, [], system.n_parameters, 0)
    return Solution(RunState(levels=[LevelState(record, system, snapshot(system))]))


# ------------------------------------------------------------------------------------ bad points


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (points()[:, :1], r"shape \(40, 1\), allowed: \(n, 2\)"),
        (points()[0], r"shape \(2,\)"),
        (np.array(1.0), r"shape \(\)"),
        (points().astype(int), "dtype int64, allowed: float32, float64"),
        ([[0.0, 1.0]], "found list, allowed: a tensor or a NumPy array"),
        (np.array([[0.0, 1.0], [math.nan, 1.0]]), "row 1"),
        (np.array([[0.0, math.inf]]), "row 0"),
    ],
)
@pytest.mark.parametrize("outside", ["error", "extend", "nan"])
def test_unusable_points(x: Any, reason: str, outside: Any, plain: Solution) -> None:
    with pytest.raises(DomainError, match=reason):
        plain(x, outside=outside)
    with pytest.raises(DomainError, match=reason):
        plain.laplacian(x, outside=outside)


def test_points_outside(plain: Solution) -> None:
    x = np.array([[0.5, 1.0], [1.2, 1.0], [0.0, -0.1]])
    with pytest.raises(DomainError, match=r"row 1: x = 1.2 is outside the domain.*1 more such row"):
        plain(x)
    with pytest.raises(DomainError, match="row 1"):
        plain.derivatives(torch.tensor(x), "x")
    inside, extended = plain(x[:1]), plain(x, outside="extend")
    np.testing.assert_allclose(extended[:1], inside, rtol=1e-14)
    assert np.isfinite(extended).all()
    holes = plain.derivatives(x, "", "xx", outside="nan")
    for values in holes.values():
        assert np.isnan(values[:, 0]).tolist() == [False, True, True]
    with pytest.raises(ConfigError, match="found 'clip', allowed: error, extend, nan"):
        plain(x, outside="clip")  # type: ignore[arg-type]


def test_the_closed_domain_counts_as_inside(plain: Solution) -> None:
    corners = np.array([[-1.0, 0.0], [1.0, 3.0]])
    np.testing.assert_allclose(plain(corners), 0.0, atol=1e-15)  # built in
    assert plain(np.array([[0.1, 3.0]], dtype=np.float32)).shape == (1, 1)


# ------------------------------------------------------------------------------------ iterates


def test_levels_best_and_last(plain: Solution) -> None:
    state = plain._run.state
    x = points()
    tensor = torch.tensor(x)
    assert [level.record.level for level in plain.levels] == [0, 1]
    for level, entry in zip(plain.levels, state.levels, strict=True):
        np.testing.assert_array_equal(level(x), predict(entry.best_system(), tensor).numpy())
        assert level.iterate == "best"
    np.testing.assert_array_equal(plain.last(x), predict(state.current.system, tensor).numpy())
    assert plain.last.iterate == "last"
    np.testing.assert_array_equal(plain.last.best(x), plain(x))
    np.testing.assert_array_equal(plain.level(0)(x), plain.levels[0](x))
    coarse = plain.level(0, "last")
    np.testing.assert_array_equal(coarse(x), predict(state.levels[0].system, tensor).numpy())
    with pytest.raises(ConfigError, match="allowed: 0, 1"):
        plain.level(2)
    assert [row["n_intervals"] for row in plain.summary] == [[2, 2], [4, 4]]


def test_the_best_of_all_levels_wins_and_the_finer_of_equals(plain: Solution) -> None:
    levels = plain._run.state.levels
    scores = [level.best_score for level in levels]
    try:
        levels[0].best_score = scores[1] / 2
        assert Solution(plain._run.state).record.level == 0
        levels[0].best_score = scores[1]
        assert Solution(plain._run.state).record.level == 1
    finally:
        levels[0].best_score = scores[0]


def test_another_solution_shares_nothing_that_training_changes(plain: Solution) -> None:
    x = points()
    before = plain(x)
    moved = plain.to("cpu")
    with torch.no_grad():
        for parameter in moved.model.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(plain(x), before)


def test_history_config_and_table(plain: Solution, coupled: Solution) -> None:
    history = plain.history
    rows = plain._run.state.history
    assert history["step"].dtype.kind == "i"
    np.testing.assert_array_equal(history["loss"], [row["loss"] for row in rows])
    assert history["phase"].tolist() == [row["phase"] for row in rows]
    assert np.isnan(coupled.history["rel_l2"]).all()  # no reference
    assert coupled.scalars["nu"] == pytest.approx(coupled.history["scalar.nu"][-1], rel=0.5)
    assert (plain.config, plain.provenance) == ({"a": 1}, {"host": "here"})
    assert plain.problem["name"] == "tiny"
    assert plain.bounds == {"x": (-1.0, 1.0), "y": (0.0, 3.0)}
    table = repr(plain).splitlines()
    assert table[0].startswith("tiny: u(x, y), best iterate of level")
    assert [line.split()[:2] for line in table[2:]] == [["0", "2/2"], ["1", "4/4"]]
    assert coupled.coordinates == ("x", "t")


def test_load_takes_a_folder_or_a_file(plain: Solution, tmp_path: Path) -> None:
    run = plain._run
    path = tmp_path / CHECKPOINT_NAME
    described = (run.config, run.problem, gather("cpu", torch.float64, 0))
    write_checkpoint(path, run.state, *described)
    x = points()
    for place in (tmp_path, path, str(path)):
        solution = Solution.load(place)
        np.testing.assert_array_equal(solution(x), plain(x))
        assert repr(solution) == repr(plain)
        assert solution.config == run.config
        for name, column in plain.history.items():
            np.testing.assert_array_equal(solution.history[name], column)
    narrow = Solution.load(path, dtype=torch.float32)
    np.testing.assert_allclose(narrow(x), plain(x), atol=2e-5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty/checkpoint.h5: does not exist"):
        Solution.load(tmp_path / "empty")


# ------------------------------------------------------------------------------------ inside


KNOTTED = [name for name in MODELS if name.startswith(("kan", "multi"))]


@pytest.mark.parametrize("name", KNOTTED)
def test_univariate_functions_make_up_the_layers(name: str) -> None:
    """``y_q = sum_p phi_qp(s(z_p)) + v_qp silu(s(z_p))``, also a little outside the knots."""
    solution = trained(Plain(), MODELS[name], 1)
    for number, layer in enumerate(solution.networks["main"].network.chain):
        assert isinstance(layer, KnotLayer)
        z = np.random.default_rng(number).uniform(-1.1, 1.1, (30, layer.in_width))
        squashed = np.tanh(z) if layer.settings.squash else z
        expected = np.zeros((30, layer.out_width))
        for q in range(expected.shape[1]):
            for p in range(z.shape[1]):
                spline = solution.univariate(number, q, p)
                assert isinstance(spline, BSpline)
                u = squashed[:, p]
                weight = solution.base_weight(number, q, p)
                assert (weight != 0.0) == ("base" in name)
                expected[:, q] += spline(u) + weight * u / (1 + np.exp(-u))
        with torch.no_grad():
            found = layer(torch.tensor(z)[None], JetSpec.value_only(1))[0].numpy()
        scale = np.abs(found).max()
        np.testing.assert_allclose(expected, found, rtol=0, atol=1e-11 * scale)


def test_knots_are_breakpoints_and_bound_the_splines(coupled: Solution) -> None:
    rows = coupled.level(0).knots(0, "second")
    for channel, (row, given) in enumerate(zip(rows, RAGGED_COUPLED[0], strict=True)):
        np.testing.assert_array_equal(row, given)
        spline = coupled.level(0).univariate(0, 1, channel, "second")
        np.testing.assert_allclose(spline.t[spline.k : -spline.k], given)
    np.testing.assert_array_equal(coupled.level(0).knots(0)[0], rows[0])


def test_what_is_not_there_is_named(plain: Solution) -> None:
    with pytest.raises(ConfigError, match="layer: found 2, allowed: 0 to 1"):
        plain.knots(2)
    with pytest.raises(ConfigError, match="part: found 'other', allowed: main"):
        plain.knots(0, "other")
    with pytest.raises(
        ConfigError, match="from input 2 to output 0; it has 2 inputs and 3 outputs"
    ):
        plain.univariate(0, 0, 2)
    with pytest.raises(ConfigError, match="has no knots"):
        untrained(MODELS["mlp"]).univariate(0, 0, 0)


def test_the_model_is_a_module_with_gradients(plain: Solution) -> None:
    x = torch.tensor(points(), requires_grad=True)
    values = plain.networks["main"](x)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    np.testing.assert_allclose(
        gradient[:, :1].numpy(), plain.derivatives(points(), "x")["x"], atol=1e-12
    )
    assert isinstance(plain.model, torch.nn.Module)

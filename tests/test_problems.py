"""The shipped problems: every reference against its own residual blocks, before any training."""

from __future__ import annotations

import importlib.util
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.polynomial.hermite import hermgauss
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from kanpinn.errors import DataError, ExpressionError, KanpinnError, ProblemError
from kanpinn.geometry import Points
from kanpinn.models import KANOptions
from kanpinn.problem import Problem, build_system
from kanpinn.residuals import Field, Site
from kanpinn.sampling import sample, stream
from kanpinn_problems.burgers import Burgers, ColeHopf
from kanpinn_problems.data_fit import DataFit
from kanpinn_problems.poisson import Poisson
from kanpinn_problems.poisson_interface import PoissonInterface
from kanpinn_problems.regression import Regression
from kanpinn_problems.tabular import Tabular

Floats = NDArray[np.float64]
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
WIDTH = 9  # points of a difference stencil: order 8 for first derivatives


# --- a function as the field of a problem, its derivatives by finite differences ------------------
def difference_weights(offsets: Floats, order: int) -> Floats:
    """Weights that are exact for polynomials up to the number of offsets."""
    moments = np.zeros(len(offsets))
    moments[order] = math.factorial(order)
    return np.asarray(np.linalg.solve(np.vander(offsets, increasing=True).T, moments))


def first_offsets(problem: Problem, at: Points, axis: int, step: float) -> NDArray[np.int64]:
    """Where each point's stencil begins, so that it crosses neither boundary nor interface."""
    domain = problem.domain
    cuts = getattr(domain, "interfaces", {}).get(domain.names[axis], ())
    marks = np.array([domain.lower[axis], *cuts, domain.upper[axis]])
    x = at.x[:, axis].numpy()
    side = np.zeros(len(x)) if at.side is None else at.side.numpy()
    cell = np.clip(np.searchsorted(marks, x + 1e-9 * side, side="right") - 1, 0, len(marks) - 2)
    low = np.ceil((marks[cell] - x) / step - 1e-9)
    high = np.floor((marks[cell + 1] - x) / step + 1e-9) - (WIDTH - 1)
    return np.clip(-(WIDTH // 2), low, high).astype(np.int64)


def site_of(
    function: Callable[[Floats], Floats], problem: Problem, at: Points, step: float
) -> Site:
    """A site whose field ``u`` is the function."""
    x, n = at.x.numpy(), len(problem.domain.names)

    def along(axis: int, order: int) -> Floats:
        total = np.zeros(len(x))
        first = first_offsets(problem, at, axis, step)
        for start in np.unique(first):
            offsets = np.arange(start, start + WIDTH, dtype=np.float64)
            rows = first == start
            for offset, weight in zip(offsets, difference_weights(offsets, order), strict=True):
                moved = x[rows].copy()
                moved[:, axis] += offset * step
                total[rows] += weight * function(moved).reshape(-1)
        return total / step**order

    def component(which: tuple[int, ...] | str) -> torch.Tensor:
        if isinstance(which, str):
            parts = [along(axis, 2) for axis in problem.coordinates.spatial]
            return torch.from_numpy(np.sum(parts, axis=0))
        axes = [a for a in range(n) if which[a]]
        assert len(axes) <= 1, "mixed derivatives are not needed here"
        if not axes:
            return torch.from_numpy(function(x).reshape(-1).copy())
        return torch.from_numpy(along(axes[0], which[axes[0]]))

    field = Field("u", component, problem.coordinates, at.normal)
    return Site(at, {"u": field}, problem.coordinates)


def largest_residuals(
    problem: Problem, function: Callable[[Floats], Floats], step: float, n: int = 256
) -> dict[str, float]:
    """Largest residual of the function in every block."""
    result = {}
    for block in problem.blocks():
        sites = sample(block.region, n, "sobol", stream(7, block.name))
        rows = block.residual(*(site_of(function, problem, at, step) for at in sites))
        result[block.name] = float(rows.abs().max())
    return result


SOFT: dict[str, tuple[Problem, float, float]] = {  # problem, step, tolerance
    "poisson 1d": (Poisson(dimension=1, exact_boundary=False), 5e-3, 1e-8),
    "poisson 2d": (Poisson(exact_boundary=False), 5e-3, 1e-8),
    "poisson 3d": (Poisson(dimension=3, exact_boundary=False), 5e-3, 1e-8),
    "poisson variant": (Poisson(frequency=1.5, shift=0.3, exact_boundary=False), 5e-3, 1e-8),
    "interface": (PoissonInterface(exact_boundary=False), 2e-3, 1e-7),
    "burgers": (Burgers(exact_conditions=False), 5e-4, 1e-6),
    "burgers 0.01": (Burgers(nu=0.01, exact_conditions=False), 1e-3, 1e-7),
    "burgers variant": (
        Burgers(
            nu=0.05,
            initial="sin(pi*x) + 0.5*sin(2*pi*x)",
            final_time=0.5,
            exact_conditions=False,
        ),
        2e-3,
        1e-7,
    ),
}


@pytest.mark.parametrize("name", SOFT)
def test_reference_satisfies_every_block(name: str) -> None:
    problem, step, tolerance = SOFT[name]

    def reference(x: Floats) -> Floats:
        values = problem.reference(x)
        assert values is not None
        return values

    found = largest_residuals(problem, reference, step)
    assert max(found.values()) < tolerance, found
    wrong = largest_residuals(problem, lambda x: 1.001 * reference(x), step)
    assert wrong["equation"] > 1e-4, wrong  # the same harness notices an error of 0.1%
    assert len(found) == 1 + len(problem.conditions)


# --- conditions built in exactly ------------------------------------------------------------------
@pytest.mark.parametrize(
    "problem",
    [
        Poisson(frequency=1.5, shift=0.3),
        Poisson(dimension=1, shift=0.2),
        PoissonInterface(),
        Burgers(),
        Burgers(initial="sin(2*pi*x)*exp(x)", nu=0.02),
    ],
    ids=lambda problem: type(problem).__name__,
)
def test_any_network_satisfies_exact_conditions(
    problem: Problem, generator: torch.Generator
) -> None:
    system = build_system(problem, KANOptions(width=3), generator)
    assert all(condition.exact for condition in problem.conditions if condition.on != "x=0")
    for name in ("boundary", *(("initial",) if problem.domain.time else ())):
        (at,) = sample(problem.domain.region(name), 64, "sobol", stream(1, name))
        network = system.parts["main"](at.x).detach().numpy()[:, 0]
        assert np.abs(network - problem.reference(at.x.numpy())).max() < 1e-14
    (inside,) = sample(problem.domain.interior(), 64, "sobol", stream(2))
    difference = system.parts["main"](inside.x).detach().numpy()[:, 0]
    assert np.abs(difference - problem.reference(inside.x.numpy())).max() > 1e-3


# --- the interface --------------------------------------------------------------------------------
def test_interface_reference_is_one_sided() -> None:
    problem, y = PoissonInterface(), np.linspace(-1.0, 1.0, 41)
    h = 1e-6

    def u(x: float) -> Floats:
        return problem.reference(np.stack([np.full_like(y, x), y], 1))

    assert np.abs(u(0.0)).max() == 0.0
    assert np.abs(u(-1e-13) - u(1e-13)).max() < 1e-11  # no jump in the value
    left, right = (u(0.0) - u(-h)) / h, (u(h) - u(0.0)) / h
    flux = math.pi * np.sin(3 * math.pi * y)
    assert np.abs(1.0 * left - flux).max() < 1e-5
    assert np.abs(0.5 * right - flux).max() < 1e-5
    assert np.abs(right - left).max() > 3.0  # the kink


def test_interface_needs_its_flux_condition() -> None:
    """A function that solves everything else with zero data is told apart by the flux alone."""
    problem = PoissonInterface(exact_boundary=False)

    def other(x: Floats) -> Floats:
        mode = np.sinh(3 * math.pi * (1 - np.abs(x[:, 0]))) * np.sin(3 * math.pi * x[:, 1])
        return problem.reference(x) + mode / math.sinh(3 * math.pi)

    found = largest_residuals(problem, other, 2e-3)
    flux = found.pop("fluxjump u on x=0")
    assert max(found.values()) < 1e-7, found
    assert flux > 10.0


def test_interface_network_carries_the_kink(generator: torch.Generator) -> None:
    problem = PoissonInterface()
    system = build_system(problem, KANOptions(width=3), generator)
    assert system.parts["main"].inputs.n_channels == 3
    y = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64)
    h = 1e-7

    def u(x: float) -> torch.Tensor:
        return system.parts["main"](torch.stack([torch.full_like(y, x), y], 1)).detach()

    left, right = (u(0.0) - u(-h)) / h, (u(h) - u(0.0)) / h
    assert float((right - left).abs().max()) > 1e-2
    assert float((u(h) - u(-h)).abs().max()) < 1e-6


# --- Burgers: the Cole-Hopf reference -------------------------------------------------------------
def space_time(times: Floats, n: int = 61) -> tuple[Floats, Floats]:
    x, t = np.meshgrid(np.linspace(-1.0, 1.0, n), times, indexing="ij")
    return x.ravel(), t.ravel()


def gauss_hermite(x: Floats, t: Floats, nu: float, n_nodes: int) -> Floats:
    """The closed form for u0 = -sin(pi x), a quadrature of another kind."""
    z, weight = hermgauss(n_nodes)
    y = x[:, None] - 2 * np.sqrt(nu * t[:, None]) * z
    exponent = np.log(weight) - np.cos(np.pi * y) / (2 * np.pi * nu)
    phi = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    return np.asarray(-(np.sin(np.pi * y) * phi).sum(axis=1) / phi.sum(axis=1))


@pytest.mark.parametrize("nu", [0.01 / math.pi, 0.01])
def test_cole_hopf_agrees_with_gauss_hermite(nu: float) -> None:
    x, t = space_time(np.linspace(0.0, 1.0, 21))
    hermite = {n: gauss_hermite(x, t, nu, n) for n in (50, 100, 200)}
    assert np.abs(hermite[100] - hermite[200]).max() < 1e-13
    assert np.abs(hermite[50] - hermite[200]).max() > 1e-10  # doubling does tell
    assert np.abs(ColeHopf("-sin(pi*x)", nu)(x, t) - hermite[200]).max() < 1e-13


@pytest.mark.parametrize(
    ("initial", "nu", "tolerance"),
    [
        ("-sin(pi*x)", 1e-3, 1e-12),
        ("-sin(pi*x)", 5.0, 1e-13),
        ("sin(pi*x) + 0.5*sin(2*pi*x)", 0.01 / math.pi, 1e-12),
        ("2*x*(1 - x**2)*cos(3*x)", 0.05, 1e-12),
        ("3*sin(8*pi*x)", 0.01, 1e-11),
    ],
)
def test_cole_hopf_has_enough_nodes(initial: str, nu: float, tolerance: float) -> None:
    x, t = space_time(np.array([0.0, 1e-9, 1e-4, 0.03, 0.3, 1.0]), 31)
    solution = ColeHopf(initial, nu)
    values = solution(x, t)
    assert np.abs(values - solution(x, t, refine=1.7)).max() < tolerance
    assert np.abs(values - solution(x, t, refine=0.1)).max() > tolerance
    assert np.abs(values[np.abs(x) == 1.0]).max() < 1e-14 * max(1.0, np.abs(values).max())


@pytest.mark.parametrize("initial", ["-sin(pi*x)", "(1 - x**2)*(0.3 + x)"])
def test_cole_hopf_agrees_with_collocation(initial: str) -> None:
    """Chebyshev collocation in space and an adaptive integrator in time, at nu = 0.1.

    The second initial values have a curvature at the ends, and with it kinks in the continuation.
    """
    n, nu, times = 72, 0.1, np.array([0.2, 0.5, 1.0])
    x = np.cos(np.pi * np.arange(n + 1) / n)
    c = np.where((np.arange(n + 1) % n) == 0, 2.0, 1.0) * (-1.0) ** np.arange(n + 1)
    first = np.outer(c, 1 / c) / (x[:, None] - x[None, :] + np.eye(n + 1))
    first -= np.diag(first.sum(axis=1))
    second = (first @ first)[1:-1, 1:-1]
    inner = first[1:-1, 1:-1]

    def rate(_: float, u: Floats) -> Floats:
        return np.asarray(nu * (second @ u) - u * (inner @ u))

    u0 = -np.sin(np.pi * x) if initial.startswith("-sin") else (1 - x**2) * (0.3 + x)
    run = solve_ivp(
        rate, (0.0, 1.0), u0[1:-1], method="LSODA", t_eval=times, rtol=1e-11, atol=1e-13
    )
    solution = ColeHopf(initial, nu)
    for k, time in enumerate(times):
        exact = solution(x[1:-1], np.full(n - 1, time))
        assert np.abs(run.y[:, k] - exact).max() < 2e-10


def test_burgers_reference_starts_exactly_and_needs_little_memory() -> None:
    problem = Burgers()
    x, t = space_time(np.linspace(0.0, 1.0, 101), 81)
    points = np.stack([x, t], 1)
    tracemalloc.start()
    values = problem.reference(points)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    start = t == 0.0
    assert np.abs(values[start] + np.sin(math.pi * x[start])).max() < 1e-15
    values[:] = 0.0  # what a caller does with its copy does not come back
    assert np.abs(problem.reference(points)).max() > 0.9


@pytest.mark.parametrize(
    ("initial", "error", "words"),
    [
        ("cos(pi*x)", ProblemError, "zero at both"),
        ("abs(x) - 1", ProblemError, "not smooth"),
        ("log(x)", ProblemError, "not smooth"),
        ("sin(pi*x)*t", ExpressionError, "'t'"),
        ("__import__('os')", ExpressionError, "forbidden"),
    ],
)
def test_burgers_refuses_initial_values(
    initial: str, error: type[KanpinnError], words: str
) -> None:
    with pytest.raises(error, match=words):
        Burgers(initial=initial)


# --- regression of a function ---------------------------------------------------------------------
def small_regression(**changes: Any) -> Regression:
    sizes = {"points": 400, "validation_points": 100, "test_points": 300}
    return Regression(**{**sizes, **changes})


def predicted_by(
    function: Callable[[Floats], Floats],
) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.from_numpy(function(x.numpy()).reshape(len(x), -1))


def constant(values: torch.Tensor) -> Callable[[tuple[int, ...] | str], torch.Tensor]:
    return lambda _: values


def data_residuals(problem: DataFit, values: Floats, validation: bool = False) -> Floats:
    """Residual rows of given field values ``(n, m)`` at the training or validation rows."""
    blocks = problem.held_out_blocks() if validation else problem.blocks()
    (block,) = blocks
    (at,) = sample(block.region, 1, "sobol", stream(0))
    fields = {
        name: Field(name, constant(torch.tensor(values[:, k])), problem.coordinates, None)
        for k, name in enumerate(problem.fields)
    }
    rows = block.residual(Site(at, fields, problem.coordinates))
    assert block.equation
    return np.asarray(rows.numpy())


def test_regression_default_is_equation_26() -> None:
    problem = Regression()
    assert [len(rows.inputs) for rows in (problem.training, problem.test)] == [20_000, 20_000]
    x, y = problem.training.inputs.T
    assert min(x.min(), y.min()) >= 1e-4 and max(x.max(), y.max()) <= 0.9999
    assert abs(x.mean() - 0.5) < 0.01 and abs(np.corrcoef(x, y)[0, 1]) < 0.03
    c, s = np.cos(0.175), np.sin(0.175)
    p, q = c * x - s * y, s * x + c * y
    expected = (
        np.cos(4 * np.pi * p)
        + np.sin(np.pi * q)
        + np.sin(2 * np.pi * q)
        + np.abs(np.sin(3 * np.pi * q**2))
    )
    assert np.abs(problem.training.outputs[:, 0] - expected).max() < 1e-13
    plain = "cos(4*pi*x) + sin(pi*y) + sin(2*pi*y) + abs(sin(3*pi*y**2))"
    turned = small_regression(expression=plain, rotation=0.175)
    assert np.abs(turned.reference(problem.training.inputs) - expected).max() < 1e-13
    scaling = problem.scales["u"]
    scaled = (problem.training.outputs - scaling.shift) / scaling.scale
    assert (scaled.min(), scaled.max()) == pytest.approx((0.0, 1.0), abs=1e-14)


def test_regression_rows_are_separate_and_from_the_seed() -> None:
    problem, again, other = small_regression(), small_regression(), small_regression(seed=1)
    parts = [problem.training, problem.validation, problem.test]
    every = np.concatenate([rows.inputs for rows in parts])
    assert len(np.unique(every, axis=0)) == 400 + 100 + 300
    assert np.array_equal(problem.training.inputs, again.training.inputs)
    assert not np.isin(problem.training.inputs, other.training.inputs).any()


def test_regression_residual_and_metrics_are_scaled() -> None:
    problem = small_regression(expression="7 + 50*x*y")
    scale = problem.scales["u"].scale
    assert scale == pytest.approx(50.0, rel=0.1)
    assert np.abs(data_residuals(problem, problem.training.outputs)).max() < 1e-15
    off = data_residuals(problem, problem.validation.outputs + 0.1 * scale, validation=True)
    assert off == pytest.approx(0.1)
    assert problem.metrics(predicted_by(problem.reference))["test_mse"] < 1e-30
    found = problem.metrics(predicted_by(lambda x: problem.reference(x) + 0.1 * scale))
    assert found == pytest.approx({"test_mse": 0.01, "test_rmse": 0.1})
    unscaled = small_regression(expression="7 + 50*x*y", scale_outputs=False)
    found = unscaled.metrics(predicted_by(lambda x: unscaled.reference(x) + 3.0))
    assert found["test_rmse"] == pytest.approx(3.0)


def test_regression_noise_is_a_share_of_the_range() -> None:
    problem = small_regression(points=20_000, noise=0.02)
    noise = problem.training.outputs[:, 0] - problem.reference(problem.training.inputs)
    assert noise.std() / np.ptp(problem.reference(problem.training.inputs)) == pytest.approx(
        0.02, rel=0.03
    )
    assert np.array_equal(problem.test.outputs[:, 0], problem.reference(problem.test.inputs))


def test_regression_in_one_and_in_many_variables() -> None:
    one = small_regression(expression="exp(s)", variables=("s",), lower=(-1.0,), upper=(2.0,))
    assert one.reference(np.array([[0.0], [1.0]])) == pytest.approx([1.0, math.e])
    names = tuple(f"v{k}" for k in range(20))
    many = small_regression(
        expression="v0*v19 + v7", variables=names, lower=(0.0,) * 20, upper=(1.0,) * 20
    )
    assert many.evaluation_points().shape == (40_000, 20)  # and not 2^20


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"expression": "log(x - 0.5)"}, ProblemError, "finite values everywhere"),
        ({"expression": "3.0"}, ProblemError, "constant"),
        ({"expression": "open('x')"}, ExpressionError, "forbidden"),
        ({"expression": "x + z"}, ExpressionError, "'z'"),
        ({"variables": ("x",)}, ProblemError, "names"),
        (
            {"expression": "x", "variables": ("x",), "lower": (0.0,), "upper": (1.0,)}
            | {"rotation": 0.1},
            ProblemError,
            "two variables",
        ),
    ],
)
def test_regression_refuses(changes: dict[str, Any], error: type[KanpinnError], words: str) -> None:
    with pytest.raises(error, match=words):
        small_regression(**changes)


# --- the user's tables ----------------------------------------------------------------------------
def write_table(path: Path, rows: int = 80) -> tuple[Floats, Floats]:
    """Two inputs and two outputs in the format of the file's ending."""
    generator = np.random.default_rng(5)
    inputs = generator.random((rows, 2)) * [10.0, 200.0] + [0.0, 1000.0]
    outputs = np.stack([inputs.sum(1), 1e-6 * inputs.prod(1)], 1)
    if path.suffix == ".csv":
        lines = [",".join(repr(float(v)) for v in row) for row in np.hstack([inputs, outputs])]
        path.write_text("flow [l/s],2nd,a/b,a b\n" + "\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".npz":
        np.savez(path, inputs=inputs, outputs=outputs)
    else:
        with h5py.File(path, "w") as file:
            file["run/inputs"], file["run/outputs"] = inputs, outputs
    return inputs, outputs


@pytest.mark.parametrize("name", ["table.csv", "table.npz", "table.h5"])
def test_tabular_reads_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    inputs, outputs = write_table(path)
    chosen: dict[str, Any] = {"input_columns": ("inputs",), "output_columns": ("outputs",)}
    if name.endswith(".csv"):
        chosen = {"output_columns": ("a/b", "a b")}
    elif name.endswith(".h5"):
        chosen["group"] = "run"
    problem = Tabular(file=path, **chosen)
    if name.endswith(".csv"):
        assert problem.domain.names == ("flow_l_s", "column_2nd")
        assert problem.fields == ("a_b", "a_b_2")
        assert problem.columns["a_b_2"] == "a b" and problem.columns["flow_l_s"] == "flow [l/s]"
    assert np.array_equal(problem.domain.lower, inputs.min(0))
    assert np.array_equal(problem.domain.upper, inputs.max(0))
    parts = (problem.training, problem.validation, problem.test)
    assert [len(rows.inputs) for rows in parts] == [56, 12, 12]
    every = np.concatenate([np.hstack([rows.inputs, rows.outputs]) for rows in parts])
    expected = np.hstack([inputs, outputs])
    order = np.argsort(every[:, 0]), np.argsort(expected[:, 0])
    assert np.array_equal(every[order[0]], expected[order[1]])
    assert problem.reference(inputs) is None
    assert np.array_equal(problem.evaluation_points().numpy(), problem.test.inputs)


def test_tabular_columns_named_like_what_points_have(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    rows = np.random.default_rng(0).uniform(size=(30, 3))
    np.savetxt(path, rows, "%.17g", ",", header="side,normal,data", comments="")
    problem = Tabular(file=path)
    problem.check()
    assert problem.domain.names == ("column_side", "column_normal")
    assert problem.fields == ("column_data",)


@pytest.mark.parametrize("scaling", ["minmax", "standard"])
def test_tabular_scales_by_training_rows(tmp_path: Path, scaling: Any) -> None:
    write_table(tmp_path / "t.csv")
    problem = Tabular(file=tmp_path / "t.csv", output_columns=("a/b", "a b"), scaling=scaling)
    shift = np.array([problem.scales[name].shift for name in problem.fields])
    scale = np.array([problem.scales[name].scale for name in problem.fields])
    scaled = (problem.training.outputs - shift) / scale
    if scaling == "minmax":
        assert np.allclose([scaled.min(0), scaled.max(0)], [[0, 0], [1, 1]], atol=1e-12)
    else:
        assert np.allclose([scaled.mean(0), scaled.std(0)], [[0, 0], [1, 1]], atol=1e-12)
    off = data_residuals(problem, problem.training.outputs + scale * [0.1, 0.3])
    assert off == pytest.approx(np.tile([0.1, 0.3], (56, 1)))
    found = problem.metrics(lambda _: torch.tensor(problem.test.outputs + scale * [0.1, 0.3]))
    assert found == pytest.approx(
        {"test_mse": 0.05, "test_rmse": math.sqrt(0.05)}
        | {"test_rmse_a_b": 0.1 * scale[0], "test_rmse_a_b_2": 0.3 * scale[1]}
    )


def test_tabular_network_predicts_in_the_users_units(
    tmp_path: Path, generator: torch.Generator
) -> None:
    write_table(tmp_path / "t.csv")
    problem = Tabular(file=tmp_path / "t.csv", output_columns=("a/b", "a b"))
    part = build_system(problem, KANOptions(width=3), generator).parts["main"]
    with torch.no_grad():
        part.network.layers[-1].coefficients.zero_()  # type: ignore[operator]
    flat = part(torch.tensor(problem.test.inputs)).detach().numpy()
    assert np.allclose(flat, problem.training.outputs.min(0), rtol=1e-12)


GOOD_ROWS = "".join(f"{k},{k * k}\n" for k in range(1, 30))


@pytest.mark.parametrize(
    ("text", "changes", "words"),
    [
        ("a,b\n1,\n" + GOOD_ROWS, {}, "missing"),
        ("a,b\n1,n/a\n" + GOOD_ROWS, {}, "missing"),
        ("a,b\n1,red\n" + GOOD_ROWS, {}, "'red'"),
        ("a,b\n1,2\n", {}, "1 row"),
        ("a,b\n" + "".join(f"{k},5\n" for k in range(30)), {}, "'b' is constant"),
        ("a,b\n" + GOOD_ROWS, {"delimiter": ";"}, "only one column"),
        ("a,b\n" + GOOD_ROWS, {"delimiter": "x"}, "delimiter"),
        ("a,b\n" + GOOD_ROWS, {"input_columns": ("c",)}, "no column 'c'"),
        ("a,b\n" + GOOD_ROWS, {"fractions": (0.5, 0.2, 0.2)}, "sum to"),
        ("a,b\n1,1\n2,2\n3,3\n", {}, "rows leave none"),
        ("a,b\n-1e308,1\n1e308,2\n" + GOOD_ROWS, {}, "finite ends"),
        ("a,b\n" + "".join(f"{k},{int(k == 4)}\n" for k in range(12)), {}, "constant"),
        ("", {}, "empty"),
        ("\x00\x01", {}, "binary"),
        (None, {}, "does not exist"),
    ],
)
def test_tabular_names_the_file_of_bad_data(
    tmp_path: Path, text: str | None, changes: dict[str, Any], words: str
) -> None:
    path = tmp_path / "bad.csv"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=words) as caught:
        for seed in range(20):  # of the split: one of them leaves row 4 out of training
            Tabular(file=path, **{"seed": seed, **changes})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- what is shipped ------------------------------------------------------------------------------
def test_shipped_table_is_what_its_script_makes() -> None:
    spec = importlib.util.spec_from_file_location("make", CONFIGS / "data" / "make_pipe_flow.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    problem = Tabular(file=CONFIGS / "data" / "pipe_flow.csv")
    assert problem.fields == ("pressure_drop_Pa_m",)
    parts = (problem.training, problem.validation, problem.test)
    every = np.concatenate([np.hstack([rows.inputs, rows.outputs]) for rows in parts])
    made = script.make_table()
    assert every.shape == made.shape == (500, 4)
    read, expected = (table[np.lexsort(table.T)] for table in (every, made))
    assert np.allclose(read, expected, rtol=1e-9)
    clean = script.pressure_drop(made[:, :3])
    assert np.std(made[:, 3] / clean - 1) == pytest.approx(0.01, rel=0.1)

"""Figures of runs: the arrays gathered from problems and networks, and the files written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from figure_checks import check, main_axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray
from torch import Tensor

from kanpinn.conditions import Condition, Dirichlet
from kanpinn.geometry import Box, Domain, FixedPoints, Points, Region
from kanpinn.jets import JetSpec
from kanpinn.models import (
    Abs,
    Asinh,
    Coordinate,
    Formula,
    Inputs,
    KANOptions,
    KnotLayer,
    MLPOptions,
    MultichannelOptions,
    Periodic,
    Step,
)
from kanpinn.plotting import (
    field_sections,
    gather,
    plot_run,
    univariate_layers,
)
from kanpinn.plotting.learned_functions import _channels
from kanpinn.problem import Problem, build_system
from kanpinn.residuals import ResidualBlock, Site, System
from kanpinn.sampling import SamplingOptions
from kanpinn.solution import Solution
from kanpinn.training import MultilevelRun, RunOptions, TrainingOptions
from kanpinn.training.phase_options import AdamPhase, LBFGSPhase

Floats = NDArray[np.float64]


# --- from problems and systems -------------------------------------------------------------------
class Membrane(Problem):
    """A nonlinear equation, so that the residual is more than linear in the fields."""

    domain: Domain = Box((0.0, -1.0), (2.0, 1.0))
    conditions: Sequence[Condition] = (Dirichlet(value="x*y"),)

    def residual(self, p: Site) -> Tensor:
        row: Tensor = p.u.laplacian + p.u * p.u.x - torch.sin(p.x)
        return row

    def reference(self, x: Floats) -> Floats:
        return np.asarray(x[:, 0] * x[:, 1])

    def evaluation_points(self) -> Tensor:
        return self.domain.evaluation_grid((7,) * self.domain.dimension)[0]


class Flow(Membrane):
    """Two networks whose order differs from the fields', two equations, in space and time."""

    domain = Box((0.0, 0.0, 0.0), (1.0, 2.0, 3.0), names=("x", "y", "t"), time="t")
    conditions = ()
    fields = ("u", "v")
    networks = {"second": ("v",), "first": ("u",)}  # noqa: RUF012 - read only

    def residual(self, p: Site) -> Tensor:
        return torch.stack([p.u.t - p.v.x, p.v.t + p.u.y * p.u], -1)

    def reference(self, x: Floats) -> Floats:
        return np.stack([x[:, 0] + x[:, 2], 10 + x[:, 1]], -1)


def make_system(problem: Problem, options: Any = None) -> System:
    options = options or KANOptions(width=3, order=5, intervals=4)
    return build_system(problem, options, torch.Generator().manual_seed(4))


def predictor(system: System, fields: Sequence[str]) -> Any:
    order = [system.field_names.index(name) for name in fields]

    def predict(x: Floats) -> Floats:
        with torch.no_grad():
            parts = [part(torch.from_numpy(x)) for part in system.parts.values()]
        return torch.cat(parts, -1)[:, order].numpy()

    return predict


def test_sections_hold_solution_reference_and_residual_at_their_points() -> None:
    problem = Membrane()
    system = make_system(problem)
    predict = predictor(system, ("u",))
    (section,) = field_sections(predict, system, problem)
    assert list(section.axes) == ["x", "y"] and section.values["u"].shape == (201, 201)
    x, y = np.meshgrid(*section.axes.values(), indexing="ij")
    assert (x[0, 0], x[-1, 0], y[0, 0], y[0, -1]) == (0, 2, -1, 1)
    np.testing.assert_array_equal(section.reference["u"], x * y)
    points = np.stack([x.ravel(), y.ravel()], -1)
    np.testing.assert_array_equal(section.values["u"].ravel(), predict(points)[:, 0])
    # The residual against finite differences of fourth order, away from the ends.
    h, u = x[1, 0] - x[0, 0], section.values["u"]
    inner = slice(2, -2)
    weights = np.array([-1, 16, -30, 16, -1]) / (12 * h**2)
    second = sum(
        w * u[k : 197 + k, inner] + w * u[inner, k : 197 + k] for k, w in enumerate(weights)
    )
    first = (u[:-4] - 8 * u[1:-3] + 8 * u[3:-1] - u[4:])[:, inner] / (12 * h)
    expected = second + u[inner, inner] * first - np.sin(x[inner, inner])
    found = section.residuals["equation"][inner, inner]
    scale = np.abs(expected).max()
    assert np.median(np.abs(found - expected)) < 1e-5 * scale
    assert np.abs(found - expected).max() < 5e-3 * scale  # order 5 has kinks in u''''


def test_without_a_problem_the_solution_alone_is_shown() -> None:
    problem = Membrane()
    system = make_system(problem)
    (section,) = field_sections(predictor(system, ("u",)), system, None)
    assert not section.reference and not section.residuals and section.time is None
    assert section.axes["x"][[0, -1]].tolist() == [0.0, 2.0]
    flow = make_system(Flow())
    sections = field_sections(predictor(flow, ("u", "v")), flow, None, ("u", "v"))
    assert [section.time for section in sections] == ["t"] * 3


def test_fields_keep_their_names_whatever_the_order_of_the_networks() -> None:
    problem = Flow()
    system = make_system(problem)
    assert system.field_names == ("v", "u")
    sections = field_sections(predictor(system, ("u", "v")), system, problem, ("u", "v"))
    assert [section.fixed for section in sections] == [{"t": 0.0}, {"t": 1.5}, {"t": 3.0}]
    x, y = np.meshgrid(*sections[1].axes.values(), indexing="ij")
    np.testing.assert_allclose(sections[1].reference["u"], x + 1.5)
    np.testing.assert_allclose(sections[1].reference["v"], 10 + y)
    point = torch.tensor([[x[7, 9], y[7, 9], 1.5]])
    for name, part in (("u", "first"), ("v", "second")):
        expected = float(system.parts[part](point).detach())
        assert sections[1].values[name][7, 9] == pytest.approx(expected, abs=1e-14)
    assert list(sections[0].residuals) == ["equation 1", "equation 2"]


def test_interfaces_are_approached_from_their_sides() -> None:
    class Jumping(Membrane):
        domain = Box((-1.0, -1.0), (1.0, 1.0), interfaces={"x": (0.0,)})
        conditions = ()

        def residual(self, p: Site) -> Tensor:
            row: Tensor = p.u.laplacian * 0 + torch.sign(p.x)
            return row

    problem = Jumping()
    system = make_system(problem)
    (section,) = field_sections(predictor(system, ("u",)), system, problem)
    assert set(np.unique(section.residuals["equation"])) == {-1.0, 1.0}  # never 0


class Disk(Domain):
    """The unit disk, as far as drawing needs it."""

    names, lower, upper, time = ("x", "y"), (-1.0, -1.0), (1.0, 1.0), None

    def contains(self, x: Tensor, tolerance: float | None = None) -> Tensor:
        return x.square().sum(-1) <= 1

    def outside(self, site: Sequence[float]) -> str:
        return "outside the disk"

    def region_names(self) -> tuple[str, ...]:
        return ("interior",)

    def region(self, name: str) -> Region:
        square = Box(self.lower, self.upper).interior()
        square.accepts = lambda unit: self.contains(2 * unit - 1)  # type: ignore[method-assign]
        return square


def test_a_domain_that_is_no_box_is_shown_where_it_is() -> None:
    class OnDisk(Membrane):
        domain = Disk()
        conditions = ()

    problem = OnDisk()
    system = make_system(problem)
    (section,) = field_sections(predictor(system, ("u",)), system, problem)
    x, y = np.meshgrid(*section.axes.values(), indexing="ij")
    within = x**2 + y**2 <= 1
    assert section.inside is not None
    np.testing.assert_array_equal(section.inside, within)
    for array in (section.values["u"], section.reference["u"], section.residuals["equation"]):
        np.testing.assert_array_equal(np.isfinite(array), within)


def test_planes_are_moved_where_nothing_happens_on_the_mid_planes() -> None:
    class Body(Problem):
        domain = Box((-1.0,) * 3, (1.0,) * 3)

        def residual(self, p: Site) -> Tensor:
            return p.u.laplacian

        def reference(self, x: Floats) -> Floats:
            return np.asarray(np.sin(np.pi * x).prod(-1))

    class Lump(Body):
        def reference(self, x: Floats) -> Floats:
            return np.asarray(np.exp(-(x**2).sum(-1)))

    system = make_system(Body())
    for problem, at in ((Body(), -0.25), (Lump(), 0.0)):
        sections = field_sections(predictor(system, ("u",)), system, problem)
        assert [tuple(s.axes) for s in sections] == [("x", "y"), ("x", "z"), ("y", "z")]
        assert [s.fixed for s in sections] == [{"z": at}, {"y": at}, {"x": at}]
    system = make_system(of_dimension(5))
    sections = field_sections(predictor(system, ("u",)), system, None)
    assert [tuple(s.axes) for s in sections] == [("x1", "x2"), ("x1", "x3"), ("x1", "x4")]


def of_dimension(dimension: int) -> Problem:
    problem = Membrane()
    problem.domain, problem.conditions = Box((0.0,) * dimension, (1.0,) * dimension), ()
    return problem


@pytest.mark.parametrize(
    "options",
    [
        KANOptions(width=3, order=4, intervals=(3, 5), squash="none"),
        KANOptions(width=2, order=6, hidden_layers=2, intervals=4, base="silu"),
        MultichannelOptions(width=3, order=4, intervals=4, knots="free"),
        KANOptions(
            widths=(2, 2, 1),
            order=2,
            breakpoints=(((-1, 0.3, 1), (-1, -0.2, 0, 1)), ((-1, 1), (-1, 0, 0.5, 1))),
        ),
    ],
    ids=["order4", "base", "multichannel", "ragged"],
)
def test_univariate_functions_sum_to_the_layers_outputs(options: Any) -> None:
    """The functions, interpolated at a layer's inputs, against the layer itself."""
    part = make_system(Membrane(), options).parts["main"]
    drawn = univariate_layers(part)
    layers = [layer for layer in part.network.layers if isinstance(layer, KnotLayer)]
    assert len(drawn) == len(layers)
    spec = JetSpec.value_only(1)
    for number, (functions, layer) in enumerate(zip(drawn, layers, strict=True)):
        assert (len(functions.channels), len(functions.outputs)) == (
            layer.in_width,
            layer.out_width,
        )
        # Inputs whose squashed and scaled values are among the points that are drawn.
        picks = [
            channel.x[np.linspace(5, len(channel.x) - 6, 7).astype(int)]
            for channel in functions.channels
        ]
        total = np.zeros((layer.out_width, 7))
        for channel, pick in zip(functions.channels, picks, strict=True):
            total += channel.values[:, np.searchsorted(channel.x, pick)]
            at = np.searchsorted(channel.x, channel.knots)
            np.testing.assert_allclose(channel.x[at], channel.knots, atol=1e-14)
            np.testing.assert_allclose(channel.values[:, at], channel.at_knots, atol=1e-13)
        s = torch.from_numpy(np.stack(picks, -1))
        if number == 0:  # drawn over the coordinates [0, 2] and [-1, 1]
            s = torch.stack([s[:, 0] - 1, s[:, 1]], -1)
        z = torch.atanh(s) if layer.settings.squash else s
        expected = layer(z[None], spec)[0].detach().numpy()
        np.testing.assert_allclose(total.T, expected, atol=1e-11)


def test_visited_parts_are_those_of_the_inputs() -> None:
    part = make_system(Membrane()).parts["main"]
    first, second = univariate_layers(part)
    assert [channel.visited for channel in first.channels] == [(0, 2), (-1, 1)]
    assert [channel.label for channel in first.channels] == ["$x$", "$y$"]
    x = torch.rand(2000, 2, dtype=torch.float64) * 2 + torch.tensor([0.0, -1.0])
    inputs = part.inputs(part.inputs.approach(part_jet(x))).data
    s = torch.tanh(part.network.layers[0](inputs, JetSpec.value_only(2)))[0].detach().numpy()
    for p, channel in enumerate(second.channels):
        assert channel.visited is not None
        low, high = channel.visited
        assert low - 1e-3 <= s[:, p].min() <= low + 0.1
        assert high - 0.1 <= s[:, p].max() <= high + 1e-3
    assert second.outputs == ("$u$",) and second.channels[0].label.startswith(r"$\tanh\,z")
    assert univariate_layers(make_system(Membrane(), MLPOptions()).parts["main"]) == []


def part_jet(x: Tensor) -> Any:
    from kanpinn.jets import Jet

    return Jet.coordinates(x, JetSpec.value_only(x.shape[-1]))


def test_input_maps_are_drawn_over_what_they_measure() -> None:
    maps = (
        Coordinate(of="x"),
        Abs(of="x", at=-0.5),
        Step(of="x", at=0.75),
        Asinh(of="x", scale=0.1),
        Periodic(of="t", harmonics=2),
        Formula(formula="x**2 + t", range=(0.0, 5.0)),
    )
    inputs = Inputs(("x", "t"), ((-1.0, 2.0), (0.0, 1.0)), maps)
    assert [(label, low, round(high, 6)) for label, low, high in _channels(inputs)] == [
        ("$x$", -1.0, 2.0),
        ("|$x$ + 0.5|", 0.0, 2.5),
        ("sign($x$ \N{MINUS SIGN} 0.75)", -1.0, 1.0),
        ("asinh($x$/0.1)", -np.arcsinh(10.0), round(np.arcsinh(20.0), 6)),
        *((f"{wave}({k}ω $t$)", -1.0, 1.0) for k in ("", "2") for wave in ("cos", "sin")),
        ("x**2 + t", 0.0, 5.0),
    ]
    x = torch.tensor([[0.7, 0.2]], dtype=torch.float64)
    unit = inputs(inputs.approach(part_jet(x))).data[0, 0].tolist()
    ranges = [(low, high) for _, low, high in _channels(inputs)]
    values = [(a + b) / 2 + (b - a) / 2 * z for (a, b), z in zip(ranges, unit, strict=True)]
    angle = 2 * np.pi * 0.2
    waves = [np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)]
    np.testing.assert_allclose(values, [0.7, 1.2, -1.0, np.arcsinh(7.0), *waves, 0.69], atol=1e-12)


# --- whole runs ----------------------------------------------------------------------------------
def solved(problem: Problem, model: Any = None, levels: int = 2) -> Solution:
    training = TrainingOptions(
        levels=levels, phases=(AdamPhase(steps=2), LBFGSPhase(steps=2)), log_every=1
    )
    sampling = SamplingOptions(interior=32, boundary=16, initial=8, held_out=16)
    model = model or KANOptions(width=3, order=5, intervals=2)
    state = MultilevelRun(problem, RunOptions(model, training, sampling)).run()
    return Solution(state, problem={"fields": list(problem.fields)})


def not_blank(path: Path) -> bool:
    pixels = imread(path)[..., :3]
    return min(pixels.shape[:2]) > 200 and bool((pixels.min(-1) < 0.9).mean() > 0.01)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarser figures, for speed."""
    monkeypatch.setattr(gather, "PLANE_POINTS", 41)


@pytest.mark.usefixtures("small")
def test_all_figures_of_a_run(tmp_path: Path) -> None:
    problem = Membrane()
    solution = solved(problem)
    paths = plot_run(solution, problem, tmp_path / "figures")
    names = ["fields", "convergence", "univariate_layer1", "univariate_layer2"]
    assert [path.name for path in paths] == [f"{name}.png" for name in names]
    assert all(not_blank(path) for path in paths)
    assert sum(path.stat().st_size for path in paths) < 2e6
    state = replace(solution._run.state, history=[])
    lone = plot_run(Solution(state), None, tmp_path / "alone")
    assert [path.stem for path in lone] == ["fields", "univariate_layer1", "univariate_layer2"]
    wide, narrow = (
        imread(folder / "fields.png").shape for folder in (paths[0].parent, lone[0].parent)
    )
    assert narrow[1] < 0.7 * wide[1]  # one panel instead of four


@pytest.mark.usefixtures("small")
def test_the_residual_of_each_equation_stands_beside_one_field(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: dict[str, list[str]] = {}

    def keep(figure: Figure, folder: Path, name: str, fmt: str) -> Path:
        drawn[name] = [ax.get_title() for ax in main_axes(check(figure)) if ax.get_title()]
        return folder / name

    monkeypatch.setattr("kanpinn.plotting.run.save_figure", keep)
    problem = Flow()
    plot_run(solved(problem, MLPOptions(width=4), levels=1), problem, tmp_path)
    assert list(drawn) == ["fields_u", "fields_v", "convergence"]
    for number, name in enumerate("uv", 1):
        shown = [f"solution ${name}$", f"reference ${name}$", f"absolute error of ${name}$"]
        assert drawn[f"fields_{name}"] == [*shown, f"absolute residual: equation {number}"]


@pytest.mark.usefixtures("small")
def test_figures_over_space_and_time_as_pdf(tmp_path: Path) -> None:
    class Heat(Membrane):
        domain = Box((0.0, 0.0), (1.0, 1.0), names=("x", "t"), time="t")
        conditions = ()

        def residual(self, p: Site) -> Tensor:
            row: Tensor = p.u.t - p.u.xx
            return row

    problem = Heat()
    paths = plot_run(solved(problem, MLPOptions(width=4), 1), problem, tmp_path, "pdf")
    assert [path.name for path in paths][:2] == ["fields.pdf", "snapshots.pdf"]
    assert all(path.read_bytes().startswith(b"%PDF") for path in paths)


class Measured(Problem):
    """Data to fit in ``dimension`` coordinates, with held-out rows."""

    def __init__(self, dimension: int) -> None:
        names = tuple("abcd"[:dimension])
        self.domain = Box((0.0,) * dimension, (1.0,) * dimension, names=names)

    def rows(self, seed: int) -> FixedPoints:
        x = torch.rand(40, self.domain.dimension, generator=torch.Generator().manual_seed(seed))
        x = x.double()
        return FixedPoints(Points(x, data={"u": self.function(x)}))

    def evaluation_points(self) -> Tensor:
        return self.domain.evaluation_grid((5,) * self.domain.dimension)[0]

    def function(self, x: Tensor) -> Tensor:
        return torch.sin(3 * x).sum(-1)

    def residual(self, p: Site) -> Tensor:
        row: Tensor = p.u - p.data["u"]
        return row

    def blocks(self) -> tuple[ResidualBlock, ...]:
        return (ResidualBlock("data", self.rows(0), self.residual, equation=True),)

    def held_out_blocks(self) -> tuple[ResidualBlock, ...]:
        return (ResidualBlock("data", self.rows(1), self.residual, equation=True),)


class Function(Measured):
    """The same, with the function known."""

    def reference(self, x: Floats) -> Floats:
        return self.function(torch.from_numpy(x)).numpy()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("kind", "dimension"), [(Function, 2), (Measured, 1), (Measured, 4)])
def test_figures_of_a_regression(kind: type[Measured], dimension: int, tmp_path: Path) -> None:
    problem = kind(dimension)
    solution = solved(problem, levels=1)
    paths = plot_run(solution, problem, tmp_path)
    stems = [path.stem for path in paths]
    assert stems[:2] == (["fields", "parity"] if dimension < 4 else ["parity", "convergence"])
    assert all(not_blank(path) for path in paths)
    data = gather.rows_of_data(problem.held_out_blocks(), solution, ("u",))
    x = problem.rows(1).points.x
    np.testing.assert_array_equal(data["u"].x, x.numpy())
    np.testing.assert_array_equal(data["u"].measured, problem.function(x).numpy())
    np.testing.assert_array_equal(data["u"].predicted, solution(x).numpy()[:, 0])
    (section, *_) = field_sections(solution, solution.model, problem)
    assert not section.residuals  # the residual is the error
    assert gather.is_regression(problem, solution.model)
    assert not gather.is_regression(Membrane(), make_system(Membrane()))

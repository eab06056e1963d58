"""Figures of plain arrays: what they show, where, with which labels."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from figure_checks import check, images, main_axes, texts, xdata, ydata
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, to_hex
from numpy.typing import NDArray

from kanpinn.errors import ConfigError, RunFolderError
from kanpinn.plotting import (
    ChannelFunctions,
    FieldSection,
    LayerFunctions,
    plot_convergence,
    plot_fields,
    plot_parity,
    plot_snapshots,
    plot_univariate,
    save_figure,
    style,
)

Floats = NDArray[np.float64]
LINE = np.linspace(-1.0, 1.0, 41)
X, Y = np.meshgrid(LINE, np.linspace(0.0, 1.0, 31), indexing="ij")
PLANE = {"x": LINE, "y": np.linspace(0.0, 1.0, 31)}


def two_fields(dimension: int = 2) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Values and reference of two fields, on the plane or the line."""
    x, y = (X, Y) if dimension == 2 else (LINE, 0.3)
    exact = {"u": np.sin(np.pi * x) * (1 + y), "pressure": 2 + x * y}
    values = {name: z + 1e-4 * np.cos(3 * x) for name, z in exact.items()}
    return values, exact


# --- fields --------------------------------------------------------------------------------------
def test_one_coordinate_shows_curves_error_and_residual() -> None:
    u = np.sin(np.pi * LINE)
    error = 1e-5 * (1 - LINE**2)
    section = FieldSection({"x": LINE}, {"u": u + error}, {"u": u}, {"equation": LINE * 1e-3})
    figure = check(plot_fields(section))
    top, middle, bottom = figure.axes
    np.testing.assert_array_equal(ydata(top.lines[0]), u + error)
    np.testing.assert_array_equal(ydata(top.lines[1]), u)
    np.testing.assert_allclose(ydata(middle.lines[0])[1:-1], error[1:-1], atol=1e-15)
    np.testing.assert_allclose(xdata(bottom.lines[0]), LINE)
    assert [ax.get_yscale() for ax in figure.axes] == ["linear", "log", "log"]
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "$u$",
        "absolute error of $u$",
        "absolute residual",
    ]
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "", "$x$"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["solution", "reference"]


def test_data_are_dots_under_the_curve() -> None:
    points, values = np.array([0.1, -0.4]), np.array([1.0, 2.0])
    u = np.sin(np.pi * LINE)
    figure = check(plot_fields(FieldSection({"x": LINE}, {"u": u}, data={"u": (points, values)})))
    dots = figure.axes[0].lines[1]
    assert (dots.get_marker(), dots.get_linestyle()) == ("o", "None")
    np.testing.assert_array_equal([xdata(dots), ydata(dots)], [points, values])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["solution", "data"]


@pytest.mark.parametrize("dimension", [1, 2])
def test_what_is_missing_has_no_panel(dimension: int) -> None:
    axes = PLANE if dimension == 2 else {"x": LINE}
    values, exact = two_fields(dimension)
    values, exact = {"u": values["u"]}, {"u": exact["u"]}
    full = FieldSection(axes, values, exact, {"equation": values["u"]})
    panels = 4 if dimension == 2 else 3
    assert len(main_axes(check(plot_fields(full)))) == panels
    assert len(main_axes(check(plot_fields(replace(full, residuals={}))))) == panels - 1
    lone = check(plot_fields(replace(full, residuals={}, reference={})))
    assert len(main_axes(lone)) == 1
    assert not any("error" in text or "reference" in text for text in texts(lone))


def test_nothing_to_show_is_refused() -> None:
    with pytest.raises(ValueError, match="neither fields nor residuals"):
        plot_fields(FieldSection(PLANE, {}))


def test_images_have_the_right_orientation_and_shape() -> None:
    section = FieldSection(PLANE, {"u": X + 10 * Y}, units={"x": "m"})
    figure = check(plot_fields(section))
    (ax,) = main_axes(figure)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$x$ (m)", "$y$")
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 1), (0, 1))
    assert ax.get_aspect() == 1.0
    box = ax.get_window_extent()
    assert box.height / box.width == pytest.approx(0.5, rel=0.02)
    (image,) = images(figure)
    shown = np.asarray(image.get_array()).reshape(31, 41)  # rows are vertical
    corners: Floats = np.asarray(image.get_coordinates(), dtype=np.float64)
    centres = 0.25 * (corners[1:, 1:] + corners[:-1, 1:] + corners[1:, :-1] + corners[:-1, :-1])
    np.testing.assert_allclose(shown, centres[..., 0] + 10 * centres[..., 1], atol=1e-12)


def test_time_is_horizontal_and_space_vertical() -> None:
    section = FieldSection({"x": LINE, "t": PLANE["y"]}, {"u": X + 10 * Y}, time="t")
    figure = check(plot_fields(section))
    (ax,) = main_axes(figure)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$t$", "$x$")
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 1), (-1, 1))
    assert ax.get_aspect() == "auto"
    shown = np.asarray(images(figure)[0].get_array()).reshape(41, 31)
    np.testing.assert_array_equal(shown, X + 10 * Y)


def test_solution_and_reference_share_a_scale_and_magnitudes_are_logarithmic() -> None:
    values, exact = two_fields()
    section = FieldSection(
        PLANE, {"u": 1.5 * values["u"]}, {"u": exact["u"]}, {"equation": X * 1e-3 + 2e-3}
    )
    solution, reference, error, residual = images(check(plot_fields(section)))
    assert solution.get_clim() == reference.get_clim()
    low, high = solution.get_clim()
    assert low == -high and high >= np.abs(1.5 * values["u"]).max()  # symmetric for a signed field
    assert solution.get_cmap().name == style.SIGNED
    assert isinstance(error.norm, LogNorm) and isinstance(residual.norm, LogNorm)
    assert residual.get_clim()[1] == pytest.approx(3e-3)


def test_several_fields_have_a_row_each_and_residuals_beside_them() -> None:
    values, exact = two_fields()
    section = FieldSection(PLANE, values, exact, {"momentum": X, "mass": X + 2 * Y})
    figure = check(plot_fields(section))
    titles = [ax.get_title() for ax in main_axes(figure)]
    assert titles == [
        *("solution $u$", "reference $u$", "absolute error of $u$"),
        "absolute residual: momentum",
        *("solution pressure", "reference pressure", "absolute error of pressure"),
        "absolute residual: mass",
    ]
    rows = {round(ax.get_position().y0, 3) for ax in main_axes(figure)}
    assert len(rows) == 2
    curves = FieldSection({"x": LINE}, *two_fields(1), {"a": LINE, "b": LINE, "c": LINE})
    figure = check(plot_fields(curves))
    assert len(figure.axes) == 7  # two rows of three, and the third residual below
    alone = check(plot_fields(replace(section, values={}, reference={}), fields=[]))
    assert len(main_axes(alone)) == 2


def test_sections_have_rows_one_scale_and_say_where_they_lie() -> None:
    values, exact = two_fields()
    sections = [
        FieldSection(
            {first: LINE, second: PLANE["y"]},
            {"u": scale * values["u"]},
            {"u": exact["u"]},
            {"equation": X},
            {other: at},
        )
        for first, second, other, scale, at in (
            ("x", "y", "z", 1.0, 0.0),
            ("x", "z", "y", 2.0, -0.5),
            ("y", "z", "x", 3.0, 0.25),
        )
    ]
    figure = check(plot_fields(sections))
    panels = main_axes(figure)
    assert len(panels) == 12 and len(figure.axes) == 12 + 3  # a colour bar for each quantity
    assert [ax.get_ylabel().split("\n")[0] for ax in panels[::4]] == [
        "$z$ = 0",
        "$y$ = \N{MINUS SIGN}0.5",
        "$x$ = 0.25",
    ]
    assert [ax.get_title() for ax in panels[:4]] == [
        *("solution $u$", "reference $u$", "absolute error of $u$", "absolute residual"),
    ]
    assert len({image.get_clim() for image in images(figure)[::4]}) == 1
    assert images(figure)[0].get_clim()[1] >= 3 * np.abs(values["u"]).max()


def test_values_that_are_not_finite_are_counted_and_hatched() -> None:
    values, exact = two_fields()
    u = values["u"].copy()
    u[3:5, 4:6] = [[np.nan, np.inf], [-np.inf, np.nan]]
    section = FieldSection(
        PLANE, {"u": u}, {"u": exact["u"]}, {"equation": np.full_like(u, np.nan)}
    )
    figure = check(plot_fields(section))
    assert texts(figure).count(f"4 of {u.size} values not finite") == 2  # solution and error
    assert texts(figure).count("no finite value") == 1
    assert images(figure)[0].get_clim()[1] == pytest.approx(np.abs(exact["u"]).max(), rel=1e-3)
    curve = FieldSection({"x": LINE}, {"u": u[:, 4]}, {"u": exact["u"][:, 4]})
    assert any("not finite" in text for text in texts(check(plot_fields(curve))))
    nothing = FieldSection({"x": LINE}, {"u": np.full(41, np.nan)})
    FigureCanvasAgg(figure := plot_fields(nothing)).draw()
    assert "no finite value" in texts(figure)


def test_points_outside_the_domain_are_no_fault() -> None:
    inside = X**2 + Y**2 <= 1
    u = np.where(inside, X, np.nan)
    figure = check(plot_fields(FieldSection(PLANE, {"u": u}, inside=inside)))
    assert not any("finite" in text for text in texts(figure))
    u[20, 3] = np.nan
    figure = plot_fields(FieldSection(PLANE, {"u": u}, inside=inside))
    assert f"1 of {inside.sum()} values not finite" in texts(figure)


@pytest.mark.parametrize("axes", [{"x": LINE}, PLANE], ids=["line", "plane"])
@pytest.mark.parametrize("constant", [0.0, 3.0, -1e-30])
def test_constant_fields_without_error(axes: dict[str, Floats], constant: float) -> None:
    u = np.full(tuple(len(line) for line in axes.values()), constant)
    figure = plot_fields(FieldSection(axes, {"u": u}, {"u": u}, {"equation": 0 * u}))
    FigureCanvasAgg(figure).draw()
    assert texts(figure).count("zero everywhere") == 2


def test_snapshots_are_the_field_at_the_instants_written_above_them() -> None:
    t = np.linspace(0.0, 2.0, 31)
    field, exact = X * (1 + Y), X * (1.1 + Y)
    section = FieldSection({"x": LINE, "t": t}, {"u": field}, {"u": exact}, time="t")
    figure = check(plot_snapshots(section, 3))
    assert [ax.get_title() for ax in figure.axes] == ["$t$ = 0.6667", "$t$ = 1.333", "$t$ = 2"]
    for ax, k in zip(figure.axes, (10, 20, 30), strict=True):
        np.testing.assert_array_equal(ydata(ax.lines[0]), field[:, k])
        np.testing.assert_array_equal(ydata(ax.lines[1]), exact[:, k])
    with pytest.raises(ValueError, match="one coordinate and time"):
        plot_snapshots(FieldSection(PLANE, {"u": field}))


# --- scales and symbols --------------------------------------------------------------------------
def test_scales() -> None:
    zeros_and_more = np.concatenate([np.zeros(50), np.geomspace(1e-6, 1e-2, 101), [np.inf]])
    low, high = style.log_limits([zeros_and_more]) or (0, 0)
    assert high == 1e-2 and 1e-6 <= low <= 1e-5
    assert style.log_limits([np.full(10, 1e-30), np.ones(90)]) == (1e-8, 1.0)
    assert style.log_limits([np.zeros(3), np.array([-1.0, np.nan])]) is None
    assert style.log_limits([np.full(3, 2.0)]) == (0.2, 2.0)
    assert style.value_scale([np.array([-2.0, 1.0])]).norm(0.0) == 0.5
    one_signed = style.value_scale([np.array([1.0, 3.0])])
    assert (one_signed.norm(1.0), one_signed.norm(3.0)) == (0.0, 1.0)
    assert all(1 < z < 3 for z in one_signed.levels)


@pytest.mark.parametrize(("low", "high"), [(1e-9, 1.0), (2e-5, 9e-4), (3e-3, 4e-3), (1e-1, 1.0)])
def test_colour_bars_have_ticks_inside_and_apart(low: float, high: float) -> None:
    ticks = style.log_ticks(low, high)
    assert 1 <= len(ticks) <= 6 and all(low <= tick <= high for tick in ticks)
    if len(ticks) > 1:
        assert np.diff(np.log(ticks)).min() >= 0.09 * np.log(high / low)
    assert style.power_labels([1e-4, 2e-5]) == ["$10^{-4}$", r"$2 \times 10^{-5}$"]


def test_symbols() -> None:
    names = ["u", "x1", "u_2", "theta", "nu_t", "velocity", "price ($)", "x_pos", ""]
    expected = ["$u$", "$x_{1}$", "$u_{2}$", r"$\theta$", "nu_t", "velocity", r"price (\$)"]
    assert [style.symbol(name) for name in names] == [*expected, "x_pos", ""]


# --- convergence ---------------------------------------------------------------------------------
def history(**changes: Any) -> dict[str, Any]:
    """Two levels of an Adam and an L-BFGS phase each, as the training loop logs them."""
    phases = ["start", "adam", "adam", "lbfgs", "lbfgs", "start", "adam", "lbfgs", "end"]
    columns: dict[str, Any] = {
        "level": [0, 0, 0, 0, 0, 1, 1, 1, 1],
        "phase": phases,
        "step": [0, 10, 20, 30, 40, 40, 50, 60, 63],
        "wall_s": [0.1, 1.0, 2.0, 3.0, 4.0, 5.0, 6.5, 8.0, 9.0],
        "loss": [1.0, 0.5, 0.1, 1e-2, 1e-3, 1e-3, 1e-4, 1e-5, 1e-6],
        "heldout_residual": [3.0, 2.0, 1.0, 0.5, 0.2, 0.2, 0.1, 0.02, 0.03],
        "heldout_score": [3.0, 2.0, 1.0, 0.5, 0.2, 0.2, 0.1, 0.02, 0.03],
        "rel_l2": [1.0, 0.9, 0.5, 0.1, 0.05, 0.05, 0.02, 0.01, 0.01],
    }
    return columns | changes


@pytest.mark.parametrize(
    ("phases", "labels"),
    [
        ({0: ["lm"], 1: ["lm"]}, ["Levenberg-Marquardt"]),
        ({0: ["adam", "lm"], 1: ["lm"]}, ["Adam, Levenberg-Marquardt", "Levenberg-Marquardt"]),
    ],
)
def test_phases_shorter_than_a_log_line_have_their_names(phases: Any, labels: list[str]) -> None:
    columns = {k: [v[0], v[4], v[5], v[8]] for k, v in history().items()}
    columns["phase"] = ["start", "end", "start", "stopped"]
    figure = check(plot_convergence(columns, {}, phases))
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend[:-2] == labels
    named = check(plot_convergence(history(), {}, {0: ["lm"], 1: ["lm"]}))
    assert [t.get_text() for t in named.legends[0].get_texts()][:-2] == ["Adam", "L-BFGS"]


def test_convergence_against_steps_and_seconds() -> None:
    figure = check(plot_convergence(history(), {0: [4, 4], 1: [8, 16]}))
    assert len(figure.axes) == 6
    assert all(ax.get_yscale() == "log" for ax in figure.axes)
    labels = [ax.get_ylabel() for ax in figure.axes[::2]]
    assert labels == [
        "training loss",
        "held-out residual\n(root mean square)",
        "relative $L_2$ error",
    ]
    assert [ax.get_xlabel() for ax in figure.axes[-2:]] == ["optimiser steps", "time (s)"]
    assert "$n$ = 4" in texts(figure) and "8/16" in texts(figure)
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend[:2] == ["Adam", "L-BFGS"] and len(legend) == 4


def test_convergence_draws_every_logged_point_in_its_phase() -> None:
    columns = history()
    figure = plot_convergence(columns)
    loss_by_step, loss_by_second = figure.axes[:2]
    for ax, across in ((loss_by_step, "step"), (loss_by_second, "wall_s")):
        drawn = {style.BLUE: set[float](), style.VERMILLION: set[float]()}
        for line in ax.lines:
            if to_hex(line.get_color()).upper() in drawn and line.get_marker() != "o":
                points = ydata(line)
                drawn[to_hex(line.get_color()).upper()] |= set(points.tolist())
        # Each phase begins where the one before it on its level ended.
        assert drawn[style.BLUE] == {1.0, 0.5, 0.1, 1e-3, 1e-4}
        assert drawn[style.VERMILLION] == {0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6}
        styles = {to_hex(line.get_color()): line.get_linestyle() for line in ax.lines}
        assert styles[style.BLUE.lower()] != styles[style.VERMILLION.lower()]
        dotted = [x for line in ax.lines if len(x := np.unique(xdata(line))) == 1]
        assert columns[across][5] in [float(x[0]) for x in dotted]  # the refinement
        ring = [line for line in ax.lines if line.get_marker() == "o"][-1]
        assert float(np.ravel(xdata(ring))[0]) == columns[across][7]  # the best score


def test_convergence_leaves_out_what_was_not_logged() -> None:
    gone = check(plot_convergence(history(rel_l2=[None] * 9, wall_s=[np.nan] * 9)))
    assert len(gone.axes) == 2 and not any("error" in text for text in texts(gone))
    arrays = {name: np.array(column) for name, column in history().items()}
    scalar = check(plot_convergence(arrays | {"scalar.nu": np.linspace(0.1, -0.2, 9)}))
    assert len(scalar.axes) == 8
    assert scalar.axes[-1].get_yscale() == "linear"
    assert scalar.axes[-2].get_ylabel() == r"scalar $\nu$"


def test_convergence_of_runs_that_went_wrong_or_barely_began() -> None:
    losses = [1.0, np.nan, np.inf, 0.0, 1e-3, 1e-3, 1e-4, 1e-5, -1.0]
    figure = check(plot_convergence(history(loss=losses)))
    assert "2 of 9 logged values not finite" in texts(figure)
    one = {name: column[:1] for name, column in history().items()}
    assert len(check(plot_convergence(one, {0: [4]})).axes) == 6
    with pytest.raises(ValueError, match="no line"):
        plot_convergence({"step": [], "loss": []})
    with pytest.raises(ValueError, match="no finite loss"):
        plot_convergence({"step": [0, 1], "loss": [np.nan, np.inf]})


def test_many_levels_have_labels_that_do_not_touch() -> None:
    count = 12
    columns = {
        "level": np.repeat(np.arange(count), 2),
        "step": np.repeat(np.cumsum(1000 // 2 ** np.arange(count)), 2),
        "loss": np.geomspace(1, 1e-6, 2 * count),
    }
    intervals = {level: [4 * 2**level] * 2 for level in range(count)}
    figure = check(plot_convergence(columns, intervals))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [t.get_window_extent() for t in figure.axes[0].texts]
    assert len(boxes) > 3
    assert all(a.x1 <= b.x0 + 1 for a, b in itertools.pairwise(boxes))


# --- univariate functions ------------------------------------------------------------------------
def synthetic_layer(n_inputs: int, n_outputs: int, intervals: int = 8) -> LayerFunctions:
    rng = np.random.default_rng(1)
    x, knots = np.linspace(-1, 1, 201), np.linspace(-1, 1, intervals + 1)
    channels = []
    for p in range(n_inputs):
        size = rng.uniform(0.1, 1.0, (n_outputs, 1)) * (p + 1)
        values, at_knots = (5 + size * np.sin(3 * z + p) for z in (x, knots))
        channels.append(ChannelFunctions(f"$z_{{{p + 1}}}$", x, values, knots, at_knots))
    return LayerFunctions(tuple(channels), tuple(f"$y_{{{q + 1}}}$" for q in range(n_outputs)))


@pytest.mark.parametrize(("n_inputs", "n_outputs"), [(1, 1), (2, 5), (8, 1), (3, 3)])
def test_univariate_functions_with_their_knots(n_inputs: int, n_outputs: int) -> None:
    layer = synthetic_layer(n_inputs, n_outputs)
    figure = check(plot_univariate(layer))
    assert len(figure.axes) == n_inputs * n_outputs
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    channel = layer.channels[0]
    curve = figure.axes[0].lines[1]
    np.testing.assert_array_equal(xdata(curve), channel.x)
    np.testing.assert_allclose(ydata(curve), channel.values[0] - channel.values[0].mean())
    ticks = np.array(figure.axes[0].collections[0].get_segments())  # type: ignore[attr-defined]
    np.testing.assert_allclose(ticks[:, 0, 0], channel.knots)
    shown = " ".join(texts(figure))
    assert "$z_{1}$" in shown and "to $y_{1}$" in shown and "left out" not in shown


def test_large_layers_say_how_many_functions_are_left_out() -> None:
    assert len(plot_univariate(synthetic_layer(8, 8)).axes) == 64
    figure = plot_univariate(synthetic_layer(20, 12), largest=4)
    assert len(figure.axes) == 16
    shown = " ".join(texts(figure))
    assert "4 of 20 inputs and 4 of 12 outputs" in shown and "224 functions left out" in shown
    assert "$z_{20}$" in shown and "$z_{1}$" not in shown  # the largest are kept


def test_shading_marks_what_the_domain_does_not_reach() -> None:
    layer = synthetic_layer(1, 1)
    channel = replace(layer.channels[0], visited=(-0.5, 1.0))
    figure = check(plot_univariate(replace(layer, channels=(channel,))))
    shaded = [patch.get_extents() for patch in figure.axes[0].patches]
    to_data = figure.axes[0].transData.inverted()
    ends = [to_data.transform(box)[:, 0] for box in shaded]
    assert len(ends) == 1
    np.testing.assert_allclose(ends[0], [-1.0, -0.5], atol=1e-9)
    curve = ydata(figure.axes[0].lines[1])
    assert abs(curve[channel.x >= -0.5].mean()) < 1e-12  # the mean is over what is reached
    assert "reached by no point of the domain" in texts(figure)
    wild = replace(channel, values=np.where(channel.x < -0.5, np.nan, channel.values))
    FigureCanvasAgg(plot_univariate(replace(layer, channels=(wild,)))).draw()


# --- parity --------------------------------------------------------------------------------------
def test_parity() -> None:
    exact = np.linspace(-1, 1, 500)
    predicted = {
        "u": exact + 0.01 * np.sin(50 * exact),
        "price": np.where(exact > 0.9, np.nan, 2.0),
    }
    figure = check(plot_parity({"u": exact, "price": exact}, predicted, {"price": "$"}))
    assert len(figure.axes) == 4
    np.testing.assert_array_equal(ydata(figure.axes[0].lines[1]), predicted["u"])
    assert figure.axes[0].get_xlim() == figure.axes[0].get_ylim()
    assert "predicted price ($)" in texts(figure)
    rms = np.sqrt(np.mean((predicted["u"] - exact) ** 2))
    assert f"root mean square error {rms:.2g} (dashed)" in texts(figure)
    assert any("rows not finite" in text for text in texts(figure))
    assert "500 rows" in texts(figure)
    assert {"500 test rows", "test rows"} <= set(
        texts(plot_parity({"u": exact}, {"u": exact}, rows="test rows"))
    )
    nothing = plot_parity({"u": exact}, {"u": np.full(500, np.nan)})
    FigureCanvasAgg(nothing).draw()
    with pytest.raises(ValueError, match="no field"):
        plot_parity({}, {})


def test_regression_figures_speak_of_prediction_and_function() -> None:
    values, exact = two_fields()
    section = FieldSection(PLANE, {"u": values["u"]}, {"u": exact["u"]})
    figure = plot_fields(section, words=("prediction", "function"))
    titles = [ax.get_title() for ax in main_axes(figure)]
    assert titles == ["prediction $u$", "function $u$", "absolute error of $u$"]


# --- files and settings --------------------------------------------------------------------------
def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    figure = plot_fields(FieldSection({"x": LINE}, {"u": LINE}))
    (tmp_path / "file").write_text("kept")
    with pytest.raises(RunFolderError, match=r"file.*cannot be written"):
        save_figure(figure, tmp_path / "file", "fields")
    assert (tmp_path / "file").read_text() == "kept"
    with pytest.raises(ConfigError, match="'svg'; allowed: png, pdf"):
        save_figure(figure, tmp_path, "fields", "svg")  # type: ignore[arg-type]
    assert not list(tmp_path.glob("fields*"))
    assert save_figure(figure, tmp_path / "a" / "b", "c") == tmp_path / "a" / "b" / "c.png"


def test_a_users_settings_neither_matter_nor_change() -> None:
    section = FieldSection(PLANE, *two_fields())

    def draw() -> bytes:
        canvas = FigureCanvasAgg(figure := plot_fields(section))
        canvas.draw()
        assert figure.axes[0].title.get_fontsize() == style.STYLE["axes.titlesize"]
        return bytes(canvas.buffer_rgba())

    plain = draw()
    with mpl.rc_context({"font.size": 30.0, "axes.facecolor": "red", "lines.linewidth": 9.0}):
        before = dict(mpl.rcParams)
        plot_fields(section)
        assert dict(mpl.rcParams) == before
    assert draw() == plain


def test_no_pyplot(tmp_path: Path) -> None:
    """Pyplot keeps figures and settings for the whole process."""
    program = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from kanpinn.plotting import *\n"
        "x = np.linspace(0, 1, 9)\n"
        "figure = plot_fields(FieldSection({'x': x, 'y': x}, {'u': np.outer(x, x)}))\n"
        f"save_figure(figure, Path({str(tmp_path)!r}), 'u')\n"
        "save_figure(figure, Path('.'), 'u', 'pdf')\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, check=False)
    assert done.returncode == 0
    assert (tmp_path / "u.png").exists() and (tmp_path / "u.pdf").exists()

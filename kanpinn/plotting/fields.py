"""Figures of fields: solution, reference, pointwise error and residual along lines and planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kanpinn.plotting import style
from kanpinn.plotting.style import Floats, with_unit

LARGEST_ASPECT = 4.0  # of a domain drawn to scale


@dataclass(frozen=True, eq=False)
class FieldSection:
    """Fields along one coordinate, or over two, the others held fixed.

    Attributes:
        axes: one or two coordinates by name, in the order of the arrays' axes, ``(k,)`` each.
        values: fields by name, ``(k,)`` or ``(k, l)``; not a number outside the domain.
        reference: the same for the reference; empty without one.
        residuals: residuals by equation, of the same shape; empty if not known.
        fixed: values of the other coordinates.
        time: name of the time coordinate, if there is one.
        inside: mask of the points in the domain; all of them by default.
        units: units by coordinate or field name.
        data: points ``(n,)`` and measured values ``(n,)`` by field, shown over one coordinate.
    """

    axes: Mapping[str, Floats]
    values: Mapping[str, Floats]
    reference: Mapping[str, Floats] = field(default_factory=dict)
    residuals: Mapping[str, Floats] = field(default_factory=dict)
    fixed: Mapping[str, float] = field(default_factory=dict)
    time: str | None = None
    inside: NDArray[np.bool_] | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, tuple[Floats, Floats]] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where the section lies, such as ``z = 0``; empty if it is the whole domain."""
        return ", ".join(style.at_value(name, value) for name, value in self.fixed.items())

    @property
    def error(self) -> dict[str, Floats]:
        """``|u - u_ref|`` by field."""
        with np.errstate(invalid="ignore"):  # inf - inf is shown as not finite
            return {k: np.abs(self.values[k] - exact) for k, exact in self.reference.items()}

    def label(self, name: str) -> str:
        """An axis label for a coordinate or field."""
        return with_unit(name, self.units.get(name))


@dataclass(frozen=True, eq=False)
class Panel:
    """One quantity over one section.

    Attributes:
        title: what is shown.
        section: where.
        values: ``(k,)`` or ``(k, l)``.
        family: panels of one family share their scale.
        magnitude: whether a logarithmic scale fits.
        beside: a second curve in one dimension (the reference).
        dots: points and values measured there, in one dimension.
    """

    title: str
    section: FieldSection
    values: Floats
    family: str
    magnitude: bool
    beside: Floats | None = None
    dots: tuple[Floats, Floats] | None = None


@style.styled
def plot_fields(
    sections: FieldSection | Sequence[FieldSection],
    fields: Sequence[str] | None = None,
    words: tuple[str, str] = ("solution", "reference"),
) -> Figure:
    """Solution, reference, ``|u - u_ref|`` and ``|r|``, the last two on logarithmic scales.

    Curves over one coordinate; images over two, of which time is the horizontal one and space the
    vertical one. One row per field, or per section where there are several. What is missing (no
    reference, no residual) has no panel. Hatched areas lie outside the domain or hold no number.

    Args:
        sections: one, or several through the same domain (planes of a body, instants).
        fields: which fields; all by default. With an empty list residuals alone are shown.
        words: what solution and reference are called.

    Raises:
        ValueError: if there is nothing to show.
    """
    sections = [sections] if isinstance(sections, FieldSection) else list(sections)
    names = list(sections[0].values if fields is None else fields) if sections else []
    rows = _rows(sections, names, words)
    if not rows:
        raise ValueError("plot_fields: neither fields nor residuals were given")
    if len(sections[0].axes) == 1:
        return _curve_figure(rows, words)
    if len(rows) == 1 and len(rows[0]) == 4:  # two by two is larger than four in a row
        rows = [rows[0][:2], rows[0][2:]]
    return _image_figure(rows, shared=len(sections) > 1)


def _rows(
    sections: Sequence[FieldSection], names: Sequence[str], words: tuple[str, str]
) -> list[list[Panel]]:
    """Panels row by row: sections within fields; the residual of equation k beside field k.

    Equations beyond the number of fields follow in rows of their own.
    """
    rows = []
    equations = list(sections[0].residuals) if sections else []
    for k, name in enumerate(names):
        for section in sections:
            row = _field_panels(section, name, words)
            row += [_residual_panel(section, name) for name in equations[k : k + 1]]
            rows.append(row)
    rest = equations[len(names) :]
    if len(sections) > 1:  # one row per section, as for the fields
        rows += [[_residual_panel(section, name) for name in rest] for section in sections if rest]
        return rows
    size = max((len(row) for row in rows), default=min(len(rest), 3))
    for start in range(0, len(rest), max(size, 1)):
        part = rest[start : start + size]
        rows.append([_residual_panel(sections[0], name) for name in part])
    return rows


def _residual_panel(section: FieldSection, name: str) -> Panel:
    title = "absolute residual" + ("" if name == "equation" else f": {name}")
    return Panel(title, section, np.abs(section.residuals[name]), f"residual {name}", True)


def _field_panels(section: FieldSection, name: str, words: tuple[str, str]) -> list[Panel]:
    exact = section.reference.get(name)
    family, own = f"field {name}", section.label(name)
    curves = len(section.axes) == 1
    title = own if curves else f"{words[0]} {own}"
    panel = Panel(title, section, section.values[name], family, False)
    if curves:
        panel = replace(panel, beside=exact, dots=section.data.get(name))
    panels = [panel]
    if exact is not None:
        if not curves:
            panels.append(Panel(f"{words[1]} {own}", section, exact, family, False))
        error = section.error[name]
        panels.append(Panel(f"absolute error of {own}", section, error, f"error {name}", True))
    return panels


# --- one coordinate ------------------------------------------------------------------------------
def _curve_figure(rows: list[list[Panel]], words: tuple[str, str]) -> Figure:
    """Curves: one field stacked over a common axis, several fields in a row each."""
    stacked = len(rows) == 1
    if stacked:
        rows = [[panel] for panel in rows[0]]
    columns = max(len(row) for row in rows)
    width = 6.0 if columns == 1 else 3.3 * columns
    figure = style.new_figure(width, 0.5 + (1.9 if stacked else 2.1) * len(rows))
    grid = figure.add_gridspec(len(rows), columns)
    first: Axes | None = None
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            ax = figure.add_subplot(grid[i, j], sharex=first)
            first = first or ax
            draw_curve(ax, panel, words)
            if columns == 1:
                ax.set_ylabel(panel.title)
            else:
                ax.set_title(panel.title)
            lowest = not any(len(below) > j for below in rows[i + 1 :])
            if lowest:
                ax.set_xlabel(panel.section.label(next(iter(panel.section.axes))))
            ax.tick_params(labelbottom=lowest)
    if first is not None:
        curve_legend(figure, first)
    return figure


def curve_legend(figure: Figure, ax: Axes) -> None:
    """One legend for all panels, if there is more than one thing to tell apart."""
    handles, labels = ax.get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(handles, labels, loc="outside upper center", ncols=len(handles))


def draw_curve(ax: Axes, panel: Panel, words: tuple[str, str]) -> None:
    """One quantity over one coordinate, a magnitude on a logarithmic scale."""
    x = next(iter(panel.section.axes.values()))
    values = np.where(np.isfinite(panel.values), panel.values, np.nan)
    ax.margins(x=0)
    limits = style.log_limits([values]) if panel.magnitude else None
    if limits is not None:
        ax.set_yscale("log", nonpositive="mask")
        ax.set_ylim(limits[0] / 2, limits[1] * 2)
        ax.plot(x, np.where(values > 0, values, np.nan), color=style.BLUE, lw=1.1)
    else:
        ax.plot(x, values, color=style.BLUE, lw=1.8, label=words[0])
    if panel.magnitude and limits is None and np.isfinite(values).any():
        style.note(ax, "zero everywhere")
        ax.set_ylim(-0.05, 1)
    if panel.beside is not None:
        exact = np.where(np.isfinite(panel.beside), panel.beside, np.nan)
        ax.plot(x, exact, color=style.BLACK, lw=1.1, ls=(0, (4, 3)), label=words[1])
    if panel.dots is not None:
        dots = {"ms": 3, "mew": 0, "color": style.GREY, "alpha": 0.7, "label": "data"}
        ax.plot(*panel.dots, "o", zorder=1.5, rasterized=True, **dots)  # type: ignore[arg-type]
    ax.xaxis.set_major_locator(_ticks())
    ax.grid(color=style.PALE, lw=0.6)
    style.note_non_finite(ax, panel.values, panel.section.inside)


def _ticks() -> MaxNLocator:
    """Few and round ticks, the ends of most domains among them."""
    return MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])


# --- two coordinates -----------------------------------------------------------------------------
def _image_figure(rows: list[list[Panel]], shared: bool) -> Figure:
    """Images; ``shared``: the panels of a column are sections of one quantity, with one scale."""
    columns = max(len(row) for row in rows)
    tallest = max(_shape(panel.section)[0] for row in rows for panel in row[:1])
    side = 2.9 if columns <= 2 else 2.1
    width = columns * (side + (0.15 if shared else 0.8)) + 0.6
    height = len(rows) * (side * tallest + (0.5 if shared else 0.6)) + (0.75 if shared else 0.05)
    figure = style.new_figure(width, height)
    grid = figure.add_gridspec(len(rows), columns)
    scales = _scales(rows)
    drawn: dict[str, list[tuple[Axes, Image]]] = {}
    titled: set[str] = set()
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            ax = figure.add_subplot(grid[i, j])
            image = draw_image(ax, panel, scales[panel.family])
            ax.set_title("" if shared and panel.title in titled else panel.title)
            titled.add(panel.title)
            if j:  # the same coordinates as in the row's first panel
                ax.set_ylabel("")
                ax.tick_params(labelleft=False)
            elif panel.section.place:
                ax.set_ylabel(f"{panel.section.place}\n{ax.get_ylabel()}")
            drawn.setdefault(panel.family, []).append((ax, image))
    for entries in drawn.values():
        _colour_bars(figure, entries, shared)
    return figure


def _scales(rows: list[list[Panel]]) -> dict[str, style.Scale]:
    """Colour scale of every family of panels."""
    families: dict[str, list[Panel]] = {}
    for panel in (panel for row in rows for panel in row):
        families.setdefault(panel.family, []).append(panel)
    return {
        name: (style.magnitude_scale if panels[0].magnitude else style.value_scale)(
            [panel.values for panel in panels]
        )
        for name, panels in families.items()
    }


@dataclass(frozen=True, eq=False)
class Image:
    """A drawn image, its scale, and whether some values lie below the scale."""

    mesh: Any
    scale: style.Scale
    below: bool


def draw_image(ax: Axes, panel: Panel, scale: style.Scale) -> Image:
    """One quantity over two coordinates; level lines where it is not a magnitude."""
    names, (h, v), image = oriented(panel.section, panel.values)
    shown = np.ma.masked_invalid(image)
    # Hatching behind the image shows where there is none.
    ax.patch.set(facecolor="white", edgecolor="0.75", hatch="////", linewidth=0.0)
    below = scale.logarithmic and bool((shown < scale.lowest).any())
    if below:
        shown = np.ma.maximum(shown, scale.lowest)
    mesh = ax.pcolormesh(
        *(h, v, shown), norm=scale.norm, cmap=scale.colours, shading="nearest", rasterized=True
    )
    if not panel.magnitude:
        _contours(ax, h, v, shown, scale.levels)
    elif not scale.logarithmic and shown.count():
        style.note(ax, "zero everywhere")
    ax.set(xlim=(h[0], h[-1]), ylim=(v[0], v[-1]))
    ax.set_xlabel(panel.section.label(names[0]))
    ax.set_ylabel(panel.section.label(names[1]))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(_ticks())
    if _shape(panel.section)[1]:
        ax.set_aspect("equal")
    style.note_non_finite(ax, panel.values, panel.section.inside)
    return Image(mesh, scale, below)


def _contours(ax: Axes, h: Floats, v: Floats, shown: Any, levels: Sequence[float]) -> None:
    """Thin level lines, dashed where negative: they carry the field's sign in black and white."""
    if not shown.count():
        return
    crossed = [z for z in levels if float(shown.min()) < z < float(shown.max())]
    if crossed:
        dashes = ["dashed" if z < 0 else "solid" for z in crossed]
        lines: dict[str, Any] = {"colors": "k", "linewidths": 0.5, "alpha": 0.6}
        ax.contour(h, v, shown, crossed, linestyles=dashes, **lines)


def _colour_bars(figure: Figure, entries: list[tuple[Axes, Image]], shared: bool) -> None:
    """Beside every panel, as high as it; or one below all panels of a family."""
    if not any(entry.scale.has_bar for _, entry in entries):
        return
    extend = "min" if any(entry.below for _, entry in entries) else "neither"
    if shared:
        axes = [ax for ax, _ in entries]
        places: list[dict[str, Any]] = [
            {"ax": axes, "location": "bottom", "aspect": 22, "pad": 0.02}
        ]
    else:  # an inset keeps to the panel's height where its aspect is fixed
        places = [{"cax": ax.inset_axes((1.03, 0.0, 0.05, 1.0))} for ax, _ in entries]
    for place, (_, entry) in zip(places, entries, strict=False):
        bar = figure.colorbar(entry.mesh, extend=extend, **place)
        bar.outline.set_linewidth(0.6)
        if entry.scale.ticks:
            bar.set_ticks(entry.scale.ticks, labels=style.power_labels(entry.scale.ticks))
            bar.minorticks_off()


def oriented(
    section: FieldSection, values: Floats
) -> tuple[tuple[str, str], tuple[Floats, Floats], Floats]:
    """Names and coordinates of the horizontal and the vertical axis, and values ``(n_v, n_h)``.

    Time is horizontal; without it the first coordinate is.
    """
    (first, x), (second, y) = section.axes.items()
    if second == section.time:
        return (second, first), (y, x), values
    return (first, second), (x, y), values.T


def _shape(section: FieldSection) -> tuple[float, bool]:
    """Height over width of a panel, and whether it is drawn to scale."""
    (first, second), (h, v), _ = oriented(section, np.empty((0, 0)))
    ratio = float(abs(v[-1] - v[0]) / abs(h[-1] - h[0]))
    if section.time in (first, second) or not 1 / LARGEST_ASPECT <= ratio <= LARGEST_ASPECT:
        return 0.62, False
    return float(np.clip(ratio, 0.3, 1.8)), True

"""What all figures share: sizes, colours, symbols, limits, and how a figure is written.

Figures are made without pyplot: nothing is registered anywhere, and a user's own matplotlib
settings neither change them nor are changed by them.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, get_args

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from kanpinn.errors import ConfigError, RunFolderError

Floats = NDArray[np.float64]
Format = Literal["png", "pdf"]

DPI = 150
PAGE_DPI = 130
STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.5,
    "mathtext.fontset": "dejavusans",
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": True,
    "axes.formatter.useoffset": False,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}

# Okabe and Ito's palette, told apart by the colour-blind; line styles tell them apart in grey.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00"
BLACK, GREY, PALE = "#000000", "#777777", "#E4E4E4"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE)
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

SEQUENTIAL, MAGNITUDE, SIGNED = "cividis", "viridis", "RdBu_r"
LARGEST_RATIO = 1e8  # of the limits of a logarithmic scale

GREEK = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "kappa", "lambda"),
    *("mu", "nu", "xi", "pi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega"),
)

P = ParamSpec("P")
R = TypeVar("R")


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function under matplotlib's defaults and :data:`STYLE`; the settings are put back."""

    @wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.style.context(["default", STYLE]):
            return function(*args, **kwargs)

    return inner


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` by ``height`` inches whose parts make room for each other."""
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.03)
    return Figure(figsize=(width, height), layout=layout)


def legend_columns(labels: Sequence[str]) -> int:
    """Columns of a legend below a figure that is as wide as a page."""
    widest = max((len(label) for label in labels), default=0)
    return min(4 if widest <= 20 else 3 if widest <= 28 else 2, max(len(labels), 1))


def few_ticks(axis: XAxis) -> None:
    """Ticks of a short logarithmic axis that leave room for their labels, whatever its range."""
    low, high = axis.get_view_interval()
    axis.set_minor_formatter(NullFormatter())
    if high < 10 * low:
        axis.set_major_locator(MaxNLocator(3))
        axis.set_major_formatter(lambda value, _: f"{value:.2g}")
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(numticks=4))


@styled
def save_figure(figure: Figure, folder: Path, name: str, fmt: Format = "png") -> Path:
    """Write a figure to ``folder/name.fmt`` (PNG at 150 dots per inch, or PDF).

    Returns:
        The path written.

    Raises:
        ConfigError: if the format is neither ``png`` nor ``pdf``.
        RunFolderError: if the folder or the file cannot be written.
    """
    if fmt not in get_args(Format):
        raise ConfigError(f"figure format: found {fmt!r}; allowed: {', '.join(get_args(Format))}")
    path = folder / f"{name}.{fmt}"
    # Without a date the same figure gives the same file.
    metadata = {"CreationDate": None} if fmt == "pdf" else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, format=fmt, metadata=metadata)
    except OSError as error:
        reason = error.strerror or error
        raise RunFolderError(f"figure {path}: cannot be written ({reason})") from error
    return path


@styled
def to_png(figure: Figure) -> bytes:
    """A figure as PNG, for a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=PAGE_DPI, format="png", pil_kwargs={"optimize": True})
    return buffer.getvalue()


def symbol(name: str) -> str:
    """A name as it is printed: one letter, a letter with a number, or a Greek letter as a symbol.

    Anything else stays a word.
    """
    base, number = re.fullmatch(r"(.*?)_?(\d*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    if base in GREEK:
        base = f"\\{base}"
    elif not re.fullmatch(r"[A-Za-z]", base):
        return name.replace("$", r"\$")
    return f"${base}_{{{number}}}$" if number else f"${base}$"


def with_unit(name: str, unit: str | None) -> str:
    """An axis label: the symbol, and its unit in brackets if it has one."""
    return f"{symbol(name)} ({unit})" if unit else symbol(name)


def at_value(name: str, value: float) -> str:
    """Where a section lies, such as ``z = 0.5``."""
    return f"{symbol(name)} = {value:.4g}".replace("-", "\N{MINUS SIGN}")


def finite(arrays: Iterable[Floats]) -> Floats:
    """All finite entries of the arrays, flat."""
    return np.concatenate([[], *(a[np.isfinite(a)] for a in map(np.asarray, arrays))])


def log_limits(arrays: Iterable[Floats]) -> tuple[float, float] | None:
    """Limits of a logarithmic scale for values of which some may be zero or not finite.

    The lower one is the fifth percentile of the positive values, but no less than ``1e-8`` of the
    largest: round-off where an error vanishes, on a boundary say, would else take up the scale.
    ``None`` if no value is positive.
    """
    values = finite(arrays)
    values = values[values > 0]
    if not len(values):
        return None
    top = float(values.max())
    bottom = max(float(np.percentile(values, 5)), top / LARGEST_RATIO)
    return (bottom, top) if bottom < 0.5 * top else (top / 10, top)


@dataclass(frozen=True, eq=False)
class Scale:
    """A colour scale.

    Attributes:
        norm: values to ``[0, 1]``.
        colours: ``[0, 1]`` to colours.
        lowest: the norm's lower end.
        levels: of contour lines.
        ticks: of its bar; matplotlib's own where empty.
        logarithmic: whether ``norm`` is.
        has_bar: whether a bar would say anything.
    """

    norm: Normalize
    colours: Colormap
    lowest: float
    levels: tuple[float, ...] = ()
    ticks: tuple[float, ...] = ()
    logarithmic: bool = False
    has_bar: bool = True


def value_scale(arrays: Iterable[Floats]) -> Scale:
    """Scale of a field: symmetric about zero if it takes both signs, else sequential.

    Zero itself is no contour level: where a field vanishes on a region, that line is noise.
    """
    values = finite(arrays)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    colours = mpl.colormaps[SEQUENTIAL]
    if min(-low, high) > 0.05 * max(-low, high):
        low, high = -max(-low, high), max(-low, high)
        colours = mpl.colormaps[SIGNED]
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # constant: any width will do
        half = 0.5 * max(abs(low), abs(high)) or 0.5
        low, high = low - half, high + half
    step = high - low
    levels = [float(z) for z in MaxNLocator(9).tick_values(low, high) if low < z < high]
    levels = [z for z in levels if abs(z) > 1e-9 * step]
    return Scale(Normalize(low, high), colours, low, tuple(levels), has_bar=bool(len(values)))


def magnitude_scale(arrays: Iterable[Floats]) -> Scale:
    """Logarithmic scale of magnitudes; one without a bar if none of them is positive."""
    limits = log_limits(arrays)
    colours = mpl.colormaps[MAGNITUDE]
    if limits is None:
        return Scale(Normalize(0.0, 1.0), colours, 0.0, has_bar=False)
    return Scale(LogNorm(*limits), colours, limits[0], ticks=log_ticks(*limits), logarithmic=True)


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """A few ticks between the limits: powers of ten, or 1, 2 and 5 times them, well apart."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    tens = [10.0**k for k in range(first, last + 1)]
    inside = [z for z in tens if low <= z <= high]
    if len(inside) >= 2:
        return tuple(inside[:: math.ceil(len(inside) / 5)])
    finer = [float(f"{m}e{k}") for k in range(first, last + 1) for m in (1, 2, 5)]
    chosen = inside
    for z in finer:
        room = min((abs(math.log(z / other)) for other in chosen), default=math.inf)
        if low <= z <= high and room >= 0.3 * math.log(high / low):
            chosen.append(z)
    return tuple(sorted(chosen)) or (low, high)


def power_labels(values: Iterable[float]) -> list[str]:
    """Labels of the form ``2 x 10^-5``, ``10^-4``."""
    labels = []
    for z in values:
        mantissa, exponent = f"{z:.1e}".split("e")
        factor = float(mantissa)
        power = f"10^{{{int(exponent)}}}"
        labels.append(f"${power}$" if factor == 1 else rf"${factor:g} \times {power}$")
    return labels


def note(ax: Axes, text: str) -> None:
    """A remark inside a panel, on white."""
    box = {"facecolor": "white", "edgecolor": GREY, "linewidth": 0.6, "boxstyle": "round,pad=0.25"}
    ax.text(0.5, 0.03, text, transform=ax.transAxes, ha="center", va="bottom", fontsize=8, bbox=box)


def note_non_finite(ax: Axes, values: Floats, meant: NDArray[np.bool_] | None = None) -> None:
    """Say how many of the values that are ``meant`` to exist are not finite, if any."""
    bad = ~np.isfinite(values) if meant is None else ~np.isfinite(values) & meant
    total = values.size if meant is None else int(meant.sum())
    if bad.any():
        count = int(bad.sum())
        text = "no finite value" if count == total else f"{count} of {total} values not finite"
        note(ax, text)

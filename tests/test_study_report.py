"""Reports of studies and runs: figures that say what they should, pages that hold together."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from figure_checks import check, main_axes, texts
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import kanpinn
from kanpinn.api.study_report import sections, tables
from kanpinn.api.study_results import CaseResult
from kanpinn.cli import main
from kanpinn.io.page import LARGEST_PAGE, Picture, Section, write_page
from kanpinn.io.study_tables import shown
from kanpinn.plotting.study import plot_errors, plot_norms, plot_spread
from kanpinn.plotting.study_histories import MOST_RUNS, History, plot_histories
from kanpinn.plotting.study_looks import Looks
from kanpinn.plotting.style import to_png
from kanpinn.solution import history_columns
from kanpinn.study import Case, Design, finals_of, level_rows, medians
from kanpinn.study.design import Changes

ORDERS = (3, 4, 5)
VOID = {"meta", "img", "br"}
Run = tuple[Case, dict[str, Any], list[dict[str, Any]]]


def run(order: int, seed: int, more: dict[str, str] | None = None, levels: int = 4) -> Run:
    """A run whose error is ``h^order``, up to a factor that depends on the seed."""
    labels = {"model.order": str(order), **(more or {}), "seed": str(seed)}
    records, lines = [], []
    for k in range(levels):
        h = 0.5 ** (k + 1)
        error = seed * h**order
        records.append(
            {"level": k, "n_intervals": [2 ** (k + 1)], "n_params": 10 * 2**k, "n_points": 50}
            | {"steps": 20, "evaluations": 40, "operations": 10**6 * 8**k, "wall_s": 2.0**k}
            | {"loss_before_prolongation": None, "loss_after_prolongation": None}
            | {"loss": error**2, "heldout_residual": 5 * error, "rel_l2": error, "linf": 2 * error}
            | {"h1": error / h, "change": None, "stop_reason": "steps"}
        )
        lines += [
            {"level": k, "step": 20 * k + i, "wall_s": 2.0**k * i, "loss": error**2 * (2 + 20 - i)}
            | {"heldout_residual": 5 * error, "rel_l2": error, "phase": "lm"}
            for i in range(1, 21)
        ]
    summary = {
        **{name: records[-1][name] for name in ("loss", "heldout_residual", "rel_l2", "linf")},
        **{"status": "completed", "levels": records, "best_level": levels - 1, "reweighting": []},
        "metrics": {"test_mse": 0.1 * seed},
    }
    return Case(labels, {"n": [order, seed, more]}), summary, lines


RUNS = [run(order, seed) for order in ORDERS for seed in (1, 2, 3)]
ROWS = [row for found in RUNS for row in level_rows(*found)]


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    return check(figure)


def panel(figure: Figure, xlabel: str) -> Axes:
    (found,) = [ax for ax in main_axes(figure) if ax.get_xlabel() == xlabel]
    return found


# --- figures ---------------------------------------------------------------------------------
def test_errors_against_widths_parameters_and_work() -> None:
    figure = drawn(plot_errors(ROWS, medians(ROWS)))
    shown = texts(figure)
    for words in ("degrees of freedom", "time (s)", "floating-point operations"):
        assert words in shown
    assert [f"model.order={order}" in shown for order in ORDERS] == [True] * 3
    ax = panel(figure, "width of intervals, relative")
    for order, line in zip(ORDERS, ax.lines[:3], strict=True):
        x, y = line.get_data()
        assert y == pytest.approx(2 * np.asarray(x, dtype=float) ** order)  # the median seed
    slopes = {text for text in shown if text.startswith("order ")}
    assert slopes == {"order 3", "order 4", "order 5"}
    for order, line in zip(ORDERS, ax.lines[3:], strict=True):
        x, y = (np.asarray(values, dtype=float) for values in line.get_data())
        assert np.log(y[1] / y[0]) / np.log(x[1] / x[0]) == pytest.approx(order)
    assert len(ax.collections) == 3  # bands of quartiles


def test_every_curve_is_that_of_its_last_time_window() -> None:
    """The cases have different numbers of them."""
    found = []
    for windows, factor in ((1, 1.0), (2, 10.0)):
        case, summary, _ = run(3, 1, {"windows": str(windows)})
        levels = [
            {**level, "window": w, "rel_l2": factor * (1 + w) * level["rel_l2"]}
            for w in range(windows)
            for level in summary["levels"]
        ]
        found += level_rows(case, {**summary, "levels": levels})
    ax = panel(drawn(plot_errors(found, medians(found))), "width of intervals, relative")
    curves = [np.asarray(line.get_ydata(), dtype=float) for line in ax.lines[:2]]
    errors = 0.5 ** (3.0 * np.arange(1, 5))
    assert curves[0] == pytest.approx(errors) and curves[1] == pytest.approx(20 * errors)
    assert drawn(plot_norms(found, medians(found))) is not None


def test_curves_are_at_the_median_width() -> None:
    """With adaptive refinement the knots differ between seeds."""
    found = []
    for seed, n in ((1, 4), (2, 8), (3, 16)):
        case, summary, _ = run(3, seed, levels=2)
        summary["levels"][1]["n_intervals"] = [n]
        found += level_rows(case, summary)
    ax = panel(drawn(plot_errors(found, medians(found))), "width of intervals, relative")
    assert list(np.asarray(ax.lines[0].get_xdata())) == [1 / 2, 1 / 8]


def test_other_norms_have_their_slopes() -> None:
    figure = drawn(plot_norms(ROWS, medians(ROWS)))
    assert {"largest error", "relative $L_2$ error of the gradient"} <= set(texts(figure))
    assert {"order 2", "order 3", "order 4", "order 5"} <= set(texts(figure))
    bare = [
        level_rows(c, {**s, "levels": [{**r, "linf": None, "h1": None} for r in s["levels"]]})
        for c, s, _ in RUNS
    ]
    rows = [row for found in bare for row in found]
    assert plot_norms(rows, medians(rows)) is None


def test_without_a_reference_the_best_that_is_known_is_drawn() -> None:
    case, summary, _ = run(4, 1)
    levels = [{**r, "rel_l2": None, "change": 10.0**-k} for k, r in enumerate(summary["levels"])]
    rows = level_rows(case, {**summary, "levels": levels})
    assert "estimated relative error" in texts(drawn(plot_errors(rows, medians(rows))))
    levels = [{**r, "change": None} for r in levels]
    rows = level_rows(case, {**summary, "levels": levels})
    assert "held-out residual" in texts(drawn(plot_errors(rows, medians(rows))))
    assert plot_errors([], []) is None


def history(found: Run) -> History:
    return History(found[0].labels, history_columns(found[2]))


def test_histories_mark_refinements() -> None:
    figure = drawn(plot_histories([history(found) for found in RUNS]))
    assert {"training loss", "held-out residual", "relative $L_2$ error"} <= set(texts(figure))
    assert "refinement" in texts(figure)
    ax = main_axes(figure)[0]
    curves, dots = ax.lines[0::2], ax.lines[1::2]
    assert len(curves) == len(RUNS)
    assert list(np.asarray(dots[0].get_xdata())) == [21, 41, 61]
    assert plot_histories([]) is None
    lost = History({}, {"step": np.arange(2), "level": np.zeros(2), "wall_s": np.arange(2.0)})
    assert plot_histories([lost]) is None


def test_of_many_runs_the_typical_ones_are_drawn() -> None:
    many = [run(4, seed, {"width": str(w)}) for w in range(MOST_RUNS) for seed in (1, 2, 9)]
    figure = plot_histories([history(found) for found in many])
    assert figure is not None
    curves = main_axes(figure)[4].lines[0::2]
    assert len(curves) == MOST_RUNS
    ends = {float(np.asarray(line.get_ydata())[-1]) for line in curves}
    assert ends == {2 * 0.5**16}  # of seed 2, the median


def test_boxes_over_the_seeds() -> None:
    finals = finals_of(RUNS)
    figure = drawn(plot_spread(finals, ["model.order", "seed"]))
    assert {"relative $L_2$ error", "test MSE", "training loss"} <= set(texts(figure))
    assert [f"model.order={order}" for order in ORDERS] == [
        label.get_text() for label in main_axes(figure)[0].get_yticklabels()
    ]
    assert (
        plot_spread([row for row in finals if row["seed"] == "1"], ["model.order", "seed"]) is None
    )


def test_colours_are_the_main_axis_and_lines_the_others() -> None:
    cases = [
        {"fixed": "1", "order": str(o), "kind": k, "seed": str(s)}
        for o in range(9)
        for k in ("a", "b")
        for s in (1, 2)
    ]
    looks = Looks(cases)
    assert looks.main == "order" and looks.rest == ["kind"]
    found = {(looks[c].colour, looks[c].line) for c in cases}
    assert len(found) == 18 and len({colour for colour, _ in found}) == 9
    assert looks.name(cases[0]) == "order=0, kind=a"
    long = [{"order": str(o), "kind": "a" * 90 + end} for o in (1, 2) for end in "xy"]
    assert len({(Looks(long)[c].line, Looks(long).name(c)) for c in long}) == 4
    many = [{"case": f"case {k}"} for k in range(17)]
    assert len({(Looks(many)[c].colour, Looks(many)[c].line) for c in many}) == 17
    alone = Looks([{"seed": "1"}, {"seed": "2"}])
    assert alone.main is None and alone.name({"seed": "1"}) == "all"


def test_many_curves_with_long_names_leave_room() -> None:
    long = [run(o, s, {"schedule": k * 30}) for o in range(2, 9) for k in "ab" for s in (1, 2)]
    rows = [row for found in long for row in level_rows(*found)]
    drawn(plot_errors(rows, medians(rows)))


# --- pages -----------------------------------------------------------------------------------
class Reader(HTMLParser):
    """Reads a page: every tag is closed, every picture has words, nothing comes from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.pictures = 0
        self.loose_tables = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag not in ("script", "link", "iframe")
        assert "href" not in given
        if tag == "img":
            self.pictures += 1
            assert given["alt"] and (given["src"] or "").startswith("data:image/png;base64,")
            assert int(given["width"] or 0) > 100
        if tag == "table":
            self.loose_tables += self.open[-1] != "div"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def read(page: Path) -> Reader:
    reader = Reader()
    text = page.read_text()
    reader.feed(text)
    reader.close()
    assert not reader.open and not reader.loose_tables
    assert text.startswith("<!doctype html>") and "name='viewport'" in text
    assert len(text) < 2_000_000
    return reader


def study(runs: list[Run], folder: Path) -> kanpinn.Study:
    """A study that was never run, with these results."""
    axes: dict[str, dict[str, Changes]] = {
        name: {found[0].labels[name]: {} for found in runs} for name in runs[0][0].labels
    }
    cases = []
    for case, summary, lines in runs:
        found = CaseResult(case, folder / "x", summary)
        found.__dict__["lines"] = lines
        cases.append(found)
    return kanpinn.Study(folder, Design("demo", "a.yaml", axes), tuple(cases), "name: demo\n")


def test_the_parts_of_a_page(tmp_path: Path) -> None:
    found = study(RUNS, tmp_path)
    page = tmp_path / "page.html"
    write_page(page, "a <b>", sections(found, tables(found)))
    reader = read(page)
    assert reader.headings == [
        "How the cases ended",
        "Errors",
        "Convergence",
        "Over the seeds",
        "Medians over the seeds, by level",
        "All cases",
        "All levels",
        "How it was run",
    ]
    assert reader.pictures == 4
    text = page.read_text()
    assert "<h1>a &lt;b&gt;</h1>" in text and "<pre tabindex='0'>name: demo" in text
    assert "class='marked'" in text  # the loss still fell when the steps were used up
    assert "not enough levels" not in text


def test_a_page_says_what_is_not_there(tmp_path: Path) -> None:
    found = study([run(4, seed, levels=1) for seed in (1, 2)], tmp_path)
    cases = (*found.cases, CaseResult(found.cases[0].case, tmp_path, None, "killed by <x>"))
    found = kanpinn.Study(tmp_path, found.design, cases)
    page = tmp_path / "page.html"
    write_page(page, "t", sections(found, tables(found)))
    text = page.read_text()
    assert "Not enough levels for an order: every case has one" in text
    assert ">order<" not in text and ">fitted_order<" not in text
    assert "1 of 3 cases have no result" in text and "killed by &lt;x&gt;" in text
    assert "Cases without a result" in read(page).headings


def test_pictures_that_a_page_has_no_room_for_are_named(tmp_path: Path) -> None:
    png = to_png(Figure(figsize=(3, 2)))
    large = Picture(png + b"\0" * LARGEST_PAGE, "a large one")
    small = Picture(png, "a 'small' one")
    page = tmp_path / "page.html"
    write_page(page, "t", [Section("Figures", pictures=[large, small]), Section("nothing")])
    assert read(page).pictures == 1 and read(page).headings == ["Figures"]
    assert "Left out, for the size of this page: a large one" in page.read_text()


def test_long_tables_are_cut(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_page(page, "t", [Section("Rows", rows=[{"n": str(k)} for k in range(612)])])
    text = page.read_text()
    assert text.count("<tr>") == 201 and "412 further rows are in the CSV file" in text


CONFIG = {
    "name": "line",
    "problem": {"name": "poisson", "dimension": 1},
    "model": {"width": 2, "order": 4, "intervals": 2},
    "sampling": {"interior": 32, "held_out": 32},
    "training": {"levels": 2, "phases": [{"optimiser": "lm", "steps": 2}]},
}


@pytest.mark.parametrize("figures", [True, False])
def test_the_report_of_a_run(tmp_path: Path, figures: bool) -> None:
    folder = tmp_path / "run"
    kanpinn.solve({**CONFIG, "figures": figures}, out=folder)
    before = sorted(path.name for path in folder.rglob("*"))
    result = CliRunner().invoke(main, ["report", str(folder)])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"report: {folder}/report.html\n"
    assert sorted(p.name for p in folder.rglob("*") if p.name != "report.html") == before
    reader = read(folder / "report.html")
    assert reader.headings == ["Summary", "Levels", "Figures", "Config", "Where it comes from"]
    assert reader.pictures == 4  # fields, convergence, two layers
    text = (folder / "report.html").read_text()
    assert "<h1>line: run</h1>" in text and "interior: 32" in text and "versions:" in text
    summary = json.loads(CliRunner().invoke(main, ["report", str(folder), "--json"]).stdout)
    assert f"<td class='text'>{shown(summary['rel_l2'])}</td>" in text
    assert summary == json.loads((folder / "summary.json").read_text())


def test_a_folder_of_neither_a_study_nor_a_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert f"error: {tmp_path}: holds no study.yaml, nor a checkpoint" in result.stderr

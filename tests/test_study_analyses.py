"""Studies with analyses, with a base for every case; the shipped studies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import kanpinn
from kanpinn import api
from kanpinn.analysis import Finding, parse
from kanpinn.analysis.catalogue import columns_of
from kanpinn.api.study_analyses import findings, parse_requests
from kanpinn.api.study_cases import bases_of, resolve_cases
from kanpinn.cli import main
from kanpinn.config import parse_study, read_yaml
from kanpinn.errors import ConfigError, RunFolderError
from kanpinn.study.columns import COLUMNS

pytestmark = pytest.mark.usefixtures("studies_here", "blank_pictures")

SHIPPED = sorted((Path(__file__).parent.parent / "configs" / "studies").glob("*.yaml"))
BASE = """
problem: {name: poisson, dimension: 1}
model: {width: 2, order: 4, intervals: 2}
sampling: {interior: 32, held_out: 32}
training: {levels: 2, phases: [{optimiser: lm, steps: 2}]}
figures: false
"""
ANALYSES = """
analyses:
  - {name: residual_spectrum, points: 64, select: {model.order: 5}}
  - {name: residual_spectrum, points: 64, of: error}
  - {name: basis_spectrum, n: 8, orders: [2], condition_n: [8, 16], condition_orders: [1]}
"""
STUDY = "base: base.yaml\naxes: {model.order: [4, 5]}\n" + ANALYSES


def written(folder: Path, study: str = STUDY) -> Path:
    """The study's file, beside two base configs."""
    (folder / "base.yaml").write_text(BASE)
    (folder / "other.yaml").write_text(BASE.replace("dimension: 1", "dimension: 2"))
    (folder / "study.yaml").write_text(study)
    return folder / "study.yaml"


def found_in(study: kanpinn.Study) -> dict[str, Finding]:
    """Findings; none of the analyses has failed."""
    found = {}
    for name, one in findings(study).items():
        assert not isinstance(one, str), one
        found[name] = one
    return found


def test_analyses_are_done_once_and_reported(tmp_path: Path) -> None:
    told: list[str] = []
    config, out = written(tmp_path), tmp_path / "out"
    study = kanpinn.run_study(config, out, tell=told.append)
    assert sum("analysis" in text and "done in" in text for text in told) == 3
    found = found_in(study)
    assert list(found) == ["residual_spectrum", "residual_spectrum_2", "basis_spectrum"]
    orders = [{row["model.order"] for row in found[name].rows} for name in list(found)[:2]]
    assert orders == [{"5"}, {"4", "5"}]
    report = out / "report"
    assert (report / "residual_spectrum_2.csv").read_text().count("\n") == 9  # 2 runs, 2 levels
    page = (report / "report.html").read_text()
    assert page.count(found["residual_spectrum"].title) >= 2  # its heading, its picture
    told.clear()
    kanpinn.run_study(config, out, tell=told.append)
    assert not any("analysis" in text for text in told)
    # A run that has changed is analysed anew, and so is what is asked for otherwise.
    summary = study.cases[0].folder / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "loss": 7.0}))
    written(tmp_path, STUDY.replace("n: 8, orders", "n: 9, orders"))
    kanpinn.run_study(config, out, tell=told.append)
    again = [text.split(":")[0] for text in told if "done in" in text]
    assert again == ["analysis residual_spectrum_2", "analysis basis_spectrum"]
    api.write_report(api.load_study(out))
    assert (report / "basis_spectrum.md").is_file()


def test_analyses_alone(tmp_path: Path) -> None:
    alone = "analyses: [{name: preconditioned_descent, n: 8, iterations: 10}]\n"
    study = kanpinn.run_study(written(tmp_path, alone), tmp_path / "out")
    assert not study.cases and list(found_in(study)) == ["preconditioned_descent"]
    assert not (tmp_path / "out" / "report" / "finals.csv").exists()


@pytest.mark.parametrize(
    ("analyses", "message"),
    [
        ("[{name: basis_spectrm}]", "analyses.0"),
        ("[{name: basis_spectrum, n: 3}]", "analyses.0.n: found 3"),
        ("[{name: residual_spectrum, select: 3}]", "analyses.0.select: found 3; labels by axis"),
        ("[{name: residual_spectrum, select: {order: 4}}]", "analyses.0.select: no axis 'order'"),
        ("[{name: residual_spectrum, select: {self: 1}}]", "analyses.0.select: no axis 'self'"),
        (
            "[{name: residual_spectrum, select: {model.order: 6}}]",
            "analyses.0.select: axis model.order: no label '6'",
        ),
    ],
)
def test_analyses_that_cannot_be_used(tmp_path: Path, analyses: str, message: str) -> None:
    text = f"base: base.yaml\naxes: {{model.order: [4, 5]}}\nanalyses: {analyses}\n"
    with pytest.raises(ConfigError) as raised:
        kanpinn.run_study(written(tmp_path, text), tmp_path / "out")
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["training_spectra", "residual_spectrum", "prolongation_change"])
def test_axes_cannot_be_called_like_columns_of_an_analysis(tmp_path: Path, name: str) -> None:
    text = "base: base.yaml\naxes: {COLUMN: {a: {model.order: 4}}}\nanalyses: [{name: NAME}]\n"
    text = text.replace("NAME", name)
    clashing = sorted(columns_of(parse([{"name": name}])[0]) - COLUMNS)[0]
    with pytest.raises(ConfigError, match=f"the axis {clashing} is a column of {name}"):
        kanpinn.run_study(written(tmp_path, text.replace("COLUMN", clashing)), tmp_path / "out")
    config = written(tmp_path, text.replace("COLUMN", "network"))
    found = found_in(kanpinn.run_study(config, tmp_path / "fine"))[name]
    columns = {column for row in (*found.rows, *found.curves) for column in row}
    assert columns - {"network"} <= columns_of(parse([{"name": name}])[0])


def test_an_analysis_that_fails_is_told_of_and_leaves_nothing_old(tmp_path: Path) -> None:
    text = "base: base.yaml\nanalyses: [{name: residual_spectrum, of: error}]\n"
    config = written(tmp_path, text)
    arguments = ["study", str(config), "--out", str(tmp_path / "out"), "-q"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    (tmp_path / "out" / "analyses" / "residual_spectrum.json").unlink()
    stored = next((tmp_path / "out" / "cases").glob("*/checkpoint.h5"))
    stored.write_bytes(b"nothing")
    failed = CliRunner().invoke(main, arguments)
    assert failed.exit_code == 1 and "is not a kanpinn checkpoint" in failed.stderr
    page = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "Analysis residual_spectrum" in page and "Spectrum of what is left" not in page


def test_runs_that_diverged_are_not_analysed(tmp_path: Path) -> None:
    phases = "[{optimiser: adam, learning_rate: LR, steps: 3}]"
    axes = "".join(
        f"    {name}: {{training.phases: {phases.replace('LR', rate)}}}\n"
        for name, rate in (("fine", "1e-3"), ("wild", "1e300"))
    )
    text = f"base: base.yaml\naxes:\n  rate:\n{axes}analyses: [{{name: training_spectra}}]\n"
    study = kanpinn.run_study(written(tmp_path, text), tmp_path / "out")
    statuses = [case.summary["status"] for case in study.cases if case.summary]
    assert statuses == ["completed", "diverged"]
    assert {row["rate"] for row in found_in(study)["training_spectra"].rows} == {"fine"}


def test_threads_of_a_case_are_its_own(tmp_path: Path) -> None:
    text = "base: base.yaml\naxes: {threads: [1, 3, null]}\n"
    study = kanpinn.run_study(written(tmp_path, text), tmp_path / "out", jobs=1)
    found = [read_yaml(case.folder / "config.yaml")["threads"] for case in study.cases]
    assert found[:2] == [1, 3] and found[2] >= 1


def test_analyses_of_runs_need_runs(tmp_path: Path) -> None:
    config = written(tmp_path, "analyses: [{name: residual_spectrum}]\n")
    with pytest.raises(ConfigError, match="the study has no cases"):
        kanpinn.run_study(config, tmp_path / "out")


def test_cases_with_a_base_of_their_own(tmp_path: Path) -> None:
    text = "axes: {config: {one: {base: base.yaml}, two: {base: other.yaml}}}\n"
    config, out = written(tmp_path, text), tmp_path / "out"
    study = kanpinn.run_study(config, out)
    problems = [read_yaml(case.folder / "config.yaml")["problem"] for case in study.cases]
    assert [problem["dimension"] for problem in problems] == [1, 2]
    assert not kanpinn.load_study(out).missing and not kanpinn.load_study(out / "study.h5").missing
    (tmp_path / "other.yaml").write_text(BASE.replace("dimension: 1", "dimension: 3"))
    with pytest.raises(RunFolderError, match=r"another base config other.yaml, which differs in p"):
        kanpinn.run_study(config, out)


def test_models_that_do_not_fit_are_refused_before_any_case_runs(tmp_path: Path) -> None:
    text = "base: base.yaml\naxes: {model.widths: [[1, 2, 1], [2, 2, 1]], seed: [1, 2]}\n"
    with pytest.raises(ConfigError, match=r"case model.widths=\[2, 2, 1\], seed=2: model.widths"):
        kanpinn.run_study(written(tmp_path, text), tmp_path / "out")
    assert not list((tmp_path / "out" / "cases").glob("*/metrics.jsonl"))


def test_a_base_is_needed(tmp_path: Path) -> None:
    text = "axes: {config: {one: {base: base.yaml}, two: {seed: 1}}}\n"
    with pytest.raises(ConfigError, match="base: is missing"):
        kanpinn.run_study(written(tmp_path, text), tmp_path / "out")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_can_be_run(path: Path) -> None:
    data = read_yaml(path)
    assert "quick" in data["variants"]
    for variant in (None, *data["variants"]):
        design = parse_study(data, str(path), path.stem, variant)
        cases = resolve_cases(design, bases_of(design, path), path)
        parse_requests(design, str(path))
        configs = [json.dumps(data, sort_keys=True) for _, data in cases]
        assert len(set(configs)) == len(configs)
        if variant:
            alike = {case.title.partition("seed=")[0]: data for case, data in cases}
            for data in alike.values():
                api.prepare({**data, "name": "case"})

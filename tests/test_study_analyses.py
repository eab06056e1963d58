"""Studies with analyses, with a base for every case; the shipped studies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kanpinn
from kanpinn import api
from kanpinn.api.study_analyses import findings, parse_requests
from kanpinn.api.study_cases import bases_of, resolve_cases
from kanpinn.config import parse_study, read_yaml
from kanpinn.errors import ConfigError, RunFolderError

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


def test_analyses_are_done_once_and_reported(tmp_path: Path) -> None:
    told: list[str] = []
    config, out = written(tmp_path), tmp_path / "out"
    study = kanpinn.run_study(config, out, tell=told.append)
    assert sum("analysis" in text and "done in" in text for text in told) == 3
    found = findings(study)
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
    assert not study.cases and list(findings(study)) == ["preconditioned_descent"]
    assert not (tmp_path / "out" / "report" / "finals.csv").exists()


@pytest.mark.parametrize(
    ("analyses", "message"),
    [
        ("[{name: basis_spectrm}]", "analyses.0"),
        ("[{name: basis_spectrum, n: 3}]", "analyses.0.n: found 3"),
        ("[{name: residual_spectrum, select: 3}]", "analyses.0.select: found 3; labels by axis"),
        ("[{name: residual_spectrum, select: {order: 4}}]", "analyses.0.select: no axis 'order'"),
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
        resolve_cases(design, bases_of(design, path), path)
        parse_requests(design, str(path))

"""Studies: designs, runs in processes of their own, reports."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import kanpinn
from kanpinn import api
from kanpinn.cli import main
from kanpinn.errors import RunFolderError

BASE = """
problem: {name: poisson, dimension: 1}
model: {width: 2, order: 4, intervals: 2}
sampling: {interior: 32, held_out: 32}
training: {levels: 2, phases: [{optimiser: lm, steps: 2}]}
figures: false
"""
STUDY = "base: base.yaml\naxes: {model.order: [4, 5], seed: [1, 2]}\n"


def written(folder: Path, study: str = STUDY, base: str = BASE) -> Path:
    """The study's file, beside its base config."""
    (folder / "base.yaml").write_text(base)
    (folder / "orders.yaml").write_text(study)
    return folder / "orders.yaml"


def test_a_study_runs_what_is_missing_and_reports(tmp_path: Path) -> None:
    told: list[str] = []
    config = written(tmp_path)
    study = kanpinn.run_study(config, tmp_path / "out", jobs=2, tell=told.append)
    assert not study.missing and len(told) == 4
    assert study.cases[0].case.title == "model.order=4, seed=1"
    assert {(row["level"], row["runs"]) for row in study.medians()} == {(0, 2), (1, 2)}
    report = study.folder / "report"
    with (report / "levels.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8
    for row, line in zip(study.rows(), lines, strict=True):
        assert float(line["rel_l2"]) == row.rel_l2 and line["model.order"] in ("4", "5")
    assert (report / "medians.tex").read_text().count(r"\\") == 5
    page = (report / "report.html").read_text()
    assert page.count("data:image/png") == 2 and "src='http" not in page
    # A run of the study is that of solve with the same changes.
    alone = kanpinn.solve(
        tmp_path / "base.yaml", ["model.order=4", "seed=1"], tmp_path / "alone"
    ).rel_l2
    assert study.cases[0].summary is not None and study.cases[0].summary["rel_l2"] == alone
    assert study.cases[0].solution(np.zeros((1, 1))).shape == (1, 1)
    # Again: nothing runs; with one case lost, that one; with a seed more, those.
    for path in sorted(study.cases[0].folder.iterdir(), reverse=True):
        path.unlink()
    told.clear()
    written(tmp_path, STUDY.replace("[1, 2]", "[1, 2, 3]"))
    grown = kanpinn.run_study(config, tmp_path / "out", tell=told.append)
    assert told[0] == "3 of 6 cases have a result already" and len(told) == 4
    assert not grown.missing and len(kanpinn.load_study(tmp_path / "out").cases) == 6
    # The folder belongs to its base config.
    written(tmp_path, base=BASE.replace("interior: 32", "interior: 33"))
    with pytest.raises(RunFolderError, match=r"another base config, which differs in sampling"):
        kanpinn.run_study(config, tmp_path / "out")


def test_a_case_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    failing = "from kanpinn_problems.poisson import Poisson\n\n"
    failing += "class Failing(Poisson):\n    def residual(self, p):\n"
    failing += "        raise RuntimeError('no way')\n"
    (tmp_path / "own.py").write_text(failing)
    axes = "{problem.name: ['own.py:Failing', poisson]}"
    study = kanpinn.run_study(written(tmp_path, f"base: base.yaml\naxes: {axes}\n"), tmp_path / "o")
    (missing,) = study.missing
    assert missing.error is not None and len(study.rows()) == 2
    assert "no way" in missing.error


def refused(arguments: list[str]) -> str:
    """The message of a usage error."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    return result.stderr


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (
            "base: base.yaml\naxes: {model.ordr: [4]}\n",
            "axes: model.ordr: names nothing in the base config; did you mean 'model.order'?",
        ),
        (
            "base: base.yaml\ncases: {a: {trainin.levels: 1}}\n",
            "case case=a: trainin.levels: names nothing in the base config; did you mean "
            "'training.levels'?",
        ),
        ("base: base.yaml\naxes: {qqqq: [1]}\n", "allowed: its keys, and labels for other names"),
        # A key of another kind of model is no misspelling.
        ("base: base.yaml\naxes: {model.activation: [tanh]}\n", "it belongs to mlp"),
        ("base: base.yaml\naxes: {model.order: [1]}\n", "case model.order=1"),
        ("base: none.yaml\naxes: {seed: [1]}\n", "none.yaml"),
    ],
)
def test_cases_are_checked_before_any_runs(tmp_path: Path, study: str, message: str) -> None:
    out = tmp_path / "out"
    assert message in refused(["study", str(written(tmp_path, study)), "--out", str(out)])
    assert not out.exists()


def test_folders_that_are_none_of_a_study(tmp_path: Path) -> None:
    config = written(tmp_path)
    assert "holds no study" in refused(["study", str(config), "--out", str(tmp_path)])
    assert "holds no study.yaml" in refused(["report", str(tmp_path)])
    assert "jobs: found 0" in refused(["study", str(config), "--jobs", "0"])


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, STUDY.replace("[1, 2]", "[1]"))
    run: Callable[[list[str]], Any] = lambda arguments: CliRunner().invoke(main, arguments)  # noqa: E731
    result = run(["study", "orders.yaml"])
    assert result.exit_code == 0, result.output
    assert "model.order" in result.stdout and "[2/2]" in result.stderr
    assert "report: runs/studies/orders/report/report.html" in result.stdout
    found = json.loads(run(["report", "runs/studies/orders", "--json"]).stdout)
    assert found["missing"] == 0 and len(found["medians"]) == 4
    assert isinstance(api.load_study("runs/studies/orders"), kanpinn.Study)

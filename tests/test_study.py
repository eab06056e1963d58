"""Studies: designs, runs in processes of their own, reports."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from here import leave_pictures_blank, run_cases_here

import kanpinn
from kanpinn import api
from kanpinn.cli import main
from kanpinn.errors import CheckpointError, ConfigError, RunFolderError

pytestmark = pytest.mark.usefixtures("blank_pictures")

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


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> kanpinn.Study:
    """A study that was run, not to be changed."""
    folder = tmp_path_factory.mktemp("ran")
    with pytest.MonkeyPatch.context() as patch:
        run_cases_here(patch)
        leave_pictures_blank(patch)
        study = kanpinn.run_study(written(folder), folder / "out")
    assert not study.missing
    return study


def test_tables_hold_what_the_runs_found(ran: kanpinn.Study) -> None:
    assert ran.cases[0].case.title == "model.order=4, seed=1"
    assert {(row["level"], row["runs"]) for row in ran.medians()} == {(0, 2), (1, 2)}
    report = ran.folder / "report"
    with (report / "levels.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8
    for row, line in zip(ran.rows(), lines, strict=True):
        assert float(line["rel_l2"]) == row.rel_l2 and line["model.order"] in ("4", "5")
    for name, count in {"levels": 8, "medians": 4, "finals": 4, "final_medians": 2}.items():
        assert (report / f"{name}.tex").read_text().count(r"\\") == 1 + count
        assert (report / f"{name}.md").read_text().count("\n") == 2 + count
    assert [row["levels"] for row in ran.finals()] == [2] * 4
    page = (report / "report.html").read_text()
    assert page.count("data:image/png") >= 2 and "src='http" not in page


def test_a_case_is_what_solve_makes_of_it(ran: kanpinn.Study, tmp_path: Path) -> None:
    base = ran.folder.parent / "base.yaml"
    alone = kanpinn.solve(base, ["model.order=4", "seed=1"], tmp_path / "alone")
    first = ran.cases[0]
    assert first.summary is not None and first.summary["rel_l2"] == alone.rel_l2
    assert first.solution(np.zeros((1, 1))).shape == (1, 1)


def test_the_file_of_a_study_is_read_by_h5py_alone(ran: kanpinn.Study) -> None:
    with h5py.File(ran.folder / "study.h5") as file:
        assert file.attrs["program"].decode() == "kanpinn study"
        design = file["design"][()].decode()
        groups = sorted(file["cases"].values(), key=lambda group: group.attrs["number"])
        assert len(groups) == file["cases"].attrs["count"] == 4
        for group, found in zip(groups, ran.cases, strict=True):
            assert group.attrs["title"].decode() == found.case.title
            assert group.attrs["status"].decode() == "completed"
            assert group.attrs["label.seed"].decode() == found.case.labels["seed"]
            rows = [row for row in ran.rows() if row.labels == found.case.labels]
            assert group["levels/rel_l2"][:].tolist() == [row.rel_l2 for row in rows]
            assert group["levels/level"][:].tolist() == [0, 1]
            assert np.isnan(group["levels/order"][0])
            assert group["levels/ended_by"][0].decode() == rows[0].ended_by
            steps = [row["step"] for row in found.lines]
            assert group["history/step"][:].tolist() == steps and len(steps) > 2
            assert group["history/phase"][0].decode() == "start"
            config = yaml.safe_load(group["config"][()])
            assert str(config["model"]["order"]) == found.case.labels["model.order"]
    assert "base_config" in yaml.safe_load(design)


def test_the_file_alone_is_the_study(ran: kanpinn.Study, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.h5"
    shutil.copy(ran.folder / "study.h5", moved)
    found = kanpinn.load_study(moved)
    assert found.design == kanpinn.load_study(ran.folder).design
    assert found.rows() == ran.rows() and found.finals() == ran.finals()
    assert found.medians() == ran.medians() and not found.missing
    assert found.cases[2].lines == ran.cases[2].lines
    assert found.cases[2].config == ran.cases[2].config
    with pytest.raises(CheckpointError, match=r"cases/model.order=4_seed=1"):
        found.cases[0].solution  # noqa: B018
    written_again = api.write_report(found)  # beside the file
    assert (written_again / "report.html").is_file() and not (tmp_path / "study.h5").exists()


def test_files_that_are_none_of_a_study(ran: kanpinn.Study, tmp_path: Path) -> None:
    checkpoint = ran.cases[0].folder / "checkpoint.h5"
    assert f"{checkpoint}: is no file of a study" in refused(["report", str(checkpoint)])
    text = tmp_path / "a.h5"
    text.write_text("no")
    assert f"{text}: is no HDF5 file" in refused(["report", str(text)])
    cut = tmp_path / "cut.h5"
    cut.write_bytes((ran.folder / "study.h5").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cut.h5: "):
        kanpinn.load_study(cut)
    newer = tmp_path / "newer.h5"
    shutil.copy(ran.folder / "study.h5", newer)
    with h5py.File(newer, "a") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(CheckpointError, match=r"newer.h5: needs a newer kanpinn"):
        kanpinn.load_study(newer)


def test_a_file_that_cannot_be_written_leaves_the_one_before(
    ran: kanpinn.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (ran.folder / "study.h5").read_bytes()

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kanpinn.io.study_file.put_json", full)
    with pytest.raises(RunFolderError, match=r"cannot be written \(No space left on device\)"):
        api.write_report(ran)
    assert (ran.folder / "study.h5").read_bytes() == before
    assert not list(ran.folder.glob(".study.h5*"))


def test_cases_are_selected_by_their_labels(ran: kanpinn.Study) -> None:
    five = ran.select(**{"model.order": 5})
    assert [found.case.title for found in five.cases] == [
        "model.order=5, seed=1",
        "model.order=5, seed=2",
    ]
    (one,) = five.select(seed=[2, "2"]).cases
    assert one.case.labels["seed"] == "2" and len(ran.select(seed=[1, 2]).cases) == 4
    assert [row["runs"] for row in five.medians()] == [2, 2]
    with pytest.raises(ConfigError, match=r"no axis 'sead'; did you mean 'seed'\? allowed: model"):
        ran.select(sead=1)
    with pytest.raises(ConfigError, match=r"axis seed: no label '3'; allowed: 1, 2"):
        ran.select(seed=3)


def test_histories_are_columns(ran: kanpinn.Study) -> None:
    first = ran.cases[0]
    history = ran.history(first)
    assert history["loss"].dtype == float and len(history["loss"]) == len(first.lines)
    for name in (first.case, first.case.title, first.case.folder):
        assert ran.history(name)["step"].tolist() == history["step"].tolist()
    expected = first.solution.history
    assert all((history[k] == expected[k]).all() for k in ("step", "loss", "phase", "rel_l2"))
    with pytest.raises(ConfigError, match=r"no case 'model.order=4, seed=7'; did you mean"):
        ran.history("model.order=4, seed=7")


def test_a_study_runs_what_is_missing(ran: kanpinn.Study, tmp_path: Path) -> None:
    """One case was lost, and there is a seed more."""
    shutil.copytree(ran.folder, tmp_path / "out")
    study = kanpinn.load_study(tmp_path / "out")
    shutil.rmtree(study.cases[0].folder)
    told: list[str] = []
    config = written(tmp_path, STUDY.replace("[1, 2]", "[1, 2, 3]"))
    grown = kanpinn.run_study(config, tmp_path / "out", jobs=2, tell=told.append)
    assert told[0] == "3 of 6 cases have a result already" and len(told) == 4
    assert told[-1].startswith("[6/6] ")
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
    assert "jobs: found 0" in refused(["study", str(config), "--jobs", "0"])


def test_a_dry_run_lists_what_is_missing(ran: kanpinn.Study, tmp_path: Path) -> None:
    more = STUDY.replace("[1, 2]", "[1, 2, 3]") + "analyses: [{name: residual_spectrum}]\n"
    shutil.copytree(ran.folder, tmp_path / "out")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    config = written(tmp_path, more)
    arguments = ["study", str(config), "--out", str(tmp_path / "out"), "--dry-run"]
    told = CliRunner().invoke(main, arguments)
    assert told.exit_code == 0
    assert told.stdout.splitlines()[:2] == ["model.order=4, seed=3", "model.order=5, seed=3"]
    assert "2 of 6 cases to run, analyses: residual_spectrum; folder " in told.stdout
    found = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert len(found["cases"]) == 6 and found["waiting"] == told.stdout.splitlines()[:2]
    new = str(tmp_path / "new")
    assert "\n6 cases, " in CliRunner().invoke(main, [*arguments[:3], new, "--dry-run"]).stdout
    written(tmp_path, more, BASE.replace("interior: 32", "interior: 33"))
    assert "another base config" in refused(arguments)
    after = {path.name for path in tmp_path.rglob("*")}
    assert after == {*before, "base.yaml", "orders.yaml"}


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, STUDY.replace("[1, 2]", "[1]").replace("[4, 5]", "[4]"))
    run: Callable[[list[str]], Any] = lambda arguments: CliRunner().invoke(main, arguments)  # noqa: E731
    result = run(["study", "orders.yaml"])
    assert result.exit_code == 0, result.output
    assert "model.order" in result.stdout and "[1/1]" in result.stderr
    assert "report: runs/studies/orders/report/report.html" in result.stdout
    found = json.loads(run(["report", "runs/studies/orders", "--json"]).stdout)
    assert found["missing"] == 0 and len(found["medians"]) == 2
    assert isinstance(api.load_study("runs/studies/orders"), kanpinn.Study)

"""Names: problems registered by packages, problems in files, and what `kanpinn list` shows."""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from kanpinn import registry
from kanpinn.config import ProblemConfig, parse_config
from kanpinn.errors import DataError, ProblemError
from kanpinn.optimisers import OPTIMISERS
from kanpinn.problem import Problem
from kanpinn.registry import (
    build_problem,
    list_bases,
    list_models,
    list_optimisers,
    list_problems,
    problem_class,
    problem_source,
)

HEAD = """\
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from kanpinn import Box, Problem
from kanpinn.errors import DataError
"""
DECAY = f'''{HEAD}
@dataclass
class Decay(Problem):
    """Decay of a thing."""
    rate: float = 1.0
    file: Path = Path("data.csv")
    domain = Box([0.0], [1.0])
    def __post_init__(self):
        if self.rate == 2.0:
            raise DataError("data.csv: two")
        assert self.rate < 3.0, "too fast"

class Other: ...
number = 3
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "decay.py").write_text(DECAY, encoding="utf-8")
    return tmp_path


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four registered problems in a made-up package; two of them cannot be used."""
    module = ModuleType("made_up")

    class Good(Problem):
        """A good problem."""

        summary = "u = 0"

    class Mute(Problem):
        """A problem with no summary.

        More.
        """

    module.__dict__.update(Good=Good, Mute=Mute, Wrong=int)
    monkeypatch.setitem(sys.modules, "made_up", module)
    values = {
        "good": "made_up:Good",
        "mute": "made_up:Mute",
        "wrong": "made_up:Wrong",
        "gone": "made_up_and_missing:Any",
    }
    points = [EntryPoint(name, value, registry.GROUP) for name, value in values.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)


# --- registered problems ------------------------------------------------------------------------
def test_registered(registered: None) -> None:
    assert problem_class("good") is sys.modules["made_up"].Good
    assert problem_source("good") is None
    assert isinstance(build_problem(ProblemConfig(name="good")), Problem)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("goood", "unknown problem 'goood'; did you mean 'good'? allowed: gone, good, mute, wrong; "
                  "or path/to/file.py:ClassName"),
        ("zzz", "unknown problem 'zzz'; allowed: gone, good, mute, wrong; or path/to/file.py:Clas"),
        ("", "unknown problem ''; allowed: gone"),
        ("wrong", "problem 'wrong': made_up:Wrong is no subclass of kanpinn.Problem"),
        ("gone", "problem 'gone' (made_up_and_missing:Any) cannot be imported: "
                 "ModuleNotFoundError: No module named 'made_up_and_missing'"),
        ("decay.py", "problem 'decay.py': the class is missing, allowed: decay.py:ClassName"),
        ("decay:Decay", "allowed: a registered name or path/to/file.py:ClassName"),
        ("decay.py:a b", "allowed: a registered name or path/to/file.py:ClassName"),
    ],
)  # fmt: skip
def test_unusable_name(registered: None, name: str, message: str) -> None:
    with pytest.raises(ProblemError) as caught:
        problem_class(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    with pytest.raises(
        ProblemError, match="unknown problem 'poisson', and none is registered: is ka"
    ):
        problem_class("poisson")


def test_list_problems(registered: None) -> None:
    found = {entry.name: entry.summary for entry in list_problems()}
    assert found["good"] == "u = 0"
    assert found["mute"] == "A problem with no summary."
    assert found["gone"].startswith("cannot be used: problem 'gone'")
    assert list(found) == ["gone", "good", "mute", "wrong"]


def test_shipped_problems_are_registered() -> None:
    names = [entry.name for entry in list_problems()]
    assert {"poisson", "burgers", "regression"} <= set(names)
    assert problem_class("poisson").summary


# --- problems in files --------------------------------------------------------------------------
def test_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = problem_class("decay.py:Decay", folder)
    assert issubclass(cls, Problem)
    assert cls.__name__ == "Decay"
    assert problem_class(f"{folder}/decay.py:Decay") is cls  # executed once
    monkeypatch.chdir(folder)
    assert problem_class("./decay.py:Decay") is cls
    assert not (folder / "__pycache__").exists()


def test_changed_file_is_read_anew(folder: Path) -> None:
    first = problem_class("decay.py:Decay", folder)
    (folder / "decay.py").write_text(DECAY.replace("= 1.0", "= 1.5"))
    assert problem_class("decay.py:Decay", folder).rate == 1.5  # type: ignore[attr-defined]
    assert first.rate == 1.0  # type: ignore[attr-defined]


def test_source(folder: Path) -> None:
    source = problem_source("decay.py:Decay", folder)
    assert source is not None
    assert source.path == folder / "decay.py"
    assert source.class_name == "Decay"
    assert source.sha256 == hashlib.sha256((folder / "decay.py").read_bytes()).hexdigest()
    (folder / "exits.py").write_text("raise SystemExit")
    assert problem_source("exits.py:P", folder) is not None  # nothing was executed


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "bad.py: no such file"),
        ("class Q: ...", "bad.py: has no class 'P'"),
        ("class P: ...", "bad.py: is no subclass of kanpinn.Problem: 'P'"),
        ("P = 3", "bad.py: is no subclass of kanpinn.Problem: 'P'"),
        (
            HEAD + "class Pp(Problem): ...",
            "bad.py: has no class 'P'; did you mean 'Pp'? allowed: Pp",
        ),
        ("x = 1\n\nx = 1 / 0\n", "bad.py:3: ZeroDivisionError: division by zero"),
        ("def f():\n    raise ValueError('a\\nb')\n\nf()\n", "bad.py:2: ValueError: a b"),
        ("import missing_module\n", "bad.py:1: ModuleNotFoundError: No module named 'missing_mod"),
        ("x = 1\nclass P(:\n", "bad.py:2: SyntaxError: "),
        ("import json\njson.loads('{')\n", "bad.py:2: JSONDecodeError: "),
        ("raise SystemExit(3)\n", "bad.py:1: SystemExit: 3"),
        ("\0", "Error: source code string cannot contain null bytes"),
        ("\udcff", "bad.py:1: SyntaxError: "),
    ],
)
def test_unusable_file(tmp_path: Path, code: str | None, message: str) -> None:
    if code is not None:
        (tmp_path / "bad.py").write_bytes(code.encode(errors="surrogateescape"))
    before = set(sys.modules)
    with pytest.raises(ProblemError) as caught:
        problem_class("bad.py:P", tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    left = {name for name in set(sys.modules) - before if name.startswith("_kanpinn_problem")}
    assert not left or code is None or "class" in code or code.startswith("P")


def test_interrupt_passes(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        problem_class("slow.py:P", tmp_path)


def test_folder_instead_of_file(tmp_path: Path) -> None:
    (tmp_path / "p.py").mkdir()
    with pytest.raises(ProblemError, match=r"p\.py: no such file"):
        problem_class("p.py:P", tmp_path)


# --- building -----------------------------------------------------------------------------------
def test_build(folder: Path) -> None:
    data = {"problem": {"name": "decay.py:Decay", "rate": 0.5}}
    problem = build_problem(parse_config(data, base_dir=folder).problem)
    assert problem.rate == 0.5  # type: ignore[attr-defined]
    assert problem.file == folder / "data.csv"  # type: ignore[attr-defined]
    by_hand = ProblemConfig(name="decay.py:Decay", parameters={"file": Path("x.csv")})
    assert build_problem(by_hand, folder).file == folder / "x.csv"  # type: ignore[attr-defined]


def test_build_fails(folder: Path) -> None:
    name = "decay.py:Decay"
    with pytest.raises(
        ProblemError, match=r"^problem decay\.py:Decay: AssertionError: too fast"
    ) as e:
        build_problem(ProblemConfig(name=name, parameters={"rate": 5.0}), folder)
    line = DECAY.splitlines().index('        assert self.rate < 3.0, "too fast"') + 1
    assert str(e.value).endswith(f"({folder / 'decay.py'}:{line})")
    with pytest.raises(DataError, match=r"^data\.csv: two$"):
        build_problem(ProblemConfig(name=name, parameters={"rate": 2.0}), folder)
    with pytest.raises(ProblemError, match="unexpected keyword argument 'zzz'"):
        build_problem(ProblemConfig(name=name, parameters={"zzz": 2.0}), folder)


# --- the other names ----------------------------------------------------------------------------
def test_other_lists() -> None:
    assert [entry.name for entry in list_models()] == ["kan", "multichannel", "mlp"]
    assert [entry.name for entry in list_optimisers()] == ["auto", *OPTIMISERS]
    assert len(list_bases()) == 2
    lists = [list_models(), list_bases(), list_optimisers()]
    for entries in lists:
        assert all(entry.summary and "\n" not in entry.summary for entry in entries)


def test_every_optimiser_is_listed() -> None:
    from kanpinn.optimisers import AnyOptimiserOptions

    assert len(list_optimisers()) == 1 + len(get_args(AnyOptimiserOptions))

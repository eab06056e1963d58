"""Configs: what is read from YAML, what is refused and how, overrides, round trips, devices."""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kanpinn.config import (
    RESUMABLE_KEYS,
    RunConfig,
    differing_keys,
    dump_yaml,
    load_config,
    naming,
    parse_config,
    parse_yaml,
    resolve_device,
    run_options,
    to_dict,
)
from kanpinn.config.overrides import split_override
from kanpinn.config.reference import reference
from kanpinn.errors import ConfigError, DeviceError, KnotError
from kanpinn.models import Abs, KANOptions, MLPOptions, MultichannelOptions
from kanpinn.optimisers import CosineSchedule
from kanpinn.training import AdamPhase, LBFGSPhase

REPOSITORY = Path(__file__).resolve().parent.parent
POISSON = REPOSITORY / "configs" / "poisson.yaml"

PROBLEM = '''
from __future__ import annotations
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal
from annotated_types import Ge, Gt, MinLen
from kanpinn import Box, Problem

class Side(Enum):
    LEFT = "left"
    RIGHT = "right"

@dataclass
class Heat(Problem):
    """Heat."""
    file: Annotated[Path, "data"]
    nu: Annotated[float, Gt(0), "viscosity"] = 1
    columns: Annotated[tuple[str, ...], MinLen(1), "columns"] = ("u",)
    side: Side = Side.LEFT
    extra: tuple[Path, ...] = ()
    domain = Box([0.0], [1.0])
'''

BASE = """\
problem: {name: heat.py:Heat, file: data.csv}
model: {width: 8, order: 6}
training:
  phases:
    - {optimiser: adam, steps: 10, learning_rate: 1e-2}
    - {optimiser: lbfgs, steps: 20}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "heat.py").write_text(PROBLEM, encoding="utf-8")
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Callable[..., RunConfig]:
    """Loads a text as the file run.yaml; ``file:`` in messages stands for its path."""

    def load(text: str | bytes = BASE, *overrides: str) -> RunConfig:
        data = text if isinstance(text, bytes) else text.encode()
        (folder / "run.yaml").write_bytes(data)
        return load_config(folder / "run.yaml", overrides)

    return load


@pytest.fixture
def refused(load: Callable[..., RunConfig], folder: Path) -> Callable[..., str]:
    """The message of a config that must be refused, with ``F`` for its path."""

    def refused(text: str | bytes = BASE, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        message = str(caught.value)
        assert all(line.startswith(str(folder)) for line in message.split("\n")), message
        assert len(message.split("\n")) <= 5
        return message.replace(str(folder / "run.yaml"), "F")

    return refused


# --- YAML ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("-.5", -0.5), ("5.", 5.0), ("1.5e+3", 1500.0), ("+2", 2),
        ("010", 10), ("0x1f", 31), ("0o17", 15), ("12:30", "12:30"), ("1_000", "1_000"),
        ("no", "no"), ("on", "on"), ("true", True), ("False", False), ("~", None), ("", None),
        ("null", None), ("'8'", "8"), ('"null"', "null"), ("2026-01-02", "2026-01-02"),
        (".inf", math.inf), ("-.INF", -math.inf), ("e5", "e5"), ("cuda:0", "cuda:0"), ("=", "="),
        ("[1, a, [2.]]", [1, "a", [2.0]]), ("{a: {b: 1}, 3: x}", {"a": {"b": 1}, "3": "x"}),
        ("<<", "<<"), ("sin(pi*x) + y^2", "sin(pi*x) + y^2"), ("1e", "1e"), ("0x", "0x"),
    ],
)  # fmt: skip
def test_yaml_values(text: str, value: Any) -> None:
    found = parse_yaml(text, "text")
    assert found == value
    assert type(found) is type(value)


def test_yaml_nan() -> None:
    assert math.isnan(parse_yaml(".nan", "text"))


TRICKY = ["no", "1e-3", "8", "null", "", "~", "a: b", "- x", "#", "*", "&a", "!t", " x ", "a\nb",
          "ü", "\u2028", "'", '"', ".nan", "0x1", "true", "{", "%", "@", "x" * 300, "\x85", "\x07",
          "\U0001f600"]  # fmt: skip


@pytest.mark.parametrize("text", TRICKY)
def test_text_survives_a_dump(text: str) -> None:
    data = {"key": text, text: [text, {text: 1e-300}], "list": [[1, 2.0, None], [True]]}
    assert parse_yaml(dump_yaml(data), "text") == data


def test_numbers_survive_a_dump() -> None:
    numbers = [1e-3, 0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, 1e16, 3, -(2**62)]
    found = parse_yaml(dump_yaml(numbers), "text")
    assert [(type(x), repr(x)) for x in found] == [(type(x), repr(x)) for x in numbers]


BAD_FILES = [
    (b"", "F: empty; a config needs at least the key 'problem'"),
    (b"# only a comment\n", "F: empty; a config needs at least the key 'problem'"),
    (b"\x89HDF\r\n\x1a\n\0\0\0", "F: binary, or not in UTF-8; allowed: YAML text in UTF-8"),
    (b"a: 1\0", "F: binary, or with control characters; allowed: YAML text in UTF-8"),
    (b"problem: \xff\xfe", "F: binary, or not in UTF-8; allowed: YAML text in UTF-8"),
    ("problem: ä".encode("utf-16"), "F: binary, or not in UTF-8; allowed: YAML text in UTF-8"),
    (b"- problem\n", "F: found a list at the top, allowed: a mapping (KEY: VALUE)"),
    (b"problem\n", "F: found 'problem' at the top, allowed: a mapping (KEY: VALUE)"),
    (b"a: [1, 2\nb: 3\n", "F: line 2, column 2: malformed YAML: "),
    (b"a: 1\n  b: 2\n", "F: line 2, column 4: malformed YAML: mapping values are not allowed"),
    (b"a: 1\n\tb: 2\n", "malformed YAML: "),
    (b"seed: 1\nseed: 2\n", "F: line 2, column 1: found the key 'seed' a second time"),
    (b"a: &x 1\nb: *x\n", "F: line 1, column 4: found an anchor (&x); allowed: plain data"),
    (b"a: *x\n", "F: line 1, column 4: "),
    (
        b"a: !!python/object/apply:os.system [ls]\n",
        "F: line 1, column 4: found a tag (tag:yaml.org",
    ),
    (b"a: !mine 3\n", "F: line 1, column 4: found a tag (!mine); allowed: plain data"),
    (b"a: 1\n---\nb: 2\n", "F: line 2, column 1: found a second document; allowed: one"),
    (b"? [a]\n: 1\n", "F: line 1, column 3: found a list or mapping as a key; allowed: text"),
    (b"[" * 100_000, "F: line 1, column 21: found nested deeper than 20"),
    (b"a: " + b"1" * 5000, "F: line 1, column 4: found a number of 5000 digits"),
    (b"- 1\n" * 30_000, "found more than 20000 entries"),
    (b"#" * 1_000_001, "F: too large for a config; allowed: 1000000 bytes"),
]


@pytest.mark.parametrize(("data", "message"), BAD_FILES)
def test_unusable_file(refused: Callable[..., str], data: bytes, message: str) -> None:
    found = refused(data)
    assert message in found
    assert "\n" not in found


def test_byte_order_mark(load: Callable[..., RunConfig]) -> None:
    assert load(b"\xef\xbb\xbf" + BASE.encode()) == load(BASE)


def test_missing_file(folder: Path) -> None:
    (folder / "poisson.yaml").touch()
    with pytest.raises(ConfigError) as caught:
        load_config(folder / "poison.yaml")
    near = folder / "poisson.yaml"
    assert str(caught.value) == (
        f"{folder / 'poison.yaml'}: no such file; did you mean {str(near)!r}?"
    )
    with pytest.raises(ConfigError, match=r"nowhere.a\.yaml: no such file$"):
        load_config(folder / "nowhere" / "a.yaml")
    with pytest.raises(ConfigError, match="a folder; allowed: a YAML file"):
        load_config(folder)
    with pytest.raises(ConfigError, match="no such file"):
        load_config("a\0b.yaml")
    with pytest.raises(ConfigError):
        load_config("x" * 5000)


def test_unreadable_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    (folder / "run.yaml").touch()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"run\.yaml: cannot be read: Permission denied$"):
        load_config(folder / "run.yaml")


# --- keys and values ----------------------------------------------------------------------------
WRONG = [
    ("model.widht=8", "model.widht: unknown key; did you mean 'width'? allowed: width, hidden_lay"),
    ("trainning={}", "trainning: unknown key; did you mean 'training'? allowed: name, problem, mo"),
    ("training.target.rel_l3=1", "training.target.rel_l3: unknown key; did you mean 'rel_l2'? all"),
    ("training.work={}", "training.work.per_level: missing"),
    ("training.work={per_level: -1}", "training.work.per_level: found -1, allowed: a number of at"),
    ("training.work={per_level: [1, -1]}", "training.work.per_level.1: found -1, allowed: a numbe"),
    ("training.work={per_level: []}", "training.work.per_level: found an empty list, allowed: a n"),
    ("training.work={per_level: 0}", "training.work.per_level: every level with steps has 0, so t"),
    ("training.work={per_level: 1, of: hours}", "training.work.of: found 'hours', allowed: operat"),
    ("zzz=1", "zzz: unknown key; allowed: name, problem, model, sampling, training, seed, device,"),
    ("model.type=kann", "model.type: found 'kann', allowed: kan, multichannel or mlp; did you mea"),
    ("model.activation=tanh", "model.activation: unknown key for type kan (it belongs to mlp); al"),
    ("model.knots=Free", "model.knots: found 'Free', allowed: uniform or free; did you mean 'free"),
    ("model.width=-1", "model.width: found -1, allowed: an integer of at least 1"),
    ("model.width=0", "model.width: found 0, allowed: an integer of at least 1"),
    ("model.width=2.5", "model.width: found 2.5, allowed: an integer of at least 1"),
    ("model.width='8'", "model.width: found '8', allowed: an integer of at least 1"),
    ("model.width=true", "model.width: found true, allowed: an integer of at least 1"),
    ("model.width=", "model.width: found null, allowed: an integer of at least 1"),
    ("model.width=[8]", "model.width: found the list [8], allowed: an integer of at least 1"),
    ("model.width={a: 1}", "model.width: found a mapping, allowed: an integer of at least 1"),
    ("model.width=1" + "0" * 30, "model.width: found an integer beyond 2^63, allowed: an integer"),
    ("model.order=1", "model.order: found 1, allowed: an integer from 2 to 8 or a list (each: an"),
    ("model.order=[6, 9]", "model.order.1: found 9, allowed: an integer from 2 to 8"),
    (
        "model.intervals=0",
        "model.intervals: found 0, allowed: an integer from 1 to 10000 or a list",
    ),
    ("model.knot_floor=.nan", "model.knot_floor: found .nan, allowed: a number above 0 and of at"),
    ("model.knot_floor=0", "model.knot_floor: found 0, allowed: a number above 0 and of at most 0"),
    ("model.knot_floor=-.inf", "model.knot_floor: found -.inf, allowed: a number above 0 and of a"),
    ("model.knot_floor=1e999", "model.knot_floor: found .inf, allowed: a number above 0"),
    ("model.knot_floor=1" + "0" * 350, "found an integer beyond 2^63, allowed: a number above 0"),
    ("model.widths=[2]", "model.widths: found the list [2], allowed: inputs first, outputs last"),
    ("model=5", "model: found 5, allowed: a mapping with type kan, multichannel or mlp"),
    ("model.inputs=[x, 3]", "model.inputs.1: found 3, allowed: text or a mapping with map coordin"),
    ("model.inputs=[]", "model.inputs: found the list [], allowed: at least one entry"),
    ("model.inputs=[{of: x}]", "model.inputs.0.map: missing, allowed: coordinate, abs, step, asi"),
    ("model.inputs=[{map: abs}]", "model.inputs.0.of: missing, allowed: text"),
    ("model.inputs=[{map: asinh, of: x, scale: 0}]", "model.inputs.0.scale: found 0, allowed: a n"),
    ("model.inputs=[{map: formula, formula: x, range: [1]}]", "model.inputs.0.range: found the li"),
    ("model.inputs=[{map: formula, formula: x, range: [1, 1]}]", "allowed: the least value, then"),
    ("model.breakpoints=[[[-1, 0, 0, 1]]]", "model.breakpoints.0.0: found the list [-1.0, 0.0, 0."),
    ("model.breakpoints=[[[-1, 1], [1, 0]]]", "model.breakpoints.0.1: found the list [1.0, 0.0],"),
    ("model.breakpoints=[[[]]]", "model.breakpoints.0.0: found the list [], allowed: numbers from"),
    ("model.breakpoints=[[[-1, 0.5]]]", "model.breakpoints.0.0: found the list [-1.0, 0.5], allow"),
    ("model.breakpoints=[[[-2, 0, 1]]]", "model.breakpoints.0.0: found the list [-2.0, 0.0, 1.0],"),
    ("model.breakpoints=[[[1]]]", "model.breakpoints.0.0: found the list [1.0], allowed: numbers"),
    ("model.breakpoints=[[[-1, x]]]", "model.breakpoints.0.0.1: found 'x', allowed: a number"),
    ("sampling.interior=0", "sampling.interior: found 0, allowed: an integer of at least 1"),
    ("sampling.method=sobel", "sampling.method: found 'sobel', allowed: grid, random, sobol or la"),
    ("training.levels=0", "training.levels: found 0, allowed: an integer from 1 to 20"),
    ("training.phases=[]", "training.phases: empty; at least one phase is needed"),
    ("training.phases=[{steps: 3}]", "training.phases.0.optimiser: missing, allowed: auto, adam"),
    ("training.phases.0.optimiser=adamm", "training.phases.0.optimiser: found 'adamm', allowed: a"),
    ("training.phases.1.batch=8", "training.phases.1.batch: unknown key for optimiser lbfgs (it b"),
    ("training.phases.0.learning_rate=-1e-3", "training.phases.0.learning_rate: found -0.001, all"),
    ("training.phases.0.betas=[0.9]", "training.phases.0.betas: found the list [0.9], allowed: a"),
    ("training.phases.0.betas=[0.9, 1]", "training.phases.0.betas.1: found 1, allowed: a number o"),
    ("training.phases.0.steps=[]", "training.phases.0.steps: found an empty list"),
    ("training.phases.0.schedule.kind=cos", "training.phases.0.schedule.kind: found 'cos', allowe"),
    ("training.phases.0.group_learning_rates={a: -1}", "training.phases.0.group_learning_rates.a:"),
    ("training.phases.1.train=[]", "training.phases.1.train: found the list [], allowed: at l"),
    ("training.phases.0.train=all", "training.phases.0.train: found 'all', allowed: a list (each:"),
    ("training.refine=[8]", "training.refine: found 1 refinements, 1 levels need 0"),
    (
        "training.refine=diadic",
        "training.refine: found 'diadic', allowed: dyadic, auto or adaptive or a",
    ),
    ("training.time_limit=0", "training.time_limit: found 0, allowed: a number above 0 or null"),
    ("seed=-1", "seed: found -1, allowed: an integer of at least 0"),
    ("seed=1.5", "seed: found 1.5, allowed: an integer of at least 0"),
    ("dtype=float16", "dtype: found 'float16', allowed: float64 or float32; did you mean 'float"),
    ("threads=0", "threads: found 0, allowed: an integer from 1 to 1024 or null"),
    ("device=gpu", "device: found 'gpu', allowed: auto, cpu, cuda, cuda:INDEX"),
    ("device=cuda:-1", "device: found 'cuda:-1', allowed: auto, cpu, cuda, cuda:INDEX"),
    ("device=0", "device: found 0, allowed: text"),
    ("name=../../etc", "name: found '../../etc', allowed: text matching"),
    ("name=a b", "name: found 'a b', allowed: text matching"),
    ("figures=yes", "figures: found 'yes', allowed: true or false"),
    ("figures=1", "figures: found 1, allowed: true or false"),
    ("problem.nu=0", "problem.nu: found 0, allowed: a number above 0"),
    ("problem.nuu=1", "problem.nuu: unknown key; did you mean 'nu'? allowed: file, nu, columns, s"),
    ("problem.columns=[]", "problem.columns: found 0 entries, allowed: at least 1"),
    ("problem.side=top", "problem.side: found 'top', allowed: left or right"),
    ("problem.file=3", "problem.file: found 3, allowed: a path"),
    ("problem=3", "problem: found 3, allowed: a registered name, file.py:ClassName or a mapping"),
    ("problem.name=3", "problem.name: found 3, allowed: a registered name or file.py:ClassName"),
    ("problem=heat.py:Heat", "problem.file: missing, allowed: a path"),
    ("problem=heat.py:Heta", "has no class 'Heta'; did you mean 'Heat'? allowed: Heat"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), WRONG)
def test_wrong_value(refused: Callable[..., str], override: str, message: str) -> None:
    found = refused(BASE, override)
    assert f"F, override {override[:60]}: " in found
    assert message in found
    assert "\n" not in found


def test_message_without_overrides(refused: Callable[..., str]) -> None:
    assert refused(BASE.replace("width", "widht")) == (
        "F: model.widht: unknown key; did you mean 'width'? allowed: "
        + ", ".join(KANOptions.__dataclass_fields__)
    )
    assert refused("seed: 1\n") == (
        "F: problem: missing, allowed: a registered name, file.py:ClassName or a mapping"
    )
    assert refused("problem: {file: a}\n") == (
        "F: problem.name: missing, allowed: a registered name or file.py:ClassName"
    )


def test_rule_of_a_dataclass(refused: Callable[..., str]) -> None:
    """What __post_init__ refuses is told with the path of the section."""
    text = BASE.replace("steps: 20", "steps: 20, curvature: 1e-5")
    assert refused(text).startswith("F: training.phases.1: lbfgs: sufficient_decrease is 0.0001")


def test_refinements_that_cannot_be(refused: Callable[..., str]) -> None:
    text = BASE.replace("training:\n", "training:\n  levels: 3\n  refine: [-2, [[0, 0], 4]]\n")
    assert refused(text).split("\n") == [
        "F: training.refine.0: found -2, allowed: an integer of at least 1, or a list",
        "F: training.refine.1.0: found the list [0.0, 0.0], allowed: numbers from -1 to 1, "
        "both included, strictly increasing",
    ]


def test_several_errors(refused: Callable[..., str]) -> None:
    lines = refused("problem: {name: heat.py:Heat, nu: x}\nseed: -1\nmodel: {base: gelu}\n")
    assert [line.split(": ")[1] for line in lines.split("\n")] == [
        "seed",
        "model.base",
        "problem.nu",
        "problem.file",
    ]
    many = refused("\n".join(f"k{i}: 1" for i in range(1000)))
    assert len(many.split("\n")) == 5
    assert many.endswith("(and more errors)")


def test_control_characters_stay_on_one_line(refused: Callable[..., str]) -> None:
    found = refused('"a\\nb": 1\nproblem: {name: heat.py:Heat, file: x, "\\e[2J": 1}\n')
    assert len(found.split("\n")) == 2
    assert r"F: a\nb: unknown key" in found
    assert "\x1b" not in found


def test_surrogates_are_refused(refused: Callable[..., str]) -> None:
    assert "control characters" in refused(BASE, "problem.file=\udcff")
    with pytest.raises(ConfigError, match=r"config: device: found '\\udcff', allowed: text"):
        parse_config({"problem": {}, "device": "\udcff"})


# --- what comes out -----------------------------------------------------------------------------
def test_values(load: Callable[..., RunConfig], folder: Path) -> None:
    config = load()
    assert config.name == "run"
    assert isinstance(config.model, KANOptions)
    assert (config.model.width, config.model.order, config.model.intervals) == (8, 6, 4)
    adam, lbfgs = config.training.phases
    assert isinstance(adam, AdamPhase)
    assert adam.learning_rate == 1e-2
    assert isinstance(lbfgs, LBFGSPhase)
    assert lbfgs.steps == 20
    assert config.problem.parameters["file"] == folder / "data.csv"
    assert config.problem.parameters["nu"] == 1.0
    assert type(config.problem.parameters["nu"]) is float
    assert config.problem.name == f"{folder / 'heat.py'}:Heat"
    assert (config.seed, config.device, config.dtype) == (1234, "cpu", "float64")


VARIANTS = [
    (),
    ("model={type: mlp, activation: sin, frequency: 3}", "dtype=float32", "name=b-1.x"),
    ("model={type: multichannel, knots: free, order: [4, 5], intervals: [3, 7], base: silu}",),
    ("model.inputs=[x, {map: abs, of: x, at: 0.1}, {map: periodic, of: x, harmonics: 2},"
     " {map: formula, formula: x^2, range: [0, 1]}, {map: asinh, of: x, scale: 1e-3}]",),
    ("model.widths=[1, 5, 5, 1]", "model.breakpoints=[[[-1, 0.1, 1]]]", "threads=2",
     "figures=false"),
    ("training.levels=3", "training.refine=[8, [16, [-1, 0, 0.5, 1]]]",
     "training.target.loss=1e-9"),
    ("training.attention.rate=0.1", "training.phases.0.schedule={kind: cosine, warmup: 3}",
     "training.phases.0.group_learning_rates={main.layer0: 0.5}", "training.levels=2",
     "training.phases.1.steps=[5, 0]", "training.phases.1.train=['*.coefficients']"),
    ("problem.side=right", "problem.extra=[a/b, ../c]", "problem.columns=['no', '1e-3']"),
]  # fmt: skip


@pytest.mark.parametrize("overrides", VARIANTS)
def test_round_trip(
    load: Callable[..., RunConfig], overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(BASE, *overrides)
    data = to_dict(config)
    text = dump_yaml(data)
    monkeypatch.chdir("/")  # the resolved config means the same anywhere
    again = parse_config(parse_yaml(text, "text"), "elsewhere.yaml")
    assert again == config
    assert to_dict(again) == data == config.to_dict()
    assert differing_keys(data, to_dict(again), ()) == []


def test_every_default_is_visible(load: Callable[..., RunConfig]) -> None:
    data = load().to_dict()
    assert data["model"] == {
        "type": "kan", "width": 8, "hidden_layers": 1, "widths": None, "inputs": None, "order": 6,
        "intervals": 4, "breakpoints": None, "knots": "uniform", "knot_floor": 0.05,
        "squash": "tanh", "base": "none",
    }  # fmt: skip
    assert data["training"]["phases"][0]["schedule"]["kind"] == "constant"
    assert data["training"]["phases"][0]["betas"] == [0.9, 0.999]
    assert data["problem"]["columns"] == ["u"]
    assert "source" not in data


def test_kind_of_a_section(load: Callable[..., RunConfig]) -> None:
    assert isinstance(load(BASE, "model={type: mlp}").model, MLPOptions)
    assert isinstance(load(BASE, "model={type: multichannel}").model, MultichannelOptions)
    model = load(BASE, "model.inputs=[{map: abs, of: x, at: 1}]").model
    assert model.inputs == (Abs(of="x", at=1.0),)
    phase = load(BASE, "training.phases.0.schedule={kind: cosine}").training.phases[0]
    assert isinstance(phase, AdamPhase)
    assert phase.schedule == CosineSchedule()
    # without a kind, that of the default
    phase = load(BASE, "training.phases.0.schedule={warmup: 7}").training.phases[0]
    assert isinstance(phase, AdamPhase)
    assert (phase.schedule.kind, phase.schedule.warmup) == ("constant", 7)


def test_name_from_the_file(folder: Path) -> None:
    (folder / "..my run (1).yaml").write_text(BASE)
    assert load_config(folder / "..my run (1).yaml").name == "my-run-1-"


def test_paths_are_relative_to_the_config(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "run.yaml").write_text(BASE.replace("heat.py", "../heat.py"))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    config = load_config(folder / "sub" / "run.yaml", ["problem.extra=[/a/b, c]"])
    assert config.problem.name == f"{folder / 'heat.py'}:Heat"
    assert config.problem.parameters["file"] == folder / "sub" / "data.csv"
    assert config.problem.parameters["extra"] == (Path("/a/b"), folder / "sub" / "c")


def test_a_problem_may_stay_unimported(folder: Path) -> None:
    (folder / "bad.py").write_text("raise SystemExit('imported')")
    config = parse_config(
        {"problem": {"name": "bad.py:Any", "k": [1]}}, base_dir=folder, import_problem=False
    )
    assert config.problem.name == f"{folder / 'bad.py'}:Any"
    assert config.problem.parameters == {"k": [1]}
    with pytest.raises(ConfigError, match=r"problem\.name: .*bad\.py:1: SystemExit: imported"):
        parse_config({"problem": {"name": "bad.py:Any"}}, base_dir=folder)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("nu: float = None", "problem.nu (the default): found null, allowed: a number"),
        ("nu: float = -1\n    name: str = ''", "problem.name: P has a parameter 'name'; rename it"),
        ("f: type = int", "problem: type: has no form that a config can hold"),
        (
            "nu: Undefined = 1",
            "problem: P: annotations cannot be read: name 'Undefined' is not def",
        ),
    ],
)
def test_unusable_parameters(
    refused: Callable[..., str], folder: Path, body: str, message: str
) -> None:
    code = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    code += f"from kanpinn import Problem\n@dataclass\nclass P(Problem):\n    {body}\n"
    (folder / "p.py").write_text(code)
    assert message in refused("problem: p.py:P\n")


def test_no_parameters(refused: Callable[..., str], folder: Path) -> None:
    (folder / "p.py").write_text("from kanpinn import Problem\nclass P(Problem):\n    nu = 1\n")
    message = "problem.nu: unknown key; P takes no parameters (no dataclass)"
    assert refused("problem: {name: 'p.py:P', nu: 2}\n") == f"F: {message}"


# --- overrides ----------------------------------------------------------------------------------
def test_overrides(load: Callable[..., RunConfig]) -> None:
    config = load(
        BASE, "model.width=3", "training.phases.1.steps=7", "training.attention.rate=0.5",
        "training.target={loss: 1e-3}", "model.width = 4", "device=cuda:0", "sampling.method=grid",
    )  # fmt: skip
    assert isinstance(config.model, KANOptions)
    assert config.model.width == 4
    assert config.training.phases[1].steps == 7
    assert config.training.phases[0].steps == 10
    assert config.training.attention is not None
    assert config.training.attention.rate == 0.5
    assert config.training.target.loss == 1e-3
    assert (config.device, config.sampling.method) == ("cuda:0", "grid")


def test_override_of_a_plain_problem(folder: Path) -> None:
    data = {"problem": "heat.py:Heat"}
    config = parse_config(data, base_dir=folder, overrides=["problem.file=x", "problem.nu=2"])
    assert config.problem.parameters["nu"] == 2.0
    assert data == {"problem": "heat.py:Heat"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.width", "override 'model.width': allowed: KEY=VALUE with a dotted key, e.g. model"),
        ("=8", "override '=8': allowed: KEY=VALUE"),
        ("model..width=8", "override 'model..width=8': allowed: KEY=VALUE"),
        (".=8", "allowed: KEY=VALUE"),
        ("a." * 5000 + "b=8", "allowed: KEY=VALUE"),
        ("model.width=[8", "override 'model.width=[8': line "),
        ("model.width=*x", "override 'model.width=*x': line 1, column 1: found an alias (*x)"),
        (
            "model.width.x=8",
            "override model.width.x: model.width is '8' in the config and has no k",
        ),
        (
            "training.phases.2.steps=8",
            "training.phases is a list; found entry '2', allowed: 0 to 1",
        ),
        (
            "training.phases.-1.steps=8",
            "training.phases is a list; found entry '-1', allowed: 0 to",
        ),
        ("training.phases.x=8", "training.phases is a list; found entry 'x', allowed: 0 to 1"),
        ("training.phases.²=8", "training.phases is a list; found entry '²', allowed: 0 to 1"),
        (
            "model.inputs.0.of=x",
            "the config has no list model.inputs; give all of it: model.inputs=[",
        ),
    ],
)
def test_unusable_override(refused: Callable[..., str], override: str, message: str) -> None:
    assert message in refused(BASE, override)


def test_split_override() -> None:
    assert split_override("a.b=x=1") == ("a.b", "x=1")
    assert split_override("a=1e-3") == ("a", 1e-3)


# --- resuming -----------------------------------------------------------------------------------
def test_differing_keys(load: Callable[..., RunConfig]) -> None:
    first = load().to_dict()

    def differing(*overrides: str, ignore: tuple[str, ...] = RESUMABLE_KEYS) -> list[str]:
        return differing_keys(first, load(BASE, *overrides).to_dict(), ignore)

    assert differing() == []
    assert differing(
        "training.phases.0.steps=99", "training.time_limit=3", "training.log_every=1",
        "training.checkpoint_every=2", "training.target.loss=1", "device=cpu", "threads=1",
        "figures=false", "name=other",
    ) == []  # fmt: skip
    assert differing("training.phases.0.steps=[99]") == []
    assert differing("seed=2", "model.width=9", "training.phases.1.history=9") == [
        "model.width",
        "training.phases.1.history",
        "seed",
    ]
    assert differing("training.phases=[{optimiser: lbfgs, steps: 20}]") == ["training.phases"]
    assert differing("training.attention={}") == ["training.attention"]
    assert differing("problem.nu=2") == ["problem.nu"]
    assert differing("training.log_every=1", ignore=()) == ["training.log_every"]
    assert differing("model={type: mlp}")[:1] == ["model.type"]
    assert differing_keys({"a": 1}, {"a": True, "b": None}) == ["a", "b"]


# --- devices ------------------------------------------------------------------------------------
def test_run_options(load: Callable[..., RunConfig]) -> None:
    config = load(BASE, "device=cpu", "dtype=float32", "seed=5")
    options = run_options(config)
    assert (options.dtype, options.device, options.seed) == (torch.float32, torch.device("cpu"), 5)
    assert options.model is config.model
    assert options.training is config.training
    assert options.sampling is config.sampling


def test_devices(monkeypatch: pytest.MonkeyPatch, load: Callable[..., RunConfig]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(
        DeviceError, match=r"device: found 'cuda', but there is no CUDA device here"
    ):
        resolve_device("cuda")
    config = load(BASE, "device=cuda:1")
    with pytest.raises(DeviceError, match=rf"^{re.escape(config.source)}: device: found 'cuda:1'"):
        run_options(config)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:0")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match=r"found 'cuda:2', allowed here: .*, cuda:0, cuda:1$"):
        resolve_device("cuda:2")
    for name in ("gpu", "cuda:", "cuda:x", "CPU", "", "cpu:0", "cuda:99999999999", "auto\n"):
        with pytest.raises(DeviceError, match="allowed: auto, cpu, cuda, cuda:INDEX"):
            resolve_device(name)


def test_naming(load: Callable[..., RunConfig]) -> None:
    config = load()
    for _ in range(2):
        with pytest.raises(KnotError) as caught, naming(config), naming(config):
            raise KnotError("model.breakpoints: no")
        assert str(caught.value) == f"{config.source}: model.breakpoints: no"


# --- what is shipped ----------------------------------------------------------------------------
@pytest.mark.parametrize("path", sorted(POISSON.parent.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert parse_config(to_dict(config)) == config


def test_reference_is_current() -> None:
    page = (REPOSITORY / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python -m kanpinn.config.reference > docs/config.md"


def test_reference_describes_every_key() -> None:
    page = reference()
    assert (
        "| `order` | an integer from 2 to 8 or a list (each: an integer from 2 to 8) | `6` |"
        in page
    )
    assert "## `training.phases.N` with `optimiser: lbfgs`" in page
    for line in page.splitlines():
        if line.startswith("| `"):
            assert all(cell.strip() for cell in line.strip("|").split(" | ")), line


# --- fuzz ---------------------------------------------------------------------------------------
TOKENS = ["", ":", "- ", "[", "]", "{", "}", "\n", "  ", "\t", "#", "&a ", "*a", "!x ", "'", '"',
          "|", ">", "%", "@", "---\n", "?", ",", "1e-3", ".nan", "-1", "null", "true", "9" * 18,
          "\0", "\x1b", "é", "steps", "model:", "order: 1", "0", "~"]  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 0, 3, 1e9, math.nan, math.inf, "x", "", "kan", "0", [], {}, [1], [[-1, 0, 1]],
    {"type": "mlp"}, {"a": 1}, 10**30, [None], ["*"], (1,),
]  # fmt: skip


def loads_or_refuses(action: Callable[[], RunConfig]) -> bool:
    """Whether it loads; anything but a config or a ConfigError of short lines is a failure."""
    try:
        assert isinstance(action(), RunConfig)
        return True
    except ConfigError as error:
        lines = str(error).split("\n")
        assert len(lines) <= 5
        assert all(line.isprintable() and len(line) < 1500 for line in lines)
        return False


def test_mutated_text(tmp_path: Path) -> None:
    rng, text = random.Random(7), POISSON.read_text(encoding="utf-8")
    path, loaded = tmp_path / "fuzz.yaml", 0
    for _ in range(200):
        changed = text
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(changed) + 1)
            end = min(len(changed), start + rng.choice([0, 0, 1, 3, 30]))
            changed = changed[:start] + rng.choice(TOKENS) + changed[end:]
        path.write_text(changed, encoding="utf-8")
        loaded += loads_or_refuses(lambda: load_config(path))
    assert 0 < loaded < 200


def test_mutated_values(load: Callable[..., RunConfig]) -> None:
    rng, loaded = random.Random(11), 0
    data = [load(BASE, *overrides).to_dict() for overrides in VARIANTS]
    for _ in range(400):
        changed = copy.deepcopy(rng.choice(data))
        for _ in range(rng.randint(1, 3)):
            node: Any = changed
            while True:
                keys = list(node) if isinstance(node, dict) else list(range(len(node)))
                key = rng.choice(keys)
                child = node[key]
                if not isinstance(child, dict | list) or not child or rng.random() < 0.2:
                    break
                node = child
            if key not in {"name"}:
                node[key] = copy.deepcopy(rng.choice(VALUES))
        loaded += loads_or_refuses(lambda data=changed: parse_config(data))  # type: ignore[misc]
    assert 0 < loaded < 400

"""Inverse problems: the data, the references, and whether what is sought is found."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from difference_sites import largest_residuals, reference_of, scaled, site_of
from scipy.optimize import curve_fit

import kanpinn
from kanpinn.api.preparation import prepare
from kanpinn.cli import main
from kanpinn.cli.solve import show_result
from kanpinn.errors import ConfigError, ProblemError
from kanpinn.geometry import Box, FixedPoints, Points
from kanpinn.models import KANOptions
from kanpinn.problem import Problem, build_system
from kanpinn.residuals import ResidualBlock, Site
from kanpinn.sampling import sample, stream
from kanpinn_problems.burgers_inverse import BurgersInverse
from kanpinn_problems.diffusion_inverse import DiffusionInverse

Inverse: TypeAlias = Any  # either of the two problems, which mypy sees under another name
TINY = {
    "model": {"width": 4, "order": 5, "intervals": 4},
    "sampling": {"interior": 600, "held_out": 300},
    "figures": False,
    "seed": 1,
}


def tiny(problem: dict[str, Any], steps: int) -> dict[str, Any]:
    phases = [{"optimiser": "lm", "steps": steps}]
    return {**TINY, "problem": problem, "training": {"phases": phases}}


# --- the data -------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [BurgersInverse, DiffusionInverse])
def test_data_are_the_reference_plus_noise(make: Callable[..., Inverse]) -> None:
    problem = make(n_data=2000, noise=0.05, seed=4)
    x, measured = problem.measurements.x.numpy(), problem.measurements.data["u"].numpy()
    exact = reference_of(problem)(x).reshape(2000, -1)[:, 0]
    noise = measured - exact
    assert noise.std() == pytest.approx(0.05 * exact.std(), rel=0.06)
    assert abs(noise.mean()) < 0.05 * exact.std() * 4 / math.sqrt(2000)
    assert abs(np.corrcoef(noise, exact)[0, 1]) < 0.1
    assert problem.domain.contains(problem.measurements.x).all()
    middle = (np.array(problem.domain.lower) + np.array(problem.domain.upper)) / 2
    assert np.abs(x.mean(0) - middle).max() < 0.06

    again, other = make(n_data=2000, noise=0.05, seed=4), make(n_data=2000, noise=0.05, seed=5)
    assert torch.equal(again.measurements.x, problem.measurements.x)
    assert torch.equal(again.measurements.data["u"], problem.measurements.data["u"])
    assert not torch.equal(other.measurements.x, problem.measurements.x)
    clean = make(n_data=2000, noise=0.0, seed=4)
    assert torch.equal(clean.measurements.x, problem.measurements.x)
    assert np.abs(clean.measurements.data["u"].numpy() - exact).max() < 1e-14


@pytest.mark.parametrize("name", ["burgers_inverse", "diffusion_inverse"])
def test_without_data_there_is_no_inverse_problem(name: str) -> None:
    make = {"burgers_inverse": BurgersInverse, "diffusion_inverse": DiffusionInverse}[name]
    with pytest.raises(ProblemError, match="n_data: found 0, allowed: at least 1") as caught:
        make(n_data=0)
    assert "\n" not in str(caught.value)
    with pytest.raises(kanpinn.KanpinnError, match="n_data: found 0, allowed: at least 1"):
        prepare({"problem": name}, ["problem.n_data=0"])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("burgers_inverse", "nu=0"),
        ("burgers_inverse", "start=-1"),
        ("burgers_inverse", "noise=-0.1"),
        ("burgers_inverse", "n_data=-3"),
        ("burgers_inverse", "seed=-1"),
        ("diffusion_inverse", "contrast=1"),
        ("diffusion_inverse", "dimension=3"),
        ("diffusion_inverse", "smoothing=-1"),
    ],
)
def test_bad_parameters_are_refused(name: str, change: str) -> None:
    with pytest.raises(ConfigError, match=change.split("=")[0]):
        prepare({"problem": name}, [f"problem.{change}"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BurgersInverse(nu=-0.1), "nu: found -0.1"),
        (lambda: BurgersInverse(start=0.0), "start: found 0.0"),
        (lambda: BurgersInverse(noise=math.nan), "noise: found nan"),
        (lambda: BurgersInverse(initial="cos(pi*x)"), "zero at both"),
        (lambda: DiffusionInverse(contrast=1.0), "contrast: found 1.0"),
    ],
)
def test_bad_parameters_are_refused_in_python(make: Callable[[], Inverse], words: str) -> None:
    with pytest.raises(ProblemError, match=words):
        make()


# --- scalars of any problem ------------------------------------------------------------------
class Decay(kanpinn.Problem):
    """``u' = -k u``, k from noisy values of u."""

    domain = kanpinn.Box((0.0,), (3.0,), names=("t",), time="t")
    scalars = {"k": 0.5}  # noqa: RUF012

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.t = rng.uniform(0, 3, 40)
        self.u = 2 * np.exp(-1.7 * self.t) + 0.02 * rng.standard_normal(40)

    def residual(self, p: kanpinn.Site) -> torch.Tensor:
        found: torch.Tensor = p.u.t + p.scalars.k * p.u
        return found

    def blocks(self) -> tuple[kanpinn.ResidualBlock, ...]:
        arrays: Any = {"x": self.t[:, None], "data": {"u": self.u}}
        region = kanpinn.FixedPoints(kanpinn.Points(**arrays))
        misfit = kanpinn.ResidualBlock("data", region, lambda p: p.u - p.data["u"], weight=0.1)
        return (*super().blocks(), misfit)


def test_scalars_are_found_and_always_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data determine k as they do by SciPy's fit of the exact solution."""
    problem = Decay()
    config = tiny({"name": "decay"}, 30) | {"sampling": {"interior": 200}}
    result = kanpinn.solve(config, problem=problem, out=tmp_path / "run")
    (_, exact), _ = curve_fit(lambda t, a, k: a * np.exp(-k * t), problem.t, problem.u, (1, 1))
    assert result.summary["scalars"] == {"k": pytest.approx(exact, rel=2e-3)}
    found = result.summary["scalars"]["k"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["scalars"]["k"] == found
    assert result.solution.scalars["k"] == found
    show_result(result, as_json=False)
    line = re.compile(r"^scalar k +" + re.escape(f"{found:.6e}") + "$", re.MULTILINE)
    assert line.search(capsys.readouterr().out)
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "run")])
    assert line.search(shown.stdout)
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "run"), "--json"])
    assert json.loads(shown.stdout)["scalars"] == {"k": found}


def test_without_scalars_none_are_shown(tmp_path: Path) -> None:
    problem = {"name": "regression", "expression": "x", "variables": ["x"], "lower": [0],
               "upper": [1]}  # fmt: skip
    result = kanpinn.solve(tiny(problem, 1), out=tmp_path / "run")
    assert result.summary["scalars"] == {}
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "run")])
    assert not re.search("^scalar", shown.stdout, re.MULTILINE)


# --- Burgers' equation ----------------------------------------------------------------------------
def test_burgers_reference_satisfies_every_block() -> None:
    problem = BurgersInverse(nu=0.03, noise=0.0)
    reference, true = reference_of(problem), {"log_nu": math.log(0.03)}
    found = largest_residuals(problem, reference, 1e-3, scalars=true)
    assert set(found) == {"equation", "data"}
    assert found["equation"] < 1e-7
    assert found["data"] < 1e-14
    other = largest_residuals(problem, reference, 1e-3, scalars={"log_nu": math.log(0.0301)})
    assert other["equation"] > 1e-3
    assert problem.scalars == {"log_nu": math.log(0.2)}


def test_burgers_conditions_are_known_or_not(generator: torch.Generator) -> None:
    for known in (True, False):
        problem = BurgersInverse(known_conditions=known)
        assert [block.name for block in problem.blocks()] == ["equation", "data"]
        network = build_system(problem, KANOptions(width=3), generator).parts["main"]
        for name in ("boundary", "initial"):
            (at,) = sample(problem.domain.region(name), 64, "sobol", stream(1, name))
            difference = network(at.x).detach().numpy()[:, 0] - problem.reference(at.x.numpy())
            assert (np.abs(difference).max() < 1e-14) == known


def test_burgers_metrics() -> None:
    problem = BurgersInverse(nu=0.05)
    found = problem.parameter_metrics({"log_nu": math.log(0.049)})
    assert found == pytest.approx({"nu": 0.049, "nu_error": 0.02})
    predict: Any = SimpleNamespace(scalars={"log_nu": math.log(0.052)})
    assert problem.metrics(predict)["nu_error"] == pytest.approx(0.04)
    assert problem.metrics(lambda x: x) == {}


@pytest.mark.parametrize("known", [True, False])
def test_burgers_viscosity_is_found(tmp_path: Path, known: bool) -> None:
    problem = {"name": "burgers_inverse", "nu": 0.1, "start": 0.5, "n_data": 100}
    config = tiny({**problem, "noise": 0.02, "known_conditions": known}, 30)
    result = kanpinn.solve(config, out=tmp_path / "run")
    assert result.rel_l2 is not None and result.rel_l2 < 0.05
    assert result.summary["metrics"]["nu_error"] < 0.1


# --- the coefficient of a diffusion equation ------------------------------------------------------
@pytest.mark.parametrize("dimension", [1, 2])
def test_diffusion_reference_satisfies_every_block(dimension: Any) -> None:
    problem = DiffusionInverse(dimension=dimension, contrast=0.7, noise=0.0, smoothing=0.0)
    reference = reference_of(problem)
    found = largest_residuals(problem, reference, 5e-3)
    assert set(found) == {"equation", "data"}
    assert found["equation"] < 1e-8
    assert found["data"] < 1e-14
    for scale in (np.array([1.001, 1.0]), np.array([1.0, 1.001])):
        wrong = largest_residuals(problem, scaled(reference, scale), 5e-3)
        assert wrong["equation"] > 1e-3
    (at,) = sample(problem.domain.region("boundary"), 64, "sobol", stream(1))
    assert np.abs(reference(at.x.numpy())[:, 0]).max() < 1e-15
    (inside,) = sample(problem.domain.interior(), 512, "sobol", stream(1))
    assert 0.2 < reference(inside.x.numpy())[:, 1].min() < 0.4


def test_diffusion_smoothing_is_the_gradient() -> None:
    problem = DiffusionInverse(smoothing=1e-3, contrast=0.5)
    block = problem.blocks()[-1]
    assert (block.name, block.weight, block.equation) == ("smoothing", 1e-3, False)
    (at,) = sample(block.region, 16, "sobol", stream(1))
    rows = block.residual(site_of(reference_of(problem), problem, at, 5e-3)).numpy()
    x, y = math.pi * at.x.numpy().T
    exact = 0.5 * math.pi * np.stack([np.cos(x) * np.sin(y), np.sin(x) * np.cos(y)], 1)
    assert np.abs(rows - exact).max() < 1e-9


def test_diffusion_has_two_networks_and_metrics(generator: torch.Generator) -> None:
    problem = DiffusionInverse()
    system = build_system(problem, KANOptions(width=3), generator)
    assert list(system.parts) == ["u", "a"]
    (at,) = sample(problem.domain.region("boundary"), 64, "sobol", stream(1))
    assert system.parts["u"](at.x).detach().abs().max() < 1e-14

    def predict(x: torch.Tensor) -> torch.Tensor:
        exact = torch.from_numpy(problem.reference(x.numpy()))
        return exact * torch.tensor([1.01, 0.97], dtype=torch.float64)

    found = problem.metrics(predict)
    assert found == pytest.approx({"rel_l2_u": 0.01, "rel_l2_a": 0.03})


@pytest.mark.parametrize(("dimension", "bound"), [(1, 0.05), (2, 0.06)])
def test_diffusion_coefficient_is_found(tmp_path: Path, dimension: int, bound: float) -> None:
    """A constant a, the mean, has an error of 0.33 in one and of 0.24 in two dimensions."""
    problem = {"name": "diffusion_inverse", "dimension": dimension, "n_data": 200, "noise": 0.01}
    result = kanpinn.solve(tiny(problem, 30), out=tmp_path / "run")
    assert result.metrics["rel_l2_a"] < bound
    assert result.metrics["rel_l2_u"] < 0.01


# --- unknowns that nothing determines -------------------------------------------------------------
@dataclass
class Unknowns(Problem):
    """``u_xx + k u = 0`` on [-1, 1] with k unknown and values of u given, if ``use`` says so."""

    use: str = "k"
    start: float = 1.0
    weight: float = 1.0
    count: int = 5

    def __post_init__(self) -> None:
        self.domain = Box((-1.0,), (1.0,))
        self.scalars = {"shift": 0.5, "k": self.start}
        self.fields = ("u", "v")
        self.networks = {"main": ("u",), "other": ("v",)}

    def residual(self, p: Site) -> torch.Tensor:
        k = p.scalars.k
        factor = {
            "k": lambda: k,
            "square": lambda: k**2,
            "part": lambda: torch.where(p.x > 0.99, k, 1.0),  # where few of the points are
            "number": k.detach,
        }.get(self.use, lambda: torch.tensor(2.0))()
        balance: torch.Tensor = p.u.xx + factor * p.u
        return balance if self.use == "one network" else balance + p.v - p.scalars.shift

    def blocks(self) -> tuple[ResidualBlock, ...]:
        x = torch.linspace(-1, 1, self.count, dtype=torch.float64)[:, None]
        points = FixedPoints(Points(x, data={"u": torch.cos(x[:, 0])}))

        def misfit(p: Site) -> torch.Tensor:
            rest = p.scalars.k if self.use == "data" else 0.0
            return p.u.value - p.data["u"] + rest

        return (*super().blocks(), ResidualBlock("data", points, misfit, weight=self.weight))


def unknowns(**parameters: Any) -> Any:
    return prepare({"sampling": {"interior": 300}}, (), Unknowns(**parameters))


@pytest.mark.parametrize("use", ["k", "square", "data", "part"])
def test_scalars_in_any_residual_are_accepted(use: str) -> None:
    prepared = unknowns(use=use)
    assert list(prepared.problem.scalars) == ["shift", "k"]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"use": "nothing"}, "scalars: no residual depends on 'k', so that nothing determines it"),
        ({"use": "number"}, "scalars: no residual depends on 'k'"),  # taken out of the graph
        ({"use": "data", "weight": 0.0}, "scalars: no residual depends on 'k'"),
        (
            {"use": "square", "start": 0.0},
            "derivative of every residual with respect to 'k' is zero where training starts.*"
            "another start than 0",
        ),
        (
            {"use": "one network"},
            r"network 'other' \(v\): no residual depends on it, so that nothing determines it",
        ),
        ({"count": 0}, "region 'data': no points given, allowed: at least one"),
    ],
)
def test_unknowns_that_nothing_determines_are_refused(
    parameters: dict[str, Any], words: str
) -> None:
    with pytest.raises(kanpinn.KanpinnError, match=words) as caught:
        unknowns(**parameters)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_refusal_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="no residual depends on 'k'"):
        kanpinn.solve(tiny({}, 1) | {"problem": {}}, out=tmp_path / "run", problem=Unknowns("none"))
    assert list(tmp_path.iterdir()) == []


def test_own_problem_is_refused_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(
        "from kanpinn import Box, Problem\n\n\n"
        "class Own(Problem):\n"
        "    domain = Box((0.0,), (1.0,))\n"
        "    scalars = {'nu': 0.3}\n\n"
        "    def residual(self, p):\n"
        "        return p.u.xx - 1.0\n"
    )
    (tmp_path / "own.yaml").write_text("problem: own.py:Own\n")
    (tmp_path / "empty.csv").write_text("")
    monkeypatch.chdir(tmp_path)
    table = f"problem={{name: tabular, file: {tmp_path / 'empty.csv'}}}"
    for arguments, words in (
        (("solve", "own.yaml"), "own.yaml: scalars: no residual depends on 'nu'"),
        (("validate", "own.yaml"), "own.yaml: scalars: no residual depends on 'nu'"),
        (("solve", "own.yaml", "problem={name: burgers_inverse, n_data: 0}"), "n_data: found 0"),
        (("solve", "own.yaml", "problem={name: diffusion_inverse, n_data: 0}"), "n_data: found 0"),
        (("solve", "own.yaml", table), "is empty"),
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2, result.output
        assert len(result.stderr.splitlines()) == 1
        assert words in result.stderr
    assert not (tmp_path / "runs").exists()

"""A bound on memory: its shares, what follows from them, what it costs in digits, real peaks."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import kanpinn
from kanpinn import api
from kanpinn.cli import main
from kanpinn.errors import ConfigError
from kanpinn.kernels import kernels, kernels_expected
from kanpinn.plotting.gather import field_sections
from kanpinn.training import ReferenceErrors, predict
from kanpinn.training.derivatives import predict_gradient
from kanpinn.training.evaluation import evaluation_rows
from kanpinn.training.memory import LEAST_ROWS, MIB, Memory
from kanpinn.training.objective import SystemObjective
from kanpinn.training.parameters import ParameterPack

CONFIG: dict[str, Any] = {
    "problem": {"name": "poisson", "dimension": 2},
    "model": {"width": 6, "order": 5, "intervals": 12},
    "sampling": {"interior": 1500, "held_out": 300},
    "training": {"levels": 2, "phases": [{"optimiser": "lm", "steps": 2}], "log_every": 1},
    "figures": False,
}
BOUND = 12.0  # MiB, a fraction of what the runs below take without one


def prepared(*overrides: str) -> api.Prepared:
    return api.prepare(CONFIG, overrides)


# --- shares ---------------------------------------------------------------------------------------
def test_shares_of_a_bound() -> None:
    free, bound = Memory(), Memory(64.0, sets=4)
    assert (free.features(1e9), free.systems_mib(500), free.rows(4096, 1e9)) == (1e9, 500, 4096)
    assert bound.features(1e12) == 2 * MIB and bound.features(100.0) == 100.0
    assert bound.systems_mib(500) == 32 and bound.systems_mib(3) == 3
    assert bound.rows(4096, 4096.0) == 1024  # 4 MiB at once
    assert bound.rows(4096, 1e9) == LEAST_ROWS and bound.rows(4, 1e9) == 4


def test_threads_are_bounded_with_the_memory_they_take() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    free, bound = Memory(threads=16), Memory(64.0, sets=4, threads=16)
    assert (free.sharing(cpu), bound.sharing(cpu), free.sharing(gpu)) == (16, 4, 1)
    assert Memory().sharing(cpu) == torch.get_num_threads()
    assert free.workers(cpu, 10**5, 1000, 8) == 16
    assert bound.workers(cpu, 10**5, 400, 8) == 4  # no Jacobian is made
    squares = replace(bound, jacobian=True)
    # By the dense solver 6 (1 + threads) n^2 numbers: 14.6, 22 and 29 of 32 MiB by 1 to 3 threads.
    found = [replace(squares, threads=k).workers(cpu, 10**5, 400, 8) for k in (1, 2, 3, 16)]
    assert found == [1, 2, 3, 3]
    assert squares.workers(cpu, 10**5, 1000, 8) == 4  # which does not fit: another one is used


def test_rows_at_once_follow_from_the_bound() -> None:
    sizes = []
    for bound in ("null", "200", str(BOUND)):
        run = prepared(f"memory_mib={bound}").run
        level = run.active[0]
        context = run._context(level, run.initial_system(0))
        sizes.append([data.size for data in context.data])
        held_out = [data.size for data in context.held_out.data]
        assert all(theirs >= own for theirs, own in zip(held_out, sizes[-1], strict=True))
    assert sizes[0] >= sizes[1] > sizes[2] and min(sizes[2]) >= 1
    rows = [evaluation_rows(run.initial_system(0), Memory(bound)) for bound in (None, 1.0, 1e-9)]
    assert rows[0] > rows[1] > rows[2] == LEAST_ROWS


def test_linear_systems_follow_from_the_bound() -> None:
    """The saved config has what each phase may take."""
    free, bound = (prepared(f"memory_mib={value}") for value in ("null", "40"))
    assert [p.memory_mib for p in free.config.training.phases] == [2048.0]  # type: ignore[union-attr]
    assert [p.memory_mib for p in bound.config.training.phases] == [20.0]  # type: ignore[union-attr]
    assert [level.solvers for level in api.plan(free)] == [("dense",), ("dense",)]
    assert [level.solvers for level in api.plan(bound)] == [("dense",), ("iterative",)]
    again = api.prepare(bound.config)  # as a resumed run does
    assert again.config == bound.config


# --- features -------------------------------------------------------------------------------------
@pytest.mark.skipif(kernels().library is None, reason="no compiled kernel on this machine")
@pytest.mark.parametrize(
    ("optimiser", "basis", "made"),
    [
        ("adam", "multichannel", False),
        ("lbfgs", "multichannel", False),
        ("lm", "multichannel", True),
        ("lm", "kan", False),
    ],
)
def test_features_are_made_where_a_jacobian_asks_for_them(
    optimiser: str, basis: str, made: bool
) -> None:
    """Powers, of points that are trained on by least squares; of held-out points never."""
    phases = f"training.phases=[{{optimiser: {optimiser}, steps: 2}}]"
    run = prepared(phases, f"model.type={basis}").run
    kept: list[Any] = []
    original = type(run)._context

    def looking(*arguments: Any) -> Any:
        kept.append(original(*arguments))
        return kept[-1]

    run._context = looking.__get__(run)  # type: ignore[method-assign]
    run.run()

    def features(context: Any, name: str) -> list[bool]:
        data = context.data if name == "data" else context.held_out.data
        prepared = [p for d in data for c in d.chunks for site in c.prepared for p in site.values()]
        return ["first_features" in vars(entry) for entry in prepared]

    for context in kept:
        assert set(features(context, "data")) == {made}
        assert set(features(context, "held_out")) == {False}


def test_features_stand_in_for_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it they are made once, also of held-out points, within their share."""
    monkeypatch.setattr("kanpinn.models.layer.compiles", lambda z: False)
    run = prepared("training.phases=[{optimiser: adam, steps: 1}]").run
    context = run._context(run.active[0], run.initial_system(0))
    context.held_out.evaluate(context.system)
    (entry,) = context.held_out.data[0].chunks[0].prepared[0].values()
    assert "first_features" in vars(entry)
    tight = prepared("training.phases=[{optimiser: adam, steps: 1}]", "memory_mib=2").run
    context = tight._context(tight.active[0], tight.initial_system(0))
    assert context.data[0].chunks[0].prepared[0]["main"].first is None


# --- the same results -----------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["kan", "multichannel"])
def test_results_agree_to_round_off(model: str) -> None:
    """Sums over other chunks, errors at other numbers of points at once."""
    system, sizes, numbers, tensors = None, [], [], []
    for bound in ("null", str(BOUND)):
        more = (f"model.type={model}", "model.intervals=4", f"memory_mib={bound}")
        run = prepared(*more).run
        system = system or run.initial_system(0)
        context = run._context(run.active[0], system)
        pack = ParameterPack(system)
        objective = SystemObjective(system, pack, context.data)
        loss, gradient = objective.loss_and_gradient(pack.read())
        square = objective.squares(pack.read(), 1e9).upper
        errors = context.errors.evaluate(system)
        assert errors is not None and errors.rel_l2 is not None
        held_out = context.held_out.evaluate(system)[1]
        sizes.append(context.data[0].size)
        numbers.append([float(loss), errors.rel_l2, errors.linf, held_out])
        tensors.append((gradient, square))
    assert sizes[1] < sizes[0]
    np.testing.assert_allclose(numbers[0], numbers[1], rtol=1e-12)
    for one, two in zip(*tensors, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12 * float(one.abs().max()))


def test_evaluations_agree_bit_for_bit_or_to_round_off() -> None:
    run = prepared().run
    system, problem = run.initial_system(0), run.problem
    x = problem.evaluation_points()[::37]
    tight = Memory(0.5)
    torch.testing.assert_close(predict(system, x), predict(system, x, memory=tight), rtol=1e-12,
                               atol=1e-14)  # fmt: skip
    gradients = [predict_gradient(system, x, ["u"], memory) for memory in (Memory(), tight)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    like = next(system.parameters()).detach()
    exact = torch.from_numpy(problem.reference(x.numpy())).reshape(-1, 1)
    errors = [
        ReferenceErrors(problem, [], like, x, exact, memory).evaluate(system)
        for memory in (tight, Memory())
    ]
    assert errors[0] is not None and errors[1] is not None and errors[1].rel_l2 is not None
    assert errors[0].rel_l2 == pytest.approx(errors[1].rel_l2, rel=1e-12)
    sections = [
        field_sections(lambda at: predict(system, torch.from_numpy(at)).numpy(), system, problem,
                       memory=memory)[0]
        for memory in (Memory(), tight)
    ]  # fmt: skip
    for name, values in sections[0].residuals.items():
        np.testing.assert_allclose(values, sections[1].residuals[name], rtol=1e-9, atol=1e-9)


def test_a_run_ends_where_it_would_without_a_bound(tmp_path: Path) -> None:
    ends = []
    for number, bound in enumerate(("null", "60")):
        more = ["training.phases.0.steps=12", f"memory_mib={bound}", "model.intervals=4"]
        ends.append(kanpinn.solve(CONFIG, more, tmp_path / str(number)).rel_l2)
    assert ends[0] == pytest.approx(ends[1], rel=0.05)


# --- plans and refusals ---------------------------------------------------------------------------
def test_plans_keep_to_the_bound() -> None:
    free = max(level.memory_mib for level in api.plan(prepared()))
    for bound in (35.0, 25.0, BOUND):
        most = max(level.memory_mib for level in api.plan(prepared(f"memory_mib={bound}")))
        assert most <= bound < free


def test_what_could_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        prepared("memory_mib=1", "sampling.interior=50000")
    message = str(caught.value)
    assert "memory_mib: found 1, allowed: about" in message and "because level 1 takes" in message
    assert "for points" in message and "\n" not in message
    least = message.split("allowed: about ")[1].split()[0]
    assert prepared(f"memory_mib={least}", "sampling.interior=50000")
    with pytest.raises(ConfigError, match="memory_mib: found"):
        prepared(f"memory_mib={float(least) / 2}", "sampling.interior=50000")
    config = tmp_path / "tight.yaml"
    config.write_text(json.dumps({**CONFIG, "memory_mib": 1}))
    for command in (["solve", "--dry-run"], ["validate"], ["solve"]):
        done = CliRunner().invoke(main, [command[0], str(config), *command[1:]])
        assert done.exit_code == 2 and "memory_mib: found 1, allowed" in done.stderr
    assert list(tmp_path.iterdir()) == [config]


def test_a_dense_solver_that_was_asked_for_is_refused() -> None:
    phases = "training.phases=[{optimiser: lm, steps: 1, solver: dense}]"
    with pytest.raises(ConfigError, match=r"memory_mib: found 12, allowed: .* for the optimiser"):
        prepared(phases, "memory_mib=12")


@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_bad_bounds(value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"memory_mib: found .*, allowed: a number above 0 or null"
    ):
        prepared(f"memory_mib={value}")


def test_kernels_are_expected_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    there = kernels().library is not None
    monkeypatch.setattr("kanpinn.kernels.library._FOUND", [])
    assert kernels_expected() == there
    monkeypatch.setenv("KANPINN_KERNELS", "torch")
    assert not kernels_expected()


# --- real processes -------------------------------------------------------------------------------
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted otherwise")
def test_peaks_are_a_process_own() -> None:
    """Not those of a larger one that started it, a study or a test for instance."""
    command = "from kanpinn.api.result import peak_memory; print(peak_memory())"

    def peak() -> float:
        return float(subprocess.check_output([sys.executable, "-c", command], text=True))

    small = peak()
    ballast = np.ones(2**27)  # a GiB: torch alone takes half of one in a build for CUDA
    assert peak() < small + 100 < ballast.nbytes / MIB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted otherwise")
@pytest.mark.parametrize(
    ("phase", "bound"),
    [("{optimiser: lm, steps: 1, iterations: 5}", 40.0), ("{optimiser: lbfgs, steps: 1}", 30.0)],
    ids=["least squares", "gradients"],
)
def test_peaks_of_processes_keep_to_the_bound(
    tmp_path: Path, phase: str, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside those of a run that takes next to nothing; without the bound they are far above.

    Gradients are those of PyTorch's operators: the compiled kernel holds next to nothing.
    """
    if "lbfgs" in phase:
        monkeypatch.setenv("KANPINN_KERNELS", "torch")
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({**CONFIG, "threads": 1}))
    common = [f"training.phases=[{phase}]", "training.levels=1"]

    def peak(name: str, *more: str) -> float:
        out = ["--out", str(tmp_path / name)]
        command = [sys.executable, "-m", "kanpinn", "solve", str(config), *common, *more, *out]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout)["peak_rss_mb"])

    large = ["sampling.interior=12000", "model.width=12", "model.intervals=24"]
    if "lbfgs" in phase:
        large += ["model.type=multichannel", "model.order=4", "model.width=16"]
    least = peak("least", "model.width=2", "sampling.interior=50", "sampling.held_out=20")
    free, bounded = (
        peak(value, *large, f"memory_mib={value}") - least for value in ("null", str(bound))
    )
    assert bounded <= 1.5 * bound < free

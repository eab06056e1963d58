"""Whole runs away from the CPU: the same results, few waits, and evaluations that are replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from elsewhere import ELSEWHERE, Mixed, Tape, waits
from tiny_runs import Coupled, Plain, assert_same

from kanpinn.kernels import kernels_unused
from kanpinn.models import KANOptions, MLPOptions, ModelOptions, MultichannelOptions
from kanpinn.optimisers import Adam, LevenbergMarquardt, Optimiser
from kanpinn.problem import Problem, build_system
from kanpinn.sampling import SamplingOptions, sample, stream
from kanpinn.training import (
    AdamPhase,
    AttentionOptions,
    BalanceOptions,
    CausalOptions,
    LBFGSPhase,
    LevenbergMarquardtPhase,
    MultilevelRun,
    NullObserver,
    Phase,
    RunOptions,
    RunState,
    SelfScaledBFGSPhase,
    SmoothingOptions,
    TrainingOptions,
)
from kanpinn.training.block_data import BlockData
from kanpinn.training.objective import SystemObjective
from kanpinn.training.parameters import ParameterPack
from kanpinn.training.replay import (
    EAGER_CALLS,
    RECORDERS,
    CudaGraph,
    Recorder,
    Recordings,
    ReplayedObjective,
)

ATTENTION = AttentionOptions()
ADAM, LBFGS, LM = AdamPhase(steps=6), LBFGSPhase(steps=4), LevenbergMarquardtPhase(steps=5)
MODEL = KANOptions(width=2, order=4, intervals=2)
SAMPLING = SamplingOptions(interior=40, boundary=4, initial=4, held_out=20)


def options(*phases: Phase, model: ModelOptions = MODEL, **training: Any) -> RunOptions:
    settings: dict[str, Any] = {"log_every": 5, **training}
    return RunOptions(model, TrainingOptions(phases=phases, **settings), SAMPLING, seed=3)


CASES: dict[str, tuple[type[Problem], RunOptions]] = {
    "every optimiser": (
        Coupled,
        options(ADAM, LBFGS, SelfScaledBFGSPhase(steps=4), LM, levels=2),
    ),
    "batches, attention": (
        Coupled,
        options(replace(ADAM, batch=9), replace(ADAM, gradient_clip=1.0), attention=ATTENTION),
    ),
    "some parameters, then others": (
        Coupled,
        options(replace(ADAM, train=("main.*",)), replace(ADAM, train=("second.*", "scalars.*"))),
    ),
    "free knots": (Plain, options(ADAM, LM, model=replace(MODEL, knots="free"), levels=2)),
    "base branch": (Plain, options(ADAM, LM, model=replace(MODEL, base="silu"))),
    "multichannel": (Plain, options(ADAM, LM, model=MultichannelOptions(width=2, order=4))),
    "mlp": (Plain, options(ADAM, LM, model=MLPOptions(width=4))),
    "few residuals": (Plain, options(replace(LM, solver="dual"), model=KANOptions(width=9))),
    "products alone": (Plain, options(replace(LM, solver="iterative"))),
    "types by level": (Coupled, options(ADAM, LM, levels=2, precision=("float32", "float64"))),
    "penalty": (Plain, options(ADAM, LM, smoothing=SmoothingOptions(penalties=(1e-2, 1e-4)))),
    "every weight": (
        Coupled,
        options(
            replace(ADAM, batch=9),
            LBFGS,
            LM,
            attention=ATTENTION,
            balance=BalanceOptions(by="gradient_norm", every=4),
            causal=CausalOptions(epsilon=(0.1, 1.0), threshold=0.5, slices=3, every=4),
        ),
    ),
}


@pytest.fixture(scope="module", params=["elsewhere", pytest.param("cuda", marks=pytest.mark.gpu)])
def other(request: pytest.FixtureRequest) -> torch.device:
    """A device that is not the CPU."""
    if request.param == "elsewhere":
        return ELSEWHERE
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device("cuda", 0)


class Listener(NullObserver):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def run_on(
    device: torch.device, case: str, graphs: bool = False, observer: NullObserver | None = None
) -> RunState:
    problem, chosen = CASES[case]
    with kernels_unused():
        chosen = replace(chosen, device=device, graphs=graphs)
        return MultilevelRun(problem(), chosen, observer).run()


def watch(
    monkeypatch: pytest.MonkeyPatch, cls: type[Optimiser], device: torch.device
) -> list[list[str]]:
    """What every step of an optimiser waits for, from now on."""
    found, plain = [], cls.step

    def step(self: Any, *args: Any) -> Any:
        with waits(device) as log:
            result = plain(self, *args)
        found.append(log)
        return result

    monkeypatch.setattr(cls, "step", step)
    return found


@pytest.fixture
def recorder(other: torch.device, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many evaluations have been replayed on the other device so far."""
    count, made = [0], Tape if other == ELSEWHERE else CudaGraph
    plain = made.replay

    def counted(self: Any) -> None:
        count[0] += 1
        plain(self)

    monkeypatch.setattr(made, "replay", counted)
    monkeypatch.setitem(RECORDERS, other.type, made)
    return lambda: count[0]


# --- the make-believe device itself ---------------------------------------------------------------
def test_tensors_elsewhere_do_not_mix_with_those_here() -> None:
    there, here = torch.arange(3.0, device=ELSEWHERE), torch.arange(3.0)
    assert there.device.type == "elsewhere" and (2 * there + there[1:].sum()).device == there.device
    with pytest.raises(Mixed, match="two devices"):
        there + here
    assert torch.equal((there * there).cpu(), here * here)


@pytest.mark.parametrize(
    ("read", "count"),
    [
        (lambda x: x.sum() * 2, 0),
        (lambda x: float(x.sum()), 1),
        (lambda x: bool((x > 1).any()), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x[x > 1], 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x.repeat_interleave(x.long()), 1),
        (lambda x: x.repeat_interleave(x.long(), output_size=3), 0),
        (lambda x: torch.where(x > 1, x, 0.0), 0),
        (lambda x: torch.where(x > 1, x, torch.tensor(0.0)), 1),
        (lambda x: torch.tensor([1.0], device=x.device), 1),
        (lambda x: torch.linalg.cholesky(torch.diag(x + 1)), 1),
        (lambda x: torch.linalg.cholesky_ex(torch.diag(x + 1)), 0),
    ],
)
def test_waits_are_seen(read: Any, count: int) -> None:
    x = torch.arange(3.0, device=ELSEWHERE)
    with waits(ELSEWHERE) as found:
        read(x)
    assert len(found) == count


# --- runs -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Found:
    """A run on another device, and what each of its steps of Adam made the host wait for."""

    device: torch.device
    case: str
    state: RunState
    waits: list[list[str]]


@pytest.fixture(scope="module", params=CASES)
def found(other: torch.device, request: pytest.FixtureRequest) -> Iterator[Found]:
    """Every case, run once without recordings."""
    with pytest.MonkeyPatch.context() as patch:
        steps = watch(patch, Adam, other)
        state = run_on(other, request.param)
    yield Found(other, request.param, state, steps)


def test_a_run_is_the_same_on_every_device(found: Found) -> None:
    """Prolongation and Jacobian included; sums are taken in another order."""
    here, there = run_on(torch.device("cpu"), found.case), found.state
    assert next(there.current.system.parameters()).device == found.device
    assert [row["step"] for row in there.history] == [row["step"] for row in here.history]
    assert there.history[-1]["loss"] < there.history[0]["loss"]
    for one, two in zip(here.history, there.history, strict=True):
        for key in ("loss", "heldout_residual"):
            assert two[key] == pytest.approx(one[key], rel=1e-5)


def test_the_host_never_waits_in_a_step_of_adam(found: Found) -> None:
    phases = CASES[found.case][1].training.phases
    assert bool(found.waits) == any(isinstance(phase, AdamPhase) for phase in phases)
    assert not [text for step in found.waits for text in step]


def test_replayed_runs_are_the_same_bit_for_bit(found: Found, recorder: Callable[[], int]) -> None:
    listener = Listener()
    replayed = run_on(found.device, found.case, graphs=True, observer=listener)
    if found.device.type == "cuda" and found.case == "free knots":
        # Gradients of what is gathered are added up there in no fixed order.
        last, other = (state.history[-1]["loss"] for state in (replayed, found.state))
        assert last == pytest.approx(other, rel=1e-6)
    else:
        assert_same(replayed, found.state)
    assert recorder() > 0 and not [text for text in listener.notes if "recorded" in text]


@pytest.mark.parametrize("solver", ["dense", "dual"])
def test_the_host_waits_twice_for_a_step_of_levenberg_marquardt(
    solver: Any, other: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for what a step is made of, once for where it leads; the first step tells more."""
    steps = watch(monkeypatch, LevenbergMarquardt, other)
    chosen = options(replace(LM, steps=9, solver=solver), levels=1)
    with kernels_unused():
        MultilevelRun(Plain(), replace(chosen, device=other, graphs=False)).run()
    first, *later = map(len, steps)
    assert first > 2 and len(later) == 8
    assert later.count(2) >= 6 and max(later) <= 4  # two more for every further damping


def test_nothing_between_steps_of_adam_waits(other: torch.device) -> None:
    """With attention, on batches: ten more steps between two lines take no wait more."""
    counts = []
    for steps in (20, 20, 30):  # the first run fills what later ones find in place
        phase = replace(ADAM, steps=steps, batch=9)
        chosen = options(phase, attention=ATTENTION)
        chosen = replace(chosen, training=replace(chosen.training, levels=1, log_every=100))
        with kernels_unused(), waits(other) as found:
            MultilevelRun(Coupled(), replace(chosen, device=other, graphs=False)).run()
        counts.append(len(found))
    assert 0 < counts[1] == counts[2]


def test_other_shapes_take_another_recording(
    other: torch.device, recorder: Callable[[], int]
) -> None:
    """Batches that come, change and go, and weights that appear: each is what was asked for."""
    problem, system = Coupled(), build_system(Coupled(), MODEL, torch.Generator().manual_seed(1))
    system = system.to(other)
    points = {
        block.name: sample(block.region, 20, "sobol", stream(0, block.name), device=other)
        for block in problem.blocks()
    }
    with kernels_unused():
        data = [BlockData(block, points[block.name], system) for block in problem.blocks()]
        pack, name = ParameterPack(system), data[0].block.name
        recordings, theta = Recordings(Recorder(other, print)), pack.read()
        for count in (None, 5, 7, None, 7):
            chosen = {} if count is None else {name: torch.arange(count, device=other)}
            weights = {name: torch.full((20,), 0.5, dtype=theta.dtype, device=other)}
            for attention in ({}, weights):
                for step in range(2 * EAGER_CALLS):
                    more = (system, pack, data, attention)
                    there = theta * (1 + 0.01 * step)
                    plain = SystemObjective(*more, chosen=chosen)
                    replayed = ReplayedObjective(recordings, *more, chosen=chosen)
                    pairs = zip(
                        plain.loss_and_gradient(there),
                        replayed.loss_and_gradient(there),
                        strict=True,
                    )
                    assert all(torch.equal(one, two) for one, two in pairs)
                    assert plain.meter.operations == replayed.meter.operations > 0
                    assert plain.rows.keys() == replayed.rows.keys()
                assert recordings.functions["loss_and_gradient"].recorded is not None


def test_what_cannot_be_recorded_is_launched_by_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: Callable[[], Any], device: torch.device) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setitem(RECORDERS, "elsewhere", refuse)
    listener, case = Listener(), "base branch"
    found = run_on(ELSEWHERE, case, graphs=True, observer=listener)
    assert_same(found, run_on(ELSEWHERE, case))
    told = [text for text in listener.notes if "could not be recorded" in text]
    assert len(told) == 1 and all(text.endswith("when stream is capturing") for text in told)

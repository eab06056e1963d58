"""Types by level: what crosses a change of type, exact resume across it, accuracy, bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_windows import Swing, chain
from test_windows import options as window_options
from tiny_runs import MODELS, Coupled, Plain, options, same_tensors, save
from torch import Tensor

import kanpinn
from kanpinn import api
from kanpinn.checkpoint import read_checkpoint, restore_state
from kanpinn.cli import main
from kanpinn.errors import ConfigError
from kanpinn.geometry import Points
from kanpinn.models import KANOptions, KnotLayer
from kanpinn.plotting.gather import residual_columns
from kanpinn.problem import Problem, build_system
from kanpinn.residuals import System
from kanpinn.sampling import AdaptiveSampling, SamplingOptions
from kanpinn.splines import Knots
from kanpinn.training import (
    LevenbergMarquardtPhase,
    MultilevelRun,
    NullObserver,
    RunOptions,
    RunState,
    predict,
)
from kanpinn.training.hierarchy import Refinement, in_type, knot_networks, refine_system
from kanpinn.training.options import StartsOptions
from kanpinn.training.phase_options import Precision

SINGLE, DOUBLE = torch.float32, torch.float64
THIRDS = KANOptions(width=3, order=5, intervals=3)  # knots that float32 rounds
KNOT_MODELS = [name for name in MODELS if not name.startswith("mlp")]
CONFIG: dict[str, Any] = {
    "problem": {"name": "poisson", "dimension": 1},
    "model": {"width": 3, "order": 6, "intervals": 3},
    "sampling": {"interior": 50, "held_out": 50},
    "training": {
        "levels": 3,
        "precision": ["float32", "float64"],
        "phases": [{"optimiser": "lm", "steps": 30}],
    },
    "figures": False,
}


def changed(**training: Any) -> dict[str, Any]:
    return {**CONFIG, "training": {**CONFIG["training"], **training}}


def untrained(model: Any, dtype: torch.dtype) -> System:
    return build_system(Plain(), model, torch.Generator().manual_seed(5), dtype)


def points() -> Tensor:
    return Plain.domain.evaluation_grid((23, 23))[0]


def types(value: System) -> set[torch.dtype]:
    return {p.dtype for p in value.parameters()}


# --- the change of type ---------------------------------------------------------------------------
@pytest.mark.parametrize("name", KNOT_MODELS)
@pytest.mark.parametrize("end", [SINGLE, DOUBLE])
def test_prolongation_across_types_is_exact_to_round_off(name: str, end: torch.dtype) -> None:
    """The finer networks are the function of the coarse ones, evaluated in float64."""
    model = replace(MODELS[name], intervals=3) if not MODELS[name].breakpoints else MODELS[name]
    coarse = untrained(model, SINGLE)
    flags = (True,) * len(next(iter(coarse.parts.values())).network.chain)
    fine = refine_system(coarse, [Refinement(flags)] * 2, "prolongation", end)
    assert types(fine) == {end} and types(coarse) == {SINGLE}
    before = predict(in_type(coarse, DOUBLE), points())
    size = float(before.abs().max())
    difference = float((predict(in_type(fine, DOUBLE), points()) - before).abs().max())
    # Free knots follow from logits: widened, these are off by the round-off of float32. Powers of
    # ReLUs, rounded, cancel.
    rounded, loss = end is SINGLE or "free" in name, 1e-3 if "multichannel" in name else 1e-5
    assert difference <= (loss if rounded else 1e-11) * size
    in_single = predict(coarse, points())
    assert in_single.dtype is DOUBLE
    assert 0 < float((in_single - before).abs().max()) <= loss * size


@pytest.mark.parametrize("refine", ["dyadic", [7], [[[-1.0, -0.55, -0.3, 0.1, 1.0], 6]]])
def test_knots_in_double_precision_are_those_of_a_run_in_it(refine: Any) -> None:
    """Not their rounding: thirds stay equally spaced, given breakpoints what was given."""
    model = {**CONFIG["model"], "intervals": 3}
    if not isinstance(refine, str) and not isinstance(refine[0], int):
        model = {"width": 3, "order": 6, "breakpoints": [[[-1, -0.3, 1]], [[-1, 0, 1]] * 3]}
    config = {**changed(levels=2, refine=refine), "model": model}
    if refine == [7]:  # does not nest
        config["training"]["transfer"] = "least_squares"
    config["training"]["phases"] = [{"optimiser": "lm", "steps": 2}]
    found = []
    for precision in (None, ["float32", "float64"]):
        prepared = api.prepare(config, [f"training.precision={json.dumps(precision)}"])
        network = knot_networks(prepared.run.run().current.system)["main"]
        found.append(network.knots)
    for plain, mixed in zip(*found, strict=True):
        assert mixed.uniform == plain.uniform
        for one, two in zip(plain.breakpoints, mixed.breakpoints, strict=True):
            assert torch.equal(one, two)


def test_widened_knots() -> None:
    thirds = Knots.uniform_grid(4, 3, 2)
    assert thirds.widened() is thirds
    back = thirds.to(SINGLE).widened()
    assert back.uniform and all(map(torch.equal, back.breakpoints, thirds.breakpoints))
    given = Knots.from_breakpoints(4, [[-1.0, -0.3, 0.4, 1.0]]).to(SINGLE)
    assert torch.equal(given.widened().breakpoints[0], given.breakpoints[0].double())


def test_a_level_is_in_its_type_in_all_its_parts() -> None:
    """Points, held-out points, Jacobians, what is stepped on: with the type of the networks."""

    seen: list[Tensor] = []

    class Look(NullObserver):
        def on_checkpoint(self, state: RunState) -> None:
            vectors = [v for v in state.optimiser.values() if v.ndim and v.is_floating_point()]
            level = state.current.record.level
            assert {v.dtype for v in vectors} <= {chosen.dtype_on(level)}
            seen.extend(vectors)

    chosen = options(THIRDS, levels=3)
    training = replace(chosen.training, precision=("float32", "float64", "float32"))
    chosen = replace(chosen, training=training)
    run = MultilevelRun(Plain(), chosen, Look())
    state = run.run()
    assert seen
    assert [entry.record.dtype for entry in state.levels] == ["float32", "float64", "float32"]
    for entry, level in zip(state.levels, run.hierarchy.levels, strict=True):
        dtype = chosen.dtype_on(level.index)
        assert types(entry.system) == {value.dtype for value in entry.best.values()} == {dtype}
        context = run._context(level, entry.system)
        for data in (*context.data, *context.held_out.data):
            assert {site.x.dtype for site in data.points} == {dtype}
        assert context.errors.x.dtype == dtype
    for entry in state.levels[1:]:
        record = entry.record
        assert record.max_change is not None and record.max_change <= 1e-5
        assert record.change is not None and np.isfinite(record.change)


def solve_anew(tmp_path: Path, seed: int, **training: Any) -> kanpinn.SolveResult:
    config = {**changed(**training), "seed": seed}
    return kanpinn.solve(config, out=tmp_path / f"run{len(list(tmp_path.iterdir()))}")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_last_level_reaches_what_its_type_can(seed: int, tmp_path: Path) -> None:
    """More parameters than points: nothing but round-off bounds the loss from below."""
    losses = {}
    for last in ("float64", "float32"):
        result = solve_anew(tmp_path, seed, precision=["float32", "float64", last])
        kinds = [next(level.model.parameters()).dtype for level in result.solution.levels]
        assert kinds[:2] == [SINGLE, DOUBLE]
        losses[last] = result.levels[-1]["loss"]
    assert losses["float64"] < 1e-2 * losses["float32"]


def test_float32_early_costs_adam_nothing(tmp_path: Path) -> None:
    phases = [{"optimiser": "adam", "steps": 100}]
    plain, mixed = (
        solve_anew(tmp_path, 1, phases=phases, precision=precision)
        for precision in (None, ["float32", "float64"])
    )
    assert mixed.levels[-1]["rel_l2"] == pytest.approx(plain.levels[-1]["rel_l2"], rel=1e-3)


# --- going on exactly -----------------------------------------------------------------------------
class StopAfter(NullObserver):
    """Asks the run to stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def stop_requested(self) -> bool:
        self.left -= 1
        return self.left <= 0


MIXED: tuple[Precision, ...] = ("float32", "float64")
FEW = SamplingOptions(interior=30, boundary=8, initial=8, held_out=20)
LM = (LevenbergMarquardtPhase(steps=2),)


def mixed(model: Any, levels: int = 2, **training: Any) -> RunOptions:
    sampling = training.pop("sampling", FEW)
    chosen = options(model, levels=levels, sampling=sampling)
    return replace(chosen, training=replace(chosen.training, precision=MIXED, **training))


RUNS: dict[str, tuple[Problem, RunOptions]] = {
    "batches, attention, ragged free knots": (Plain(), mixed(MODELS["kan ragged free base"])),
    "multichannel": (Plain(), mixed(MODELS["multichannel"], phases=LM, attention=None)),
    "adaptive knots and points": (
        Plain(),
        mixed(
            THIRDS,
            levels=3,
            phases=LM,
            attention=None,
            refine="adaptive",
            sampling=replace(FEW, adaptive=AdaptiveSampling()),
        ),
    ),
    "starts": (Plain(), mixed(THIRDS, phases=LM, starts=StartsOptions(count=2, levels=2))),
    "scalars, two networks": (Coupled(), mixed(KANOptions(width=2, order=4), phases=LM)),
    "windows": (
        Swing(),
        replace(
            window_options(steps=2, windows=2),
            training=replace(window_options(steps=2, windows=2).training, precision=MIXED),
        ),
    ),
}


LONGER = {"batches, attention, ragged free knots"}
ANY_STEP = [pytest.param(n, marks=pytest.mark.slow if n in LONGER else ()) for n in RUNS]


@pytest.mark.parametrize("name", ANY_STEP)
def test_interrupted_at_any_step_across_the_change(name: str, tmp_path: Path) -> None:
    """Each time through a checkpoint file, which keeps the type of every level."""
    problem, chosen = RUNS[name]
    whole = MultilevelRun(problem, chosen).run()
    for step in range(1, whole.total_steps + 1):
        state = MultilevelRun(problem, chosen, StopAfter(step)).run()
        back = restore_state(read_checkpoint(save(tmp_path / "c.h5", state, problem)))
        if not back.total_steps:  # among several starts: what is not decided is done anew
            back = RunState()
        again = MultilevelRun(problem, chosen, state=back).run()
        assert [e.record.dtype for e in again.levels] == [e.record.dtype for e in whole.levels]
        for one, two in zip(again.levels, whole.levels, strict=True):
            same_tensors(dict(one.system.named_parameters()), dict(two.system.named_parameters()))
            same_tensors(one.best, two.best)
        losses = [[row["loss"] for row in run.history] for run in (again, whole)]
        assert losses[0] == losses[1]


def test_scalars_are_carried_over() -> None:
    problem, chosen = RUNS["scalars, two networks"]
    state = MultilevelRun(problem, chosen).run()
    first, second = (entry.system.scalars for entry in state.levels)
    assert {s.dtype for s in first.values()} == {SINGLE}
    assert {s.dtype for s in second.values()} == {DOUBLE}


def test_windows_continue_a_past_in_double_precision() -> None:
    """The past keeps its type while a coarse level of the next window is in float32."""
    chosen = window_options(windows=2)
    errors = []
    choices: list[tuple[Precision, ...] | None] = [None, MIXED]
    for precision in choices:
        training = replace(chosen.training, precision=precision)
        state = MultilevelRun(Swing(), replace(chosen, training=training)).run()
        errors.append(state.current.record.rel_l2)
    keys = [(e.record.key, e.record.dtype) for e in state.levels]
    assert keys[1:3] == [((0, 1), "float64"), ((1, 0), "float32")]
    past, own = chain(state.levels[2].system)
    assert (types(past), types(own)) == ({DOUBLE}, {SINGLE})
    assert errors[1] == pytest.approx(errors[0], rel=0.2)
    x = Swing().evaluation_points()
    assert predict(state.levels[2].system, x).dtype is DOUBLE
    jets = kanpinn.Solution(state).level(0, window=1).derivatives(x, "t")["t"]
    assert jets.dtype is SINGLE and bool(torch.isfinite(jets).all())
    for level in state.levels[2:]:  # what figures show
        (_, found), *_ = residual_columns(Swing(), level.system, Points(x))
        assert np.isfinite(found).all()
    early = x[x[:, 1] < 2.5]
    values = predict(state.levels[2].system, early)
    assert torch.equal(values, predict(past, early))


# --- what comes back and what is shown ------------------------------------------------------------
@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> kanpinn.SolveResult:
    out = tmp_path_factory.mktemp("mixed") / "run"
    return kanpinn.solve(changed(levels=2), ["training.phases.0.steps=4"], out)


def test_levels_are_loaded_in_their_types(solved: kanpinn.SolveResult) -> None:
    solution = kanpinn.load(solved.folder)
    x = np.linspace(-1, 1, 7)[:, None]
    coarse, fine = solution.levels
    assert [level(x).dtype for level in (coarse, fine)] == ["float32", "float64"]
    wide = kanpinn.load(solved.folder, dtype=DOUBLE).levels[0]
    assert wide(x).dtype == np.float64
    np.testing.assert_allclose(coarse(x), wide(x), atol=1e-5)
    np.testing.assert_allclose(coarse.derivatives(x, "xx")["xx"], wide.derivatives(x, "xx")["xx"],
                               atol=1e-2)  # fmt: skip
    layer = wide.networks["main"].network.layers[0]
    assert isinstance(layer, KnotLayer) and layer.knots.uniform
    assert coarse.univariate(0, 0, 0)(0.3) == pytest.approx(wide.univariate(0, 0, 0)(0.3), abs=1e-6)


def test_records_name_the_type(solved: kanpinn.SolveResult) -> None:
    assert [level["dtype"] for level in solved.levels] == ["float32", "float64"]
    assert solved.summary["dtype"] == "float64"
    assert [entry["dtype"] for entry in api.inspect(solved.folder)["levels"]] == [*MIXED]
    log = (solved.folder / "run.log").read_text()
    assert "float32, then float64, seed" in log
    assert " points, float32\n" in log and " points, float64; loss" in log


def test_dry_run_shows_the_types(tmp_path: Path) -> None:
    config = tmp_path / "mixed.yaml"
    config.write_text(json.dumps(changed(levels=2)))
    plan = CliRunner().invoke(main, ["solve", str(config), "--dry-run", "--json"])
    levels = json.loads(plan.stdout)["levels"]
    assert [level["dtype"] for level in levels] == ["float32", "float64"]
    table = CliRunner().invoke(main, ["solve", str(config), "--dry-run"]).stdout
    assert "type" in table.split("\nlevel")[1] and "float32" in table.split("\nlevel")[1]
    both = [CliRunner().invoke(main, ["solve", str(config), "--dry-run", "--json", *more])
            for more in ([], ["training.precision=null"])]  # fmt: skip
    first, wide = (json.loads(done.stdout)["levels"][0]["memory_mib"] for done in both)
    assert first < wide


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[]", "training.precision: found an empty list, allowed: null, or float32 or float64"),
        ("[float16]", "training.precision.0: found 'float16', allowed: float64 or float32"),
        ("float32", "training.precision: found 'float32', allowed: a list"),
        ("[32]", "training.precision.0: found 32, allowed: float64 or float32"),
    ],
)
def test_entries_that_make_no_sense(value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        api.prepare(CONFIG, [f"training.precision={value}"])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_basis_that_single_precision_cannot_carry() -> None:
    """The power-ReLU basis of order 8 is refused where the finer level is in float32."""
    model = {"type": "multichannel", "order": 8, "width": 2, "intervals": 4}
    config = {**changed(levels=2), "model": model}
    assert api.prepare(config, ["training.precision=[float32, float64]"])
    with pytest.raises(ConfigError, match=r"training.refine: from level 0: .* condition number"):
        api.prepare(config, ["training.precision=[float64, float32]"])


def test_a_single_precision_end_is_allowed() -> None:
    config = changed(levels=2, precision=["float64", "float32"])
    config["training"]["phases"] = [{"optimiser": "lm", "steps": 2}]
    state = api.prepare(config).run.run()
    assert types(state.current.system) == {SINGLE}


@pytest.mark.slow
def test_a_study_over_precisions(tmp_path: Path) -> None:
    base = changed(levels=2)
    base["training"]["phases"] = [{"optimiser": "lm", "steps": 2}]
    design = {"base": base, "axes": {"training.precision": [None, ["float32", "float64"]]}}
    (tmp_path / "study.yaml").write_text(json.dumps(design))
    study = kanpinn.run_study(tmp_path / "study.yaml", tmp_path / "out", jobs=1)
    assert not study.missing and len(study.cases) == 2

"""Checkpoints: bit for bit round trips, exact resume, plain HDF5, provenance."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from tiny_runs import (
    CONFIG,
    MODELS,
    RAGGED_COUPLED,
    Coupled,
    Plain,
    Recorder,
    options,
    same_tensors,
    save,
    states,
)

from kanpinn.checkpoint import (
    SCHEMA_VERSION,
    read_checkpoint,
    restore_state,
    write_checkpoint,
)
from kanpinn.checkpoint.schema import from_file
from kanpinn.errors import DeviceError
from kanpinn.models import KANOptions, KnotLayer
from kanpinn.optimisers import StopReason
from kanpinn.provenance import describe_problem, gather
from kanpinn.residuals import System
from kanpinn.sampling import AdaptiveSampling, SamplingOptions
from kanpinn.training import (
    BalanceOptions,
    CausalOptions,
    LevenbergMarquardtPhase,
    MultilevelRun,
    RunState,
    TrainingOptions,
    Weights,
    predict,
)
from kanpinn.training.state import LevelState

REPOSITORY = Path(__file__).resolve().parent.parent
COUPLED = KANOptions(
    width=3, order=4, breakpoints=RAGGED_COUPLED, knots="free", base="silu", knot_floor=0.01
)


def round_trip(state: RunState, path: Path) -> RunState:
    return restore_state(read_checkpoint(save(path, state)))


def same_systems(first: System, second: System) -> None:
    assert first.coordinates == second.coordinates
    same_tensors(dict(first.named_parameters()), dict(second.named_parameters()))
    for name, part in first.parts.items():
        other = second.parts[name]
        assert (part.fields, part.inputs, part.outputs) == (
            other.fields,
            other.inputs,
            other.outputs,
        )
        assert type(part.network) is type(other.network)
        assert part.network.smoothness == other.network.smoothness
        for layer, twin in zip(part.network.layers, other.network.layers, strict=True):
            assert str(layer) == str(twin)
            if isinstance(layer, KnotLayer) and isinstance(twin, KnotLayer):
                assert layer.settings == twin.settings
                assert layer.knots.uniform == twin.knots.uniform
                for t, s in zip(layer.knots.breakpoints, twin.knots.breakpoints, strict=True):
                    assert torch.equal(t, s)


def same_history(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    def exact(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: (type(v), repr(v)) for k, v in row.items()} for row in rows]

    assert exact(first) == exact(second)


def same_levels(first: LevelState, second: LevelState) -> None:
    assert repr(first.record) == repr(second.record)
    assert (first.best_score, first.best_step) == (second.best_score, second.best_step)
    same_systems(first.system, second.system)
    same_tensors(first.best, second.best)


def same_states(first: RunState, second: RunState) -> None:
    """Every field of the state, whatever fields it has: what is not compared here is an error."""
    assert len(first.levels) == len(second.levels)
    for level, other in zip(first.levels, second.levels, strict=True):
        same_levels(level, other)
    same_history(first.history, second.history)
    kinds = [field.name for field in dataclasses.fields(Weights)]
    pairs = [(first.optimiser, second.optimiser)]
    pairs += [(getattr(first.weights, kind), getattr(second.weights, kind)) for kind in kinds]
    for a, b in pairs:
        same_tensors(dict(sorted(a.items())), dict(sorted(b.items())))
    compared = {"levels", "history", "optimiser", "weights"}
    for field in dataclasses.fields(RunState):
        if field.name not in compared:
            assert getattr(first, field.name) == getattr(second, field.name), field.name
    known = {"record", "system", "best", "best_score", "best_step"}
    assert {field.name for field in dataclasses.fields(LevelState)} == known


@pytest.fixture(scope="module")
def coupled() -> list[RunState]:
    """All checkpoints of a run with two networks, ragged free knots, scalars and all weights."""
    chosen = options(COUPLED)
    weights = replace(chosen.training, balance=BalanceOptions(), causal=CausalOptions())
    return states(Coupled(), replace(chosen, training=weights))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a small run; not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    return save(folder / "checkpoint.h5", states(Plain(), options(MODELS["kan"]))[-1])


# ------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("name", MODELS)
def test_every_model_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    levels = 1 if name.startswith("mlp") else 2
    kept = states(Plain(), options(MODELS[name], levels))
    assert kept[0].optimiser, "no checkpoint inside a phase: the test would miss its state"
    for state in (kept[0], kept[-1]):
        back = round_trip(state, tmp_path / "c.h5")
        same_states(state, back)
        x = Plain.domain.evaluation_grid((9, 9))[0]
        for level, other in zip(state.levels, back.levels, strict=True):
            assert torch.equal(predict(level.system, x), predict(other.system, x))
            assert torch.equal(predict(level.best_system(), x), predict(other.best_system(), x))


def test_parts_scalars_and_maps_come_back(coupled: list[RunState], tmp_path: Path) -> None:
    assert all(any(vars(state.weights).values()) for state in coupled)
    assert all(vars(coupled[0].weights).values())
    assert coupled[-1].current.system.parts.keys() == {"second", "main"}
    for state in coupled:
        back = restore_state(read_checkpoint(save(tmp_path / "c.h5", state, Coupled())))
        same_states(state, back)
        assert sorted(back.current.system.scalars) == ["flow/rate", "nu"]


def test_float32_comes_back_bit_for_bit(tmp_path: Path) -> None:
    chosen = options(MODELS["kan ragged free base"], dtype=torch.float32)
    for state in states(Plain(), chosen):
        assert next(state.current.system.parameters()).dtype == torch.float32
        same_states(state, round_trip(state, tmp_path / "c.h5"))


def test_history_keeps_kinds_gaps_and_special_numbers(saved: Path, tmp_path: Path) -> None:
    state = restore_state(read_checkpoint(saved))
    state.history = [
        {"step": 0, "loss": math.nan, "rel_l2": None, "phase": "start", "ok": True},
        {"step": 2**53 + 1, "loss": -math.inf, "rel_l2": 5e-324, "phase": None, "ok": False},
        {"step": 3, "loss": -0.0, "rel_l2": math.nan, "phase": "ü/%", "scalar.a/b": 1.5},
    ]
    back = round_trip(state, tmp_path / "c.h5")
    same_history(state.history, back.history)


def test_records_keep_missing_and_special_numbers(saved: Path, tmp_path: Path) -> None:
    state = restore_state(read_checkpoint(saved))
    record = state.current.record
    record.n_intervals, record.loss, record.rel_l2, record.stop_reason = [], math.inf, None, None
    state.current.best_score = math.inf
    state.phase, state.step, state.restarts, state.finished = 1, 4, 2, False
    back = round_trip(state, tmp_path / "c.h5")
    same_states(state, back)
    assert repr(back.current.record) == repr(record)
    assert back.current.best_score == math.inf


def test_non_finite_parameters_are_kept(saved: Path, tmp_path: Path) -> None:
    state = restore_state(read_checkpoint(saved))
    with torch.no_grad():
        next(state.current.system.parameters())[0] = math.nan
    same_states(state, round_trip(state, tmp_path / "c.h5"))


def test_config_problem_and_provenance_come_back(saved: Path) -> None:
    checkpoint = read_checkpoint(saved)
    assert checkpoint.config == CONFIG
    assert checkpoint.problem["bounds"] == [[-1.0, 1.0], [0.0, 3.0]]
    assert checkpoint.problem["source"] is None
    assert checkpoint.provenance["versions"]["torch"] == torch.__version__
    assert checkpoint.finished
    assert [record.level for record in checkpoint.levels] == [0, 1]


def test_the_same_state_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(saved)
    again = tmp_path / "again.h5"
    described = (checkpoint.config, checkpoint.problem, checkpoint.provenance)
    write_checkpoint(again, restore_state(checkpoint), *described)
    assert again.read_bytes() == saved.read_bytes()


def test_another_type_drops_the_optimisers_memory(coupled: list[RunState], tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save(tmp_path / "c.h5", coupled[0], Coupled()))
    state = restore_state(checkpoint, dtype=torch.float32)
    assert {p.dtype for p in state.current.system.parameters()} == {torch.float32}
    weights = {**state.weights.attention, **state.weights.balance, **state.weights.causal}
    assert weights.pop("stage").dtype == torch.int64
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert coupled[0].optimiser
    assert not state.optimiser


def test_any_device(saved: Path, device: torch.device) -> None:
    state = restore_state(read_checkpoint(saved), device)
    assert {p.device.type for p in state.current.system.parameters()} == {device.type}
    x = Plain.domain.evaluation_grid((5, 5))[0].to(device)
    assert predict(state.current.best_system(), x).device.type == device.type


@pytest.mark.parametrize("device_name", ["tape", "cuda:99", "meta:3:4"])
def test_unknown_devices(saved: Path, device_name: str) -> None:
    with pytest.raises(DeviceError, match="not available") as caught:
        restore_state(read_checkpoint(saved), device_name)
    assert "\n" not in str(caught.value)


def test_files_of_before_some_weights_are_read(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "older.h5"
    path.write_bytes(saved.read_bytes())
    with h5py.File(path, "r+") as file:
        del file["state/balance"], file["state/causal"]
    training = from_file(path.read_bytes()).training
    assert (training.balance, training.causal) == ({}, {})
    assert training.total_steps == 20 and training.attention


# ------------------------------------------------------------------------------------ resume


RESUMED = {
    "kan": (Plain(), options(MODELS["kan"])),
    "free ragged base": (Plain(), options(MODELS["kan ragged free base"])),
    "multichannel": (Plain(), options(MODELS["multichannel"])),
    "float32": (Plain(), options(MODELS["kan"], dtype=torch.float32)),
    "coupled": (Coupled(), options(COUPLED)),
    "weights in time and of blocks": (
        Coupled(),
        replace(
            options(MODELS["kan"]),
            training=TrainingOptions(
                levels=2,
                phases=(LevenbergMarquardtPhase(steps=10),),
                balance=BalanceOptions(every=2),
                causal=CausalOptions(every=2),
                log_every=2,
                checkpoint_every=3,
            ),
        ),
    ),
    "least squares, adaptive points": (
        Plain(),
        replace(
            options(MODELS["kan free"]),
            training=TrainingOptions(
                levels=2,
                phases=(LevenbergMarquardtPhase(steps=10),),
                log_every=2,
                checkpoint_every=3,
            ),
            sampling=SamplingOptions(interior=60, held_out=50, adaptive=AdaptiveSampling()),
        ),
    ),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_equals_the_undisturbed_one(name: str, tmp_path: Path) -> None:
    problem, chosen = RESUMED[name]
    paths: Iterator[int] = iter(range(1000))
    recorder = Recorder(lambda state: save(tmp_path / f"{next(paths)}.h5", state, problem))
    final = MultilevelRun(problem, chosen, recorder).run()
    files = recorder.kept
    assert len(files) == 6 + 1  # every 3 of 20 steps, and the end
    # Inside the phases of both optimisers, on both levels.
    for file in (files[0], files[2], files[3], files[5]) if name == "kan" else (files[2],):
        state = restore_state(read_checkpoint(file))
        assert not state.finished
        resumed = MultilevelRun(problem, chosen, state=state).run()
        same_states(*(without_clock(s) for s in (final, resumed)))


def without_clock(state: RunState) -> RunState:
    state = copy.deepcopy(state)
    state.elapsed = 0.0
    for level in state.levels:
        level.record.wall_s = 0.0
    for row in state.history:
        row["wall_s"] = 0.0
    return state


# ------------------------------------------------------------------------------------ plain HDF5


def test_the_documented_code_evaluates_the_network_without_kanpinn(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "checkpoint.md").read_text(encoding="utf-8")
    code = page.split("runs this block -->\n```python\n")[1].split("```")[0]
    assert "kanpinn" not in code
    names: dict[str, Any] = {}
    exec(code, names)
    state = states(Plain(), options(MODELS["kan"]))[-1]
    path = save(tmp_path / "c.h5", state)
    x = np.random.default_rng(0).uniform([-1, 0], [1, 3], (50, 2))
    with h5py.File(path) as file:
        assert file.attrs["program"] == b"kanpinn"
        assert file.attrs["schema_version"] == SCHEMA_VERSION
        assert json.loads(file["config"][()]) == CONFIG
        output = json.loads(file["parts/main/outputs"][()])[0]
    assert float(output["lift"]) == 0.0
    for number, level in enumerate(state.levels):
        raw = names["evaluate"](path, number, x)[:, 0]
        found = eval(output["factor"], {"x": x[:, 0], "y": x[:, 1]}) * raw
        expected = predict(level.best_system(), torch.tensor(x))[:, 0].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_everything_in_a_file_is_documented(coupled: list[RunState], tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "checkpoint.md").read_text(encoding="utf-8")
    given = {"main", "second", "nu", "flow%2Frate", *map(str, range(10))}
    given |= {name for state in coupled for name in state.optimiser}
    blocks = {block.name for block in Coupled().blocks()}
    assert blocks == set(coupled[0].weights.balance)
    given |= blocks
    given |= {name.replace("/", "%2F") for row in coupled[-1].history for name in row}
    unknown: list[str] = []

    def check(name: str, node: Any) -> None:
        names = [name.rsplit("/", 1)[-1], *node.attrs]
        unknown.extend(n for n in names if n not in given and not re.search(rf"[`/]{n}[`/]", page))

    for state, problem in ((coupled[0], Coupled()), (coupled[-1], Coupled())):
        with h5py.File(save(tmp_path / "c.h5", state, problem)) as file:
            file.visititems(check)
    mlp = states(Plain(), options(MODELS["mlp"], 1))[-1]
    with h5py.File(save(tmp_path / "mlp.h5", mlp)) as file:
        file.visititems(check)
        described = [*json.loads(file["problem"][()]), *json.loads(file["provenance"][()])]
    assert unknown == []
    assert [name for name in described if f"`{name}`" not in page] == []


def test_canonical_shapes_and_ragged_layers(tmp_path: Path) -> None:
    path = save(tmp_path / "a.h5", states(Plain(), options(MODELS["kan orders"], 1))[-1])
    with h5py.File(path) as file:
        layer = file["parts/main/levels/0/layers/1"]
        assert layer["last/coefficients"].shape == (1, 3, 3 + 6 - 1)  # (out, in, i)
        assert layer["last/breakpoints"].shape == (3, 4)
    state = states(Plain(), options(MODELS["kan ragged free base"], 1))[-1]
    with h5py.File(save(tmp_path / "b.h5", state)) as file:
        layer = file["parts/main/levels/0/layers/1"]
        intervals = layer["intervals"][()]
        assert intervals.tolist() == [2, 3, 4]
        rows = np.split(layer["last/breakpoints"][()], np.cumsum(intervals + 1)[:-1])
        assert all(row[0] == -1 and row[-1] == 1 and (np.diff(row) > 0).all() for row in rows)
        assert layer["last/coefficients"].shape == (1, sum(n + 3 for n in intervals))
        assert layer["last/base_weights"].shape == (1, 3)
        assert layer["last/knot_logits"].shape == (9,)
        assert layer["last/knot_offsets"].shape == layer["last/breakpoints"].shape


def test_a_file_holds_no_code_and_nothing_of_variable_length(saved: Path) -> None:
    def check(name: str, node: Any) -> None:
        values = [*node.attrs.values(), *([node[()]] if isinstance(node, h5py.Dataset) else [])]
        for value in values:
            assert np.asarray(value).dtype.kind in "Sbif", name
        if isinstance(node, h5py.Dataset):
            assert node.chunks is None

    with h5py.File(saved) as file:
        file.visititems(check)
        names: list[str] = []
        file.visit(names.append)
        assert len(names) > 50


LOAD = """
import sys, torch
from kanpinn.checkpoint import read_checkpoint, restore_state
from kanpinn.solution import Solution
solution = Solution.load(sys.argv[1])
x = torch.tensor([[0.25, 2.0], [1.0, 1.5]], dtype=torch.float64)
print(repr(solution(x).tolist()))
print(sorted(m for m in sys.modules if "problems" in m or "tiny_runs" in m))
"""


def test_loading_imports_no_problem(coupled: list[RunState], tmp_path: Path) -> None:
    path = save(tmp_path / "c.h5", coupled[-1], Coupled())
    command = [sys.executable, "-W", "error", "-c", LOAD, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.stderr == ""
    values, modules = done.stdout.splitlines()
    assert modules == "[]"
    system = coupled[-1].best_level.best_system()
    x = torch.tensor([[0.25, 2.0], [1.0, 1.5]], dtype=torch.float64)
    order = [system.field_names.index(name) for name in ("a", "b", "c")]
    np.testing.assert_allclose(
        np.array(json.loads(values)), predict(system, x)[:, order].numpy(), rtol=1e-12
    )


# ------------------------------------------------------------------------------------ provenance


def test_provenance_is_plain_and_complete() -> None:
    entry = gather("cpu", torch.float32, 7, command="kanpinn solve x.yaml")
    assert json.loads(json.dumps(entry)) == entry
    assert entry["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert entry["versions"]["numpy"] == np.__version__
    assert (entry["device"], entry["dtype"], entry["seed"]) == ("cpu", "float32", 7)
    assert entry["utc"].endswith("+00:00")
    assert entry["command"] == "kanpinn solve x.yaml"
    assert entry["commit"] is None or len(entry["commit"]) == 40


def test_a_users_problem_is_stored_by_path_and_hash(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_bytes(b"abc")
    found = describe_problem(Coupled(), f"{source}:Coupled", {"nu": 0.1}, source)
    assert found["source"] == {
        "path": str(source),
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }
    assert found["fields"] == ["a", "b", "c"]
    assert found["networks"] == {"second": ["c"], "main": ["a", "b"]}
    assert (found["coordinates"], found["time"]) == (["x", "t"], "t")
    assert json.loads(json.dumps(found)) == found


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    class Stopper(Recorder):
        asked = 0

        def stop_requested(self) -> bool:
            self.asked += 1
            return self.asked == 13  # in the Adam phase of level 1, where no line is due

    chosen = options(MODELS["kan"])
    undisturbed = MultilevelRun(Plain(), chosen).run()
    path = save(tmp_path / "c.h5", MultilevelRun(Plain(), chosen, Stopper()).run())
    checkpoint = read_checkpoint(path)
    assert not checkpoint.finished
    assert checkpoint.levels[-1].stop_reason == StopReason.INTERRUPTED.value
    resumed = MultilevelRun(Plain(), chosen, state=restore_state(checkpoint)).run()
    same_states(*(without_clock(state) for state in (undisturbed, resumed)))

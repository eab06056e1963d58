"""Checkpoints: bit for bit round trips, exact resume, plain HDF5, damage, atomic writes."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from tiny_runs import (
    MODELS,
    RAGGED_COUPLED,
    Coupled,
    Plain,
    Recorder,
    options,
    same_tensors,
    states,
)

from kanpinn.checkpoint import (
    SCHEMA_VERSION,
    Checkpoint,
    read_checkpoint,
    restore_state,
    write_checkpoint,
)
from kanpinn.checkpoint import envelope as sealing
from kanpinn.checkpoint.envelope import USER_BLOCK, write_sealed
from kanpinn.errors import CheckpointError, DeviceError
from kanpinn.models import KANOptions, KnotLayer
from kanpinn.optimisers import StopReason
from kanpinn.provenance import describe_problem, gather
from kanpinn.residuals import System
from kanpinn.training import MultilevelRun, RunOptions, RunState, predict
from kanpinn.training.state import LevelState

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = {"problem": {"name": "plain"}, "values": [1, 2.5, None, True, "ä\n"], "large": 1e300}
COUPLED = KANOptions(
    width=3, order=4, breakpoints=RAGGED_COUPLED, knots="free", base="silu", knot_floor=0.01
)


def save(path: Path, state: RunState, problem: Any = None) -> Path:
    described = describe_problem(problem or Plain(), "plain")
    write_checkpoint(path, state, CONFIG, described, gather("cpu", torch.float64, 3))
    return path


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
    for name in ("optimiser", "attention"):
        a, b = getattr(first, name), getattr(second, name)
        same_tensors(dict(sorted(a.items())), dict(sorted(b.items())))
    compared = {"levels", "history", "optimiser", "attention"}
    for field in dataclasses.fields(RunState):
        if field.name not in compared:
            assert getattr(first, field.name) == getattr(second, field.name), field.name
    known = {"record", "system", "best", "best_score", "best_step"}
    assert {field.name for field in dataclasses.fields(LevelState)} == known


@pytest.fixture(scope="module")
def coupled() -> list[RunState]:
    """All checkpoints of a run with two networks, ragged free knots, scalars and attention."""
    return states(Coupled(), options(COUPLED))


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
    assert any(state.attention for state in coupled)
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
    back = round_trip(state, tmp_path / "c.h5")
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
    assert len(checkpoint.config_sha256) == 64


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
    assert {w.dtype for w in state.attention.values()} == {torch.float32}
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


# ------------------------------------------------------------------------------------ resume


RESUMED = {
    "kan": (Plain(), options(MODELS["kan"])),
    "free ragged base": (Plain(), options(MODELS["kan ragged free base"])),
    "multichannel": (Plain(), options(MODELS["multichannel"])),
    "float32": (Plain(), options(MODELS["kan"], dtype=torch.float32)),
    "coupled": (Coupled(), options(COUPLED)),
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


def test_plain_h5py_suffices_to_evaluate_the_network(tmp_path: Path) -> None:
    """By h5py, numpy and scipy.interpolate alone, from what docs/checkpoint.md says."""
    state = states(Plain(), options(MODELS["kan"]))[-1]
    path = save(tmp_path / "c.h5", state)
    x = np.random.default_rng(0).uniform([-1, 0], [1, 3], (50, 2))
    with h5py.File(path) as file:
        assert file.attrs["program"] == b"kanpinn"
        assert file.attrs["schema_version"] == SCHEMA_VERSION
        assert json.loads(file["config"][()]) == CONFIG
        part = file["parts/main"]
        inputs = json.loads(part["inputs"][()])
        assert [entry["map"] for entry in inputs["maps"]] == ["coordinate", "coordinate"]
        low, high = np.array(inputs["bounds"]).T
        z = 2 * (x - low) / (high - low) - 1
        layers = part["levels/1/layers"]
        for number in range(layers.attrs["count"]):
            z = evaluate_layer(layers[str(number)], z)
        formula = json.loads(part["outputs"][()])[0]
        assert file["history/loss"].shape == file["history/step"].shape
    factor = eval(formula["factor"], {"x": x[:, 0], "y": x[:, 1]})
    found = factor * z[:, 0]  # the lift is zero
    expected = predict(state.levels[1].best_system(), torch.tensor(x))[:, 0].numpy()
    assert float(formula["lift"]) == 0.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def evaluate_layer(layer: h5py.Group, z: np.ndarray) -> np.ndarray:
    if layer.attrs["squash"] == b"tanh":
        z = np.tanh(z)
    r = layer.attrs["order"]
    breakpoints, coefficients = layer["best/breakpoints"][()], layer["best/coefficients"][()]
    result = np.zeros((len(z), layer.attrs["out_width"]))
    for p, t in enumerate(breakpoints):
        h = [t[1] - t[0], t[-1] - t[-2]]
        steps = np.arange(1, r)
        knots = np.concatenate([t[0] - steps[::-1] * h[0], t, t[-1] + steps * h[1]])
        for q in range(result.shape[1]):
            result[:, q] += BSpline(knots, coefficients[q, p], r - 1)(z[:, p])
    return result


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


# ------------------------------------------------------------------------------------ damage


def refused(path: Path, reason: str = "") -> str:
    """The one-line message with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        restore_state(read_checkpoint(path))
    message = str(caught.value)
    assert message.startswith(f"checkpoint {path}: ")
    assert "\n" not in message
    assert reason in message
    return message


def test_truncated_at_every_kind_of_length(saved: Path, tmp_path: Path) -> None:
    data, path = saved.read_bytes(), tmp_path / "c.h5"
    lengths = [1, 5, 30, 100, 511, 512, 513, 700, 1024, len(data) // 2, len(data) - 1]
    for length in [*lengths, *range(2000, len(data), 3001)]:
        path.write_bytes(data[:length])
        refused(path, "truncated")
    path.write_bytes(data + b"\0")
    refused(path, "longer")


def test_every_flipped_byte_is_found(saved: Path, tmp_path: Path) -> None:
    data, path = saved.read_bytes(), tmp_path / "c.h5"
    rng = random.Random(1)
    places = [*range(USER_BLOCK + 64), *rng.sample(range(USER_BLOCK, len(data)), 200)]
    for place in [*places, len(data) - 1]:
        wrong = bytearray(data)
        wrong[place] ^= 1 << rng.randrange(8)
        path.write_bytes(wrong)
        refused(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"u,x,y\n1,2,3\n", "not a kanpinn checkpoint"),
        (b"\0" * 4096, "not a kanpinn checkpoint"),
        (random.Random(0).randbytes(10_000), "not a kanpinn checkpoint"),
        (
            b"kanpinn checkpoint, format 2\n".ljust(600, b"\0"),
            "file format 2, this kanpinn reads 1",
        ),
        (b"kanpinn checkpoint, format x\n".ljust(600, b"\0"), "damaged"),
        (
            b"kanpinn checkpoint, format 1\nlength 99999999999999\nsha256 ".ljust(512, b"0"),
            "damaged",
        ),
    ],
)
def test_other_files(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    path.write_bytes(content)
    refused(path, reason)


def test_a_huge_declared_length_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    head = f"kanpinn checkpoint, format 1\nlength {10**17}\nsha256 {'0' * 64}\n".encode()
    path.write_bytes(head.ljust(2000, b"\0"))
    refused(path, "truncated: 1488 bytes of data, 100000000000000000 were written")


def test_foreign_hdf5_folders_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as file:
        file["u"] = np.zeros(10)
    refused(path, "an HDF5 file of another program")
    refused(tmp_path, "is a folder")
    refused(tmp_path / "none.h5", "does not exist")
    refused(path / "below", "cannot be read")
    os.mkfifo(tmp_path / "fifo")
    keep = os.open(tmp_path / "fifo", os.O_RDWR)  # so that opening it does not wait
    refused(tmp_path / "fifo", "not a regular file")
    os.close(keep)


def test_sealed_but_not_hdf5(tmp_path: Path) -> None:
    write_sealed(tmp_path / "c.h5", b"anything" * 100)
    refused(tmp_path / "c.h5", "damaged inside")


Change = Callable[[h5py.File], None]


def forge(saved: Path, path: Path, change: Change) -> Path:
    """A changed copy whose checksum fits."""
    path.write_bytes(saved.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    write_sealed(path, path.read_bytes()[USER_BLOCK:])
    return path


def replace(name: str, **dataset: Any) -> Change:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **dataset)

    return change


def attribute(place: str, name: str, value: Any) -> Change:
    def change(file: h5py.File) -> None:
        del file[place].attrs[name]
        if value is not None:
            file[place].attrs[name] = value

    return change


def link(name: str, target: Any) -> Change:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = target

    return change


def text(value: Any) -> np.ndarray:
    return np.array(json.dumps(value).encode())


LAYER = "/parts/main/levels/0/layers/0"
COEFFICIENTS = f"{LAYER}/last/coefficients"
FORGED: dict[str, tuple[Change, str]] = {
    "newer schema": (attribute("/", "schema_version", 2), "schema version 2, kanpinn"),
    "schema of no version": (attribute("/", "schema_version", None), "attribute is missing"),
    "schema as text": (attribute("/", "schema_version", np.bytes_(b"1")), "found str"),
    "another program": (attribute("/", "program", np.bytes_(b"other")), "another program"),
    "no program": (attribute("/", "program", None), "another program"),
    "no config": (lambda f: f.pop("config"), "/config: is missing"),
    "no parts": (lambda f: f.pop("parts"), "/parts: is missing"),
    "no coefficients": (lambda f: f.pop(COEFFICIENTS), f"{COEFFICIENTS}: is missing"),
    "no best": (lambda f: f.pop(f"{LAYER}/best"), f"{LAYER}/best: is missing"),
    "no history": (lambda f: f.pop("history/loss"), "/history/loss: is missing"),
    "no state": (lambda f: f.pop("state"), "/state: is missing"),
    "one level missing": (lambda f: f.pop("parts/main/levels/1"), "levels: has [0], the run"),
    "shape": (replace(COEFFICIENTS, data=np.zeros((3, 2, 7))), f"{COEFFICIENTS}: has shape"),
    "flat": (replace(COEFFICIENTS, data=np.zeros(36)), f"{COEFFICIENTS}: has shape (36,)"),
    "integers": (replace(COEFFICIENTS, data=np.zeros((3, 2, 6), int)), "has type int64, allowed"),
    "big endian": (replace(COEFFICIENTS, data=np.zeros((3, 2, 6), ">f8")), "has type >f8"),
    "mixed types": (
        replace(COEFFICIENTS, data=np.zeros((3, 2, 6), "f4")),
        "several types: float32, float64",
    ),
    "not numbers": (replace(COEFFICIENTS, data=np.array([b"x"])), "has type |S1"),
    "a group": (link(COEFFICIENTS, np.dtype("f8")), "is not a dataset"),
    "a dataset": (replace(f"{LAYER}/last", data=1.0), "is not a group"),
    "huge": (
        replace(COEFFICIENTS, shape=(3, 2, 6), dtype="f8", chunks=(3, 2, 6), fillvalue=1.0),
        "not stored contiguously",
    ),
    "huge attention": (
        replace("state/attention", shape=(1,), dtype="f8"),
        "/state/attention: is not a group",
    ),
    "huge history": (
        replace("history/loss", shape=(2**45,), dtype="f8", chunks=(1024,)),
        "declares 281474976710656 bytes, more than the file holds",
    ),
    "compressed": (
        replace(COEFFICIENTS, data=np.zeros((3, 2, 6)), compression="gzip"),
        "not stored contiguously",
    ),
    "soft link": (link(COEFFICIENTS, h5py.SoftLink(f"{LAYER}/best/coefficients")), "is a link"),
    "external link": (link("config", h5py.ExternalLink("/etc/passwd", "/")), "is a link"),
    "text of variable length": (replace("config", data='{"a": 1}'), "not one fixed-length text"),
    "attribute of variable length": (attribute("/", "program", "kanpinn"), "is not a number"),
    "not JSON": (replace("config", data=np.array(b"{")), "/config: is not valid JSON"),
    "not an object": (replace("config", data=text([1])), "/config: is not a JSON object"),
    "deep JSON": (replace("config", data=np.array(b"[" * 100_000)), "/config"),
    "not UTF-8": (replace("config", data=np.array(b'"\xff"')), "not UTF-8"),
    "unknown part": (
        replace(
            "system",
            data=text(
                {"coordinates": ["x", "y"], "spatial": [0, 1], "parts": ["other"], "scalars": []}
            ),
        ),
        "/parts/other: is missing",
    ),
    "no spatial": (
        replace("system", data=text({"coordinates": ["x", "y"], "parts": ["main"], "scalars": []})),
        "/system: spatial",
    ),
    "other coordinates": (
        replace(
            "system",
            data=text(
                {"coordinates": ["x", "z"], "spatial": [0, 1], "parts": ["main"], "scalars": []}
            ),
        ),
        "does not have the coordinates",
    ),
    "unknown input map": (
        replace(
            "parts/main/inputs",
            data=text(
                {
                    "names": ["x", "y"],
                    "bounds": [[-1, 1], [0, 3]],
                    "maps": [{"map": "exec", "of": "x"}],
                }
            ),
        ),
        "/parts/main/inputs: maps.0",
    ),
    "map of no coordinate": (
        replace(
            "parts/main/inputs",
            data=text(
                {
                    "names": ["x", "y"],
                    "bounds": [[-1, 1], [0, 3]],
                    "maps": [{"map": "coordinate", "of": "q"}],
                }
            ),
        ),
        "'q' is unknown",
    ),
    "bounds": (
        replace(
            "parts/main/inputs",
            data=text(
                {
                    "names": ["x", "y"],
                    "bounds": [[1, 1], [0, 3]],
                    "maps": [{"map": "coordinate", "of": "x"}, {"map": "coordinate", "of": "y"}],
                }
            ),
        ),
        "not finite and increasing",
    ),
    "code in a formula": (
        replace("parts/main/outputs", data=text([{"lift": "__import__('os')", "factor": 1.0}])),
        "expression",
    ),
    "unknown network": (attribute("/parts/main", "network", np.bytes_(b"resnet")), "'resnet'"),
    "unknown squash": (attribute(LAYER, "squash", np.bytes_(b"system")), "found 'system'"),
    "unsorted knots": (
        replace(f"{LAYER}/last/breakpoints", data=[[-1.0, 2.0, 1.0], [-1.0, 0.0, 1.0]]),
        "/parts/main/levels/0/layers: breakpoints of channel 0 are not increasing",
    ),
    "order": (attribute(LAYER, "order", 10**9), "order 1000000000"),
    "widths": (attribute(LAYER, "out_width", 10**15), "has shape"),
    "a float for a width": (attribute(LAYER, "out_width", 3.0), "found float, allowed: int"),
    "no intervals": (replace(f"{LAYER}/intervals", data=[2, 0]), "on 0 intervals"),
    "negative phase": (attribute("/state", "phase", -1), "at least 0"),
    "lines": (replace("history/step", data=np.arange(3)), "has 3 lines"),
    "level of that name": (lambda f: f.create_group("parts/main/levels/x"), "is not the number"),
    "records": (attribute("/records", "count", 10**12), "/records/2: is missing"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_files_name_the_place(name: str, saved: Path, tmp_path: Path) -> None:
    change, reason = FORGED[name]
    refused(forge(saved, tmp_path / "c.h5", change), reason)


def test_a_forgery_without_change_is_read(saved: Path, tmp_path: Path) -> None:
    path = forge(saved, tmp_path / "c.h5", lambda file: None)
    assert isinstance(read_checkpoint(path), Checkpoint)


def test_repeated_reading_of_one_dataset_is_bounded(saved: Path, tmp_path: Path) -> None:
    """Many names of one large dataset must not add up to more memory than the file has."""

    def change(file: h5py.File) -> None:
        file["state/optimiser/big"] = np.zeros(200_000)
        for number in range(20):
            file[f"state/optimiser/n{number}"] = file["state/optimiser/big"]

    refused(forge(saved, tmp_path / "c.h5", change), "more than the file holds")


# ------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("step", ["replace", "fsync"])
@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_a_failed_write_leaves_the_previous_file(
    step: str, fault: BaseException, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.h5"
    path.write_bytes(saved.read_bytes())
    state = restore_state(read_checkpoint(saved))
    state.total_steps += 1

    def fail(*_: Any) -> None:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(sealing.os, step, fail)
        expected = CheckpointError if isinstance(fault, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as caught:
            save(path, state)
    if isinstance(fault, OSError):
        assert str(caught.value) == (
            f"checkpoint {path}: cannot be written: No space left on device"
        )
    assert path.read_bytes() == saved.read_bytes()
    assert os.listdir(tmp_path) == ["c.h5"]
    save(path, state)
    assert restore_state(read_checkpoint(path)).total_steps == state.total_steps


def test_what_a_killed_writer_left_is_no_hindrance(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "c.h5.tmp").write_bytes(b"half a file")
    save(tmp_path / "c.h5", restore_state(read_checkpoint(saved)))
    assert os.listdir(tmp_path) == ["c.h5"]
    read_checkpoint(tmp_path / "c.h5")


def test_a_link_to_a_file_stays_a_link(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "c.h5").symlink_to(tmp_path / "real" / "c.h5")
    save(tmp_path / "c.h5", restore_state(read_checkpoint(saved)))
    assert (tmp_path / "c.h5").is_symlink()
    read_checkpoint(tmp_path / "real" / "c.h5")


def test_what_cannot_be_stored_is_named_and_nothing_is_written(saved: Path, tmp_path: Path) -> None:
    path, state = tmp_path / "c.h5", restore_state(read_checkpoint(saved))
    with pytest.raises(CheckpointError, match=r"config: cannot be stored as JSON.*set"):
        write_checkpoint(path, state, {"a": {1, 2}}, {}, {})
    with pytest.raises(CheckpointError, match="nothing to store"):
        write_checkpoint(path, RunState(), {}, {}, {})
    state.history = [{"loss": 1.0}, {"loss": "much"}]
    with pytest.raises(CheckpointError, match="history column 'loss': values of type float, str"):
        write_checkpoint(path, state, {}, {}, {})
    state.history = []
    state.optimiser = {"m": torch.zeros(2, dtype=torch.bfloat16)}
    with pytest.raises(CheckpointError, match="bfloat16 cannot be stored"):
        write_checkpoint(path, state, {}, {}, {})
    with pytest.raises(CheckpointError, match="No such file or directory"):
        save(tmp_path / "no" / "c.h5", restore_state(read_checkpoint(saved)))
    assert os.listdir(tmp_path) == []


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


def test_interrupted_runs_are_not_finished(tmp_path: Path) -> None:
    class Stopper(Recorder):
        def stop_requested(self) -> bool:
            return True

    chosen: RunOptions = options(MODELS["kan"])
    state = MultilevelRun(Plain(), chosen, Stopper()).run()
    back = read_checkpoint(save(tmp_path / "c.h5", state))
    assert not back.finished
    assert back.levels[-1].stop_reason == StopReason.INTERRUPTED.value

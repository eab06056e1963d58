"""Checkpoints: damaged, foreign and forged files are refused; writing is all or nothing."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from tiny_runs import MODELS, Plain, options, save, states

from kanpinn.checkpoint import Checkpoint, read_checkpoint, restore_state, write_checkpoint
from kanpinn.checkpoint.envelope import USER_BLOCK, write_sealed
from kanpinn.errors import CheckpointError
from kanpinn.training import RunState


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a small run; not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    return save(folder / "checkpoint.h5", states(Plain(), options(MODELS["kan"]))[-1])


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


def edit(name: str, **entries: Any) -> Change:
    """Set entries of a JSON object; ``None`` takes one away."""

    def change(file: h5py.File) -> None:
        value = json.loads(file[name][()]) | entries
        del file[name]
        file[name] = text({key: entry for key, entry in value.items() if entry is not None})

    return change


INPUTS = "parts/main/inputs"
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
    "unknown part": (edit("system", parts=["other"]), "/parts/other: is missing"),
    "no spatial": (edit("system", spatial=None), "/system: spatial"),
    "odd spatial": (edit("system", spatial=[0, 2]), "space axes that are no coordinates"),
    "other coordinates": (edit("system", coordinates=["x", "z"]), "does not have the coordinates"),
    "unknown input map": (edit(INPUTS, maps=[{"map": "exec", "of": "x"}]), "inputs: maps.0"),
    "map of no coordinate": (edit(INPUTS, maps=[{"map": "coordinate", "of": "q"}]), "'q' is unkn"),
    "fewer maps": (edit(INPUTS, maps=[{"map": "coordinate", "of": "x"}]), "1 and 1 are needed"),
    "bounds": (edit(INPUTS, bounds=[[1, 1], [0, 3]]), "not finite and increasing"),
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
        patch.setattr(f"kanpinn.checkpoint.envelope.os.{step}", fail)
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

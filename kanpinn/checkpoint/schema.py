"""The layout of a checkpoint: records to HDF5 and back. ``docs/checkpoint.md`` describes it."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar, cast

import h5py
import numpy as np
from pydantic import TypeAdapter, ValidationError

from kanpinn import __version__
from kanpinn.checkpoint.content import (
    ITERATES,
    NETWORKS,
    WEIGHTS,
    Arrays,
    KnotStructure,
    LayerContent,
    LevelContent,
    PartContent,
    RunContent,
    SystemContent,
    TrainingContent,
    TrialsContent,
)
from kanpinn.checkpoint.envelope import USER_BLOCK
from kanpinn.checkpoint.history import put_history, read_history
from kanpinn.checkpoint.nodes import (
    FLOATS,
    Node,
    link_name,
    put_array,
    put_attributes,
    put_json,
)
from kanpinn.errors import CheckpointError, ForeignFileError, KanpinnError
from kanpinn.expressions import Expression
from kanpinn.jets.functions import FUNCTIONS
from kanpinn.models import Inputs, OutputMap
from kanpinn.models.networks import ACTIVATION_SMOOTHNESS
from kanpinn.splines import MAX_ORDER
from kanpinn.training import LevelRecord

PROGRAM = "kanpinn"
SCHEMA_VERSION = 1
NONE = "none"

Record = TypeVar("Record")


# --- writing -----------------------------------------------------------------------------------
def to_image(content: RunContent) -> bytes:
    """The HDF5 file of a run, without its user block; the same content gives the same bytes.

    Raises:
        CheckpointError: if something cannot be stored.
    """
    options: dict[str, Any] = {"driver": "core", "backing_store": False}
    # Any HDF5 library since 1.10 (2016) reads the file; its name is never used.
    libver = ("v108", "v110")
    with h5py.File(
        "checkpoint.h5", "w", userblock_size=USER_BLOCK, libver=libver, **options
    ) as file:
        _put_run(file, content)
        file.flush()
        return bytes(file.id.get_file_image())


def _put_run(file: h5py.File, content: RunContent) -> None:
    put_attributes(file, program=PROGRAM, schema_version=SCHEMA_VERSION)
    put_json(file, "config", content.config)
    put_json(file, "problem", content.problem)
    put_json(file, "provenance", content.provenance)
    put_json(file, "system", asdict(content.system))
    _put_state(file, content)
    if content.trials is not None:
        _put_trials(file.create_group("trials"), content.trials)


def _put_state(file: h5py.Group, content: RunContent) -> None:
    put_history(file, content.history)
    parts = file.create_group("parts")
    for name, part in content.parts.items():
        _put_part(parts.create_group(link_name(name)), part)
    records = file.create_group("records")
    put_attributes(records, count=len(content.levels))
    for number, level in enumerate(content.levels):
        _put_level(records.create_group(str(number)), level)
    _put_training(file.create_group("state"), content.training)


def _put_trials(group: h5py.Group, trials: TrialsContent) -> None:
    put_attributes(group, count=trials.count, decides=trials.decides, wall_s=float(trials.wall_s))
    put_attributes(group, evaluations=trials.evaluations, operations=trials.operations)
    put_array(group, "scores", np.array(trials.scores, dtype="<f8"))
    if trials.best is not None:
        _put_state(group.create_group("best"), trials.best)


def _put_part(group: h5py.Group, part: PartContent) -> None:
    put_attributes(group, network=part.network, window=part.window)
    if part.activation is not None:
        put_attributes(group, activation=part.activation, frequency=part.frequency)
    put_json(group, "fields", list(part.fields))
    put_json(group, "inputs", asdict(part.inputs))
    put_json(group, "outputs", [asdict(entry) for entry in part.outputs])
    levels = group.create_group("levels")
    for number, layers in part.levels.items():
        level = levels.create_group(f"{number}/layers")
        put_attributes(level, count=len(layers))
        for index, layer in enumerate(layers):
            _put_layer(level.create_group(str(index)), part.network, layer)


def _put_layer(group: h5py.Group, network: str, layer: LayerContent) -> None:
    put_attributes(group, basis=NETWORKS[network])
    put_attributes(group, in_width=layer.in_width, out_width=layer.out_width)
    if layer.knots is not None:
        knots = layer.knots
        put_attributes(group, order=knots.order, uniform=knots.uniform, free=knots.free)
        put_attributes(group, floor=knots.floor)
        put_attributes(group, squash=knots.squash or NONE, base=knots.base or NONE)
        group.create_dataset("intervals", data=list(knots.intervals), dtype="<i8")
    for iterate in ITERATES:
        _put_arrays(group.create_group(iterate), getattr(layer, iterate))


def _put_level(group: h5py.Group, level: LevelContent) -> None:
    put_attributes(group, best_step=level.best_step)
    put_attributes(group, best_score=float(level.best_score), **asdict(level.record))
    for iterate in ITERATES:
        _put_arrays(group.create_group(f"scalars/{iterate}"), getattr(level, iterate))


def _put_training(group: h5py.Group, training: TrainingContent) -> None:
    put_attributes(group, phase=training.phase, step=training.step)
    put_attributes(group, total_steps=training.total_steps, elapsed=float(training.elapsed))
    put_attributes(group, restarts=training.restarts, finished=training.finished)
    _put_arrays(group.create_group("optimiser"), training.optimiser)
    for name in WEIGHTS:
        _put_arrays(group.create_group(name), getattr(training, name))


def _put_arrays(group: h5py.Group, arrays: Arrays) -> None:
    for name, values in arrays.items():
        put_array(group, name, values)


# --- reading -----------------------------------------------------------------------------------
def from_file(data: bytes) -> RunContent:
    """The run in the bytes of a whole file, its checksum already verified.

    Raises:
        CheckpointError: saying what is wrong and where in the file, without the file's name.
    """
    try:
        with h5py.File(h5py.h5f.open_file_image(data)) as file:
            return _read_run(Node.root(file, len(data)))
    except CheckpointError:
        raise
    except KanpinnError as error:
        raise CheckpointError(f"holds a description that is not valid: {error}") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"is damaged inside: {reason}") from error
    except MemoryError as error:
        raise CheckpointError("does not fit into memory") from error


def _read_run(root: Node) -> RunContent:
    if root.attribute("program") != PROGRAM:
        raise ForeignFileError("is an HDF5 file of another program")
    version = root.integer("schema_version", least=1)
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"has schema version {version}, kanpinn {__version__} reads up to {SCHEMA_VERSION}: "
            "it needs a newer kanpinn"
        )
    system = _record(SystemContent, root.mapping("system"), "/system")
    described = {name: root.mapping(name) for name in ("config", "problem", "provenance")}
    content = _read_state(root, system, described)
    if "trials" not in root:  # nor was it in files of earlier versions
        return content
    return replace(content, trials=_read_trials(root.group("trials"), system, described))


def _read_state(node: Node, system: SystemContent, described: dict[str, Any]) -> RunContent:
    records = node.group("records")
    content = RunContent(
        system=system,
        parts={name: _read_part(node.group("parts").group(name)) for name in system.parts},
        levels=tuple(
            _read_level(records.group(str(number)), system)
            for number in range(records.integer("count", least=1))
        ),
        training=_read_training(node.group("state")),
        history=read_history(node),
        **described,
    )
    _check_parts(content, node.path)
    return content


def _read_trials(node: Node, system: SystemContent, described: dict[str, Any]) -> TrialsContent:
    scores, count = node.array("scores", ("float64",)), node.integer("count", least=1)
    if scores.ndim != 1 or len(scores) >= count:
        raise CheckpointError(f"{node.path}/scores: {scores.shape} scores of {count} networks")
    best = _read_state(node.group("best"), system, described) if len(scores) else None
    return TrialsContent(
        count=count,
        scores=tuple(scores.tolist()),
        wall_s=node.number("wall_s"),
        evaluations=node.integer("evaluations"),
        operations=node.integer("operations"),
        best=best,
        decides=node.flag("decides"),
    )


def _read_part(node: Node) -> PartContent:
    network = node.text("network", tuple(NETWORKS))
    fields = _record(tuple[str, ...], node.json("fields"), f"{node.path}/fields")
    outputs = _record(tuple[OutputMap, ...], node.json("outputs"), f"{node.path}/outputs")
    if not fields or len(outputs) != len(fields):
        raise CheckpointError(f"{node.path}: {len(fields)} fields with {len(outputs)} output maps")
    inputs = _record(Inputs, node.mapping("inputs"), f"{node.path}/inputs")
    for entry in outputs:
        for formula in (entry.lift, entry.factor):
            Expression.parse(formula, inputs.names)
    mlp = network == "mlp"
    levels = node.group("levels")
    return PartContent(
        network=network,
        fields=fields,
        inputs=inputs,
        outputs=outputs,
        levels={
            _number(name, levels): _read_layers(levels.group(name), network) for name in levels
        },
        activation=node.text("activation", tuple(ACTIVATION_SMOOTHNESS)) if mlp else None,
        frequency=node.number("frequency") if mlp else 1.0,
        window=node.integer("window"),
    )


def _number(name: str, node: Node) -> int:
    if not name.isdecimal() or len(name) > 9:
        raise CheckpointError(f"{node.path}/{name}: is not the number of a level")
    return int(name)


def _read_layers(node: Node, network: str) -> tuple[LayerContent, ...]:
    layers = node.group("layers")
    count = layers.integer("count", least=1)
    read = tuple(_read_layer(layers.group(str(number)), network) for number in range(count))
    for number, (layer, following) in enumerate(pairwise(read)):
        if layer.out_width != following.in_width:
            raise CheckpointError(
                f"{layers.path}/{number}: has {layer.out_width} outputs, the next layer "
                f"{following.in_width} inputs"
            )
    return read


def _read_layer(node: Node, network: str) -> LayerContent:
    node.text("basis", (NETWORKS[network],))
    in_width, out_width = node.integer("in_width", 1), node.integer("out_width", 1)
    knots = None if network == "mlp" else _read_knots(node, in_width)
    layer = LayerContent(in_width, out_width, knots, {}, {})
    iterates = {}
    for name in ITERATES:
        group = node.group(name)
        iterates[name] = {k: group.array(k, FLOATS, shape) for k, shape in layer.shapes().items()}
    return LayerContent(in_width, out_width, knots, iterates["last"], iterates["best"])


def _read_knots(node: Node, in_width: int) -> KnotStructure:
    intervals = tuple(node.array("intervals", ("int64",), (in_width,)).tolist())
    order = node.integer("order", least=2)
    if order > MAX_ORDER or min(intervals) < 1:
        raise CheckpointError(f"{node.path}: order {order} on {min(intervals)} intervals")
    squash, base = (node.text(name, (NONE, *FUNCTIONS)) for name in ("squash", "base"))
    return KnotStructure(
        order=order,
        intervals=intervals,
        uniform=node.flag("uniform"),
        free=node.flag("free"),
        floor=node.number("floor"),
        squash=None if squash == NONE else squash,
        base=None if base == NONE else base,
    )


def _read_level(node: Node, system: SystemContent) -> LevelContent:
    known = LevelRecord.__dataclass_fields__
    values = {name: value for name in known if (value := node.attribute(name)) is not None}
    scalars = {}
    for iterate in ITERATES:
        group = node.group("scalars").group(iterate)
        scalars[iterate] = {name: group.array(name, FLOATS, ()) for name in system.scalars}
    return LevelContent(
        record=_record(LevelRecord, values, node.path),
        best_score=node.number("best_score"),
        best_step=node.integer("best_step"),
        last=scalars["last"],
        best=scalars["best"],
    )


def _read_training(node: Node) -> TrainingContent:
    return TrainingContent(
        phase=node.integer("phase"),
        step=node.integer("step"),
        total_steps=node.integer("total_steps"),
        elapsed=node.number("elapsed"),
        restarts=node.integer("restarts"),
        finished=node.flag("finished"),
        optimiser=_read_arrays(node.group("optimiser")),
        # Files of earlier versions have no group for what these did not know.
        **{name: _read_arrays(node.group(name)) for name in WEIGHTS if name in node},
    )


def _read_arrays(node: Node) -> dict[str, Any]:
    return {name: node.array(name) for name in node}


def _check_parts(content: RunContent, place: str) -> None:
    """Parts fit the system, have the levels of their window, and a level's numbers one type."""
    names = content.system.coordinates
    if not content.parts or not set(content.system.spatial) <= set(range(len(names))):
        raise CheckpointError("/system: has no parts, or space axes that are no coordinates")
    for name, part in content.parts.items():
        path = f"{place}/parts/{name}"
        if part.inputs.names != names or len(part.inputs.bounds) != len(names):
            raise CheckpointError(f"{path}/inputs: does not have the coordinates {list(names)}")
        if not all(-math.inf < low < high < math.inf for low, high in part.inputs.bounds):
            raise CheckpointError(f"{path}/inputs: has bounds that are not finite and increasing")
        wanted = {e.record.level for e in content.levels if e.record.window == part.window}
        if set(part.levels) != wanted:
            raise CheckpointError(
                f"{path}/levels: has {sorted(part.levels)}, the run {sorted(wanted)}"
            )
        ends = (part.inputs.n_channels, len(part.fields))
        for number, layers in part.levels.items():
            found = (layers[0].in_width, layers[-1].out_width)
            if found != ends:
                raise CheckpointError(
                    f"{path}/levels/{number}: has {found[0]} inputs and {found[1]} outputs, "
                    f"{ends[0]} and {ends[1]} are needed"
                )
    for entry in content.levels:
        types = sorted({array.dtype.name for array in content.parameters(entry)})
        if len(types) != 1:
            several = f"parameters of several types: {', '.join(types)}"
            raise CheckpointError(f"{place}/parts: {entry.record.label} has {several}")


def _record(kind: type[Record], value: Any, path: str) -> Record:
    """A record of that type, each of its fields checked."""
    adapter: TypeAdapter[Record] = _adapter(cast(Any, kind))
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(place) for place in first["loc"])
        raise CheckpointError(f"{path}: {where}: {first['msg']}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)

"""Networks and training state to plain records and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kanpinn.checkpoint.content import (
    WEIGHTS,
    Arrays,
    Iterate,
    KnotStructure,
    LayerContent,
    LevelContent,
    PartContent,
    RunContent,
    SystemContent,
    TrainingContent,
    TrialsContent,
    network_name,
    part_key,
)
from kanpinn.errors import CheckpointError, KanpinnError
from kanpinn.models import (
    KAN,
    MLP,
    AnyInputMap,
    DenseLayer,
    FieldNetwork,
    KnotLayer,
    KnotLayerSettings,
    MultichannelMLP,
    Network,
    PowerReluLayer,
    SplineLayer,
)
from kanpinn.residuals import Coordinates, System
from kanpinn.splines import Knots
from kanpinn.training import LevelState, RunState, Trials, Weights
from kanpinn.training.state import snapshot

_KINDS: dict[str, type[Network]] = {"kan": KAN, "multichannel": MultichannelMLP, "mlp": MLP}
_KNOT_NETWORKS: dict[str, tuple[Any, type[KnotLayer]]] = {
    "kan": (KAN, SplineLayer),
    "multichannel": (MultichannelMLP, PowerReluLayer),
}


# --- networks to records -----------------------------------------------------------------------
def describe_run(
    state: RunState,
    config: Mapping[str, Any],
    problem: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> RunContent:
    """Everything a run consists of, copied.

    Raises:
        CheckpointError: if no level has begun, or a network is of a kind that cannot be stored.
    """
    if not state.levels:
        raise CheckpointError("there is nothing to store: no level has begun")
    pairs = [(entry.system, entry.best_system()) for entry in state.levels]
    system = state.current.system
    windows = sorted({entry.record.window for entry in state.levels})
    parts = [(name, window) for window in windows for name in system.parts]
    return RunContent(
        system=SystemContent(
            coordinates=tuple(system.coordinates.names),
            spatial=tuple(system.coordinates.spatial),
            parts=tuple(part_key(*part) for part in parts),
            scalars=tuple(system.scalars),
        ),
        parts={
            part_key(name, window): _describe_part(
                {
                    entry.record.level: (last.parts[name], best.parts[name])
                    for entry, (last, best) in zip(state.levels, pairs, strict=True)
                    if entry.record.window == window
                },
                window,
            )
            for name, window in parts
        },
        levels=tuple(
            LevelContent(
                record=entry.record,
                best_score=entry.best_score,
                best_step=entry.best_step,
                last=_scalars(last),
                best=_scalars(best),
            )
            for entry, (last, best) in zip(state.levels, pairs, strict=True)
        ),
        training=_describe_training(state),
        history=state.history,
        config=dict(config),
        problem=dict(problem),
        provenance=dict(provenance),
        trials=_describe_trials(state, config, problem, provenance) if state.trials else None,
    )


def _describe_trials(state: RunState, *described: Mapping[str, Any]) -> TrialsContent:
    trials = state.trials
    assert trials is not None
    return TrialsContent(
        count=trials.count,
        scores=tuple(trials.scores),
        wall_s=trials.wall_s,
        evaluations=trials.evaluations,
        operations=trials.operations,
        best=describe_run(trials.best, *described) if trials.best else None,
        decides=state.outcome is not state,
    )


def _describe_training(state: RunState) -> TrainingContent:
    return TrainingContent(
        phase=state.phase,
        step=state.step,
        total_steps=state.total_steps,
        elapsed=state.elapsed,
        restarts=state.restarts,
        finished=state.finished,
        optimiser={name: _numpy(value) for name, value in state.optimiser.items()},
        **{
            kind: {name: _numpy(value) for name, value in getattr(state.weights, kind).items()}
            for kind in WEIGHTS
        },
    )


def _describe_part(
    levels: Mapping[int, tuple[FieldNetwork, FieldNetwork]], window: int
) -> PartContent:
    """A part from its last and best networks on every level."""
    part = next(iter(levels.values()))[0]
    kind = next((k for k, cls in _KINDS.items() if type(part.network) is cls), None)
    if kind is None:
        raise CheckpointError(f"a network of type {type(part.network).__name__} cannot be stored")
    for entry in part.inputs.maps:
        if not isinstance(entry, get_args(AnyInputMap)):
            raise CheckpointError(f"an input map {type(entry).__name__} cannot be stored")
    mlp = part.network if isinstance(part.network, MLP) else None
    return PartContent(
        network=kind,
        fields=tuple(part.fields),
        inputs=part.inputs,
        outputs=tuple(part.outputs),
        levels={
            number: tuple(
                _describe_layer(*pair)
                for pair in zip(last.network.layers, best.network.layers, strict=True)
            )
            for number, (last, best) in levels.items()
        },
        activation=mlp.activation if mlp else None,
        frequency=mlp.frequency if mlp else 1.0,
        window=window,
    )


def _describe_layer(last: Any, best: Any) -> LayerContent:
    knots = None
    if isinstance(last, KnotLayer):
        settings = last.settings
        knots = KnotStructure(
            order=last.order,
            intervals=tuple(last.n_intervals),
            uniform=last.knots.uniform and not settings.free,
            free=settings.free,
            floor=settings.floor,
            squash=settings.squash,
            base=settings.base,
        )
    arrays = [_layer_arrays(layer, knots) for layer in (last, best)]
    return LayerContent(last.in_width, last.out_width, knots, *arrays)


def _layer_arrays(layer: Any, knots: KnotStructure | None) -> Arrays:
    if knots is None:
        return {"weights": _numpy(layer.coefficients), "bias": _numpy(layer.bias)}
    shapes = knots.shapes(layer.out_width)
    breakpoints = torch.cat(layer.knots.breakpoints)
    arrays = {
        "breakpoints": _numpy(breakpoints).reshape(shapes["breakpoints"]),
        "coefficients": _numpy(layer.coefficients).reshape(shapes["coefficients"]),
    }
    if knots.free:
        arrays["knot_logits"] = _numpy(layer.knots_free)
        rows = zip(layer.knot_offsets, layer.n_intervals, strict=True)
        offsets = torch.cat([row[: n + 1] for row, n in rows])
        arrays["knot_offsets"] = _numpy(offsets).reshape(shapes["knot_offsets"])
    if knots.base:
        arrays["base_weights"] = _numpy(layer.base_weights)
    return arrays


def _scalars(system: System) -> Arrays:
    return {name: _numpy(value) for name, value in system.scalars.items()}


def _numpy(tensor: Tensor) -> NDArray[Any]:
    """A copy as an array; training goes on changing the tensor.

    Raises:
        CheckpointError: for a type that numpy does not have.
    """
    try:
        return np.array(tensor.detach().cpu().numpy(), order="C")
    except TypeError as error:
        raise CheckpointError(f"tensors of type {tensor.dtype} cannot be stored") from error


# --- records to networks -----------------------------------------------------------------------
def rebuild_run(
    content: RunContent, device: torch.device, dtype: torch.dtype | None = None
) -> RunState:
    """The run's state on a device, every level in its own floating-point type or all in another.

    In another type the optimiser starts anew: its memory is one of round-off too.
    """
    current = _tensor(next(content.parameters(content.levels[-1]))).dtype
    training = content.training
    levels = [_rebuild_level(content, level, device, dtype) for level in content.levels]
    optimiser = training.optimiser if dtype in (None, current) else {}
    state = RunState(
        levels=levels,
        phase=training.phase,
        step=training.step,
        total_steps=training.total_steps,
        optimiser={name: _tensor(value, device) for name, value in optimiser.items()},
        weights=_rebuild_weights(training, device, dtype),
        history=[dict(row) for row in content.history],
        elapsed=training.elapsed,
        restarts=training.restarts,
        finished=training.finished,
        trials=_rebuild_trials(content.trials, device, dtype) if content.trials else None,
    )
    state.join_windows()
    return state


def _rebuild_trials(
    content: TrialsContent, device: torch.device, dtype: torch.dtype | None
) -> Trials:
    return Trials(
        count=content.count,
        scores=list(content.scores),
        best=rebuild_run(content.best, device, dtype) if content.best else None,
        wall_s=content.wall_s,
        evaluations=content.evaluations,
        operations=content.operations,
    )


def _rebuild_weights(
    training: TrainingContent, device: torch.device, dtype: torch.dtype | None
) -> Weights:
    kinds: dict[str, dict[str, Tensor]] = {}
    for kind in WEIGHTS:
        stored = {name: _tensor(v, device) for name, v in getattr(training, kind).items()}
        kinds[kind] = {
            k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in stored.items()
        }
    return Weights(**kinds)


def _rebuild_level(
    content: RunContent, level: LevelContent, device: torch.device, dtype: torch.dtype | None
) -> LevelState:
    last, best = (
        rebuild_system(content, level, iterate).to(device=device, dtype=dtype)
        for iterate in ("last", "best")
    )
    record = type(level.record)(**asdict(level.record))
    return LevelState(record, last, snapshot(best), level.best_score, level.best_step)


def rebuild_system(content: RunContent, level: LevelContent, iterate: Iterate) -> System:
    """The networks and scalars of one iterate, on the CPU in their own floating-point type."""
    parts = {}
    for name, part in content.parts.items():
        if part.window != level.record.window:
            continue
        number = level.record.level
        try:
            network = _rebuild_network(part, part.levels[number], iterate)
        except KanpinnError as error:
            raise CheckpointError(f"/parts/{name}/levels/{number}/layers: {error}") from error
        own = network_name(name, part.window)
        parts[own] = FieldNetwork(part.fields, part.inputs, network, part.outputs)
    coordinates = Coordinates(content.system.coordinates, content.system.spatial)
    scalars = level.last if iterate == "last" else level.best
    return System(parts, coordinates, {name: float(value) for name, value in scalars.items()})


def _rebuild_network(
    part: PartContent, layers: tuple[LayerContent, ...], iterate: Iterate
) -> Network:
    arrays = [layer.last if iterate == "last" else layer.best for layer in layers]
    if part.network == "mlp":
        assert part.activation is not None
        widths = (layers[0].in_width, *(layer.out_width for layer in layers))
        mlp = MLP(widths, part.activation, part.frequency).to(_tensor(arrays[0]["weights"]).dtype)
        for dense, values in zip(mlp.layers, arrays, strict=True):
            assert isinstance(dense, DenseLayer)
            with torch.no_grad():
                dense.coefficients.copy_(_tensor(values["weights"]))
                dense.bias.copy_(_tensor(values["bias"]))
        return mlp
    network_type, layer_type = _KNOT_NETWORKS[part.network]
    built = [
        _rebuild_layer(layer_type, layer, values)
        for layer, values in zip(layers, arrays, strict=True)
    ]
    network: Network = network_type(built)
    return network


def _rebuild_layer(layer_type: type[KnotLayer], content: LayerContent, arrays: Arrays) -> KnotLayer:
    structure = content.knots
    assert structure is not None
    rows = structure.split_knots(arrays["breakpoints"])
    if structure.free:
        # Only the ends count: the logits below say where the knots are. Equal spacing is far
        # above the floor, where stored knots may lie just below it by round-off.
        rows = [np.linspace(t[0], t[-1], len(t), dtype=t.dtype) for t in rows]
    tensors = tuple(_tensor(t) for t in rows)
    knots = Knots(structure.order, tensors, structure.uniform)
    if structure.free:
        knots = Knots.from_breakpoints(structure.order, tensors)
    settings = KnotLayerSettings(structure.free, structure.floor, structure.squash, structure.base)
    layer = layer_type(knots, content.out_width, settings)
    with torch.no_grad():
        layer.coefficients.copy_(_tensor(arrays["coefficients"].reshape(content.out_width, -1)))
        if structure.base:
            layer.base_weights.copy_(_tensor(arrays["base_weights"]))
        if structure.free:
            layer.knots_free.copy_(_tensor(arrays["knot_logits"]))
            offsets = structure.split_knots(arrays["knot_offsets"])
            for row, own in zip(layer.knot_offsets, offsets, strict=True):
                row[: len(own)] = _tensor(own)
    return layer


def _tensor(array: NDArray[Any], device: torch.device | None = None) -> Tensor:
    """A tensor in memory of torch's own: sums over it depend on how it is aligned."""
    return (
        torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
        .clone()
        .to(device or "cpu")
    )

"""What a refinement changes: exact prolongation beside two least-squares transfers.

2505.18131 compares refinement in place with "grid extension", which fits the splines on the new
knots to what they were at sample points. Between nested knots prolongation is exact.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from kanpinn.analysis.finding import Case, Finding, labelled
from kanpinn.analysis.stages import Stage, run_stages
from kanpinn.jets import JetSpec
from kanpinn.models import FieldNetwork, KnotLayer, KnotNetwork
from kanpinn.models.layer import apply_elementwise
from kanpinn.problem import Problem
from kanpinn.residuals import System
from kanpinn.sampling import sample, stream
from kanpinn.solution.origin import problem_of
from kanpinn.splines import Knots
from kanpinn.training import predict
from kanpinn.training.hierarchy import in_type, knot_networks, on_knots, with_parts

TIMES = 3  # every transfer is done, of which the median counts
PROLONGATION, PROJECTION, SAMPLED = "prolongation", "least squares", "least squares at samples"
FineKnots = Mapping[str, Sequence[Knots]]
Transfer = Callable[[System, FineKnots, Tensor], System]


@dataclass(frozen=True, kw_only=True)
class ProlongationChange:
    """Largest change of the fields at every refinement, by exact and by fitted transfers."""

    columns: ClassVar[frozenset[str]] = frozenset(  # no axis can be called like one
        {"window", "level", "intervals", "transfer", "change"}
        | {"relative", "seconds", "recorded", "loss_before", "loss_after"}
    )

    name: Annotated[Literal["prolongation_change"], "what refinements change"] = (
        "prolongation_change"
    )
    points: Annotated[int, Ge(1), Le(1_000_000), "random points to compare at"] = 2000
    samples: Annotated[int, Ge(1), Le(100_000), "points of the fit at samples"] = 1000
    seed: Annotated[int, Ge(0), "of both"] = 0


def prolongation_change(
    options: ProlongationChange,
    cases: Sequence[Case],
    problem: Problem | None = None,
    trust: bool = False,
) -> Finding:
    """``max |u_fine - u_coarse|`` at random points of the domain, at every refinement of every run.

    Rows are refinements and transfers: the exact prolongation, the projection of every univariate
    function (least squares in L2 on the knots' interval, which for nested knots finds the same
    function by another way), and least squares at the layers' inputs at sample points, as grid
    extension does it. ``relative`` is the change over ``max |u_coarse|``, ``seconds`` the median
    time of a transfer of all layers. ``recorded`` is what the run itself has seen at its held-out
    points, ``loss_before`` and ``loss_after`` its loss on the new level's points.
    """
    rows: list[dict[str, Any]] = []
    for labels, solution in cases:
        own = problem_of(solution, problem, trust)
        transfer = (solution.config.get("training") or {}).get("transfer", "prolongation")
        used = PROJECTION if transfer == "least_squares" else PROLONGATION
        for stage in run_stages(solution, own):
            if stage.before is not None:
                rows += [labelled(labels, row) for row in _changes(stage, options, used)]
    text = (
        f"Largest change of the fields at {options.points} random points, at every refinement: by "
        "exact prolongation, by projection of every univariate function, and by least squares at "
        f"what {options.samples} sample points send into every layer (grid extension). Median time "
        f"of {TIMES} transfers."
    )
    return Finding("prolongation_change", "What a refinement changes", text, rows)


def _changes(stage: Stage, options: ProlongationChange, used: str) -> list[dict[str, Any]]:
    record, like = stage.record, next(iter(stage.system.parameters()))
    assert stage.before is not None
    before = in_type(stage.before, like.dtype)
    x, samples = (
        _random(stage.problem, count, stream(options.seed, purpose), like)
        for purpose, count in (("change", options.points), ("samples", options.samples))
    )
    knots = {name: net.knots for name, net in knot_networks(stage.system).items()}
    coarse = predict(before, x)
    rows = []
    for name, transfer in TRANSFERS.items():
        seconds, fine = _timed(partial(transfer, before, knots, samples))
        change = float((predict(fine, x) - coarse).abs().max())
        own = name == used
        rows.append(
            {
                **({"window": record.window} if record.window else {}),
                "level": record.level,
                "intervals": "/".join(map(str, record.n_intervals)),
                "transfer": name,
                "change": change,
                "relative": change / max(float(coarse.abs().max()), 1e-300),
                "seconds": seconds,
                "recorded": record.max_change if own else None,
                "loss_before": record.loss_before_prolongation if own else None,
                "loss_after": record.loss_after_prolongation if own else None,
            }
        )
    return rows


def _random(problem: Problem, count: int, seed: np.random.SeedSequence, like: Tensor) -> Tensor:
    (points,) = sample(problem.domain.interior(), count, "random", seed, like.dtype, like.device)
    return points.x


def _timed(transfer: Callable[[], System]) -> tuple[float, System]:
    seconds = []
    for _ in range(TIMES):
        started = time.perf_counter()
        system = transfer()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), system


def fitted_at_samples(system: System, knots: FineKnots, x: Tensor) -> System:
    """Grid extension: every layer's splines fitted at its inputs at points ``(n, d)``.

    Inputs are those of the given network. Where no sample falls on an interval of the new knots the
    fit has no unique solution: it is the one of least norm.
    """
    parts = {
        name: system.parts[name].with_network(_fitted(system.parts[name], net, knots[name], x))
        for name, net in knot_networks(system).items()
    }
    return with_parts(system, parts)


def _fitted(
    part: FieldNetwork, network: KnotNetwork, knots: Sequence[Knots], x: Tensor
) -> KnotNetwork:
    spec = JetSpec.value_only(x.shape[1])
    layers = []
    with torch.no_grad():
        z = part.prepare(x, spec).z
        for layer, fine in zip(network.knot_layers, knots, strict=True):
            squash = layer.settings.squash
            inputs = apply_elementwise(squash, z, spec) if squash else z
            layers.append(_fitted_layer(layer, fine, inputs[0]))
            z = layer(z, spec)
    return type(network)(layers)


def _fitted_layer(layer: KnotLayer, fine: Knots, inputs: Tensor) -> KnotLayer:
    """The layer on fine knots, its splines fitted to their values at inputs ``(n, channels)``."""
    result = layer.refitted(fine)
    old, new = layer.basis.dense(inputs, 0)[0], result.basis.dense(inputs, 0)[0]
    pieces = []
    for before, after, c in zip(
        old.split(list(layer.knots.n_functions), -1),
        new.split(list(fine.n_functions), -1),
        layer.coefficients.split(list(layer.knots.n_functions), -1),
        strict=True,
    ):
        fit = torch.linalg.lstsq(after.cpu(), (before @ c.mT).cpu(), driver="gelsd")
        pieces.append(fit.solution.mT.to(c))
    result.coefficients.copy_(torch.cat(pieces, -1))
    return result


TRANSFERS: dict[str, Transfer] = {
    PROLONGATION: lambda system, knots, x: on_knots(system, knots, "prolongation"),
    PROJECTION: lambda system, knots, x: on_knots(system, knots, "least_squares"),
    SAMPLED: fitted_at_samples,
}

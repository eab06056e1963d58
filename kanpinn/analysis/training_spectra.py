"""Spectra of the Gauss-Newton matrix and of the neural tangent kernel along a run, in both bases.

``J^T J`` is the Hessian of a least-squares loss where the residuals are small, ``J J^T`` the kernel
that gradient flow follows; their eigenvalues but the zeros are the same, the squares of the
singular values of ``J``. A network of B-splines is the same function in the power-ReLU basis, with
coefficients ``w = A^T u`` and the Jacobian ``J_w = J_u A^-T``, layer by layer (arXiv 2505.18131).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Le, MinLen
from numpy.typing import NDArray
from torch import Tensor

from kanpinn.analysis.finding import Case, Finding, labelled, named
from kanpinn.analysis.stages import Moment, Stage, run_stages
from kanpinn.errors import ConditioningError
from kanpinn.geometry import Points
from kanpinn.models import KnotLayer
from kanpinn.problem import Problem
from kanpinn.residuals import ResidualBlock, Site, System
from kanpinn.sampling import sample, stream
from kanpinn.solution.origin import problem_of
from kanpinn.splines import inverse_change_of_basis
from kanpinn.training.block_data import BlockData
from kanpinn.training.hierarchy import knot_networks
from kanpinn.training.knot_insertion import as_splines
from kanpinn.training.objective import SystemObjective
from kanpinn.training.parameters import ParameterPack

Floats = NDArray[np.float64]
Of = Literal["residual", "values"]

SIDE_SHARE = 5  # of the points, one in so many for blocks that are no equation
SHARE = 1e-6  # of the largest eigenvalue: those above it are counted
SHOWN = 60  # eigenvalues of a curve, spread logarithmically
SPLINE, POWER_RELU, WEIGHTS = "spline", "power-relu", "weights"


@dataclass(frozen=True, kw_only=True)
class TrainingSpectra:
    """Gauss-Newton and tangent-kernel spectra of a run, level by level, in both bases."""

    columns: ClassVar[frozenset[str]] = frozenset(  # no axis can be called like one
        {"window", "level", "moment", "of", "basis"}
        | {"rows", "parameters", "rank", "condition", "largest", "smallest"}
        | {"trace", "effective_rank", "share", "index", "value"}
    )

    name: Annotated[Literal["training_spectra"], "spectra of Jacobians along a run"] = (
        "training_spectra"
    )
    of: Annotated[
        Annotated[tuple[Of, ...], MinLen(1)],
        "what is differentiated: the weighted residuals of the loss, the fields' values",
    ] = ("residual", "values")
    moments: Annotated[
        Annotated[tuple[Moment, ...], MinLen(1)], "when: at the start, at the end of every level"
    ] = ("start", "end")
    points: Annotated[
        int, Ge(10), Le(20_000), "points of the equation; boundaries have a fifth of them each"
    ] = 500
    seed: Annotated[int, Ge(0), "of the points"] = 0


def training_spectra(
    options: TrainingSpectra,
    cases: Sequence[Case],
    problem: Problem | None = None,
    trust: bool = False,
) -> Finding:
    """Spectra on common points: they depend on the seed and the problem, not on the run.

    Derivatives are those with respect to the coefficients of all layers, in float64; knots, base
    branches and scalars stay out (of plain MLPs all weights count, in their own basis alone).
    Blocks have the weights of the loss, but neither attention nor quadrature weights, and general
    losses stay out. Rows have, of the eigenvalues ``k`` of ``J J^T``, ``N`` of them:

    - ``rank``: of ``J`` in B-splines, to round-off. The constants of a layer's channels are
      redundant, so that it is below the number of coefficients;
    - ``largest``, ``smallest`` of that many, and their ratio ``condition``: a lower bound above
      about 1e28, where round-off of the largest hides the smallest;
    - ``trace``; ``effective_rank``, ``exp(-sum p log p)`` with ``p = k / trace`` (Roy and Vetterli
      2007); ``share``, the number of eigenvalues above ``1e-6`` of the largest, over ``N``.
    """
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    left_out: list[str] = []
    for labels, solution in cases:
        own = problem_of(solution, problem, trust)
        for stage in run_stages(solution.to("cpu", torch.float64), own):
            if stage.moment not in options.moments:
                continue
            try:
                found = list(_spectra(stage, options))
            except ConditioningError:
                left_out.append(f"{named(labels)}, {stage.record.label}")
                continue
            for what, values, rank, count in found:
                columns = {**stage.columns, **what}
                rows.append(labelled(labels, {**columns, **summary(values, rank, count)}))
                curves += [labelled(labels, {**columns, **point}) for point in _thinned(values)]
    text = (
        f"Eigenvalues of J J^T (the tangent kernel; those of the Gauss-Newton matrix J^T J but for "
        f"zeros) on {options.points} points of the equation, the same for all levels and cases, "
        "with J the derivatives with respect to all coefficients, in the B-spline basis and, by "
        f"J A^-T, for the same network in the power-ReLU basis. share: eigenvalues above {SHARE:g} "
        "of the largest, per row of J."
    )
    if left_out:
        text += f" The change of basis leaves no digits for {'; '.join(dict.fromkeys(left_out))}."
    return Finding("training_spectra", "Spectra of training", text, rows, tuple(curves))


def summary(values: Floats, rank: int, count: int) -> dict[str, Any]:
    """What rows say of eigenvalues, descending, of which ``rank`` are not zero."""
    share = values / values.sum()
    positive = share[share > 0]
    return {
        "rank": rank,
        "condition": float(values[0] / values[rank - 1]),
        "largest": float(values[0]),
        "smallest": float(values[rank - 1]),
        "trace": float(values.sum()),
        "effective_rank": float(np.exp(-(positive * np.log(positive)).sum())),
        "share": float((values > SHARE * values[0]).sum() / count),
    }


def _spectra(
    stage: Stage, options: TrainingSpectra
) -> Iterator[tuple[dict[str, Any], Floats, int, int]]:
    """What it is of, eigenvalues, rank and rows: for all quantities and bases of a stage."""
    system = as_splines(stage.system)
    pattern = "*.coefficients" if knot_networks(system) else "*"
    for of in options.of:
        blocks = stage.problem.blocks() if of == "residual" else (values_block(stage.problem),)
        jacobian, pack = jacobian_of(system, blocks, options, (pattern,))
        singular = torch.linalg.svdvals(jacobian).numpy()
        noise = singular[0] * max(jacobian.shape) * np.finfo(np.float64).eps
        rank, size = int((singular > noise).sum()), len(jacobian)
        sizes = {"rows": size, "parameters": pack.layout.total}
        if not knot_networks(system):
            yield {"of": of, "basis": WEIGHTS, **sizes}, singular**2, rank, size
            continue
        yield {"of": of, "basis": SPLINE, **sizes}, singular**2, rank, size
        changed = in_power_relu(jacobian, system, pack)
        singular = torch.linalg.svdvals(changed).numpy()
        yield {"of": of, "basis": POWER_RELU, **sizes}, singular**2, rank, size


def values_block(problem: Problem) -> ResidualBlock:
    """The values of all fields in the interior, as if they were residuals."""

    def values(p: Site) -> Tensor:
        return torch.stack([p.fields[name].value for name in problem.fields], -1)

    return ResidualBlock("values", problem.domain.interior(), values, equation=True)


def jacobian_of(
    system: System,
    blocks: Sequence[ResidualBlock],
    options: TrainingSpectra,
    patterns: Sequence[str],
) -> tuple[Tensor, ParameterPack]:
    """``J`` ``(N, n)`` of the weighted residuals with respect to the parameters of some groups."""
    data = [
        BlockData(block, common_points(block, options, next(iter(system.parameters()))), system)
        for block in blocks
        if block.is_least_squares
    ]
    pack = ParameterPack(system, patterns)
    objective = SystemObjective(system, pack, data)
    return torch.cat(list(objective.jacobian_rows(pack.read())))[:, :-1], pack


def common_points(
    block: ResidualBlock, options: TrainingSpectra, like: Tensor
) -> tuple[Points, ...]:
    """Points of a block that depend on the options alone; of given ones a random choice."""
    count = options.points if block.equation else max(1, options.points // SIDE_SHARE)
    count = -(-count // block.group) * block.group
    seed = stream(options.seed, "spectra", block.name)
    sites = sample(block.region, count, "sobol", seed, like.dtype, like.device)
    if len(sites[0]) <= count or block.group > 1:
        return sites
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(sites[0]))
    chosen = torch.from_numpy(np.sort(order[:count]))
    return tuple(site.rows(chosen) for site in sites)


def in_power_relu(jacobian: Tensor, system: System, pack: ParameterPack) -> Tensor:
    """``J_w`` ``(N, n)`` of ``J_u``: every layer's columns times ``A^-T``, channel by channel."""
    changed, where = jacobian.clone(), pack.layout.slices()
    for name, network in knot_networks(system).items():
        for number, layer in enumerate(network.knot_layers):
            columns = where[f"{name}.layer{number}.coefficients"]
            own = jacobian[:, columns].reshape(len(jacobian), layer.out_width, -1)
            changed[:, columns] = _by_channel(own, layer).flatten(1)
    return changed


def _by_channel(columns: Tensor, layer: KnotLayer) -> Tensor:
    knots = layer.knots
    parts = columns.split(list(knots.n_functions), -1)
    return torch.cat(
        [part @ inverse_change_of_basis(knots, p).mT for p, part in enumerate(parts)], -1
    )


def _thinned(values: Floats) -> Iterator[Mapping[str, Any]]:
    last = len(values)
    for index in sorted(set(np.geomspace(1, last, SHOWN).round().astype(int).tolist())):
        yield {"index": index, "value": float(values[index - 1])}

"""What the parts of a run take, and how a bound on its memory is shared out among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from kanpinn.jets import JetSpec
from kanpinn.models import KnotLayer, Layer, SplineLayer
from kanpinn.optimisers.solver_choice import dense_numbers
from kanpinn.residuals import System

MIB = 2.0**20
# Shares of the bound; what is left is for points and vectors of parameters.
SYSTEMS = 1 / 2  # the linear systems of least squares
CHUNK = 1 / 16  # the rows evaluated at once by one worker
EVALUATION = 1 / 16  # the points that errors are measured at, at once
FEATURES = 1 / 8  # kept features of all points
GPU_BYTES = 2.0**30  # of all that is in flight for rows at once, on a GPU
GPU_ROWS = 2**20  # at most
MOST_WORKERS = 4  # chunks in flight
LEAST_ROWS = 8  # of a chunk
JACOBIAN_COPIES = 3  # of its rows: pieces, the whole, weighed
ADJOINTS = 3  # numbers of a jet between layers that the kernel keeps: it, its adjoint, its copy


@dataclass(frozen=True)
class Memory:
    """Shares of a bound on what a run takes beside the program itself.

    Sizes follow from the bound and from other sizes alone: neither from threads, nor from a clock.

    Attributes:
        bound_mib: the bound in MiB; ``None`` for the rules that each part has of its own.
        jacobian: whether rows of the Jacobian are made.
        sets: of points that features are kept for.
        threads: to share work among; ``None`` for as many as PyTorch's operators have.
    """

    bound_mib: float | None = None
    jacobian: bool = False
    sets: int = 1
    threads: int | None = None

    def limit(self, share: float, rule: float) -> float:
        """Bytes of a part that would have ``rule``."""
        return rule if self.bound_mib is None else min(rule, share * self.bound_mib * MIB)

    def features(self, rule: float) -> float:
        """Bytes of the features that are kept for one set of points."""
        return self.limit(FEATURES / self.sets, rule)

    def rows(self, rule: int, row: float, share: float = CHUNK) -> int:
        """Rows at once: a power of two where ``rule`` is one.

        Args:
            rule: rows without a bound.
            row: bytes that a row takes.
            share: of the bound.
        """
        found, most = rule, self.limit(share, rule * row)
        while found > LEAST_ROWS and found * row > most:
            found = max(found // 2, LEAST_ROWS)
        return found

    def systems_mib(self, rule: float) -> float:
        """MiB that a linear system may take."""
        return self.limit(SYSTEMS, rule * MIB) / MIB

    def holds_system(self, needed: float) -> bool:
        """Whether a linear system may take so many bytes."""
        return needed <= self.limit(SYSTEMS, needed)

    def sharing(self, device: torch.device) -> int:
        """Threads that chunks on a device are shared among."""
        if device.type != "cpu":
            return 1
        threads = self.threads or torch.get_num_threads()
        return threads if self.bound_mib is None else min(threads, MOST_WORKERS)

    def workers(self, device: torch.device, rows: int, columns: int, itemsize: int) -> int:
        """The same while training: as many as the slabs of the dense solver fit for, if it is used.

        Args:
            device: of the networks.
            rows: residuals in all.
            columns: parameters.
            itemsize: bytes of a number.
        """
        most = self.sharing(device)

        def fits(count: int) -> bool:
            return self.holds_system(itemsize * dense_numbers(rows, columns, count))

        if self.bound_mib is None or not (self.jacobian and fits(1)):
            return most
        return max(count for count in range(1, most + 1) if fits(count))


def power_of_two(rows: float, most: int) -> int:
    """The power of two at or below a number of rows, between 64 and ``most``, which is one."""
    return 1 << max(6, min(most.bit_length() - 1, int(rows).bit_length() - 1))


def rows_on_gpu(row: float) -> int:
    """Rows at once on a GPU, of so many bytes each: it is kept busy by many, which fill 1 GiB."""
    return power_of_two(GPU_BYTES / row, GPU_ROWS)


def point_numbers(
    system: System, specs: Mapping[str, JetSpec], makes_features: Callable[[Layer], bool]
) -> float:
    """Numbers in flight for every point of a residual and its gradient.

    Args:
        system: the networks.
        specs: the jets that are asked of each.
        makes_features: whether a layer makes its features, or the kernel works without.
    """
    kept = transient = 0.0
    for name, spec in specs.items():
        for layer in system.parts[name].network.chain:
            made = makes_features(layer)
            kept += _kept(layer, spec) if made else _kept_by_kernel(layer, spec)
            if made:
                transient = max(transient, 3.0 * spec.n_components * layer.n_features)
    return kept + transient


def row_numbers(
    system: System,
    specs: Mapping[str, JetSpec],
    n_sites: int,
    n_equations: int,
    makes_features: Callable[[Layer], bool],
    jacobian: bool,
) -> float:
    """Numbers in flight for every row of a block, those of the Jacobian included."""
    columns = JACOBIAN_COPIES * n_equations * system.n_parameters if jacobian else 0
    return n_sites * point_numbers(system, specs, makes_features) + columns


def _kept(layer: Layer, spec: JetSpec) -> float:
    """Numbers that a layer keeps for the gradient, for every point."""
    jets, orders, features = spec.n_components, spec.order + 1, layer.n_features
    if isinstance(layer, SplineLayer):
        local = layer.in_width * layer.order
        recorded = 8 if layer.settings.free else 1  # free knots have no reverse pass of their own
        return float(jets * features + recorded * (orders + 2) * local)
    if isinstance(layer, KnotLayer):
        return float((3 * jets + 4 * orders) * features)
    return float(3 * jets * features)


def _kept_by_kernel(layer: Layer, spec: JetSpec) -> float:
    """The same where the kernel makes no features: its inputs and outputs."""
    return float(ADJOINTS * spec.n_components * (layer.in_width + layer.out_width))

"""Which linear solver a least-squares step takes, by what each of them holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Solver = Literal["dense", "dual", "iterative"]

MIB = 2.0**20
SLAB = 4  # rows of a slab per column: stacking triangles then costs little beside the slabs
# Measured, as far as they are not plain: peaks beside those of a small run.
SLAB_COPIES = 1.5  # of a slab: its pieces, the slab, its factorisation
TRIANGLES = 6  # of n^2 numbers: the factor, those it is reduced from, the step's
DUAL_COPIES = 4  # of the Jacobian: its pieces, the whole, the orthogonal factor, its workspace
DUAL_TRIANGLES = 8  # of N^2 numbers
BLOCK = 64  # most columns that are orthogonalised against each other in front of the iteration
BLOCK_COPIES = 4  # of the blocks' squares: their sums, the factor, its inverse
ITERATION_VECTORS = 8  # of N + n numbers


def dense_numbers(rows: int, columns: int, workers: int = 1) -> float:
    """Numbers that the dense solver holds at most."""
    slab = min(SLAB * columns, rows) * columns
    return SLAB_COPIES * slab * workers + TRIANGLES * float(columns) ** 2


def dual_numbers(rows: int, columns: int) -> float:
    """Numbers that the dual solver holds at most."""
    return DUAL_COPIES * float(rows) * columns + DUAL_TRIANGLES * float(rows) ** 2


def iterative_numbers(rows: int, columns: int) -> float:
    """Numbers that the iterative solver holds beside what the linearisation keeps."""
    return BLOCK_COPIES * BLOCK * float(columns) + ITERATION_VECTORS * float(rows + columns)


@dataclass(frozen=True)
class SolverChoice:
    """A linear solver, and what the direct one of these sizes would hold.

    Attributes:
        solver: the choice.
        direct: the direct solver of the smaller system, ``dense`` or ``dual``.
        direct_mib: what that one takes.
    """

    solver: Solver
    direct: Solver
    direct_mib: float


def choose_solver(
    wanted: Literal["auto", "dense", "dual", "iterative"],
    memory_mib: float,
    rows: int,
    columns: int,
    itemsize: int,
) -> SolverChoice:
    """The solver of ``rows`` residuals in ``columns`` parameters, by sizes and options alone.

    ``auto``: the dual one for fewer rows than columns and the dense one otherwise, where that fits
    into ``memory_mib`` (with one worker); the iterative one where it does not.
    """
    direct: Solver = "dual" if rows < columns else "dense"
    if wanted in ("dense", "dual"):
        direct = wanted
    numbers = (dual_numbers if direct == "dual" else dense_numbers)(rows, columns)
    mib = numbers * itemsize / MIB
    chosen: Solver = direct
    if wanted == "iterative" or (wanted == "auto" and mib > memory_mib):
        chosen = "iterative"
    return SolverChoice(chosen, direct, mib)

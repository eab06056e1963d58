"""Spectrum of the change of basis from power-ReLU functions to B-splines, ``b = A psi``.

Figures 1 and 2 of arXiv 2603.04827: gradient descent on the spline coefficients is, seen in the
power-ReLU coefficients, preconditioned by ``A^T A``, whose eigenvalues follow ``index^(2r)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le, MinLen
from numpy.typing import NDArray
from scipy.linalg import toeplitz

from kanpinn.analysis.finding import Finding
from kanpinn.study.orders import exponent

Floats = NDArray[np.float64]
Order = Annotated[int, Ge(1), Le(8)]
Orders = Annotated[tuple[Order, ...], MinLen(1)]
Count = Annotated[int, Ge(4), Le(2000)]

SHOWN = 5  # eigenvectors at either end


@dataclass(frozen=True, kw_only=True)
class BasisSpectrum:
    """Eigenvalues and eigenvectors of ``A^T A``, and its condition number against the knots."""

    name: Annotated[Literal["basis_spectrum"], "change of basis: spectrum and condition"] = (
        "basis_spectrum"
    )
    n: Annotated[Count, "knot intervals of the spectra"] = 50
    orders: Annotated[Orders, "spline orders of the spectra, 1 to 8"] = (1, 3)
    condition_n: Annotated[
        Annotated[tuple[Count, ...], MinLen(2)], "knot intervals of the condition numbers"
    ] = (16, 32, 64, 128, 256, 512)
    condition_orders: Annotated[Orders, "spline orders of the condition numbers"] = (1, 2, 3, 4)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenpairs of ``A^T A``, eigenvalues ascending.

    Attributes:
        values: ``(m,)``.
        vectors: unit eigenvectors in columns, ``(m, m)``.
    """

    values: Floats
    vectors: Floats

    @property
    def sign_changes(self) -> NDArray[np.int64]:
        """Of every eigenvector along its entries, ``(m,)``."""
        signs = np.sign(self.vectors)
        return np.asarray((signs[1:] * signs[:-1] < 0).sum(0))


def basis_spectrum(options: BasisSpectrum) -> Finding:
    """Spectra for ``n`` intervals, and condition numbers with the fitted exponent of their growth.

    ``A`` is that of equally spaced knots on [-1, 1]. Rows with ``part: spectrum`` have the fitted
    exponent of the eigenvalues in their index, over the middle of the lower half, and whether
    eigenvector ``k`` (from 1) has ``k - 1`` sign changes; rows with ``part: condition`` the
    exponent of the condition number's growth from the ``n`` before.
    """
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for order in options.orders:
        spectrum = spectrum_of(options.n, order)
        rows.append(_summary(options.n, order, spectrum))
        curves += _curves(order, spectrum)
    for order in options.condition_orders:
        rows += _growth(sorted(set(options.condition_n)), order)
    fits = {row["order"]: row["exponent"] for row in rows if row["part"] == "condition"}
    text = (
        "Eigenvalues of A^T A of the change of basis b = A psi from power-ReLU functions to "
        "B-splines, equally spaced knots on [-1, 1]. Large singular values are those of A, small "
        "ones those of its inverse, whose entries are exact. Between the last two n the condition "
        "number grows like "
        + ", ".join(f"n^{value:.2f} for order {order}" for order, value in fits.items())
        + "; the theory says n^(2r)."
    )
    return Finding("basis_spectrum", "The change of basis", text, rows, tuple(curves))


def spectrum_of(n: int, order: int) -> Spectrum:
    """Eigenpairs of ``A^T A`` for ``n`` equal intervals on [-1, 1].

    ``A = h^(1-r)/(r-1)! D^r`` with the differences ``D = I - N``, ``N`` the shift, of size
    ``m = n + r - 1``. Half of the singular values of ``D^r`` are right in a decomposition of
    ``D^r``, to ``eps sigma_max``, and the other half in one of ``D^-r``; both matrices hold whole
    numbers, exact below 2^53 and sums of positive terms beyond. So every one has about the relative
    accuracy ``eps sqrt(cond D^r)``, where one decomposition of ``D^r`` leaves ``eps cond D^r``.
    """
    direct, inverse = differences(n + order - 1, order)
    _, large, vectors_t = np.linalg.svd(direct)
    small_vectors, small_inverses, _ = np.linalg.svd(inverse)
    large, vectors, small = large[::-1], vectors_t[::-1].T, 1 / small_inverses
    lower = small < math.sqrt(small[0] * large[-1])
    scale = _scale(n, order)
    values = (scale * np.where(lower, small, large)) ** 2
    return Spectrum(values, np.where(lower, small_vectors, vectors))


def condition_of(n: int, order: int) -> float:
    """2-norm condition number of ``A^T A``, to round-off: of two largest singular values."""
    direct, inverse = differences(n + order - 1, order)
    return float((np.linalg.norm(direct, 2) * np.linalg.norm(inverse, 2)) ** 2)


def differences(size: int, order: int) -> tuple[Floats, Floats]:
    """``D^r`` and its inverse, ``(m, m)``: upper triangular Toeplitz, binomial coefficients."""
    down = np.zeros(size)
    direct = [(-1.0) ** j * math.comb(order, j) for j in range(min(order + 1, size))]
    row = np.concatenate([direct, np.zeros(size - len(direct))])
    inverse = np.array([float(math.comb(j + order - 1, order - 1)) for j in range(size)])
    down[0] = 1.0
    return toeplitz(down, row), toeplitz(down, inverse)


def _scale(n: int, order: int) -> float:
    """``h^(1-r) / (r-1)!`` on [-1, 1]."""
    return (n / 2) ** (order - 1) / math.factorial(order - 1)


def _summary(n: int, order: int, spectrum: Spectrum) -> dict[str, Any]:
    values, count = spectrum.values, len(spectrum.values)
    middle = np.arange(max(1, count // 10), max(3, count // 2))
    return {
        "part": "spectrum",
        "order": order,
        "n": n,
        "condition": float(values[-1] / values[0]),
        "exponent": exponent((middle + 1).tolist(), values[middle].tolist()),
        "theory": 2 * order,
        "smallest": float(values[0]),
        "largest": float(values[-1]),
        "oscillates": bool((spectrum.sign_changes == np.arange(count)).all()),
    }


def _growth(counts: Sequence[int], order: int) -> Iterator[dict[str, Any]]:
    known: list[float] = []
    for number, n in enumerate(counts):
        known.append(condition_of(n, order))
        yield {
            "part": "condition",
            "order": order,
            "n": n,
            "condition": known[-1],
            "exponent": exponent(counts[number - 1 : number + 1], known[-2:]) if number else None,
            "theory": 2 * order,
        }


def _curves(order: int, spectrum: Spectrum) -> Iterator[dict[str, Any]]:
    """Eigenvalues, and the first and last eigenvectors."""
    count = len(spectrum.values)
    for k, (value, changes) in enumerate(
        zip(spectrum.values.tolist(), spectrum.sign_changes.tolist(), strict=True)
    ):
        yield {
            "curve": "eigenvalue",
            "order": order,
            "index": k + 1,
            "value": value,
            "sign_changes": changes,
        }
    for k in [*range(min(SHOWN, count)), *range(max(SHOWN, count - SHOWN), count)]:
        for position, entry in enumerate(spectrum.vectors[:, k].tolist()):
            yield {
                "curve": "eigenvector",
                "order": order,
                "index": k + 1,
                "position": position + 1,
                "value": entry,
            }

"""Analyses of the basis itself: its spectrum, against exact arithmetic and closed forms."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from figure_checks import check, main_axes

from kanpinn.analysis import BasisSpectrum, run
from kanpinn.analysis.basis_spectrum import condition_of, differences, spectrum_of
from kanpinn.plotting.analysis import draw
from kanpinn.splines import Knots, change_of_basis

Exact = list[list[Fraction]]


def exact_square(n: int, order: int) -> Exact:
    """``A^T A`` of unit spacing times ``(r-1)!^2``: ``D^r``, made by repeated products."""
    size = n + order - 1
    step = [[Fraction((i == j) - (j == i + 1)) for j in range(size)] for i in range(size)]
    power = step
    for _ in range(order - 1):
        power = multiplied(power, step)
    return multiplied([list(column) for column in zip(*power, strict=True)], power)


def multiplied(a: Exact, b: Exact) -> Exact:
    columns = list(zip(*b, strict=True))
    return [[sum(x * y for x, y in zip(row, c, strict=True)) for c in columns] for row in a]


def count_below(square: Exact, shift: Fraction) -> int:
    """Eigenvalues below a number: the negative pivots of an exact elimination (Sylvester)."""
    rows = [[x - shift * (i == j) for j, x in enumerate(row)] for i, row in enumerate(square)]
    negative = 0
    for k in range(len(rows)):
        pivot = rows[k][k]
        negative += pivot < 0
        for i in range(k + 1, len(rows)):
            factor = rows[i][k] / pivot
            if factor:
                rows[i] = [x - factor * y for x, y in zip(rows[i], rows[k], strict=True)]
    return negative


@pytest.mark.parametrize(("n", "order"), [(12, 1), (9, 3), (8, 4), (7, 6)])
def test_all_eigenvalues_are_right_to_ten_digits(n: int, order: int) -> None:
    """Each is enclosed by counts of eigenvalues below it, in exact arithmetic."""
    square = exact_square(n, order)
    scale = (n / 2) ** (order - 1) / math.factorial(order - 1)
    values = spectrum_of(n, order).values / scale**2
    for k, value in enumerate(values.tolist()):
        assert count_below(square, Fraction(value * (1 - 1e-10))) == k
        assert count_below(square, Fraction(value * (1 + 1e-10))) == k + 1


def test_first_order_has_its_closed_form() -> None:
    """``4 sin^2((2k-1) pi / (2 (2m+1)))``, and cosines as eigenvectors."""
    m, k = 50, np.arange(1, 51)
    expected = 4 * np.sin((2 * k - 1) * np.pi / (2 * (2 * m + 1))) ** 2
    spectrum = spectrum_of(50, 1)
    np.testing.assert_allclose(spectrum.values, expected, rtol=1e-12)
    first = np.cos((2 * np.arange(1, m + 1) - 1) * np.pi / (2 * (2 * m + 1)))
    found = spectrum.vectors[:, 0] * np.sign(spectrum.vectors[0, 0])
    np.testing.assert_allclose(found, first / np.linalg.norm(first), atol=1e-12)


@pytest.mark.parametrize("order", [2, 3, 4, 7])
def test_it_is_the_matrix_of_the_change_of_basis(order: int) -> None:
    matrix = change_of_basis(Knots.uniform_grid(order, 12, 1), 0).numpy()
    spectrum = spectrum_of(12, order)
    np.testing.assert_allclose(
        spectrum.vectors @ np.diag(spectrum.values) @ spectrum.vectors.T,
        matrix.T @ matrix,
        atol=1e-11 * spectrum.values[-1],
    )
    condition = float(torch.linalg.cond(torch.from_numpy(matrix))) ** 2
    assert condition_of(12, order) == pytest.approx(condition, rel=1e-3)


def test_inverse_of_the_differences_is_exact() -> None:
    direct, inverse = differences(30, 4)
    np.testing.assert_array_equal(direct @ inverse, np.eye(30))


def test_small_eigenvalues_keep_digits_that_one_decomposition_loses() -> None:
    """r = 4, n = 1000: ``cond A^T A`` is 1e23. The norm of the inverse by power iteration."""
    n, order = 1000, 4
    _, inverse = differences(n + order - 1, order)
    vector = np.ones(len(inverse))
    for _ in range(60):
        vector = inverse.T @ (inverse @ vector)
        norm = np.linalg.norm(vector)
        vector /= norm
    condition = condition_of(n, order)
    assert condition > 1e22
    largest = np.linalg.norm(differences(n + order - 1, order)[0], 2)
    assert condition == pytest.approx(norm * largest**2, rel=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 8])
def test_eigenvector_k_has_k_sign_changes(order: int) -> None:
    """``(A^T A)^-1`` is oscillatory (Gantmacher and Krein), so that this holds exactly."""
    spectrum = spectrum_of(50, order)
    np.testing.assert_array_equal(spectrum.sign_changes, np.arange(50 + order - 1))


def test_finding_and_its_figures() -> None:
    found = run(BasisSpectrum(n=20, orders=(1, 3), condition_n=(8, 16), condition_orders=(2,)))
    first, second, *growth = found.rows
    assert (first["order"], second["order"]) == (1, 3)
    assert first["oscillates"] and second["oscillates"]
    assert second["condition"] == pytest.approx(second["largest"] / second["smallest"])
    assert [row["n"] for row in growth] == [8, 16]
    ratio = condition_of(16, 2) / condition_of(8, 2)
    assert growth[1]["exponent"] == pytest.approx(math.log2(ratio))
    values = [row for row in found.curves if row["curve"] == "eigenvalue" and row["order"] == 3]
    np.testing.assert_allclose([row["value"] for row in values], spectrum_of(20, 3).values)
    vectors = [row for row in found.curves if row["curve"] == "eigenvector"]
    assert len(vectors) == 10 * (20 + 22)
    eigen, conditions = draw(found)
    assert len(main_axes(check(eigen))) == 6
    assert len(main_axes(check(conditions))) == 2

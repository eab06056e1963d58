"""Floating-point operations of linear algebra, counted by their leading terms.

A multiplication and an addition count as one each. What is of the order of a vector's length
alone is left out. Sources: G. Golub and C. Van Loan, Matrix Computations, sections 4.2 and 5.2.
"""

from __future__ import annotations


def product(rows: int, columns: int) -> int:
    """A dense matrix with a vector: ``2 m n``."""
    return 2 * rows * columns


def square(rows: int, columns: int) -> int:
    """``A^T A``, of which one half is computed: ``m n^2``."""
    return rows * columns**2


def triangle(rows: int, columns: int) -> int:
    """The triangle of a QR decomposition by Householder: ``2 m n^2``, ``n`` the smaller number."""
    return 2 * max(rows, columns) * min(rows, columns) ** 2


def orthogonal(rows: int, columns: int) -> int:
    """The orthogonal factor of that, its ``n`` columns formed from the reflections: ``2 m n^2``."""
    return triangle(rows, columns)


def cholesky(size: int) -> int:
    """``A = L L^T``: ``n^3 / 3``."""
    return size**3 // 3


def substitution(size: int) -> int:
    """A vector divided by a triangle: ``n^2``."""
    return size**2


class Meter:
    """Adds up operations as they are spent.

    Attributes:
        operations: spent so far.
    """

    def __init__(self) -> None:
        self.operations = 0

    def add(self, operations: int) -> None:
        """Spend more of them."""
        self.operations += operations

    def take(self) -> int:
        """What was spent, which then counts from zero."""
        spent, self.operations = self.operations, 0
        return spent

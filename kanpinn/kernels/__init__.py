"""Compiled kernels, and what stands in for them where there is no compiler."""

from kanpinn.kernels.library import Kernels, kernels, kernels_expected, kernels_unused
from kanpinn.kernels.spline_product import (
    KERNEL_SQUASHES,
    PackedPieces,
    SplineProduct,
    compiles,
)

__all__ = [
    "KERNEL_SQUASHES",
    "Kernels",
    "PackedPieces",
    "SplineProduct",
    "compiles",
    "kernels",
    "kernels_expected",
    "kernels_unused",
]

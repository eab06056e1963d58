"""Compiled kernels, and what stands in for them where there is no compiler."""

from kanpinn.kernels.library import Kernels, kernels, kernels_expected, kernels_unused
from kanpinn.kernels.local_features import LocalFeatures
from kanpinn.kernels.spline_call import KERNEL_SQUASHES, PackedPieces, compiles
from kanpinn.kernels.spline_product import SplineProduct

__all__ = [
    "KERNEL_SQUASHES",
    "Kernels",
    "LocalFeatures",
    "PackedPieces",
    "SplineProduct",
    "compiles",
    "kernels",
    "kernels_expected",
    "kernels_unused",
]

"""Features of a layer at some points, as the Jacobian of its outputs asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kanpinn.kernels import LocalFeatures


@dataclass(frozen=True)
class DenseFeatures:
    """Feature jets that are held as they are; the same calls as those of ``LocalFeatures``.

    Attributes:
        values: ``F`` ``(K, n, f)``, without gradient.
    """

    values: Tensor

    @property
    def n_features(self) -> int:
        """``f``."""
        return self.values.shape[-1]

    @property
    def numbers(self) -> int:
        """How many are held."""
        return self.values.numel()

    def at(self, points: slice) -> DenseFeatures:
        """Those of some of the points."""
        return DenseFeatures(self.values[:, points])

    @cached_property
    def used(self) -> Tensor:
        """Numbers of the features that are not zero at some point, ascending."""
        return (self.values != 0).flatten(0, 1).any(0).nonzero()[:, 0]

    def contract(self, weights: Tensor) -> Tensor:
        """The product ``(K, n, out)`` with ``weights`` ``(out, f)``."""
        return self.values @ weights.mT

    def transposed(self, adjoint: Tensor) -> Tensor:
        """Summed over components and points, the outer products with ``(K, n, out)``."""
        return adjoint.flatten(0, 1).mT @ self.values.flatten(0, 1)

    def outer(self, adjoint: Tensor) -> Tensor:
        """Summed over components, every point's outer product with ``(K, n, out)``, flat."""
        return _outer(adjoint, self.values)

    def add_outer(self, adjoint: Tensor, columns: Tensor, rows: Tensor) -> None:
        """Add :meth:`outer` to ``rows`` ``(n, any)``, in given columns.

        Args:
            adjoint: ``(K, n, out)``.
            columns: ``(out * f,)``; those of features that are not used are never read.
            rows: changed in place.
        """
        chosen = columns.view(-1, self.n_features)[:, self.used].flatten()
        rows.index_add_(1, chosen, _outer(adjoint, self.values[..., self.used]))


Features = DenseFeatures | LocalFeatures


def _outer(adjoint: Tensor, features: Tensor) -> Tensor:
    """``sum_k G[k, i, o] F[k, i, f]``, ``(n, out * f)``."""
    return torch.bmm(adjoint.permute(1, 2, 0), features.transpose(0, 1)).flatten(1)

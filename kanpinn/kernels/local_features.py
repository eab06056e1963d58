"""Feature jets of a spline layer that are never made: the compiled kernel's part in a Jacobian."""

from __future__ import annotations

import torch
from torch import Tensor

from kanpinn.jets import JetSpec
from kanpinn.kernels.library import kernels
from kanpinn.kernels.spline_call import PackedPieces, run


class LocalFeatures:
    """The feature jets of some points, of which only what is asked for is ever made.

    Args:
        z: input jets ``(K, n, channels)``, without gradient.
        squash: whether ``tanh`` stands in front of the basis.
        packed: pieces of the basis, fixed.
        spec: names the components.
        n_features: ``f``, length of the flat feature axis.
    """

    def __init__(
        self,
        z: Tensor,
        squash: bool,
        packed: PackedPieces,
        spec: JetSpec,
        n_features: int,
    ) -> None:
        self.z, self.squash = z, squash
        self.packed, self.spec, self.n_features = packed, spec, n_features

    @property
    def numbers(self) -> int:
        """How many are held."""
        return self.z.numel()

    def at(self, points: slice) -> LocalFeatures:
        """Those of some of the points."""
        return LocalFeatures(
            self.z[:, points], self.squash, self.packed, self.spec, self.n_features
        )

    @property
    def sparsity(self) -> float:
        """Features for every one that is made at a point."""
        return self.n_features / (self.z.shape[-1] * self.packed.order)

    def dense(self) -> Tensor:
        """The features themselves, ``(K, n, f)``."""
        units = torch.eye(len(self.z), dtype=self.z.dtype)
        shape = (*self.z.shape[:2], 1)
        return torch.stack([self.outer(unit[:, None, None].expand(shape)) for unit in units])

    @property
    def used(self) -> Tensor:
        """Numbers of the features whose support has some point in it, ascending."""
        found = torch.zeros(self.n_features, dtype=torch.uint8)
        self._run(1, used=found)
        return found.nonzero()[:, 0]

    def contract(self, weights: Tensor) -> Tensor:
        """The product ``(K, n, out)`` with ``weights`` ``(out, f)``."""
        y = self.z.new_zeros(*self.z.shape[:2], len(weights))
        self._run(len(weights), weights=weights, y=y)
        return y

    def transposed(self, adjoint: Tensor) -> Tensor:
        """Summed over components and points, the outer products with ``(K, n, out)``."""
        result = self.z.new_zeros(adjoint.shape[-1], self.n_features)
        self._run(len(result), y_adjoint=adjoint, weights_adjoint=result)
        return result

    def outer(self, adjoint: Tensor) -> Tensor:
        """Summed over components, every point's outer product with ``(K, n, out)``, flat."""
        columns = torch.arange(adjoint.shape[-1] * self.n_features)
        rows = self.z.new_zeros(self.z.shape[1], len(columns))
        self.add_outer(adjoint, columns, rows)
        return rows

    def add_outer(self, adjoint: Tensor, columns: Tensor, rows: Tensor) -> None:
        """Add :meth:`outer` to ``rows`` ``(n, any)``, in given columns.

        Args:
            adjoint: ``(K, n, out)``.
            columns: ``(out * f,)``; those of features that are not used are never read.
            rows: changed in place; the numbers of a row lie side by side.
        """
        assert rows.stride(1) == 1 and adjoint.shape[:2] == self.z.shape[:2]
        assert len(columns) == adjoint.shape[-1] * self.n_features
        given = {"y_adjoint": adjoint, "columns": columns, "rows": rows}
        self._run(adjoint.shape[-1], row=rows.stride(0), **given)

    def _run(self, outputs: int, row: int = 0, **tensors: Tensor) -> None:
        library = kernels().library
        assert library is not None
        shape = (outputs, self.n_features)
        run(library, self.packed, self.spec, shape, self.z, self.squash, tensors, row)

"""A spline layer's output jets from local support alone, by the compiled kernel.

``y_k[q] = sum_p sum_l L_k[p, l] C[q, first(p) + l]`` with the feature jets
``L_k = sum_m b^(m)(s) g_{k,m}``, of which only the ``r`` that are not zero are ever made, point by
point. What a point costs does not depend on the number of intervals; a call makes a copy of the
coefficients, and of their gradient, besides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kanpinn.jets import JetSpec
from kanpinn.kernels.library import kernels
from kanpinn.kernels.spline_call import PackedPieces, run


class SplineProduct(torch.autograd.Function):
    """``(K, n, out)`` of ``z``, ``(K, n, channels)``, and weights ``(out, features)``.

    Differentiable in ``z``, the weights and the pieces (free knots) by the kernel; once more by
    what ``reference`` makes of the same inputs with recorded operations.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weights: Tensor,
        left: Tensor,
        shift: Tensor,
        tables: Tensor,
        packed: PackedPieces,
        spec: JetSpec,
        squash: bool,
        reference: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Evaluate. ``left``, ``shift`` and ``tables`` only carry the gradient of the pieces."""
        library = kernels().library
        if library is None or len(z) != spec.n_components or z.dtype != weights.dtype:
            raise ValueError(
                f"the compiled kernel takes jets of {spec.n_components} components in the type of "
                f"the weights, {weights.dtype}; found {tuple(z.shape)}, {z.dtype}"
            )
        y = z.new_zeros(len(z), z.shape[1], len(weights))
        run(library, packed, spec, weights.shape, z, squash, {"weights": weights, "y": y})
        ctx.save_for_backward(z, weights, left, shift, tables)
        ctx.library, ctx.packed, ctx.spec = library, packed, spec
        ctx.squash, ctx.reference = squash, reference
        return y

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        """Adjoints of the tensors."""
        inputs = z, weights, *_ = ctx.saved_tensors
        needed = ctx.needs_input_grad[: len(inputs)]
        rest = (None,) * 4
        if torch.is_grad_enabled():
            wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
            y = ctx.reference(z, weights)
            found = iter(torch.autograd.grad(y, wanted, adjoint, create_graph=True))
            return *(next(found) if need else None for need in needed), *rest
        packed: PackedPieces = ctx.packed
        own = {
            "z_adjoint": z.new_zeros(z.shape) if needed[0] else None,
            "weights_adjoint": weights.new_zeros(weights.shape) if needed[1] else None,
            "shift_adjoint": torch.zeros_like(packed.shift) if any(needed[2:]) else None,
            "tables_adjoint": torch.zeros_like(packed.tables) if any(needed[2:]) else None,
        }
        inner = needed[0] or any(needed[2:])  # only these depend on the weights
        tensors = {"weights": weights if inner else None, "y_adjoint": adjoint, **own}
        run(ctx.library, packed, ctx.spec, weights.shape, z, ctx.squash, tensors)
        knots: tuple[Tensor | None, ...] = (None, None, None)
        if own["tables_adjoint"] is not None:
            of_tables = own["tables_adjoint"][..., : packed.order].permute(2, 3, 0, 1)
            knots = (own["shift_adjoint"], own["shift_adjoint"], of_tables)
        return own["z_adjoint"], own["weights_adjoint"], *knots, *rest

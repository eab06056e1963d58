"""A spline layer's output jets from local support alone, by the compiled kernel.

``y_k[q] = sum_p sum_l L_k[p, l] C[q, first(p) + l]`` with the feature jets
``L_k = sum_m b^(m)(s) g_{k,m}``, of which only the ``r`` that are not zero are ever made, point by
point. Cost and memory do not depend on the number of intervals.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from kanpinn.jets import JetSpec
from kanpinn.kernels.library import kernels
from kanpinn.splines import Pieces

TYPES = {torch.float64: "float64", torch.float32: "float32"}
MOST_FACTORS = 4
KERNEL_SQUASHES = (None, "tanh")


class _Term(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("pair", "begins", "count", "n_factors")),
        ("factors", ctypes.c_int32 * MOST_FACTORS),
    ]


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("points", "channels", "outputs", "features")),
        *((name, ctypes.c_int32) for name in ("components", "derivatives", "n_pairs", "n_terms")),
        *((name, ctypes.c_int32) for name in ("squash", "general")),
        *((name, ctypes.c_void_p) for name in ("terms", "pair_component", "pair_m")),
    ]


class _Knots(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("left", "last", "first")),
        *((name, ctypes.c_void_p) for name in ("scale", "shift", "tables")),
        ("stride", ctypes.c_int64),
    ]


class _Arrays(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("z", "squashed", "weights", "y", "y_adjoint")),
        *((name, ctypes.c_void_p) for name in ("z_adjoint", "weights_adjoint")),
        *((name, ctypes.c_void_p) for name in ("tables_adjoint", "shift_adjoint")),
    ]


class _Packed:
    """Chain rule of a jet, and pieces of a basis, as the kernel reads them; kept alive with it."""

    def __init__(self, spec: JetSpec) -> None:
        rows = [(k, *term) for k, terms in enumerate(spec.chain_terms) if k for term in terms]
        pairs = sorted({(k, m) for k, _, m, _ in rows})
        self.pair_component = (ctypes.c_int32 * len(pairs))(*(k for k, _ in pairs))
        self.pair_m = (ctypes.c_int32 * len(pairs))(*(m for _, m in pairs))
        self.terms = (_Term * len(rows))()
        begun = set()
        for term, (k, count, m, factors) in zip(self.terms, rows, strict=True):
            term.pair, term.begins = pairs.index((k, m)), (k, m) not in begun
            term.count, term.n_factors = count, len(factors)
            term.factors[: len(factors)] = factors
            begun.add((k, m))
        self.n_pairs, self.n_terms = len(pairs), len(rows)


_packed = lru_cache(_Packed)


class PackedPieces:
    """The pieces of a basis in the kernel's layout, without gradient.

    Args:
        pieces: of the basis.
        order: ``r``.
    """

    def __init__(self, pieces: Pieces, order: int) -> None:
        self.pieces, self.order, self.general = pieces, order, not pieces.uniform
        self.left = pieces.left.detach().contiguous()
        self.scale = pieces.scale.detach().contiguous()
        shift = pieces.shift.detach()
        self.shift = (shift if self.general else shift[0].expand(len(self.scale))).contiguous()
        self.last, self.first = pieces.last.contiguous(), pieces.first.contiguous()
        tables = pieces.tables.detach().permute(2, 3, 0, 1)  # (channels, n_max, powers, functions)
        self.tables = pad(tables, (0, self.row - order)).contiguous()

    @property
    def row(self) -> int:
        """Numbers of a row of the tables: the functions, and what fills the vector."""
        return 4 if self.order <= 4 else 8

    def structure(self) -> _Knots:
        """For the kernel; this object must outlive its use."""
        tensors = (self.left, self.last, self.first, self.scale, self.shift, self.tables)
        return _Knots(*(t.data_ptr() for t in tensors), self.left.shape[1])


def compiles(z: Tensor) -> bool:
    """Whether the compiled kernel can take these jets."""
    return z.device.type == "cpu" and z.dtype in TYPES and kernels().library is not None


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
        squashed = torch.tanh(z[0]).contiguous() if squash else None
        y = z.new_zeros(len(z), z.shape[1], len(weights))
        _run(library, packed, spec, z, squashed, weights, y=y)
        ctx.save_for_backward(z, weights, left, shift, tables, squashed)
        ctx.library, ctx.packed, ctx.spec, ctx.reference = library, packed, spec, reference
        return y

    @staticmethod
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        """Adjoints of the tensors."""
        z, weights, left, shift, tables, squashed = ctx.saved_tensors
        inputs = (z, weights, left, shift, tables)
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
        _run(ctx.library, packed, ctx.spec, z, squashed, weights, y_adjoint=adjoint, **own)
        knots: tuple[Tensor | None, ...] = (None, None, None)
        if own["tables_adjoint"] is not None:
            of_tables = own["tables_adjoint"][..., : packed.order].permute(2, 3, 0, 1)
            knots = (own["shift_adjoint"], own["shift_adjoint"], of_tables)
        return own["z_adjoint"], own["weights_adjoint"], *knots, *rest


def _run(
    library: ctypes.CDLL,
    packed: PackedPieces,
    spec: JetSpec,
    z: Tensor,
    squashed: Tensor | None,
    weights: Tensor,
    **outputs: Tensor | None,
) -> None:
    """Call the kernel: forward for ``y``, backward for ``y_adjoint``; outputs hold zeros."""
    chain = _packed(spec)
    n_components, n_points, channels = z.shape
    if not n_points:
        return
    shape = _Shape(
        n_points,
        channels,
        *weights.shape,
        n_components,
        spec.order,
        chain.n_pairs,
        chain.n_terms,
        squashed is not None,
        packed.general,
        *(ctypes.addressof(array) for array in (chain.terms, chain.pair_component, chain.pair_m)),
    )
    # What is read is put in order; outputs are new, and in order already.
    read = {"z": z, "weights": weights, "y_adjoint": outputs.pop("y_adjoint", None)}
    ordered = {name: None if t is None else t.contiguous() for name, t in read.items()}
    given = {**ordered, "squashed": squashed, **outputs}
    arrays = _Arrays(**{name: t.data_ptr() for name, t in given.items() if t is not None})
    function = getattr(library, f"kanpinn_spline_layer_{TYPES[z.dtype]}")
    knots = packed.structure()
    references = (ctypes.byref(each) for each in (shape, knots, arrays))
    if function(*references, packed.order):
        raise ValueError(f"the kernels know no splines of order {packed.order}")

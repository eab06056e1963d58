"""The compiled kernel's arguments, and its call."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from kanpinn.jets import JetSpec
from kanpinn.kernels.library import kernels
from kanpinn.splines import Pieces

TYPES = {torch.float64: "float64", torch.float32: "float32"}
MOST_FACTORS = 4
NO_MEMORY = 2  # what the kernels then return
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
        *((name, ctypes.c_void_p) for name in ("z", "weights", "y", "y_adjoint")),
        *((name, ctypes.c_void_p) for name in ("z_adjoint", "weights_adjoint")),
        *((name, ctypes.c_void_p) for name in ("tables_adjoint", "shift_adjoint")),
        *((name, ctypes.c_void_p) for name in ("used", "columns", "rows")),
        ("row", ctypes.c_int64),
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


READ = ("z", "weights", "y_adjoint", "columns")
OTHER_TYPES = {"used": torch.uint8, "columns": torch.int64}  # than that of the inputs


def run(
    library: ctypes.CDLL,
    packed: PackedPieces,
    spec: JetSpec,
    weights_shape: Sequence[int],
    z: Tensor,
    squash: bool,
    tensors: Mapping[str, Tensor | None],
    row: int = 0,
) -> None:
    """Call the kernel.

    Args:
        library: the kernels.
        packed: pieces of the basis.
        spec: names the components.
        weights_shape: ``(out, features)``.
        z: input jets ``(K, n, channels)``.
        squash: whether ``tanh`` stands in front of the basis.
        tensors: what else it reads and writes, by the names in ``Arrays`` of its source; what it
            writes holds zeros, or sums to add to.
        row: numbers from one row of ``rows`` to the next.

    Raises:
        ValueError: if there is no kernel of this order, or a tensor is of another type than the
            inputs, or not on the CPU.
        MemoryError: if a copy of the coefficients finds no room.
    """
    chain = _packed(spec)
    n_components, n_points, channels = z.shape
    if not n_points:
        return
    shape = _Shape(
        n_points,
        channels,
        *weights_shape,
        n_components,
        spec.order,
        chain.n_pairs,
        chain.n_terms,
        squash,
        packed.general,
        *(ctypes.addressof(array) for array in (chain.terms, chain.pair_component, chain.pair_m)),
    )
    # What is read is put in order; what is written is in order already.
    given = {"z": z, **tensors}
    present = {name: t for name, t in given.items() if t is not None}
    for name, t in present.items():
        expected = OTHER_TYPES.get(name, z.dtype)
        if t.dtype is not expected or t.device.type != "cpu":
            raise ValueError(
                f"the compiled kernel takes {name!r} as {expected} on the CPU, not as {t.dtype} on "
                f"{t.device}; a residual has the type of the networks"
            )
    ordered = {name: t.contiguous() if name in READ else t for name, t in present.items()}
    arrays = _Arrays(**{name: t.data_ptr() for name, t in ordered.items()}, row=row)
    function = getattr(library, f"kanpinn_spline_layer_{TYPES[z.dtype]}")
    knots = packed.structure()
    references = (ctypes.byref(each) for each in (shape, knots, arrays))
    code = function(*references, packed.order)
    if code == NO_MEMORY:
        raise MemoryError("the compiled kernel found no memory for a layer's coefficients")
    if code:
        raise ValueError(f"the kernels know no splines of order {packed.order}")

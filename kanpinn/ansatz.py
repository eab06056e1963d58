"""Conditions built in exactly: ``u = lift + factor N`` on a box, as formulas in the coordinates.

The factor is a product of distances to the faces with values. The lift is the Boolean sum
(transfinite interpolation) of Gordon and Hall (doi:10.1007/BF01436298), one dimension after the
other: it takes the given values on every such face, wherever they agree at edges and corners.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kanpinn.errors import ProblemError
from kanpinn.models.field_network import OutputMap


@dataclass(frozen=True)
class FaceValue:
    """Value of a field on one face of a box.

    Attributes:
        axis: coordinate the face is normal to.
        side: -1 for the lower face, +1 for the upper.
        value: formula in the coordinates.
    """

    axis: int
    side: int
    value: str


def build_ansatz(
    faces: Sequence[FaceValue],
    names: Sequence[str],
    lower: Sequence[float],
    upper: Sequence[float],
    scale: float = 1.0,
    shift: float = 0.0,
) -> OutputMap:
    """The output map that takes the faces' values exactly.

    Args:
        faces: where values are given; at most one per face.
        names: coordinates.
        lower: lower corner of the box.
        upper: upper corner.
        scale: typical size of the field, a factor of the network's output.
        shift: value the network's output is an offset to; only without faces.

    Raises:
        ProblemError: if a face is given twice.
    """
    by_face: dict[tuple[int, int], str] = {}
    for face in faces:
        if (face.axis, face.side) in by_face:
            end = "upper" if face.side > 0 else "lower"
            raise ProblemError(f"face {names[face.axis]}.{end} has two exact conditions")
        by_face[face.axis, face.side] = face.value
    lift, factor = "0.0" if faces else repr(float(shift)), repr(float(scale))
    for axis, name in enumerate(names):
        ends = {side: by_face[axis, side] for side in (-1, 1) if (axis, side) in by_face}
        if ends:
            lift = _interpolate(lift, ends, name, lower[axis], upper[axis])
            factor = f"({factor}) * {_distance(set(ends), name, lower[axis], upper[axis])}"
    return OutputMap(_simplified(lift), _simplified(factor))


def _interpolate(lift: str, ends: Mapping[int, str], name: str, lower: float, upper: float) -> str:
    """``lift + sum over faces of blend * (value - lift)``, both taken on the face."""
    result = f"({lift})"
    for side, value in ends.items():
        place = lower if side < 0 else upper
        correction = _simplified(f"({value}) - ({lift})", {name: place})
        result += f" + ({_blend(side, len(ends), name, lower, upper)}) * ({correction})"
    return result


def _blend(side: int, count: int, name: str, lower: float, upper: float) -> str:
    """Linear from 1 on this face to 0 on the opposite one; 1 if that one is free."""
    if count == 1:
        return "1.0"
    length = upper - lower
    if side < 0:
        return f"({upper!r} - {name}) / {length!r}"
    return f"({name} - {lower!r}) / {length!r}"


def _distance(sides: set[int], name: str, lower: float, upper: float) -> str:
    """Product of the distances to the faces, of size one in the middle."""
    length = upper - lower
    if sides == {-1}:
        return f"(({name} - {lower!r}) / {length!r})"
    if sides == {1}:
        return f"(({upper!r} - {name}) / {length!r})"
    return f"(({name} - {lower!r}) * ({upper!r} - {name}) / {length**2 / 4!r})"


def _simplified(formula: str, values: Mapping[str, float] | None = None) -> str:
    """Put numbers for names and fold ``0 + a``, ``a - 0``, ``0 * a`` and ``1 * a``."""
    tree = ast.parse(formula, mode="eval")
    return ast.unparse(_Fold(values or {}).visit(tree))


class _Fold(ast.NodeTransformer):
    def __init__(self, values: Mapping[str, float]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.AST:
        value = self.values.get(node.id)
        if value is None:
            return node
        # As an operator and its operand: a bare negative constant would be written without
        # brackets, and -1.0 ** 2 is -1.
        plain: ast.expr = ast.Constant(abs(value))
        return plain if value >= 0 else ast.UnaryOp(ast.USub(), plain)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.USub) and _number(node.operand) == 0:
            return node.operand
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        left, right = _number(node.left), _number(node.right)
        zero = ast.copy_location(ast.Constant(0.0), node)
        if isinstance(node.op, ast.Add):
            return node.right if left == 0 else node.left if right == 0 else node
        if isinstance(node.op, ast.Sub):
            return node.left if right == 0 else node
        if isinstance(node.op, ast.Mult):
            if 0 in (left, right):
                return zero
            return node.right if left == 1 else node.left if right == 1 else node
        if isinstance(node.op, ast.Div) and left == 0:
            return zero
        return node


def _number(node: ast.AST) -> float | None:
    value = getattr(node, "value", None)
    return value if isinstance(node, ast.Constant) and isinstance(value, int | float) else None

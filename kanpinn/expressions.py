"""Safe mathematical expressions from configs and checkpoints, such as ``cos(4*pi*x) + abs(y)``.

An expression is text that is checked against a fixed grammar and evaluated by this module alone:
no name, attribute, index, string or call outside that grammar can be written, and nothing is ever
handed to ``eval`` or ``exec``.

Grammar: numbers, variables, ``pi``, ``e``, ``+ - * / **``, brackets, the functions of
:data:`FUNCTIONS`, ``minimum(a, b)``, ``maximum(a, b)`` and ``where(condition, a, b)``. A condition
compares with ``< <= > >=`` (also ``0 < x < 1``) and combines with ``and``, ``or``, ``not``.
"""

from __future__ import annotations

import ast
import difflib
import functools
import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch

from kanpinn.errors import ExpressionError

MAX_LENGTH = 10_000
"""Longest expression, in characters."""
MAX_DEPTH = 100
"""Deepest nesting; the terms of a sum or the factors of a product count as one level."""
MAX_TERMS = 1000
"""Most terms and factors in one sum or product (Python's own parser gives up at some thousands)."""
MAX_EXPONENT = 1000
"""Largest absolute value of a constant exponent."""

CONSTANTS: Mapping[str, float] = {"pi": math.pi, "e": math.e}


def _numpy_erf(x: Any) -> Any:
    from scipy.special import erf  # when needed: few formulas have one, and it is slow to import

    return erf(x)


def _float_sign(value: float) -> float:
    return float((value > 0) - (value < 0)) if value == value else value


# name: (for floats, for numpy arrays); for everything else, torch's function of that name
FUNCTIONS: Mapping[str, tuple[Callable[[float], float], Callable[[Any], Any]]] = {
    "sin": (math.sin, np.sin),
    "cos": (math.cos, np.cos),
    "tan": (math.tan, np.tan),
    "asin": (math.asin, np.arcsin),
    "acos": (math.acos, np.arccos),
    "atan": (math.atan, np.arctan),
    "sinh": (math.sinh, np.sinh),
    "cosh": (math.cosh, np.cosh),
    "tanh": (math.tanh, np.tanh),
    "exp": (math.exp, np.exp),
    "log": (math.log, np.log),
    "sqrt": (math.sqrt, np.sqrt),
    "abs": (math.fabs, np.abs),
    "erf": (math.erf, _numpy_erf),
    "sign": (_float_sign, np.sign),
}
_ARITY: Mapping[str, int] = {
    **dict.fromkeys(FUNCTIONS, 1),
    "minimum": 2,
    "maximum": 2,
    "where": 3,
}
PIECEWISE = frozenset({"abs", "sign", "minimum", "maximum", "where"})
"""Functions made of branches, between which a value or a slope may jump."""
_CHAIN: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MIRRORED = {
    operator.lt: operator.gt,
    operator.le: operator.ge,
    operator.gt: operator.lt,
    operator.ge: operator.le,
}
_SPACES = str.maketrans("\n\r\t", "   ")
_CHARACTERS = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.,+-*/()<>=! "
)
_HINTS = {
    "^": "write ** for a power",
    "²": "write **2",
    "³": "write **3",
    "×": "write *",  # noqa: RUF001
    "·": "write *",
    "÷": "write /",
    "−": "write -",  # noqa: RUF001
    "π": "write pi",
    "√": "write sqrt",
}


# --- values: float, numpy array, or anything that torch functions and operators accept ------------
@dataclass(frozen=True)
class _Values:
    """The variables of one evaluation; ``like`` is the first one that is not a float, if any."""

    by_name: Mapping[str, Any]
    like: Any = None


def _apply(name: str, value: Any) -> Any:
    on_float, on_array = FUNCTIONS[name]
    if isinstance(value, float):
        return on_float(value)
    return on_array(value) if isinstance(value, np.ndarray) else getattr(torch, name)(value)


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, float) and isinstance(exponent, int | float):
        return math.pow(base, exponent)  # never complex: a negative root is a ValueError
    return base**exponent


def _compare(compare: Callable[[Any, Any], Any], first: Any, second: Any) -> Any:
    # A plain tensor on the left would not leave the comparison to an object on the right.
    if isinstance(first, torch.Tensor) and not isinstance(second, torch.Tensor | float):
        return _MIRRORED[compare](second, first)
    return compare(first, second)


def _not(mask: Any) -> Any:
    return not mask if isinstance(mask, bool) else ~mask


def _where(mask: Any, first: Any, second: Any, like: Any) -> Any:
    """Pick by a mask; scalars take the dtype (and, if both are scalars, the kind) of ``like``."""
    if isinstance(mask, np.ndarray):
        dtype = like.dtype if isinstance(like, np.ndarray) else float
        first, second = (
            np.asarray(v, dtype) if isinstance(v, float) else v for v in (first, second)
        )
        return np.where(mask, first, second)
    if isinstance(first, float) and isinstance(second, float):
        # Coordinates are finite, so 0 * x is an exact zero of the same kind, derivatives included.
        first = like.new_full((), first) if isinstance(like, torch.Tensor) else like * 0.0 + first
    return torch.where(mask, first, second)


def _extreme(name: str, first: Any, second: Any, like: Any) -> Any:
    """``minimum`` or ``maximum`` of two values, either of which may be a scalar."""
    pair = (first, second)
    if all(isinstance(v, float) for v in pair):
        if first != first or second != second:
            return math.nan  # as numpy and torch do
        return min(pair) if name == "minimum" else max(pair)
    if any(isinstance(v, np.ndarray) for v in pair):
        return np.minimum(first, second) if name == "minimum" else np.maximum(first, second)
    if all(isinstance(v, torch.Tensor | float) for v in pair):
        tensor = first if isinstance(first, torch.Tensor) else second
        first, second = (tensor.new_full((), v) if isinstance(v, float) else v for v in pair)
        return torch.minimum(first, second) if name == "minimum" else torch.maximum(first, second)
    compare = operator.le if name == "minimum" else operator.ge
    return _where(_compare(compare, first, second), first, second, like)


# --- checking ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Part:
    """A checked part of an expression: how to evaluate it, and what it is."""

    evaluate: Callable[[_Values], Any]
    constant: float | None = None
    is_condition: bool = False


class _Checker:
    """Turns Python's syntax tree into a checked part, refusing everything not in the grammar."""

    def __init__(self, source: str, allowed: Sequence[str]) -> None:
        self.source = source
        self.allowed = tuple(allowed)
        self.used: set[str] = set()
        self.functions: set[str] = set()
        self.start = len(source) - len(source.lstrip())

    def parse(self) -> _Part:
        """Check and fold the whole expression."""
        self._check_text()
        text = self.source.translate(_SPACES).lstrip()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # style warnings about the user's literals
                tree = ast.parse(text, mode="eval")
            return self.number(tree.body, 0)
        except SyntaxError as error:
            # Only the first part of the message: the rest may advise on Python's own settings.
            self.refuse(f"cannot be read: {error.msg.split(';')[0]}", (error.offset or 1) - 1)
        except (ValueError, OverflowError) as error:
            self.refuse(f"cannot be read: {error}")
        except (RecursionError, MemoryError):
            self.refuse(
                f"is too long or nested too deeply; at most {MAX_TERMS} terms, {MAX_DEPTH} levels"
            )

    def refuse(self, problem: str, column: int | None = None) -> NoReturn:
        """Raise the error, with a position counted from 1."""
        text = self.source if len(self.source) <= 60 else self.source[:57] + "..."
        at = "" if column is None else f" (position {column + self.start + 1})"
        raise ExpressionError(f"expression {text!r}: {problem}{at}")

    def _check_text(self) -> None:
        if len(self.source) > MAX_LENGTH:
            self.refuse(f"has {len(self.source)} characters; at most {MAX_LENGTH}")
        if not self.source.strip():
            self.refuse("is empty; " + self._known())
        depth = 0
        for column, character in enumerate(self.source.translate(_SPACES), -self.start):
            if character not in _CHARACTERS:
                hint = _HINTS.get(character, "only mathematics in plain ASCII letters is allowed")
                self.refuse(f"has the forbidden character {character!r}; {hint}", column)
            depth += (character == "(") - (character == ")")
            if depth > MAX_DEPTH:
                self.refuse(f"is nested too deeply; at most {MAX_DEPTH} levels", column)

    def _known(self) -> str:
        return (
            f"variables: {', '.join(self.allowed) or 'none'}; constants: {', '.join(CONSTANTS)}; "
            f"functions: {', '.join(_ARITY)}"
        )

    def _unknown(self, kind: str, name: str, candidates: Sequence[str], column: int) -> NoReturn:
        by_folded = {candidate.casefold(): candidate for candidate in candidates}
        near = difflib.get_close_matches(name.casefold(), by_folded, n=1)
        hint = f"did you mean {by_folded[near[0]]!r}? " if near else ""
        self.refuse(f"unknown {kind} {name!r}; {hint}{self._known()}", column)

    # --- nodes ---------------------------------------------------------------------------------
    def number(self, node: ast.expr, depth: int) -> _Part:
        """Check a node that must be a number."""
        part = self._part(node, depth)
        if part.is_condition:
            self.refuse(
                "has a condition where a number is needed; use where(condition, a, b)",
                node.col_offset,
            )
        return part

    def condition(self, node: ast.expr, depth: int) -> _Part:
        """Check a node that must be a condition."""
        part = self._part(node, depth)
        if not part.is_condition:
            self.refuse("needs a condition such as x < 0 here", node.col_offset)
        return part

    def _part(self, node: ast.expr, depth: int) -> _Part:
        if depth > MAX_DEPTH:
            self.refuse(f"is nested too deeply; at most {MAX_DEPTH} levels", node.col_offset)
        match node:
            case ast.Constant():
                return self._literal(node)
            case ast.Name():
                return self._name(node)
            case ast.BinOp(op=ast.Pow()):
                return self._raise(node, depth + 1)
            case ast.BinOp():
                return self._chain(node, depth + 1)
            case ast.UnaryOp(op=ast.USub()):
                part = self.number(node.operand, depth + 1)
                return self._fold(lambda values: -part.evaluate(values), [part], node)
            case ast.UnaryOp(op=ast.UAdd()):
                return self.number(node.operand, depth + 1)
            case ast.UnaryOp(op=ast.Not()):
                mask = self.condition(node.operand, depth + 1)
                return _Part(lambda values: _not(mask.evaluate(values)), is_condition=True)
            case ast.BoolOp():
                return self._logical(node, depth + 1)
            case ast.Compare():
                return self._comparison(node, depth + 1)
            case ast.Call():
                return self._call(node, depth + 1)
        is_if = isinstance(node, ast.IfExp)
        what = "if (write where(condition, a, b))" if is_if else type(node).__name__
        self.refuse(f"contains something that is not allowed: {what}", node.col_offset)

    def _fold(
        self, evaluate: Callable[[_Values], Any], parts: Sequence[_Part], origin: ast.expr
    ) -> _Part:
        """A part made of others, evaluated here and now where all of them are constant."""
        if any(part.constant is None for part in parts):
            return _Part(evaluate)
        try:
            value = evaluate(_Values({}))
        except (ArithmeticError, ValueError):
            value = math.nan
        return self._constant(value, origin)

    def _constant(self, value: float, origin: ast.expr) -> _Part:
        if not math.isfinite(value):
            self.refuse(
                "has a constant that is not a finite number within float64", origin.col_offset
            )
        return _Part(lambda values: value, constant=value)

    def _literal(self, node: ast.Constant) -> _Part:
        if type(node.value) not in (int, float):
            self.refuse(f"contains {node.value!r}, which is not a real number", node.col_offset)
        try:
            return self._constant(float(node.value), node)  # type: ignore[arg-type]
        except OverflowError:
            return self._constant(math.inf, node)

    def _name(self, node: ast.Name) -> _Part:
        name = node.id
        if name in self.allowed:  # first, so that a variable called e hides the constant
            self.used.add(name)
            return _Part(lambda values: values.by_name[name])
        if name in CONSTANTS:
            return self._constant(CONSTANTS[name], node)
        if name in _ARITY:
            self.refuse(f"the function {name!r} needs arguments in brackets", node.col_offset)
        self._unknown("name", name, [*self.allowed, *CONSTANTS, *_ARITY], node.col_offset)

    def _raise(self, node: ast.BinOp, depth: int) -> _Part:
        base, power = self.number(node.left, depth), self.number(node.right, depth)
        constant = power.constant
        if constant is None:
            return _Part(lambda values: _power(base.evaluate(values), power.evaluate(values)))
        if abs(constant) > MAX_EXPONENT:
            self.refuse(
                f"has the exponent {constant:g}; at most {MAX_EXPONENT}", node.right.col_offset
            )
        # A whole exponent is an int, so that the derivatives of x**2 are exact.
        exponent = int(constant) if constant.is_integer() else constant
        return self._fold(lambda values: _power(base.evaluate(values), exponent), [base], node)

    def _chain(self, node: ast.BinOp, depth: int) -> _Part:
        """Sums and products ``a op b op c ...``, in a loop so that long ones do not nest."""
        spine, left = [node], node.left
        while isinstance(left, ast.BinOp) and not isinstance(left.op, ast.Pow):
            spine.append(left)
            left = left.left
        if len(spine) >= MAX_TERMS:
            self.refuse(f"has {len(spine) + 1} terms in one sum or product; at most {MAX_TERMS}")
        first = self.number(left, depth)
        rest: list[tuple[Callable[[Any, Any], Any], _Part]] = []
        for link in reversed(spine):
            apply = _CHAIN.get(type(link.op))
            if apply is None:
                self.refuse(
                    f"uses an operator that is not allowed ({type(link.op).__name__}); "
                    "allowed: + - * / **",
                    link.right.col_offset,
                )
            operand = self.number(link.right, depth)
            if rest or first.constant is None or operand.constant is None:
                rest.append((apply, operand))
            else:  # leading constants, as in 4*pi*x
                first = self._fold(_chained(first, [(apply, operand)]), [first, operand], link)
        return _Part(_chained(first, rest)) if rest else first

    def _logical(self, node: ast.BoolOp, depth: int) -> _Part:
        combine = operator.and_ if isinstance(node.op, ast.And) else operator.or_
        first, *rest = [self.condition(value, depth) for value in node.values]
        return _Part(_chained(first, [(combine, part) for part in rest]), is_condition=True)

    def _comparison(self, node: ast.Compare, depth: int) -> _Part:
        for op in node.ops:
            if type(op) not in _COMPARE:
                self.refuse(
                    f"uses a comparison that is not allowed ({type(op).__name__}); "
                    "allowed: < <= > >=",
                    node.col_offset,
                )
        compares = [_COMPARE[type(op)] for op in node.ops]
        parts = [self.number(part, depth) for part in (node.left, *node.comparators)]

        def evaluate(values: _Values) -> Any:
            known = [part.evaluate(values) for part in parts]
            masks = map(_compare, compares, known[:-1], known[1:])
            return functools.reduce(operator.and_, masks)

        return _Part(evaluate, is_condition=True)

    def _call(self, node: ast.Call, depth: int) -> _Part:
        if not isinstance(node.func, ast.Name):
            self.refuse(
                "calls something that is not a function's name (a product needs *)",
                node.col_offset,
            )
        name, arguments = node.func.id, node.args
        if name not in _ARITY:
            if name in self.allowed or name in CONSTANTS:
                self.refuse(f"{name!r} is not a function (a product needs *)", node.col_offset)
            self._unknown("function", name, list(_ARITY), node.col_offset)
        self.functions.add(name)
        if node.keywords or len(arguments) != _ARITY[name]:
            self.refuse(
                f"{name!r} takes {_ARITY[name]} argument(s) and no keywords", node.col_offset
            )
        if name == "where":
            return self._where(arguments, depth)
        parts = [self.number(part, depth) for part in arguments]

        def evaluate(values: _Values) -> Any:
            known = [part.evaluate(values) for part in parts]
            if len(known) == 1:
                return _apply(name, known[0])
            return _extreme(name, known[0], known[1], values.like)

        return self._fold(evaluate, parts, node)

    def _where(self, arguments: Sequence[ast.expr], depth: int) -> _Part:
        condition = self.condition(arguments[0], depth)
        first, second = (self.number(part, depth) for part in arguments[1:])

        def evaluate(values: _Values) -> Any:
            mask = condition.evaluate(values)
            if isinstance(mask, bool):  # floats: the branch not taken may not even be defined
                return (first if mask else second).evaluate(values)
            return _where(mask, first.evaluate(values), second.evaluate(values), values.like)

        return _Part(evaluate)


def _chained(
    first: _Part, rest: Sequence[tuple[Callable[[Any, Any], Any], _Part]]
) -> Callable[[_Values], Any]:
    def evaluate(values: _Values) -> Any:
        total = first.evaluate(values)
        for apply, part in rest:
            total = apply(total, part.evaluate(values))
        return total

    return evaluate


@dataclass(frozen=True)
class Expression:
    """A checked mathematical expression; make one with :meth:`parse`.

    Attributes:
        source: the text.
        variables: the names it uses, in the order in which they were allowed.
        piecewise: whether it uses a function of :data:`PIECEWISE`, so that it may kink or jump.
    """

    source: str
    variables: tuple[str, ...]
    _root: _Part = field(repr=False, compare=False)
    piecewise: bool = field(default=False, compare=False)

    @classmethod
    def parse(cls, source: str | float | int, allowed: Sequence[str]) -> Expression:
        """Check an expression and prepare it for evaluation.

        Args:
            source: the text, or a number.
            allowed: names of the variables it may use; one called ``e`` or ``pi`` hides the
                constant.

        Raises:
            ExpressionError: naming the expression, what is wrong and where, and what is allowed.
        """
        if isinstance(source, bool) or not isinstance(source, str | float | int):
            raise ExpressionError(
                f"expression {source!r}: must be text or a number, not {type(source).__name__}"
            )
        text = source if isinstance(source, str) else _number_text(source)
        checker = _Checker(text, allowed)
        root = checker.parse()
        variables = tuple(name for name in allowed if name in checker.used)
        return cls(text, variables, root, not checker.functions.isdisjoint(PIECEWISE))

    def __call__(self, /, **values: Any) -> Any:
        """Evaluate at the given variables (others are ignored).

        Values are floats, numpy arrays (those without dimensions count as floats), or tensors and
        other objects with operators and torch functions (jets). Shapes broadcast; whole-number
        arrays become float64. The result is of the same kind; a constant expression returns a
        float, for the caller to broadcast. Where the expression is not defined, arrays and tensors
        hold NaN or infinity.

        Raises:
            ExpressionError: a variable is missing, kinds are mixed, or the expression is not
                defined at these floats.
        """
        missing = [name for name in self.variables if name not in values]
        if missing:
            raise ExpressionError(
                f"expression {self.source!r}: no value for {', '.join(missing)}; "
                f"needs {', '.join(self.variables)}"
            )
        by_name = {name: _as_value(values[name]) for name in self.variables}
        objects = [value for value in by_name.values() if not isinstance(value, float)]
        n_arrays = sum(isinstance(value, np.ndarray) for value in objects)
        if n_arrays not in (0, len(objects)):
            raise ExpressionError(
                f"expression {self.source!r}: numpy arrays and tensors cannot be mixed"
            )
        try:
            with np.errstate(all="ignore"):  # as torch: NaN in the result, no warnings
                return self._root.evaluate(_Values(by_name, objects[0] if objects else None))
        except (ArithmeticError, ValueError) as error:
            at = ", ".join(f"{name} = {_shown(value)}" for name, value in by_name.items())
            raise ExpressionError(
                f"expression {self.source!r} cannot be evaluated at {at}: {error}"
            ) from error

    def __str__(self) -> str:
        return self.source

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles carry the text alone, which is checked again."""
        return Expression.parse, (self.source, self.variables)


def _number_text(number: float | int) -> str:
    try:
        finite = math.isfinite(number)
    except OverflowError:
        finite = False
    if not finite:
        shown = repr(number) if isinstance(number, float) else "a whole number"
        raise ExpressionError(f"expression {shown}: must be finite and within float64")
    return repr(number)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    return f"{type(value).__name__} {tuple(getattr(value, 'shape', ()))}"


def _as_value(value: Any) -> Any:
    # An array without dimensions is a float too: numpy turns it into one at the first operation.
    if isinstance(value, int | float | np.generic | np.ndarray) and np.ndim(value) == 0:
        return float(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biu":
        return value.astype(np.float64)
    if isinstance(value, torch.Tensor) and not value.is_floating_point():
        return value.to(torch.float64)
    return value

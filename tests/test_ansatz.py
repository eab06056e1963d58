"""The ansatz u = lift + factor N: exact values on faces, whatever the network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kanpinn.ansatz import FaceValue, build_ansatz
from kanpinn.errors import ProblemError
from kanpinn.expressions import Expression
from kanpinn.jets import Jet, JetSpec
from kanpinn.models import FieldNetwork, Inputs, KANOptions, OutputMap, build_network

BOXES: dict[str, tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]] = {
    "1d": (("x",), (-1.0,), (1.0,)),
    "1d off centre": (("x",), (-3.0,), (-0.7,)),
    "2d": (("x", "y"), (-1.0, -2.0), (1.0, 0.5)),
    "2d at zero": (("x", "y"), (0.0, 0.0), (1.0, 1.0)),
    "3d": (("x", "y", "z"), (-1.0, 0.25, -4.0), (1.0, 2.0, -1.5)),
    "space-time": (("x", "t"), (-1.0, 0.0), (1.0, 3.0)),
    "small": (("x", "y"), (-1e-5, -1e5), (2e-5, 3e5)),
}
# Powers and differences of a coordinate that is a negative number on a face are the trap.
FORMULAS = {
    "x": ["2.5", "-x**2 + 1", "sin(3*x) - x**3", "exp(-x**2)/(2 + x**2)", "1 - (x - 2)**2 - -x"],
    "xy": [
        "x**2 - y**2",
        "sin(x)*cos(y) - x**3*y",
        "exp(-(x - y)**2) + 2**-x",
        "where(x < y, x, y)",
        "-(x + y)**3/4 - abs(x*y)",
    ],
    "xyz": ["x**2*y - z**3", "sin(x - y)*exp(-z**2/9)", "x - y - z - (x - (y - z))**2"],
    "xt": ["-sin(3.14159*x)*(1 + t)", "x**2*cos(t) - t**2", "exp(-t)*x - (x - t)**2"],
}


def faces_of(names: Sequence[str]) -> list[tuple[int, int]]:
    return [(axis, side) for axis in range(len(names)) for side in (-1, 1)]


def cases() -> list[tuple[str, str, tuple[tuple[int, int], ...]]]:
    """Every box and formula with all faces, with each single one, and with two subsets."""
    found = []
    for box, (names, _, _) in BOXES.items():
        faces = faces_of(names)
        subsets = [tuple(faces), *((face,) for face in faces), tuple(faces[1:]), tuple(faces[:-1])]
        for formula, subset in itertools.product(FORMULAS["".join(names)], set(subsets)):
            if subset:
                found.append((box, formula, subset))
    return sorted(found)


def random_points(box: str, n: int = 60, seed: int = 0) -> Tensor:
    _, lower, upper = BOXES[box]
    u = torch.rand(
        n, len(lower), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    low, high = (torch.tensor(ends, dtype=torch.float64) for ends in (lower, upper))
    return low + (high - low) * u


def on_face(box: str, axis: int, side: int) -> Tensor:
    _, lower, upper = BOXES[box]
    x = random_points(box, seed=axis + side)
    x[:, axis] = lower[axis] if side < 0 else upper[axis]
    return x


def evaluate(formula: str | float, names: Sequence[str], x: Tensor) -> Tensor:
    value = Expression.parse(formula, names)(**dict(zip(names, x.unbind(-1), strict=True)))
    return torch.as_tensor(value, dtype=torch.float64).expand(len(x))


def network_with(box: str, output: OutputMap) -> FieldNetwork:
    names, lower, upper = BOXES[box]
    inputs = Inputs.coordinates(names, tuple(zip(lower, upper, strict=True)))
    network = build_network(
        KANOptions(width=3, order=5), len(names), 1, torch.Generator().manual_seed(1)
    )
    return FieldNetwork(("u",), inputs, network, (output,))


@pytest.mark.parametrize(("box", "formula", "faces"), cases())
def test_exact_on_faces_whatever_the_network(
    box: str, formula: str, faces: tuple[tuple[int, int], ...]
) -> None:
    names, lower, upper = BOXES[box]
    given = [FaceValue(axis, side, formula) for axis, side in faces]
    part = network_with(box, build_ansatz(given, names, lower, upper, scale=7.0))
    for axis, side in faces:
        x = on_face(box, axis, side)
        exact = evaluate(formula, names, x)
        with torch.no_grad():
            found = part(x)[:, 0]
        scale = max(1.0, float(exact.abs().max()))
        assert float((found - exact).abs().max()) <= 1e-13 * scale


@pytest.mark.parametrize(("box", "faces"), sorted({(b, f) for b, _, f in cases()}))
def test_factor_vanishes_on_faces_alone(box: str, faces: tuple[tuple[int, int], ...]) -> None:
    names, lower, upper = BOXES[box]
    given = [FaceValue(axis, side, "0.0") for axis, side in faces]
    output = build_ansatz(given, names, lower, upper, scale=3.0)
    assert output.lift == "0.0"
    for axis, side in faces_of(names):
        values = evaluate(output.factor, names, on_face(box, axis, side))
        if (axis, side) in faces:
            assert not values.any()  # exactly zero
        elif all(a != axis for a, _ in faces):
            assert (values > 0).any()
    inside = evaluate(output.factor, names, random_points(box, 400))
    assert (inside > 0).all()
    assert 0.3 < float(inside.max()) <= 3.0 * (1 + 1e-12)  # of the size of the field


@pytest.mark.parametrize("box", ["2d", "3d"])
def test_different_formulas_that_agree_at_edges(box: str) -> None:
    """Each face has a formula of its own; they meet where faces do."""
    names, lower, upper = BOXES[box]
    common = FORMULAS["".join(names)][0]
    given = []
    for k, (axis, side) in enumerate(faces_of(names), 1):
        bubble = " * ".join(
            f"({name} - ({lower[a]!r})) * ({name} - ({upper[a]!r}))"
            for a, name in enumerate(names)
            if a != axis
        )
        given.append(FaceValue(axis, side, f"{common} + {k} * {bubble}"))
    part = network_with(box, build_ansatz(given, names, lower, upper))
    for face in given:
        x = on_face(box, face.axis, face.side)
        exact = evaluate(face.value, names, x)
        with torch.no_grad():
            found = part(x)[:, 0]
        assert float((found - exact).abs().max()) <= 1e-12 * float(exact.abs().max())


def test_derivatives_along_faces_are_exact_too() -> None:
    names, lower, upper = BOXES["2d"]
    formula = "x**3 - y**2*x"
    given = [FaceValue(axis, side, formula) for axis, side in faces_of(names)]
    part = network_with("2d", build_ansatz(given, names, lower, upper))
    x, spec = on_face("2d", 0, -1), JetSpec.closure(2, [(0, 2)])
    with torch.no_grad():
        jet = Jet(spec, part.jet(part.prepare(x, spec)).data[..., 0])
    torch.testing.assert_close(
        jet.component((0, 1)), -2 * x[:, 1] * x[:, 0], rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(jet.component((0, 2)), -2 * x[:, 0], rtol=1e-12, atol=1e-12)


def test_without_faces_there_is_scale_and_shift() -> None:
    names, lower, upper = BOXES["2d"]
    plain = network_with("2d", OutputMap())
    scaled = network_with("2d", build_ansatz([], names, lower, upper, scale=2.5, shift=-4.0))
    x = random_points("2d")
    with torch.no_grad():
        torch.testing.assert_close(scaled(x), 2.5 * plain(x) - 4.0, rtol=1e-14, atol=1e-14)


def test_scale_multiplies_the_network_alone() -> None:
    names, lower, upper = BOXES["2d"]
    given = [FaceValue(0, -1, "y**2")]
    one, three = (
        network_with("2d", build_ansatz(given, names, lower, upper, scale=s)) for s in (1.0, 3.0)
    )
    x = random_points("2d")
    lift = x[:, 1:] ** 2
    with torch.no_grad():
        torch.testing.assert_close(three(x) - lift, 3 * (one(x) - lift), rtol=1e-12, atol=1e-12)


def test_neutral_parts_cost_nothing() -> None:
    names, lower, upper = BOXES["2d"]
    part = network_with("2d", build_ansatz([], names, lower, upper))
    prepared = part.prepare(random_points("2d"), JetSpec.value_only(2))
    assert prepared.lift is None and prepared.factor is None
    zeros = [FaceValue(axis, side, "0") for axis, side in faces_of(names)]
    part = network_with("2d", build_ansatz(zeros, names, lower, upper))
    prepared = part.prepare(random_points("2d"), JetSpec.value_only(2))
    assert prepared.lift is None and prepared.factor is not None


def test_a_face_has_one_condition() -> None:
    names, lower, upper = BOXES["2d"]
    given = [FaceValue(1, 1, "0"), FaceValue(1, 1, "1")]
    with pytest.raises(ProblemError, match=r"face y\.upper has two exact conditions"):
        build_ansatz(given, names, lower, upper)


def test_formulas_stay_within_the_grammar() -> None:
    """A long value on all six faces of a cube, as a manufactured solution gives it."""
    names, lower, upper = BOXES["3d"]
    value = " * ".join(f"sin(3.141592653589793 * ({name} - 0.3333333333333333))" for name in names)
    given = [FaceValue(axis, side, value) for axis, side in faces_of(names)]
    output = build_ansatz(given, names, lower, upper)
    Expression.parse(output.lift, names)
    Expression.parse(output.factor, names)

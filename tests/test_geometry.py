"""Points, regions and boxes: membership, normals, sides, measures, names and every error."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, qmc
from torch import Tensor

from kanpinn.errors import DomainError, ProblemError
from kanpinn.geometry import (
    INTERFACE_GAP,
    Box,
    Face,
    FixedPoints,
    Interface,
    PeriodicPair,
    Points,
    Region,
    RegionUnion,
    neighbour_order,
)

BOXES = {
    "interval": Box((-1.0,), (3.0,)),
    "rectangle": Box((-1.0, 0.0), (2.0, 0.5)),
    "block": Box((0.0, -2.0, 1.0), (1.0, 2.0, 7.0)),
    "space-time 1+1": Box((-1.0, 0.0), (1.0, 4.0), time="t"),
    "space-time 2+1": Box((0.0, 0.0, 0.0), (1.0, 2.0, 3.0), time="t"),
    "time only": Box((0.0,), (2.0,), time="t"),
    "cut": Box((-1.0, -1.0), (1.0, 1.0), interfaces={"x": (0.0, 0.5), "y": (-0.25,)}),
}


@pytest.fixture(params=list(BOXES))
def box(request: pytest.FixtureRequest) -> Box:
    return BOXES[request.param]


def uniform(n: int, m: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((n, m)))


# ------------------------------------------------------------------------------------ points


def some_points(n: int = 5, side: bool = True) -> Points:
    x = uniform(n, 2)
    sides = torch.ones(n, dtype=torch.int8) if side else None
    data = {"u": x.sum(1), "label": torch.arange(n)}
    return Points(x, torch.nn.functional.normalize(x), sides, data)


def test_points_select_the_same_rows_of_every_column() -> None:
    points = some_points()
    index = torch.tensor([4, 0])
    mask = torch.tensor([True, False, False, True, False])
    for selection, expected in ((slice(1, 3), [1, 2]), (index, [4, 0]), (mask, [0, 3])):
        part = points.rows(selection)
        assert len(part) == 2
        assert part.data["label"].tolist() == expected
        assert torch.equal(part.x, points.x[expected])
        assert part.normal is not None and points.normal is not None
        assert torch.equal(part.normal, points.normal[expected])
        assert part.side is not None and len(part.side) == 2


def test_points_cast_floats_and_keep_integers() -> None:
    points = some_points().to(torch.float32, "cpu")
    assert points.x.dtype == points.data["u"].dtype == torch.float32
    assert points.normal is not None and points.normal.dtype == torch.float32
    assert points.side is not None and points.side.dtype == torch.int8
    assert points.data["label"].dtype == torch.int64
    assert points.to(device="cpu").x.dtype == torch.float32


def test_points_take_numpy_arrays() -> None:
    """As tensors of the same numbers; later changes of the array do not reach them."""
    x = np.arange(6.0).reshape(3, 2)[::-1]
    arrays: Any = {"x": x, "normal": -x, "side": np.array([-1, 0, 1]), "data": {"u": x[:, 0]}}
    points = Points(**arrays)
    expected = torch.tensor([[4.0, 5.0], [2.0, 3.0], [0.0, 1.0]], dtype=torch.float64)
    x[:] = 7.0
    assert torch.equal(points.x, expected)
    assert points.normal is not None and torch.equal(points.normal, -expected)
    assert points.side is not None and points.side.tolist() == [-1, 0, 1]
    assert torch.equal(points.data["u"], expected[:, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": [[0.0]]}, "x: found list, allowed: a tensor or a NumPy array"),
        ({"x": None}, "x: found NoneType"),
        ({"x": np.zeros(1)}, r"have the shape \(n, d\), found torch.float64 of shape \(1,\)"),
        ({"x": np.array([["a"]])}, "x: found array of <U1"),
        ({"data": {"u": [1.0]}}, "data column 'u': found list"),
        ({"data": {"u": np.zeros((1, 1))}}, r"'u' has shape \(1, 1\), allowed: \(1,\)"),
    ],
)
def test_points_of_other_things(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DomainError, match=message):
        Points(**{"x": np.zeros((1, 1)), **change})


def test_points_join_with_missing_sides_as_zero() -> None:
    joined = Points.cat([some_points(2, side=False), some_points(3, side=True)])
    assert joined.side is not None and joined.side.tolist() == [0, 0, 1, 1, 1]
    assert joined.data["label"].tolist() == [0, 1, 0, 1, 2]
    assert Points.cat([Points(uniform(2, 1)), Points(uniform(1, 1))]).side is None


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([], "nothing to join"),
        ([Points(torch.zeros(1, 2)), Points(torch.zeros(1, 2), torch.ones(1, 2))], "1 of 2 pieces"),
        ([Points(torch.zeros(1, 2)), Points(torch.zeros(1, 3))], r"dimensions \[2, 3\]"),
        (
            [Points(torch.zeros(1, 2), data={"u": torch.zeros(1)}), Points(torch.zeros(1, 2))],
            r"data columns \['u'\]; \[\]",
        ),
    ],
)
def test_points_that_do_not_join(pieces: list[Points], message: str) -> None:
    with pytest.raises(DomainError, match=message):
        Points.cat(pieces)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": torch.zeros(3)}, r"shape \(n, d\), found torch.float32 of shape \(3,\)"),
        ({"x": torch.zeros(3, 2, dtype=torch.int64)}, "floating-point"),
        ({"x": torch.zeros(3, 2), "normal": torch.zeros(3, 1)}, r"normal has shape \(3, 1\)"),
        ({"x": torch.zeros(3, 2), "side": torch.zeros(2)}, r"side has shape \(2,\)"),
        ({"x": torch.zeros(3, 2), "data": {"u": torch.zeros(3, 1)}}, "data column 'u' has shape"),
    ],
)
def test_points_of_wrong_shape(columns: dict[str, Tensor], message: str) -> None:
    with pytest.raises(DomainError, match=message):
        Points(**columns)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------- all regions


def test_every_region_of_every_box(box: Box) -> None:
    for name in box.region_names():
        region = box.region(name)
        assert region.name == name
        unit = torch.cat(
            [uniform(50, region.unit_dimension), torch.zeros(1, region.unit_dimension)]
        )
        unit = torch.cat([unit, torch.ones(1, region.unit_dimension)])
        sites = region.place(unit)
        assert len(sites) == region.n_sites
        for points in sites:
            assert points.x.shape == (52, box.dimension) and points.x.dtype == torch.float64
            box.check(points.x)
            assert bool(box.contains(points.x, tolerance=0.0).all())
            if region.kind == "interior":
                assert points.normal is None and points.side is None
            else:
                assert points.normal is not None
                norms = torch.linalg.vector_norm(points.normal, dim=1)
                assert torch.equal(norms, torch.ones(52, dtype=torch.float64))


def test_region_maps_each_row_on_its_own(box: Box) -> None:
    """So that chunks and any thread count give the same numbers."""
    for name in box.region_names():
        region = box.region(name)
        unit = uniform(33, region.unit_dimension, seed=1)
        whole = region.place(unit)
        pieces = [region.place(unit[start : start + 7]) for start in range(0, 33, 7)]
        for site in range(region.n_sites):
            parts = Points.cat([piece[site] for piece in pieces])
            assert torch.equal(parts.x, whole[site].x)


def test_face_normals_point_outwards(box: Box) -> None:
    names = [name for name in box.region_names() if name.endswith((".lower", ".upper"))]
    names += ["initial", "final"] if box.time else []
    assert len(names) == 2 * box.dimension
    for name in names:
        face = box.region(name)
        assert isinstance(face, Face)
        (points,) = face.place(uniform(20, face.unit_dimension))
        assert points.normal is not None
        assert not box.contains(points.x + 1e-9 * points.normal, tolerance=0.0).any()
        assert box.contains(points.x - 1e-9 * points.normal, tolerance=0.0).all()
        assert face.kind == ("initial" if name in ("initial", "final") else "boundary")


def test_measures() -> None:
    block = BOXES["block"]  # 1 x 4 x 6
    assert block.interior().measure == 24.0
    assert block.boundary().measure == 2 * (4 * 6 + 1 * 6 + 1 * 4)
    assert block.region("y.lower").measure == 6.0
    space_time = BOXES["space-time 2+1"]  # 1 x 2 x 3
    assert space_time.boundary().measure == 2 * (2 * 3 + 1 * 3)
    assert space_time.region("initial").measure == 2.0
    assert BOXES["interval"].boundary().measure == 2.0  # two points, counted


@pytest.mark.parametrize("name", ["rectangle", "block", "space-time 1+1", "space-time 2+1"])
def test_boundary_counts_are_proportional_to_area_and_uniform(name: str) -> None:
    box = BOXES[name]
    boundary = box.boundary()
    n = 4000
    (points,) = boundary.place(uniform(n, boundary.unit_dimension, seed=3))
    observed, expected = [], []
    for face in boundary.parts:
        assert isinstance(face, Face)
        at = (box.lower if face.side < 0 else box.upper)[face.axis]
        assert points.normal is not None
        mask = (points.x[:, face.axis] == at) & (points.normal[:, face.axis] == face.side)
        observed.append(int(mask.sum()))
        expected.append(n * face.measure / boundary.measure)
        for axis in face.others:
            low, high = box.lower[axis], box.upper[axis]
            column = (points.x[mask, axis] - low) / (high - low)
            assert kstest(column.numpy(), "uniform").pvalue > 1e-3
    assert sum(observed) == n
    assert chisquare(observed, expected).pvalue > 1e-3
    assert box.time is None or not (points.x[:, -1] == box.lower[-1]).any()


def test_boundary_shares_of_an_even_sequence_are_exact() -> None:
    box = BOXES["rectangle"]  # faces of lengths 0.5, 0.5, 3, 3
    unit = torch.arange(700, dtype=torch.float64)[:, None] / 700 + 0.5 / 700
    (points,) = box.boundary().place(unit)
    assert points.normal is not None
    counts = Counter(tuple(normal) for normal in points.normal.tolist())
    assert counts == {(-1.0, 0.0): 50, (1.0, 0.0): 50, (0.0, -1.0): 300, (0.0, 1.0): 300}


def test_boundary_of_an_interval_is_its_two_ends() -> None:
    boundary = BOXES["interval"].boundary()
    assert boundary.n_distinct == 2 and boundary.unit_dimension == 1
    (points,) = boundary.place(torch.tensor([[0.25], [0.75], [0.0], [1.0]], dtype=torch.float64))
    assert points.x.flatten().tolist() == [-1.0, 3.0, -1.0, 3.0]
    assert points.normal is not None
    assert points.normal.flatten().tolist() == [-1.0, 1.0, -1.0, 1.0]


def test_ends_of_the_unit_interval_reach_the_bounds_exactly() -> None:
    box = Box((-0.9, -0.9), (-0.2, -0.3))  # low + (high - low) falls short, and past
    (points,) = box.interior().place(torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64))
    assert points.x.tolist() == [list(box.lower), list(box.upper)]
    last = torch.full((1, 2), 1 - 2**-53, dtype=torch.float64)
    (points,) = box.interior().place(last)
    assert bool(box.contains(points.x, tolerance=0.0).all())


def test_interior_keeps_the_low_discrepancy_of_its_unit_points() -> None:
    box = BOXES["rectangle"]
    unit = torch.from_numpy(qmc.Sobol(2, rng=np.random.default_rng(0)).random(256))
    (points,) = box.interior().place(unit)
    back = qmc.scale(points.x.numpy(), box.lower, box.upper, reverse=True)
    assert np.abs(back - unit.numpy()).max() < 1e-15


def test_periodic_pairs_are_opposite(box: Box) -> None:
    for axis, name in enumerate(box.names):
        pair = box.region(f"{name}.periodic")
        assert isinstance(pair, PeriodicPair) and pair.kind == "boundary"
        low, high = pair.place(uniform(30, pair.unit_dimension))
        others = [other for other in range(box.dimension) if other != axis]
        assert torch.equal(low.x[:, others], high.x[:, others])
        assert set(low.x[:, axis].tolist()) == {box.lower[axis]}
        assert set(high.x[:, axis].tolist()) == {box.upper[axis]}
        assert low.normal is not None and high.normal is not None
        assert torch.equal(low.normal, -high.normal)


def test_interface_has_two_sides_at_one_place() -> None:
    box = BOXES["cut"]
    region = box.region("x=0.5")
    assert isinstance(region, Interface) and region.kind == "interface"
    minus, plus = region.place(uniform(30, 1))
    assert torch.equal(minus.x, plus.x)
    assert set(minus.x[:, 0].tolist()) == {0.5}
    assert minus.side is not None and set(minus.side.tolist()) == {-1}
    assert plus.side is not None and set(plus.side.tolist()) == {1}
    for points in (minus, plus):
        assert points.normal is not None
        assert torch.equal(points.normal, torch.tensor([[1.0, 0.0]]).double().expand(30, 2))


def test_all_interfaces_as_one_region() -> None:
    box = BOXES["cut"]
    region = box.region("interfaces")
    assert region.n_sites == 2 and region.measure == 6.0
    minus, plus = region.place((torch.arange(30).double()[:, None] + 0.5) / 30)
    assert torch.equal(minus.x, plus.x)
    on = [("x", 0.0), ("x", 0.5), ("y", -0.25)]
    assert [int((minus.x[:, box.names.index(n)] == at).sum()) for n, at in on] == [10, 10, 10]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("region", ["interior", "boundary", "y.upper", "y.periodic", "y=1000.5"])
def test_no_other_point_falls_on_an_interface(region: str, dtype: torch.dtype) -> None:
    box = Box((-1.0, 1000.0), (1.0, 1001.0), interfaces={"x": (0.0,), "y": (1000.5,)})
    place = box.region(region)
    steps = torch.linspace(0.0, 1.0, 41, dtype=torch.float64)
    unit = torch.cartesian_prod(*place.unit_dimension * [steps]).reshape(-1, place.unit_dimension)
    near = unit.clone() + 1e-9
    for points in (*place.place(unit), *place.place(near.clamp(max=1.0))):
        x = points.to(dtype).x
        moved = (x[:, 0] != 0.0).all()
        assert bool(moved)
        assert region == "y=1000.5" or bool((x[:, 1] != 1000.5).all())
    (points, *_) = place.place(unit)
    if "y" in region:  # at unit = 0.5 it was moved to the plus side, by the stated gap
        middle = float(points.x[20, 0])
        assert middle == pytest.approx(2 * INTERFACE_GAP)


# ------------------------------------------------------------------ given points and unions


def test_given_points_come_back_whole_and_in_order() -> None:
    points = some_points(97)
    region = FixedPoints(points, name="measured")
    assert (region.n_sites, region.n_distinct, region.measure) == (1, 97, 97.0)
    (back,) = region.place((torch.arange(97).double()[:, None] + 0.5) / 97)
    assert torch.equal(back.x, points.x)
    assert torch.equal(back.data["u"], points.data["u"])
    (ends,) = region.place(torch.tensor([[0.0], [1.0]]).double())
    assert ends.data["label"].tolist() == [0, 96]


def test_union_of_given_points() -> None:
    region = RegionUnion("all", "data", [FixedPoints(some_points(3)), FixedPoints(some_points(8))])
    assert region.n_distinct == 11
    (points,) = region.place((torch.arange(11).double()[:, None] + 0.5) / 11)
    assert points.data["label"].tolist() == [*range(3), *range(8)]


def test_union_keeps_the_order_of_the_rows() -> None:
    box = BOXES["rectangle"]
    unit = torch.tensor([[0.9], [0.01], [0.5], [0.1], [0.2]]).double()
    (points,) = box.boundary().place(unit)
    assert points.normal is not None
    expected = [[0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [1.0, 0.0], [0.0, -1.0]]
    assert points.normal.tolist() == expected


def test_regions_that_contradict_themselves() -> None:
    box = BOXES["rectangle"]
    with pytest.raises(DomainError, match="region 'data': no points given"):
        FixedPoints(Points(torch.zeros(0, 2)))
    with pytest.raises(ProblemError, match="at least one member"):
        RegionUnion("u", "boundary", [])
    with pytest.raises(
        ProblemError, match=r"members of \(dimension, sites\) \[\(1, 1\), \(2, 1\)\]"
    ):
        RegionUnion("u", "boundary", [box.interior(), box.region("x.lower")])
    with pytest.raises(ProblemError, match="axis 2, allowed: 0 to 1"):
        Face(box, 2, 1)
    with pytest.raises(ProblemError, match="side 0"):
        Face(box, 0, 0)
    with pytest.raises(ProblemError, match=r"interfaces of x at \[7.0\]"):
        Interface(box, 0, 7.0)


# ------------------------------------------------------------------------- the box itself


def test_names_of_regions() -> None:
    box = Box((-1.0, 0.0), (1.0, 1.0), names=("x", "t"), time="t", interfaces={"x": (-0.0, 1 / 3)})
    assert box.region_names() == (
        "interior",
        "boundary",
        "initial",
        "final",
        "x.lower",
        "x.upper",
        "x.periodic",
        "t.periodic",
        "x=0",
        "x=0.3333333333333333",
        "interfaces",
    )
    assert box.region("x = 0.0").name == "x=0"
    assert box.region("x=-0").name == "x=0"
    assert box.region("t.lower").name == "initial"
    assert box.region("t.upper").name == "final"
    assert BOXES["time only"].region_names() == ("interior", "initial", "final", "t.periodic")
    assert repr(box.interior()) == "Interior('interior', measure=2)"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("boundry", "unknown region 'boundry', did you mean 'boundary'\\? allowed: interior, "),
        ("x.uper", "did you mean 'x.upper'"),
        ("x=0.2", "unknown region 'x=0.2'"),
        ("x=middle", "unknown region 'x=middle'"),
        ("initial", "unknown region 'initial'"),
    ],
)
def test_unknown_region(name: str, message: str) -> None:
    with pytest.raises(ProblemError, match=message) as caught:
        BOXES["cut"].region(name)
    assert "\n" not in str(caught.value)


def test_default_names() -> None:
    assert Box((0,), (1,)).names == ("x",)
    assert Box((0, 0, 0), (1, 1, 1)).names == ("x", "y", "z")
    assert Box((0, 0), (1, 1), time="t").names == ("x", "t")
    assert Box((0,), (1,), time="t").names == ("t",)
    assert Box(5 * (0,), 5 * (1,)).names == ("x1", "x2", "x3", "x4", "x5")
    assert Box([0, 0], np.array([1, 2])).upper == (1.0, 2.0)  # type: ignore[arg-type]


def test_box_is_a_plain_value(box: Box) -> None:
    assert copy.deepcopy(box) == box == pickle.loads(pickle.dumps(box))
    assert hash(copy.deepcopy(box)) == hash(box)
    assert Box(**json.loads(json.dumps(dataclasses.asdict(box)))) == box


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lower": (0.0,), "upper": (1.0, 2.0)}, "lower has 1 and upper 2 numbers"),
        ({"lower": (), "upper": ()}, "at least 1"),
        ({"lower": (0.0, 1.0), "upper": (1.0, 1.0)}, r"y in \[1, 1\], allowed: finite ends"),
        ({"lower": (0.0, 2.0), "upper": (1.0, 1.0)}, r"y in \[2, 1\]"),
        ({"lower": (0.0,), "upper": (float("inf"),)}, r"x in \[0, inf\]"),
        ({"lower": (float("nan"),), "upper": (1.0,)}, r"x in \[nan, 1\]"),
        ({"lower": (-1e308,), "upper": (1e308,)}, "finite ends"),
        ({"lower": ("a",), "upper": (1.0,)}, r"lower is \('a',\), allowed: a sequence of numbers"),
        ({"lower": 0.0, "upper": 1.0}, "lower is 0.0, allowed: a sequence of numbers"),
        ({"lower": "01", "upper": "23"}, "lower is '01'"),
        ({"names": "xy"}, "names is 'xy', allowed: a sequence of names"),
        ({"names": ("x",)}, "names x, allowed: 2 different names"),
        ({"names": ("x", "x")}, "names x, x, allowed: 2 different names"),
        ({"names": ("x", "2y")}, "coordinate name '2y'"),
        ({"names": ("x", "lambda")}, "coordinate name 'lambda'"),
        ({"names": ("x", 3)}, "coordinate name 3"),
        ({"names": ("t", "x"), "time": "t"}, "time is 't', allowed: the last coordinate, 'x'"),
        ({"names": ("x", "y"), "time": "t"}, "time is 't'"),
        ({"interfaces": {"z": (0.5,)}}, "coordinate 'z', allowed: x, y"),
        ({"interfaces": {"x": (0.0,)}}, r"interfaces of x at \[0.0\], allowed: .* \(0, 1\)"),
        ({"interfaces": {"x": (0.5, 0.5)}}, "allowed: different numbers"),
        ({"interfaces": {"x": ()}}, r"interfaces of x at \[\]"),
        ({"interfaces": {"x": (float("nan"),)}}, "allowed: different numbers"),
        ({"interfaces": {"x": 0.5}}, "interfaces of x is 0.5"),
        ({"interfaces": ["x"]}, r"interfaces is \['x'\]"),
        ({"time": "t", "interfaces": {"t": (0.5,)}}, "coordinate 't', allowed: x"),
    ],
)
def test_bad_box(arguments: dict[str, object], message: str) -> None:
    options: dict[str, object] = {"lower": (0.0, 0.0), "upper": (1.0, 1.0)}
    with pytest.raises(ProblemError, match=message) as caught:
        Box(**(options | arguments))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------- the check of points


def test_contains_allows_for_rounding_only() -> None:
    box = Box((0.1, -1000.0), (0.7, 1000.0))
    corner = torch.tensor([box.upper, box.lower], dtype=torch.float64)
    assert box.contains(corner).all()
    assert box.contains(corner.float()).all()  # 0.1 rounds up and 0.7 down, or the other way
    assert box.contains(corner * (1 + 2e-16)).all()
    off = torch.tensor([[0.7 + 1e-12, 0.0], [0.5, -1000.001]], dtype=torch.float64)
    assert not box.contains(off).any()
    assert box.contains(off, tolerance=1e-2).all()
    assert box.contains(off, tolerance=1e-6).tolist() == [True, False]


def test_check_accepts_what_lies_inside() -> None:
    box = BOXES["rectangle"]
    inside = np.array([[-1.0, 0.0], [2.0, 0.5], [0.3, 0.2]])
    box.check(inside)
    box.check(inside[::-1])
    box.check(inside.astype(np.float32))
    box.check(torch.from_numpy(inside).requires_grad_())
    frozen = inside.copy()
    frozen.flags.writeable = False
    box.check(frozen)
    box.check(np.zeros((0, 2)))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[0.0, 0.1]], "found list, allowed: a tensor or a NumPy array"),
        (np.zeros((2, 2), dtype=np.int64), "found dtype int64, allowed: float32, float64"),
        (torch.zeros(2, 2, dtype=torch.float16), "found dtype torch.float16"),
        (np.array([["a", "b"]]), "found dtype <U1"),
        (np.zeros((2, 2), dtype=complex), "found dtype complex128"),
        (np.zeros(2), r"found shape \(2,\), allowed: \(n, 2\), one column for each of x, y"),
        (np.zeros((4, 3)), r"found shape \(4, 3\)"),
        (np.array([[0.0, 0.0], [0.0, np.nan]]), "row 1: y = nan, allowed: finite numbers"),
        (np.array([[np.inf, np.nan]]), "row 0: x = inf"),
        (
            np.array([[0.0, 0.1], [0.0, 0.75], [2.5, 0.1], [-1.1, 0.2]]),
            r"row 1: y = 0.75 is outside the domain, allowed: \[0, 0.5\] \(2 more such rows\)$",
        ),
        (np.array([[2.25, 0.1]]), r"row 0: x = 2.25 is outside the domain, allowed: \[-1, 2\]$"),
        (torch.tensor([[2.1, 9.0]]), "row 0: y = 9 is outside"),
    ],
)
def test_check_names_the_mistake(x: object, message: str) -> None:
    with pytest.raises(DomainError, match=message) as caught:
        BOXES["rectangle"].check(x)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------- evaluation grids


@pytest.mark.parametrize(
    ("dimension", "shape"),
    [(1, (10_001,)), (2, (201, 201)), (3, (34, 34, 34)), (4, (14, 14, 14, 14))],
)
def test_default_evaluation_grid(dimension: int, shape: tuple[int, ...]) -> None:
    box = Box(dimension * (-1.0,), dimension * (1.0,))
    grid, found = box.evaluation_grid()
    assert found == shape
    assert grid.shape == (np.prod(shape), dimension) and grid.dtype == torch.float64
    assert len(grid) == len(torch.unique(grid, dim=0))
    box.check(grid)


def test_evaluation_grid_of_given_shape() -> None:
    box = Box((0.1, -1.0), (0.7, 1.0))
    grid, shape = box.evaluation_grid((3, 5))
    assert shape == (3, 5)
    x, y = grid.reshape(3, 5, 2).unbind(-1)
    assert torch.equal(x[:, 0], torch.from_numpy(np.linspace(0.1, 0.7, 3)))
    assert torch.equal(y[1], torch.from_numpy(np.linspace(-1.0, 1.0, 5)))
    assert grid[0].tolist() == [0.1, -1.0] and grid[-1].tolist() == [0.7, 1.0]
    assert box.evaluation_grid(total=100)[1] == (10, 10)


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5), (1, 4), (3, -2)])
def test_bad_evaluation_grid(shape: tuple[int, ...]) -> None:
    with pytest.raises(DomainError, match="allowed: 2 counts of at least 2, one for each of x, y"):
        BOXES["rectangle"].evaluation_grid(shape)


def test_region_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Region()  # type: ignore[abstract]


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_neighbour_order_makes_boxes_of_aligned_runs(dimension: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1000, dimension, dtype=torch.float64, generator=generator) * 3 - 1
    order = neighbour_order(x, leaf=16)
    assert torch.equal(order.sort().values, torch.arange(1000))
    near = x[order]
    for size in (16, 64, 256):
        boxes = [run.amax(0) - run.amin(0) for run in near.split(size) if len(run) == size]
        volume = float(torch.stack(boxes).prod(1).sum())
        assert volume <= 3.0**dimension  # they do not overlap, and cover the cube at most
        assert max(float(box.min() / box.max()) for box in boxes) > 0.3


def test_neighbour_order_of_points_that_differ_little() -> None:
    x = torch.zeros(200, 2, dtype=torch.float64)
    assert torch.equal(neighbour_order(x), torch.arange(200))
    x[:, 1] = torch.arange(200).flip(0)
    assert torch.equal(neighbour_order(x, leaf=8), torch.arange(200).flip(0))
    assert torch.equal(neighbour_order(x[:1]), torch.arange(1))

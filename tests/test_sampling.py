"""Sampling: evenness, reproducibility, independence of streams, held-out points, mini-batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy.stats import chisquare, kstest, pearsonr, qmc
from torch import Tensor

from kanpinn.errors import ConfigError, ProblemError
from kanpinn.geometry import Box, FixedPoints, Points, Region, RegionUnion
from kanpinn.sampling import (
    QUADRATURE,
    Grading,
    Method,
    SamplingOptions,
    batch_indices,
    held_out,
    sample,
    sample_graded,
    seen,
    stream,
    unit_points,
)

METHODS: tuple[Method, ...] = ("grid", "random", "sobol", "latin_hypercube")
SQUARE = Box((-1.0, -1.0), (1.0, 1.0), interfaces={"x": (0.0,)})
SPACE_TIME = Box((-1.0, 0.0, 0.0), (1.0, 2.0, 3.0), time="t")
INTERVAL = Box((0.0,), (2.0,))


class Disk(Region):
    """A region that rejects: the unit disk out of its bounding square."""

    def __init__(self, radius: float = 1.0, acceptance: float = np.pi / 4) -> None:
        self.name, self.kind, self.unit_dimension = "disk", "interior", 2
        self.measure = np.pi * radius**2
        self.acceptance = acceptance
        self.radius = radius

    def accepts(self, unit: Tensor) -> Tensor:
        return torch.linalg.vector_norm(2 * unit - 1, dim=1) <= 1

    def place(self, unit: Tensor) -> tuple[Points, ...]:
        return (Points(self.radius * (2 * unit - 1)),)


# ---------------------------------------------------------------------------- unit points


@pytest.mark.parametrize("method", ["random", "sobol", "latin_hypercube"])
@pytest.mark.parametrize(("n", "dimension"), [(1, 1), (7, 2), (64, 3), (1000, 4), (5, 0)])
def test_unit_points_have_the_number_asked_for(method: Method, n: int, dimension: int) -> None:
    unit = unit_points(n, dimension, method, stream(0))
    assert unit.shape == (n, dimension) and unit.dtype == np.float64
    assert ((unit >= 0) & (unit < 1)).all()
    assert len(np.unique(unit, axis=0)) == (n if dimension else 1)


@pytest.mark.parametrize("dimension", [1, 2, 3, 6])
def test_discrepancy_of_even_methods_is_below_random(dimension: int) -> None:
    for n in (100, 512):
        found = {
            method: np.mean(
                [
                    qmc.discrepancy(unit_points(n, dimension, method, stream(seed)))
                    for seed in range(5)
                ]
            )
            for method in ("random", "sobol", "latin_hypercube")
        }
        assert found["sobol"] < 0.5 * found["random"]
        assert found["latin_hypercube"] < found["random"]


def test_sobol_points_balance_every_dyadic_slice() -> None:
    unit = unit_points(256, 2, "sobol", stream(1))
    for columns in (256, 16, 1):  # elementary intervals of a (0, m, 2)-net
        cells = np.floor(unit * [columns, 256 // columns]).astype(int)
        assert len(np.unique(cells, axis=0)) == 256


def test_first_sobol_points_do_not_depend_on_the_count() -> None:
    many = unit_points(1000, 3, "sobol", stream(2))
    assert np.array_equal(many[:77], unit_points(77, 3, "sobol", stream(2)))


def test_latin_hypercube_has_one_point_per_slice() -> None:
    unit = unit_points(50, 3, "latin_hypercube", stream(1))
    for column in unit.T:
        assert sorted(np.floor(50 * column)) == list(range(50))


def test_grid_is_equally_spaced_with_both_ends() -> None:
    unit = unit_points(2401, 2, "grid", stream(0))
    assert len(unit) == 49**2
    for column in unit.T:
        assert np.array_equal(np.unique(column), np.linspace(0, 1, 49))
    assert len(unit_points(1000, 2, "grid", stream(0))) == 32**2
    assert unit_points(1, 2, "grid", stream(0)).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    ("n", "dimension", "method", "message"),
    [
        (0, 2, "sobol", "0 points in 2 dimensions, allowed: at least 1"),
        (3, -1, "sobol", "3 points in -1 dimensions"),
        (3, 2, "halton", "unknown method 'halton', allowed: grid, random, sobol, latin_hypercube"),
    ],
)
def test_bad_unit_points(n: int, dimension: int, method: Method, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        unit_points(n, dimension, method, stream(0))


# -------------------------------------------------------------------------------- streams


def draw(*keys: str | int, seed: int = 0, n: int = 2000) -> np.ndarray:
    return np.random.default_rng(stream(seed, *keys)).random(n)


def test_streams_are_told_apart_by_every_key() -> None:
    keys: list[tuple[str | int, ...]] = [
        (),
        ("train",),
        ("held_out",),
        ("train", 0),
        ("train", "0"),
        ("train", 0, 0),
        ("train", 0, 1),
        ("train", 1, 0),
        ("tr", "ain"),
        ("a", "b"),
        ("a', 'b",),
        ("ab",),
    ]
    draws = [draw(*key) for key in keys] + [draw("train", seed=1)]
    for i, first in enumerate(draws):
        for second in draws[:i]:
            assert not np.array_equal(first, second)
            assert abs(pearsonr(first, second).statistic) < 0.1  # 4.5 standard deviations
    assert kstest(np.concatenate(draws), "uniform").pvalue > 1e-3


def test_streams_do_not_depend_on_process_or_integer_type() -> None:
    """Recorded words: a run resumed elsewhere must find them again (Python's hash would not)."""
    recorded = [1360446343, 2417016690, 3151799410, 1708020061]
    assert stream(5, "train", "u", 2).generate_state(4).tolist() == recorded
    # NumPy's integers print differently but are the same keys.
    seed, level = np.array([5, 2])
    assert stream(seed, "train", "u", level).generate_state(4).tolist() == recorded


def test_negative_seed() -> None:
    with pytest.raises(ProblemError, match="seed: found -1"):
        stream(-1)


# -------------------------------------------------------------------------------- samples


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("box", [INTERVAL, SQUARE, SPACE_TIME], ids=["1D", "2D", "2D+time"])
def test_samples_lie_in_every_region(box: Box, method: Method) -> None:
    for name in box.region_names():
        region = box.region(name)
        sites = sample(region, 60, method, stream(0, name))
        assert len(sites) == region.n_sites
        for points in sites:
            box.check(points.x)
            if region.n_distinct is not None:
                assert len(points) == region.n_distinct
            elif method != "grid":
                assert len(points) == 60


def test_even_samples_share_the_boundary_out_by_area() -> None:
    box = Box((0.0, 0.0, 0.0), (1.0, 2.0, 4.0))
    boundary = box.boundary()
    for method in ("sobol", "latin_hypercube"):
        (points,) = sample(boundary, 1400, method, stream(0))
        assert points.normal is not None
        for axis, area in enumerate((8.0, 4.0, 2.0)):
            for side in (-1.0, 1.0):
                count = int((points.normal[:, axis] == side).sum())
                assert abs(count - 1400 * area / 28.0) <= 2


@pytest.mark.parametrize("method", ["random", "sobol", "latin_hypercube"])
def test_boundary_samples_are_uniform(method: Method) -> None:
    (points,) = sample(SQUARE.boundary(), 4000, method, stream(3))
    x, y = points.x.T.numpy()
    along = np.select([x == -1, x == 1, y == -1, y == 1], [y + 1, y + 3, x + 5, x + 7])
    counts, _ = np.histogram(along, bins=40, range=(0.0, 8.0))
    assert counts.sum() == 4000
    assert chisquare(counts).pvalue > 1e-3
    if method != "random":
        assert counts.max() - counts.min() <= 4


def test_grid_covers_every_face_with_its_ends() -> None:
    """The points of 2603.04827, section 4.2: 2401 inside, 200 on the boundary, 49 across."""
    (inside,) = sample(SQUARE.interior(), 2401, "grid", stream(0))
    assert len(inside) == 2401
    (around,) = sample(SQUARE.boundary(), 200, "grid", stream(0))
    assert len(around) == 200
    for axis in (0, 1):
        for end in (-1.0, 1.0):
            face = around.normal[:, axis] == end  # type: ignore[index]
            along = around.x[face, 1 - axis].numpy()
            assert np.abs(along - np.linspace(-1, 1, 50)).max() < 1e-15
    minus, plus = sample(SQUARE.region("x=0"), 49, "grid", stream(0))
    assert len(minus) == len(plus) == 49
    assert np.abs(minus.x[:, 1].numpy() - np.linspace(-1, 1, 49)).max() < 1e-15


def test_finite_regions_are_given_whole() -> None:
    for method in METHODS:
        (ends,) = sample(INTERVAL.boundary(), 100, method, stream(0))
        assert ends.x.flatten().tolist() == [0.0, 2.0]
        (start,) = sample(INTERVAL.region("x.lower"), 100, method, stream(0))
        assert start.x.tolist() == [[0.0]]
        low, high = sample(INTERVAL.region("x.periodic"), 100, method, stream(0))
        assert low.x.tolist() == [[0.0]] and high.x.tolist() == [[2.0]]
    given = Points(torch.rand(1000, 2), data={"u": torch.arange(1000.0)})
    (points,) = sample(FixedPoints(given), 10, "sobol", stream(0))
    assert torch.equal(points.data["u"], torch.arange(1000.0).double())
    assert points.x.dtype == points.data["u"].dtype == torch.float64


@pytest.mark.parametrize("method", METHODS)
def test_samples_depend_on_the_stream_alone(method: Method) -> None:
    region = SPACE_TIME.boundary()
    torch.manual_seed(1)
    np.random.seed(1)
    (first,) = sample(region, 100_000, method, stream(7, "train"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        sample(region, 10, method, stream(7, "other"))
        (second,) = sample(region, 100_000, method, stream(7, "train"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(first.x, second.x)
    if method != "grid":
        (third,) = sample(region, 100_000, method, stream(8, "train"))
        assert not torch.equal(first.x, third.x)


def test_other_dtypes_are_roundings_of_the_same_points(device: torch.device) -> None:
    region = SQUARE.region("x=0")
    for double, single in zip(
        sample(region, 50, "sobol", stream(0)),
        sample(region, 50, "sobol", stream(0), torch.float32, device),
        strict=True,
    ):
        assert single.x.dtype == torch.float32 and single.x.device.type == device.type
        assert torch.equal(single.x.cpu(), double.x.float())
        assert single.side is not None and double.side is not None
        assert torch.equal(single.side.cpu(), double.side)


@pytest.mark.parametrize("method", ["random", "sobol", "latin_hypercube"])
def test_regions_that_reject_still_give_the_number_asked_for(method: Method) -> None:
    (points,) = sample(Disk(), 1000, method, stream(0))
    radius = torch.linalg.vector_norm(points.x, dim=1)
    assert len(points) == 1000 and radius.max() <= 1
    assert kstest(radius.numpy() ** 2, "uniform").pvalue > 1e-3


def test_union_of_awkward_measures_draws_no_spare_points() -> None:
    box = Box((0.0, 0.0), (0.1, 0.7))  # cumulative and exact sums of the lengths differ
    unit = unit_points(100, 1, "latin_hypercube", stream(0))
    (expected,) = box.boundary().place(torch.from_numpy(unit))
    (points,) = sample(box.boundary(), 100, "latin_hypercube", stream(0))
    assert box.boundary().acceptance == 1.0
    assert torch.equal(points.x, expected.x)


def test_grid_of_a_region_that_rejects() -> None:
    (points,) = sample(Disk(), 1000, "grid", stream(0))
    assert abs(len(points) - 1000) < 60


def test_union_of_regions_that_reject_by_different_shares() -> None:
    box = Box((3.0, 0.0), (4.0, np.pi))  # of the disk's area
    union = RegionUnion("both", "interior", [Disk(), box.interior()])
    assert union.acceptance == pytest.approx(2 * np.pi / (4 + np.pi))
    (points,) = sample(union, 4000, "random", stream(0))
    share = float((points.x[:, 0] < 2).double().mean())
    assert len(points) == 4000 and abs(share - 0.5) < 0.03


def test_region_without_points() -> None:
    class Nowhere(Disk):
        def accepts(self, unit: Tensor) -> Tensor:
            return torch.zeros(len(unit), dtype=torch.bool)

    for method in METHODS:
        with pytest.raises(ProblemError, match="region 'disk': "):
            sample(Nowhere(), 10, method, stream(0))


# -------------------------------------------------------------------------------- held out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_held_out_points_are_never_trained_on(dtype: torch.dtype) -> None:
    region = INTERVAL.interior()  # in float32, one dimension: chance meetings are certain here
    trained = sample(region, 40_000, "sobol", stream(0, "train"), dtype)
    (naive,) = held_out(region, 4000, 0, dtype=dtype)
    (points,) = held_out(region, 4000, 0, trained=trained, dtype=dtype)
    assert len(points) == len(naive) == 4000
    known = set(trained[0].x.flatten().tolist())
    assert not known & set(points.x.flatten().tolist())
    if dtype == torch.float32:
        assert known & set(naive.x.flatten().tolist())
    else:
        assert torch.equal(points.x, naive.x)


def test_held_out_points_have_a_stream_of_their_own() -> None:
    region = SQUARE.interior()
    (first,) = held_out(region, 64, 0, ("u",))
    (again,) = held_out(region, 64, 0, ("u",))
    (other,) = held_out(region, 64, 0, ("v",))
    (train,) = sample(region, 64, "sobol", stream(0, "u"))
    assert torch.equal(first.x, again.x)
    assert not seen(first.x, other.x).any()
    assert not seen(first.x, train.x).any()


def test_held_out_points_of_pairs() -> None:
    low, high = held_out(SQUARE.region("y.periodic"), 32, 0)
    assert torch.equal(low.x[:, 0], high.x[:, 0])


def test_finite_regions_have_no_held_out_points() -> None:
    with pytest.raises(ProblemError, match="region 'boundary': it has 2 points in all"):
        held_out(INTERVAL.boundary(), 10, 0)


def test_seen() -> None:
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-0.0, 1.0], [0.0, 1.0 + 1e-15]]).double()
    trained = torch.tensor([[0.0, 1.0], [5.0, 5.0]]).double()
    assert seen(x, trained).tolist() == [True, False, True, True]
    assert seen(x + 1, trained).tolist() == [False] * 4
    assert seen(x, trained[:0]).tolist() == [False] * 4


# ----------------------------------------------------------------------------- mini-batches


@pytest.mark.parametrize(("n", "batch"), [(12, 4), (10, 3), (7, 6), (5, 1)])
def test_batches_hold_every_row_once_per_epoch(n: int, batch: int) -> None:
    epochs = 6
    steps = -(-epochs * n // batch)
    batches = [batch_indices(n, batch, 3, step) for step in range(steps)]
    assert all(rows.shape == (batch,) and rows.dtype == torch.int64 for rows in batches)
    walked = torch.cat(batches)[: epochs * n].reshape(epochs, n)
    for epoch in walked:
        assert sorted(epoch.tolist()) == list(range(n))
    assert len({tuple(epoch) for epoch in walked.tolist()}) > 1  # shuffled anew


def test_batches_are_a_pure_function_of_seed_and_step() -> None:
    expected = batch_indices(1000, 64, 0, 37)
    expected_again = batch_indices(1000, 64, 0, 37)
    expected_again[:] = 0  # the caller may do with it as it likes
    for step in (0, 100, 5, 36):
        batch_indices(1000, 64, 0, step)
    assert torch.equal(expected, batch_indices(1000, 64, 0, 37))
    assert not torch.equal(expected, batch_indices(1000, 64, 1, 37))
    assert not torch.equal(expected, batch_indices(1000, 64, 0, 37, "boundary"))


def test_batch_positions_are_uniform() -> None:
    first = [int(batch_indices(20, 10, 0, step)[0]) for step in range(0, 4000, 2)]
    assert chisquare(np.bincount(first, minlength=20)).pvalue > 1e-3


def test_full_batch_is_in_order() -> None:
    for batch in (5, 6):
        assert batch_indices(5, batch, 0, 9).tolist() == list(range(5))


@pytest.mark.parametrize(("n", "batch", "step"), [(0, 1, 0), (5, 0, 0), (5, 2, -1)])
def test_bad_batches(n: int, batch: int, step: int) -> None:
    with pytest.raises(ProblemError, match="mini-batch"):
        batch_indices(n, batch, 0, step)


# -------------------------------------------------------------------------------- options


def test_counts_grow_with_levels_and_parameters() -> None:
    options = SamplingOptions(
        interior=100, boundary=30, interface=7, initial=5, growth=1.5, per_parameter=2.5
    )
    assert [options.count("interior", level) for level in range(3)] == [100, 150, 225]
    assert [options.count("boundary", level) for level in range(3)] == [30, 45, 68]
    assert options.count("interface", 1) == 10 and options.count("initial", 1) == 8
    assert options.count("interior", 0, 20) == 100
    assert options.count("interior", 0, 101) == 253
    assert options.count("boundary", 0, 1000) == 30
    assert options.count("data", 3, 1000) == 0
    assert SamplingOptions(interior=1000, growth=1.1).count("interior", 2) == 1210


def test_options_are_validated() -> None:
    adapter = TypeAdapter(SamplingOptions)
    assert adapter.validate_python({}) == SamplingOptions()
    good = {"method": "grid", "interior": 10, "growth": 2, "per_parameter": 10}
    assert adapter.validate_python(good).per_parameter == 10.0
    assert adapter.validate_python({"per_parameter": None}).per_parameter is None
    for bad in (
        {"method": "halton"},
        {"interior": 0},
        {"boundary": -5},
        {"growth": 0.5},
        {"growth": float("nan")},
        {"growth": float("inf")},
        {"per_parameter": 0.0},
        {"per_parameter": float("nan")},
        {"held_out": "many"},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)
    for name, schema in adapter.json_schema()["properties"].items():
        assert name in SamplingOptions.__dataclass_fields__ and schema


def test_graded_points_are_dense_at_the_plane_and_their_weights_keep_the_mean() -> None:
    box = Box((-1.0, 0.0), (3.0, 1.0), names=("x", "t"), time="t")
    options = SamplingOptions(grading=(Grading(of="x", scale=0.05, at=0.5, share=0.5),))
    (points,) = sample_graded(box.interior(), 4096, options, box.names, stream(3, "graded"))
    assert len(points) == 4096
    near = ((points.x[:, 0] - 0.5).abs() < 0.05).double().mean()
    assert near > 4 * 0.1 / 4.0  # four times the share an equal spread would have
    weights = points.data[QUADRATURE]
    assert weights.min() > 0
    # A steep function's mean over x in [-1, 3]: the integral of sech^2(s (x - 0.5)) is known.
    s = 40.0
    steep = torch.cosh(s * (points.x[:, 0] - 0.5)).pow(-2)
    exact = (np.tanh(s * 2.5) + np.tanh(s * 1.5)) / (4 * s)
    assert float((weights * steep).mean()) == pytest.approx(exact, rel=2e-2)
    again = sample_graded(box.interior(), 4096, options, box.names, stream(3, "graded"))[0]
    assert torch.equal(again.x, points.x)


def test_grading_refuses_an_unknown_coordinate_and_shares_above_one() -> None:
    box = Box((-1.0,), (1.0,), names=("x",))
    options = SamplingOptions(grading=(Grading(of="y", scale=0.1),))
    with pytest.raises(ConfigError, match="coordinate 'y' is unknown"):
        sample_graded(box.interior(), 64, options, box.names, stream(0))
    with pytest.raises(ConfigError, match="add up to more than 1"):
        SamplingOptions(grading=(Grading(of="x", scale=0.1, share=0.7),) * 2)

"""The spectral solver behind the periodic references, against exact solutions and scipy."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad, solve_ivp
from scipy.special import ellipj, ellipk

from kanpinn.errors import ExpressionError, KanpinnError, ProblemError
from kanpinn_problems._spectral import PeriodicInitial, PeriodicSolution, resolving_modes

Floats = NDArray[np.float64]


def mesh(x: Floats, t: Floats) -> tuple[Floats, Floats]:
    places, times = np.meshgrid(x, t, indexing="ij")
    return places.ravel(), times.ravel()


def zero(u: Floats) -> Floats:
    return 0 * u


def solution(initial: Callable[[Floats], Floats], **changes: Any) -> PeriodicSolution:
    given: dict[str, Any] = {
        "lower": -1.0,
        "upper": 2.0,
        "symbol": lambda k: -0.1 * k**2,
        "nonlinear": zero,
        "final_time": 1.0,
        "modes": 32,
        "steps": 10,
    }
    return PeriodicSolution(initial, **{**given, **changes})


# --- linear equations: exact in time --------------------------------------------------------------
@pytest.mark.parametrize(
    ("symbol", "rate", "speed"),
    [
        (lambda k: -0.1 * k**2, lambda k: 0.1 * k**2, lambda _: 0.0),
        (lambda k: 0.01j * k**3, lambda _: 0.0, lambda k: -0.01 * k**2),  # u_t = -0.01 u_xxx
        (lambda k: -0.01 * k**4 - 0.3j * k, lambda k: 0.01 * k**4, lambda _: 0.3),
    ],
    ids=["diffusion", "dispersion", "order four"],
)
def test_linear_equations_are_solved_exactly(symbol: Any, rate: Any, speed: Any) -> None:
    waves = [2 * np.pi / 3 * j for j in (1, 2)]

    def exact(x: Floats, t: Floats) -> Floats:
        parts = [np.exp(-rate(k) * t) * np.sin(k * (x - speed(k) * t) + 0.4) for k in waves]
        return np.asarray(1.0 + parts[0] + parts[1])

    found = solution(lambda x: exact(x, 0 * x), symbol=symbol)
    x, t = mesh(np.linspace(-1.0, 2.0, 23), np.array([0.0, 1e-3, 0.1, 0.777, 1.0]))
    assert np.abs(found(x, t) - exact(x, t)).max() < 1e-13


def test_kink_is_projected_exactly() -> None:
    """Coefficients of x^2 on [-1, 2]: integrals, not sums over a grid."""
    (coefficients,) = solution(lambda x: x**2, modes=200).coefficients(np.zeros(1))
    for j in (0, 1, 7, 200):
        k = 2 * np.pi / 3 * j
        real = quad(lambda x: x**2, -1, 2, weight="cos", wvar=k)[0] if j else 3.0
        imaginary = quad(lambda x: x**2, -1, 2, weight="sin", wvar=k)[0] if j else 0.0
        expected = (real - 1j * imaginary) * np.exp(-1j * k) / 3  # the phase counts from x = -1
        assert abs(coefficients[j] - expected) < 1e-13


# --- nonlinear ones -------------------------------------------------------------------------------
def cnoidal(x: Floats, t: Floats) -> Floats:
    """``2 m k^2 cn^2(k (x - c t) | m)``, a travelling wave of ``u_t + 6 u u_x + u_xxx = 0``."""
    m = 0.9
    k = 2 * ellipk(m) / 3  # one wave in the period of length 3
    cn = ellipj(k * (x - 4 * k**2 * (2 * m - 1) * t), m)[1]
    return np.asarray(2 * m * k**2 * cn**2)


def kdv(steps: int) -> PeriodicSolution:
    return solution(
        lambda x: cnoidal(x, 0 * x),
        symbol=lambda k: 1j * k**3,
        flux=lambda k: -1j * k,
        nonlinear=lambda u: 3 * u**2,
        final_time=0.2,
        steps=steps,
    )


def test_order_four_for_a_dispersive_wave() -> None:
    x, t = mesh(np.linspace(-1.0, 2.0, 31), np.array([0.0, 0.0503, 0.1, 0.2]))  # one within a step
    errors = [np.abs(kdv(n)(x, t) - cnoidal(x, t)).max() for n in (100, 200, 400)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert errors[-1] < 1e-6, errors
    assert (orders > 3.7).all() and (orders < 5.0).all(), orders


@pytest.mark.parametrize("degree", [2, 3])
def test_agrees_with_an_adaptive_integrator(degree: int) -> None:
    """A pseudo-spectral method of lines with twice the points, by scipy's DOP853."""
    n, times = 128, np.array([0.3, 1.0])
    x = -1 + 3 * np.arange(n) / n
    k = 2 * np.pi / 3 * np.arange(n // 2 + 1)

    def growth(u: Floats) -> Floats:
        return np.asarray(5 * (u - u**degree))

    def rate(_: float, u: Floats) -> Floats:
        return np.asarray(np.fft.irfft(-0.1 * k**2 * np.fft.rfft(u), n) + growth(u))

    start = 0.5 + 0.4 * np.sin(2 * np.pi / 3 * x)
    run = solve_ivp(rate, (0, 1), start, "DOP853", t_eval=times, rtol=1e-11, atol=1e-12)
    found = solution(
        lambda x: 0.5 + 0.4 * np.sin(2 * np.pi / 3 * x), nonlinear=growth, degree=degree, steps=800
    )
    assert np.abs(found(*mesh(x, times)) - run.y.ravel()).max() < 2e-10


def test_products_are_free_of_aliasing() -> None:
    """The rate of change of cos(32 w x), all modes taken: its square has the modes 0 and 64."""
    wave = 2 * np.pi / 3 * 32
    found = solution(
        lambda x: np.cos(wave * (x + 1)), nonlinear=lambda u: u**2, symbol=lambda k: 0 * k
    )
    first = found.coefficients(np.array([0.0, 1e-6]))
    change = (first[1] - first[0]) / 1e-6
    assert abs(change[0] - 0.5) < 1e-5
    assert np.abs(change[1:]).max() < 1e-5


# --- evaluation -----------------------------------------------------------------------------------
def test_scattered_points_in_any_order() -> None:
    rng = np.random.default_rng(3)
    x, t = rng.uniform(-1, 2, 2500), np.round(rng.uniform(0, 0.2, 2500), 3)
    found = kdv(400)
    assert np.abs(found(x, t) - cnoidal(x, t)).max() < 1e-6
    points = np.stack([x, t], 1)
    values = found.at(points)
    assert np.array_equal(values, found(x, t))
    values[:] = 0.0  # what a caller does with its copy does not come back
    assert np.array_equal(found.at(points), found(x, t))
    assert np.array_equal(found.at(points[:3]), found(x[:3], t[:3]))
    assert found.at(points[:0]).shape == (0,)


def test_coefficients_give_values_and_derivatives() -> None:
    found, h = kdv(400), 1e-3
    x, t = np.array([0.3, 1.1]), np.array([0.05, 0.12])
    c, k = found.coefficients(t), found.wavenumbers
    waves = np.exp(1j * np.outer(x + 1, k)) * np.where(k > 0, 2, 1)
    assert np.allclose((c * waves).sum(1).real, found(x, t), atol=1e-12)
    slope = (1j * k * c * waves).sum(1).real
    assert np.allclose(slope, (found(x + h, t) - found(x - h, t)) / (2 * h), rtol=1e-4)


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    calls = []

    def initial(x: Floats) -> Floats:
        calls.append(len(x))
        return np.cos(2 * np.pi / 3 * x)

    found = solution(initial)
    assert not calls
    found(np.zeros(1), np.ones(1))
    once = len(calls)
    found(np.zeros(1), np.full(1, 0.5))
    assert len(calls) == once + 1  # the values at t = 0, of no points; no second integration


# --- what is refused ------------------------------------------------------------------------------
def test_blow_up_is_reported() -> None:
    found = solution(lambda x: 2.0 + 0 * x, nonlinear=lambda u: u**2, steps=2000)
    with pytest.raises(ProblemError, match="not finite with 2000 time steps"):
        found(np.zeros(1), np.ones(1))  # it is 1 / (1/2 - t)


def test_huge_references_are_refused() -> None:
    with pytest.raises(ProblemError, match="allowed: those that fit in a GB"):
        solution(zero, modes=10_000, steps=10_000)


def test_modes_grow_as_scales_shrink() -> None:
    assert resolving_modes(2.0, 1.0, 1.0) == 128
    assert resolving_modes(2.0, 1e-4, 0.0) == pytest.approx(1056, abs=2)  # d k^2 t = 11
    fronts = [resolving_modes(2.0, 1e-4, r) for r in (100.0, 400.0)]
    assert fronts[1] == pytest.approx(2 * fronts[0], rel=1e-2)
    assert resolving_modes(4.0, 1e-4, 400.0) == pytest.approx(2 * fronts[1], rel=1e-2)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("x", ProblemError, "initial: 'x' is -1 at x = -1 and 1 at x = 1, allowed: the same"),
        ("log(x)", ProblemError, "not finite"),
        ("sin(pi*t)", ExpressionError, "'t'"),
        ("open('x')", ExpressionError, "forbidden"),
    ],
)
def test_initial_values_are_refused(text: str, error: type[KanpinnError], words: str) -> None:
    with pytest.raises(error, match=words):
        PeriodicInitial(text, -1.0, 1.0)


def test_initial_values() -> None:
    initial = PeriodicInitial("cos(pi*x)", -1.0, 1.0)
    assert initial(np.array([0.0, 1.0])) == pytest.approx([1.0, -1.0])
    assert PeriodicInitial("0.2", -1.0, 1.0)(np.zeros(3)) == pytest.approx([0.2] * 3)
    copy = pickle.loads(pickle.dumps(initial))
    assert copy(np.array([0.5])) == pytest.approx([0.0], abs=1e-15)

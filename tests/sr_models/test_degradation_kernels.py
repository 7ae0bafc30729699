"""Blur kernels against what their formulas say: moments, symmetries, frequency response."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from sr_models.degradations import kernels

_SIZES = st.integers(1, 25).map(lambda reach: 2 * reach + 1)
_SIGMAS = st.floats(0.3, 8.0)
_ANGLES = st.floats(-math.pi, math.pi)
_KERNELS = st.one_of(
    st.builds(kernels.gaussian, _SIZES, _SIGMAS, _SIGMAS, _ANGLES),
    st.builds(kernels.generalised, _SIZES, _SIGMAS, _SIGMAS, _ANGLES, st.floats(0.3, 4.0)),
    st.builds(kernels.plateau, _SIZES, _SIGMAS, st.floats(0.0, 2.0)),
    st.builds(kernels.sinc, _SIZES, st.floats(0.2, 1.0)),
)


def _covariance(kernel: np.ndarray) -> np.ndarray:
    x = np.arange(len(kernel)) - len(kernel) // 2
    xy = (kernel * x * x[:, None]).sum()
    return np.array([[(kernel * x * x).sum(), xy], [xy, (kernel * (x * x)[:, None]).sum()]])


def _turned(angle: float, variance_x: float, variance_y: float) -> np.ndarray:
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turn @ np.diag([variance_x, variance_y]) @ turn.T


@settings(max_examples=100, deadline=None)
@given(_KERNELS)
def test_sums_to_one_in_float32_numbers_and_is_point_symmetric(kernel: np.ndarray) -> None:
    assert kernel.dtype == np.float64
    assert kernel.sum() == pytest.approx(1.0, abs=1e-6)
    assert np.array_equal(kernel, kernel.astype(np.float32))
    assert np.array_equal(kernel, kernel[::-1, ::-1])
    assert kernel.max() == kernel[len(kernel) // 2, len(kernel) // 2]


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.gaussian(21, 2.5, 2.5, 0.3),
        kernels.generalised(21, 2.5, 2.5, 0.3, 0.7),
        kernels.plateau(21, 2.5, 0.5),
        kernels.sinc(21, 0.6),
    ],
)
def test_round_kernels_have_the_symmetries_of_the_square(kernel: np.ndarray) -> None:
    # An angle turns the coordinates and so may move the last bit of float32.
    for other in (kernel.T, kernel[::-1], kernel[:, ::-1]):
        np.testing.assert_allclose(kernel, other, rtol=0, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.8, 4.0), st.floats(0.8, 4.0), _ANGLES)
def test_gaussian_has_the_stated_covariance(sigma_x: float, sigma_y: float, angle: float) -> None:
    covariance = _covariance(kernels.gaussian(51, sigma_x, sigma_y, angle))
    np.testing.assert_allclose(covariance, _turned(angle, sigma_x**2, sigma_y**2), atol=2e-3)


@pytest.mark.parametrize("beta", [1.0, 1.2, 1.5, 2.0])
@pytest.mark.parametrize("angle", [0.0, 0.5])
def test_generalised_gaussian_has_the_stated_covariance(beta: float, angle: float) -> None:
    sigma_x, sigma_y = (3.0, 4.0) if beta >= 1.5 else (1.5, 2.0)
    # In polar coordinates E r^2 = integral of r^3 exp(-r^beta) over that of r exp(-r^beta).
    axis = 0.5 * math.gamma(4 / beta) / math.gamma(2 / beta)
    covariance = _covariance(kernels.generalised(51, sigma_x, sigma_y, angle, beta))
    expected = _turned(angle, axis * sigma_x**2, axis * sigma_y**2)
    np.testing.assert_allclose(covariance, expected, atol=0.03 * expected.max())


@pytest.mark.parametrize("beta", [0.5, 0.8, 1.7])
def test_generalised_gaussian_falls_as_stated(beta: float) -> None:
    # Below beta = 1 the cusp needs a finer grid than pixels for its moments: here its values.
    kernel = kernels.generalised(21, 3.0, 2.0, 0.0, beta)
    for y, x in [(0, 1), (2, 0), (3, 4), (1, 10)]:
        fall = math.exp(-(math.hypot(x / 3.0, y / 2.0) ** beta))
        assert kernel[10 + y, 10 + x] / kernel[10, 10] == pytest.approx(fall, abs=2e-7)


@pytest.mark.parametrize(("sigma", "ratio"), [(2.0, 0.3), (3.0, 0.5), (4.0, 0.7), (3.0, 0.0)])
def test_plateau_has_the_second_moment_of_its_formula(sigma: float, ratio: float) -> None:
    edge = sigma * ratio

    def profile(d: float) -> float:
        return 1.0 if d <= edge else math.exp(-((d - edge) ** 2) / (2 * sigma**2))

    def moment(power: int) -> float:
        inside, _ = integrate.quad(lambda d: d**power * profile(d), 0, edge)
        outside, _ = integrate.quad(lambda d: d**power * profile(d), edge, edge + 12 * sigma)
        return float(inside + outside)

    covariance = _covariance(kernels.plateau(51, sigma, ratio))
    assert np.trace(covariance) == pytest.approx(moment(3) / moment(1), rel=5e-3)


def test_plateau_is_flat_inside_and_continuous_at_its_edge() -> None:
    row = kernels.plateau(21, 5.0, 0.6)[10, 10:] / kernels.plateau(21, 5.0, 0.6)[10, 10]
    assert np.array_equal(row[:4], np.ones(4))  # d = 0 to 3 = sigma ratio
    np.testing.assert_allclose(row[4:6], np.exp([-1 / 50, -4 / 50]), rtol=1e-6)


def test_first_axis_turns_from_right_to_down() -> None:
    x = np.arange(21) - 10
    eighth = kernels.gaussian(21, 4.0, 1.0, math.pi / 4)
    assert (eighth * x * x[:, None]).sum() > 5  # long along y = x, y downwards
    flat = kernels.gaussian(21, 4.0, 1.0, 0.0)
    assert flat[10, 14] > 100 * flat[14, 10]


@pytest.mark.parametrize("size", [15, 17, 19, 21])
@pytest.mark.parametrize("cutoff", [0.5, 0.6, 0.7, 0.8])
def test_sinc_passes_below_and_stops_beyond_the_cutoff(size: int, cutoff: float) -> None:
    kernel = kernels.sinc(size, cutoff)
    x = np.arange(size) - size // 2

    def gain(frequency: float, angle: float) -> float:
        phase = math.pi * frequency * (math.cos(angle) * x + math.sin(angle) * x[:, None])
        return float((kernel * np.cos(phase)).sum())

    for angle in (0.0, math.pi / 8, math.pi / 4):
        assert gain(0.0, angle) == pytest.approx(1.0, abs=1e-6)
        assert gain(cutoff, angle) == pytest.approx(0.5, abs=0.05)
        below = [gain(f, angle) for f in np.linspace(0, cutoff - 0.15, 30)]
        beyond = [gain(f, angle) for f in np.linspace(cutoff + 0.15, 1.0, 30)]
        assert min(below) > 0.95 and max(below) < 1.05
        assert max(np.abs(beyond)) < 0.03


def test_sinc_is_the_windowed_jinc() -> None:
    size, cutoff = 15, 0.7
    kernel, w = kernels.sinc(size, cutoff), cutoff * math.pi

    def value(d: float) -> float:
        # J1 from its integral, so that no other library's Bessel function is trusted twice.
        def integrand(t: float) -> float:
            return math.cos(t - w * d * math.sin(t)) / math.pi

        bessel, _ = integrate.quad(integrand, 0, math.pi)
        return w * bessel / (2 * math.pi * d) * float(np.sinc(d / 8))

    centre = w * w / (4 * math.pi)
    for y, x in [(0, 1), (1, 1), (2, 5), (0, 7)]:
        expected = value(math.hypot(x, y)) / centre
        assert kernel[7 + y, 7 + x] / kernel[7, 7] == pytest.approx(expected, abs=1e-6)
    assert kernel[0, 0] == 0.0  # beyond R = 8
    assert kernel.min() < 0  # it rings


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: kernels.gaussian(8, 1.0, 1.0, 0.0), "size"),
        (lambda: kernels.gaussian(1, 1.0, 1.0, 0.0), "size"),
        (lambda: kernels.plateau(53, 1.0, 0.5), "size"),
        (lambda: kernels.gaussian(7, 0.0, 1.0, 0.0), "sigma_x"),
        (lambda: kernels.gaussian(7, 1.0, math.nan, 0.0), "sigma_y"),
        (lambda: kernels.gaussian(7, 1.0, 1.0, math.inf), "angle"),
        (lambda: kernels.generalised(7, 1.0, 1.0, 0.0, 0.0), "beta"),
        (lambda: kernels.plateau(7, -1.0, 0.5), "sigma"),
        (lambda: kernels.plateau(7, 1.0, -0.1), "ratio"),
        (lambda: kernels.sinc(7, 0.0), "cutoff"),
        (lambda: kernels.sinc(7, 1.1), "cutoff"),
    ],
)
def test_numbers_outside_their_range_are_named(make: Callable[[], object], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must"):
        make()

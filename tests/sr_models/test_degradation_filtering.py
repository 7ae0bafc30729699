"""Convolution against plain float64 arithmetic: within 0.25 levels, whatever the kernel."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from sr_models.degradations import kernels
from sr_models.degradations.filtering import convolve

_SIZES = st.integers(1, 10).map(lambda reach: 2 * reach + 1)
_SIGMAS = st.floats(0.3, 6.0)
_ANGLES = st.floats(-math.pi, math.pi)
_KERNELS = st.one_of(
    st.builds(lambda size, sigma: kernels.gaussian(size, sigma, sigma, 0.0), _SIZES, _SIGMAS),
    st.builds(kernels.gaussian, _SIZES, _SIGMAS, _SIGMAS, _ANGLES),
    st.builds(kernels.generalised, _SIZES, _SIGMAS, _SIGMAS, _ANGLES, st.floats(0.5, 2.0)),
    st.builds(kernels.plateau, _SIZES, _SIGMAS, st.floats(0.3, 0.7)),
    st.builds(kernels.sinc, _SIZES, st.floats(0.5, 0.8)),
)
_SEEDS = st.integers(0, 2**32 - 1)


def _extreme(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Black and white pixels: where a kernel's error shows most."""
    return np.random.default_rng(seed).choice(np.float32([0, 255]), shape)


def _exact(planes: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    reach = len(kernel) // 2
    padded = np.pad(planes.astype(np.float64), ((0, 0), (reach, reach), (reach, reach)), "reflect")
    out = np.zeros(planes.shape)
    height, width = planes.shape[1:]
    for y in range(len(kernel)):
        for x in range(len(kernel)):
            window = padded[:, 2 * reach - y :, 2 * reach - x :][:, :height, :width]
            out += kernel[y, x] * window
    return out


@settings(max_examples=150, deadline=None)
@given(_KERNELS, _SEEDS, st.integers(1, 40), st.integers(1, 40))
def test_is_within_a_quarter_level_of_exact(
    kernel: np.ndarray, seed: int, height: int, width: int
) -> None:
    planes = _extreme(seed, (2, height, width))
    blurred = convolve(planes, kernel)
    assert blurred.dtype == np.float32 and blurred.shape == planes.shape
    assert np.abs(blurred - _exact(planes, kernel)).max() <= 0.25


@settings(max_examples=60, deadline=None)
@given(_KERNELS)
def test_the_worst_picture_is_within_a_quarter_level(kernel: np.ndarray) -> None:
    size = len(kernel)
    impulse = np.zeros((1, 2 * size + 1, 2 * size + 1), np.float32)
    impulse[0, size, size] = 255.0
    difference = convolve(impulse, kernel) - _exact(impulse, kernel)
    # White where the kernel's error is positive and black elsewhere, or the other way round.
    assert max(difference[difference > 0].sum(), -difference[difference < 0].sum()) <= 0.25


@settings(max_examples=60, deadline=None)
@given(_SEEDS, st.integers(0, 4), st.booleans())
def test_any_kernel_is_turned_as_a_convolution(seed: int, reach: int, signed: bool) -> None:
    random = np.random.default_rng(seed)
    kernel = random.random((2 * reach + 1, 2 * reach + 1)) - (0.4 if signed else 0.0)
    kernel /= np.abs(kernel).sum()
    planes = _extreme(seed, (1, 11, 13))
    expected = ndimage.convolve(planes[0].astype(np.float64), kernel, mode="mirror")
    assert np.abs(convolve(planes, kernel)[0] - expected).max() <= 0.25


@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_a_low_rank_kernel_without_symmetry(angle: float) -> None:
    kernel = np.roll(kernels.gaussian(21, 2.0, 3.0, angle), (2, -1), (0, 1))
    planes = _extreme(3, (3, 50, 60))
    assert np.abs(convolve(planes, kernel) - _exact(planes, kernel)).max() <= 0.25


@pytest.mark.parametrize("size", [1, 3, 21])
def test_the_identity_changes_nothing(size: int) -> None:
    kernel = np.zeros((size, size))
    kernel[size // 2, size // 2] = 1.0
    planes = (300 * np.random.default_rng(0).random((3, 9, 10)) - 20).astype(np.float32)
    assert np.array_equal(convolve(planes, kernel), planes)


@settings(max_examples=60, deadline=None)
@given(_KERNELS, st.floats(-20, 280, width=32))
def test_flat_areas_do_not_move(kernel: np.ndarray, level: float) -> None:
    planes = np.full((1, 30, 33), level, np.float32)
    # A few units of float32's last place at 255 (1.5e-5); the allowance would be 1,000 times it.
    assert np.abs(convolve(planes, kernel) - level).max() < 3e-4


@settings(max_examples=30, deadline=None)
@given(_KERNELS, _SEEDS)
def test_moves_with_the_picture(kernel: np.ndarray, seed: int) -> None:
    reach = len(kernel) // 2
    planes = _extreme(seed, (1, 2 * reach + 12, 2 * reach + 14))
    moved = convolve(planes[:, 2:, 3:], kernel)
    inside = (slice(None), slice(reach, -reach), slice(reach, -reach))
    assert np.array_equal(moved[inside], convolve(planes, kernel)[:, 2:, 3:][inside])


def test_is_linear() -> None:
    kernel = kernels.gaussian(15, 3.0, 1.0, 0.4)
    first, second = _extreme(1, (3, 20, 20)), _extreme(2, (3, 20, 20))
    total = 0.25 * convolve(first, kernel) - 2 * convolve(second, kernel)
    np.testing.assert_allclose(
        convolve((0.25 * first - 2 * second).astype(np.float32), kernel), total, atol=1e-3
    )


def test_gives_the_same_bytes_in_any_layout_and_leaves_its_input() -> None:
    planes = _extreme(4, (3, 40, 36))
    for kernel in (kernels.gaussian(21, 3.0, 5.0, 0.3), kernels.gaussian(21, 0.5, 5.0, 0.8)):
        expected = convolve(planes, kernel)
        interleaved = np.ascontiguousarray(planes.transpose(1, 2, 0)).transpose(2, 0, 1)
        wide = np.zeros((3, 40, 80), np.float32)
        wide[:, :, 4:76:2] = planes
        frozen = planes.copy()
        frozen.flags.writeable = False
        for layout in (interleaved, wide[:, :, 4:76:2], frozen, np.asfortranarray(planes)):
            result = convolve(layout, np.asfortranarray(kernel))
            assert result.flags.c_contiguous and result.tobytes() == expected.tobytes()
        assert np.array_equal(frozen, planes)


def test_gives_the_same_bytes_from_threads() -> None:
    planes = _extreme(5, (3, 64, 64))
    tasks = [kernels.gaussian(21, 1 + 0.2 * i, 3.0, 0.1 * i) for i in range(12)]
    tasks += [kernels.gaussian(21, 0.4, 5.0, 0.1 * i) for i in range(12)]
    alone = [convolve(planes, kernel).tobytes() for kernel in tasks]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            together = pool.map(lambda kernel: convolve(planes, kernel).tobytes(), tasks)
            assert list(together) == alone


@pytest.mark.parametrize(
    ("planes", "kernel", "name"),
    [
        (np.zeros((3, 4, 4)), np.ones((3, 3)), "planes"),
        (np.zeros((4, 4), np.float32), np.ones((3, 3)), "planes"),
        (np.zeros((3, 0, 4), np.float32), np.ones((3, 3)), "planes"),
        (np.zeros((3, 4, 4), np.float32), np.ones((3, 3), np.float32), "kernel"),
        (np.zeros((3, 4, 4), np.float32), np.ones((3, 5)), "kernel"),
        (np.zeros((3, 4, 4), np.float32), np.ones((4, 4)), "kernel"),
        (np.zeros((3, 4, 4), np.float32), np.full((3, 3), np.nan), "kernel"),
    ],
)
def test_wrong_arguments_are_named(planes: np.ndarray, kernel: np.ndarray, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must"):
        convolve(planes, kernel)

"""Resizing of planes against torch, exact integrals and the kernels' formulas."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sr_models.degradations.resizing import METHODS, resize

SIDES = st.integers(1, 70)


def picture(height: int, width: int, planes: int = 3) -> np.ndarray:
    """Levels with overshoot."""
    return np.random.default_rng(height * 71 + width).uniform(-20, 280, (planes, height, width))


def by_matrices(planes: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Weights of rows [out, in] and columns [out, in] applied in float64."""
    return np.einsum("yi,cij,xj->cyx", rows, planes, columns)


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["bilinear", "bicubic"]))
def test_interpolation_is_that_of_torch(
    height: int, width: int, new_height: int, new_width: int, method: str
) -> None:
    planes = picture(height, width)
    ours = resize(planes.astype(np.float32), new_height, new_width, method)
    theirs = F.interpolate(
        torch.from_numpy(planes)[None], (new_height, new_width), mode=method, align_corners=False
    )
    np.testing.assert_allclose(ours, theirs[0].numpy(), rtol=0, atol=1e-3)


@given(SIDES, SIDES, SIDES, SIDES)
def test_nearest_takes_the_pixel_that_holds_the_centre(
    height: int, width: int, new_height: int, new_width: int
) -> None:
    planes = picture(height, width).astype(np.float32)
    y = [int((i + Fraction(1, 2)) * height / new_height) for i in range(new_height)]
    x = [int((i + Fraction(1, 2)) * width / new_width) for i in range(new_width)]
    expected = planes[:, y][:, :, x]
    np.testing.assert_array_equal(resize(planes, new_height, new_width, "nearest"), expected)


def test_nearest_is_nearest_exact_of_torch() -> None:
    planes = picture(64, 48).astype(np.float32)
    theirs = F.interpolate(torch.from_numpy(planes)[None], (16, 96), mode="nearest-exact")[0]
    np.testing.assert_array_equal(resize(planes, 16, 96, "nearest"), theirs.numpy())


def area_rows(length: int, out: int) -> np.ndarray:
    """Share of each output pixel's extent that lies in each input pixel; bilinear to enlarge."""
    if out >= length:
        unit = torch.eye(length, dtype=torch.float64)[None]
        return F.interpolate(unit, out, mode="linear", align_corners=False)[0].T.numpy()
    edges = np.arange(out + 1) * (length / out)
    upper = np.minimum(edges[1:, None], np.arange(1, length + 1))
    lower = np.maximum(edges[:-1, None], np.arange(length))
    return np.maximum(upper - lower, 0) / (length / out)


@given(SIDES, SIDES, SIDES, SIDES)
def test_area_is_the_mean_over_the_area(
    height: int, width: int, new_height: int, new_width: int
) -> None:
    planes = picture(height, width)
    ours = resize(planes.astype(np.float32), new_height, new_width, "area")
    exact = by_matrices(planes, area_rows(height, new_height), area_rows(width, new_width))
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-3)


def lanczos_rows(length: int, out: int) -> np.ndarray:
    """sinc(t) sinc(t / 4) for |t| < 4, in pixels of the input; the border's pixels repeat."""
    rows = np.zeros((out, length))
    for i in range(out):
        centre = (i + 0.5) * length / out - 0.5
        taps = np.arange(np.floor(centre) - 3, np.floor(centre) + 5)
        weights = np.sinc(taps - centre) * np.sinc((taps - centre) / 4)
        pixels = np.clip(taps, 0, length - 1).astype(int)
        np.add.at(rows[i], pixels, weights / weights.sum())
    return rows


@given(SIDES, SIDES, SIDES, SIDES)
def test_lanczos_is_its_formula(height: int, width: int, new_height: int, new_width: int) -> None:
    planes = picture(height, width)
    ours = resize(planes.astype(np.float32), new_height, new_width, "lanczos")
    exact = by_matrices(planes, lanczos_rows(height, new_height), lanczos_rows(width, new_width))
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-3)


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(METHODS), st.floats(-300, 300, width=32))
def test_constants_stay_to_the_bit(
    height: int, width: int, new_height: int, new_width: int, method: str, level: float
) -> None:
    planes = np.full((2, height, width), level, np.float32)
    resized = resize(planes, new_height, new_width, method)
    assert resized.dtype == np.float32 and resized.flags.c_contiguous
    np.testing.assert_array_equal(resized, np.full((2, new_height, new_width), level, np.float32))


@pytest.mark.parametrize("method", METHODS)
def test_the_same_size_changes_nothing(method: str) -> None:
    planes = picture(33, 50).astype(np.float32)
    resized = resize(planes, 33, 50, method)
    np.testing.assert_array_equal(resized, planes)
    assert resized is not planes


@pytest.mark.parametrize("method", METHODS)
def test_planes_do_not_mix(method: str) -> None:
    planes = picture(40, 31).astype(np.float32)
    together = resize(planes, 25, 60, method)
    for c in range(3):
        np.testing.assert_array_equal(together[c], resize(planes[c : c + 1], 25, 60, method)[0])


@pytest.mark.parametrize("method", METHODS)
def test_nothing_shifts_the_picture(method: str) -> None:
    """A mirrored picture gives the mirrored result; ties of nearest are kept out by odd ratios."""
    planes = picture(30, 45).astype(np.float32)
    there = resize(planes, 10, 15, method)
    mirrored = np.ascontiguousarray(planes[:, ::-1, ::-1])
    back = resize(mirrored, 10, 15, method)[:, ::-1, ::-1]
    np.testing.assert_allclose(there, back, rtol=0, atol=1e-3)


def test_errors_name_what_is_wrong() -> None:
    planes = np.zeros((3, 4, 4), np.float32)
    with pytest.raises(ValueError, match=r"method must be one of nearest.*'cubic'"):
        resize(planes, 2, 2, "cubic")
    with pytest.raises(ValueError, match="4x4 to 0x2"):
        resize(planes, 0, 2, "area")

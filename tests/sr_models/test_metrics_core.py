"""The metrics that are always measured against BasicSR's formulas, torchmetrics and published rows.

The libraries whose defaults are another convention are here too: docs/metrics.md tells the figures.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.signal import correlate2d
from skimage.data import astronaut
from skimage.metrics import structural_similarity

from sr_models.degradations.bicubic import downscale_uint8, upscale
from sr_models.metrics.images import (
    MS_SSIM_SMALLEST,
    lr_psnr,
    luma,
    ms_ssim_y,
    psnr_rgb,
    psnr_y,
    ssim_y,
    to_uint8,
)

SEEDS = st.integers(0, 2**32 - 1)


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def near(image: np.ndarray, seed: int, spread: int) -> np.ndarray:
    shift = np.random.default_rng(seed).integers(-spread, spread + 1, image.shape)
    return np.clip(image.astype(int) + shift, 0, 255).astype(np.uint8)


def bicubic(hr: np.ndarray, scale: int) -> np.ndarray:
    lr = torch.from_numpy(downscale_uint8(hr, scale).transpose(2, 0, 1)[None] / 255.0)
    return to_uint8(upscale(lr, scale)[0])


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1)[None] / np.float32(255))


def photo() -> tuple[np.ndarray, np.ndarray]:
    """HR and its bicubic enlargement by 4."""
    hr = np.ascontiguousarray(astronaut()[:256, 128:384])
    return bicubic(hr, 4), hr


def basicsr_luma(image: np.ndarray, precision: type) -> np.ndarray:
    """`to_y_channel`: blue first; its precision on the way in and out is np.float32."""
    scaled = image[..., ::-1].astype(precision) / 255
    y = np.dot(scaled, [24.966, 128.553, 65.481]) + 16
    return (y / 255).astype(precision) * precision(255.0)


def basicsr_psnr(
    sr: np.ndarray, hr: np.ndarray, crop: int, luma_precision: type | None = None
) -> float:
    one, two = (i[crop:-crop, crop:-crop] for i in (sr, hr))
    if luma_precision:
        one, two = (basicsr_luma(i, luma_precision) for i in (one, two))
    error = np.mean((one.astype(np.float64) - two.astype(np.float64)) ** 2)
    return float(10.0 * np.log10(255.0 * 255.0 / error))


def basicsr_ssim(sr: np.ndarray, hr: np.ndarray, crop: int, precision: type) -> float:
    inner = (i[crop:-crop, crop:-crop] for i in (sr, hr))
    one, two = (basicsr_luma(i, precision).astype(np.float64) for i in inner)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    line /= line.sum()

    def mean(plane: np.ndarray) -> np.ndarray:
        return correlate2d(plane, np.outer(line, line), mode="valid")

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    m1, m2 = mean(one), mean(two)
    v1, v2, v12 = mean(one**2) - m1**2, mean(two**2) - m2**2, mean(one * two) - m1 * m2
    found = ((2 * m1 * m2 + c1) * (2 * v12 + c2)) / ((m1**2 + m2**2 + c1) * (v1 + v2 + c2))
    return float(found.mean())


@settings(max_examples=25)
@given(
    seed=SEEDS,
    height=st.integers(20, 48),
    width=st.integers(20, 48),
    crop=st.integers(1, 4),
    spread=st.integers(1, 255),
)
def test_psnr_and_ssim_are_basicsr_s(
    seed: int, height: int, width: int, crop: int, spread: int
) -> None:
    hr = noise(seed, height, width)
    sr = near(hr, seed + 1, spread)
    double = basicsr_psnr(sr, hr, crop, np.float64)
    assert psnr_y(sr, hr, crop) == pytest.approx(double, abs=1e-6)
    assert psnr_rgb(sr, hr, crop) == pytest.approx(basicsr_psnr(sr, hr, crop), abs=1e-6)
    assert ssim_y(sr, hr, crop) == pytest.approx(basicsr_ssim(sr, hr, crop, np.float64), abs=1e-6)


@settings(max_examples=25)
@given(seed=SEEDS, height=st.integers(24, 64), width=st.integers(24, 64))
def test_single_precision_as_in_basicsr_changes_nothing(seed: int, height: int, width: int) -> None:
    """On random images; pictures that are almost equal (54 dB) differ by 1e-5 dB."""
    sr, hr = noise(seed, height, width), noise(seed + 1, height, width)
    assert psnr_y(sr, hr, 4) == pytest.approx(basicsr_psnr(sr, hr, 4, np.float32), abs=1e-6)
    assert ssim_y(sr, hr, 4) == pytest.approx(basicsr_ssim(sr, hr, 4, np.float32), abs=1e-6)


def test_psnr_rgb_weighs_channels_alike() -> None:
    hr = np.full((20, 20, 3), 100, np.uint8)
    for channel in range(3):
        sr = hr.copy()
        sr[..., channel] += 6
        assert psnr_rgb(sr, hr, 2) == pytest.approx(10 * math.log10(255**2 / 12))
    assert psnr_rgb(hr, hr, 2) == math.inf


@pytest.mark.parametrize(("height", "width"), [(161, 161), (163, 190), (200, 171)])
def test_ms_ssim_by_its_definition(height: int, width: int) -> None:
    hr = np.ascontiguousarray(astronaut()[100 : 108 + height, 150 : 158 + width])
    sr = near(hr, 3, 60)
    one, two = (luma(i[4:-4, 4:-4]) for i in (sr, hr))
    line = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    window = np.outer(line, line) / line.sum() ** 2
    expected = 1.0
    for level, exponent in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):

        def mean(plane: np.ndarray) -> np.ndarray:
            return correlate2d(plane, window, mode="valid")

        m1, m2 = mean(one), mean(two)
        v1, v2, v12 = mean(one**2) - m1**2, mean(two**2) - m2**2, mean(one * two) - m1 * m2
        term = (2 * v12 + (0.03 * 255) ** 2) / (v1 + v2 + (0.03 * 255) ** 2)
        if level == 4:
            c1 = (0.01 * 255) ** 2
            term = term * (2 * m1 * m2 + c1) / (m1**2 + m2**2 + c1)
        expected *= term.mean() ** exponent
        even = [np.pad(p, [(0, s % 2) for s in p.shape], mode="edge") for p in (one, two)]
        one, two = ((p[::2, ::2] + p[1::2, ::2] + p[::2, 1::2] + p[1::2, 1::2]) / 4 for p in even)
    assert ms_ssim_y(sr, hr, 4) == pytest.approx(expected, abs=1e-10)


def test_ms_ssim_is_torchmetrics_where_all_levels_are_even() -> None:
    image = pytest.importorskip("torchmetrics.functional.image")
    sr, hr = photo()
    planes = [torch.from_numpy(luma(i))[None, None] for i in (sr, hr)]
    theirs = image.multiscale_structural_similarity_index_measure(*planes, data_range=255.0)
    assert ms_ssim_y(sr, hr, 0) == pytest.approx(float(theirs), abs=1e-4)


def test_ms_ssim_of_equal_opposite_and_small_pictures() -> None:
    hr = noise(1, 170, 169)
    assert ms_ssim_y(hr, hr, 4) == 1.0
    assert ms_ssim_y(255 - hr, hr, 4) == 0.0  # no complex number of a negative structure
    small = noise(2, MS_SSIM_SMALLEST + 7, 200)
    with pytest.raises(ValueError, match="a border of 4 leaves less than 161 px"):
        ms_ssim_y(small, small, 4)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_psnr_is_that_of_the_reduced_picture(scale: int) -> None:
    hr = noise(5, 12 * scale, 9 * scale)
    lr = downscale_uint8(hr, scale)
    assert lr_psnr(hr, lr, scale) == math.inf
    other = lr.copy()
    other[3, 4, 1] ^= 8
    error = 64 / other.size
    assert lr_psnr(hr, other, scale) == pytest.approx(10 * math.log10(255**2 / error))
    sr, photo_hr = photo()
    assert 30 < lr_psnr(sr, downscale_uint8(photo_hr, 4), 4) < 45  # soft, so not consistent
    with pytest.raises(ValueError, match="the sizes must agree"):
        lr_psnr(hr, lr[:, 1:], scale)


def test_skimage_s_own_window_and_range_are_another_metric() -> None:
    """Its defaults: 7x7 of equal weights, sample covariance, and a border of half a window."""
    sr, hr = photo()
    default = structural_similarity(luma(sr), luma(hr), data_range=255)
    assert abs(default - ssim_y(sr, hr, 4)) > 0.005


def test_pyiqa_s_psnry_and_ssim_are_full_range_and_not_cropped() -> None:
    pyiqa = pytest.importorskip("pyiqa")
    sr, hr = photo()
    one, two = tensor(sr), tensor(hr)
    assert psnr_y(sr, hr, 4) - float(pyiqa.create_metric("psnry")(one, two)) > 1.0
    mended = pyiqa.create_metric("psnry", color_space="ycbcr", crop_border=4)
    # It rounds luma to whole levels, which the convention does not.
    assert float(mended(one, two)) == pytest.approx(psnr_y(sr, hr, 4), abs=0.02)
    assert abs(float(pyiqa.create_metric("ssim")(one, two)) - ssim_y(sr, hr, 4)) > 0.002


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "psnr", "ssim"), [("Set5", 28.43, 0.8113), ("Set14", 26.09, None)]
)
def test_bicubic_on_published_sets(
    shared_data: Path, name: str, psnr: float, ssim: float | None
) -> None:
    pairs = []
    for file in sorted((shared_data / "benchmarks" / name).glob("*.png")):
        hr = np.array(Image.open(file).convert("RGB"))
        pairs.append((bicubic(hr, 4), hr))
    assert np.mean([psnr_y(*pair, 4) for pair in pairs]) == pytest.approx(psnr, abs=0.01)
    if ssim is not None:
        assert np.mean([ssim_y(*pair, 4) for pair in pairs]) == pytest.approx(ssim, abs=0.001)
        assert all(ms_ssim_y(*pair, 4) > 0.9 for pair in pairs)

"""The metrics against their definitions, written out, and against scikit-image's SSIM."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from sr_models.metrics.images import colour_offset, luma, psnr_y, ssim_y, to_uint8


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def near(image: np.ndarray, seed: int, spread: int) -> np.ndarray:
    shift = np.random.default_rng(seed).integers(-spread, spread + 1, image.shape)
    return np.clip(image.astype(int) + shift, 0, 255).astype(np.uint8)


def test_to_uint8_clamps_rounds_half_up_and_moves_the_channels() -> None:
    values = torch.tensor([-0.2, 0.0, 0.5, 100.4 / 255, 1.0, 1.3])
    picture = to_uint8(values.expand(2, 3, 1, 6))
    assert picture.shape == (2, 1, 6, 3) and picture.dtype == np.uint8
    assert picture[1, 0, :, 2].tolist() == [0, 0, 128, 100, 255, 255]


def test_to_uint8_gives_every_byte_back_in_every_precision() -> None:
    values = torch.arange(256) / 255
    for dtype in (torch.float32, torch.float64, torch.float16):
        picture = to_uint8(values.to(dtype).expand(3, 1, 256))
        assert picture[0, :, 0].tolist() == list(range(256)), dtype


def test_to_uint8_refuses_what_is_no_picture() -> None:
    images = torch.zeros(3, 2, 2)
    images[0, 0, 0], images[2, 1, 1] = math.nan, math.inf
    with pytest.raises(ValueError, match="2 of 12 values are not finite"):
        to_uint8(images)
    with pytest.raises(ValueError, match=r"got torch\.float32 \[1, 4, 4\]"):
        to_uint8(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match=r"got torch\.uint8 \[3, 4, 4\]"):
        to_uint8(torch.zeros(3, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("colour", "y"),
    [
        ((0, 0, 0), 16.0),
        ((255, 255, 255), 235.0),
        ((255, 0, 0), 16 + 65.481),
        ((0, 255, 0), 16 + 128.553),
        ((0, 0, 255), 16 + 24.966),
    ],
)
def test_luma_of_the_corners_of_the_cube(colour: tuple[int, int, int], y: float) -> None:
    assert luma(np.array(colour, np.uint8)) == pytest.approx(y)


def test_psnr_of_one_changed_grey_level() -> None:
    hr = np.full((20, 30, 3), 100, np.uint8)
    step = 219 / 255  # what one grey level is worth in studio range
    assert psnr_y(hr + np.uint8(1), hr, 4) == pytest.approx(20 * math.log10(255 / step))


def test_identical_images_are_infinitely_good() -> None:
    image = noise(0, 24, 24)
    assert psnr_y(image, image, 4) == math.inf
    assert ssim_y(image, image, 4) == 1.0
    assert colour_offset(image, image) == (0.0, 0.0, 0.0)


def test_what_lies_in_the_border_does_not_count() -> None:
    hr = noise(1, 32, 28)
    sr = near(hr, 2, 9)
    spoiled = sr.copy()
    spoiled[:4], spoiled[-4:], spoiled[:, :4], spoiled[:, -4:] = 0, 0, 255, 255
    assert psnr_y(spoiled, hr, 4) == psnr_y(sr, hr, 4)
    assert ssim_y(spoiled, hr, 4) == ssim_y(sr, hr, 4)
    assert psnr_y(spoiled, hr, 3) < psnr_y(sr, hr, 3)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(11, 40),
    width=st.integers(11, 40),
    border=st.integers(0, 8),
    spread=st.integers(0, 120),
)
def test_ssim_equals_scikit_image(
    seed: int, height: int, width: int, border: int, spread: int
) -> None:
    hr = noise(seed, height + 2 * border, width + 2 * border)
    sr = near(hr, seed + 1, spread)
    inner = slice(border, border + height), slice(border, border + width)
    _, similarity = structural_similarity(
        luma(sr[inner]),
        luma(hr[inner]),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        full=True,
    )
    assert ssim_y(sr, hr, border) == pytest.approx(similarity[5:-5, 5:-5].mean(), abs=1e-10)


def test_ssim_of_two_flat_images_is_its_luminance_term() -> None:
    dark, light = np.full((15, 15, 3), 40, np.uint8), np.full((15, 15, 3), 90, np.uint8)
    x, y, c = 16 + 40 * 219 / 255, 16 + 90 * 219 / 255, (0.01 * 255) ** 2
    assert ssim_y(dark, light, 0) == pytest.approx((2 * x * y + c) / (x * x + y * y + c))


def test_colour_offset_is_signed_and_per_channel() -> None:
    hr = np.full((10, 12, 3), 100, np.uint8)
    sr = hr.copy()
    sr[..., 0] += 4
    sr[:5, :, 2] -= 3
    assert colour_offset(sr, hr) == (4.0, 0.0, -1.5)


def test_errors_carry_the_shapes() -> None:
    image = noise(3, 16, 16)
    with pytest.raises(ValueError, match=r"sr is \[16, 16, 3\] but hr is \[16, 12, 3\]"):
        psnr_y(image, image[:, :12], 0)
    with pytest.raises(
        ValueError, match=r"hr must be uint8 \[H, W, 3\], got float64 \[16, 16, 3\]"
    ):
        ssim_y(image, image / 255, 0)
    with pytest.raises(ValueError, match=r"sr must be .* got uint8 \[16, 16\]"):
        colour_offset(image[..., 0], image)
    with pytest.raises(ValueError, match=r"a border of 3 leaves less than 11 px of \[16, 16\]"):
        ssim_y(image, image, 3)
    with pytest.raises(ValueError, match="a border of 8 leaves less than 1 px"):
        psnr_y(image, image, 8)

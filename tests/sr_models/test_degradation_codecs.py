"""The real codecs: what is in the files, and that the way there and back loses nothing else."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from sr_models.degradations.codecs import (
    SUBSAMPLINGS,
    jpeg_decode,
    jpeg_encode,
    round_trip,
    versions,
    webp_decode,
    webp_encode,
)
from sr_models.degradations.pixels import to_pixels, to_planes

SIDES = st.integers(1, 50)
#: Luma table for quality 50 of the JPEG standard, annex K, in rows.
LUMA_50 = [16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57]


def picture(height: int, width: int) -> np.ndarray:
    """Noise over a ramp of colours."""
    generator = np.random.default_rng(height * 71 + width)
    ramp = np.linspace(0, 200, width)[None, :, None] * [1.0, 0.5, 0.2]
    return (ramp + generator.integers(0, 56, (height, width, 3))).astype(np.uint8)


@given(SIDES, SIDES, st.integers(1, 100), st.sampled_from(list(SUBSAMPLINGS)))
def test_jpeg_decodes_as_pillow_does(
    height: int, width: int, quality: int, subsampling: str
) -> None:
    encoded = jpeg_encode(picture(height, width), quality, subsampling)
    with Image.open(io.BytesIO(encoded)) as image:
        expected = np.asarray(image.convert("RGB"))
    decoded = jpeg_decode(encoded)
    assert decoded.dtype == np.uint8 and decoded.shape == (height, width, 3)
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize(("subsampling", "code"), [("4:4:4", 0), ("4:2:2", 1), ("4:2:0", 2)])
def test_subsampling_is_in_the_file(subsampling: str, code: int) -> None:
    with Image.open(io.BytesIO(jpeg_encode(picture(33, 47), 80, subsampling))) as image:
        assert JpegImagePlugin.get_sampling(image) == code
        assert image.mode == "RGB" and "progressive" not in image.info


@pytest.mark.parametrize("quality", [1, 10, 30, 49, 50, 51, 75, 95, 100])
def test_quality_scales_the_table_as_libjpeg_does(quality: int) -> None:
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    expected = [min(max((q * percent + 50) // 100, 1), 255) for q in LUMA_50]
    with Image.open(io.BytesIO(jpeg_encode(picture(16, 16), quality, "4:2:0"))) as image:
        assert list(image.quantization[0])[: len(expected)] == expected


def test_more_quality_is_nearer_the_picture() -> None:
    planes = to_planes(picture(64, 64))
    for codec in ("jpeg", "webp"):
        errors = [
            np.abs(round_trip(planes, codec, quality, "4:4:4") - planes).mean()
            for quality in (5, 30, 60, 100)
        ]
        assert errors == sorted(errors, reverse=True) and errors[0] > 1.2 * errors[-1]


@given(SIDES, SIDES, st.integers(1, 100))
def test_webp_is_lossy_webp_of_any_size(height: int, width: int, quality: int) -> None:
    encoded = webp_encode(picture(height, width), quality)
    assert encoded[:4] == b"RIFF" and encoded[8:16] == b"WEBPVP8 "
    decoded = webp_decode(encoded)
    assert decoded.dtype == np.uint8 and decoded.shape == (height, width, 3)


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_overshoot_is_clipped_and_never_wraps(codec: str) -> None:
    for level, expected in ((255.4, 255), (256, 255), (306, 255), (1e6, 255), (-0.4, 0), (-26, 0)):
        planes = np.full((3, 24, 24), level, np.float32)
        result = round_trip(planes, codec, 95, "4:4:4")
        assert np.abs(result - expected).max() <= 2, (level, result)


def test_round_trip_is_the_codec_on_rounded_pixels() -> None:
    planes = np.random.default_rng(3).uniform(-30, 290, (3, 37, 21)).astype(np.float32)
    pixels = np.clip(np.floor(planes.astype(np.float64) + 0.5), 0, 255).astype(np.uint8)
    pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    expected = jpeg_decode(jpeg_encode(pixels, 60, "4:2:0")).transpose(2, 0, 1)
    result = round_trip(planes, "jpeg", 60, "4:2:0")
    assert result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_array_equal(result, expected)
    result = round_trip(planes, "webp", 60, "")
    np.testing.assert_array_equal(result, webp_decode(webp_encode(pixels, 60)).transpose(2, 0, 1))


def test_halves_round_up_and_nothing_below_them_does() -> None:
    below = np.nextafter(np.float32(0.5), np.float32(0))
    levels = np.array([0.5, below, 1.5, 254.5, 254.49998, -0.5, 255.5], np.float32)
    pixels = to_pixels(np.broadcast_to(levels, (3, 1, 7)))
    assert pixels[0, :, 1].tolist() == [1, 0, 2, 255, 254, 0, 255]


@given(SIDES, SIDES)
def test_planes_and_pixels_are_inverse(height: int, width: int) -> None:
    pixels = picture(height, width)
    planes = to_planes(pixels)
    assert planes.dtype == np.float32 and planes.flags.c_contiguous
    np.testing.assert_array_equal(planes, pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(to_pixels(planes), pixels)
    np.testing.assert_array_equal(to_planes(pixels[:, ::-1]), planes[:, :, ::-1])


def test_errors_name_what_is_wrong() -> None:
    planes = np.zeros((3, 8, 8), np.float32)
    with pytest.raises(ValueError, match="quality must be 1 to 100, got 0"):
        round_trip(planes, "jpeg", 0, "4:2:0")
    with pytest.raises(ValueError, match="quality must be 1 to 100, got 101"):
        round_trip(planes, "webp", 101, "")
    with pytest.raises(ValueError, match=r"subsampling must be one of.*'4:1:0'"):
        round_trip(planes, "jpeg", 50, "4:1:0")
    with pytest.raises(ValueError, match=r"codec must be one of.*'avif'"):
        round_trip(planes, "avif", 50, "")


def test_the_codec_is_libjpeg_turbo() -> None:
    assert versions().startswith("libjpeg-turbo "), "other libjpegs give other bytes"
    assert "libwebp " in versions() and "missing" not in versions()

"""What becomes of every kind of image file: docs/images.md, row by row."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from image_files import (
    GREY_PROFILE,
    SWAPPED_PROFILE,
    chunk,
    cmyk_profile,
    png,
    saved,
    wide_png,
    wide_tiff,
)
from PIL import Image, ImageCms

from sr_assets.pictures import BadImage, Pixels, decode_rgb, inspect

LIMIT = 10.0
RGB = np.random.default_rng(7).integers(0, 256, (12, 17, 3), dtype=np.uint8)


def refused(data: bytes, limit: float = LIMIT) -> str:
    """The reason, which must be one short line and the same from both doors."""
    with pytest.raises(BadImage) as from_inspect:
        inspect(data, limit)
    with pytest.raises(BadImage) as from_decode:
        decode_rgb(data, limit)
    assert from_inspect.value.reason == from_decode.value.reason
    assert 0 < len(from_inspect.value.reason) < 160
    assert "\n" not in from_inspect.value.reason
    return from_inspect.value.reason


# ---------------------------------------------------------------- exact round trips

SMALL = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))
WIDE = arrays(np.uint16, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3)))


@settings(max_examples=40, deadline=None)
@given(pixels=SMALL)
def test_lossless_formats_come_back_bit_exact(pixels: Pixels) -> None:
    image = Image.fromarray(pixels)
    for data in (
        saved(image, "PNG"),
        saved(image, "TIFF"),
        saved(image, "TIFF", compression="tiff_lzw"),
        saved(image, "BMP"),
        saved(image, "PPM"),
        saved(image, "WEBP", lossless=True, exact=True),
        saved(image, "JPEG2000", irreversible=False, num_resolutions=1),
    ):
        decoded = decode_rgb(data, LIMIT)
        assert decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, pixels)


def to_nearest(samples: np.ndarray) -> np.ndarray:
    return np.floor(samples.astype(np.float64) * 255 / 65535 + 0.5).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(samples=WIDE)
def test_16_bit_rgb_is_rounded_and_not_cut(samples: np.ndarray) -> None:
    for data in (wide_png(samples), wide_tiff(samples, "<"), wide_tiff(samples, ">")):
        np.testing.assert_array_equal(decode_rgb(data, LIMIT), to_nearest(samples))


def test_every_16_bit_value_is_rounded() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    grey = Image.fromarray(every[..., 0])
    expected = np.repeat(to_nearest(every), 3, axis=2)
    pgm = b"P5 256 256 65535\n" + every.astype(">u2").tobytes()
    ppm = b"P6 256 256 65535\n" + np.repeat(every, 3, axis=2).astype(">u2").tobytes()
    for data in (
        saved(grey, "PNG"),
        saved(grey, "TIFF"),
        saved(grey, "TIFF", compression="tiff_adobe_deflate"),
        wide_png(every),
        wide_png(np.repeat(every, 3, axis=2)),
        wide_tiff(every, ">", photometric=1),
        pgm,
        ppm,
    ):
        np.testing.assert_array_equal(decode_rgb(data, LIMIT), expected)
    inverted = decode_rgb(wide_tiff(every, "<", photometric=0), LIMIT)
    np.testing.assert_array_equal(inverted, expected[::-1, ::-1])


def test_16_bit_rgb_tiff_compressed_by_libtiff_is_rounded(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    samples = np.random.default_rng(1).integers(0, 65536, (33, 21, 3), dtype=np.uint16)
    for order in "<>":
        path = tmp_path / "wide.tif"
        tifffile.imwrite(path, samples, photometric="rgb", compression="zlib", byteorder=order)
        np.testing.assert_array_equal(decode_rgb(path.read_bytes(), LIMIT), to_nearest(samples))
        assert inspect(path, LIMIT).mode == "RGB;16"
        tifffile.imwrite(
            path, samples.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"
        )
        assert "lose its lower bits" in refused(path.read_bytes())


def test_16_bit_alpha_goes_when_it_hides_nothing() -> None:
    samples = np.random.default_rng(2).integers(0, 65536, (5, 6, 4), dtype=np.uint16)
    samples[..., 3] = 65535
    for write in (wide_png, lambda s: wide_tiff(s, "<")):
        np.testing.assert_array_equal(
            decode_rgb(write(samples), LIMIT), to_nearest(samples[..., :3])
        )
    samples[2, 3, 3] = 65534  # one sample short of opaque, which 8 bits would not show
    for write in (wide_png, lambda s: wide_tiff(s, "<")):
        assert refused(write(samples)) == "transparent pixels"


def test_other_wide_samples_are_refused() -> None:
    grey = np.full((4, 4, 1), 999, np.uint16)
    assert "16-bit" in refused(wide_png(np.full((4, 4, 2), 65535, np.uint16)))
    assert "transparent" in refused(wide_png(grey, chunk(b"tRNS", b"\x03\xe7")))
    assert "floating-point" in refused(saved(Image.new("F", (4, 4), 0.5), "TIFF"))
    assert "32-bit" in refused(saved(Image.new("I", (4, 4), 7), "TIFF"))
    twelve = wide_tiff(grey, "<", photometric=1, bits=12)
    assert "neither 8 nor 16" in refused(twelve)
    cmyk = wide_tiff(np.zeros((4, 4, 4), np.uint16), "<", photometric=5)
    assert "16-bit CMYK" in refused(cmyk.replace(struct.pack("<HHIH", 338, 3, 1, 2), b"\0" * 10))


# ---------------------------------------------------------------- modes


def test_grey_one_bit_and_palette_become_rgb() -> None:
    grey = Image.fromarray(RGB[..., 0])
    np.testing.assert_array_equal(
        decode_rgb(saved(grey, "PNG"), LIMIT), np.repeat(RGB[..., :1], 3, axis=2)
    )
    bits = grey.convert("1", dither=Image.Dither.NONE)
    assert set(np.unique(decode_rgb(saved(bits, "PNG"), LIMIT))) == {0, 255}
    np.testing.assert_array_equal(
        decode_rgb(saved(bits, "TIFF"), LIMIT), decode_rgb(saved(bits, "PNG"), LIMIT)
    )
    palette = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    for format_ in ("PNG", "GIF", "BMP", "TIFF"):
        np.testing.assert_array_equal(decode_rgb(saved(palette, format_), LIMIT), expected)


def test_alpha_that_hides_nothing_is_dropped() -> None:
    opaque = Image.fromarray(RGB).convert("RGBA")
    for format_, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        data = saved(opaque, format_, **options)
        np.testing.assert_array_equal(decode_rgb(data, LIMIT), RGB)
    grey = Image.fromarray(RGB[..., 0]).convert("LA")
    np.testing.assert_array_equal(
        decode_rgb(saved(grey, "PNG"), LIMIT), np.repeat(RGB[..., :1], 3, axis=2)
    )


def _one_clear_pixel(mode: str, format_: str) -> bytes:
    image = Image.fromarray(RGB).convert(mode)
    alpha = Image.new("L", image.size, 255)
    alpha.putpixel((3, 4), 254)
    image.putalpha(alpha)
    return saved(image, format_, **({"lossless": True} if format_ == "WEBP" else {}))


@pytest.mark.parametrize(
    ("mode", "format_"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "TIFF"), ("RGBA", "WEBP")]
)
def test_one_transparent_pixel_is_enough_to_refuse(mode: str, format_: str) -> None:
    assert refused(_one_clear_pixel(mode, format_)) == "transparent pixels"


def test_palette_and_key_colour_transparency() -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    assert refused(saved(image, "PNG", transparency=1)) == "transparent pixels"
    assert refused(saved(image, "GIF", transparency=1)) == "transparent pixels"
    unused = decode_rgb(saved(image, "PNG", transparency=3), LIMIT)
    assert unused[0, 0].tolist() == [10, 20, 30]
    assert unused[1, 1].tolist() == [70, 80, 90]
    grey = Image.fromarray(np.array([[5, 6]], np.uint8))
    assert refused(saved(grey, "PNG", transparency=5)) == "transparent pixels"
    assert decode_rgb(saved(grey, "PNG", transparency=9), LIMIT).tolist() == [[[5] * 3, [6] * 3]]
    colour = Image.fromarray(np.array([[[5, 6, 7], [8, 9, 10]]], np.uint8))
    assert refused(saved(colour, "PNG", transparency=(5, 6, 7))) == "transparent pixels"


def test_lab_is_refused() -> None:
    assert refused(saved(Image.new("LAB", (4, 4)), "TIFF")) == "pixels of kind LAB"


# ---------------------------------------------------------------- colour


def test_cmyk_needs_a_profile() -> None:
    inks = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    inks.paste((0, 0, 0, 255), (4, 0, 8, 8))
    for format_ in ("JPEG", "TIFF"):
        assert "CMYK without" in refused(saved(inks, format_))
        decoded = decode_rgb(saved(inks, format_, icc_profile=cmyk_profile()), LIMIT)
        assert decoded[:, :3].min() > 245, "no ink is white"
        assert decoded[:, 5:].max() < 10, "black ink is black"
        assert inspect(saved(inks, format_), LIMIT, decode=False).mode == "CMYK"


def test_a_profile_is_applied() -> None:
    red = Image.new("RGB", (4, 4), (220, 30, 30))
    for data in (
        saved(red, "PNG", icc_profile=SWAPPED_PROFILE),
        saved(red, "TIFF", icc_profile=SWAPPED_PROFILE),
        saved(red, "WEBP", lossless=True, icc_profile=SWAPPED_PROFILE),
    ):
        r, g, b = decode_rgb(data, LIMIT)[0, 0].tolist()
        assert g > 210
        assert max(r, b) < 45
    linear = saved(Image.new("L", (4, 4), 55), "PNG", icc_profile=GREY_PROFILE)
    r, g, b = decode_rgb(linear, LIMIT)[0, 0].tolist()
    assert abs(r - 128) <= 1, "0.216 of linear light is the middle of sRGB"
    assert r == g == b


def test_a_profile_that_says_srgb_leaves_pixels_exact() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = saved(Image.fromarray(RGB), "PNG", icc_profile=profile)
    np.testing.assert_array_equal(decode_rgb(data, LIMIT), RGB)


def test_a_grey_image_may_carry_an_rgb_profile() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = saved(Image.fromarray(RGB[..., 0]), "PNG", icc_profile=profile)
    np.testing.assert_array_equal(decode_rgb(data, LIMIT), np.repeat(RGB[..., :1], 3, axis=2))


@pytest.mark.parametrize("profile", [b"no profile at all", SWAPPED_PROFILE[:200], GREY_PROFILE])
def test_a_broken_or_foreign_profile_is_refused(profile: bytes) -> None:
    assert "ICC profile" in refused(saved(Image.fromarray(RGB), "PNG", icc_profile=profile))


# ---------------------------------------------------------------- orientation

UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, format_: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = saved(Image.fromarray(RGB), format_, exif=exif, **options)
    expected = UPRIGHT[orientation](RGB)
    np.testing.assert_array_equal(decode_rgb(data, LIMIT), expected)
    for decode in (True, False):
        facts = inspect(data, LIMIT, decode=decode)
        assert (facts.height, facts.width) == expected.shape[:2]


def test_an_unreadable_orientation_is_upright() -> None:
    data = saved(Image.fromarray(RGB), "PNG", exif=b"Exif\0\0nonsense")
    np.testing.assert_array_equal(decode_rgb(data, LIMIT), RGB)
    exif = Image.Exif()
    exif[274] = 99
    assert inspect(saved(Image.fromarray(RGB), "JPEG", exif=exif), LIMIT).width == 17


# ---------------------------------------------------------------- several pictures


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_several_pictures_in_a_file_are_refused(format_: str) -> None:
    frames = [Image.new("RGB", (16, 16), (60 * i, 90, 200)) for i in range(3)]
    data = saved(frames[0], format_, save_all=True, append_images=frames[1:])
    assert refused(data) == "animated, or several pages"


def test_a_phone_photo_with_a_preview_is_its_first_picture() -> None:
    photo, preview = Image.new("RGB", (32, 16), (200, 0, 0)), Image.new("RGB", (8, 4))
    data = saved(photo, "MPO", save_all=True, append_images=[preview])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert decode_rgb(data, LIMIT).shape == (16, 32, 3)


# ---------------------------------------------------------------- damage

PHOTO = Image.fromarray(
    np.add.outer(np.arange(64), np.arange(96))[..., None].repeat(3, axis=2).astype(np.uint8)
)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF", "PPM", "GIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_files_are_refused(format_: str, share: float) -> None:
    data = saved(PHOTO, format_)
    refused(data[: int(len(data) * share)])


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_png_goes_unseen(at: int, bit: int) -> None:
    data = bytearray(saved(PHOTO, "PNG"))
    data[at % (len(data) - 12)] ^= 1 << bit  # the last 12 bytes only say that it ends
    with pytest.raises(BadImage):
        inspect(bytes(data), LIMIT)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=64), start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"II*\0"]))
def test_noise_never_raises_anything_else(data: bytes, start: bytes) -> None:
    with pytest.raises(BadImage):
        inspect(start + data, LIMIT)


def test_what_is_no_image() -> None:
    assert refused(b"") == "empty file"
    assert refused(b"hello, world") == refused(b"%PDF-1.7 and so on")
    assert refused(b"hello").startswith("not a PNG")
    eps = saved(PHOTO, "EPS")  # would start Ghostscript
    assert refused(eps).startswith("not a PNG")


def test_reasons_are_the_same_every_time() -> None:
    data = saved(PHOTO, "WEBP")
    assert refused(data[:60]) == refused(data[:60])
    assert "0x" not in refused(data[:60])


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadImage, match="cannot be read: no such file"):
        inspect(tmp_path / "gone.png", LIMIT)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/secret/place.png")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(BadImage) as caught:
        inspect(tmp_path / "a.png", LIMIT)
    assert caught.value.reason == "cannot be read: permission denied"


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "photo.gif"
    path.write_bytes(saved(PHOTO, "JPEG"))
    assert inspect(path, LIMIT).mode == "RGB"


# ---------------------------------------------------------------- size


def test_the_limit_is_checked_before_decoding() -> None:
    bomb = png(30_000, 30_000, 8, 2, b"")  # has no pixels: decoding it would say so
    assert refused(bomb) == "larger than 10 megapixels"
    assert refused(png(5000, 5000, 8, 2, b"")) == "5000x5000 is 25.0 megapixels, more than 10"
    assert "broken" in refused(png(2000, 2000, 8, 2, b""))


def test_the_limit_is_exact() -> None:
    data = saved(Image.new("L", (100, 100)), "PNG")
    assert inspect(data, 0.01).width == 100
    assert "megapixels" in refused(data, 0.0099)


def test_pillows_own_limit_gives_way_to_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for format_ in ("PNG", "TIFF", "WEBP", "GIF"):
        data = saved(Image.new("L", (100, 100)).convert("RGB"), format_)
        assert decode_rgb(data, 0.01).shape == (100, 100, 3)
    assert Image.MAX_IMAGE_PIXELS == 10_000
    inspect(saved(Image.new("L", (10, 10)), "PNG"), 0.001)
    assert Image.MAX_IMAGE_PIXELS == 10_000, "never lowered: others may be decoding"


def test_a_text_bomb_is_refused() -> None:
    text = chunk(b"zTXt", b"c\0\0" + zlib.compress(b" " * 5_000_000))
    assert "broken" in refused(png(1, 1, 8, 0, b"\0\0", text))


def test_out_of_memory_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(PHOTO, "PNG")

    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("sr_assets.pictures.opaque", exhausted)
    with pytest.raises(MemoryError):
        inspect(data, LIMIT)


@pytest.mark.shared
def test_real_photos_decode_as_pillow_says(shared_data: Path) -> None:
    for path in sorted((shared_data / "photos").glob("*.jpg"))[:3]:
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(decode_rgb(path.read_bytes(), 120), expected)

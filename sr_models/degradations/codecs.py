"""Lossy compression by the real codecs, libjpeg-turbo and libwebp, which Pillow brings.

Pictures go in and come back as the pixels that a viewer would show; files on disk are read in
`sr_assets`.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, features

from sr_models.degradations.pixels import to_pixels, to_planes

#: Names of the codecs.
CODECS = ("jpeg", "webp")

#: Chroma subsampling of JPEG.
SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")

#: Effort of libwebp's encoder, 0 (fast) to 6 (small); 4 is its own choice, and what files have.
_WEBP_METHOD = 4


def jpeg_encode(pixels: np.ndarray, quality: int, subsampling: str) -> bytes:
    """Compresses a picture to a baseline JFIF file, with the accurate integer DCT.

    libjpeg-turbo gives the same bytes with and without SIMD.

    Args:
        pixels: uint8 [H, W, 3], sRGB, H and W from 1 to 65535.
        quality: 1 to 100, as libjpeg scales its tables.
        subsampling: of the chroma, one of `SUBSAMPLINGS`.

    Raises:
        ValueError: quality or subsampling is none of these.
    """
    _check_quality(quality)
    if subsampling not in SUBSAMPLINGS:
        raise ValueError(f"subsampling must be one of {list(SUBSAMPLINGS)}, got {subsampling!r}")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return file.getvalue()


def jpeg_decode(encoded: bytes) -> np.ndarray:
    """Pixels of a JPEG file, uint8 [H, W, 3]: accurate DCT, chroma interpolated ("fancy")."""
    return np.asarray(Image.open(io.BytesIO(encoded), formats=["JPEG"]))


def webp_encode(pixels: np.ndarray, quality: int) -> bytes:
    """Compresses a picture to a lossy WebP file, whose chroma is always 4:2:0.

    Args:
        pixels: uint8 [H, W, 3], sRGB, H and W from 1 to 16383.
        quality: 1 to 100, as libwebp defines it.

    Raises:
        ValueError: the quality is out of range.
    """
    _check_quality(quality)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=quality, method=_WEBP_METHOD)
    return file.getvalue()


def webp_decode(encoded: bytes) -> np.ndarray:
    """Pixels of a WebP file without alpha, uint8 [H, W, 3]."""
    return np.array(Image.open(io.BytesIO(encoded), formats=["WEBP"]))


def round_trip(planes: np.ndarray, codec: str, quality: int, subsampling: str) -> np.ndarray:
    """Compresses planes and decodes them again, as a saved and opened file.

    Args:
        planes: float32 [3, H, W] in levels; rounded half up and clipped to 0..255 first.
        codec: one of `CODECS`.
        quality: 1 to 100.
        subsampling: as in `jpeg_encode`; not read for webp.

    Returns:
        float32 [3, H, W]: whole levels, 0 to 255.

    Raises:
        ValueError: codec, quality or subsampling is unknown.
    """
    if codec not in CODECS:
        raise ValueError(f"codec must be one of {list(CODECS)}, got {codec!r}")
    pixels = to_pixels(planes)
    if codec == "jpeg":
        decoded = jpeg_decode(jpeg_encode(pixels, quality, subsampling))
    else:
        decoded = webp_decode(webp_encode(pixels, quality))
    result: np.ndarray = to_planes(decoded)
    return result


def _check_quality(quality: int) -> None:
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be 1 to 100, got {quality}")


def versions() -> str:
    """The codecs and their versions, on which the exact bytes of a result rest."""
    turbo, webp = features.version("libjpeg_turbo"), features.version("webp")
    jpeg = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"
    return f"{jpeg}, libwebp {webp or 'missing'}"

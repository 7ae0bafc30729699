"""Turns the bytes of any image file into 8-bit sRGB, or says in one line why that cannot be done.

`docs/images.md` lists what happens to every odd kind of file. Which files exist, and what is done
with the refused ones, is not decided here.
"""

from __future__ import annotations

import io
import math
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from sr_assets.srgb import BadImage, opaque, to_srgb

Pixels = NDArray[np.uint8]

#: Pillow's names of the formats that are read; every other decoder of it stays shut.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")

#: The raw modes whose three or four channels are 16-bit samples, which Pillow cuts to 8 bits.
_WIDE = re.compile(r"^(RGB|RGBA|RGBX);16([BLN])$")

# TIFF and EXIF tags.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_bomb_lock = threading.Lock()


@dataclass(frozen=True)
class ImageFacts:
    """An image: its size once upright (px), how it was stored and, where it was decoded, itself."""

    width: int
    height: int
    mode: str
    pixels: Pixels | None = field(default=None, repr=False, compare=False)
    """Upright 8-bit sRGB, uint8 [H, W, 3]."""


def inspect(source: Path | bytes, max_megapixels: float, *, decode: bool = True) -> ImageFacts:
    """Facts of an image that `decode_rgb` can read.

    Args:
        source: a file or its content.
        max_megapixels: larger images are refused from their header alone.
        decode: False reads the header only, for a file that was decoded before.

    Raises:
        BadImage: the image is refused.
        MemoryError: it is within the limit and does not fit into memory.
    """
    with _reading(source) as file:
        image = _open(file, max_megapixels)
        if not decode:
            mode = _stored_mode(image)  # first: looking for EXIF may load a PNG
            width, height = image.size
            if _orientation(image) in (5, 6, 7, 8):
                width, height = height, width
            return ImageFacts(width, height, mode)
        mode = _stored_mode(image)
        pixels = _pixels(image, file, max_megapixels)
        return ImageFacts(pixels.shape[1], pixels.shape[0], mode, pixels)


def decode_rgb(data: bytes, max_megapixels: float) -> Pixels:
    """An image as upright 8-bit sRGB.

    Args:
        data: content of the file.
        max_megapixels: larger images are refused from their header alone.

    Returns:
        uint8 [H, W, 3].

    Raises:
        BadImage: the image is refused.
        MemoryError: it is within the limit and does not fit into memory.
    """
    with _reading(data) as file:
        return _pixels(_open(file, max_megapixels), file, max_megapixels)


@contextmanager
def _reading(source: Path | bytes) -> Iterator[BinaryIO]:
    """Opens `source`; whatever goes wrong while it is open leaves as a BadImage."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            if not file.read(1):
                raise BadImage("empty file")
            file.seek(0)
            yield cast(BinaryIO, file)
    except (BadImage, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None and error.strerror:
            raise BadImage(f"cannot be read: {error.strerror.lower()}") from error
        raise BadImage(f"broken: {_one_line(error)}") from error
    except Exception as error:
        # Decoders of damaged files raise anything, from struct.error to KeyError.
        raise BadImage(f"broken: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """The message without what differs from run to run (addresses in memory, paths)."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "file", text)[:120]


def _open(file: BinaryIO, max_megapixels: float) -> ImageFile.ImageFile:
    """The image with nothing but its header read, within the limit and with one picture in it."""
    _raise_pillow_limit(max_megapixels)
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadImage(f"larger than {max_megapixels:g} megapixels") from None
    except UnidentifiedImageError:
        raise BadImage(
            "not a PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000 or PNM image"
        ) from None
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise BadImage(
            f"{width}x{height} is {width * height / 1e6:.1f} megapixels, "
            f"more than {max_megapixels:g}"
        )
    # The further pictures of an MPO are previews or other views; the photo is the first one.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise BadImage("animated, or several pages")
    return image


def _raise_pillow_limit(max_megapixels: float) -> None:
    """Lifts Pillow's own guard, which is one for the process, to ours; it is never lowered."""
    with _bomb_lock:
        if Image.MAX_IMAGE_PIXELS is not None:
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, math.ceil(max_megapixels * 1e6))


def _raw_modes(image: ImageFile.ImageFile) -> list[str]:
    """How the decoder finds samples in the file, a name a tile; such as RGB;16B."""
    modes = []
    for tile in image.tile:
        arguments = cast(Any, tile).args
        first = arguments if isinstance(arguments, str) else (arguments or ("",))[0]
        modes.append(first if isinstance(first, str) else "")
    return modes


def _stored_mode(image: ImageFile.ImageFile) -> str:
    """Pillow's mode, except that 16-bit samples show in it."""
    if image.mode.startswith("I;16"):
        return "I;16"
    if image.format == "TIFF":  # whose raw modes are silent about it when channels lie apart
        wide = max(cast(Any, image).tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8
    else:
        wide = any(";16" in raw for raw in _raw_modes(image))
    return f"{image.mode};16" if wide and image.mode not in ("I", "F") else image.mode


def _pixels(image: ImageFile.ImageFile, file: BinaryIO, max_megapixels: float) -> Pixels:
    if image.format == "PNG":
        # Decoding skips the checksums of the pixel data; this reads them all.
        image.verify()
        image = _open(file, max_megapixels)
    profile = image.info.get("icc_profile")
    if profile is None and "icc_profile" in image.info:  # there is one, which Pillow cannot unpack
        raise BadImage("ICC profile is broken")
    plain: Image.Image
    if ";16" in _stored_mode(image) or image.mode in ("I", "F"):
        plain = _from_wide(image, file, max_megapixels)
    else:
        image.load()
        plain = opaque(image)
    plain = to_srgb(plain, profile)
    method = _TRANSPOSE.get(_orientation(image))
    if method is not None:
        plain = plain.transpose(method)
    return np.array(plain)


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation 1..8; 1 where it is unreadable, and for TIFF, which Pillow turns itself."""
    if image.format == "TIFF":
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:
        # A damaged EXIF block says nothing about the pixels; should those be damaged too,
        # decoding them tells.
        return 1


def _from_wide(image: ImageFile.ImageFile, file: BinaryIO, max_megapixels: float) -> Image.Image:
    """L or RGB from samples wider than 8 bits: white to 255, rounded to nearest."""
    if "transparency" in image.info:
        raise BadImage("16-bit with a transparent colour")
    if image.mode.startswith("I;16"):
        tags = cast(Any, image).tag_v2 if image.format == "TIFF" else {}
        if tags.get(_BITS_PER_SAMPLE, (16,)) != (16,):
            raise BadImage("grey samples that are neither 8 nor 16 bits wide")
        image.load()
        grey = np.asarray(image).astype(np.uint16)
        # Pillow turns white-is-zero pictures over, but not those of 16 bits.
        return _narrow(65535 - grey if tags.get(_PHOTOMETRIC) == 0 else grey)
    if image.mode == "I" and image.format == "PPM":  # Pillow scales every PGM to 0..65535
        image.load()
        return _narrow(np.asarray(image).astype(np.uint16))
    if image.mode == "F":
        raise BadImage("floating-point samples, which have no fixed white")
    if image.mode == "I":
        raise BadImage("signed or 32-bit samples, which have no fixed white")
    if not all(_WIDE.match(raw) for raw in _raw_modes(image)):
        raise BadImage(f"16-bit {image.mode} stored in a way that would lose its lower bits")
    return _narrow(_sixteen_bit(image, file, max_megapixels))


def _narrow(samples: NDArray[np.uint16]) -> Image.Image:
    """uint16 [H, W] or [H, W, 3 or 4] in 0..65535 as an 8-bit image."""
    if samples.ndim == 3 and samples.shape[2] == 4:
        if samples[..., 3].min() < 65535:
            raise BadImage("transparent pixels")
        samples = samples[..., :3]
    # A sample is 257 * high + excess with |excess| < 257, so that its nearest level is high or
    # the one beside it; large scans would not fit into memory in wider integers.
    high = (samples >> 8).astype(np.uint8)
    excess = (samples & 255).astype(np.int16) - high
    return Image.fromarray(high + (excess > 128) - (excess < -128).view(np.uint8))


def _sixteen_bit(
    image: ImageFile.ImageFile, file: BinaryIO, max_megapixels: float
) -> NDArray[np.uint16]:
    """uint16 [H, W, C]: all 16 bits of samples of which Pillow hands out the upper 8 only.

    Read as the other byte order, the upper byte of a sample is its lower one, so that two passes
    give both.
    """
    halves = []
    for swapped in (False, True):
        one = _open(file, max_megapixels) if swapped else image
        if swapped:
            one.tile = [_swap(tile) for tile in one.tile]
        one.load()
        halves.append(np.asarray(one).astype(np.uint16))
    upper, lower = halves
    return np.bitwise_or(upper << np.uint16(8), lower)


def _swap(tile: Any) -> Any:
    arguments = tile.args
    raw = arguments if isinstance(arguments, str) else arguments[0]
    native = "L" if sys.byteorder == "little" else "B"
    order = raw[-1].replace("N", native)
    raw = raw[:-1] + ("B" if order == "L" else "L")
    return tile._replace(args=raw if isinstance(arguments, str) else (raw, *arguments[1:]))

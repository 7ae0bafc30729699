"""Encodes finished rows as a picture file, with the metadata of the picture they were made of.

The file appears under its name when it is whole. Where its pixels come from is not known here.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sr_assets.pictures import Pixels
from sr_assets.srgb import BadImage
from sr_assets.upscaling.appearing import clear, hidden, whole_file
from sr_assets.upscaling.formats import Format, demanded
from sr_assets.upscaling.reading import load_vips, vips_line

if TYPE_CHECKING:
    import pyvips

    from sr_models.inference.streaming import Samples

_KEPT = ("icc-profile-data", "xmp-data", "iptc-data", "resolution-unit")


@dataclass(frozen=True)
class Scratch:
    """A file of plain samples, [height, width, bands], row by row."""

    path: Path
    height: int
    width: int
    bands: int
    depth: int

    def rows(self, top: int, bottom: int) -> Samples:
        """Those rows, to be read and written; mapped only as long as the array lives."""
        kind = np.dtype(np.uint8 if self.depth == 8 else np.uint16)
        stride = self.width * self.bands * kind.itemsize
        shape = (bottom - top, self.width, self.bands)
        return np.memmap(self.path, kind, "r+", offset=top * stride, shape=shape)


@dataclass(frozen=True)
class Finished:
    """The rows of a scratch file as a picture that is ready to be encoded."""

    image: pyvips.Image
    forget: Callable[[], object]
    """Gives the pages that were read back to the system; they are read again where needed."""


@contextmanager
def scratch_beside(
    target: Path, height: int, width: int, bands: int, depth: int
) -> Iterator[Scratch]:
    """A scratch file in the folder of `target`, where there is room for the result anyway.

    Raises:
        OSError: the disk is full or the folder cannot be written to.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    clear(target.parent)
    path = hidden(target.parent, "rows")
    try:
        with path.open("wb") as file:
            size = height * width * bands * depth // 8
            if hasattr(os, "posix_fallocate"):
                # Mapped rows of a full disk would end the process; this is an error instead.
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        yield Scratch(path, height, width, bands, depth)
    finally:
        path.unlink(missing_ok=True)


def finished(scratch: Scratch) -> Finished:
    """All rows, to be read as libvips asks for them."""
    vips = load_vips()
    rows = scratch.rows(0, scratch.height)
    kinds = {
        (1, 8): "b-w", (1, 16): "grey16", (3, 8): "srgb", (3, 16): "rgb16",
    }  # fmt: skip
    colours = scratch.bands - (scratch.bands in (2, 4))
    kind = "uchar" if scratch.depth == 8 else "ushort"
    image = vips.Image.new_from_memory(rows, scratch.width, scratch.height, scratch.bands, kind)
    image = image.copy(interpretation=kinds[colours, scratch.depth])
    mapped: mmap.mmap = rows._mmap  # type: ignore[attr-defined]
    advice = getattr(mmap, "MADV_DONTNEED", None)  # not on Windows
    return Finished(image, lambda: None if advice is None else mapped.madvise(advice))


def encode(
    image: pyvips.Image,
    target: Path,
    kind: Format,
    quality: int | None = None,
    like: pyvips.Image | None = None,
    progress: Callable[[], object] | None = None,
) -> None:
    """Writes a picture in one step.

    Args:
        image: 8 or 16 bits a sample, grey or RGB, alpha last.
        target: the file.
        kind: of the file.
        quality: 1 to 100 for a lossy format; None for its usual one.
        like: the picture whose ICC profile, EXIF, XMP, IPTC and resolution are kept.
        progress: is called again and again while the picture is read.

    Raises:
        OSError: it cannot be written, or the format holds no such picture.
    """
    import pyvips

    if max(image.width, image.height) > kind.largest_side:
        raise OSError(f"{kind.name} holds no side of more than {kind.largest_side} px")
    if image.hasalpha() and not kind.alpha:
        image = image.flatten(background=255 if image.format == "uchar" else 65535)
    if like is not None:
        image = _with_metadata(image, like)
    if progress is not None:
        # On the last image of the chain: it must outlive the encoding, with its handler.
        image = image.copy()
        image.set_progress(True)
        image.signal_connect("eval", lambda *_: progress())
    try:
        with whole_file(target) as temporary:
            _save(image, temporary, kind, quality)
    except pyvips.Error as error:
        raise OSError(f"cannot be written as {kind.name}: {vips_line(error)}") from error


def write_picture(pixels: Pixels, target: Path) -> None:
    """Writes uint8 [H, W, 3] in the format of the ending of `target`, in one step.

    Raises:
        StageError: another ending.
        OSError: the file cannot be written, or the format holds no picture of this size.
    """
    kind = demanded(target)
    try:
        vips = load_vips()
    except BadImage as error:
        raise OSError(error.reason) from error
    image = vips.Image.new_from_array(np.ascontiguousarray(pixels))
    encode(image.copy(interpretation="srgb"), target, kind)


def _with_metadata(image: pyvips.Image, like: pyvips.Image) -> pyvips.Image:
    import pyvips

    image = image.copy(xres=like.xres, yres=like.yres)
    for field in like.get_fields():
        if field in _KEPT or field.startswith("exif-"):
            image.set_type(like.get_typeof(field), field, like.get(field))
    # A thumbnail lies as the camera held the picture, and its word of that goes.
    image.remove("jpeg-thumbnail-data")
    # The rows are upright; the word in EXIF follows this field.
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)
    return image


def _save(image: pyvips.Image, target: Path, kind: Format, quality: int | None) -> None:
    name = {"avif": "heif"}.get(kind.name, kind.name) + "save"
    getattr(image, name)(str(target), **_options(image, kind, quality))


def _options(image: pyvips.Image, kind: Format, quality: int | None) -> dict[str, Any]:
    chosen = kind.quality if quality is None else quality
    size = image.width * image.height * image.bands * (1 if image.format == "uchar" else 2)
    options: dict[str, dict[str, Any]] = {
        "png": {"compression": 4},
        # Colour at full resolution: SR is made for edges.
        "jpeg": {"Q": chosen, "subsample_mode": "off"},
        "webp": {"Q": chosen, "lossless": chosen == 100},
        "tiff": {"compression": "deflate", "predictor": "horizontal", "bigtiff": size > 3 << 30},
        "avif": {
            "Q": chosen,
            "compression": "av1",
            "lossless": chosen == 100,
            "subsample_mode": "off",
            "effort": 4,
            "bitdepth": 8 if image.format == "uchar" else 12,
        },
    }
    return options[kind.name]

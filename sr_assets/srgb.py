"""From decoded pixels of any 8-bit colour model to opaque sRGB, or a line that says why not.

Opening files and reading their samples is `sr_assets.pictures`.
"""

from __future__ import annotations

import io
from typing import cast

import numpy as np
from PIL import Image, ImageCms


class BadImage(Exception):  # noqa: N818 - a verdict on a file, not a fault of the program
    """The file has no decided conversion to 8-bit sRGB; `reason` says why, in one short line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def opaque(image: Image.Image) -> Image.Image:
    """The same picture as L, RGB or CMYK; alpha that hides nothing is dropped.

    Raises:
        BadImage: a pixel is not opaque, or the colour model has no decided conversion.
    """
    if image.has_transparency_data or image.mode in ("RGBa", "La"):
        with_alpha = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
        lowest = cast(tuple[int, int], with_alpha.getchannel("A").getextrema())[0]
        if lowest < 255:
            raise BadImage("transparent pixels")
        return with_alpha.convert("L" if with_alpha.mode == "LA" else "RGB")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "YCbCr", "RGBX"):
        return image.convert("RGB")
    raise BadImage(f"pixels of kind {image.mode}")


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB in sRGB from L, RGB or CMYK in the space of `profile` (sRGB or grey where none is).

    Raises:
        BadImage: the colours of the picture are unknown.
    """
    if not profile:
        if image.mode == "CMYK":
            raise BadImage("CMYK without an ICC profile, so that its colours are unknown")
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if image.mode == "L" and space == "RGB":
            image = image.convert("RGB")
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            renderingIntent=ImageCms.Intent.PERCEPTUAL,
        )
        if image.mode == "RGB" and _is_identity(transform):
            return image
        return cast(Image.Image, ImageCms.applyTransform(image, transform))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        raise BadImage("ICC profile is broken or made for other pixels") from error


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether no colour moves by more than one level: sRGB in other words, so pixels stay exact."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
    cube = cube.reshape(len(steps), -1, 3)
    moved = np.asarray(ImageCms.applyTransform(Image.fromarray(cube), transform))
    return bool(np.abs(moved.astype(np.int16) - cube).max() <= 1)

"""Pictures on which backends are measured: shipped photos in the shape of a tile, and given ones.

What is measured on them is `bench.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sr_assets.lineage.stage import StageError
from sr_assets.pictures import BadImage, Pixels, decode_rgb
from sr_assets.sources.builtin import photos

#: Name of the picture that is made of the shipped photos.
PHOTOS = "photos"
#: Largest picture (LR megapixels): it is enlarged many times, and its floats are kept.
MAX_MEGAPIXELS = 4.0
_PHOTOS = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png")


@dataclass(frozen=True)
class Picture:
    """What is enlarged."""

    name: str
    lr: Pixels
    """uint8 [h, w, 3]."""
    hr: Pixels | None = None
    """uint8 [scale h, scale w, 3] where it is known."""


def photo_tile(tile: int, scale: int) -> Picture:
    """Four shipped photos, two by two, as HR, and LR [tile, tile, 3] of it by bicubic.

    A photo that is too small goes on as its mirror image.
    """
    from sr_models.degradations.bicubic import downscale_uint8

    first, second = (tile - tile // 2) * scale, (tile // 2) * scale
    shapes = ((first, first), (first, second), (second, first), (second, second))
    found = photos(_PHOTOS, "bench")
    cells = [_cell(file.path, *shape) for file, shape in zip(found, shapes, strict=True)]
    hr = np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])])
    return Picture(PHOTOS, downscale_uint8(hr, scale), hr)


def read_picture(path: Path) -> Picture:
    """The picture in a file.

    Raises:
        StageError: it cannot be read, or has more than `MAX_MEGAPIXELS`.
    """
    try:
        return Picture(str(path), decode_rgb(path.read_bytes(), MAX_MEGAPIXELS))
    except BadImage as error:
        raise StageError(f"{path}: {error.reason}") from error
    except OSError as error:
        raise StageError(f"{path} cannot be read: {error.strerror}") from error


def _cell(path: Path, rows: int, columns: int) -> Pixels:
    photo = decode_rgb(path.read_bytes(), MAX_MEGAPIXELS)
    short = (max(0, rows - photo.shape[0]), max(0, columns - photo.shape[1]))
    mirrored = np.pad(photo, ((0, short[0]), (0, short[1]), (0, 0)), mode="symmetric")
    return mirrored[:rows, :columns]

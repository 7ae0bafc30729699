"""Pictures as interleaved bytes and as planes of levels, and the way between the two.

Planes are what the degradations work on; colour spaces are not for here.
"""

from __future__ import annotations

import numpy as np

from sr_models.compiled import compiled


def to_planes(pixels: np.ndarray) -> np.ndarray:
    """Levels of a picture: uint8 [H, W, 3] -> float32 [3, H, W] in 0..255, C-contiguous."""
    planes: np.ndarray = _separated(np.ascontiguousarray(pixels))
    return planes


@compiled
def to_pixels(planes: np.ndarray) -> np.ndarray:
    """Rounds half up and clips: float32 [3, H, W] of any finite range -> uint8 [H, W, 3]."""
    height, width = planes.shape[1:]
    pixels = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            pixels[y, x, 0] = _level(planes[0, y, x])
            pixels[y, x, 1] = _level(planes[1, y, x])
            pixels[y, x, 2] = _level(planes[2, y, x])
    return pixels


@compiled
def _separated(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    planes = np.empty((3, height, width), np.float32)
    # A flat row is read 3 bytes apart at twice the speed of three columns of it.
    rows = pixels.reshape(height, 3 * width)
    for y in range(height):
        row, red, green, blue = rows[y], planes[0, y], planes[1, y], planes[2, y]
        for x in range(width):
            red[x], green[x], blue[x] = row[3 * x], row[3 * x + 1], row[3 * x + 2]
    return planes


@compiled
def _level(value: np.float32) -> np.int32:
    # Adding 0.5 to a float32 just below a half would round it up, hence the comparison.
    clipped = np.float32(min(max(value, np.float32(0.0)), np.float32(255.0)))
    level = np.int32(clipped)
    return level + np.int32(clipped - np.float32(level) >= np.float32(0.5))

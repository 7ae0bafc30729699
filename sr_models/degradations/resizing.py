"""Resizing by nearest, bilinear, bicubic, area and Lanczos sampling, as common image tools do it.

No filter but area widens when it reduces: the aliasing is part of the damage, and MATLAB's
antialiased bicubic is in `bicubic.py` instead.
"""

from __future__ import annotations

import math

import numpy as np

from sr_models.compiled import compiled

#: Names of the methods.
METHODS = ("nearest", "bilinear", "bicubic", "area", "lanczos")
_NEAREST, _BILINEAR, _BICUBIC, _AREA, _LANCZOS = range(len(METHODS))

#: Keys' parameter of the cubic kernel, as in OpenCV and torch (MATLAB and Pillow take -0.5).
_CUBIC_A = -0.75

#: Edge of the squares in which planes are transposed: eight floats fill one vector register.
_SQUARE = 8


def resize(planes: np.ndarray, height: int, width: int, method: str) -> np.ndarray:
    """Resizes planes to any size; pixel i of n is centred at (i + 0.5) / n of the picture.

    "nearest" is torch's "nearest-exact" and OpenCV's INTER_NEAREST_EXACT: the pixel whose area
    holds the centre, the later one of a tie (OpenCV's INTER_NEAREST shifts the picture). "bilinear"
    and "bicubic" (4 taps, a = -0.75) are those of torch and OpenCV without antialiasing, "lanczos"
    has 8 taps (OpenCV's INTER_LANCZOS4); beyond the border the edge pixel is repeated. "area" is
    the mean over the pixel's area, for any ratio, and bilinear along an axis that grows.
    A constant plane stays as it is, to the bit.

    Args:
        planes: float32 [C, H, W], C-contiguous, of any range; H and W at least 1.
        height: rows of the result, at least 1.
        width: columns of the result, at least 1.
        method: one of `METHODS`.

    Returns:
        float32 [C, height, width], C-contiguous; bicubic and lanczos may overshoot the range.

    Raises:
        ValueError: the method is unknown, or a size is below 1.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if height < 1 or width < 1 or 0 in planes.shape:
        raise ValueError(
            f"cannot resize {planes.shape[1]}x{planes.shape[2]} to {height}x{width}: "
            "every size must be at least 1"
        )
    resized: np.ndarray = _resize(planes, height, width, METHODS.index(method))
    return resized


@compiled
def _resize(planes: np.ndarray, height: int, width: int, method: int) -> np.ndarray:
    rows, row_weights = _taps(planes.shape[1], height, method)
    columns, column_weights = _taps(planes.shape[2], width, method)
    count, old_height, old_width = planes.shape
    resized = np.empty((count, height, width), np.float32)
    # The columns' part works on the transposed plane: the fewer rows it has by then, the better.
    between = np.empty((min(old_height, height), old_width), np.float32)
    turned = np.empty((old_width, len(between)), np.float32)
    mixed = np.empty((width, len(between)), np.float32)
    low = np.empty((len(between), width), np.float32)
    for c in range(count):
        if height <= old_height:
            _along_rows(planes[c], rows, row_weights, between)
            _transpose(between, turned)
            _along_rows(turned, columns, column_weights, mixed)
            _transpose(mixed, resized[c])
        else:
            _transpose(planes[c], turned)
            _along_rows(turned, columns, column_weights, mixed)
            _transpose(mixed, low)
            _along_rows(low, rows, row_weights, resized[c])
    return resized


@compiled
def _taps(length: int, out: int, method: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `length` pixels make each of `out` pixels, and how much: int64, float32 [taps, out].

    The first tap is the pixel at the sample's centre (for `area` the first of the run); its weight
    is one less the sum of the others and is never read. The others are even in number; where there
    are too many, their weight is 0.
    """
    if method == _AREA and out >= length:
        method = _BILINEAR
    # Pixels that a kernel may touch, and how many of them lie before the one at its centre.
    count, before = 1, 0
    if method == _BILINEAR:
        count = 2
    elif method == _BICUBIC:
        count, before = 4, 1
    elif method == _LANCZOS:
        count, before = 8, 3
    elif method == _AREA:
        count = (length + out - 2) // out + 1
    pixels = np.empty((count + 1 - count % 2, out), np.int64)
    weights = np.zeros(pixels.shape, np.float32)
    exact = np.zeros(count, np.float64)
    for i in range(out):
        # Whole numbers as far as the division, so that ties and ends of areas are exact.
        if method == _NEAREST:
            first = (2 * i + 1) * length // (2 * out)
            exact[0] = 1.0
        elif method == _AREA:
            first = i * length // out
            for k in range(count):
                start, end = (first + k) * out, (first + k + 1) * out
                exact[k] = max(0, min(end, (i + 1) * length) - max(start, i * length))
        else:
            centre = (2 * i + 1) * length - out
            first = centre // (2 * out)
            offset = (centre - 2 * out * first) / (2 * out)
            first -= before
            for k in range(count):
                exact[k] = _kernel(offset + before - k, method)
        total = 0.0
        for k in range(count):
            total += exact[k]
        for k in range(len(pixels)):
            pixels[k, i] = min(max(first + k, 0), length - 1)
            if k < count:
                weights[k, i] = exact[k] / total
        pixels[0, i], pixels[before, i] = pixels[before, i], pixels[0, i]
        weights[0, i], weights[before, i] = weights[before, i], weights[0, i]
    return pixels, weights


@compiled
def _kernel(offset: float, method: int) -> float:
    """Weight of a pixel at `offset` pixels from the sample's centre, up to a factor for the row."""
    t = abs(offset)
    if method == _BILINEAR:
        return 1.0 - t
    if method == _BICUBIC:
        if t <= 1.0:
            return ((_CUBIC_A + 2.0) * t - (_CUBIC_A + 3.0)) * t * t + 1.0
        return ((_CUBIC_A * t - 5.0 * _CUBIC_A) * t + 8.0 * _CUBIC_A) * t - 4.0 * _CUBIC_A
    if t == 0.0:
        return 1.0
    if t == math.floor(t):
        return 0.0
    return math.sin(math.pi * t) * math.sin(math.pi * t / 4.0) / (math.pi * math.pi * t * t / 4.0)


@compiled
def _along_rows(
    plane: np.ndarray, pixels: np.ndarray, weights: np.ndarray, mixed: np.ndarray
) -> None:
    """Each row of `mixed` becomes a weighted mean of rows of the plane.

    Differences to the first tap are summed: of a constant they are exactly 0, whereas a sum of
    rounded weights is not exactly 1.
    """
    for y in range(pixels.shape[1]):
        row, base = mixed[y], plane[pixels[0, y]]
        for x in range(plane.shape[1]):
            row[x] = base[x]
        for k in range(1, len(pixels), 2):
            one, other = plane[pixels[k, y]], plane[pixels[k + 1, y]]
            weight, other_weight = weights[k, y], weights[k + 1, y]
            for x in range(plane.shape[1]):
                row[x] += weight * (one[x] - base[x]) + other_weight * (other[x] - base[x])


@compiled
def _transpose(plane: np.ndarray, turned: np.ndarray) -> None:
    height, width = plane.shape
    whole_y, whole_x = height - height % _SQUARE, width - width % _SQUARE
    for top in range(0, whole_y, _SQUARE):
        for left in range(0, whole_x, _SQUARE):
            # A constant trip count is what lets the compiler make shuffles of it.
            for x in range(_SQUARE):
                for y in range(_SQUARE):
                    turned[left + x, top + y] = plane[top + y, left + x]
    for y in range(whole_y, height):
        for x in range(width):
            turned[x, y] = plane[y, x]
    for x in range(whole_x, width):
        for y in range(whole_y):
            turned[x, y] = plane[y, x]

"""The loops behind our lossless picture filter: differences along the rows of a plane, and back.

Which filter an array has, and how its chunks become files, is `sr_assets/stores/codecs.py`.
"""

from __future__ import annotations

import numpy as np

from sr_models.compiled import compiled


@compiled
def rgb_to_delta(pixels: np.ndarray, delta: np.ndarray, above: bool) -> None:
    """R - G, G and B - G as differences to the left neighbour, modulo 256.

    Args:
        pixels: uint8 [n, H, W, 3].
        delta: uint8 [n, 3, H, W], overwritten.
        above: whether the first pixel of a row is told by the one above it, not by zero.
    """
    count, height, width, _ = pixels.shape
    for n in range(count):
        for y in range(height):
            left_r, left_g, left_b = np.uint8(0), np.uint8(0), np.uint8(0)
            if above and y > 0:
                left_g = pixels[n, y - 1, 0, 1]
                left_r = np.uint8(pixels[n, y - 1, 0, 0] - left_g)
                left_b = np.uint8(pixels[n, y - 1, 0, 2] - left_g)
            for x in range(width):
                g = pixels[n, y, x, 1]
                r = np.uint8(pixels[n, y, x, 0] - g)
                b = np.uint8(pixels[n, y, x, 2] - g)
                delta[n, 0, y, x] = np.uint8(r - left_r)
                delta[n, 1, y, x] = np.uint8(g - left_g)
                delta[n, 2, y, x] = np.uint8(b - left_b)
                left_r, left_g, left_b = r, g, b


@compiled
def delta_to_rgb(delta: np.ndarray, pixels: np.ndarray, above: bool) -> None:
    """Exact inverse of `rgb_to_delta`; `pixels` is overwritten."""
    count, height, width, _ = pixels.shape
    for n in range(count):
        first_r, first_g, first_b = np.uint8(0), np.uint8(0), np.uint8(0)
        for y in range(height):
            r, g, b = first_r, first_g, first_b
            for x in range(width):
                r = np.uint8(r + delta[n, 0, y, x])
                g = np.uint8(g + delta[n, 1, y, x])
                b = np.uint8(b + delta[n, 2, y, x])
                if above and x == 0:
                    first_r, first_g, first_b = r, g, b
                pixels[n, y, x, 0] = np.uint8(r + g)
                pixels[n, y, x, 1] = g
                pixels[n, y, x, 2] = np.uint8(b + g)


@compiled
def planes_to_delta(planes: np.ndarray, delta: np.ndarray, above: bool) -> None:
    """Differences to the left neighbour, modulo 256.

    Args:
        planes: uint8 [n, H, W].
        delta: uint8 [n, H, W], overwritten; not the same memory.
        above: as for `rgb_to_delta`.
    """
    count, height, width = planes.shape
    for n in range(count):
        for y in range(height):
            left = planes[n, y - 1, 0] if above and y > 0 else np.uint8(0)
            for x in range(width):
                value = planes[n, y, x]
                delta[n, y, x] = np.uint8(value - left)
                left = value


@compiled
def delta_to_planes(delta: np.ndarray, planes: np.ndarray, above: bool) -> None:
    """Exact inverse of `planes_to_delta`; `planes` is overwritten."""
    count, height, width = planes.shape
    for n in range(count):
        first = np.uint8(0)
        for y in range(height):
            value = first
            for x in range(width):
                value = np.uint8(value + delta[n, y, x])
                if above and x == 0:
                    first = value
                planes[n, y, x] = value


@compiled
def signed_to_zigzag(values: np.ndarray, zigzag: np.ndarray) -> None:
    """Differences d to the pixel above, modulo 65536, as 2d or -2d - 1.

    In the first row d is the difference to the left neighbour, of the first pixel to zero.

    Args:
        values: uint16 [n, H, W], the bits of int16.
        zigzag: uint16 [n, H, W], overwritten; not the same memory.
    """
    count, height, width = values.shape
    for n in range(count):
        for y in range(height):
            left = np.uint16(0)
            for x in range(width):
                value = values[n, y, x]
                d = np.uint16(value - (values[n, y - 1, x] if y > 0 else left))
                # the sign, spread over the word, flips the bits of negative differences
                zigzag[n, y, x] = np.uint16(np.uint16(d << 1) ^ np.uint16(0 - (d >> 15)))
                left = value


@compiled
def zigzag_to_signed(zigzag: np.ndarray, values: np.ndarray) -> None:
    """Exact inverse of `signed_to_zigzag`; `values` is overwritten.

    No pixel of a row waits for another of it, so that a processor takes many at once.
    """
    zero, one = np.uint16(0), np.uint16(1)
    count, height, width = zigzag.shape
    row = np.empty(width, np.uint16)
    for n in range(count):
        left = zero
        for x in range(width):
            d = zigzag[n, 0, x]
            left = np.uint16(left + np.uint16((d >> one) ^ np.uint16(zero - (d & one))))
            row[x] = left
            values[n, 0, x] = left
        for y in range(1, height):
            for x in range(width):
                d = zigzag[n, y, x]
                row[x] += np.uint16((d >> one) ^ np.uint16(zero - (d & one)))
            for x in range(width):  # apart from the sum: together they are not vectorised
                values[n, y, x] = row[x]

"""Chooses the places of an image that are worth a look, for side-by-side crops.

Only coordinates; cutting is `gallery.py`, and drawing `report/`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Mean loss of squared luma (grey levels squared) below which nobody sees one.
_VISIBLE = 1.0


def choose_crops(
    pictures: Sequence[np.ndarray], size: int, count: int, step: int
) -> list[tuple[int, int, int]]:
    """Squares that do not overlap, where the variance between the pictures is largest.

    Args:
        pictures: uint8 [H, W, 3] each, two or more of one size.
        size: wanted side (px); reduced to what fits, and to a multiple of `step`.
        count: how many, at most.
        step: corners and sides are multiples of it (the scale, so that LR can be cut the same).

    Returns:
        (x, y, side) of each, the largest difference first; fewer where no more fit or where all
        pictures are the same.
    """
    height, width = pictures[0].shape[:2]
    side = min(size, height, width) // step * step
    if side == 0 or len(pictures) < 2:
        return []
    stack = np.stack([p.astype(np.float32).mean(2) for p in pictures])
    found, ys, xs = _sums(stack.var(0, dtype=np.float64), side, step)
    crops: list[tuple[int, int, int]] = []
    reach = side // step
    while len(crops) < count:
        row, column = divmod(int(found.argmax()), found.shape[1])
        if found[row, column] <= 0:
            break
        crops.append((int(xs[column]), int(ys[row]), side))
        above, before = max(0, row - reach + 1), max(0, column - reach + 1)
        found[above : row + reach, before : column + reach] = -1
    return crops


def weakest_square(
    sr: np.ndarray, anchor: np.ndarray, hr: np.ndarray, size: int, step: int
) -> tuple[int, int, int]:
    """The square in which `sr` loses most against `anchor`; where it loses nowhere, errs most.

    Args:
        sr, anchor, hr: uint8 [H, W, 3] of one size; errors are squared differences of luma.
        size: wanted side (px); reduced to what fits, and to a multiple of `step`.
        step: corners and sides are multiples of it.

    Returns:
        (x, y, side).
    """
    from sr_models.metrics.images import luma

    original = luma(hr)
    own, other = (np.square(luma(picture) - original) for picture in (sr, anchor))
    side = max(min(size, *hr.shape[:2]) // step, 1) * step
    lost, ys, xs = _sums(own - other, side, step)
    if lost.max() <= _VISIBLE * side * side:
        lost, ys, xs = _sums(own, side, step)
    row, column = divmod(int(lost.argmax()), lost.shape[1])
    return int(xs[column]), int(ys[row]), side


def _sums(values: np.ndarray, side: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of [H, W] over squares, and the top and left of those squares' rows and columns."""
    height, width = values.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = values.cumsum(0, np.float64).cumsum(1)
    ys = np.arange(0, height - side + 1, step)
    xs = np.arange(0, width - side + 1, step)
    top, low = sums[ys], sums[ys + side]
    return low[:, xs + side] - low[:, xs] - top[:, xs + side] + top[:, xs], ys, xs

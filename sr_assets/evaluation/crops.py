"""Chooses the places of an image where models differ most, for side-by-side crops.

Only coordinates; cutting and drawing are `leaderboard.py` and `report/`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = stack.var(0, dtype=np.float64).cumsum(0).cumsum(1)
    ys = np.arange(0, height - side + 1, step)
    xs = np.arange(0, width - side + 1, step)
    top, low = sums[ys], sums[ys + side]
    found = low[:, xs + side] - low[:, xs] - top[:, xs + side] + top[:, xs]
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

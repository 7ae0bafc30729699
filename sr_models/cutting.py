"""The loops behind every training crop: a square of a picture, turned and mirrored, into a batch.

Where it is cut is drawn in `sr_assets/stores/augment.py`.
"""

from __future__ import annotations

import numpy as np

from sr_models.compiled import compiled

_BLOCK = np.uint64(16)  # rows of the target at once: what one column of them touches stays near


def cut_into(
    planes: np.ndarray, y: int, x: int, turns: int, mirrored: bool, out: np.ndarray
) -> None:
    """Copies the square at (`y`, `x`), turned as `np.rot90` does, then mirrored left to right.

    Args:
        planes: [C, H, W] of any type and any strides.
        y, x: upper left pixel of the square.
        turns: quarter turns, anticlockwise, 0 to 3.
        mirrored: left to right, after turning.
        out: [C, n, n] of the same type, overwritten; n is the side of the square.

    Raises:
        ValueError: the square leaves the planes, or the arrays do not fit each other.
    """
    count, height, width = planes.shape
    side = out.shape[-1]
    inside = 0 <= y <= height - side and 0 <= x <= width - side
    if out.shape != (count, side, side) or out.dtype != planes.dtype or not inside:
        raise ValueError(
            f"no {out.dtype} {out.shape} can be cut at ({y}, {x}) of {planes.dtype} {planes.shape}"
        )
    if turns % 2 == 0:
        _straight(planes, y, x, turns == 0, (turns == 0) != mirrored, out)
    else:
        _turned(planes, y, x, (turns == 1) != mirrored, turns == 3, out)


# Indices are unsigned, since a signed one may count from the end, and no loop that asks is
# vectorised.


@compiled
def _straight(planes: np.ndarray, y: int, x: int, down: bool, right: bool, out: np.ndarray) -> None:
    """Rows become rows; without `down` from the last one on, without `right` backwards."""
    count, side = np.uint64(out.shape[0]), np.uint64(out.shape[1])
    top, left, last = np.uint64(y), np.uint64(x), side - np.uint64(1)
    for c in range(count):
        for i in range(side):
            row, target = planes[c, top + (i if down else last - i)], out[c, i]
            if right:
                for j in range(side):
                    target[j] = row[left + j]
            else:
                for j in range(side):
                    target[j] = row[left + last - j]


@compiled
def _turned(planes: np.ndarray, y: int, x: int, down: bool, right: bool, out: np.ndarray) -> None:
    """Rows become columns; the same words for their order."""
    count, side = np.uint64(out.shape[0]), np.uint64(out.shape[1])
    top, left, last = np.uint64(y), np.uint64(x), side - np.uint64(1)
    for c in range(count):
        for start in range(np.uint64(0), side, _BLOCK):
            end = min(start + _BLOCK, side)
            for j in range(side):
                row = planes[c, top + (j if down else last - j)]
                if right:
                    for i in range(start, end):
                        out[c, i, j] = row[left + i]
                else:
                    for i in range(start, end):
                        out[c, i, j] = row[left + last - i]

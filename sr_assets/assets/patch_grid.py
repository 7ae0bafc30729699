"""Where patches of an image lie, which images are held out, and how much detail a patch has.

Pure functions of sizes, digests and pixels; reading images and writing patches is `silver.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from sr_assets.pictures import Pixels
from sr_assets.stores.manifest import ManifestRow
from sr_assets.stores.patches import TRAIN, VALIDATION, PatchPositions


def held_out(digests: Sequence[str], share: float, seed: int) -> frozenset[str]:
    """Chooses the source images of the validation split by content, whatever their names or order.

    Args:
        digests: sha256 of every image, at least two, each once.
        share: of the images to hold out; at least one is, and at least one is left to train on.
        seed: another seed gives another choice.

    Returns:
        The digests of the images held out.
    """
    ranked = sorted(digests, key=lambda d: hashlib.sha256(f"{seed}:{d}".encode()).hexdigest())
    return frozenset(ranked[: min(max(1, round(share * len(ranked))), len(ranked) - 1)])


def grid(height: int, width: int, size: int, stride: int) -> np.ndarray:
    """Upper left corners of the patches of one image, int32 [n, 2] as (y, x), row by row."""
    ys, xs = range(0, height - size + 1, stride), range(0, width - size + 1, stride)
    return np.array([(y, x) for y in ys for x in xs], np.int32).reshape(-1, 2)


def detail(patch: Pixels) -> float:
    """Mean |Laplacian| of the luma (0 to 255) of a patch, over the four neighbours of each pixel.

    Args:
        patch: uint8 [H, W, 3], at least 3 x 3; the outermost pixels have no Laplacian.

    Returns:
        0 for a flat patch; integers inside, so that it is the same number on every machine.
    """
    thousandths = patch.astype(np.int32) @ np.array([299, 587, 114], np.int32)
    centre = thousandths[1:-1, 1:-1]
    around = (
        thousandths[:-2, 1:-1]
        + thousandths[2:, 1:-1]
        + thousandths[1:-1, :-2]
        + thousandths[1:-1, 2:]
    )
    total = int(np.abs(4 * centre - around).sum(dtype=np.int64))
    return total / (1000 * centre.size)


def positions_of(
    rows: list[ManifestRow], corners: list[np.ndarray], validation: frozenset[str]
) -> PatchPositions:
    """The places of all patches of some images.

    Args:
        rows: of the images, in their order.
        corners: int32 [n, 2] for each of them, as `grid` gives them.
        validation: digests of the images held out.
    """
    counts = [len(c) for c in corners]
    splits = [VALIDATION if row.sha256 in validation else TRAIN for row in rows]
    together = np.concatenate(corners)
    return PatchPositions(
        image=np.repeat(np.arange(len(rows), dtype=np.int32), counts),
        y=together[:, 0],
        x=together[:, 1],
        split=np.repeat(np.array(splits, np.uint8), counts),
    )


def patches_at(pixels: Pixels, corners: np.ndarray, size: int) -> Iterator[Pixels]:
    """Squares of `size` px of an image, uint8 [size, size, 3] each; views, not copies."""
    for y, x in corners:
        yield pixels[y : y + size, x : x + size]

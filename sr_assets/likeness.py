"""How alike two pictures look: a perceptual hash to find candidates, a closer look to judge them.

It sees a picture as 32 x 32 luma samples, whatever its size, and knows nothing of files or
datasets. Where the bounds come from is in `docs/images.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Side of the luma samples that a manifest keeps of an image.
SIDE = 32
#: Pairs whose hashes differ in more bits, of 64, are not looked at further.
MOST_BITS = 18
#: Pairs at a larger distance are two pictures.
MOST_DISTANCE = 0.15

Luma = NDArray[np.uint8]

# The closer look: samples a side, and what a crop may have taken off a side in all.
_COARSE = 16
_CROPS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1)
# Length of all gradients below which there is more noise than picture: 1.5 levels in the mean.
_FLAT = 32.0
_PAIRS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Match:
    """Two pictures that are nearly equal: their places in the two lists, and 0 <= distance < 1."""

    first: int
    second: int
    distance: float


def luma_of(pixels: NDArray[np.uint8]) -> Luma:
    """A picture as means of 32 x 32 cells of its luma (BT.601).

    Args:
        pixels: uint8 [H, W, 3].

    Returns:
        uint8 [32, 32]; from integers inside, so that it is the same on every machine.
    """
    grey = Image.fromarray(pixels).convert("L")
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))


def perceptual_hash(luma: Luma) -> int:
    """The 64-bit pHash (Zauner 2010): which of the 8 x 8 lowest DCT coefficients are above median.

    The cosines are rounded to integers, since sums of floats differ in their last bits between
    machines and a coefficient of a flat picture is nothing else.

    Args:
        luma: uint8 [32, 32].
    """
    cosines = _cosines()
    coefficients = (cosines @ luma.astype(np.int64) @ cosines.T).ravel()
    middle = np.sort(coefficients)[31:33].sum()
    return int.from_bytes(np.packbits(2 * coefficients > middle).tobytes(), "big")


def near_copies(first: list[Luma], second: list[Luma]) -> list[Match]:
    """Every pair of a picture and a near copy of it, mirrored or turned by right angles too.

    A near copy is recompressed, resized, brighter or darker, grey, cropped by a few per cent, or
    several of these; another photo of the same thing is none.

    Args:
        first: uint8 [32, 32] each, as `luma_of` gives them.
        second: the same for the other list.

    Returns:
        Matches in the order of the two lists.
    """
    if not first or not second:
        return []
    turned = [list(_turns(luma)) for luma in second]
    hashes = np.array([perceptual_hash(luma) for luma in first], np.uint64)
    others = np.array([[perceptual_hash(t) for t in turns] for turns in turned], np.uint64)
    matches = []
    step = max(1, _PAIRS_AT_ONCE // others.size)
    for start in range(0, len(first), step):
        bits = np.bitwise_count(hashes[start : start + step, None, None] ^ others)
        for i, j in np.argwhere(bits.min(axis=2) <= MOST_BITS):
            turn = int(bits[i, j].argmin())
            distance = distance_between(first[start + i], turned[j][turn])
            if distance <= MOST_DISTANCE:
                matches.append(Match(start + int(i), int(j), distance))
    return matches


def distance_between(one: Luma, other: Luma) -> float:
    """1 - correlation of the gradients of two pictures that stand the same way up.

    Either may be a crop of the other: the best of all windows that leave up to a tenth of the
    width and of the height away counts.

    Args:
        one: uint8 [32, 32].
        other: uint8 [32, 32].

    Returns:
        0 (equal up to brightness and contrast) to 2, in steps of 0.001; 1 where one has no detail.
    """
    best = max(_correlation(one, other), _correlation(other, one))
    return round(1 - best, 3)


def _correlation(whole: Luma, cropped: Luma) -> float:
    """Best correlation of the gradients of a window of `whole` with those of all of `cropped`."""
    windows = _windows()
    wanted = _gradients(windows[:1] @ cropped.astype(np.float64) @ windows[0].T)[0]
    rows = windows @ whole.astype(np.float64)
    seen = _gradients((rows[:, None] @ windows.transpose(0, 2, 1)).reshape(-1, _COARSE, _COARSE))
    lengths = np.sqrt((seen * seen).sum(axis=1))
    length = float(np.sqrt((wanted * wanted).sum()))
    if length < _FLAT or lengths[0] < _FLAT:
        return 0.0
    return float(((seen @ wanted) / (lengths * length)).max())


def _gradients(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Differences of neighbours, [n, 16, 16] -> [n, 480]."""
    down, across = np.diff(pictures, axis=1), np.diff(pictures, axis=2)
    return np.concatenate([down.reshape(len(down), -1), across.reshape(len(across), -1)], axis=1)


@cache
def _windows() -> NDArray[np.float64]:
    """Means of 16 cells of a window of 32 samples, a matrix [16, 32] a window; first the whole."""
    spans = [(crop * place, 1 - crop) for crop in _CROPS for place in (0, 0.5, 1)]
    matrices = []
    for start, length in dict.fromkeys(spans):
        edges = (start + np.arange(_COARSE + 1) * length / _COARSE) * SIDE
        left = np.maximum(edges[:-1, None], np.arange(SIDE))
        right = np.minimum(edges[1:, None], np.arange(SIDE) + 1)
        covered = np.maximum(right - left, 0)
        matrices.append(covered / covered.sum(axis=1, keepdims=True))
    return np.stack(matrices)


def _turns(luma: Luma) -> Iterator[Luma]:
    for side in (luma, luma[:, ::-1]):
        for quarter in range(4):
            yield np.rot90(side, quarter)


@cache
def _cosines() -> NDArray[np.int64]:
    """The first 8 rows of the DCT-II of 32 samples, in 1/16384."""
    angles = np.pi * np.arange(8)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE)
    return np.rint(np.cos(angles) * (1 << 14)).astype(np.int64)

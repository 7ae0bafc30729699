"""What is drawn for each training sample: where it is cut, how it is turned, how its pixels change.

Every draw is a pure function of (seed, position), each kind from a stream of its own, so that one
augmentation leaves the draws of the others as they were. What then happens to the pixels is
`sr_models/training/augment.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sr_assets.recipe.training import Augment

#: Second words of the keys of the random streams. Runs depend on these numbers: only add to them.
ORDER, CROP, ZOOM, JITTER, BLUR, CUTBLUR, MIXUP = range(7)

_SIGMA = 0.3, 1.2  # of a blur (HR px): from nothing that shows to a slight softness
_REGION = 0.25, 0.75  # sides of a CutBlur region, of the crop's
_BETA = 1.2  # both parameters of Mixup's weight, as Yoo et al. 2020 have it for super-resolution


def generator(seed: int, stream: int, number: int) -> np.random.Generator:
    """The random numbers of one stream at one position of a run."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, stream, number))))


@dataclass(frozen=True)
class Cuts:
    """One square of each of B patches on the LR grid (px), and one of its eight orientations."""

    y: np.ndarray
    """int64 [B]"""
    x: np.ndarray
    """int64 [B]"""
    side: np.ndarray
    """int64 [B]; all alike without crop_scale."""
    turns: np.ndarray
    """int64 [B]: quarter turns, anticlockwise."""
    mirrored: np.ndarray
    """bool [B]: left to right, after turning."""

    def into(self, row: int, picture: np.ndarray, factor: int, out: np.ndarray) -> None:
        """Cuts planar picture number `row` [C, H, W], `factor` pixels for one of LR.

        Args:
            row: of the batch.
            picture: of any type.
            factor: upscaling factor of this map.
            out: [C, n, n] of the same type for the cut, n = side * factor; overwritten.
        """
        from sr_models.cutting import cut_into

        y, x = int(self.y[row]) * factor, int(self.x[row]) * factor
        cut_into(picture, y, x, int(self.turns[row]), bool(self.mirrored[row]), out)


def draw_cuts(augment: Augment, patch: int, crop: int, seed: int, positions: np.ndarray) -> Cuts:
    """Where samples are cut and how they are turned.

    Args:
        augment: flips, rotations, margin and crop_scale count here.
        patch: side of an LR patch (px).
        crop: side that a sample will have (LR px); with crop_scale another side is cut, which
            `changed` brings to this one.
        seed: of the run.
        positions: int64 [B], of the samples in the run.

    Raises:
        ValueError: the crop does not fit in what the margin leaves of a patch.
    """
    usable = patch - 2 * augment.margin
    if crop > usable:
        if not augment.margin:
            raise ValueError(f"a crop of {crop} does not fit in an LR patch of {patch}")
        raise ValueError(
            f"a crop of {crop} does not fit in the {max(0, usable)} px that train.augment.margin "
            f"{augment.margin} leaves of an LR patch of {patch}"
        )
    y, x, side, turns, mirrored = np.empty((5, len(positions)), np.int64)
    side[:] = crop
    for row, position in enumerate(positions.tolist()):
        if augment.crop_scale:
            zoom = generator(seed, ZOOM, position)
            stretch = zoom.uniform(-augment.crop_scale, augment.crop_scale)
            side[row] = min(usable, max(1, round(crop * (1 + stretch))))
        draw = generator(seed, CROP, position)
        y[row], x[row] = draw.integers(0, usable - int(side[row]) + 1, 2)
        turns[row], mirrored[row] = draw.integers(4), draw.integers(2)
    # Drawn even when not wanted: switching one off keeps everything else as it was.
    return Cuts(
        y + augment.margin,
        x + augment.margin,
        side,
        turns * augment.rotations,
        (mirrored * augment.flips).astype(bool),
    )


def changed(
    augment: Augment,
    lr: np.ndarray,
    hr: np.ndarray,
    scale: int,
    crop: int,
    seed: int,
    position: int,
) -> tuple[np.ndarray, np.ndarray]:
    """One sample after its zoom, colour jitter, blur and CutBlur, in this order.

    Args:
        augment: crop_scale, colour_jitter, jitter_strength, blur and cutblur count here.
        lr, hr: float32 [3, n, n] and [3, n * scale, n * scale].
        scale: upscaling factor.
        crop: LR side to return (px).
        seed: of the run.
        position: of the sample in the run.

    Returns:
        LR [3, crop, crop] and HR [3, crop * scale, crop * scale], float32, not clamped.
    """
    from sr_models.training import augment as pixels

    lr, hr = pixels.zoom(lr, hr, scale, crop)
    if (draw := _drawn(augment.colour_jitter, seed, JITTER, position)) is not None:
        strength = augment.jitter_strength
        brightness, contrast, saturation = draw.uniform(1 - strength, 1 + strength, 3)
        lr, hr = pixels.jitter(lr, hr, brightness, contrast, saturation)
    if (draw := _drawn(augment.blur, seed, BLUR, position)) is not None:
        lr, hr = pixels.blur(lr, hr, scale, draw.uniform(*_SIGMA))
    if (draw := _drawn(augment.cutblur, seed, CUTBLUR, position)) is not None:
        rows, columns = (_span(draw, crop) for _ in range(2))
        lr = pixels.cutblur(lr, rows, columns, bool(draw.integers(2)))
    return lr, hr


def draw_partner(
    augment: Augment, samples: int, seed: int, position: int
) -> tuple[int, float] | None:
    """The position of the sample that this one is mixed with and this one's weight, or None.

    The partner comes from the same epoch, not from the same batch: a sample must not depend on how
    many others stand beside it.
    """
    draw = _drawn(augment.mixup, seed, MIXUP, position)
    if draw is None:
        return None
    epoch = position // samples
    return epoch * samples + int(draw.integers(samples)), float(draw.beta(_BETA, _BETA))


def _drawn(probability: float, seed: int, stream: int, position: int) -> np.random.Generator | None:
    """The stream, where this sample is one of those that are changed."""
    if not probability:
        return None
    draw = generator(seed, stream, position)
    return draw if draw.random() < probability else None


def _span(draw: np.random.Generator, crop: int) -> slice:
    length = max(1, round(crop * draw.uniform(*_REGION)))
    start = int(draw.integers(0, crop - length + 1))
    return slice(start, start + length)

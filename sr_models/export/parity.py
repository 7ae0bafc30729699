"""How far an exported file's pictures are from those of the network it came from.

Which files there are and where the pictures come from is not known here.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sr_models.metrics.images import psnr_y, to_uint8

#: BT.601 luma of RGB in [0, 1], over the 255 of the convention.
_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
_MEGAPIXEL = 1_000_000

#: Index of a patch -> its SR, float32 [1, 3, H, W], not clamped.
Run = Callable[[int], Tensor]


@dataclass(frozen=True)
class Reference:
    """What the network itself makes of the patches."""

    pictures: tuple[Tensor, ...]
    """float32 [1, 3, H, W], not clamped."""
    hr: tuple[np.ndarray, ...]
    """uint8 [H, W, 3] of the same patches."""
    scale: int
    scores: tuple[float, ...]
    """PSNR-Y (dB) of each against HR."""
    seconds_per_megapixel: float

    @property
    def psnr_y(self) -> float:
        """Mean PSNR-Y (dB) against HR."""
        return statistics.fmean(self.scores)


@dataclass(frozen=True)
class PatchParity:
    """One file beside its network on one patch; names as in `Parity`."""

    max_difference: float
    psnr_y_to_torch: float
    psnr_y: float
    psnr_y_change: float


@dataclass(frozen=True)
class Parity:
    """One file beside its network, on the same patches."""

    max_difference: float
    """Largest |file - network| of pictures in [0, 1] that are not clamped."""
    mean_difference: float
    psnr_y_to_torch: float
    """PSNR-Y (dB) between the two, clamped but not rounded, of the patch that is worst."""
    psnr_y: float
    """Mean PSNR-Y (dB) against HR, by the convention."""
    psnr_y_change: float
    """`psnr_y` less that of the network (dB)."""
    seconds_per_megapixel: float
    """Median over the patches, after one that warms up."""
    patches: tuple[PatchParity, ...] = ()
    """Each by itself, in their order."""


@dataclass(frozen=True)
class Gate:
    """What a file must reach."""

    max_difference: float = math.inf
    psnr_y_to_torch: float = -math.inf
    """In dB."""
    drop: float = math.inf
    """Largest loss of mean PSNR-Y against HR (dB)."""
    patch_drop: float = math.inf
    """The same of any one patch, which a mean may hide."""

    def refusal(self, parity: Parity) -> str | None:
        """Why a file does not pass, with the numbers, in one line; None where it does."""
        found = []
        if not parity.max_difference <= self.max_difference:  # NaN fails too
            found.append(
                f"differs from torch by {parity.max_difference:.2g}, above {self.max_difference:g}"
            )
        if not parity.psnr_y_to_torch >= self.psnr_y_to_torch:
            found.append(
                f"PSNR-Y to torch is {parity.psnr_y_to_torch:.1f} dB, below "
                f"{self.psnr_y_to_torch:g} dB"
            )
        if not -parity.psnr_y_change <= self.drop:
            found.append(
                f"loses {-parity.psnr_y_change:.3f} dB of PSNR-Y, more than {self.drop:g} dB"
            )
        for number, patch in enumerate(parity.patches, 1):
            if not -patch.psnr_y_change <= self.patch_drop:
                found.append(
                    f"loses {-patch.psnr_y_change:.3f} dB of PSNR-Y on patch {number}, more than "
                    f"{self.patch_drop:g} dB"
                )
        return "; ".join(found) or None


def run_reference(run: Run, hr: Sequence[np.ndarray], scale: int) -> Reference:
    """Runs the network on every patch.

    Args:
        run: the network.
        hr: uint8 [H, W, 3] of each patch, at least one.
        scale: upscaling factor.

    Raises:
        ValueError: a picture is not finite.
    """
    pictures, seconds = _run_all(run, len(hr))
    return Reference(tuple(pictures), tuple(hr), scale, _psnr_to(hr, pictures, scale), seconds)


def measure(run: Run, reference: Reference) -> Parity:
    """Runs a file on the patches of `reference` and compares.

    Raises:
        ValueError: a picture has another size or is not finite.
    """
    pictures, seconds = _run_all(run, len(reference.hr))
    for picture, expected in zip(pictures, reference.pictures, strict=True):
        if picture.shape != expected.shape:
            raise ValueError(f"gives {tuple(picture.shape)}, torch {tuple(expected.shape)}")
    scores = _psnr_to(reference.hr, pictures, reference.scale)
    patches = tuple(
        PatchParity(float((a - b).abs().max()), luma_psnr(a, b), score, _change(score, before))
        for a, b, score, before in zip(
            pictures, reference.pictures, scores, reference.scores, strict=True
        )
    )
    means = [float((a - b).abs().mean()) for a, b in zip(pictures, reference.pictures, strict=True)]
    score = statistics.fmean(scores)
    return Parity(
        max_difference=max(patch.max_difference for patch in patches),
        mean_difference=statistics.fmean(means),
        psnr_y_to_torch=min(patch.psnr_y_to_torch for patch in patches),
        psnr_y=score,
        psnr_y_change=_change(score, reference.psnr_y),
        seconds_per_megapixel=seconds,
        patches=patches,
    )


def _change(score: float, before: float) -> float:
    """In dB; where both meet HR exactly, nothing was lost."""
    return 0.0 if score == before else score - before


def luma_psnr(a: Tensor, b: Tensor) -> float:
    """PSNR (dB) of the luma of two [..., 3, H, W], clamped to [0, 1], not rounded.

    The luma is that of the convention, of range 16..235 against a peak of 255. Infinity where both
    are the same.
    """
    weights = torch.tensor(_LUMA, dtype=torch.float64)[:, None, None]
    error = ((a.double().clamp(0, 1) - b.double().clamp(0, 1)) * weights).sum(-3)
    mean = float(error.square().mean())
    return math.inf if mean == 0 else -10 * math.log10(mean)


def _run_all(run: Run, count: int) -> tuple[list[Tensor], float]:
    """Every picture, and the seconds for a megapixel of output."""
    pictures, taken = [], []
    with torch.no_grad():
        run(0)
        for index in range(count):
            started = time.perf_counter()
            picture = run(index)
            taken.append((time.perf_counter() - started) / (picture.shape[-1] * picture.shape[-2]))
            pictures.append(picture.float())
    return pictures, statistics.median(taken) * _MEGAPIXEL


def _psnr_to(hr: Sequence[np.ndarray], pictures: Sequence[Tensor], scale: int) -> tuple[float, ...]:
    return tuple(
        psnr_y(to_uint8(picture)[0], truth, border=scale)
        for picture, truth in zip(pictures, hr, strict=True)
    )

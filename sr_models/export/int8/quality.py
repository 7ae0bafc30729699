"""How far an int8 graph is from its fp32 graph on real patches: PSNR-Y lost and differences.

The convention is the project's (docs/metrics.md); which graph to try next is `sensitivity.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch

from sr_models.metrics.images import psnr_y, to_uint8

Run = Callable[[bytes, Sequence[np.ndarray]], list[np.ndarray]]
"""(graph, images [1, 3, h, w]) -> SR [1, 3, H, W] of each."""


@dataclass(frozen=True)
class Patches:
    """LR and HR of some pictures, with what the fp32 graph makes of them."""

    lr: list[np.ndarray]
    """float32 [1, 3, h, w]."""
    hr: list[np.ndarray]
    """uint8 [H, W, 3]."""
    fp32: list[np.ndarray]
    """float32 [1, 3, H, W], not clamped."""
    scale: int

    def psnr(self, sr: Sequence[np.ndarray]) -> list[float]:
        """PSNR-Y (dB) of each picture, `scale` pixels of the border left out."""
        pairs = zip(sr, self.hr, strict=True)
        return [psnr_y(to_uint8(torch.from_numpy(s))[0], hr, self.scale) for s, hr in pairs]

    def error(self, sr: Sequence[np.ndarray]) -> float:
        """Mean squared difference to fp32, both cut to [0, 1]."""
        pairs = zip(sr, self.fp32, strict=True)
        return fmean(float(np.mean((s.clip(0, 1) - f.clip(0, 1)) ** 2)) for s, f in pairs)


@dataclass(frozen=True)
class Loss:
    """What int8 costs on some patches."""

    psnr_fp32: float
    """Mean PSNR-Y of the fp32 graph against HR (dB)."""
    psnr_int8: float
    drops: tuple[float, ...]
    """PSNR-Y lost by each picture (dB)."""
    max_difference: float
    """Largest |int8 - fp32|, not clamped."""
    mean_difference: float

    @property
    def drop(self) -> float:
        """Mean PSNR-Y lost (dB)."""
        return self.psnr_fp32 - self.psnr_int8

    @property
    def largest_drop(self) -> float:
        """Of the picture that loses most (dB)."""
        return max(self.drops)


def measured(patches: Patches, sr: Sequence[np.ndarray]) -> Loss:
    """The loss of `sr` in place of the fp32 graph's pictures."""
    before, after = patches.psnr(patches.fp32), patches.psnr(sr)
    differences = [np.abs(s - f) for s, f in zip(sr, patches.fp32, strict=True)]
    return Loss(
        fmean(before),
        fmean(after),
        tuple(b - a for b, a in zip(before, after, strict=True)),
        max(float(d.max()) for d in differences),
        fmean(float(d.mean()) for d in differences),
    )


def prepare(
    content: bytes,
    run: Run,
    lr: Sequence[np.ndarray],
    hr: Sequence[np.ndarray],
    scale: int,
    multiple: int,
) -> Patches:
    """Pictures [3, h, w] and [3, H, W] in [0, 1] as `Patches`, LR cut to sides the graph takes.

    Raises:
        ValueError: an LR and its HR do not fit together.
    """
    images, targets = [], []
    for index, (low, high) in enumerate(zip(lr, hr, strict=True)):
        _, h, w = low.shape
        if low.shape[0] != 3 or high.shape != (3, h * scale, w * scale):
            raise ValueError(
                f"patch {index}: LR {list(low.shape)} and HR {list(high.shape)} do not fit scale "
                f"{scale}: give [3, h, w] and [3, {scale} h, {scale} w]"
            )
        h, w = h - h % multiple, w - w % multiple
        images.append(np.ascontiguousarray(low[None, :, :h, :w], dtype=np.float32))
        part = np.ascontiguousarray(high[:, : h * scale, : w * scale], dtype=np.float32)
        targets.append(to_uint8(torch.from_numpy(part)))
    return Patches(images, targets, run(content, images), scale)

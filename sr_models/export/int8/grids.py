"""The values that int8 stands for: a scale for each channel of a tensor and one zero point.

What ranges a tensor has is measured in `calibration.py` or learnt in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Target = Literal["cpu", "trt"]
"""`cpu`: uint8 activations (ONNX Runtime, OpenVINO). `trt`: int8, zero point 0 (TensorRT)."""

_FLOOR = 1e-3  # of a channel's scale to the largest of its tensor: dead channels have no range
_TINY = 1e-8


@dataclass(frozen=True)
class Range:
    """What each channel of a tensor holds."""

    low: np.ndarray
    """[C], at most 0."""
    high: np.ndarray
    """[C], at least 0."""


@dataclass(frozen=True)
class Grid:
    """Channel c holds `scale[c] * (q - zero_point)` for 8-bit q."""

    scale: np.ndarray
    """float32 [C], above 0."""
    zero_point: int
    """0..255 of uint8, 0 of int8. One for all channels: a convolution pads with one value."""

    @property
    def step(self) -> np.float32:
        """The scale of the tensor once its channels are evened out: the largest."""
        return np.float32(self.scale.max())

    @property
    def even(self) -> bool:
        """Whether all channels have one scale."""
        return bool((self.scale == self.scale[0]).all())

    @property
    def noise_ratio(self) -> float:
        """Noise of rounding every channel with `step`, over that with scales of their own."""
        return float(self.step**2 / np.mean(self.scale.astype(np.float64) ** 2))

    @property
    def evening(self) -> np.ndarray:
        """float32 [C], at most 1: each channel's scale over `step`."""
        return (self.scale / self.step).astype(np.float32)


def side_by_side(parts: Sequence[Grid]) -> tuple[Grid, np.ndarray]:
    """The grid of maps that stand side by side, and how far each channel's zero point is off.

    Returns:
        The grid, with the zero point of the first, and int64 [C] to add to it.
    """
    zero_point = parts[0].zero_point
    off = [np.full(len(part.scale), part.zero_point - zero_point, np.int64) for part in parts]
    return Grid(np.concatenate([part.scale for part in parts]), zero_point), np.concatenate(off)


def grid_of(found: Range, target: Target, unevenness: float) -> Grid:
    """The finest grid that cuts nothing of `found` off.

    Channels get scales of their own where one scale for all would have `unevenness` times the
    rounding noise; else that of the widest. Scales of their own leave rounding to the weights that
    read them (Xiao et al. 2023, SmoothQuant) and may cost a multiplication of the tensor.
    """
    low, high = found.low.astype(np.float64), found.high.astype(np.float64)
    own = _scales(low, high, target)
    if own.noise_ratio >= unevenness:
        return own
    one = _scales(low.min(keepdims=True), high.max(keepdims=True), target)
    return Grid(np.full(len(low), one.scale[0]), one.zero_point)


def _scales(low: np.ndarray, high: np.ndarray, target: Target) -> Grid:
    if target == "trt":
        zero_point, scale = 0, np.maximum(-low, high) / 127
    else:
        zero_point, scale = _shared_zero_point(low, high)
    scale = np.maximum(scale, _FLOOR * max(float(scale.max()), _TINY))
    return Grid(scale.astype(np.float32), zero_point)


def _shared_zero_point(low: np.ndarray, high: np.ndarray) -> tuple[int, np.ndarray]:
    """The zero point of uint8 that costs the channels least, and their scales with it."""
    points = np.arange(256.0)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.where(low == 0, 0.0, -low / points)
        above = np.where(high == 0, 0.0, high / (255 - points))
    scales = np.maximum(below, above)
    width = np.maximum(high - low, _FLOOR * max(float((high - low).max()), _TINY))
    best = int(np.argmin(((scales * 255 / width) ** 2).mean(axis=1)))
    return best, scales[best]

"""How pictures are measured: PSNR and SSIM on BT.601 luma, and the mean colour offset.

One convention for every number of the project; nothing here is differentiable or a loss.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def to_uint8(images: Tensor) -> np.ndarray:
    """Clamps to [0, 1], multiplies by 255 and rounds half up.

    Args:
        images: floating [..., 3, H, W] on any device; 0 is black, 1 is white.

    Returns:
        uint8 [..., H, W, 3].

    Raises:
        ValueError: another shape or type, or a value that is not finite.
    """
    if images.ndim < 3 or images.shape[-3] != 3 or not images.is_floating_point():
        raise ValueError(
            f"expected floating [..., 3, H, W], got {images.dtype} {list(images.shape)}"
        )
    values = images.detach().to("cpu", torch.float32)
    if not torch.isfinite(values).all():
        count = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{count} of {values.numel()} values are not finite: no picture to save")
    rounded = values.clamp(0, 1).mul_(255).add_(0.5).floor_().to(torch.uint8)
    return rounded.movedim(-3, -1).contiguous().numpy()


def psnr_y(sr: np.ndarray, hr: np.ndarray, border: int) -> float:
    """Peak signal-to-noise ratio of the luma in dB, against a peak of 255.

    Args:
        sr, hr: uint8 [H, W, 3] RGB of the same size.
        border: pixels left out on every side (the scale, by convention).

    Returns:
        The ratio; infinity for identical images.

    Raises:
        ValueError: the shapes or types differ, or the border leaves nothing.
    """
    _check_pair(sr, hr, border, smallest=1)
    error = float(np.mean((_inner_luma(sr, border) - _inner_luma(hr, border)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim_y(sr: np.ndarray, hr: np.ndarray, border: int) -> float:
    """Structural similarity of the luma (Wang et al. 2004), mean over the valid region.

    An 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, L = 255, no downsampling.

    Args:
        sr, hr: uint8 [H, W, 3] RGB of the same size.
        border: pixels left out on every side before the windows are laid (the scale).

    Returns:
        The similarity, 1 for identical images.

    Raises:
        ValueError: the shapes or types differ, or the border leaves less than one window.
    """
    _check_pair(sr, hr, border, smallest=_WINDOW)
    x, y = (torch.from_numpy(_inner_luma(image, border)) for image in (sr, hr))
    means = _window_means(torch.stack([x, y, x * x, y * y, x * y]))
    mean_x, mean_y = means[0], means[1]
    var_x, var_y = means[2] - mean_x**2, means[3] - mean_y**2
    covariance = means[4] - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)) / (
        (mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2)
    )
    return float(similarity.mean())


def colour_offset(sr: np.ndarray, hr: np.ndarray) -> tuple[float, float, float]:
    """Mean of SR minus HR for red, green and blue, in grey levels; positive is brighter.

    Args:
        sr, hr: uint8 [H, W, 3] RGB of the same size; the whole image counts.

    Raises:
        ValueError: the shapes or types differ.
    """
    _check_pair(sr, hr, border=0, smallest=1)
    count = sr.shape[0] * sr.shape[1]
    totals = sr.sum((0, 1), dtype=np.int64) - hr.sum((0, 1), dtype=np.int64)
    red, green, blue = (float(total) / count for total in totals)
    return red, green, blue


def luma(image: np.ndarray) -> np.ndarray:
    """Y of BT.601 in its studio range, 16 to 235.

    Args:
        image: uint8 [..., 3] RGB.

    Returns:
        float64 [...], not rounded.
    """
    weights = np.array([65.481, 128.553, 24.966]) / 255
    return image.astype(np.float64) @ weights + 16


def _check_pair(sr: np.ndarray, hr: np.ndarray, border: int, smallest: int) -> None:
    for name, image in (("sr", sr), ("hr", hr)):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"{name} must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}"
            )
    if sr.shape != hr.shape:
        raise ValueError(f"sr is {list(sr.shape)} but hr is {list(hr.shape)}: the sizes must agree")
    if border < 0 or min(sr.shape[:2]) - 2 * border < smallest:
        raise ValueError(
            f"a border of {border} leaves less than {smallest} px of {list(sr.shape[:2])}"
        )


def _inner_luma(image: np.ndarray, border: int) -> np.ndarray:
    return luma(image[border : image.shape[0] - border, border : image.shape[1] - border])


def _window_means(planes: Tensor) -> Tensor:
    """Gaussian-weighted mean of every whole window: float64 [N, H, W] -> [N, H - 10, W - 10]."""
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    kernel = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    kernel /= kernel.sum()
    rows = F.conv2d(planes.unsqueeze(1), kernel.view(1, 1, -1, 1))
    return F.conv2d(rows, kernel.view(1, 1, 1, -1)).squeeze(1)

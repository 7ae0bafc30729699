"""How pictures are measured: PSNR, SSIM and MS-SSIM, consistency with LR, the mean colour offset.

One convention for every number of the project (docs/metrics.md); nothing here is differentiable or
a loss, and metrics that need weights or parameters are in modules of their own.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sr_models.degradations.bicubic import downscale_uint8

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
#: Exponents of MS-SSIM's levels, finest first (Wang et al. 2003, section 3.2).
_LEVELS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
#: Shortest side that MS-SSIM takes: its coarsest level holds one window (px, inside the border).
MS_SSIM_SMALLEST = (_WINDOW - 1) * 2 ** (len(_LEVELS) - 1) + 1


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
    return _psnr(_inner_luma(sr, border), _inner_luma(hr, border))


def psnr_rgb(sr: np.ndarray, hr: np.ndarray, border: int) -> float:
    """Peak signal-to-noise ratio of red, green and blue together in dB, against a peak of 255.

    The squared errors of the three channels are averaged before the logarithm is taken.

    Args:
        sr, hr, border: as for `psnr_y`.

    Returns:
        The ratio; infinity for identical images.

    Raises:
        ValueError: the shapes or types differ, or the border leaves nothing.
    """
    _check_pair(sr, hr, border, smallest=1)
    return _psnr(_inner(sr, border).astype(np.float64), _inner(hr, border).astype(np.float64))


def lr_psnr(sr: np.ndarray, lr: np.ndarray, scale: int) -> float:
    """How well SR agrees with the LR that it was made from: PSNR of all RGB pixels in dB.

    SR is reduced by the bicubic convention and rounded, then compared with LR (Lugmayr et al.,
    "NTIRE 2021 learning the super-resolution space challenge", who ask for at least 45 dB). For LR
    that was made in another way it tells how far that way is from bicubic.

    Args:
        sr: uint8 [scale h, scale w, 3] RGB.
        lr: uint8 [h, w, 3] RGB.
        scale: upscaling factor.

    Returns:
        The ratio; infinity where the reduced SR equals LR.

    Raises:
        ValueError: the shapes or types do not fit together.
    """
    reduced = downscale_uint8(sr, scale)
    _check_pair(reduced, lr, border=0, smallest=1)
    return _psnr(reduced.astype(np.float64), lr.astype(np.float64))


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
    brightness, structure = _similarity(x, y)
    return float((brightness * structure).mean())


def ms_ssim_y(sr: np.ndarray, hr: np.ndarray, border: int) -> float:
    """Multi-scale structural similarity of the luma (Wang, Simoncelli, Bovik 2003).

    Five levels, each the 2x2 mean of the one before (the last row or column of an odd side is
    repeated); windows and constants are those of `ssim_y`. A level whose mean structure is negative
    counts as 0.

    Args:
        sr, hr, border: as for `ssim_y`.

    Returns:
        The similarity, 1 for identical images.

    Raises:
        ValueError: the shapes or types differ, or the border leaves less than `MS_SSIM_SMALLEST`.
    """
    _check_pair(sr, hr, border, smallest=MS_SSIM_SMALLEST)
    x, y = (torch.from_numpy(_inner_luma(image, border)) for image in (sr, hr))
    product = 1.0
    for level, exponent in enumerate(_LEVELS):
        brightness, structure = _similarity(x, y)
        last = level == len(_LEVELS) - 1
        mean = float((brightness * structure if last else structure).mean())
        product *= max(mean, 0.0) ** exponent
        x, y = _halved(x), _halved(y)
    return product


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


def _inner(image: np.ndarray, border: int) -> np.ndarray:
    return image[border : image.shape[0] - border, border : image.shape[1] - border]


def _inner_luma(image: np.ndarray, border: int) -> np.ndarray:
    return luma(_inner(image, border))


def _psnr(one: np.ndarray, two: np.ndarray) -> float:
    error = float(np.mean((one - two) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Brightness term, and contrast times structure, of every whole window of float64 [H, W]."""
    means = _window_means(torch.stack([x, y, x * x, y * y, x * y]))
    mean_x, mean_y = means[0], means[1]
    var_x, var_y = means[2] - mean_x**2, means[3] - mean_y**2
    covariance = means[4] - mean_x * mean_y
    brightness = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return brightness, (2 * covariance + _C2) / (var_x + var_y + _C2)


def _halved(plane: Tensor) -> Tensor:
    """2x2 means of float64 [H, W], an odd last row or column repeated."""
    height, width = plane.shape
    whole = F.pad(plane[None, None], (0, width % 2, 0, height % 2), mode="replicate")
    return F.avg_pool2d(whole, 2)[0, 0]


def _window_means(planes: Tensor) -> Tensor:
    """Gaussian-weighted mean of every whole window: float64 [N, H, W] -> [N, H - 10, W - 10]."""
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    kernel = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    kernel /= kernel.sum()
    rows = F.conv2d(planes.unsqueeze(1), kernel.view(1, 1, -1, 1))
    return F.conv2d(rows, kernel.view(1, 1, 1, -1)).squeeze(1)

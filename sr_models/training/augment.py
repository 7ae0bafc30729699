"""Photometric and resampling augmentation of an LR/HR pair: what happens to the pixels.

What is drawn, and how often, is the caller's; flips and crops of stored samples are
`sr_assets/stores/augment.py`. Nothing is clamped: clipping LR and HR would part them, since the
degradation of a clipped HR is not a clipped LR.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from sr_models.degradations.bicubic import downscale

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]  # ITU-R BT.601
_COARSE = 2  # how much resolution a region loses in CutBlur

Pair = tuple[np.ndarray, np.ndarray]


def jitter(
    lr: np.ndarray, hr: np.ndarray, brightness: float, contrast: float, saturation: float
) -> Pair:
    """Changes brightness, then contrast, then saturation, of LR and HR alike.

    Contrast turns about one grey for both, the mean luma of HR. All three are affine in each pixel,
    so they commute with every resize whose weights sum to 1: LR stays the degraded HR.

    Args:
        lr, hr: float32 [3, h, w] and [3, h * scale, w * scale], RGB, near [0, 1].
        brightness, contrast, saturation: factors; 1 changes nothing.

    Returns:
        LR and HR, float32, a little outside [0, 1] where the factors take them there.
    """
    pivot = brightness * (hr * _LUMA).sum(0).mean()

    def change(picture: np.ndarray) -> np.ndarray:
        picture = pivot + contrast * (brightness * picture - pivot)
        grey = (picture * _LUMA).sum(0)
        return (grey + saturation * (picture - grey)).astype(np.float32)

    return change(lr), change(hr)


def blur(lr: np.ndarray, hr: np.ndarray, scale: int, sigma: float) -> Pair:
    """Blurs HR with a Gaussian; LR follows as if the blurred HR had been degraded.

    A Gaussian of sigma / scale on LR would not do: it is narrower than a pixel there. So LR takes
    the change of HR's bicubic, LR + bicubic(blurred HR) - bicubic(HR). That is exact for the
    bicubic degradation; noise and artefacts of another one stay as they are.

    Args:
        lr, hr: float32 [3, h, w] and [3, h * scale, w * scale].
        scale: upscaling factor.
        sigma: of the Gaussian (HR px).

    Returns:
        LR and HR, float32.
    """
    blurred = gaussian_filter(hr, (0, sigma, sigma), mode="reflect", truncate=3.0)
    return _followed(lr, hr, blurred, scale, lambda rest: rest), blurred


def zoom(lr: np.ndarray, hr: np.ndarray, scale: int, side: int) -> Pair:
    """Resamples a square crop of any side to LR side `side`, antialiased bicubic.

    LR is not enlarged by itself, which would leave it softer than any LR is: it is the bicubic of
    the resampled HR, plus what set LR apart from HR's bicubic before (noise, artefacts, rounding),
    resampled alike.

    Args:
        lr, hr: float32 [3, n, n] and [3, n * scale, n * scale].
        scale: upscaling factor.
        side: of the LR to return (px).

    Returns:
        LR [3, side, side] and HR [3, side * scale, side * scale], float32.
    """
    if lr.shape[-1] == side:
        return lr, hr
    resampled = _resampled(hr, side * scale)
    return _followed(lr, hr, resampled, scale, lambda rest: _resampled(rest, side)), resampled


def cutblur(lr: np.ndarray, rows: slice, columns: slice, inside: bool) -> np.ndarray:
    """A region of LR at half its resolution, or everything but the region.

    CutBlur (Yoo et al. 2020) pastes between an input and a sharper or coarser version of it at the
    same size, so that the network learns where to sharpen and how much; the target stays. There the
    input has HR's size and the sharper version is HR. On the LR grid nothing is sharper than the
    bicubic of HR, which LR already is, so the other version is the coarser one: LR reduced to half
    and enlarged again.

    Args:
        lr: float32 [3, h, w].
        rows, columns: the region (LR px).
        inside: whether the region is coarse, or what surrounds it.

    Returns:
        float32 [3, h, w].
    """
    height, width = lr.shape[-2:]
    small = (-(-height // _COARSE), -(-width // _COARSE))
    coarse = _interpolated(_interpolated(_batch(lr), small), (height, width))[0].numpy()
    under, over = (lr, coarse) if inside else (coarse, lr)
    mixed = under.copy()
    mixed[:, rows, columns] = over[:, rows, columns]
    return mixed


def mixup(one: Pair, other: Pair, weight: float) -> Pair:
    """`weight` of one LR/HR pair and the rest of another (Mixup, Zhang et al. 2018).

    Returns:
        LR and HR, float32; LR stays the degraded HR where the degradation is linear.
    """
    share, rest = np.float32(weight), np.float32(1 - weight)
    return share * one[0] + rest * other[0], share * one[1] + rest * other[1]


def _followed(
    lr: np.ndarray,
    hr: np.ndarray,
    changed: np.ndarray,
    scale: int,
    carry: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """LR after HR has changed: the bicubic of the new HR, and what LR had beside the old one's."""
    return _bicubic(changed, scale) + carry(lr - _bicubic(hr, scale))


def _bicubic(hr: np.ndarray, scale: int) -> np.ndarray:
    return downscale(_batch(hr), scale)[0].numpy()


def _resampled(picture: np.ndarray, side: int) -> np.ndarray:
    return _interpolated(_batch(picture), (side, side))[0].numpy()


def _interpolated(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


def _batch(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).unsqueeze(0)

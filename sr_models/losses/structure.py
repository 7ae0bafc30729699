"""Loss terms from structural similarity, at one scale and at several, for crops of any size.

The figure of a report is `sr_models/metrics`: on luma, in 8 bits, not differentiable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2  # for a range of 1
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, table of section 3
_LOWEST = 0.05  # below it the logarithm of a similarity goes on as its tangent


def ssim_loss(output: Tensor, target: Tensor) -> Tensor:
    """1 - SSIM, mean over all whole windows and the channels; 0-dimensional.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004,
    with an 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03 and a range of 1. On a side
    shorter than 11 px the window is that side long.

    Args:
        output, target: floating [B, C, H, W] from 1x1 up, about [0, 1].
    """
    return 1 - _similarities(output, target)[0].mean()


def ms_ssim_loss(output: Tensor, target: Tensor) -> Tensor:
    """1 - MS-SSIM, mean over images and channels; 0-dimensional.

    Wang et al., "Multi-scale structural similarity for image quality assessment", 2003, equation
    7. The scales are those, five at most, whose shorter side holds a whole window (11 px), and
    one at least; their weights are divided by their sum. A scale's mean similarity under 0.05,
    negative ones included, counts as its logarithm's tangent there: a power would have an
    infinite gradient at 0 and none below.

    Args:
        output, target: floating [B, C, H, W] from 1x1 up, about [0, 1].
    """
    shorter = min(output.shape[-2:])
    scales = 1 + sum(shorter >> halvings >= _WINDOW for halvings in range(1, len(_SCALE_WEIGHTS)))
    weights = _SCALE_WEIGHTS[:scales]
    logarithm = output.new_zeros(())
    for scale, weight in enumerate(weights, start=1):
        similarity, contrast = _similarities(output, target)
        part = similarity if scale == scales else contrast
        logarithm = logarithm + weight / sum(weights) * _extended_log(part)
        if scale < scales:
            output, target = F.avg_pool2d(output, 2), F.avg_pool2d(target, 2)
    return 1 - logarithm.exp().mean()


def _similarities(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean SSIM, and mean of its contrast-structure factor, of every image and channel: [B, C]."""
    rows, columns = _windows(x, -2), _windows(x, -1)
    # Matrix products, not convolutions: those may run in TF32, too coarse for these differences.
    means = rows @ torch.stack([x, y, x * x, y * y, x * y]) @ columns.mT
    mean_x, mean_y = means[0], means[1]
    variances = means[2] - mean_x.square() + means[3] - mean_y.square()
    covariance = means[4] - mean_x * mean_y
    contrast = (2 * covariance + _C2) / (variances + _C2)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return (luminance * contrast).mean((-2, -1)), contrast.mean((-2, -1))


def _windows(image: Tensor, axis: int) -> Tensor:
    """Matrix whose rows are the Gaussian window at each of its places along `axis`."""
    side = image.shape[axis]
    width = min(side, _WINDOW)
    place = torch.arange(side - width + 1, device=image.device, dtype=image.dtype).unsqueeze(1)
    offset = torch.arange(side, device=image.device, dtype=image.dtype) - place
    weights = torch.exp(-((offset - (width - 1) / 2) ** 2) / (2 * _SIGMA**2))
    weights = weights * ((offset >= 0) & (offset < width))
    return weights / weights.sum(dim=1, keepdim=True)


def _extended_log(similarity: Tensor) -> Tensor:
    tangent = math.log(_LOWEST) + (similarity - _LOWEST) / _LOWEST
    return torch.where(similarity > _LOWEST, similarity.clamp(min=_LOWEST).log(), tangent)
